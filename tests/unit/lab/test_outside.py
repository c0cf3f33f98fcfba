"""The lab's outside resolver: right answers, and silence or an error for everything else."""

from __future__ import annotations

import dns.flags
import dns.message
import dns.rcode
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kproxy.lab.outside import answer


def ask(name: str, kind: str = "A", *, udp: bool = True, payload: int | None = None) -> dns.message.Message:
    query = dns.message.make_query(name, kind, use_edns=payload is not None, payload=payload or 1232)
    reply = answer(query.to_wire(), udp=udp)
    assert reply is not None
    return dns.message.from_wire(reply)


def texts(message: dns.message.Message) -> list[str]:
    return sorted(item.to_text() for rrset in message.answer for item in rrset)


@pytest.mark.parametrize(
    ("name", "kind", "found"),
    [
        ("raw.githubusercontent.com.", "A", ["203.0.113.10"]),
        ("RAW.GitHubUserContent.com.", "A", ["203.0.113.10"]),
        ("www.example.com.", "A", ["203.0.113.11", "example.com."]),
        ("www.example.com.", "CNAME", ["example.com."]),
        ("ipv6.example.com.", "AAAA", ["2001:db8::80"]),
        ("10.113.0.203.in-addr.arpa.", "PTR", ["raw.githubusercontent.com."]),
    ],
)
def test_known_names(name: str, kind: str, found: list[str]) -> None:
    reply = ask(name, kind)
    assert (reply.rcode(), texts(reply)) == (dns.rcode.NOERROR, found)


@pytest.mark.parametrize(
    ("name", "kind", "rcode"),
    [
        ("nothing.example.org.", "A", dns.rcode.NXDOMAIN),
        ("raw.githubusercontent.com.", "AAAA", dns.rcode.NOERROR),
        ("githubusercontent.com.", "A", dns.rcode.NOERROR),
    ],
)
def test_what_is_not_there_comes_with_an_soa(name: str, kind: str, rcode: int) -> None:
    reply = ask(name, kind)
    assert reply.rcode() == rcode
    assert not reply.answer
    assert [rrset.rdtype.name for rrset in reply.authority] == ["SOA"]


def test_a_long_answer_is_truncated_over_udp_and_whole_over_tcp() -> None:
    short = ask("many.example.com.", payload=1232)
    assert short.flags & dns.flags.TC
    assert not short.answer
    assert len(texts(ask("many.example.com.", udp=False))) == 120


@given(st.binary(max_size=600))
def test_any_bytes_give_a_reply_or_silence(data: bytes) -> None:
    reply = answer(data, udp=True)
    assert reply is None or len(reply) <= 1232


def test_a_reply_is_not_answered() -> None:
    query = dns.message.make_query("example.com.", "A")
    query.flags |= dns.flags.QR
    assert answer(query.to_wire(), udp=True) is None
