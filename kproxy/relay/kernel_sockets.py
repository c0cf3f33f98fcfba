"""What the program looks up of the relay's own sockets, and notes for workers: the part of kernel_tcp.py that changes no packet.

In: a packet that has a flow, its header in the frame. Out: a socket of the relay, or notes in the flow's pair. What must not happen here: a
socket that is kept; the verifier would not have it. Pure.
"""

from __future__ import annotations

import sys

from kproxy.ebpf.assembly import FRAME, Assembly
from kproxy.relay import kernel_frame as frame
from kproxy.relay import kernel_maps as layout
from kproxy.relay.kernel_frame import HEADER_AT, KEY_AT, NOW_AT, OLD_AT, TUPLE_AT, Family

FIN, SYN, RST, ACK = 1, 2, 4, 16
PLAIN, STAMPED = 20, 32  # octets of a header
STAMP = int.from_bytes(b"\x01\x01\x08\x0a", sys.byteorder)
SENT_AT, ACKNOWLEDGED_AT = 20, 24  # of bpf_tcp_sock
_RECEIVED_AT, _OCTETS_RECEIVED_AT, _OCTETS_ACKNOWLEDGED_AT = 16, 80, 88
_MILLION = 1_000_000


def find_socket(asm: Assembly, family: Family, otherwise: str) -> None:
    """Register 9: the relay's socket that the packet is for, to be released; 0: what is known of it. Else at `otherwise`."""
    for part, start in ((0, KEY_AT), (family.address, KEY_AT + 16)):
        for offset in range(0, family.address, 4):
            asm.load(2, FRAME, start + offset, 4)
            asm.store(FRAME, TUPLE_AT + part + offset, 2, 4)
    asm.load(2, FRAME, KEY_AT + 32, 4)
    asm.store(FRAME, TUPLE_AT + 2 * family.address, 2, 4)
    asm.copy(1, 6)
    asm.copy(2, FRAME)
    asm.add(2, TUPLE_AT)
    asm.set(3, 2 * family.address + 4)
    asm.set(4, -1)  # this network namespace
    asm.set(5, 0)
    asm.call(frame.LOOK_UP_SOCKET)
    asm.jump_if(0, "==", 0, otherwise)
    asm.copy(9, 0)
    asm.copy(1, 0)
    asm.call(frame.TCP_SOCKET)


def release(asm: Assembly) -> None:
    asm.copy(1, 9)
    asm.call(frame.RELEASE_SOCKET)


def observe(asm: Assembly, family: Family) -> None:
    """Notes what a worker wants to know, and leaves at `pass`."""
    name, at = family.name, HEADER_AT + family.transport
    asm.load(2, FRAME, at + 13, 1)
    asm.jump_if(2, "&", SYN | FIN | RST, "pass")
    frame.load_header(asm, family.transport + STAMPED, "pass")
    asm.load(2, FRAME, at + 20, 4)
    asm.jump_if(2, "!=", STAMP, "pass")
    frame.route(asm, family)
    asm.jump_if(0, "==", 0, f"{name}: reachable")
    asm.jump_if(0, "!=", frame.NO_NEIGHBOUR, "pass")
    asm.label(f"{name}: reachable")
    find_socket(asm, family, "pass")
    asm.jump_if(0, "==", 0, f"{name}: unknown")
    for into, reached, octets in (
        (OLD_AT, _RECEIVED_AT, _OCTETS_RECEIVED_AT),
        (OLD_AT + 4, ACKNOWLEDGED_AT, _OCTETS_ACKNOWLEDGED_AT),
    ):
        asm.load(2, 0, reached, 4)
        asm.load(3, 0, octets, 8)
        asm.subtract_register(2, 3)
        asm.store(FRAME, into, 2, 4)
    release(asm)
    asm.load(2, FRAME, at + 24, 4)
    asm.to_network(2, 4)
    asm.load(3, FRAME, NOW_AT, 8)
    asm.divide(3, _MILLION)
    asm.subtract_register(2, 3)  # register 2: how far the peer's clock is ahead, as late as the packet has come
    frame.by_direction(asm, 1, layout.NOTE)
    asm.load(4, FRAME, OLD_AT, 4)
    asm.load(5, FRAME, OLD_AT + 4, 4)
    asm.load(3, 1, layout.NOTES_AT + layout.TIMES_AT, 4)
    asm.jump_if(3, "==", 0, f"{name}: first")
    asm.load(0, 1, layout.NOTES_AT + layout.READ_FROM_AT, 4)
    asm.jump_if_register(0, "!=", 4, f"{name}: first")
    asm.load(0, 1, layout.NOTES_AT + layout.WRITTEN_FROM_AT, 4)
    asm.jump_if_register(0, "!=", 5, f"{name}: first")
    asm.add(3, 1)
    asm.store(1, layout.NOTES_AT + layout.TIMES_AT, 3, 4)
    asm.load(0, 1, layout.NOTES_AT + layout.CLOCK_AT, 4)
    frame.compare(asm, 2, "<=", 0, "pass", 3)
    asm.store(1, layout.NOTES_AT + layout.CLOCK_AT, 2, 4)
    asm.jump("pass")
    asm.label(f"{name}: first")
    asm.store(1, layout.NOTES_AT + layout.READ_FROM_AT, 4, 4)
    asm.store(1, layout.NOTES_AT + layout.WRITTEN_FROM_AT, 5, 4)
    asm.store(1, layout.NOTES_AT + layout.CLOCK_AT, 2, 4)
    asm.store_number(1, layout.NOTES_AT + layout.TIMES_AT, 1, 4)
    asm.jump("pass")
    asm.label(f"{name}: unknown")
    release(asm)
    asm.jump("pass")
