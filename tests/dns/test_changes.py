"""A running server follows the API: T042-T045, T084, T104, T105, and nothing stale survives in any worker's cache."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import dns.message
import dns.rcode
import pytest

from kproxy.dns.compile import compile_zone
from kproxy.dns.settings import DnsSettings
from kproxy.model.events import Applied, Event, Removed
from kproxy.model.objects import Kind
from kproxy.model.snapshot import fold
from kproxy.watch.decode import decode
from tests.support.dns_worker import Workers
from tests.support.queries import SERIAL, absolute, snapshot_of
from tests.support.query_objects import external, namespace, service, slices

SETTINGS = DnsSettings(own_addresses=("10.96.0.10",))


@dataclass
class Cluster:
    """The objects of set C, two workers, and the way from one to the other."""

    workers: Workers

    def __post_init__(self) -> None:
        self.snapshot = snapshot_of("C")
        self.zone = compile_zone(self.snapshot, SETTINGS, serial=SERIAL)
        self.workers.publish(self.zone)

    def apply(self, *manifests: dict[str, Any]) -> None:
        self._change([Applied(decode(Kind(m["kind"]), m)) for m in manifests])

    def remove(self, *manifests: dict[str, Any]) -> None:
        self._change([Removed(decode(Kind(m["kind"]), m).key) for m in manifests])

    def _change(self, events: list[Event]) -> None:
        self.snapshot = fold(self.snapshot, events)
        self.zone = compile_zone(self.snapshot, SETTINGS, self.zone, serial=SERIAL)
        self.workers.publish(self.zone)

    def ask(self, name: str, qtype: str = "A") -> list[str]:
        """Data of the answer, or the rcode; from both workers, by as many sockets, and the same from all."""
        query = dns.message.make_query(absolute(name), qtype).to_wire()
        seen = set()
        for _ in range(16):  # the kernel chooses a worker by the client's port
            reply = self.workers.udp(query)
            assert reply is not None
            message = dns.message.from_wire(reply)
            data = sorted(rdata.to_text() for rrset in message.answer for rdata in rrset)
            seen.add(tuple(data) if data else (dns.rcode.to_text(message.rcode()),))
        assert len(seen) == 1, f"workers disagree: {seen}"
        return list(seen.pop())


@pytest.fixture(scope="module")
def workers() -> Iterator[Workers]:
    with Workers(SETTINGS, count=2) as found:
        yield found


@pytest.fixture
def cluster(workers: Workers) -> Cluster:
    return Cluster(workers)


NEW = service("test-1/new-svc", "10.96.0.222", "http/tcp/80")


def test_t042_t043_t044_a_service_comes_and_goes(cluster: Cluster) -> None:
    assert cluster.ask("new-svc.test-1.svc") == ["NXDOMAIN"]
    assert cluster.ask("222.0.96.10.in-addr.arpa", "SOA") != ["NOERROR"]
    cluster.apply(NEW)
    assert cluster.ask("new-svc.test-1.svc") == ["10.96.0.222"]
    assert cluster.ask("222.0.96.10.in-addr.arpa", "PTR") == ["new-svc.test-1.svc.cluster.local."]
    assert cluster.ask("172-17-0-222.new-svc.test-1.svc") == ["NXDOMAIN"]
    endpoints = slices("test-1/new-svc", "172.17.0.222", "http/tcp/80")
    cluster.apply(*endpoints)
    assert cluster.ask("172-17-0-222.new-svc.test-1.svc") == ["172.17.0.222"]
    cluster.remove(NEW, *endpoints)
    assert cluster.ask("new-svc.test-1.svc") == ["NXDOMAIN"]
    assert cluster.ask("172-17-0-222.new-svc.test-1.svc") == ["NXDOMAIN"]


def test_t045_a_second_family(cluster: Cluster) -> None:
    cluster.apply(NEW)
    assert cluster.ask("new-svc.test-1.svc", "AAAA") == ["NOERROR"]
    cluster.apply(service("test-1/new-svc", "10.96.0.222 fd00:96::222", "http/tcp/80"))
    assert cluster.ask("new-svc.test-1.svc", "AAAA") == ["fd00:96::222"]
    assert cluster.ask("new-svc.test-1.svc") == ["10.96.0.222"]


def test_t084_a_statefulset_pod_becomes_ready(cluster: Cluster) -> None:
    name = "db-0.db.test-1.svc"
    cluster.apply(
        service("test-1/db", "None", "sql/tcp/5432"), *slices("test-1/db", "172.17.9.1=db-0!", "sql/tcp/5432")
    )
    assert cluster.ask(name) == ["NXDOMAIN"]
    cluster.apply(*slices("test-1/db", "172.17.9.1=db-0", "sql/tcp/5432"))
    assert cluster.ask(name) == ["172.17.9.1"]
    assert cluster.ask("_sql._tcp.db.test-1.svc", "SRV") == ["0 100 5432 db-0.db.test-1.svc.cluster.local."]


def test_t104_t105_an_external_name_changes(cluster: Cluster) -> None:
    name = "alias.test-1.svc"
    cluster.apply(external("test-1/alias", "foo.example.com"))
    assert cluster.ask(name, "CNAME") == ["foo.example.com."]
    cluster.apply(external("test-1/alias", "bar.example.com"))
    assert cluster.ask(name, "CNAME") == ["bar.example.com."]
    cluster.apply(service("test-1/alias", "10.96.0.77", "http/tcp/80"))
    assert cluster.ask(name) == ["10.96.0.77"]
    assert cluster.ask(name, "CNAME") == ["NOERROR"]


def test_a_chain_follows_its_target(cluster: Cluster) -> None:
    cluster.apply(external("test-1/alias", "svc-1-a.test-1.svc.cluster.local"))
    before = ["10.96.0.100", "svc-1-a.test-1.svc.cluster.local."]
    assert cluster.ask("alias.test-1.svc") == before
    cluster.apply(service("test-1/svc-1-a", "10.96.0.101", "http/tcp/80"))
    assert cluster.ask("alias.test-1.svc") == ["10.96.0.101", "svc-1-a.test-1.svc.cluster.local."]


def test_a_namespace_goes_and_takes_its_names(cluster: Cluster) -> None:
    assert cluster.ask("svc-1-a.test-1.svc") == ["10.96.0.100"]
    cluster.remove(namespace("test-1"))
    assert cluster.ask("svc-1-a.test-1.svc") == ["NXDOMAIN"]
    assert cluster.ask("10-1-1-1.test-1.pod") == ["NXDOMAIN"]
    cluster.apply(namespace("test-1"))
    assert cluster.ask("svc-1-a.test-1.svc") == ["10.96.0.100"]


def test_the_name_server_follows_its_service(cluster: Cluster) -> None:
    assert cluster.ask("cluster.local", "NS") == ["kube-dns.kube-system.svc.cluster.local."]
    cluster.remove(service("kube-system/kube-dns", "10.96.0.10"))
    assert cluster.ask("cluster.local", "NS") == ["ns.dns.cluster.local."]


def test_a_thousand_changes_at_once_arrive_whole(cluster: Cluster) -> None:
    many = [service(f"test-1/many-{i}", f"10.97.{i // 200}.{i % 200 + 1}", "http/tcp/80") for i in range(1500)]
    cluster.apply(*many)
    assert cluster.ask("many-0.test-1.svc") == ["10.97.0.1"]
    assert cluster.ask("many-1499.test-1.svc") == ["10.97.7.100"]
    assert cluster.ask("svc-1-a.test-1.svc") == ["10.96.0.100"]
