"""A worker with several `kubernetes` directives: every block answers from its own zone, and a change reaches all of them."""

from __future__ import annotations

from collections.abc import Iterator

import dns.message
import dns.rcode
import pytest

from kproxy.dns import names
from kproxy.dns.blocks import Kubernetes, ServerBlock
from kproxy.dns.settings import DnsSettings
from kproxy.dns.zone import Group, Loading, Member, Port, RecordKind, ServiceRecords, Zone, ZoneDelta
from tests.peers.canned import CannedApi, changing_api
from tests.support.barrage import Barrage
from tests.support.dns_worker import Workers, wait_until
from tests.support.query_objects import FIXTURES, labelled, namespace, service
from tests.support.watching import watching

BLOCKS = (
    ServerBlock(zones=("cluster.local",), kubernetes=Kubernetes()),
    ServerBlock(zones=("other.test",), kubernetes=Kubernetes(zones=("other.test",), ttl=30)),
    ServerBlock(zones=("front.test",), kubernetes=Kubernetes(zones=("front.test",), labels="tier in (front)")),
    ServerBlock(zones=("red.test",), kubernetes=Kubernetes(zones=("red.test",), namespace_labels="team=red")),
)


@pytest.fixture(scope="module")
def api() -> Iterator[CannedApi]:
    with changing_api(FIXTURES["U"]()) as found:
        yield found


@pytest.fixture(scope="module")
def worker(api: CannedApi) -> Iterator[Workers]:
    with Workers(DnsSettings()) as workers, watching(workers, api.url, DnsSettings(blocks=BLOCKS)):
        yield workers


def said(worker: Workers, name: str) -> tuple[str, int]:
    """Address, or the rcode, and TTL."""
    reply = worker.udp(dns.message.make_query(name, "A").to_wire())
    assert reply is not None
    message = dns.message.from_wire(reply)
    if not message.answer:
        return dns.rcode.to_text(message.rcode()), 0
    return message.answer[0][0].to_text(), message.answer[0].ttl


def test_every_block_has_its_own_zone(worker: Workers) -> None:
    assert said(worker, "svc1.testns.svc.cluster.local") == ("10.0.0.1", 5)
    assert said(worker, "svc1.testns.svc.other.test") == ("10.0.0.1", 30)
    assert said(worker, "svc1.testns.svc.front.test") == ("10.0.0.1", 5)
    assert said(worker, "node-port.testns.svc.front.test") == ("NXDOMAIN", 0)
    assert said(worker, "node-port.testns.svc.red.test") == ("10.0.0.6", 5)
    assert said(worker, "kubedns.kube-system.svc.red.test") == ("NXDOMAIN", 0)
    assert said(worker, "svc1.testns.svc.third.test") == ("REFUSED", 0)


def test_a_change_reaches_every_zone(worker: Workers, api: CannedApi) -> None:
    def becomes(name: str, wanted: str) -> None:
        wait_until(lambda: said(worker, name)[0] == wanted, f"{name} becomes {wanted}")

    api.apply(service("testns/node-port", "10.0.0.66", "http/tcp/80"))
    becomes("node-port.testns.svc.cluster.local", "10.0.0.66")
    becomes("node-port.testns.svc.other.test", "10.0.0.66")
    api.apply(labelled(service("testns/node-port", "10.0.0.66", "http/tcp/80"), tier="front"))
    becomes("node-port.testns.svc.front.test", "10.0.0.66")
    api.apply(namespace("testns", team="blue"))
    becomes("node-port.testns.svc.red.test", "NXDOMAIN")
    assert said(worker, "node-port.testns.svc.cluster.local")[0] == "10.0.0.66"
    api.remove(service("testns/node-port", "10.0.0.66"))
    for zone in ("cluster.local", "other.test", "front.test"):
        becomes(f"node-port.testns.svc.{zone}", "NXDOMAIN")


def large_zone(settings: DnsSettings) -> Zone:
    """10,000 Services with 50,000 endpoints."""
    loading = Loading(settings)
    ports = (Port(b"http", b"tcp", 80),)
    made = []
    for number in range(10_000):
        key = names.label(b"svc-%d" % number) + names.label(b"testns")
        addresses = [bytes((10, part, number >> 8, number & 255)) for part in range(1, 6)]
        members = tuple(Member(names.dashed(names.unpack(address)), address) for address in addresses)
        cluster = (bytes((11, 0, number >> 8, number & 255)),)
        made.append(ServiceRecords(key, RecordKind.CLUSTER, cluster, ports, (Group(ports, members),)))
    loading.add(made)
    return loading.finish(ZoneDelta(serial=1, synced=True, namespaces=frozenset({b"testns"})))


def test_fault_37_whole_zones_arrive_without_a_query_waiting_long() -> None:
    """A relist of 10,000 Services and 50,000 endpoints, three times over. The milliseconds are measured in tests/bench."""
    zones = [large_zone(DnsSettings(ttl=ttl)) for ttl in (5, 6, 7, 8)]
    queries = [
        dns.message.make_query(f"{name}.testns.svc.cluster.local", "A").to_wire() for name in ("svc-1", "svc-9999", "x")
    ]
    with Workers(DnsSettings(), address="127.0.0.5") as workers:
        workers.publish(zones[0])
        with Barrage(workers.address, queries, per_second=500, patience_s=0.5) as barrage:
            for zone in zones[1:]:
                workers.publish(zone)  # other settings: the whole zone is sent, a thousand endpoints at a time
        assert said(workers, "svc-9999.testns.svc.cluster.local") == ("11.0.39.15", 8)
    assert barrage.sent > 100 and barrage.lost == [] and set(barrage.rcodes) == {0, 3}
