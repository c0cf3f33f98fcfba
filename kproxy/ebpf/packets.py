"""Octets between a packet and the frame of the program that looks at it: the two helpers that every such program calls. Pure.

In: an Assembly that grows, register 6 being the packet. Out: instructions that change registers 0 to 5. What must not happen here: writing
into a packet directly. Such a program costs every packet that passes it a copy of its header, whether it is touched or not: the verifier
puts that in front of it.
"""

from __future__ import annotations

from kproxy.ebpf.assembly import FRAME, Assembly

STORE_BYTES, LOAD_BYTES = 9, 26  # helpers' numbers in linux/bpf.h


def read(asm: Assembly, offset: int, into: int, octets: int, otherwise: str) -> None:
    """Octets of the packet from an offset on, into the frame; goes on at `otherwise` where it has not so many."""
    _between(asm, offset, into, octets)
    asm.call(LOAD_BYTES)
    asm.jump_if(0, "!=", 0, otherwise)


def write(asm: Assembly, offset: int, source: int, octets: int, otherwise: str) -> None:
    """Octets of the frame, into the packet; checksums stay as they are."""
    _between(asm, offset, source, octets)
    asm.set(5, 0)
    asm.call(STORE_BYTES)
    asm.jump_if(0, "!=", 0, otherwise)


def _between(asm: Assembly, offset: int, frame: int, octets: int) -> None:
    asm.copy(1, 6)
    asm.set(2, offset)
    asm.copy(3, FRAME)
    asm.add(3, frame)
    asm.set(4, octets)
