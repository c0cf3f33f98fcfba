"""The program that relays open flows in the kernel: from a link of a pod to a link of another, without a socket in between.

    client ──veth──▶ [tc ingress] ─ a flow that a worker has handed over ─▶ addresses, ports, TCP's numbers ─▶ link of the endpoint
                          │                                                  and the same way back
                          └─ anything else ─▶ the node's network ─▶ rules ─▶ a worker's socket

A worker opens a flow: it has chosen the endpoint, connected, tried elsewhere where that failed, written a PROXY header if one is wished,
and the first packets have passed all rules of the node. What is left is to carry octets, and for that a packet needs neither a socket nor
a process. It has two entries for each flow (kernel_maps.py), and what it does not know it leaves. For clients that connect to the same
again and again the worker chooses in advance, and the program opens the next connections by that (kernel_opening.py). It decides nothing.

UDP: other addresses and ports. It holds as long as the worker's lease; datagrams that come by the sockets meanwhile are no worse.

TCP: the relay has two connections, each with numbers of its own. But it passes every octet on, so the number of an octet in one connection
and its number in the other differ by a constant, whichever way it took; likewise acknowledgements, and timestamps by the difference of two
clocks. So the program may begin with any packet, and the worker may still have octets under way (kernel_tcp.py).

Costs: what is no flow's pays for a look into one hash (0.05 us). What must not happen here: loops, and a packet that is left changed by
half. Whatever is unusual goes the other way: IP options, extension headers, fragments, VLAN tags.

In: descriptors of maps. Out: the program as octets. Pure. Constants: linux/bpf.h.
"""

from __future__ import annotations

import sys

from kproxy.ebpf.assembly import FRAME, Assembly
from kproxy.relay import kernel_frame as frame
from kproxy.relay import kernel_maps as layout
from kproxy.relay.kernel_frame import FOUR, KEY_AT, NOW_AT, SIX, WORD_AT, Family
from kproxy.relay.kernel_maps import FlowMaps
from kproxy.relay.kernel_opening import open_connection
from kproxy.relay.kernel_tcp import segment

_DROP = 2  # TC_ACT_SHOT
_SKB_PROTOCOL, _SKB_VLAN, _SKB_DATA, _SKB_END = 16, 20, 76, 80
_UDP_HEADER = 8


def program(maps: FlowMaps) -> bytes:
    """The program, for the tc ingress of links."""
    asm = Assembly()
    asm.copy(6, 1)
    asm.load(2, 6, _SKB_VLAN, 4)
    asm.jump_if(2, "!=", 0, "pass")
    asm.load(7, 6, _SKB_DATA, 4)
    asm.load(8, 6, _SKB_END, 4)
    asm.load(2, 6, _SKB_PROTOCOL, 4)
    asm.jump_if(2, "==", SIX.ethernet, SIX.name)
    asm.jump_if(2, "!=", FOUR.ethernet, "pass")
    for family in (FOUR, SIX):
        asm.label(family.name)
        _key(asm, family)
        _find(asm, maps, family)
        asm.load(2, FRAME, KEY_AT + 36, 1)
        asm.jump_if(2, "==", layout.TCP, f"{family.name}: tcp")
        _datagram(asm, maps, family)
        asm.label(f"{family.name}: tcp")
        segment(asm, maps, family)
        asm.label(f"{family.name}: none")
        open_connection(asm, maps, family)
    asm.label("pass")
    asm.set(0, frame.PASS)
    asm.exit()
    asm.label("drop")  # after the packet was changed and could not be finished
    asm.set(0, _DROP)
    asm.exit()
    return asm.assemble()


def _key(asm: Assembly, family: Family) -> None:
    """The packet's key, in the frame. Leaves at `pass` for what is neither TCP nor UDP as simple as can be."""
    asm.copy(2, 7)
    asm.add(2, family.transport + _UDP_HEADER)
    asm.jump_if_register(2, ">", 8, "pass")
    asm.load(2, 7, 14, 1)
    if family is FOUR:
        asm.jump_if(2, "!=", 0x45, "pass")
        asm.load(2, 7, 20, 2)
        asm.jump_if(2, "&", int.from_bytes(b"\x3f\xff", sys.byteorder), "pass")
    else:
        asm.mask(2, 0xF0)
        asm.jump_if(2, "!=", 0x60, "pass")
    asm.load(3, 7, family.protocol, 1)
    asm.jump_if(3, "==", layout.TCP, f"{family.name}: known")
    asm.jump_if(3, "!=", layout.UDP, "pass")
    asm.label(f"{family.name}: known")
    asm.load(2, 7, family.lifetime, 1)
    asm.jump_if(2, "<=", 1, "pass")
    if family is SIX:
        asm.set(2, 1 << 8)
        asm.combine(3, 2)
    asm.store(FRAME, KEY_AT + 36, 3, 4)
    step = 4 if family is FOUR else 2
    for part, at in ((0, KEY_AT), (family.address, KEY_AT + 16)):
        for offset in range(0, family.address, step):
            asm.load(2, 7, family.source + part + offset, step)
            asm.store(FRAME, at + offset, 2, step)
        if family is FOUR:
            asm.store_number(FRAME, at + 4, 0, 4)
            asm.store_number(FRAME, at + 8, 0, 8)
    for at in (0, 2):
        asm.load(2, 7, family.transport + at, 2)
        asm.store(FRAME, KEY_AT + 32 + at, 2, 2)


def _find(asm: Assembly, maps: FlowMaps, family: Family) -> None:
    """Register 7: the flow's value, 8: its pair; the time is in the frame. Leaves at `pass` where there is none that goes on."""
    frame.look_up(asm, maps.flows, KEY_AT, f"{family.name}: none")
    asm.copy(7, 0)
    asm.map(1, maps.pairs)
    asm.copy(2, 7)
    asm.call(frame.LOOK_UP)
    asm.jump_if(0, "==", 0, "pass")
    asm.copy(8, 0)
    asm.load(2, 8, layout.STATE_AT, 4)
    asm.jump_if(2, "==", layout.OFF, "pass")
    asm.jump_if(2, "==", layout.OVER, "pass")
    _same_link(asm, family)
    asm.call(frame.CLOCK)
    asm.store(FRAME, NOW_AT, 0, 8)


def _same_link(asm: Assembly, family: Family) -> None:
    """A flow's packets come by one link in either direction, that of the first one. Else somebody may call himself what he is not, which
    the node's network would notice (rp_filter, rules of a network plug-in) and this program does not: nothing is to be handed over then.
    """
    frame.by_direction(asm, 1, 4)
    asm.load(3, 1, layout.LINK_AT, 4)
    asm.load(4, 6, frame.SKB_LINK, 4)
    asm.jump_if_register(3, "==", 4, f"{family.name}: same link")
    asm.jump_if(3, "==", 0, f"{family.name}: first link")
    asm.jump_if(2, "!=", layout.OBSERVE, "pass")
    asm.store_number(8, layout.STATE_AT, layout.OVER, 4)
    asm.jump("pass")
    asm.label(f"{family.name}: first link")
    asm.store(1, layout.LINK_AT, 4, 4)
    asm.label(f"{family.name}: same link")


def _datagram(asm: Assembly, maps: FlowMaps, family: Family) -> None:
    """UDP: with other ends, back out, while the lease holds."""
    asm.load(2, 8, layout.STATE_AT, 4)
    asm.jump_if(2, "!=", layout.FORWARD, "pass")
    asm.load(2, 7, layout.PLACE_AT, 4)
    asm.shift_right(2, layout.PER_SLOT.bit_length() - 1)
    asm.store(FRAME, WORD_AT, 2, 4)
    frame.look_up(asm, maps.leases, WORD_AT)
    asm.load(2, 0, 0, 8)
    asm.load(1, FRAME, NOW_AT, 8)
    asm.jump_if_register(2, "<", 1, "pass")
    octets = family.transport + _UDP_HEADER
    frame.load_header(asm, octets, "pass")
    asm.load(9, FRAME, frame.HEADER_AT + family.transport + 4, 2)
    asm.to_network(9, 2)
    asm.jump_if(9, "<", _UDP_HEADER, "pass")
    asm.add(9, -_UDP_HEADER)
    frame.route(asm, family)
    # An endpoint on the node itself, a packet that is too large: by the sockets, as it came, which count it.
    asm.jump_if(0, "==", 0, f"{family.name}: there")
    asm.jump_if(0, "!=", frame.NO_NEIGHBOUR, "pass")
    asm.label(f"{family.name}: there")
    frame.count(asm, 9)
    frame.turn(asm, family)
    frame.write(asm, octets)
    sums = [(7, layout.PORT_SUM_AT, frame.KEEP_ZERO), (7, layout.ADDRESS_SUM_AT, frame.KEEP_ZERO | frame.PSEUDO)]
    frame.check(asm, family, family.transport + 6, sums)
    frame.send(asm, f"{family.name}: udp")
