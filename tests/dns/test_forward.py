"""Names that are not ours: asked upstream, believed with care, answered within the deadline (T098, T099, T208-T215)."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Iterator, Sequence

import dns.flags
import dns.message
import dns.rcode
import dnslib
import pytest

from kproxy.dns.settings import DnsSettings
from tests.support.dns_worker import Outside, Step, Workers, failing, missing, records, silent
from tests.support.queries import absolute, zone_of

BASE = DnsSettings(
    reverse_zones=(), fallthrough=(), forward_deadline_s=1.5, forward_attempt_s=0.3, forward_in_flight=50
)
A = records("www.example.com. A 192.0.2.80")


@pytest.fixture
def outside() -> Iterator[Outside]:
    with Outside() as server:
        yield server


@pytest.fixture
def second() -> Iterator[Outside]:
    with Outside(address="127.0.0.10") as server:
        yield server


@pytest.fixture
def worker(outside: Outside, second: Outside) -> Iterator[Workers]:
    settings = dataclasses.replace(BASE, upstreams=(outside.upstream, second.upstream))
    with Workers(settings) as workers:
        workers.publish(zone_of("U", settings))
        yield workers


def ask(worker: Workers, name: str, qtype: str = "A", *, tcp: bool = False, edns: bool = True) -> dns.message.Message:
    query = dns.message.make_query(absolute(name), qtype, use_edns=0 if edns else -1)
    reply = worker.tcp(query.to_wire()) if tcp else worker.udp(query.to_wire())
    assert reply is not None, "no reply"
    message = dns.message.from_wire(reply)
    assert query.is_response(message)
    assert message.flags & dns.flags.RA and not message.flags & dns.flags.AA
    return message


def texts(message: dns.message.Message) -> list[str]:
    return [line for rrset in message.answer for line in rrset.to_text().splitlines()]


def test_an_answer_is_handed_on_and_remembered(worker: Workers, outside: Outside) -> None:
    outside.says[("www.example.com.", "A")] = records(
        "www.example.com. CNAME web.example.net.", "web.example.net. A 192.0.2.80"
    )
    for _ in range(3):
        message = ask(worker, "www.example.com")
        assert [line.split()[-1] for line in texts(message)] == ["web.example.net.", "192.0.2.80"]
    assert len(outside.seen) == 1
    outside.says[("ttl.example.com.", "A")] = records("ttl.example.com. A 192.0.2.1")
    ask(worker, "ttl.example.com")
    time.sleep(1.1)
    assert 25 <= ask(worker, "ttl.example.com").answer[0].ttl < 30, (
        "no more than what it is remembered for, and it falls"
    )


def test_the_clients_spelling_is_echoed(worker: Workers, outside: Outside) -> None:
    outside.says[("www.example.com.", "A")] = A
    message = ask(worker, "WWW.exAMPle.com")
    assert message.answer[0].name.to_text() == "WWW.exAMPle.com."


def test_nxdomain_and_nodata_are_handed_on_with_their_soa(worker: Workers, outside: Outside) -> None:
    message = ask(worker, "nothing.example.com")
    assert message.rcode() == dns.rcode.NXDOMAIN and len(message.authority) == 1
    ask(worker, "nothing.example.com")
    assert len(outside.seen) == 1, "remembered, by the SOA's minimum"


def test_t098_external_name_without_target(worker: Workers, outside: Outside) -> None:
    message = ask(worker, "external.testns.svc")
    assert message.rcode() == 0
    assert [line.split(maxsplit=3)[-1] for line in texts(message)] == ["CNAME ext.interwebs.test."]


def test_t099_external_name_with_a_dead_upstream(worker: Workers, outside: Outside, second: Outside) -> None:
    for server in (outside, second):
        server.says[("ext.interwebs.test.", "A")] = silent
    message = ask(worker, "external.testns.svc")
    assert message.rcode() == dns.rcode.SERVFAIL and not message.answer


def test_t208_nobody_to_ask() -> None:
    settings = dataclasses.replace(BASE, resolv_conf=())
    with Workers(settings, address="127.0.0.4") as workers:
        assert ask(workers, "www.example.com").rcode() == dns.rcode.REFUSED
        assert ask(workers, "128.1.168.192.in-addr.arpa", "PTR").rcode() == dns.rcode.REFUSED, "T163's other half"


def test_t211_all_upstreams_silent(worker: Workers, outside: Outside, second: Outside) -> None:
    for server in (outside, second):
        server.says[("www.example.com.", "A")] = silent
    begun = time.monotonic()
    assert ask(worker, "www.example.com").rcode() == dns.rcode.SERVFAIL
    assert 1.0 < time.monotonic() - begun < 2.5
    assert len(outside.seen) == len(second.seen) == 2


@pytest.mark.parametrize("step", [silent, failing], ids=["silent", "SERVFAIL"])
def test_the_next_upstream_is_asked(worker: Workers, outside: Outside, second: Outside, step: Step) -> None:
    outside.otherwise = step
    second.says[("www.example.com.", "A")] = A
    assert texts(ask(worker, "www.example.com"))
    ask(worker, "other.example.com")
    assert [name for _, name, _ in second.seen] == ["www.example.com.", "other.example.com."]
    assert len(outside.seen) == (1 if step is silent else 2), "who says nothing is not waited for again"


def test_a_port_nobody_listens_on_costs_no_time(outside: Outside) -> None:
    outside.says[("www.example.com.", "A")] = A
    settings = dataclasses.replace(BASE, upstreams=("127.0.0.77:5311", outside.upstream))
    with Workers(settings, address="127.0.0.4") as workers:
        workers.ready()
        begun = time.monotonic()
        assert texts(ask(workers, "www.example.com"))
        assert time.monotonic() - begun < 0.25


def _altered(change: bytes, at: int) -> Step:
    def step(query: dnslib.DNSRecord) -> Sequence[bytes]:
        good = A(query)[0]
        return [good[:at] + change + good[at + len(change) :], good]

    return step


@pytest.mark.parametrize(
    "step",
    [
        _altered(b"\0\0", 0),
        _altered(b"\x01", 2),
        _altered(b"x", 13),
        _altered(b"\0\x1c", 12 + 17),
        _altered(b"\0\0", 4),
    ],
    ids=["T212-id", "not-a-response", "T213-name", "T213-type", "no-question"],
)
def test_a_wrong_reply_is_ignored_and_the_right_one_used(worker: Workers, outside: Outside, step: Step) -> None:
    outside.says[("www.example.com.", "A")] = step
    assert texts(ask(worker, "www.example.com"))[0].endswith("192.0.2.80")
    assert len(outside.seen) == 1


def test_t213_only_wrong_replies(worker: Workers, outside: Outside, second: Outside) -> None:
    for server in (outside, second):
        server.says[("www.example.com.", "A")] = lambda query: [_altered(b"x", 13)(query)[0]]
    assert ask(worker, "www.example.com").rcode() == dns.rcode.SERVFAIL


def test_a_stream_of_forgeries_makes_it_tcp(worker: Workers, outside: Outside) -> None:
    outside.says[("www.example.com.", "A")] = lambda query: [_altered(b"x", 13)(query)[0]] * 20
    outside.says_by_tcp[("www.example.com.", "A")] = A
    assert texts(ask(worker, "www.example.com"))[0].endswith("192.0.2.80")
    assert [transport for transport, *_ in outside.seen] == ["udp", "tcp"]


def test_t214_a_cut_reply_is_fetched_by_tcp(worker: Workers, outside: Outside) -> None:
    outside.says[("www.example.com.", "A")] = records(truncated=True)
    outside.says_by_tcp[("www.example.com.", "A")] = records(
        *(f"www.example.com. A 192.0.2.{i}" for i in range(1, 200))
    )
    assert len(ask(worker, "www.example.com", tcp=True).answer[0]) == 199
    short = ask(worker, "www.example.com", edns=False)
    assert short.flags & dns.flags.TC and 20 < len(short.answer[0]) < 30


def test_records_that_nobody_asked_for_are_dropped(worker: Workers, outside: Outside) -> None:
    outside.says[("www.example.com.", "A")] = records(
        "www.example.com. A 192.0.2.80", "bank.example.org. A 203.0.113.66", "example.com. NS ns.evil.example."
    )
    assert texts(ask(worker, "www.example.com")) == ["www.example.com. 30 IN A 192.0.2.80"]


def test_a_cname_loop_ends(worker: Workers, outside: Outside) -> None:
    outside.says[("www.example.com.", "A")] = records(
        "www.example.com. CNAME b.example.com.", "b.example.com. CNAME www.example.com."
    )
    assert len(texts(ask(worker, "www.example.com"))) == 2


def test_equal_questions_in_flight_are_one(worker: Workers, outside: Outside) -> None:
    def slowly(query: dnslib.DNSRecord) -> Sequence[bytes]:
        time.sleep(0.15)
        return A(query)

    outside.says[("www.example.com.", "A")] = slowly
    seen: list[str] = []
    threads = [threading.Thread(target=lambda: seen.extend(texts(ask(worker, "www.example.com")))) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) == 20 and len(outside.seen) == 1


def test_questions_in_flight_are_bounded(outside: Outside) -> None:
    settings = dataclasses.replace(BASE, upstreams=(outside.upstream,), forward_in_flight=3)
    for number in range(10):
        outside.says[(f"n{number}.example.com.", "A")] = silent
    with Workers(settings, address="127.0.0.4") as workers:
        workers.ready()
        took: list[float] = []

        def one(number: int) -> None:
            begun = time.monotonic()
            assert ask(workers, f"n{number}.example.com").rcode() == dns.rcode.SERVFAIL
            took.append(time.monotonic() - begun)

        threads = [threading.Thread(target=one, args=(number,)) for number in range(10)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    took.sort()
    assert took[6] < 0.3 and took[7] > 0.5, f"seven at once, three at their end: {took}"


def test_every_question_has_a_new_port_and_id(worker: Workers, outside: Outside) -> None:
    for number in range(30):
        outside.says[(f"n{number}.example.com.", "A")] = missing
        ask(worker, f"n{number}.example.com")
    assert len(outside.ports) > 25 and len(outside.ids) > 25


def test_an_upstream_that_chokes_on_edns(worker: Workers, outside: Outside) -> None:
    def old(query: dnslib.DNSRecord) -> Sequence[bytes]:
        if query.ar:
            return [dnslib.DNSRecord(dnslib.DNSHeader(id=query.header.id, qr=1, rcode=1)).pack()]
        return A(query)

    outside.says[("www.example.com.", "A")] = old
    assert texts(ask(worker, "www.example.com"))
    ask(worker, "other.example.com")
    assert len(outside.seen) == 3, "asked twice the first time, and known from then on"


def test_a_reply_that_cannot_be_read_is_a_failure(worker: Workers, outside: Outside, second: Outside) -> None:
    outside.says[("www.example.com.", "A")] = lambda query: [A(query)[0][:-2]]
    second.says[("www.example.com.", "A")] = A
    assert texts(ask(worker, "www.example.com"))


def test_names_of_the_zone_never_leave(worker: Workers, outside: Outside) -> None:
    query = dns.message.make_query("svc0.testns.svc.cluster.local.", "A").to_wire()
    worker.udp(query)
    with Workers(worker.settings, address="127.0.0.4") as unsynced:
        reply = unsynced.udp(query)
        assert reply is not None and dns.message.from_wire(reply).rcode() == dns.rcode.SERVFAIL
    assert not outside.seen
