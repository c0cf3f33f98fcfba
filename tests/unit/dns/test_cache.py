"""What is remembered, for how long, and how much of it."""

from __future__ import annotations

import dns.edns
import dns.message
import pytest

from kproxy.dns.answer import Outcome, respond
from kproxy.dns.cache import AnswerCache
from kproxy.dns.names import steady
from kproxy.dns.settings import DnsSettings
from kproxy.dns.wire import Transport
from tests.support.queries import absolute, zone_of

ZONE = zone_of("U", DnsSettings(own_addresses=("10.0.0.10",)))
SVC1, HDLS1 = b"\x04svc1\x06testns", b"\x09hdlsprtls\x06testns"


def query(name: str, qtype: str = "A", **more: object) -> bytes:
    return dns.message.make_query(absolute(name), qtype, **more).to_wire()  # type: ignore[arg-type]


def store(cache: AnswerCache, data: bytes) -> bytes:
    outcome = respond(ZONE, data, Transport.UDP)
    assert isinstance(outcome, Outcome)
    cache.store(data, outcome)
    return data[2:]


def test_positive_answers_go_with_their_service_and_all_others_with_any_change() -> None:
    cache = AnswerCache()
    svc1 = [store(cache, query("svc1.testns.svc")), store(cache, query("_http._tcp.svc1.testns.svc", "SRV"))]
    hdls1 = store(cache, query("hdlsprtls.testns.svc"))
    fleeting = [
        store(cache, query("svc0.testns.svc")),
        store(cache, query("svc1.testns.svc", "AAAA")),
        store(cache, query("1.0.0.10.in-addr.arpa", "PTR")),
        store(cache, query("cluster.local", "NS")),
        store(cache, query("cluster.local", "SOA")),
        store(cache, query("external-to-service.testns.svc")),
        store(cache, query("10-1-1-1.testns.pod")),
    ]
    assert set(cache.lasting) == {*svc1, hdls1} and set(cache.fleeting) == set(fleeting)
    # An endpoint of svc1 comes or goes: that is nothing to its own address, and something to its SRV records.
    assert cache.forget([SVC1]) == [svc1[1]] and set(cache.lasting) == {svc1[0], hdls1} and not cache.fleeting
    assert cache.forget([SVC1, steady(SVC1)]) == [svc1[0]] and set(cache.lasting) == {hdls1}
    assert cache.forget([HDLS1]) == [hdls1] and not cache.lasting
    cache.forget([HDLS1, b"\x01x\x01y"])


@pytest.mark.parametrize(
    "data",
    [
        query("SVC1.testns.svc"),
        query("svc1.testns.svc", options=[dns.edns.CookieOption(b"12345678", b"")]),
        query("svc1.testns.svc") + b"x",
        query("svc1.testns.svc", rdclass="CH"),
        query("svc1.testns.svc", use_edns=1),
        b"\0\0\1\0\0\2" + b"\0" * 6,
    ],
    ids=["mixed-case", "cookie", "garbage", "class", "version", "malformed"],
)
def test_what_will_hardly_come_again_is_not_kept(data: bytes) -> None:
    cache = AnswerCache()
    store(cache, data)
    assert not cache.lasting and not cache.fleeting


def test_queries_that_differ_in_flags_or_edns_are_different() -> None:
    cache = AnswerCache()
    plain = query("svc1.testns.svc")
    keys = {
        store(cache, plain),
        store(cache, plain[:2] + b"\0" + plain[3:]),
        store(cache, query("svc1.testns.svc", use_edns=0, payload=512)),
        store(cache, query("svc1.testns.svc", use_edns=0, payload=1232)),
        store(cache, query("svc1.testns.svc", use_edns=0, payload=1232, want_dnssec=True)),
    }
    assert len(cache.lasting) == len(keys) == 5


def test_both_halves_are_bounded_in_entries_and_octets() -> None:
    for bounds in ({"entries": 50, "octets": 1 << 20}, {"entries": 1000, "octets": 5000}):
        cache = AnswerCache(**bounds)
        for number in range(600):
            store(cache, query(f"no-{number}.testns.svc"))
            store(cache, query("svc1.testns.svc", use_edns=0, payload=512 + number % 700))
            for half in (cache.fleeting, cache.lasting):
                assert len(half) <= bounds["entries"]
                assert sum(len(k) + len(v[0]) for k, v in half.items()) <= bounds["octets"]
        assert cache.fleeting and cache.lasting


def first_address(reply: bytes) -> str:
    return dns.message.from_wire(reply).answer[0][0].to_text()


def asked(cache: AnswerCache, data: bytes) -> str:
    kept = cache.next_order(data[2:])
    if kept is not None:
        return first_address(data[:2] + kept[0])
    outcome = respond(ZONE, data, Transport.UDP, cache.turn_to_make(data[2:]))
    assert isinstance(outcome, Outcome)
    cache.store(data, outcome)
    return first_address(outcome.reply)


def test_several_addresses_take_turns_in_being_the_first() -> None:
    cache, data = AnswerCache(), query("hdls1.testns.svc")
    firsts = [asked(cache, data) for _ in range(40)]
    assert {first: firsts.count(first) for first in firsts} == dict.fromkeys(
        ("172.0.0.2", "172.0.0.3", "172.0.0.4", "172.0.0.5"), 10
    )
    cache.forget([b"\x05hdls1\x06testns"])
    assert cache.next_order(data[2:]) is None and cache.turn_to_make(data[2:]) == 0


def test_more_addresses_than_orders_are_spread_evenly() -> None:
    zone = zone_of("big", DnsSettings())
    cache, data = AnswerCache(), query("big.testns.svc", use_edns=0, payload=1232)
    firsts = set()
    for _ in range(100):
        outcome = respond(zone, data, Transport.UDP, cache.turn_to_make(data[2:]))
        assert isinstance(outcome, Outcome)
        if cache.next_order(data[2:]) is not None:
            break
        firsts.add(first_address(outcome.reply))
        cache.store(data, outcome)
    assert len(firsts) == 32 and {int(first.split(".")[2]) for first in firsts} == {0, 1, 2, 3}
