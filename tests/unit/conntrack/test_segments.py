"""The segments that end a connection: whole, addressed right, and heard through a filter that hears nothing else."""

from __future__ import annotations

import struct
from ipaddress import ip_address

import pytest

from kproxy.conntrack.netlink import TCP, Flow
from kproxy.conntrack.segments import ACK, RST, SYN, Side, instructions, question, read, reset, seen_as
from kproxy.model.names import Family


def _end(address: str, number: int) -> bytes:
    return ip_address(address).packed + struct.pack("!H", number)


# A client outside, through a node port, masqueraded as the node.
_CLIENT, _NODE_PORT, _AS, _ENDPOINT = (
    ("203.0.113.2", 40000),
    ("192.168.0.2", 3001),
    ("10.0.0.1", 1025),
    ("10.180.0.1", 80),
)


def _six(address: str) -> str:
    return "fd00::" + address.replace(".", ":")


def _flow(family: Family) -> Flow:
    client, to, seen, by = (
        _end(_six(a) if family is Family.IPV6 else a, n) for a, n in (_CLIENT, _NODE_PORT, _AS, _ENDPOINT)
    )
    return Flow(TCP, to, by, b"named", client, seen, 3)


def _parts(packet: bytes, family: Family) -> tuple[bytes, bytes, bytes]:
    """Source, destination (with ports) and the segment, checksums and lengths verified."""
    if family is Family.IPV4:
        assert packet[0] == 0x45 and struct.unpack("!H", packet[2:4])[0] == len(packet) and packet[9] == TCP
        addresses, segment = (packet[12:16], packet[16:20]), packet[20:]
    else:
        assert packet[0] == 0x60 and struct.unpack("!H", packet[4:6])[0] == len(packet) - 40 and packet[6] == TCP
        addresses, segment = (packet[8:24], packet[24:40]), packet[40:]
    pseudo = b"".join(addresses) + struct.pack("!II", len(segment), TCP) + segment
    total = sum(struct.unpack(f"!{len(pseudo) // 2}H", pseudo))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    assert total == 0xFFFF, "the checksum"
    return addresses[0] + segment[:2], addresses[1] + segment[2:4], segment


@pytest.mark.parametrize("family", list(Family))
def test_each_side_is_asked_in_the_name_that_conntrack_translates(family: Family) -> None:
    flow = _flow(family)
    source, destination, segment = _parts(question(flow, Side.CLIENT, family), family)
    assert (source, destination, segment[13]) == (flow.answering, flow.returning, SYN | ACK)
    source, destination, segment = _parts(question(flow, Side.ENDPOINT, family), family)
    assert (source, destination, segment[13]) == (flow.client, flow.destination, SYN)


@pytest.mark.parametrize("family", list(Family))
@pytest.mark.parametrize("expects", [0, 1, 2**32 - 1])
def test_a_reset_bears_the_number_that_its_receiver_expects(family: Family, expects: int) -> None:
    _, _, segment = _parts(reset(_flow(family), Side.CLIENT, family, expects), family)
    assert (struct.unpack("!I", segment[4:8])[0], segment[13]) == (expects, RST)


def _packet(family: Family, source: bytes, destination: bytes, flags: int, acknowledged: int = 7) -> bytes:
    segment = source[-2:] + destination[-2:] + struct.pack("!IIBBHHH", 1, acknowledged, 0x50, flags, 0, 0, 0)
    if family is Family.IPV4:
        head = struct.pack("!BBHHHBBH", 0x46, 0, 24 + len(segment), 0, 0x4000, 64, TCP, 0)
        return head + source[:-2] + destination[:-2] + b"\1\1\1\0" + segment  # with an option
    return struct.pack("!IHBB", 6 << 28, len(segment), TCP, 64) + source[:-2] + destination[:-2] + segment


def _passes(packet: bytes, family: Family, flow: Flow) -> bool:
    """What the kernel's machine makes of the filter, written from its manual."""
    program, at, accumulator, index = instructions([flow], family), 0, 0, 0
    while True:
        code, yes, no, value = program[at]
        at += 1
        match code:
            case 0x30 | 0x50:
                accumulator = packet[value + (index if code == 0x50 else 0)]
            case 0x28:
                accumulator = struct.unpack_from("!H", packet, value)[0]
            case 0x40:
                accumulator = struct.unpack_from("!I", packet, value + index)[0]
            case 0xB1:
                index = 4 * (packet[value] & 15)
            case 0x01:
                index = value
            case 0x54:
                accumulator &= value
            case 0x15:
                at += yes if accumulator == value else no
            case 0x45:
                at += yes if accumulator & value else no
            case 0x06:
                return value > 0
            case _:
                raise AssertionError(hex(code))


@pytest.mark.parametrize("family", list(Family))
def test_the_filter_hears_both_sides_before_and_after_translation_and_nobody_else(family: Family) -> None:
    flow = _flow(family)
    for (source, destination), side in seen_as(flow):
        packet = _packet(family, source, destination, ACK)
        assert _passes(packet, family, flow)
        heard = read(packet, family)
        assert heard is not None and (heard.source, heard.destination, heard.expects) == (source, destination, 7)
        assert side in Side
        for flags in (SYN, SYN | ACK, RST | ACK, RST, 0):
            assert not _passes(_packet(family, source, destination, flags), family, flow)
        stranger = source[:-2] + b"\x99\x99"
        assert not _passes(_packet(family, stranger, destination, ACK), family, flow)
        other = Family.IPV6 if family is Family.IPV4 else Family.IPV4
        assert not _passes(packet, other, _flow(other))
    fragment = bytearray(_packet(Family.IPV4, _flow(Family.IPV4).client, _flow(Family.IPV4).destination, ACK))
    fragment[6:8] = b"\x20\x10"
    assert not _passes(bytes(fragment), Family.IPV4, _flow(Family.IPV4))


@pytest.mark.parametrize("family", list(Family))
def test_torn_packets_are_nothing(family: Family) -> None:
    packet = _packet(family, _flow(family).client, _flow(family).destination, ACK)
    for size in range(len(packet)):
        read(packet[:size], family)
    assert read(packet[:30], family) is None
    assert read(b"\x41" + packet[1:], Family.IPV4) is None or family is Family.IPV6, (
        "a header shorter than its addresses"
    )
