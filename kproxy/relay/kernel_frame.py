"""What the program that relays open flows (kernel_program.py) does with every packet: its frame, counting, and sending a packet on.

In: an Assembly that grows. Registers: 6 the packet, 7 the flow's value, 8 its pair; 9 is free for a number that stays over calls. Out:
instructions. What must not happen here: knowing TCP. Pure.

A header is read into the frame, changed there and written back in one piece (ebpf/packets.py says why).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from kproxy.ebpf import packets
from kproxy.ebpf.assembly import FRAME, Assembly
from kproxy.relay import kernel_maps as layout

# Helpers' numbers (linux/bpf.h).
LOOK_UP, PUT, DELETE, CLOCK, L3_SUM, L4_SUM, CLONE_REDIRECT, REDIRECT = 1, 2, 3, 5, 10, 11, 13, 23
SUM, CHANGE_TAIL, ROUTE = 28, 38, 69
LOOK_UP_SOCKET, RELEASE_SOCKET, TCP_SOCKET, REDIRECT_NEIGHBOUR = 84, 86, 96, 152
SKB_LINK = 40
KEEP_ZERO, PSEUDO = 0x20, 0x10  # of L4_SUM: a checksum that is none stays none; addresses are in the pseudo header
NO_NEIGHBOUR = 7  # of ROUTE: there is a way, and nobody knows its next hop's address yet
PASS = -1  # TCX_NEXT
WAY_NS = 100_000_000  # so long a way that was found counts
_PARTS_OF_WAY = (
    (layout.WAY_LINK_AT, 8),
    *((layout.WAY_ADDRESSES_AT + at, 52 + at) for at in (0, 4, 8)),
)  # and in `route`'s structure
ONE_LESS = 0xFFFE if sys.byteorder == "little" else 0xFEFF  # what a time to live that falls by one changes in a sum

# The frame: offsets from register 10. Headers begin two octets behind a multiple of eight, so that what is behind Ethernet's is aligned.
HEADER = 96
HEADER_AT = -HEADER + 2
KEY_AT = -HEADER - layout.KEY
FIB_AT = KEY_AT - 64
NOW_AT = FIB_AT - 8
FOUND_AT = NOW_AT - 8  # what ROUTE has said
OLD_AT = FOUND_AT - 16
NEW_AT = OLD_AT - 16
SAVED_AT = NEW_AT - HEADER + 2
TUPLE_AT = NEW_AT - HEADER - 40
WORD_AT = TUPLE_AT - 8
LIMIT_AT = WORD_AT - 8  # up to which octet an acknowledgement is for the relay's own socket
PAYLOAD_AT = LIMIT_AT - 8
COPY_AT = PAYLOAD_AT - 8


@dataclass(frozen=True, slots=True)
class Family:
    """Where things are in an Ethernet frame. ethernet: the protocol's number as it stands there, read by this machine."""

    name: str
    number: int  # AF_INET, AF_INET6
    ethernet: int
    length: int  # of the packet
    lifetime: int
    protocol: int
    source: int
    address: int
    transport: int


FOUR = Family("four", 2, int.from_bytes(b"\x08\x00", sys.byteorder), 16, 22, 23, 26, 4, 34)
SIX = Family("six", 10, int.from_bytes(b"\x86\xdd", sys.byteorder), 18, 21, 20, 22, 16, 54)


def load_header(asm: Assembly, octets: int, otherwise: str, into: int = HEADER_AT) -> None:
    """The first octets of the packet, in the frame."""
    packets.read(asm, 0, into, octets, otherwise)


def look_up(asm: Assembly, descriptor: int, key_at: int, otherwise: str = "pass") -> None:
    """Register 0: a map's value for a key in the frame. Goes on at `otherwise` where there is none."""
    asm.map(1, descriptor)
    asm.copy(2, FRAME)
    asm.add(2, key_at)
    asm.call(LOOK_UP)
    asm.jump_if(0, "==", 0, otherwise)


def delete(asm: Assembly, descriptor: int, key_at: int) -> None:
    """Takes the entry of a key in the frame out of a map; register 0: 0 if it was there."""
    asm.map(1, descriptor)
    asm.copy(2, FRAME)
    asm.add(2, key_at)
    asm.call(DELETE)


def by_direction(asm: Assembly, into: int, step: int) -> None:
    """A register: the pair, moved by `step` octets (a power of two) for packets from the endpoint."""
    asm.load(into, 7, layout.DIRECTION_AT, 4)
    asm.mask(into, 1)
    asm.shift_left(into, step.bit_length() - 1)
    asm.add_register(into, 8)


def count(asm: Assembly, octets: int) -> None:
    """One packet more in the pair, and a register's octets. Changes 1 and 2."""
    by_direction(asm, 1, 8)
    asm.load(2, FRAME, NOW_AT, 8)
    asm.store(1, layout.SEEN_AT, 2, 8)
    asm.set(2, 1)
    asm.add_atomically(1, layout.PACKETS_AT, 2)
    asm.add_atomically(1, layout.OCTETS_AT, octets)


def compare(asm: Assembly, left: int, condition: str, right: int, label: str, scratch: int) -> None:
    """Goes on at a label by the order of two registers' TCP numbers, which begin again behind 2^32. scratch: a register that is free."""
    asm.copy(scratch, left)
    asm.subtract_register(scratch, right)
    asm.shift_left(scratch, 32)
    asm.jump_if(scratch, f"signed {condition}", 0, label)


def route(asm: Assembly, family: Family) -> None:
    """Asks the routing table where a packet with the flow's new ends goes: register 0 and FOUND_AT, 0 for a neighbour that is known."""
    for at in range(0, 64, 8):
        asm.store_number(FRAME, FIB_AT + at, 0, 8)
    asm.store_number(FRAME, FIB_AT, family.number, 1)
    asm.load(2, 6, SKB_LINK, 4)
    asm.store(FRAME, FIB_AT + 8, 2, 4)
    for at, part in ((16, layout.SOURCE_AT), (32, layout.DESTINATION_AT)):
        for offset in range(0, family.address, 4):
            asm.load(2, 7, part + offset, 4)
            asm.store(FRAME, FIB_AT + at + offset, 2, 4)
    asm.copy(1, 6)
    asm.copy(2, FRAME)
    asm.add(2, FIB_AT)
    asm.set(3, 64)
    asm.set(4, 0)
    asm.call(ROUTE)
    asm.store(FRAME, FOUND_AT, 0, 8)


def way(asm: Assembly, family: Family, name: str, otherwise: str) -> None:
    """As `route`, for the packets of a TCP connection: what was found a moment ago still counts. Goes on at `otherwise` for none."""
    _last_way(asm)
    asm.load(2, 1, layout.WAY_AT, 8)
    asm.load(3, FRAME, NOW_AT, 8)
    asm.subtract_register(3, 2)
    asm.jump_if(3, ">", WAY_NS, f"{name}: looks")
    for at, part in _PARTS_OF_WAY:
        asm.load(2, 1, layout.WAY_AT + at, 4)
        asm.store(FRAME, FIB_AT + part, 2, 4)
    asm.store_number(FRAME, FOUND_AT, 0, 8)
    asm.jump(f"{name}: goes")
    asm.label(f"{name}: looks")
    route(asm, family)
    asm.jump_if(0, "==", NO_NEIGHBOUR, f"{name}: goes")
    asm.jump_if(0, "!=", 0, otherwise)
    _last_way(asm)
    for at, part in _PARTS_OF_WAY:
        asm.load(2, FRAME, FIB_AT + part, 4)
        asm.store(1, layout.WAY_AT + at, 2, 4)
    asm.load(2, FRAME, NOW_AT, 8)
    asm.store(1, layout.WAY_AT, 2, 8)
    asm.label(f"{name}: goes")


def _last_way(asm: Assembly) -> None:
    """Register 1: the pair, moved by WAY octets for packets from the endpoint. Changes 2."""
    asm.load(1, 7, layout.DIRECTION_AT, 4)
    asm.mask(1, 1)
    asm.shift_left(1, 3)
    asm.copy(2, 1)
    asm.shift_left(2, 1)
    asm.add_register(1, 2)
    asm.add_register(1, 8)


def turn(asm: Assembly, family: Family) -> None:
    """The header in the frame gets the flow's new ends, a shorter life and, where `route` found them, the link's addresses."""
    for offset in range(0, 2 * family.address, 4):
        part = offset if offset < family.address else offset - family.address + 16
        asm.load(2, 7, layout.SOURCE_AT + part, 4)
        asm.store(FRAME, HEADER_AT + family.source + offset, 2, 4)
    for at in (0, 2):
        asm.load(2, 7, layout.PORTS_AT + at, 2)
        asm.store(FRAME, HEADER_AT + family.transport + at, 2, 2)
    asm.load(2, FRAME, HEADER_AT + family.lifetime, 1)
    asm.add(2, -1)
    asm.store(FRAME, HEADER_AT + family.lifetime, 2, 1)
    for at, part in (
        (0, 58),
        (6, 52),
    ):  # whom it is for, who sends it; zeros, which a neighbour's own code replaces, if not known
        for offset in (0, 2, 4):
            asm.load(2, FRAME, FIB_AT + part + offset, 2)
            asm.store(FRAME, HEADER_AT + at + offset, 2, 2)


def write(asm: Assembly, octets: int) -> None:
    """The header of the frame, into the packet."""
    packets.write(asm, 0, HEADER_AT, octets, "drop")


def check(asm: Assembly, family: Family, at: int, sums: Sequence[tuple[int, int, int]]) -> None:
    """Brings checksums up to date. at: the transport's, in the packet; sums: base and offset of each difference, and L4_SUM's flags."""
    if family is FOUR:
        asm.load(4, 7, layout.ADDRESS_SUM_AT, 4)
        asm.add(4, ONE_LESS)
        asm.copy(1, 6)
        asm.set(2, 24)
        asm.set(3, 0)
        asm.set(5, 0)
        asm.call(L3_SUM)
        asm.jump_if(0, "!=", 0, "drop")
    for base, offset, flags in sums:
        asm.copy(1, 6)
        asm.set(2, at)
        asm.set(3, 0)
        asm.load(4, base, offset, 4)
        asm.set(5, flags)
        asm.call(L4_SUM)
        asm.jump_if(0, "!=", 0, "drop")


def send(asm: Assembly, label: str) -> None:
    """The packet leaves by the link that was found. label: nobody else's."""
    asm.load(2, FRAME, FOUND_AT, 8)
    asm.jump_if(2, "==", NO_NEIGHBOUR, f"{label}: neighbour")
    asm.jump_if(2, "!=", 0, "pass")  # the node's network knows what to say of it
    asm.load(1, FRAME, FIB_AT + 8, 4)
    asm.set(2, 0)
    asm.call(REDIRECT)
    asm.exit()
    asm.label(f"{label}: neighbour")
    asm.load(1, FRAME, FIB_AT + 8, 4)
    for register in (2, 3, 4):
        asm.set(register, 0)
    asm.call(REDIRECT_NEIGHBOUR)
    asm.exit()


def check_anew(asm: Assembly, family: Family, header_at: int, octets: int) -> None:
    """The sums of a header in the frame, TCP's without data, are those of what it says. They are 0 before; octets: of TCP."""
    at = header_at + family.transport
    if family is FOUR:
        summed(asm, header_at + 14, 20, 0)
        asm.store(FRAME, header_at + 24, 0, 2)
    pseudo = int.from_bytes((octets + layout.TCP).to_bytes(2, "big"), sys.byteorder)
    summed(asm, header_at + family.source, 2 * family.address, pseudo, fold=False)
    summed(asm, at, octets, None)
    asm.store(FRAME, at + 16, 0, 2)


def summed(asm: Assembly, start: int, octets: int, seed: int | None, *, fold: bool = True) -> None:
    """Register 0: the Internet checksum of octets in the frame. seed: what it begins with, None: register 0. fold: to 16 bits, turned."""
    if seed is None:
        asm.copy(5, 0)
    else:
        asm.set(5, seed)
    asm.set(1, 0)
    asm.set(2, 0)
    asm.copy(3, FRAME)
    asm.add(3, start)
    asm.set(4, octets)
    asm.call(SUM)
    if not fold:
        return
    for _ in range(2):
        asm.copy(2, 0)
        asm.mask(2, 0xFFFF)
        asm.shift_right(0, 16)
        asm.mask(0, 0xFFFF)
        asm.add_register(0, 2)
    asm.flip(0, 0xFFFF)
