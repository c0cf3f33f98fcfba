"""Zone transfers from a worker: T280-T285, bounded messages, and a client that does not read."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from dataclasses import replace

import dns.message
import dns.rcode
import dns.rdatatype
import pytest

from kproxy.dns.blocks import Forward, ServerBlock, Transfer
from kproxy.dns.directives import directive_of
from kproxy.dns.settings import DnsSettings
from kproxy.dns.transfer import MESSAGE
from kproxy.dns.zones import compile_zones
from tests.support.dns_worker import Workers, framed, read_frame
from tests.support.queries import OUTSIDE, SERIAL, snapshot_of, zone_of
from tests.support.transfers import fetch, query_of, records_of

FLAT = DnsSettings(reverse_zones=("10.0.0.0/8",), fallthrough=(), own_addresses=("192.0.2.1", "2001:db8::1"))


def served(*to: str, fixture: str = "U", flat: DnsSettings = FLAT) -> DnsSettings:
    transfers = (Transfer(to=to),) if to else ()
    block = ServerBlock(kubernetes=directive_of(flat), transfers=transfers, forwards=(Forward(to=(OUTSIDE,)),))
    return replace(flat, blocks=(replace(block, port=5300),))


@pytest.fixture(scope="module")
def worker() -> Iterator[Workers]:
    with Workers(FLAT) as found:
        yield found


def publish(worker: Workers, settings: DnsSettings, fixture: str = "U") -> None:
    worker.publish(*compile_zones(snapshot_of(fixture), settings, serial=SERIAL), settings=settings)


def test_t280_without_the_directive_it_is_refused(worker: Workers) -> None:
    worker.publish(zone_of("U", FLAT), settings=FLAT)
    for kind in ("AXFR", "IXFR"):
        reply = fetch(worker.address, query_of("cluster.local.", kind))
        assert [m.rcode() for m in reply] == [dns.rcode.REFUSED]
    publish(worker, served("192.0.2.0/24"))
    assert [m.rcode() for m in fetch(worker.address, query_of("cluster.local."))] == [dns.rcode.REFUSED]


def test_t281_t285_everything_once_between_two_soas(worker: Workers) -> None:
    publish(worker, served("127.0.0.0/8"))
    found = records_of(fetch(worker.address, query_of("cluster.local.")))
    assert found[0] == found[-1] and " SOA " in found[0]
    assert sum(" SOA " in text for text in found) == 2 and len(set(found)) == len(found) - 1
    assert [text for text in found if " NS " in text] == ["cluster.local. 5 NS ns.dns.cluster.local."]
    assert {text for text in found if text.startswith("ns.dns.")} == {
        "ns.dns.cluster.local. 5 A 192.0.2.1",
        "ns.dns.cluster.local. 5 AAAA 2001:db8::1",
    }
    for line in (
        "svc1.testns.svc.cluster.local. 5 A 10.0.0.1",
        "_http._tcp.svc1.testns.svc.cluster.local. 5 SRV 0 100 80 svc1.testns.svc.cluster.local.",
        "external.testns.svc.cluster.local. 5 CNAME ext.interwebs.test.",
        "hdls1.testns.svc.cluster.local. 5 A 172.0.0.2",
        "dup-name.hdls1.testns.svc.cluster.local. 5 A 172.0.0.4",
    ):
        assert line in found
    assert not [text for text in found if "orphan" in text], "its namespace does not exist"
    reverse = records_of(fetch(worker.address, query_of("10.in-addr.arpa.")))
    assert "3.0.0.10.in-addr.arpa. 5 PTR svc-dual-stack.testns.svc.cluster.local." in reverse
    assert not [text for text in reverse if " A " in text]
    part = replace(FLAT, reverse_zones=("172.0.0.0/30", "5678:abcd::/64"))
    publish(worker, served("*", flat=part))
    one = records_of(fetch(worker.address, query_of("2.0.0.172.in-addr.arpa.")))
    assert "2.0.0.172.in-addr.arpa. 5 PTR 172-0-0-2.hdls1.testns.svc.cluster.local." in one and len(one) == 4
    six = "0.0.0.0.0.0.0.0.d.c.b.a.8.7.6.5.ip6.arpa."
    found = [text.split()[3] for text in records_of(fetch(worker.address, query_of(six))) if " PTR " in text]
    assert sorted(found) == [f"5678-abcd--{n}.hdls1.testns.svc.cluster.local." for n in (1, 2)]
    part = replace(FLAT, reverse_zones=("172.0.0.0/30", "5678:abcd::/64"))
    publish(worker, served("*", flat=part))
    assert " PTR 172-0-0-2.hdls1.testns.svc" in str(
        records_of(fetch(worker.address, query_of("2.0.0.172.in-addr.arpa.")))
    )
    six = "0.0.0.0.0.0.0.0.d.c.b.a.8.7.6.5.ip6.arpa."
    found = [text.split()[3] for text in records_of(fetch(worker.address, query_of(six))) if " PTR " in text]
    assert sorted(found) == [f"5678-abcd--{n}.hdls1.testns.svc.cluster.local." for n in (1, 2)]


@pytest.mark.parametrize("name", ["example.org.", "svc.cluster.local.", "in-addr.arpa."])
def test_t282_a_zone_that_is_not_served_is_refused(worker: Workers, name: str) -> None:
    publish(worker, served("*"))
    reply = fetch(worker.address, query_of(name))
    assert len(reply) == 1 and reply[0].rcode() != dns.rcode.NOERROR and not reply[0].answer


def test_t283_t284_ixfr_is_one_soa_or_everything(worker: Workers) -> None:
    publish(worker, served("*"))
    whole = fetch(worker.address, query_of("cluster.local."))
    serial = whole[0].answer[0][0].serial
    assert len(records_of(fetch(worker.address, query_of("cluster.local.", "IXFR", serial)))) == 1
    assert records_of(fetch(worker.address, query_of("cluster.local.", "IXFR", serial - 1))) == records_of(whole)
    assert records_of(fetch(worker.address, query_of("cluster.local.", "IXFR"))) == records_of(whole)


def test_over_udp_there_is_the_soa_or_a_refusal(worker: Workers) -> None:
    publish(worker, served("*"))
    axfr, ixfr = (worker.udp(query_of("cluster.local.", kind, 1)) for kind in ("AXFR", "IXFR"))
    assert axfr is not None and dns.message.from_wire(axfr).rcode() == dns.rcode.REFUSED
    assert ixfr is not None
    answer = dns.message.from_wire(ixfr).answer
    assert [rrset.rdtype for rrset in answer] == [dns.rdatatype.SOA]


def test_messages_are_bounded_and_a_client_that_does_not_read_holds_nobody_up(worker: Workers) -> None:
    publish(worker, served("*"), "big")
    messages = fetch(worker.address, query_of("cluster.local."))
    assert len(messages) > 5
    assert max(len(m.to_wire()) for m in messages) <= MESSAGE + 100
    assert sum(" A " in text for text in records_of(messages)) >= 2 * 1000
    lazy = []
    for _ in range(5):  # each asks a hundred times and reads nothing
        sock = socket.create_connection(worker.address, timeout=5)
        sock.sendall(framed(query_of("cluster.local.")) * 100)
        lazy.append(sock)
    query = dns.message.make_query("fair.testns.svc.cluster.local.", "A", use_edns=0, payload=1232).to_wire()
    assert worker.udp(query, timeout_s=3) is not None
    assert len(fetch(worker.address, query_of("cluster.local."))) == len(messages)
    assert struct.unpack("!H", read_frame(lazy[0])[:2])[0] >= 0, "what is read goes on"
    for sock in lazy:
        sock.close()
    assert worker.udp(query) is not None
