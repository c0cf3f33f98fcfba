"""The kernel's spelling of flows: read as dumped, asked for and deleted as the kernel wants it."""

from __future__ import annotations

import errno
import struct
from ipaddress import ip_address

import pytest

from kproxy.conntrack.netlink import Flow, delete_request, dump_request, read_answers, read_dump, read_flow, read_flows
from kproxy.conntrack.stale import Allowed
from kproxy.model.names import Family, Protocol
from tests.support import conntrack_messages as wire

_CLIENT, _SERVICE, _GONE, _GOOD = ("10.0.0.2", 40000), ("172.30.0.41", 53), ("10.180.0.1", 5353), ("10.180.0.2", 5353)


def _six(end: wire.End) -> wire.End:
    return (f"fd00::{end[0].replace('.', ':')}", end[1])


_ENDS = {
    Family.IPV4: (_CLIENT, _SERVICE, _GONE, _GOOD),
    Family.IPV6: tuple(map(_six, (_CLIENT, _SERVICE, _GONE, _GOOD))),
}


def _packed(end: wire.End) -> bytes:
    return ip_address(end[0]).packed + struct.pack(">H", end[1])


def _rules(family: Family) -> Allowed:
    _, service, _, good = _ENDS[family]
    return Allowed(virtual={_packed(service): frozenset({_packed(good)})})


@pytest.mark.parametrize("zone", [None, 5])
@pytest.mark.parametrize("family", list(Family))
def test_only_stale_udp_flows_are_kept(family: Family, zone: int | None) -> None:
    client, service, gone, good = _ENDS[family]
    datagram = b"".join(
        [
            wire.flow(client, service, good, zone=zone),
            wire.flow(client, service, gone, zone=zone, number=77),
            wire.flow(client, service, gone, zone=zone, protocol=wire.TCP),
            wire.flow(client, ("192.0.2.1" if family is Family.IPV4 else "2001:db8::1", 53), gone, zone=zone),
            wire.flow(client, service, service, zone=zone),
        ]
    )
    found = read_dump(datagram, family, _rules(family))
    assert (found.seen, found.done, found.interrupted, found.error) == (5, False, False, 0)
    assert [(f.destination, f.answering) for f in found.stale] == [
        (_packed(service), _packed(gone)),
        (_packed(service), _packed(service)),
    ]


@pytest.mark.parametrize("family", list(Family))
def test_a_deletion_names_one_flow(family: Family) -> None:
    client, service, gone, _ = _ENDS[family]
    (stale,) = read_dump(wire.flow(client, service, gone, number=77), family, _rules(family)).stale
    wanted = wire.tuple_(2, gone, client, wire.UDP) + wire.attribute(12, struct.pack(">I", 77))
    number = 2 if family is Family.IPV4 else 10
    assert delete_request(stale, family, 3, acknowledge=True) == wire.message(wire.DELETE, 5, 3, wanted, number)
    assert delete_request(stale, family, 3, acknowledge=False) == wire.message(wire.DELETE, 1, 3, wanted, number)


def test_a_deletion_without_a_tuple_is_refused() -> None:
    with pytest.raises(ValueError, match="empty the table"):
        delete_request(Flow(17, b"", b"", b""), Family.IPV4, 1, acknowledge=True)


def test_the_zone_goes_with_the_flow() -> None:
    body = wire.tuple_(1, _CLIENT, _SERVICE, 17) + wire.tuple_(2, _GONE, _CLIENT, 17)
    zone, number = wire.attribute(18, b"\0\5"), wire.attribute(12, b"\0\0\0\7")
    found = read_flow(body + zone + number, Family.IPV4)
    assert found is not None
    assert found.attributes == wire.tuple_(2, _GONE, _CLIENT, 17) + zone + number


def test_the_end_of_a_dump() -> None:
    rules = _rules(Family.IPV4)
    assert read_dump(wire.done(), Family.IPV4, rules).done
    assert read_dump(wire.done(errno.EPERM), Family.IPV4, rules).error == errno.EPERM
    assert read_dump(wire.answer(1, errno.EINVAL), Family.IPV4, rules).error == errno.EINVAL
    torn = wire.message(wire.NEW, 0x12, 1, b"") + wire.done()
    assert read_dump(torn, Family.IPV4, rules).interrupted


def test_answers() -> None:
    assert list(read_answers(wire.answer(4) + wire.answer(5, errno.ENOENT))) == [(4, 0), (5, errno.ENOENT)]


def test_a_dump_is_asked_for() -> None:
    assert dump_request(Family.IPV6, 9, only=None) == wire.message(wire.GET, 0x301, 9, b"", 10)
    protocol = wire.attribute(2, wire.attribute(1, bytes([wire.UDP])), nested=True)
    flags = wire.attribute(1, struct.pack("=I", 8)) + wire.attribute(2, bytes(4))
    only = wire.attribute(1, protocol, nested=True) + wire.attribute(25, flags, nested=True)
    assert dump_request(Family.IPV4, 9, only=Protocol.UDP) == wire.message(wire.GET, 0x301, 9, only)


@pytest.mark.parametrize("at", [0, 20, 22, 24, 26, 28])
def test_lengths_that_lead_outside_are_refused(at: int) -> None:
    datagram = bytearray(wire.flow(_CLIENT, _SERVICE, _GONE))
    datagram[at : at + 2] = b"\xff\xff" if at % 4 == 0 else bytes(datagram[at : at + 2])
    try:
        read_dump(bytes(datagram), Family.IPV4, _rules(Family.IPV4))
    except ValueError:
        return
    assert at % 4, "a length beyond the end was believed"


@pytest.mark.parametrize("family", list(Family))
def test_all_flows_are_listed_with_what_the_kernel_counts(family: Family) -> None:
    client, service, gone, good = _ENDS[family]
    counters = wire.attribute(
        9, wire.attribute(1, bytes(7) + b"\x02") + wire.attribute(2, struct.pack(">Q", 5_000_000_000)), nested=True
    )
    counters += wire.attribute(10, wire.attribute(2, struct.pack(">Q", 77)), nested=True)
    counters += wire.attribute(20, wire.attribute(1, struct.pack(">Q", 1_700_000_000_500_000_000)), nested=True)
    plain = wire.flow(client, service, gone)
    counted = wire.flow(client, service, good)
    counted = struct.pack("=I", len(counted) + len(counters)) + counted[4:] + counters
    flows, read = read_flows(plain + counted + wire.done(), family)
    assert (read.seen, read.done, read.error) == (2, True, 0)
    assert [(f.client, f.destination, f.answering, f.returning) for f in flows] == [
        (_packed(client), _packed(service), _packed(by), _packed(client)) for by in (gone, good)
    ]
    assert [(f.sent, f.received, f.began, f.answered) for f in flows] == [
        (None, None, 0.0, True),
        (5_000_000_000, 77, 1_700_000_000.5, True),
    ]
    with pytest.raises(ValueError, match="a message of"):
        read_flows(plain[:-4], family)
    assert read_flows(wire.done(errno.EPERM), family)[1].error == errno.EPERM
