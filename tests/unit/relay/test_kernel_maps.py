"""What workers write for the kernel's program, read as the program reads it: sums of the Internet's, entries, ends of rings."""

from __future__ import annotations

import struct
from ipaddress import ip_address

import pytest

from kproxy.relay import kernel_maps as layout
from kproxy.relay import kernel_rings as rings
from kproxy.relay.kernel_maps import Ends, difference, flow_key, flow_value, told_of_flow
from kproxy.relay.kernel_opened import repeat_key
from kproxy.relay.kernel_reset import segment

_CASES = {
    "IPv4": (Ends(b"\x0a\x01\x02\x03", b"\x0a\x60\x00\x0a", 40000, 80), Ends(b"\xc0\xa8\xff\xfe", b"\x0a\xb4\x00\x01", 50001, 8080)),
    "IPv6": (
        Ends(ip_address("fd00::1").packed, ip_address("fd00:96::a").packed, 40000, 80),
        Ends(ip_address("fd00:1::ff").packed, ip_address("fd00:180::1").packed, 50001, 8080),
    ),
}  # fmt: skip


def _folded(total: int) -> int:
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def _sum(octets: bytes) -> int:
    """RFC 1071, in this machine's order."""
    return _folded(sum(struct.unpack(f"={len(octets) // 2}H", octets)))


@pytest.mark.parametrize("family", _CASES)
def test_a_difference_makes_of_one_sum_the_other(family: str) -> None:
    near, far = _CASES[family]
    old, new = near.source + near.destination, far.source + far.destination
    rest = b"what else is summed "
    assert _folded(_sum(old + rest) + difference(old, new)) == _sum(new + rest)


@pytest.mark.parametrize("family", _CASES)
@pytest.mark.parametrize("protocol", [layout.TCP, layout.UDP])
def test_an_entry_tells_what_was_put_into_it(family: str, protocol: int) -> None:
    near, far = _CASES[family]
    key, value = flow_key(protocol, near), flow_value(4711, layout.FROM_ENDPOINT, near, far)
    assert (len(key), len(value)) == (layout.KEY, layout.VALUE)
    assert told_of_flow(key, value) == (protocol, 4711, layout.FROM_ENDPOINT, far)


@pytest.mark.parametrize("family", _CASES)
def test_a_client_has_one_key_whatever_its_port(family: str) -> None:
    near, _ = _CASES[family]
    other = Ends(near.source, near.destination, 1, near.destination_port)
    assert repeat_key(near) == repeat_key(other) == flow_key(layout.TCP, Ends(near.source, near.destination, 0, 80))


@pytest.mark.parametrize("family", _CASES)
def test_an_end_has_the_sums_of_both_ways(family: str) -> None:
    near, far = _CASES[family]
    octets = rings.RingEnd(near, far, 9).octets()
    assert len(octets) == rings.ASKED_AT
    there, back, link = struct.unpack_from("=III", octets, rings.THERE_SUM_AT)
    forth = near.source + near.destination, far.source + far.destination
    assert _folded(_sum(forth[0]) + there) == _sum(forth[1])
    assert _folded(_sum(forth[1]) + back) == _sum(forth[0])
    assert link == 9 and octets[rings.PORT_AT : rings.PORT_AT + 2] == struct.pack("!H", 8080)


def test_what_a_ring_does_not_name_goes_the_whole_way() -> None:
    assert rings.turn(bytes((0, 3))) == bytes((0, 3)) + bytes((rings.WHOLE_WAY,)) * (rings.TURN - 2)


@pytest.mark.parametrize("family", _CASES)
def test_a_segment_has_a_sum_that_is_right(family: str) -> None:
    near, _ = _CASES[family]
    octets = segment(near, 0x12345678, 16, 0x9ABCDEF0)
    pseudo = near.source + near.destination + struct.pack("!HH", layout.TCP, len(octets))
    assert _sum(pseudo + octets) == 0xFFFF
    assert struct.unpack_from("!HHIIBB", octets) == (40000, 80, 0x12345678, 0x9ABCDEF0, 5 << 4, 16)
