"""Instructions as RFC 9669 writes them, and labels."""

from __future__ import annotations

import pytest

from kproxy.ebpf.assembly import FRAME, Assembly


def code(*octets: str) -> bytes:
    return b"".join(map(bytes.fromhex, octets))


def test_instructions_are_the_octets_of_the_standard() -> None:
    asm = Assembly()
    asm.set(0, -1)
    asm.copy(6, 1)
    asm.load(2, 6, 16, 4)
    asm.load(3, 7, -2, 1)
    asm.store(FRAME, -8, 2, 8)
    asm.store_number(FRAME, -16, 7, 2)
    asm.add_atomically(0, 0, 1)
    asm.add(1, 5)
    asm.modulo_register(1, 2)
    asm.mask(1, 255)
    asm.combine(1, 2)
    asm.shift_left(1, 8)
    asm.to_network(1, 2)
    asm.map(1, 258)
    asm.call(26)
    asm.exit()
    assert asm.assemble() == code(
        "b7000000ffffffff", "bf16000000000000", "6162100000000000", "7173feff00000000", "7b2af8ff00000000",
        "6a0af0ff07000000", "db10000000000000", "0701000005000000",
        "9f21000000000000", "57010000ff000000", "4f21000000000000", "6701000008000000", "dc01000010000000", "1811000002010000",
        "0000000000000000", "850000001a000000", "9500000000000000",
    )  # fmt: skip


def test_jumps_find_their_labels_before_and_behind_them() -> None:
    asm = Assembly()
    asm.label("again")
    asm.jump_if(1, "==", 3, "end")
    asm.jump_if_register(1, ">=", 2, "again")
    asm.jump("again")
    asm.label("end")
    asm.exit()
    assert asm.assemble() == code("1501020003000000", "3d21feff00000000", "0500fdff00000000", "9500000000000000")


def test_a_label_that_is_missing_or_stands_twice_is_said() -> None:
    asm = Assembly()
    asm.jump("nowhere")
    with pytest.raises(ValueError, match="no label nowhere"):
        asm.assemble()
    asm.label("here")
    with pytest.raises(ValueError, match="here stands twice"):
        asm.label("here")
