"""The program that answers DNS queries in the kernel, before they reach a socket: what it looks at, and the layouts it shares with workers.

    pod ──veth──▶ [tc ingress of the node's end] ─ known client, known query, answer in force ─▶ back out of the same link
                          │
                          └─ anything else ─▶ the node's network ─▶ rules ─▶ a worker's socket

A query that a worker has answered from memory costs 10 us of the node's processors by the way of sockets, of which the worker's Python is
the smaller part; here it costs one. The program decides nothing. It compares octets: address and port that were asked, the source, and
all of the query behind its ID are equal to what a worker has answered before, and that worker still vouches for the answer. It holds
nothing that a worker does not hold (dns/cache.py), for as long as the worker does:

* every answer and every client belongs to a *lease* of a worker: a number and a time. The worker prolongs the time as long as its event
  loop turns, and takes another number when what was made under it is to be forgotten: so thousands of answers go with one write.
* answers of one Service go one by one, when that Service changes. Answers whose TTL falls end with the second they were made for.
* a client is known for a few seconds, after which one query has to come the whole way again, through all rules of the node. So a network
  policy that forbids a pod to ask takes hold, if later by those seconds.

What must not happen here: loops, and a packet that is touched before everything is known. Whatever is unusual goes the other way: IP
options and extension headers, fragments, VLAN tags, octets behind the datagram, queries longer than QUERY.

In: descriptors of maps. Out: the program as octets. Pure. Constants: linux/bpf.h.
"""

from __future__ import annotations

from dataclasses import dataclass

from kproxy.dns.kernel_maps import ADDRESS, HEAD, KEY, ORDER_BIT, ORDERS, QUERY, REPLY, SEEN_AT, Maps
from kproxy.ebpf import packets
from kproxy.ebpf.assembly import FRAME, Assembly

_PASS, _DROP = -1, 2  # TCX_NEXT: whatever else looks at packets here has its turn; TC_ACT_SHOT
_LOOK_UP, _CLOCK, _RANDOM, _STORE_BYTES, _L3_SUM, _L4_SUM, _REDIRECT, _LOAD_BYTES, _SUM, _CHANGE_TAIL = (
    1, 5, 7, 9, 10, 11, 23, 26, 28, 38,
)  # fmt: skip
_SKB_LENGTH, _SKB_PROTOCOL, _SKB_VLAN, _SKB_LINK, _SKB_DATA, _SKB_END = 0, 16, 20, 40, 76, 80
_RECOMPUTE, _PSEUDO, _KEEP_ZERO = 1, 0x10, 0x20
_UDP = 17

# The frame: offsets from register 10.
_KEY_AT = -KEY
_WHERE_AT = _KEY_AT + ADDRESS
_QUERY_AT = -QUERY
_PLACE_AT = _KEY_AT - 24
_CLIENT_AT = _PLACE_AT - ADDRESS
_NOW_AT = _CLIENT_AT - 8
_LEASE_AT = _NOW_AT - 8
_DIFFERENCE_AT = _LEASE_AT - 8
_OLD_AT = _DIFFERENCE_AT - 8  # length of the UDP datagram, as it stood in its header
_NEW_AT = _OLD_AT - 8
_COUNTER_AT = _NEW_AT - 8
_HEADER_AT = _COUNTER_AT - 64 + 2  # so that what is behind Ethernet's header is aligned


@dataclass(frozen=True, slots=True)
class _Family:
    """Where things are in an Ethernet frame. ethernet: the protocol's number as it stands there, read by this machine."""

    name: str
    ethernet: int
    source: int
    address: int
    udp: int


_FOUR = _Family("four", int.from_bytes(b"\x08\x00", "little"), 26, 4, 34)
_SIX = _Family("six", int.from_bytes(b"\x86\xdd", "little"), 22, 16, 54)


def program(maps: Maps) -> bytes:
    """The program, for the tc ingress of links."""
    asm = Assembly()
    asm.copy(6, 1)
    asm.load(2, 6, _SKB_VLAN, 4)
    asm.jump_if(2, "!=", 0, "pass")
    asm.load(7, 6, _SKB_DATA, 4)
    asm.load(8, 6, _SKB_END, 4)
    for at in range(_KEY_AT, 0, 8):
        asm.store_number(FRAME, at, 0, 8)
    for at in (_PLACE_AT, _PLACE_AT + 8, _CLIENT_AT, _CLIENT_AT + 8):
        asm.store_number(FRAME, at, 0, 8)
    asm.store_number(FRAME, _PLACE_AT + 16, 0, 4)
    asm.load(2, 6, _SKB_PROTOCOL, 4)
    asm.jump_if(2, "==", _SIX.ethernet, "six")
    asm.jump_if(2, "!=", _FOUR.ethernet, "pass")
    _check_four(asm)
    _find(asm, maps, _FOUR)
    _reply(asm, maps, _FOUR)
    asm.label("six")
    _check_six(asm)
    _find(asm, maps, _SIX)
    _reply(asm, maps, _SIX)
    asm.label("pass")
    asm.set(0, _PASS)
    asm.exit()
    asm.label("drop")  # after the packet was changed and could not be finished: whoever asked asks again
    asm.set(0, _DROP)
    asm.exit()
    return asm.assemble()


def _within(asm: Assembly, octets: int, otherwise: str) -> None:
    """Registers 7 to 8 hold at least so many octets."""
    asm.copy(2, 7)
    asm.add(2, octets)
    asm.jump_if_register(2, ">", 8, otherwise)


def _check_four(asm: Assembly) -> None:
    """An IPv4 packet without options that is a whole UDP datagram. Register 9: octets of the frame that its header speaks of."""
    _within(asm, _FOUR.udp + 20, "pass")
    asm.load(2, 7, 14, 1)
    asm.jump_if(2, "!=", 0x45, "pass")
    asm.load(2, 7, 23, 1)
    asm.jump_if(2, "!=", _UDP, "pass")
    asm.load(2, 7, 20, 2)
    asm.jump_if(2, "&", int.from_bytes(b"\x3f\xff", "little"), "pass")
    asm.load(9, 7, 16, 2)
    asm.to_network(9, 2)
    asm.add(9, 14)


def _check_six(asm: Assembly) -> None:
    """The same of IPv6."""
    _within(asm, _SIX.udp + 20, "pass")
    asm.load(2, 7, 14, 1)
    asm.mask(2, 0xF0)
    asm.jump_if(2, "!=", 0x60, "pass")
    asm.load(2, 7, 20, 1)
    asm.jump_if(2, "!=", _UDP, "pass")
    asm.load(9, 7, 18, 2)
    asm.to_network(9, 2)
    asm.add(9, _SIX.udp)


def _find(asm: Assembly, maps: Maps, family: _Family) -> None:
    """Leaves at `pass`, or goes on with register 7: the answer; the frame holds what the reply needs. Register 9: see `_check_four`."""
    asm.load(2, 6, _SKB_LENGTH, 4)
    asm.jump_if_register(2, "!=", 9, "pass")
    asm.load(3, 7, family.udp + 4, 2)
    asm.store(FRAME, _OLD_AT, 3, 8)
    asm.to_network(3, 2)
    asm.add(3, family.udp)
    asm.jump_if_register(3, "!=", 2, "pass")
    asm.load(2, 7, family.udp, 2)
    asm.load(3, 7, family.udp + 2, 2)
    asm.jump_if_register(2, "==", 3, "pass")  # from a port like ours: perhaps from ourselves
    asm.jump_if(2, "==", 0, "pass")
    asm.store(FRAME, _PLACE_AT + ADDRESS, 3, 2)
    for at in range(0, family.address, 2 if family is _SIX else 4):
        size = 2 if family is _SIX else 4
        asm.load(2, 7, family.source + at, size)
        asm.store(FRAME, _CLIENT_AT + at, 2, size)
        asm.load(2, 7, family.source + family.address + at, size)
        asm.store(FRAME, _PLACE_AT + at, 2, size)
    _look_up(asm, maps.places, _PLACE_AT, "pass")
    asm.load(7, 0, 0, 4)
    asm.call(_CLOCK)
    asm.store(FRAME, _NOW_AT, 0, 8)
    _look_up(asm, maps.clients, _CLIENT_AT, "pass")
    asm.copy(8, 0)
    _must_live(asm, maps, 8, "pass")
    asm.load(2, 8, SEEN_AT, 4)
    asm.jump_if(2, "!=", 0, f"{family.name}: seen")  # a write for every query would be one for every processor's cache
    asm.store_number(8, SEEN_AT, 1, 4)
    asm.label(f"{family.name}: seen")
    asm.add(9, -family.udp - 10)  # octets of the query behind its ID
    asm.jump_if(9, ">", QUERY, "pass")
    asm.jump_if(9, "<", 15, "pass")
    asm.combine(7, 9)
    asm.store(FRAME, _WHERE_AT, 7, 4)
    asm.copy(1, 6)
    asm.set(2, family.udp + 10)
    asm.copy(3, FRAME)
    asm.add(3, _QUERY_AT)
    asm.copy(4, 9)
    asm.call(_LOAD_BYTES)
    asm.jump_if(0, "!=", 0, "pass")
    _look_up(asm, maps.answers, _KEY_AT, f"{family.name}: own")
    asm.copy(7, 0)
    _must_live(asm, maps, 7, f"{family.name}: own")
    asm.jump(f"{family.name}: found")
    asm.label(f"{family.name}: own")
    for at in range(0, ADDRESS, 8):
        asm.load(2, FRAME, _CLIENT_AT + at, 8)
        asm.store(FRAME, _KEY_AT + at, 2, 8)
    _look_up(asm, maps.answers, _KEY_AT, "pass")
    asm.copy(7, 0)
    _must_live(asm, maps, 7, "pass")
    asm.label(f"{family.name}: found")
    _choose(asm, maps, family)


def _choose(asm: Assembly, maps: Maps, family: _Family) -> None:
    """Register 7: one of the answer's orders, where it has several."""
    asm.load(8, 7, 28, 4)
    asm.jump_if(8, "<=", 1, f"{family.name}: chosen")
    asm.call(_RANDOM)
    asm.modulo_register(0, 8)
    asm.mask(0, ORDERS - 1)
    asm.jump_if(0, "==", 0, f"{family.name}: chosen")
    asm.shift_left(0, ORDER_BIT)
    asm.load(2, FRAME, _WHERE_AT, 4)
    asm.combine(2, 0)
    asm.store(FRAME, _WHERE_AT, 2, 4)
    asm.load(8, 7, 16, 4)
    _look_up(asm, maps.answers, _KEY_AT, "pass")
    asm.copy(7, 0)
    asm.load(2, 7, 16, 4)
    asm.jump_if_register(2, "!=", 8, "pass")
    _must_live(asm, maps, 7, "pass")
    asm.label(f"{family.name}: chosen")


def _look_up(asm: Assembly, descriptor: int, key_at: int, otherwise: str) -> None:
    """Register 0: the value of the key in the frame."""
    asm.map(1, descriptor)
    asm.copy(2, FRAME)
    asm.add(2, key_at)
    asm.call(_LOOK_UP)
    asm.jump_if(0, "==", 0, otherwise)


def _must_live(asm: Assembly, maps: Maps, value: int, otherwise: str) -> None:
    """Neither its own time is over nor its lease's, and the lease still has the number it was made under."""
    asm.load(2, FRAME, _NOW_AT, 8)
    asm.load(1, value, 0, 8)
    asm.jump_if_register(1, "<", 2, otherwise)
    asm.load(1, value, 16, 4)
    asm.store(FRAME, _LEASE_AT, 1, 4)
    _look_up(asm, maps.leases, _LEASE_AT, otherwise)
    asm.load(2, FRAME, _NOW_AT, 8)
    asm.load(1, 0, 0, 8)
    asm.jump_if_register(1, "<", 2, otherwise)
    asm.load(1, 0, 8, 8)
    asm.load(2, value, 8, 8)
    asm.jump_if_register(1, "!=", 2, otherwise)


def _reply(asm: Assembly, maps: Maps, family: _Family) -> None:
    """Makes the reply of the query in place and sends it back. Register 7: the answer; the frame: the query, zeros behind it."""
    payload = family.udp + 8
    asm.load(9, 7, 24, 4)
    asm.jump_if(9, ">", REPLY, "pass")
    asm.jump_if(9, "<", 10, "pass")
    asm.load(2, 7, 20, 4)
    asm.store(FRAME, _COUNTER_AT, 2, 4)
    asm.copy(1, FRAME)
    asm.add(1, _QUERY_AT)
    asm.set(2, QUERY)
    asm.copy(3, 7)
    asm.add(3, HEAD)
    asm.set(4, REPLY)
    asm.set(5, 0)
    asm.call(_SUM)
    asm.store(FRAME, _DIFFERENCE_AT, 0, 8)
    asm.copy(1, 6)
    asm.copy(2, 9)
    asm.add(2, payload + 2)
    asm.set(3, 0)
    asm.call(_CHANGE_TAIL)
    asm.jump_if(0, "!=", 0, "drop")
    asm.copy(1, 6)
    asm.set(2, payload + 2)
    asm.copy(3, 7)
    asm.add(3, HEAD)
    asm.copy(4, 9)
    asm.set(5, _RECOMPUTE)
    asm.call(_STORE_BYTES)
    asm.jump_if(0, "!=", 0, "drop")
    asm.copy(2, 9)
    asm.add(2, 10)
    asm.to_network(2, 2)
    asm.store(FRAME, _NEW_AT, 2, 8)
    _sum(asm, family, None, _KEEP_ZERO)
    _sum(asm, family, 2, _KEEP_ZERO | 2)
    _sum(asm, family, 2, _KEEP_ZERO | _PSEUDO | 2)
    _headers(asm, family)
    asm.map(1, maps.counters)
    asm.copy(2, FRAME)
    asm.add(2, _COUNTER_AT)
    asm.call(_LOOK_UP)
    asm.jump_if(0, "==", 0, f"{family.name}: uncounted")
    asm.set(1, 1)
    asm.add_atomically(0, 0, 1)
    asm.label(f"{family.name}: uncounted")
    asm.load(1, 6, _SKB_LINK, 4)
    asm.set(2, 0)
    asm.call(_REDIRECT)
    asm.exit()


def _sum(asm: Assembly, family: _Family, size: int | None, flags: int) -> None:
    """Brings the UDP checksum up to date: with the difference of the payload, or (size) with the new length. None stays none in IPv4.

    A packet whose checksum the link is to compute has only the pseudo header in it by now; the kernel knows, this program cannot.
    """
    asm.copy(1, 6)
    asm.set(2, family.udp + 6)
    if size is None:
        asm.set(3, 0)
        asm.load(4, FRAME, _DIFFERENCE_AT, 8)
    else:
        asm.load(3, FRAME, _OLD_AT, 8)
        asm.load(4, FRAME, _NEW_AT, 8)
    asm.set(5, flags)
    asm.call(_L4_SUM)
    asm.jump_if(0, "!=", 0, "drop")


def _headers(asm: Assembly, family: _Family) -> None:
    """Turns the packet round: addresses and ports change places, which no checksum minds, and lengths become the reply's.

    The header is changed in the frame and written back (ebpf/packets.py says why).
    """
    if family is _FOUR:
        asm.load(3, FRAME, _OLD_AT, 8)
        asm.to_network(3, 2)
        asm.add(3, 20)
        asm.to_network(3, 2)
        asm.copy(4, 9)
        asm.add(4, 30)
        asm.to_network(4, 2)
        asm.copy(1, 6)
        asm.set(2, 24)
        asm.set(5, 2)
        asm.call(_L3_SUM)
        asm.jump_if(0, "!=", 0, "drop")
    octets = family.udp + 8
    packets.read(asm, 0, _HEADER_AT, octets, "drop")
    for first, second, size in _swaps(family):
        asm.load(2, FRAME, _HEADER_AT + first, size)
        asm.load(3, FRAME, _HEADER_AT + second, size)
        asm.store(FRAME, _HEADER_AT + first, 3, size)
        asm.store(FRAME, _HEADER_AT + second, 2, size)
    asm.load(2, FRAME, _NEW_AT, 8)
    asm.store(FRAME, _HEADER_AT + family.udp + 4, 2, 2)
    if family is _SIX:
        asm.store(FRAME, _HEADER_AT + 18, 2, 2)
    else:
        asm.copy(2, 9)
        asm.add(2, 30)
        asm.to_network(2, 2)
        asm.store(FRAME, _HEADER_AT + 16, 2, 2)
    packets.write(asm, 0, _HEADER_AT, octets, "drop")


def _swaps(family: _Family) -> list[tuple[int, int, int]]:
    """Offsets and sizes of what changes places."""
    ethernet = [(at, at + 6, 2) for at in (0, 2, 4)]
    addresses = [(family.source + at, family.source + family.address + at, 4) for at in range(0, family.address, 4)]
    return [*ethernet, *addresses, (family.udp, family.udp + 2, 2)]
