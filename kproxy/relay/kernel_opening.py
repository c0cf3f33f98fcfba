"""The part of the program (kernel_program.py) that opens connections, where a worker has chosen in advance (kernel_rings.py).

In: a client's SYN that belongs to no flow. A ring for this client and destination names the endpoint; the SYN goes there, and both entries
of a flow are made as a worker would make them. From then on the connection is one like those that were handed over (kernel_tcp.py), but
for the two sockets: it has none. Its handshake is between client and endpoint, so all numbers are theirs. The client's timestamps alone are
moved to a clock of this machine, because its port at the node had other clients before: an endpoint in TIME_WAIT takes a new connection
whose timestamps are later (RFC 6191). They are milliseconds, so a port rests for a moment.

    SYN       goes to the next endpoint of the ring; else, and whenever anything is unusual, the whole way: rules, sockets, worker
    SYN+ACK   the endpoint has accepted
    RST       it refuses: the client's SYN is said again, as if it came just now (the ring passes over this endpoint from here on)
    SYN       once more from the client: nobody answered, and it goes the whole way

An endpoint that has not answered for `rings.PATIENCE_NS` is asked no more; a ring holds for as long as a worker says, about a second. Asked
of a SYN is what Linux sends: MSS, selective acknowledgements, timestamps, window scale.

What must not happen here: a choice. Pure.
"""

from __future__ import annotations

import sys

from kproxy.ebpf.assembly import FRAME, Assembly
from kproxy.relay import kernel_frame as frame
from kproxy.relay import kernel_maps as layout
from kproxy.relay import kernel_rings as rings
from kproxy.relay.kernel_ending import OTHER_KEY_AT, SAVED, SYN_HEADER, find_end, finish, say_again
from kproxy.relay.kernel_frame import FOUR, HEADER_AT, KEY_AT, NEW_AT, NOW_AT, OLD_AT, Family
from kproxy.relay.kernel_maps import FlowMaps
from kproxy.relay.kernel_sockets import ACK, RST, SYN

_REST_NS = 2_000_000  # of a port, since its client's last packet
_TRIES = 3  # places that are looked at
_MILLION = 1_000_000
_ONCE = 1  # BPF_NOEXIST
_MSS = int.from_bytes(b"\x02\x04", sys.byteorder)
_SELECTIVE_STAMP = int.from_bytes(b"\x04\x02\x08\x0a", sys.byteorder)
_CLOCK_AT, _ECHO_AT = 28, 32  # in such a header

# The frame: below what kernel_frame has up to NEW_AT. The value of the flow there, and key and value of that back.
_VALUE_AT = OTHER_KEY_AT + layout.KEY
_OTHER_VALUE_AT = OTHER_KEY_AT - 72
_RING_AT = _OTHER_VALUE_AT - 8
_SLOT_AT = _RING_AT - 8
_CHOICE_AT = _SLOT_AT - 8
_END_AT = _CHOICE_AT - 8
_PLACE_AT = _END_AT - 8


def open_connection(asm: Assembly, maps: FlowMaps, family: Family) -> None:
    """A packet without a flow; registers 7 and 8 are its beginning and end. Leaves at `pass` for all but the SYN of a ring."""
    name = family.name
    _is_syn(asm, family)
    _find_ring(asm, maps)
    _choose(asm, name)
    _place(asm, maps, name)
    _note(asm, name, family)
    _values(asm, family)
    frame.way(asm, family, f"{name}: syn", f"{name}: no way")
    _entries(asm, maps, name)
    _translate(asm, family, _CLOCK_AT, layout.CLOCK_SHIFT_AT)
    frame.send(asm, f"{name}: syn")
    asm.label(f"{name}: no way")
    asm.store_number(8, layout.STATE_AT, layout.VACANT, 4)
    asm.jump("pass")


def accept(asm: Assembly, maps: FlowMaps, family: Family) -> None:
    """Labels for the packets of such a connection that open it; registers 7 and 8: its value and pair."""
    name, at = family.name, HEADER_AT + family.transport
    asm.label(f"{name}: opening")
    asm.load(2, FRAME, at + 13, 1)
    asm.jump_if(2, "&", SYN, f"{name}: syn again")
    asm.load(3, 7, layout.DIRECTION_AT, 4)
    asm.jump_if(3, "==", layout.FROM_CLIENT, f"{name}: going")
    asm.jump_if(2, "&", RST, f"{name}: refused")
    asm.jump(f"{name}: going")

    asm.label(f"{name}: syn again")
    asm.load(3, 7, layout.DIRECTION_AT, 4)
    asm.jump_if(3, "==", layout.FROM_CLIENT, f"{name}: begun anew")
    asm.jump_if(2, "&", ACK, f"{name}: accepted")
    asm.label(f"{name}: begun anew")
    asm.load(2, 8, layout.STATE_AT, 4)
    asm.jump_if(2, "!=", layout.OPENING, f"{name}: was open")
    find_end(asm, maps, f"{name}: was open")
    asm.set(2, 1)
    asm.add_atomically(9, rings.FAILED_AT, 2)
    asm.label(f"{name}: was open")
    finish(asm, maps, f"{name}: begun anew")
    asm.jump("pass")

    asm.label(f"{name}: accepted")
    frame.load_header(asm, family.transport + SYN_HEADER, f"{name}: odd")
    _is_usual(asm, f"{name}: odd", at)
    frame.way(asm, family, f"{name}: accepted", "pass")
    _count_accepted(asm, maps, family)
    _translate(asm, family, _ECHO_AT, layout.ECHO_SHIFT_AT)
    frame.send(asm, f"{name}: accepted")

    asm.label(f"{name}: odd")
    find_end(asm, maps, f"{name}: odd end")
    asm.set(2, 1)
    asm.add_atomically(9, rings.ODD_AT, 2)
    asm.label(f"{name}: odd end")
    finish(asm, maps, f"{name}: odd")
    asm.jump("drop")  # the client says its SYN again, and that one goes the whole way

    asm.label(f"{name}: refused")
    find_end(asm, maps, f"{name}: refused end")
    asm.store_number(9, rings.ASKED_AT, 1, 8)  # long ago, without an answer
    asm.set(2, 1)
    asm.add_atomically(9, rings.FAILED_AT, 2)
    asm.label(f"{name}: refused end")
    finish(asm, maps, f"{name}: refused")
    say_again(asm, family)


def _is_syn(asm: Assembly, family: Family) -> None:
    """Only a SYN as Linux sends it comes through, with its header in the frame."""
    at, octets = HEADER_AT + family.transport, family.transport + SYN_HEADER
    asm.load(2, FRAME, KEY_AT + 36, 1)
    asm.jump_if(2, "!=", layout.TCP, "pass")
    asm.copy(2, 7)
    asm.add(2, octets)
    asm.jump_if_register(2, ">", 8, "pass")
    asm.load(2, 7, family.transport + 13, 1)
    asm.jump_if(2, "!=", SYN, "pass")
    asm.load(2, 7, family.length, 2)
    told = octets - 14 if family is FOUR else SYN_HEADER
    asm.jump_if(2, "!=", int.from_bytes(told.to_bytes(2, "big"), sys.byteorder), "pass")
    frame.load_header(asm, octets, "pass")
    _is_usual(asm, "pass", at)


def _is_usual(asm: Assembly, otherwise: str, at: int) -> None:
    """The options of a SYN, or of its answer, stand where they are expected."""
    asm.load(2, FRAME, at + 12, 1)
    asm.jump_if(2, "!=", SYN_HEADER << 2, otherwise)
    asm.load(2, FRAME, at + 20, 2)
    asm.jump_if(2, "!=", _MSS, otherwise)
    asm.load(2, FRAME, at + 24, 4)
    asm.jump_if(2, "!=", _SELECTIVE_STAMP, otherwise)


def _find_ring(asm: Assembly, maps: FlowMaps) -> None:
    """Register 7: the ring, which holds, and 9: its worker's lease, which holds too; the time is in the frame."""
    asm.load(9, FRAME, KEY_AT + 32, 2)
    asm.store_number(FRAME, KEY_AT + 32, 0, 2)
    asm.map(1, maps.repeats)
    asm.copy(2, FRAME)
    asm.add(2, KEY_AT)
    asm.call(frame.LOOK_UP)
    asm.store(FRAME, KEY_AT + 32, 9, 2)
    asm.jump_if(0, "==", 0, "pass")
    asm.load(2, 0, 0, 4)
    asm.store(FRAME, _RING_AT, 2, 4)
    frame.look_up(asm, maps.rings, _RING_AT)
    asm.copy(7, 0)
    asm.call(frame.CLOCK)
    asm.store(FRAME, NOW_AT, 0, 8)
    asm.load(2, 7, rings.UNTIL_AT, 8)
    asm.jump_if_register(2, "<", 0, "pass")
    asm.load(2, 7, rings.LINK_AT, 4)
    asm.load(3, 6, frame.SKB_LINK, 4)
    asm.jump_if_register(2, "!=", 3, "pass")
    asm.load(2, 7, rings.SLOT_AT, 4)
    asm.store(FRAME, _SLOT_AT, 2, 4)
    frame.look_up(asm, maps.leases, _SLOT_AT)
    asm.copy(9, 0)
    asm.load(2, 9, layout.UNTIL_AT, 8)
    asm.load(3, FRAME, NOW_AT, 8)
    asm.jump_if_register(2, "<", 3, "pass")


def _choose(asm: Assembly, name: str) -> None:
    """Register 7: the end whose turn it is, kept in the frame as well. One that owes an answer for long is not asked again."""
    asm.set(2, 1)
    asm.fetch_and_add(7, rings.TURN_AT, 2)
    asm.mask(2, rings.TURN - 1)
    asm.copy(3, 7)
    asm.add_register(3, 2)
    asm.load(2, 3, rings.CHOICES_AT, 1)
    asm.jump_if(2, ">=", rings.ENDS, "pass")
    asm.store(FRAME, _CHOICE_AT, 2, 8)
    asm.shift_left(2, rings.END.bit_length() - 1)
    asm.add_register(7, 2)
    asm.add(7, rings.ENDS_AT)
    asm.load(3, FRAME, NOW_AT, 8)
    asm.load(2, 7, rings.ASKED_AT, 8)
    asm.jump_if(2, "==", 0, f"{name}: asked")
    asm.subtract_register(3, 2)
    asm.jump_if(3, ">", rings.PATIENCE_NS, "pass")
    asm.label(f"{name}: asked")


def _place(asm: Assembly, maps: FlowMaps, name: str) -> None:
    """Register 8: the pair of a place that was vacant, and is this connection's now."""
    for number in range(_TRIES):
        asm.set(2, 1)
        asm.fetch_and_add(9, layout.NEXT_AT, 2)
        asm.load(3, 9, layout.OPENERS_AT, 4)
        asm.jump_if(3, "==", 0, "pass")
        asm.modulo_register(2, 3)
        asm.load(3, FRAME, _SLOT_AT, 4)
        asm.shift_left(3, layout.PER_SLOT.bit_length() - 1)
        asm.add_register(2, 3)
        asm.add(2, layout.HANDED)
        asm.store(FRAME, _PLACE_AT, 2, 4)
        frame.look_up(asm, maps.pairs, _PLACE_AT)
        asm.copy(8, 0)
        asm.load(2, 8, layout.SEEN_AT, 8)
        asm.add(2, _REST_NS)
        asm.load(3, FRAME, NOW_AT, 8)
        asm.jump_if_register(2, ">", 3, f"{name}: next place {number}")
        asm.set(0, layout.VACANT)
        asm.set(2, layout.OPENING)
        asm.replace_if_same(8, layout.STATE_AT, 2)
        asm.jump_if(0, "==", layout.VACANT, f"{name}: place")
        asm.label(f"{name}: next place {number}")
    asm.jump("pass")
    asm.label(f"{name}: place")


def _note(asm: Assembly, name: str, family: Family) -> None:
    """The pair says whose it is, and the end that it is asked."""
    at = HEADER_AT + family.transport
    word = int.from_bytes(bytes((layout.SETTLED, layout.SETTLED, 0, 0)), sys.byteorder)
    asm.store_number(8, layout.SETTLED_AT, word, 4)
    asm.load(2, FRAME, NOW_AT, 8)
    asm.store(8, layout.SEEN_AT, 2, 8)
    asm.store(8, layout.BEGAN_AT, 2, 8)
    for offset in range(layout.SEEN_AT + 8, layout.NOTES_AT, 8):
        asm.store_number(8, offset, 0, 8)
    for offset in (0, layout.WAY):
        asm.store_number(8, layout.WAY_AT + offset, 0, 8)
    asm.load(3, 7, rings.ASKED_AT, 8)
    asm.jump_if(3, "!=", 0, f"{name}: has been asked")
    asm.store(7, rings.ASKED_AT, 2, 8)
    asm.label(f"{name}: has been asked")
    asm.load(2, FRAME, _RING_AT, 4)
    asm.add(2, 1)
    asm.store(8, layout.RING_AT, 2, 4)
    asm.load(2, FRAME, _CHOICE_AT, 8)
    asm.store(8, layout.CHOICE_AT, 2, 4)
    asm.load(2, FRAME, KEY_AT + 32, 2)
    asm.store(8, layout.CLIENT_PORT_AT, 2, 2)
    asm.store_number(8, layout.HEARD_AT, 0, 2)
    asm.load(2, 6, frame.SKB_LINK, 4)
    asm.store(8, layout.LINK_AT, 2, 4)
    asm.load(2, 7, rings.END_LINK_AT, 4)
    asm.store(8, layout.LINK_AT + 4, 2, 4)
    asm.load(2, FRAME, at + 4, 4)
    asm.to_network(2, 4)
    asm.add(2, 1)
    asm.store(8, layout.REACHED_AT, 2, 4)
    for offset in (0, 4, 8):
        for half in (0, 2):
            asm.load(2, FRAME, HEADER_AT + offset + half, 2)
            asm.store(8, layout.SAVED_AT + offset + half, 2, 2)
    for offset, into in SAVED.items():
        asm.load(2, FRAME, at + offset, 4)
        asm.store(8, layout.SAVED_AT + into, 2, 4)


def _values(asm: Assembly, family: Family) -> None:
    """In the frame: what the flow's two entries are to say. Register 7: from here on the value there."""
    at = HEADER_AT + family.transport
    asm.load(2, FRAME, _PLACE_AT, 4)
    for value, direction in ((_VALUE_AT, layout.FROM_CLIENT), (_OTHER_VALUE_AT, layout.FROM_ENDPOINT)):
        asm.store(FRAME, value + layout.PLACE_AT, 2, 4)
        asm.store_number(FRAME, value + layout.DIRECTION_AT, direction, 4)
        for shift in (layout.SEQUENCE_AT, layout.ACKNOWLEDGEMENT_AT, layout.CLOCK_SHIFT_AT, layout.ECHO_SHIFT_AT):
            asm.store_number(FRAME, value + shift, 0, 4)
    for offset in range(0, 16, 8):
        asm.load(2, 7, rings.SOURCE_AT + offset, 8)
        asm.store(FRAME, _VALUE_AT + layout.SOURCE_AT + offset, 2, 8)
        asm.store(FRAME, OTHER_KEY_AT + 16 + offset, 2, 8)
        asm.load(2, 7, rings.DESTINATION_AT + offset, 8)
        asm.store(FRAME, _VALUE_AT + layout.DESTINATION_AT + offset, 2, 8)
        asm.store(FRAME, OTHER_KEY_AT + offset, 2, 8)
        asm.load(2, FRAME, KEY_AT + 16 + offset, 8)
        asm.store(FRAME, _OTHER_VALUE_AT + layout.SOURCE_AT + offset, 2, 8)
        asm.load(2, FRAME, KEY_AT + offset, 8)
        asm.store(FRAME, _OTHER_VALUE_AT + layout.DESTINATION_AT + offset, 2, 8)
    asm.load(2, 7, rings.THERE_SUM_AT, 4)
    asm.store(FRAME, _VALUE_AT + layout.ADDRESS_SUM_AT, 2, 4)
    asm.load(2, 7, rings.BACK_SUM_AT, 4)
    asm.store(FRAME, _OTHER_VALUE_AT + layout.ADDRESS_SUM_AT, 2, 4)
    asm.load(2, FRAME, KEY_AT + 36, 4)
    asm.store(FRAME, OTHER_KEY_AT + 36, 2, 4)
    _ports(asm)
    # The client's clock becomes milliseconds of this machine.
    asm.load(2, FRAME, NOW_AT, 8)
    asm.divide(2, _MILLION)
    asm.load(3, FRAME, at + _CLOCK_AT, 4)
    asm.to_network(3, 4)
    asm.subtract_register(2, 3)
    asm.store(FRAME, _VALUE_AT + layout.CLOCK_SHIFT_AT, 2, 4)
    asm.set(3, 0)
    asm.subtract_register(3, 2)
    asm.store(FRAME, _OTHER_VALUE_AT + layout.ECHO_SHIFT_AT, 3, 4)
    asm.copy(7, FRAME)
    asm.add(7, _VALUE_AT)


def _ports(asm: Assembly) -> None:
    """Ports, and what they change in sums: 1 the node's, 2 the endpoint's, 3 the client's, 4 what it asked for."""
    asm.load(1, 8, layout.OWN_PORT_AT, 2)
    asm.load(2, 7, rings.PORT_AT, 2)
    asm.load(3, FRAME, KEY_AT + 32, 2)
    asm.load(4, FRAME, KEY_AT + 34, 2)
    for value, source, destination in ((_VALUE_AT, 1, 2), (_OTHER_VALUE_AT, 4, 3)):
        asm.store(FRAME, value + layout.PORTS_AT, source, 2)
        asm.store(FRAME, value + layout.PORTS_AT + 2, destination, 2)
    asm.store(FRAME, OTHER_KEY_AT + 32, 2, 2)
    asm.store(FRAME, OTHER_KEY_AT + 34, 1, 2)
    asm.add_register(1, 2)
    asm.add_register(3, 4)
    for value, new, old in ((_VALUE_AT, 1, 3), (_OTHER_VALUE_AT, 3, 1)):
        asm.copy(5, new)
        asm.add(5, 2 * 0xFFFF)
        asm.subtract_register(5, old)
        asm.store(FRAME, value + layout.PORT_SUM_AT, 5, 4)


def _entries(asm: Assembly, maps: FlowMaps, name: str) -> None:
    """Both are in the map, or none is."""
    for key, value, otherwise in (
        (OTHER_KEY_AT, _OTHER_VALUE_AT, f"{name}: no way"),
        (KEY_AT, _VALUE_AT, f"{name}: one entry"),
    ):
        asm.map(1, maps.flows)
        for register, at in ((2, key), (3, value)):
            asm.copy(register, FRAME)
            asm.add(register, at)
        asm.set(4, _ONCE)
        asm.call(frame.PUT)
        asm.jump_if(0, "!=", 0, otherwise)
    asm.jump(f"{name}: entries")
    asm.label(f"{name}: one entry")
    frame.delete(asm, maps.flows, OTHER_KEY_AT)
    asm.jump(f"{name}: no way")
    asm.label(f"{name}: entries")


def _count_accepted(asm: Assembly, maps: FlowMaps, family: Family) -> None:
    """The first time: the end has answered, and one more is open."""
    name, at = family.name, HEADER_AT + family.transport
    asm.set(9, 0)
    frame.count(asm, 9)
    asm.set(0, layout.OPENING)
    asm.set(2, layout.FORWARD)
    asm.replace_if_same(8, layout.STATE_AT, 2)  # the client may have given up in this very moment: then it is not open
    asm.jump_if(0, "!=", layout.OPENING, f"{name}: counted")
    asm.load(2, FRAME, at + 4, 4)
    asm.to_network(2, 4)
    asm.add(2, 1)
    asm.store(8, layout.REACHED_AT + 4, 2, 4)
    find_end(asm, maps, f"{name}: counted")
    asm.store_number(9, rings.ASKED_AT, 0, 8)
    asm.set(2, 1)
    asm.add_atomically(9, rings.OPENED_AT, 2)
    asm.label(f"{name}: counted")


def _translate(asm: Assembly, family: Family, clock_at: int, shift: int) -> None:
    """The header in the frame, and the packet, get the flow's ends, and one timestamp what is added to it."""
    at = HEADER_AT + family.transport
    asm.load(2, FRAME, at + clock_at, 4)
    asm.store(FRAME, OLD_AT, 2, 4)
    asm.to_network(2, 4)
    asm.load(3, 7, shift, 4)
    asm.add_register(2, 3)
    asm.to_network(2, 4)
    asm.store(FRAME, NEW_AT, 2, 4)
    asm.store(FRAME, at + clock_at, 2, 4)
    frame.turn(asm, family)
    for register, where in ((1, OLD_AT), (3, NEW_AT)):
        asm.copy(register, FRAME)
        asm.add(register, where)
    asm.set(2, 4)
    asm.set(4, 4)
    asm.load(5, 7, layout.PORT_SUM_AT, 4)
    asm.call(frame.SUM)
    asm.store(FRAME, OLD_AT, 0, 8)
    frame.write(asm, family.transport + SYN_HEADER)
    frame.check(asm, family, family.transport + 16, [(FRAME, OLD_AT, 0), (7, layout.ADDRESS_SUM_AT, frame.PSEUDO)])
