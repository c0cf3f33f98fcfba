"""Walks over any names, lists and replies: they end, they keep their promises, and nothing in a packet or from upstream raises."""

from __future__ import annotations

import zlib

import dns.message
import dns.name
from hypothesis import given, settings
from hypothesis import strategies as st

from kproxy.dns import names, search, wire
from kproxy.dns.answer import Forward, Outcome
from kproxy.dns.clients import SearchList
from kproxy.dns.search import Found, Walk
from kproxy.dns.wire import OWNER, Query, Transport

_labels = st.binary(min_size=1, max_size=20).map(lambda b: bytes((len(b),)) + b)
_bases = st.lists(_labels, min_size=1, max_size=5).map(b"".join)
_parts = st.lists(st.sampled_from([b"\x03svc", b"\x07cluster", b"\x02ns", b"\x04corp"]), max_size=4)
_suffixes = st.lists(_parts.map(lambda parts: b"".join(parts) + b"\0"), max_size=12)
_addresses = st.lists(st.sampled_from([b"\xc0\0\2\1", b"\xc0\0\2\2"]), max_size=3)
# what is said to one name and type: forwarded or not, rcode, addresses
_says = st.tuples(st.booleans(), st.sampled_from([0, 0, 0, 2, 3, 3, 5]), _addresses)


class Server:
    """Says at random, the same to the same question."""

    def __init__(self, query: Query, says: list[tuple[bool, int, list[bytes]]]) -> None:
        self._query = query
        self._says = says

    def _said(self, name: bytes, qtype: int) -> tuple[bool, int, list[bytes]]:
        return self._says[zlib.crc32(name.lower(), qtype) % len(self._says)]

    def reply(self, name: bytes, qtype: int) -> bytes:
        """As whole replies are."""
        _, rcode, addresses = self._said(name, qtype)
        data = {1: lambda a: a, 28: lambda a: a * 4, 16: lambda a: b"\4" + a}[qtype]
        records = [wire.record(OWNER, qtype, 30, data(a)) for a in addresses] if rcode == 0 else []
        return wire.build(search.about(self._query, name, qtype), rcode=rcode, answer=records, size=65535)

    def ask(self, name: bytes, qtype: int) -> Outcome | Forward | None:
        """Out of memory, or somebody else's."""
        about = search.about(self._query, name, qtype)
        if self._said(name, qtype)[0]:
            return Forward(about, about.lowered, qtype)
        reply = self.reply(name, qtype)
        return Outcome(reply, b"", about, reply[3] & 15)


@settings(max_examples=200, deadline=None)
@given(
    _bases,
    _suffixes,
    st.integers(0, 15),
    st.sampled_from([1, 28, 16]),
    st.lists(_says, min_size=3, max_size=12),
    st.booleans(),
)
def test_walks_end_and_answer_what_was_asked(
    base: bytes, rest: list[bytes], ndots: int, qtype: int, says: list[tuple[bool, int, list[bytes]]], wild: bool
) -> None:
    head = b"\x02ns\x03svc\x07cluster\x05local\0"
    data = b"\x12\x34\x01\0\0\1\0\0\0\0\0\0" + base + head + qtype.to_bytes(2, "big") + b"\0\1"
    query = wire.parse_query(data)
    if not isinstance(query, Query):
        return
    server = Server(query, says)
    first = server.ask(query.name, query.qtype)
    assert first is not None
    listed = SearchList((head, *(s for s in rest if s != head)), ndots)
    found = search.walk(query, len(base), listed, first, server.ask, Transport.UDP)
    if isinstance(found, Walk):
        assert sum(isinstance(step.asked[0][1], Forward) for step in found.steps) <= search.OUTSIDE + 1
        found = _to_its_end(found, server, wild)
    if isinstance(found, Forward):
        return
    reply = found.reply
    assert (
        reply[:2] == data[:2] and reply[12 : 12 + len(query.question)] == query.question and len(reply) <= wire.MIN_UDP
    )
    message = dns.message.from_wire(reply)
    if found.saved and message.answer:
        owner = dns.name.from_wire(query.name, 0)[0]
        assert message.answer[0].name == owner and message.answer[0].rdtype == 5, "an alias leads to the candidate"
    assert found.rcode in (0, 2, 3, 5)


def _to_its_end(walk: Walk, server: Server, wild: bool) -> Outcome:
    replies: dict[tuple[int, int], bytes] = {}
    wildcards: dict[bytes, frozenset[bytes]] = {}
    for _ in range(200):
        decided = search.decide(walk, replies, wildcards)
        if isinstance(decided, Found):
            search.keys_of(walk)
            return search.finish(walk, decided, replies, Transport.UDP)
        if decided.suffix:
            wildcards[decided.suffix] = frozenset([b"\xc0\0\2\1"]) if wild else frozenset()
        assert decided.suffix or any((decided.index, kind) not in replies for kind in decided.types), (
            "no question twice"
        )
        for kind in decided.types:
            replies[(decided.index, kind)] = server.reply(walk.steps[decided.index].name, kind)
    raise AssertionError("the walk does not end")


@given(st.binary(max_size=80), st.sampled_from([1, 28, 255]))
def test_any_bytes_can_be_looked_at(reply: bytes, kind: int) -> None:
    seen = search.read_seen(reply.ljust(12, b"\0"), kind)
    assert seen.count >= 0 and search.least_ttl(reply.ljust(12, b"\0")) >= 0


@given(st.text(max_size=40))
def test_search_names_in_any_text(text: str) -> None:
    try:
        suffix = names.encode(text)
    except ValueError:
        return
    assert search.head_of({suffix.lower()}, b"\x01a" + suffix.lower()) in (-1, 0, 2)
