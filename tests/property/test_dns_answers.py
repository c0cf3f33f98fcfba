"""Any bytes to the DNS server: a reply that a strict parser reads, or silence; never an exception, never over the size."""

from __future__ import annotations

import struct
from dataclasses import replace

import dns.message
import dns.name
from hypothesis import example, given
from hypothesis import strategies as st

from kproxy.dns import chain, upstream, wire
from kproxy.dns.answer import Forward, Outcome, Transfer, answer, respond
from kproxy.dns.blocks import Transfer as TransferDirective
from kproxy.dns.cache import AnswerCache
from kproxy.dns.chain import serve
from kproxy.dns.chain_blocks import default_blocks
from kproxy.dns.settings import DnsSettings
from kproxy.dns.text import show
from kproxy.dns.wire import Transport
from tests.support.queries import ROWS, zone_of

ZONES = [
    zone_of("U", DnsSettings(own_addresses=("10.0.0.10", "::1"))),
    zone_of("C", DnsSettings(reverse_zones=("10.96.0.0/20",), fallthrough=())),
    zone_of("big", DnsSettings()),
    zone_of("U", DnsSettings(), False),
]
# Every set of the table with what its directives can do, and transfers for everybody.
SERVED = [
    serve(replace(row.settings, blocks=(replace(block, transfers=(TransferDirective(to=("*",)),)),)), row.served.zones)
    for row in ROWS
    if row.id in ("T001", "T260", "T266", "T286", "T181", "T141")
    for block in default_blocks(row.settings)[:1]
]
NAMES = sorted({dns.name.from_text(row.qname).to_wire() for row in ROWS})

label = st.binary(min_size=1, max_size=63).map(lambda data: bytes((len(data),)) + data)
odd_name = st.lists(label, max_size=8).map(lambda parts: b"".join(parts)[:250] + b"\0")
below_zone = st.tuples(st.lists(label, max_size=4), st.sampled_from(NAMES)).map(lambda t: b"".join(t[0]) + t[1])
name = st.one_of(st.sampled_from(NAMES), below_zone, odd_name)
number = st.integers(0, 0xFFFF)
option = st.tuples(number, st.binary(max_size=50)).map(lambda t: struct.pack("!HH", t[0], len(t[1])) + t[1])
opt = st.tuples(number, st.integers(0, 255), number, st.lists(option, max_size=3).map(b"".join)).map(
    lambda t: struct.pack("!BHHBBHH", 0, 41, t[0], 0, t[1], t[2], len(t[3])) + t[3]
)
qtype = st.one_of(st.sampled_from([1, 2, 5, 6, 12, 16, 28, 33, 41, 65, 249, 251, 252, 255]), number)


@st.composite
def queries(draw: st.DrawFn) -> bytes:
    """Messages that are nearly right, so that the deeper parts are reached."""
    additional = draw(st.lists(opt, max_size=2))
    flags = draw(st.sampled_from([0x0100, 0, 0x0110, 0x8100, 0x2800]))
    head = struct.pack("!HHHHHH", draw(number), flags, 1, 0, 0, len(additional))
    klass = draw(st.sampled_from([1, 1, 1, 3, 255]))
    return (
        head + draw(name) + struct.pack("!HH", draw(qtype), klass) + b"".join(additional) + draw(st.binary(max_size=3))
    )


def _size_allowed(data: bytes, transport: Transport) -> int:
    query = wire.parse_query(data)
    return wire.limit(query, transport) if isinstance(query, wire.Query) else 512


@given(
    data=st.one_of(st.binary(max_size=600), queries()),
    transport=st.sampled_from(Transport),
    zone=st.sampled_from(range(len(ZONES))),
)
@example(data=b"\0" * 12, transport=Transport.UDP, zone=0)
@example(data=b"\0\0\1\0\0\1\0\0\0\0\0\0" + b"\xc0\x0c\0\1\0\1", transport=Transport.UDP, zone=0)
def test_p29_any_bytes(data: bytes, transport: Transport, zone: int) -> None:
    outcome = answer(ZONES[zone], data, transport)
    if isinstance(outcome, Forward):
        outcome = upstream.finish(outcome, None, transport)
    if outcome is None:
        assert len(data) < 12 or data[2] & 0x80
        return
    assert outcome[:2] == data[:2] and outcome[2] & 0x80
    assert len(outcome) <= _size_allowed(data, transport)
    if len(outcome) > 12:
        dns.message.from_wire(outcome)
        show(outcome)


@given(
    data=st.one_of(st.binary(max_size=600), queries()),
    transport=st.sampled_from(Transport),
    at=st.sampled_from(range(len(SERVED))),
)
def test_p29_any_bytes_to_every_directive_of_the_cluster(data: bytes, transport: Transport, at: int) -> None:
    outcome = chain.respond(SERVED[at], data, transport)
    if isinstance(outcome, Transfer):
        assert transport is Transport.TCP
        messages = list(outcome.messages)
        assert messages and max(map(len, messages)) < 20_000
        for message in messages:
            dns.message.from_wire(message)
        return
    if isinstance(outcome, Forward):
        reply: bytes | None = upstream.finish(outcome, None, transport)
    else:
        assert outcome is None or isinstance(outcome, Outcome)
        reply = outcome.reply if outcome is not None else None
    if reply is not None:
        assert reply[:2] == data[:2] and len(reply) <= _size_allowed(data, transport)
        if len(reply) > 12:
            dns.message.from_wire(reply)


@given(data=queries(), zone=st.sampled_from(range(len(ZONES))), mark=st.binary(min_size=2, max_size=2))
def test_what_the_cache_gives_back_is_what_would_be_answered(data: bytes, zone: int, mark: bytes) -> None:
    outcome = respond(ZONES[zone], data, Transport.UDP)
    if outcome is None or isinstance(outcome, Forward):
        return
    cache = AnswerCache()
    cache.store(data, outcome)
    again = mark + data[2:]
    assert len(cache.lasting) + len(cache.fleeting) <= 1
    kept = cache.lasting.get(again[2:]) or cache.fleeting.get(again[2:])
    if kept is not None:
        assert mark + kept[0] == answer(ZONES[zone], again, Transport.UDP)


@given(data=queries())
def test_names_of_the_zone_are_never_forwarded(data: bytes) -> None:
    for zone in ZONES:
        outcome = answer(zone, data, Transport.UDP)
        if isinstance(outcome, Forward):
            assert not outcome.name.endswith(b"\x07cluster\x05local\0")


QUESTION = upstream.Question(b"\x03www\x07example\x03com\0", 1)


@st.composite
def replies(draw: st.DrawFn) -> bytes:
    """Upstream messages with our ID and question and anything behind it."""
    pointer = st.integers(0, 0x3FFF).map(wire.pointer)
    owner = st.one_of(st.just(wire.OWNER), pointer, name)
    rdata = st.one_of(st.binary(max_size=40), owner, owner.map(lambda n: b"\0\1" + n))
    record = st.tuples(owner, qtype, st.integers(0, 2**32 - 1), rdata).map(lambda t: wire.record(*t))
    records = draw(st.lists(record, max_size=6))
    split = draw(st.integers(0, len(records)))
    flags = 0x8000 | draw(number) & 0x87FF
    head = struct.pack("!HHHHHH", 7, flags, 1, split, len(records) - split, 0)
    whole = head + QUESTION.wire() + b"".join(records)
    return whole[: draw(st.integers(0, len(whole)))] if draw(st.booleans()) else whole


@given(data=st.one_of(st.binary(max_size=300), replies()), transport=st.sampled_from(Transport), edns=st.booleans())
def test_whatever_an_upstream_says_the_client_gets_a_clean_message(
    data: bytes, transport: Transport, edns: bool
) -> None:
    tail = struct.pack("!BHHIH", 0, 41, 1232, 0x8000, 0) if edns else b""
    client = b"\1\2\1\0\0\1\0\0\0\0\0" + bytes((int(edns),)) + b"\x03WWW\x07example\x03com\0\0\1\0\1" + tail
    forward = answer(ZONES[0], client, transport)
    assert isinstance(forward, Forward)
    reply = upstream.read(QUESTION, 7, data)
    message = upstream.finish(forward, reply, transport)
    assert len(message) <= _size_allowed(client, transport)
    assert message[12 : 12 + 21] == client[12 : 12 + 21]
    if edns:  # DO: signatures and proofs travel as they came, and only their frame is ours
        show(message)
        return
    for rrset in dns.message.from_wire(message).answer:
        assert rrset.rdtype in (1, 5)
