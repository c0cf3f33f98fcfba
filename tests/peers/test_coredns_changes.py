"""CoreDNS and kproxy watch one API server while its objects change: T042-T045, T084, T104 and T105, answered alike by both."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import dns.message
import dns.rcode
import pytest

from kproxy.dns.settings import DnsSettings
from tests.peers.canned import CannedApi, changing_api
from tests.peers.test_coredns import running_coredns
from tests.support.dns_worker import Outside, Workers, wait_until
from tests.support.netns import Namespace
from tests.support.queries import ROWS, absolute
from tests.support.query_objects import FIXTURES, external, namespace, service, slices
from tests.support.watching import watching


@dataclass
class Both:
    """The API server and both programs over it."""

    api: CannedApi
    ask: dict[str, Callable[[bytes], bytes | None]]

    def answers(self, who: str, name: str, qtype: str) -> list[str]:
        """Data of the answer, or the rcode."""
        reply = self.ask[who](dns.message.make_query(absolute(name), qtype).to_wire())
        assert reply is not None
        message = dns.message.from_wire(reply)
        data = sorted(rdata.to_text() for rrset in message.answer for rdata in rrset)
        return data or [dns.rcode.to_text(message.rcode())]

    def expect(self, name: str, *wanted: str, qtype: str = "A") -> None:
        """Both come to say `wanted`."""
        for who in self.ask:
            wait_until(
                lambda who=who: self.answers(who, name, qtype) == sorted(wanted), f"{who}: {name} {qtype} is {wanted}"
            )


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Both]:
    flat = next(row.settings for row in ROWS if row.fixture == "C" and not row.options)
    with (
        Namespace.new() as space,
        space.entered(),
        Outside(),
        changing_api(FIXTURES["C"]()) as api,
        running_coredns(flat, "C", tmp_path_factory.mktemp("coredns"), server=api.url) as coredns,
        Workers(DnsSettings()) as workers,
        watching(workers, api.url, replace(flat, blocks=())),
    ):
        yield Both(api, {"CoreDNS": coredns.udp, "kproxy": workers.udp})


NEW = service("test-1/new-svc", "10.96.0.222", "http/tcp/80")


def test_t042_t043_t044_a_service_comes_and_goes(both: Both) -> None:
    both.expect("new-svc.test-1.svc", "NXDOMAIN")
    both.api.apply(NEW)
    both.expect("new-svc.test-1.svc", "10.96.0.222")
    both.expect("222.0.96.10.in-addr.arpa", "new-svc.test-1.svc.cluster.local.", qtype="PTR")
    endpoints = slices("test-1/new-svc", "172.17.0.222", "http/tcp/80")
    both.api.apply(*endpoints)
    both.expect("172-17-0-222.new-svc.test-1.svc", "172.17.0.222")
    both.api.remove(NEW, *endpoints)
    both.expect("new-svc.test-1.svc", "NXDOMAIN")
    both.expect("172-17-0-222.new-svc.test-1.svc", "NXDOMAIN")


def test_t045_a_second_family(both: Both) -> None:
    both.api.apply(NEW)
    both.expect("new-svc.test-1.svc", "NOERROR", qtype="AAAA")
    both.api.apply(service("test-1/new-svc", "10.96.0.222 fd00:96::222", "http/tcp/80"))
    both.expect("new-svc.test-1.svc", "fd00:96::222", qtype="AAAA")
    both.expect("new-svc.test-1.svc", "10.96.0.222")


def test_t084_a_statefulset_pod_becomes_ready(both: Both) -> None:
    name = "db-0.db.test-1.svc"
    both.api.apply(
        service("test-1/db", "None", "sql/tcp/5432"), *slices("test-1/db", "172.17.9.1=db-0!", "sql/tcp/5432")
    )
    both.expect(name, "NXDOMAIN")
    both.api.apply(*slices("test-1/db", "172.17.9.1=db-0", "sql/tcp/5432"))
    both.expect(name, "172.17.9.1")
    both.expect("_sql._tcp.db.test-1.svc", "0 100 5432 db-0.db.test-1.svc.cluster.local.", qtype="SRV")


def test_t104_t105_an_external_name_changes(both: Both) -> None:
    name = "alias.test-1.svc"
    both.api.apply(external("test-1/alias", "foo.example.com"))
    both.expect(name, "foo.example.com.", qtype="CNAME")
    both.api.apply(external("test-1/alias", "bar.example.com"))
    both.expect(name, "bar.example.com.", qtype="CNAME")
    both.api.apply(service("test-1/alias", "10.96.0.77", "http/tcp/80"))
    both.expect(name, "10.96.0.77")
    both.expect(name, "NOERROR", qtype="CNAME")


def test_a_namespace_goes_and_comes(both: Both) -> None:
    both.expect("svc-c.test-2.svc", "10.96.0.120")
    both.api.remove(namespace("test-2"))
    both.expect("svc-c.test-2.svc", "NXDOMAIN")
    both.api.apply(namespace("test-2"))
    both.expect("svc-c.test-2.svc", "10.96.0.120")
