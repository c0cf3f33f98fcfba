"""The end of a connection that the program has opened (kernel_opening.py): its entries go, what it carried is counted, its place is vacant.

In: a packet of such a connection; registers 7 and 8 are the flow's value and its pair. Out: instructions. What must not happen here: an
end that counts twice. Packets of both directions may come at the same moment: whoever takes the client's entry away is who ends it.

A connection has ended when both sides have sent a FIN and each has acknowledged the other's. Nothing is kept of it: what would still be
sent again meets the node's network, which answers as to a connection that is no more. Pure.
"""

from __future__ import annotations

import sys

from kproxy.ebpf import packets
from kproxy.ebpf.assembly import FRAME, Assembly
from kproxy.relay import kernel_frame as frame
from kproxy.relay import kernel_maps as layout
from kproxy.relay import kernel_rings as rings
from kproxy.relay.kernel_frame import FOUR, HEADER_AT, KEY_AT, NEW_AT, WORD_AT, Family
from kproxy.relay.kernel_maps import FlowMaps
from kproxy.relay.kernel_sockets import RST

OTHER_KEY_AT = NEW_AT - 72 - layout.KEY  # in the frame: the key of the flow's other direction
SYN_HEADER = 40  # octets
# Of a SYN, what changes: offset in its header → offset in the pair, behind the link's addresses. Four octets each.
SAVED = {4: 12, 12: 16, 20: 20, 28: 24, 36: 28}
_LINK_AT = WORD_AT  # of the client, for a SYN that is said again
_INTO = 1  # BPF_F_INGRESS
_BOTH = 0x0101  # of two flags


def find_end(asm: Assembly, maps: FlowMaps, otherwise: str) -> None:
    """Register 9: the end of the ring that the pair names. Goes on at `otherwise` where there is none."""
    asm.load(2, 8, layout.RING_AT, 4)
    asm.add(2, -1)
    asm.store(FRAME, WORD_AT - 8, 2, 4)
    frame.look_up(asm, maps.rings, WORD_AT - 8, otherwise)
    asm.copy(9, 0)
    asm.load(2, 8, layout.CHOICE_AT, 4)
    asm.mask(2, rings.ENDS - 1)
    asm.shift_left(2, rings.END.bit_length() - 1)
    asm.add_register(9, 2)
    asm.add(9, rings.ENDS_AT)


def finish(asm: Assembly, maps: FlowMaps, name: str) -> None:
    """It is over. The client's key is in the frame afterwards, at KEY_AT or OTHER_KEY_AT."""
    for part, at in ((layout.DESTINATION_AT, 0), (layout.SOURCE_AT, 16)):
        for offset in range(0, 16, 4):
            asm.load(2, 7, part + offset, 4)
            asm.store(FRAME, OTHER_KEY_AT + at + offset, 2, 4)
    for port, at in ((2, 32), (0, 34)):
        asm.load(2, 7, layout.PORTS_AT + port, 2)
        asm.store(FRAME, OTHER_KEY_AT + at, 2, 2)
    asm.load(2, FRAME, KEY_AT + 36, 4)
    asm.store(FRAME, OTHER_KEY_AT + 36, 2, 4)
    asm.load(9, 7, layout.DIRECTION_AT, 4)
    asm.jump_if(9, "!=", layout.FROM_CLIENT, f"{name}: from the endpoint")
    frame.delete(asm, maps.flows, KEY_AT)
    asm.jump_if(0, "!=", 0, f"{name}: finished")
    frame.delete(asm, maps.flows, OTHER_KEY_AT)
    asm.jump(f"{name}: count")
    asm.label(f"{name}: from the endpoint")
    frame.delete(asm, maps.flows, OTHER_KEY_AT)
    asm.jump_if(0, "!=", 0, f"{name}: finished")
    frame.delete(asm, maps.flows, KEY_AT)
    asm.label(f"{name}: count")
    find_end(asm, maps, f"{name}: vacant")
    for octets, into in ((layout.OCTETS_AT, rings.SENT_AT), (layout.OCTETS_AT + 8, rings.RECEIVED_AT)):
        asm.load(2, 8, octets, 8)
        asm.add_atomically(9, into, 2)
    asm.load(3, 8, layout.STATE_AT, 4)
    asm.jump_if(3, "==", layout.OPENING, f"{name}: vacant")  # it never counted as open
    asm.set(2, 1)
    asm.add_atomically(9, rings.ENDED_AT, 2)
    asm.label(f"{name}: vacant")
    asm.store_number(8, layout.STATE_AT, layout.VACANT, 4)
    asm.label(f"{name}: finished")


def notice_end(asm: Assembly, family: Family, name: str) -> None:
    """A segment is ready to be sent: at label "…: finish" for the last one of a connection that the program has opened, else it goes on."""
    at = HEADER_AT + family.transport
    asm.load(2, 8, layout.RING_AT, 4)
    asm.jump_if(2, "==", 0, f"{name}: lasts")
    asm.load(2, FRAME, at + 13, 1)
    asm.jump_if(2, "&", RST, f"{family.name}: finish")
    asm.load(2, 8, layout.ENDED_AT, 2)
    asm.jump_if(2, "!=", _BOTH, f"{name}: lasts")
    # What the sender of this has acknowledged, and where what goes to it ends: the numbers are the same on both sides.
    asm.load(4, 7, layout.DIRECTION_AT, 4)
    asm.mask(4, 1)
    asm.copy(1, 4)
    asm.flip(1, 1)
    asm.shift_left(1, 2)
    asm.add_register(1, 8)
    asm.load(3, 1, layout.REACHED_AT, 4)
    asm.load(2, FRAME, at + 8, 4)
    asm.to_network(2, 4)
    asm.jump_if_register(2, "!=", 3, f"{name}: lasts")
    asm.add_register(4, 8)
    asm.store_number(4, layout.HEARD_AT, 1, 1)
    asm.load(2, 8, layout.HEARD_AT, 2)
    asm.jump_if(2, "==", _BOTH, f"{family.name}: finish")
    asm.label(f"{name}: lasts")


def say_again(asm: Assembly, family: Family) -> None:
    """The endpoint's reset becomes the client's SYN, which comes by its link as if for the first time. The connection is finished."""
    at, length = HEADER_AT + family.transport, family.transport + SYN_HEADER
    asm.load(2, 8, layout.LINK_AT, 4)
    asm.store(FRAME, _LINK_AT, 2, 8)
    for offset in range(0, 12, 2):
        asm.load(2, 8, layout.SAVED_AT + offset, 2)
        asm.store(FRAME, HEADER_AT + offset, 2, 2)
    _network_header(asm, family)
    for part, start in ((0, 0), (family.address, 16)):
        for offset in range(0, family.address, 2):
            asm.load(2, FRAME, OTHER_KEY_AT + start + offset, 2)
            asm.store(FRAME, HEADER_AT + family.source + part + offset, 2, 2)
    asm.load(2, FRAME, OTHER_KEY_AT + 32, 4)
    asm.store(FRAME, at, 2, 4)
    for offset in (8, 16, 32):
        asm.store_number(FRAME, at + offset, 0, 4)
    asm.store_number(FRAME, at + 24, int.from_bytes(b"\x04\x02\x08\x0a", sys.byteorder), 4)
    for offset, saved in SAVED.items():
        asm.load(2, 8, layout.SAVED_AT + saved, 4)
        asm.store(FRAME, at + offset, 2, 4)
    frame.check_anew(asm, family, HEADER_AT, SYN_HEADER)
    asm.copy(1, 6)
    asm.set(2, length)
    asm.set(3, 0)
    asm.call(frame.CHANGE_TAIL)
    asm.jump_if(0, "!=", 0, "drop")
    packets.write(asm, 0, HEADER_AT, length, "drop")
    asm.load(1, FRAME, _LINK_AT, 8)
    asm.set(2, _INTO)
    asm.call(frame.REDIRECT)
    asm.exit()


def _network_header(asm: Assembly, family: Family) -> None:
    """The frame's, but for addresses and sum; 64 more hops."""
    if family is FOUR:
        told = b"\x08\x00" + b"\x45\x00\x00\x3c" + b"\x00\x00\x40\x00" + b"\x40\x06\x00\x00"
    else:
        told = b"\x86\xdd" + b"\x60\x00\x00\x00" + b"\x00\x28\x06\x40"
    for offset in range(0, len(told), 2):
        word = int.from_bytes(told[offset : offset + 2], sys.byteorder)
        asm.store_number(FRAME, HEADER_AT + 12 + offset, word, 2)
