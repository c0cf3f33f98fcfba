"""What is believed of an upstream's message."""

from __future__ import annotations

import dns.flags
import dns.message
import dns.rrset
import pytest

from kproxy.dns import names, upstream, wire
from kproxy.dns.answer import Forward, answer
from kproxy.dns.settings import DnsSettings
from kproxy.dns.upstream import Question, Reply
from kproxy.dns.wire import Transport
from tests.support.queries import zone_of

NAME = "www.example.com."
QUESTION = Question(names.encode(NAME), 1)


def said(*lines: str, authority: tuple[str, ...] = (), rcode: int = 0, question: Question = QUESTION) -> bytes:
    message = dns.message.make_response(dns.message.from_wire(upstream.ask(question, 7)))
    message.set_rcode(rcode)
    for section, records in ((message.answer, lines), (message.authority, authority)):
        for line in records:
            owner, ttl, kind, data = line.split(maxsplit=3)
            section.append(dns.rrset.from_text(owner, int(ttl), "IN", kind, data))
    return message.to_wire()


def read(data: bytes) -> Reply:
    reply = upstream.read(QUESTION, 7, data)
    assert reply is not None
    return reply


def finished(reply: Reply, *, name: str = NAME, ttl: int | None = None, turn: int = 0) -> dns.message.Message:
    query = dns.message.make_query(name, "A", use_edns=0).to_wire()
    forward = answer(zone_of("U", DnsSettings()), query, Transport.UDP)
    assert isinstance(forward, Forward)
    return dns.message.from_wire(upstream.finish(forward, reply, Transport.UDP, ttl=ttl, turn=turn))


def test_queries_are_what_dnspython_reads() -> None:
    message = dns.message.from_wire(upstream.ask(Question(names.encode(NAME), 28, dnssec_ok=True), 0x1234))
    assert message.id == 0x1234 and message.flags == dns.flags.RD
    assert message.question[0].to_text() == f"{NAME} IN AAAA"
    assert message.payload == 1232 and message.ednsflags & dns.flags.DO


@pytest.mark.parametrize(
    ("at", "change"),
    [(0, b"\0\0"), (2, b"\x01"), (2, b"\xa8"), (4, b"\0\2"), (13, b"x"), (30, b"\x1c"), (32, b"\3")],
)
def test_what_is_no_reply_to_this_query_is_ignored(at: int, change: bytes) -> None:
    good = said(f"{NAME} 5 A 192.0.2.1")
    assert upstream.read(QUESTION, 7, good[:at] + change + good[at + len(change) :]) is None


def test_a_chain_is_followed_and_anything_beside_it_dropped() -> None:
    reply = read(
        said(
            f"{NAME} 30 CNAME a.example.net.",
            "a.example.net. 20 CNAME B.example.org.",
            "b.example.org. 10 A 192.0.2.1",
            "c.example.org. 1 A 192.0.2.2",
            f"{NAME} 5 AAAA ::1",
        )
    )
    assert [record.rtype for record in reply.answer] == [5, 5, 1] and reply.ttl == 10
    for ttl in (None, 9):
        message = finished(reply, ttl=ttl)
        assert [rrset.to_text() for rrset in message.answer] == [
            f"{NAME} {ttl or 30} IN CNAME a.example.net.",
            f"a.example.net. {ttl or 20} IN CNAME B.example.org.",
            f"B.example.org. {ttl or 10} IN A 192.0.2.1",
        ]


def test_an_a_record_at_a_name_that_is_an_alias_is_not_believed() -> None:
    reply = read(said(f"{NAME} 30 CNAME a.example.net.", f"{NAME} 30 A 192.0.2.66"))
    assert [record.rtype for record in reply.answer] == [5]


@pytest.mark.parametrize(("ttl", "minimum", "wanted"), [(60, 10, 10), (10, 60, 10), (0, 60, 0)])
def test_negative_answers_live_as_long_as_their_soa_says(ttl: int, minimum: int, wanted: int) -> None:
    reply = read(
        said(
            authority=(f"example.com. {ttl} SOA a. b. 1 2 3 4 {minimum}", "example.com. 1 NS ns.example.com."), rcode=3
        )
    )
    assert reply.ttl == wanted and [record.rtype for record in reply.authority] == [6]
    assert read(said(rcode=3)).ttl == 0, "without SOA nothing says how long"


def test_ttls_beyond_31_bits_are_zero() -> None:
    data = bytearray(said(f"{NAME} 5 A 192.0.2.1"))
    at = data.index(b"\0\0\0\5", 12)
    data[at : at + 4] = b"\xff\xff\xff\xff"
    assert read(bytes(data)).answer[0].ttl == 0


def test_compressed_names_in_rdata_are_written_out() -> None:
    question = Question(names.encode("example.com."), 15)
    reply = upstream.read(question, 7, said("example.com. 5 MX 10 mail.example.com.", question=question))
    assert reply is not None and reply.answer[0].rdata == b"\0\x0a" + names.encode("mail.example.com.")


def test_a_pointer_loop_ends() -> None:
    head = said()[:12]
    looping = head[:6] + b"\0\1" + head[8:] + QUESTION.wire()
    at = len(looping)
    looping += wire.pointer(at) + b"\0\1\0\1\0\0\0\5\0\4abcd"
    assert read(looping) == Reply(2, extended_error=23)


@pytest.mark.parametrize("cut", range(1, 16))
def test_a_record_cut_short_is_a_failure(cut: int) -> None:
    whole = said(f"{NAME} 5 A 192.0.2.1")[:-11]  # without OPT, which is not read
    assert read(whole).answer and read(whole[:-cut]) == Reply(2, extended_error=23)


def test_the_alias_of_an_external_name_stands_in_front() -> None:
    question = Question(names.encode("ext.interwebs.test."), 1)
    reply = upstream.read(question, 7, said("ext.interwebs.test. 9 A 192.0.2.1", question=question))
    assert reply is not None
    message = finished(reply, name="External.testns.svc.cluster.local.")
    assert [rrset.to_text() for rrset in message.answer] == [
        "External.testns.svc.cluster.local. 5 IN CNAME ext.interwebs.test.",
        "ext.interwebs.test. 9 IN A 192.0.2.1",
    ]


def test_addresses_of_a_remembered_reply_take_turns_behind_their_alias() -> None:
    reply = read(said(f"{NAME} 9 CNAME a.example.net.", *(f"a.example.net. 9 A 192.0.2.{i}" for i in range(3))))
    for turn in range(6):
        message = finished(reply, turn=turn)
        assert message.answer[0].to_text() == f"{NAME} 9 IN CNAME a.example.net."
        assert message.answer[1][0].to_text() == f"192.0.2.{turn % 3}" and len(message.answer[1]) == 3
