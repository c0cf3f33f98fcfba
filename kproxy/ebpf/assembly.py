"""eBPF instructions with names: an assembler of one pass, for programs of a few hundred instructions. Pure.

In: calls of `Assembly`'s methods, in the order of the program; jumps name labels that stand anywhere. Out: octets as bpf(2) takes them
(RFC 9669; linux/bpf.h). What must not happen here: knowing what a program is for. The kernel's verifier judges it, and `calls` tells its
words.

Registers are numbers: 0 has results, 1 to 5 arguments (gone after a call), 6 to 9 stay, 10 is the frame, whose 512 octets lie below it.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

FRAME = 10

_SIZES = {1: 0x10, 2: 0x08, 4: 0x00, 8: 0x18}  # BPF_B, BPF_H, BPF_W, BPF_DW
# Classes LDX, ST, STX with mode MEM; STX with mode ATOMIC.
_LOAD, _STORE_NUMBER, _STORE, _ATOMIC = 0x61, 0x62, 0x63, 0xC3
_ADD, _SUBTRACT, _DIVIDE, _OR, _AND, _SHIFT_LEFT, _SHIFT_RIGHT, _MODULO, _XOR, _SET = (
    0x00, 0x10, 0x30, 0x40, 0x50, 0x60, 0x70, 0x90, 0xA0, 0xB0,
)  # fmt: skip
_WIDE, _REGISTER = 0x07, 0x08  # class ALU64; the source is a register
_TO_BIG_ENDIAN = 0xDC
_FETCH, _COMPARE_AND_EXCHANGE = 0x01, 0xF1
_JUMP, _CALL, _EXIT, _TWO_WORDS = 0x05, 0x85, 0x95, 0x18
_MAP_DESCRIPTOR = 1  # BPF_PSEUDO_MAP_FD
_CONDITIONS = {"==": 0x10, ">": 0x20, ">=": 0x30, "&": 0x40, "!=": 0x50, "<": 0xA0, "<=": 0xB0}  # unsigned, but for:
_CONDITIONS |= {"signed >": 0x60, "signed >=": 0x70, "signed <": 0xC0, "signed <=": 0xD0}


@dataclass(slots=True)
class Assembly:
    """A program as it grows. Sizes are octets: 1, 2, 4 or 8. Numbers are 32 bits wide and sign-extended."""

    code: list[tuple[int, int, int, int, int]] = field(default_factory=list)
    _labels: dict[str, int] = field(default_factory=dict)
    _jumps: list[tuple[int, str]] = field(default_factory=list)

    def label(self, name: str) -> None:
        """A place to jump to. Raises ValueError for a name that has one."""
        if name in self._labels:
            raise ValueError(f"label {name} stands twice")
        self._labels[name] = len(self.code)

    def load(self, into: int, base: int, offset: int, size: int) -> None:
        """into = the octets at base + offset, without sign."""
        self._put(_LOAD | _SIZES[size], into, base, offset)

    def store(self, base: int, offset: int, source: int, size: int) -> None:
        """The octets at base + offset = a register."""
        self._put(_STORE | _SIZES[size], base, source, offset)

    def store_number(self, base: int, offset: int, number: int, size: int) -> None:
        """The octets at base + offset = a number."""
        self._put(_STORE_NUMBER | _SIZES[size], base, 0, offset, number)

    def add_atomically(self, base: int, offset: int, source: int) -> None:
        """The eight octets at base + offset += a register, whoever else does the same."""
        self._put(_ATOMIC | _SIZES[8], base, source, offset)

    def fetch_and_add(self, base: int, offset: int, register: int) -> None:
        """The eight octets at base + offset += a register, which becomes what was there before (Linux 5.12)."""
        self._put(_ATOMIC | _SIZES[8], base, register, offset, _FETCH)

    def replace_if_same(self, base: int, offset: int, register: int) -> None:
        """The four octets at base + offset = a register, if they are what register 0 says, which becomes what was there (Linux 5.12)."""
        self._put(_ATOMIC | _SIZES[4], base, register, offset, _COMPARE_AND_EXCHANGE)

    def set(self, into: int, number: int) -> None:
        """into = a number."""
        self._put(_SET | _WIDE, into, 0, 0, number)

    def copy(self, into: int, source: int) -> None:
        """into = a register."""
        self._put(_SET | _WIDE | _REGISTER, into, source)

    def add(self, into: int, number: int) -> None:
        """into += a number."""
        self._put(_ADD | _WIDE, into, 0, 0, number)

    def add_register(self, into: int, source: int) -> None:
        """into += a register."""
        self._put(_ADD | _WIDE | _REGISTER, into, source)

    def subtract_register(self, into: int, source: int) -> None:
        """into -= a register."""
        self._put(_SUBTRACT | _WIDE | _REGISTER, into, source)

    def divide(self, into: int, number: int) -> None:
        """into /= a number, both without sign."""
        self._put(_DIVIDE | _WIDE, into, 0, 0, number)

    def modulo_register(self, into: int, source: int) -> None:
        """into = the rest of its division by a register; unchanged where that is 0."""
        self._put(_MODULO | _WIDE | _REGISTER, into, source)

    def mask(self, into: int, number: int) -> None:
        """into &= a number."""
        self._put(_AND | _WIDE, into, 0, 0, number)

    def combine(self, into: int, source: int) -> None:
        """into |= a register."""
        self._put(_OR | _WIDE | _REGISTER, into, source)

    def shift_left(self, into: int, bits: int) -> None:
        """into <<= bits."""
        self._put(_SHIFT_LEFT | _WIDE, into, 0, 0, bits)

    def shift_right(self, into: int, bits: int) -> None:
        """into >>= bits, zeros from above."""
        self._put(_SHIFT_RIGHT | _WIDE, into, 0, 0, bits)

    def flip(self, into: int, number: int) -> None:
        """into ^= a number."""
        self._put(_XOR | _WIDE, into, 0, 0, number)

    def to_network(self, into: int, size: int) -> None:
        """into = its low `size` octets turned between the machine's order and the network's, and nothing above them."""
        self._put(_TO_BIG_ENDIAN, into, 0, 0, 8 * size)

    def map(self, into: int, descriptor: int) -> None:
        """into = a map, by its file descriptor in the process that loads the program."""
        self._put(_TWO_WORDS, into, _MAP_DESCRIPTOR, 0, descriptor)
        self._put(0, 0, 0)

    def call(self, helper: int) -> None:
        """Calls a helper by its number in linux/bpf.h."""
        self._put(_CALL, 0, 0, 0, helper)

    def exit(self) -> None:
        """Ends with what register 0 holds."""
        self._put(_EXIT, 0, 0)

    def jump(self, label: str) -> None:
        """Goes on at a label."""
        self._jumps.append((len(self.code), label))
        self._put(_JUMP, 0, 0)

    def jump_if(self, register: int, condition: str, number: int, label: str) -> None:
        """Goes on at a label when `register condition number`, compared as 64 bits, without sign unless it is said; `&`: a common bit."""
        self._jumps.append((len(self.code), label))
        self._put(_JUMP | _CONDITIONS[condition], register, 0, 0, number)

    def jump_if_register(self, register: int, condition: str, other: int, label: str) -> None:
        """The same with a register."""
        self._jumps.append((len(self.code), label))
        self._put(_JUMP | _CONDITIONS[condition] | _REGISTER, register, other)

    def assemble(self) -> bytes:
        """The program. Raises ValueError for a jump to nowhere."""
        code = list(self.code)
        for at, label in self._jumps:
            if label not in self._labels:
                raise ValueError(f"no label {label}")
            operation, into, source, _, number = code[at]
            code[at] = (operation, into, source, self._labels[label] - at - 1, number)
        return b"".join(
            struct.pack("=BBhi", operation, into | source << 4, offset, number)
            for operation, into, source, offset, number in code
        )

    def _put(self, operation: int, into: int, source: int, offset: int = 0, number: int = 0) -> None:
        self.code.append((operation, into, source, offset, number))
