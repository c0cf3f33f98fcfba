"""The part of the program (kernel_program.py) that relays the segments of an open TCP connection.

In: a packet that has a flow (kernel_maps.py). What it does goes by the state of the flow's pair:

OBSERVE   The packet goes on to its socket. Noted is what a worker cannot ask for: at which number the connection's octets begin, in either
          direction (`bpf_tcp_sock` has where they have got to, and how many there were), the peer's clock, and that a packet would find
          its way. Notes that are the same several times over are true: the socket is read while it may change.

FORWARD   The packet goes out with the numbers of the other connection. Once more for all of them: the n-th octet of a client is the n-th
          octet that the relay sends to the endpoint, whichever way the others take. So the first segments may overtake octets that a
          worker still holds, and a worker may still write to its socket.

          One thing is owed to the relay's two sockets: what they have sent and nobody has acknowledged they will send again, and give up
          after some minutes. Until such a socket has heard all it waits for, acknowledgements for it are left to it, and from a segment
          that brings octets as well it gets a copy without them.

A SYN ends the flow: somebody begins a new connection with the same ends. A reset is passed on, and ends it as well.

OPENING   The program itself has sent the client's SYN to an endpoint (kernel_opening.py), and nobody has answered yet.

Asked of segments is what Linux sends: NOP, NOP, timestamp in the first place of the options, and if there is more of interest, NOP, NOP,
selective acknowledgements. Else what is there goes unchanged; a wrong one is not believed (RFC 2018, 8: advisory; tcp_is_sackblock_valid).

What must not happen here: a decision about whose packet it is. Pure.
"""

from __future__ import annotations

import sys

from kproxy.ebpf import packets
from kproxy.ebpf.assembly import FRAME, Assembly
from kproxy.relay import kernel_frame as frame
from kproxy.relay import kernel_maps as layout
from kproxy.relay.kernel_ending import finish, notice_end
from kproxy.relay.kernel_frame import (
    COPY_AT,
    FOUND_AT,
    FOUR,
    HEADER_AT,
    LIMIT_AT,
    NEW_AT,
    OLD_AT,
    PAYLOAD_AT,
    SAVED_AT,
    Family,
)
from kproxy.relay.kernel_maps import FlowMaps
from kproxy.relay.kernel_opening import accept
from kproxy.relay.kernel_sockets import (
    ACK,
    ACKNOWLEDGED_AT,
    FIN,
    PLAIN,
    RST,
    SENT_AT,
    STAMP,
    STAMPED,
    SYN,
    find_socket,
    observe,
    release,
)  # fmt: skip

_SELECTED = {blocks: int.from_bytes(bytes((1, 1, 5, 2 + 8 * blocks)), sys.byteorder) for blocks in (1, 2, 3)}


def segment(asm: Assembly, maps: FlowMaps, family: Family) -> None:
    """All of it, for one family."""
    name, at = family.name, HEADER_AT + family.transport
    frame.load_header(asm, family.transport + PLAIN, "pass")
    asm.load(2, 8, layout.STATE_AT, 4)
    asm.jump_if(2, "==", layout.OBSERVE, f"{name}: observe")
    asm.jump_if(2, "==", layout.OPENING, f"{name}: opening")
    asm.jump_if(2, "!=", layout.FORWARD, "pass")
    asm.load(2, FRAME, at + 13, 1)
    asm.jump_if(2, "&", SYN, f"{name}: anew")
    asm.label(f"{name}: going")
    asm.load(9, 6, 0, 4)
    asm.load(3, FRAME, at + 12, 1)
    asm.shift_right(3, 4)
    asm.shift_left(3, 2)
    asm.subtract_register(9, 3)
    asm.add(9, -family.transport)
    asm.jump_if(9, "signed <", 0, "pass")
    asm.store(FRAME, PAYLOAD_AT, 9, 8)
    asm.store_number(FRAME, COPY_AT, 0, 8)
    asm.jump_if(3, "<", STAMPED, f"{name}: plain")
    frame.load_header(asm, family.transport + STAMPED, "pass")
    asm.load(2, FRAME, at + 20, 4)
    asm.jump_if(2, "!=", STAMP, f"{name}: plain")
    _settle(asm, family)
    asm.label(f"{name}: stamped")
    _forward(asm, family, STAMPED)
    asm.label(f"{name}: plain")
    _forward(asm, family, PLAIN)
    asm.label(f"{name}: anew")
    asm.load(3, 8, layout.RING_AT, 4)
    asm.jump_if(3, "!=", 0, f"{name}: syn again")
    asm.store_number(8, layout.STATE_AT, layout.OVER, 4)
    asm.jump("pass")
    accept(asm, maps, family)
    asm.label(f"{name}: finish")
    finish(asm, maps, f"{name}: last")
    frame.send(asm, f"{name}: last")
    asm.label(f"{name}: observe")
    observe(asm, family)


def _settle(asm: Assembly, family: Family) -> None:
    """Whether the relay's socket waits for what this segment says: then it goes there, or (COPY_AT) what of it is for the socket does."""
    name, at = family.name, HEADER_AT + family.transport
    asm.load(3, FRAME, at + 12, 1)
    asm.shift_right(3, 4)
    asm.jump_if(3, "!=", STAMPED // 4, f"{name}: stamped")  # the next one will do
    frame.by_direction(asm, 1, 1)
    asm.load(2, 1, layout.SETTLED_AT, 1)
    asm.jump_if(2, "==", layout.SETTLED, f"{name}: stamped")
    find_socket(asm, family, f"{name}: settled")
    asm.jump_if(0, "==", 0, f"{name}: gone")
    asm.load(2, 0, SENT_AT, 4)
    asm.store(FRAME, LIMIT_AT, 2, 4)
    asm.load(2, 0, ACKNOWLEDGED_AT, 4)
    asm.store(FRAME, OLD_AT, 2, 4)
    release(asm)
    frame.by_direction(asm, 1, 1)
    asm.load(2, 1, layout.SETTLED_AT, 1)
    asm.jump_if(2, "!=", layout.ASK, f"{name}: waiting")
    asm.load(2, FRAME, LIMIT_AT, 4)
    asm.load(3, FRAME, OLD_AT, 4)
    asm.jump_if_register(2, "==", 3, f"{name}: settled")
    asm.label(f"{name}: waiting")
    asm.store_number(FRAME, COPY_AT, 1, 8)
    asm.load(2, FRAME, at + 8, 4)
    asm.to_network(2, 4)
    asm.load(3, FRAME, LIMIT_AT, 4)
    frame.compare(asm, 2, ">", 3, f"{name}: stamped", 4)
    asm.store(FRAME, LIMIT_AT, 2, 4)  # what the copy acknowledges
    asm.load(2, FRAME, PAYLOAD_AT, 8)
    asm.jump_if(2, "!=", 0, f"{name}: stamped")
    asm.load(2, FRAME, at + 13, 1)
    asm.jump_if(2, "&", FIN | RST, f"{name}: stamped")
    asm.jump("pass")
    asm.label(f"{name}: gone")
    release(asm)
    asm.label(f"{name}: settled")
    frame.by_direction(asm, 1, 1)
    asm.store_number(1, layout.SETTLED_AT, layout.SETTLED, 1)


def _forward(asm: Assembly, family: Family, header: int) -> None:
    """Out, with the numbers of the other connection."""
    name, at = f"{family.name}: {header}", HEADER_AT + family.transport
    asm.load(9, FRAME, PAYLOAD_AT, 8)
    frame.count(asm, 9)
    asm.load(2, FRAME, at + 13, 1)
    asm.jump_if(2, "&", FIN, f"{name}: fin")
    asm.jump_if(2, "&", RST, f"{name}: reset")
    asm.jump(f"{name}: on")
    asm.label(f"{name}: fin")
    frame.by_direction(asm, 1, 1)
    asm.store_number(1, layout.ENDED_AT, 1, 1)
    asm.jump(f"{name}: on")
    asm.label(f"{name}: reset")
    asm.load(3, 8, layout.RING_AT, 4)
    asm.jump_if(3, "!=", 0, f"{name}: on")
    asm.store_number(8, layout.STATE_AT, layout.OVER, 4)
    asm.label(f"{name}: on")
    frame.way(asm, family, name, f"{name}: goes")
    if header == STAMPED:
        asm.load(2, FRAME, FOUND_AT, 8)
        asm.jump_if(2, "==", 0, f"{name}: known")
        asm.store_number(FRAME, COPY_AT, 0, 8)  # a copy cannot wait for a neighbour; the next one will do
        asm.label(f"{name}: known")
        frame.load_header(asm, family.transport + STAMPED, "pass", SAVED_AT)
    numbers = [(4, layout.SEQUENCE_AT), (8, layout.ACKNOWLEDGEMENT_AT)]
    if header == STAMPED:
        numbers += [(24, layout.CLOCK_SHIFT_AT), (28, layout.ECHO_SHIFT_AT)]
    for index, (offset, shift) in enumerate(numbers):
        asm.load(2, FRAME, at + offset, 4)
        asm.store(FRAME, OLD_AT + 4 * index, 2, 4)
        asm.to_network(2, 4)
        asm.load(3, 7, shift, 4)
        asm.add_register(2, 3)
        asm.to_network(2, 4)
        asm.store(FRAME, NEW_AT + 4 * index, 2, 4)
        asm.store(FRAME, at + offset, 2, 4)
    _reached(asm, name, at)
    frame.turn(asm, family)
    for register, where in ((1, OLD_AT), (3, NEW_AT)):
        asm.copy(register, FRAME)
        asm.add(register, where)
    asm.set(2, 4 * len(numbers))
    asm.set(4, 4 * len(numbers))
    asm.load(5, 7, layout.PORT_SUM_AT, 4)
    asm.call(frame.SUM)
    asm.store(FRAME, OLD_AT, 0, 8)
    frame.write(asm, family.transport + header)
    frame.check(asm, family, family.transport + 16, [(FRAME, OLD_AT, 0), (7, layout.ADDRESS_SUM_AT, frame.PSEUDO)])
    if header == STAMPED:
        _select(asm, family)
        asm.load(2, FRAME, COPY_AT, 8)
        asm.jump_if(2, "!=", 0, f"{name}: copy")
    notice_end(asm, family, name)
    frame.send(asm, name)
    if header == STAMPED:
        asm.label(f"{name}: copy")
        _copy(asm, family)


def _reached(asm: Assembly, name: str, at: int) -> None:
    """Notes how far the receiver has got when it has this. Register 9: octets of the segment."""
    asm.load(2, FRAME, NEW_AT, 4)
    asm.to_network(2, 4)
    asm.add_register(2, 9)
    asm.load(3, FRAME, at + 13, 1)
    asm.mask(3, FIN)
    asm.add_register(2, 3)
    frame.by_direction(asm, 1, 4)
    asm.load(3, 1, layout.REACHED_AT, 4)
    frame.compare(asm, 2, "<=", 3, f"{name}: reached", 4)
    asm.store(1, layout.REACHED_AT, 2, 4)
    asm.label(f"{name}: reached")


def _select(asm: Assembly, family: Family) -> None:
    """The edges of selective acknowledgements, up to three pairs behind the timestamp."""
    name, at = f"{family.name}: select", family.transport
    asm.load(2, FRAME, HEADER_AT + at + 12, 1)
    asm.jump_if(2, "<", 11 << 4, f"{name} none")
    packets.read(asm, at + STAMPED, NEW_AT, 4, "drop")
    asm.load(9, FRAME, NEW_AT, 4)
    for blocks, word in _SELECTED.items():
        asm.set(3, word)
        asm.jump_if_register(9, "==", 3, f"{name} {blocks}")
    asm.jump(f"{name} none")
    for blocks in (3, 2, 1):
        asm.label(f"{name} {blocks}")
        asm.load(2, FRAME, HEADER_AT + at + 12, 1)
        asm.jump_if(2, "<", (9 + 2 * blocks) << 4, f"{name} none")
        for edge in (0, 1):
            _edge(asm, at + STAMPED + 4 + 8 * (blocks - 1) + 4 * edge, at + 16)
    asm.label(f"{name} none")


def _edge(asm: Assembly, offset: int, sum_at: int) -> None:
    """One number of the packet, moved as acknowledgements are."""
    packets.read(asm, offset, NEW_AT, 4, "drop")
    asm.load(9, FRAME, NEW_AT, 4)
    asm.copy(2, 9)
    asm.to_network(2, 4)
    asm.load(3, 7, layout.ACKNOWLEDGEMENT_AT, 4)
    asm.add_register(2, 3)
    asm.to_network(2, 4)
    asm.store(FRAME, NEW_AT, 2, 4)
    packets.write(asm, offset, NEW_AT, 4, "drop")
    asm.copy(1, 6)
    asm.set(2, sum_at)
    asm.copy(3, 9)
    asm.load(4, FRAME, NEW_AT, 4)
    asm.set(5, 4)
    asm.call(frame.L4_SUM)
    asm.jump_if(0, "!=", 0, "drop")


def _copy(asm: Assembly, family: Family) -> None:
    """Sends the packet on, and makes of what is left a bare acknowledgement for the relay's socket. Leaves at `pass`."""
    at, length = SAVED_AT + family.transport, family.transport + STAMPED
    asm.copy(1, 6)
    asm.load(2, FRAME, frame.FIB_AT + 8, 4)
    asm.set(3, 0)
    asm.call(frame.CLONE_REDIRECT)
    asm.copy(1, 6)
    asm.set(2, length)
    asm.set(3, 0)
    asm.call(frame.CHANGE_TAIL)
    asm.jump_if(0, "!=", 0, "drop")
    asm.load(2, FRAME, LIMIT_AT, 4)
    asm.to_network(2, 4)
    asm.store(FRAME, at + 8, 2, 4)
    asm.store_number(FRAME, at + 13, ACK, 1)
    asm.store_number(FRAME, at + 16, 0, 2)
    octets = length - 14 if family is FOUR else STAMPED
    asm.store_number(FRAME, SAVED_AT + family.length, int.from_bytes(octets.to_bytes(2, "big"), sys.byteorder), 2)
    if family is FOUR:
        asm.store_number(FRAME, SAVED_AT + 24, 0, 2)
    frame.check_anew(asm, family, SAVED_AT, STAMPED)
    packets.write(asm, 0, SAVED_AT, length, "drop")
    asm.jump("pass")
