"""The search path over sockets: pods of several namespaces ask one worker from their own addresses (rows T230-T244)."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import dns.message
import dns.rcode
import dns.rdatatype
import pytest

from kproxy.dns.channel import About
from kproxy.dns.clients import PodView
from kproxy.dns.resolver import wire_searches
from kproxy.dns.savings import saved_by_pod
from kproxy.dns.settings import DnsSettings
from kproxy.dns.zone import RecordKind, ServiceRecords, ZoneDelta, with_changes
from tests.support.dns_worker import Outside, Step, Workers, failing, framed, missing, read_frame, records, wait_until
from tests.support.queries import zone_of

nothing = records()
FIRST = "test-1.svc.cluster.local."
POD_1, ALSO_1, POD_2, PLAIN, NODE = "127.0.1.1", "127.0.1.11", "127.0.1.2", "127.0.1.9", "127.0.1.50"
HOST = ("internal",)


def view(
    address: str, namespace: str, host: Sequence[str] = HOST, *, name: str = "", host_network: bool = False
) -> PodView:
    """A pod of a namespace, with the list that its kubelet gives it."""
    searches = wire_searches((f"{namespace}.svc.cluster.local", "svc.cluster.local", "cluster.local", *host))
    return PodView(address=address, name=f"{namespace}/{name or 'pod'}", searches=searches, host_network=host_network)


PODS = (
    view(POD_1, "test-1"),
    view(ALSO_1, "test-1", name="also"),
    view(POD_2, "test-2"),
    view(NODE, "test-1", name="host", host_network=True),
)


@pytest.fixture(scope="module")
def outside() -> Iterator[Outside]:
    with Outside() as server:
        yield server


@pytest.fixture(scope="module")
def running(outside: Outside) -> Iterator[Workers]:
    settings = DnsSettings(upstreams=(outside.upstream,), own_addresses=("10.96.0.10",))
    with Workers(settings, address="127.0.0.77") as workers:
        workers.publish(zone_of("C", settings))
        yield workers


@pytest.fixture
def worker(running: Workers, outside: Outside) -> Workers:
    outside.says.clear()
    outside.says[("foo.example.net.", "A")] = records("foo.example.net. A 10.10.10.11")
    outside.says[("foo.example.net.", "AAAA")] = nothing
    outside.says[("web.internal.", "A")] = records("web.internal. A 192.0.2.1")
    outside.says[("web.internal.", "AAAA")] = nothing
    know(running, PODS)
    outside.seen.clear()
    return running


def know(workers: Workers, pods: Sequence[PodView]) -> None:
    """Tells the workers of pods, and waits until they have heard: a question goes the same way behind it."""
    publisher = workers.publisher
    assert publisher is not None
    workers.publisher_call(lambda one: one.tell(About(networks=("127.0.0.0/8",), pods=tuple(pods))))
    query = dns.message.make_query("cluster.local.", "SOA").to_wire()
    assert workers.call(publisher.question(POD_1, query, walk=False)) is not None


def ask(workers: Workers, source: str, name: str, qtype: str = "A") -> str:
    """rcode and answer, as a client at `source` gets them over UDP."""
    query = dns.message.make_query(name, qtype)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(5)
        sock.bind((source, 0))
        sock.connect(workers.address)
        sock.send(query.to_wire())
        reply = dns.message.from_wire(sock.recv(65535))
    assert reply.id == query.id and reply.question == query.question
    lines = [f"{r.name} {dns.rdatatype.to_text(r.rdtype)} {d.to_text()}" for r in reply.answer for d in r]
    return "; ".join([dns.rcode.to_text(reply.rcode()), *lines])


FQDN = "svc-1-a.test-1.svc.cluster.local. A 10.96.0.100"
FOO = f"NOERROR; foo.example.net.{FIRST} CNAME foo.example.net.; foo.example.net. A 10.10.10.11"
ROWS = [
    ("T230", "svc-1-a", "A", f"NOERROR; {FQDN}"),
    ("T231", "svc-1-a.test-1", "A", f"NOERROR; svc-1-a.test-1.{FIRST} CNAME svc-1-a.{FIRST}; {FQDN}"),
    ("T232", "svc-1-a.test-1.svc", "A", f"NOERROR; svc-1-a.test-1.svc.{FIRST} CNAME svc-1-a.{FIRST}; {FQDN}"),
    ("T233", f"svc-1-a.{FIRST[:-1]}", "A", f"NOERROR; svc-1-a.{FIRST}{FIRST} CNAME svc-1-a.{FIRST}; {FQDN}"),
    ("T234", "foo.example.net", "A", FOO),
    ("T235", "nosuch.example.net", "A", "NXDOMAIN"),
    ("T236", "foo.example.net", "AAAA", "NOERROR"),
    ("suffix", "web", "A", f"NOERROR; web.{FIRST} CNAME web.internal.; web.internal. A 192.0.2.1"),
    ("family", "svc-1-a.test-1", "AAAA", "NOERROR"),
]


@pytest.mark.parametrize(("row", "base", "qtype", "expected"), ROWS)
def test_rows(worker: Workers, row: str, base: str, qtype: str, expected: str) -> None:
    name = f"{base}.{FIRST}"
    for _ in range(3):  # asked of somebody, remembered by upstream's reply, remembered whole
        assert ask(worker, POD_1, name, qtype) == expected
    assert ask(worker, ALSO_1, name, qtype) == expected


def test_t237_t238_t239_what_is_not_walked(worker: Workers) -> None:
    assert ask(worker, POD_1, "foo.example.net.") == "NOERROR; foo.example.net. A 10.10.10.11"
    assert ask(worker, POD_1, FIRST) == "NOERROR"
    for _ in range(2):
        assert ask(worker, PLAIN, f"foo.example.net.{FIRST}") == "NXDOMAIN"
        assert ask(worker, POD_2, f"foo.example.net.{FIRST}") == "NXDOMAIN", "another namespace's list"
        assert ask(worker, POD_1, f"foo.example.net.{FIRST}") == FOO
    assert ask(worker, NODE, f"foo.example.net.{FIRST}") == FOO, "a pod on the node's network, told by its namespace"
    assert ask(worker, NODE, "foo.example.net.test-2.svc.cluster.local.") == "NXDOMAIN"


def test_one_question_for_each_family_and_none_of_the_clusters_names(worker: Workers, outside: Outside) -> None:
    know(worker, PODS)
    outside.says[("once.example.net.", "A")] = records("once.example.net. A 10.10.10.12")
    for qtype in ("A", "AAAA"):
        ask(worker, POD_1, f"once.example.net.{FIRST}", qtype)
    assert sorted(set(outside.seen)) == [
        ("udp", "once.example.net.", "A"), ("udp", "once.example.net.", "AAAA"),
        ("udp", "once.example.net.internal.", "A"), ("udp", "once.example.net.internal.", "AAAA"),
    ]  # fmt: skip
    assert len(outside.seen) == 4, "what the other family needed is remembered"


def test_t243_two_pods_ask_the_same_short_name(worker: Workers) -> None:
    for _ in range(2):
        assert ask(worker, POD_1, "svc-c.test-1.svc.cluster.local.").endswith("10.96.0.115")
        assert ask(worker, POD_2, "svc-c.test-2.svc.cluster.local.").endswith("10.96.0.120")
        assert ask(worker, POD_2, "svc-1-a.test-2.svc.cluster.local.") == "NXDOMAIN"


def test_t244_an_address_with_a_new_owner(worker: Workers) -> None:
    new = "foo.example.net.test-2.svc.cluster.local."
    assert ask(worker, POD_1, f"foo.example.net.{FIRST}") == FOO
    assert ask(worker, POD_1, new) == "NXDOMAIN"
    know(worker, (view(POD_1, "test-2"),))
    assert ask(worker, POD_1, new).endswith("A 10.10.10.11"), "from the first query on"
    assert ask(worker, POD_1, f"foo.example.net.{FIRST}") == "NXDOMAIN", "nothing of the old owner's is left"


def test_a_service_that_comes_takes_its_name_back_from_the_outside(worker: Workers, outside: Outside) -> None:
    outside.says[("late.test-1.", "A")] = records("late.test-1. A 203.0.113.1")
    settings, name = worker.settings, f"late.test-1.{FIRST}"
    zone = zone_of("C", settings)
    for _ in range(2):
        assert ask(worker, POD_1, name).endswith("203.0.113.1")
    key = b"\x04late\x06test-1"
    late = ServiceRecords(key, RecordKind.CLUSTER, (b"\x0a\x60\0\x63",))
    worker.publish(with_changes(zone, ZoneDelta(serial=zone.serial + 1, synced=True, changed=(late,))))
    assert ask(worker, POD_1, name).endswith("late.test-1.svc.cluster.local. A 10.96.0.99")
    worker.publish(zone)
    assert ask(worker, POD_1, name).endswith("203.0.113.1")


class Wild(dict[tuple[str, str], Step]):
    """What the outside says, with a wildcard A record below corp.test."""

    def get(self, key: tuple[str, str], default: Any = None) -> Any:
        """The step of a question."""
        if key not in self and key[0].endswith(".corp.test."):
            return records(f"{key[0]} A 198.51.100.1") if key[1] == "A" else nothing
        return super().get(key, default)


def test_complaint_15_a_wildcard_takes_no_name(worker: Workers, outside: Outside) -> None:
    know(worker, (view(POD_1, "test-1", ("corp.test",)),))
    outside.says = Wild(outside.says)
    outside.says[("own.corp.test.", "A")] = records("own.corp.test. A 192.0.2.7")
    for _ in range(2):
        assert ask(worker, POD_1, f"foo.example.net.{FIRST}") == FOO
        assert ask(worker, POD_1, f"own.{FIRST}").endswith("own.corp.test. A 192.0.2.7")
    assert ask(worker, POD_1, f"nosuch.{FIRST}") == "NXDOMAIN", "who means the wildcard asks for it by itself"
    assert ask(worker, POD_1, "nosuch.corp.test.").endswith("198.51.100.1")
    outside.says = dict(outside.says)


def test_an_upstream_that_fails_at_a_suffix_does_not_hide_the_name(worker: Workers, outside: Outside) -> None:
    for kind in ("A", "AAAA"):
        outside.says[("bar.example.net.internal.", kind)] = failing
        outside.says[("lost.example.net.internal.", kind)] = failing
        outside.says[("lost.example.net.", kind)] = missing
    outside.says[("bar.example.net.", "A")] = records("bar.example.net. A 10.10.10.13")
    assert ask(worker, POD_1, f"bar.example.net.{FIRST}").endswith("10.10.10.13")
    assert ask(worker, POD_1, f"lost.example.net.{FIRST}") == "SERVFAIL"


def test_over_tcp_as_over_udp(worker: Workers) -> None:
    query = dns.message.make_query(f"foo.example.net.{FIRST}", "A").to_wire()
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        sock.settimeout(5)
        sock.bind((POD_1, 0))
        sock.connect(worker.address)
        sock.sendall(framed(query) * 2)
        replies = [dns.message.from_wire(read_frame(sock)) for _ in range(2)]
    assert [[str(rrset.name) for rrset in reply.answer] for reply in replies] == [
        [f"foo.example.net.{FIRST}", "foo.example.net."]
    ] * 2


def test_a_flood_of_new_names_is_walked_in_part_and_the_rest_left_to_the_client(
    worker: Workers, outside: Outside
) -> None:
    """P30: a pod that asks for thousands of missing names makes neither this server nor upstream ask for each."""
    late = view("127.0.1.13", "test-1", name="flooding")
    know(worker, (*PODS, late))
    wanted, began = 600, time.monotonic()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(5)
        sock.bind((late.address, 0))
        sock.connect(worker.address)
        heard = []
        for start in range(0, wanted, 50):
            for n in range(start, start + 50):
                sock.send(dns.message.make_query(f"flood-{n}.example.net.{FIRST}", "A").to_wire())
            heard += [dns.message.from_wire(sock.recv(4096)).rcode() for _ in range(50)]
    assert heard == [dns.rcode.NXDOMAIN] * wanted
    walked = {name for _, name, _ in outside.seen if name.startswith("flood-") and name.endswith(".example.net.")}
    # A pace, and what may go ahead of it: on a machine so slow that the names come no faster, all are walked.
    allowed = 400 + 200 * (time.monotonic() - began)
    assert 100 < len(walked) <= allowed and (len(walked) < wanted or allowed > wanted)
    assert ask(worker, POD_1, f"foo.example.net.{FIRST}") == FOO, "other pods' names are walked as ever"
    know(worker, PODS)


def test_the_walk_can_be_switched_off(worker: Workers) -> None:
    zone, name = zone_of("C", worker.settings), f"foo.example.net.{FIRST}"
    assert ask(worker, POD_1, name) == FOO
    worker.publish(zone, settings=replace(worker.settings, search_path=False))
    assert ask(worker, POD_1, name) == "NXDOMAIN"
    worker.publish(zone, settings=worker.settings)
    assert ask(worker, POD_1, name) == FOO


def test_complaint_1_what_is_saved_is_counted_by_pod(worker: Workers) -> None:
    publisher = worker.publisher
    assert publisher is not None
    late = view("127.0.1.12", "test-1", name="late")
    know(worker, (*PODS, late))
    for _ in range(5):
        ask(worker, late.address, f"foo.example.net.{FIRST}")
    ask(worker, late.address, f"web.{FIRST}")
    ask(worker, late.address, f"svc-1-a.{FIRST}")
    wait_until(lambda: saved_by_pod(publisher.counters()).get("test-1/late") == 5 * 4 + 3, "the savings are told")
    know(worker, PODS)
    wait_until(lambda: "test-1/late" not in saved_by_pod(publisher.counters()), "a pod that is gone is forgotten")
