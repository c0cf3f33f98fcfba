"""Answers as records and as lines of the `log` directive; who is refused, and how often."""

from __future__ import annotations

from collections import Counter

import dns.message
import dns.rrset
import pytest

from kproxy.dns.records import class_of, line, question, seen
from kproxy.dns.refusing import REFUSALS_PER_S, Strangers
from tests.support.dns_messages import MALFORMED, message, opt
from tests.support.dns_messages import question as asked

QUERY = message(asked() + opt(1232, flags=0x8000), counts=(1, 0, 0, 1), ident=0x0102)


def record(query: bytes = QUERY, *, rcode: int = 0, client: str = "10.0.0.5") -> object:
    reply = dns.message.make_response(dns.message.from_wire(query))
    reply.set_rcode(rcode)
    if rcode == 3:
        reply.authority.append(dns.rrset.from_text("cluster.local.", 5, "IN", "SOA", "ns.dns. a. 1 2 3 4 5"))
    return seen(
        query,
        reply.to_wire(),
        at=1.0,
        client=client,
        port=4711,
        pod="shop/web-0",
        duration_s=0.000123,
        how="zone",
        proto="udp",
    )


def test_the_common_line_is_that_of_coredns() -> None:
    one = record()
    assert line(one, "{common}") == (  # type: ignore[arg-type]
        '10.0.0.5:4711 - 258 "A IN svc1.testns.svc.cluster.local. udp 58 true 1232" NOERROR qr,rd 58 0.000123000s'
    )


def test_ipv6_clients_stand_in_brackets_and_unknown_words_stay() -> None:
    assert line(record(client="fd00::1"), "{remote} {port} {nonsense} {/pod}") == "[fd00::1] 4711 {nonsense} shop/web-0"  # type: ignore[arg-type]


@pytest.mark.parametrize(("rcode", "word"), [(0, "success"), (3, "denial"), (2, "error"), (5, "error")])
def test_classes(rcode: int, word: str) -> None:
    assert class_of(record(rcode=rcode)) == word  # type: ignore[arg-type]


@pytest.mark.parametrize("case", [*MALFORMED, "", "header"])
def test_any_octets_make_a_record_of_printable_words(case: str) -> None:
    data = MALFORMED.get(case, b"\0" * 12 if case else b"")
    reply = (data[:2] + b"\x81\x01" + bytes(8)).ljust(12, b"\0")
    one = seen(data, reply, at=0, client="", port=0, pod="", duration_s=0, how="zone", proto="udp")
    assert one.rcode == ("FORMERR" if data else "NOERROR") and line(one, "{combined}").isprintable()


def test_names_are_escaped() -> None:
    data = message(b'\x07a\n\x1b"\\.\xff\0\0\1\0\1')
    assert question(data) == ("a\\010\\027\\034\\092\\.\\255.", 1, 1)


def test_refusals_are_no_longer_than_queries_and_not_many() -> None:
    counters: Counter[str] = Counter()
    strangers = Strangers(counters)
    replies = [strangers.refusal(QUERY, f"203.0.113.{number % 200}") for number in range(10 * REFUSALS_PER_S)]
    given = [reply for reply in replies if reply is not None]
    assert REFUSALS_PER_S <= len(given) < 3 * REFUSALS_PER_S and all(len(reply) <= len(QUERY) for reply in given)
    assert dns.message.from_wire(given[0]).rcode() == 5 and counters["refused_clients"] == len(replies)
    assert all(strangers.refusal(data, "203.0.113.1") is None for data in MALFORMED.values())


def test_who_sends_too_much_is_told_once_a_minute_with_all_that_was_dropped() -> None:
    strangers = Strangers(Counter())
    told: list[tuple[str, int]] = []
    strangers.notice = lambda source, dropped: told.append((source, dropped))
    for _ in range(50):
        strangers.limited({"10.0.0.1": 7})
    strangers.limited({"10.0.0.2": 1})
    assert told == [("10.0.0.1", 7), ("10.0.0.2", 1)]
