"""Whatever an upstream sends: no exception, nothing believed that was not asked, bounded work. `bench/fuzz_dns --target reply` goes on."""

from __future__ import annotations

import asyncio
import struct
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from kproxy.dns import upstream, wire
from kproxy.dns.blocks import Cache, Forward
from kproxy.dns.cache_forward import ReplyCache
from kproxy.dns.forward_stream import Streams
from kproxy.dns.resolvconf import Upstream
from kproxy.dns.upstream import MAX_TTL, Question, Reply
from kproxy.dns.wire import Rcode

NAME = b"\x03www\x07example\x03com\0"
QUESTION = Question(NAME, 1)
number = st.integers(0, 65535)


@st.composite
def messages(draw: st.DrawFn) -> bytes:
    """Packets with everything right but what is drawn wrong."""
    spelling = upstream.spelled(NAME, draw(st.integers(0, 2**13 - 1))) if draw(st.booleans()) else NAME
    question = spelling + struct.pack("!HH", draw(st.sampled_from([1, 1, 1, 28])), 1)
    label = st.binary(min_size=1, max_size=63).map(lambda data: bytes((len(data),)) + data)
    name = (
        st.lists(label, max_size=4)
        .map(b"".join)
        .flatmap(
            lambda labels: st.one_of(
                st.just(labels + b"\0"), st.integers(0, 80).map(lambda at: labels + wire.pointer(at))
            )
        )
    )
    owner = st.one_of(st.just(wire.OWNER), st.just(NAME), name)
    kind = st.sampled_from([1, 2, 5, 6, 15, 16, 28, 33, 41, 46, 255])
    rdata = st.one_of(st.binary(max_size=30), owner, owner.map(lambda n: b"\0\1" * 3 + n), st.just(b"\0\x0f\0\2\0\x16"))
    record = st.tuples(owner, kind, st.integers(0, 2**32 - 1), rdata).map(lambda t: wire.record(*t))
    sections = [draw(st.lists(record, max_size=4)) for _ in range(3)]
    counts = [draw(st.sampled_from([len(section), len(section), len(section), 65535])) for section in sections]
    flags = draw(st.sampled_from([0x8180, 0x8180, 0x8380, 0x8183, 0x8182, 0x8181])) ^ draw(
        st.sampled_from([0, 0, 0, 0x7800, 0x8000])
    )
    head = struct.pack(
        "!HHHHHH", draw(st.sampled_from([7, 7, 7, 8])), flags, draw(st.sampled_from([1, 1, 1, 0])), *counts
    )
    whole = head + question + b"".join(b"".join(section) for section in sections)
    return whole[: draw(st.integers(0, len(whole)))] if draw(st.booleans()) else whole + draw(st.binary(max_size=5))


def checked(reply: Reply | None) -> None:
    """What holds for any reply that is believed."""
    if reply is None:
        return
    assert 0 <= reply.rcode < 4096 and 0 <= reply.ttl <= MAX_TTL
    assert len(reply.answer) <= upstream.RECORDS + upstream.CHAIN and len(reply.authority) <= 16
    on_path = {NAME}
    for item in reply.answer:
        assert item.owner.lower() in on_path and item.rtype in (1, 5)
        assert len(item.owner) <= 255 and item.ttl <= MAX_TTL
        if item.rtype == 5:
            on_path.add(item.rdata.lower())
    assert all(item.rtype == 6 for item in reply.authority)
    if reply.mangled:
        assert not reply.answer and not reply.authority


@given(data=st.one_of(st.binary(max_size=200), messages()))
def test_what_is_believed_answers_the_question(data: bytes) -> None:
    reply = upstream.read(QUESTION, 7, data)
    checked(reply)
    if reply is not None:
        assert data[:2] == b"\0\7" and data[2] & 0x80
        cache = ReplyCache(Cache())
        entry = cache.store(QUESTION, reply, 100.0)
        assert entry is None or (5 <= entry.ttl <= 3600 and not reply.truncated)


@given(bits=st.integers(0, 2**13 - 1), other=st.integers(0, 2**13 - 1))
def test_the_case_of_the_question_is_compared(bits: int, other: int) -> None:
    spelling, said = upstream.spelled(NAME, bits), upstream.spelled(NAME, other)
    assert spelling.lower() == NAME
    good = struct.pack("!HHHHHH", 7, 0x8180, 1, 1, 0, 0) + said + b"\0\1\0\1" + wire.record(wire.OWNER, 1, 60, b"abcd")
    reply = upstream.read(QUESTION, 7, good, spelling=spelling)
    assert reply is not None
    assert reply.mangled == (said != spelling)
    assert [item.owner for item in reply.answer] == ([] if reply.mangled else [NAME])


def test_work_is_bounded_whatever_the_shape() -> None:
    """64 KiB of pointers that lead to pointers, and 64 KiB of records."""
    head = struct.pack("!HHHHHH", 7, 0x8180, 1, 1401, 0, 0) + QUESTION.wire()
    begin = len(head) + 12
    places = [12, *(begin + 2 * n for n in range(5000))]
    blob = b"".join(wire.pointer(at) for at in places[:-1])
    chain = wire.record(wire.OWNER, 16, 5, blob)
    longest = wire.record(wire.pointer(begin + 2 * 4999), 1, 5, b"abcd")
    assert upstream.read(QUESTION, 7, head + chain + longest * 1400) == Reply(Rcode.SERVFAIL, extended_error=23)
    many = upstream.RECORDS + 1
    head = struct.pack("!HHHHHH", 7, 0x8180, 1, many, 0, 0) + QUESTION.wire()
    whole = head + b"".join(wire.record(wire.OWNER, 1, 5, struct.pack("!I", n)) for n in range(many))
    assert upstream.read(QUESTION, 7, whole) == Reply(Rcode.SERVFAIL, extended_error=23)


@given(data=st.data())
def test_a_connection_s_octets_in_any_pieces(data: st.DataObject) -> None:
    """Frames of ours among any others, cut anywhere: each question has its reply, nothing is kept that was read."""
    frames = data.draw(st.lists(st.one_of(st.binary(max_size=60), st.just(b"ours")), max_size=6))
    cuts = data.draw(st.lists(st.integers(1, 40), max_size=40))

    async def whole() -> None:
        streams = Streams(Upstream("192.0.2.1"), Forward(), Counter())
        stream, fresh = streams._choose()
        assert stream is not None and fresh
        ready: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        stream.pending[7] = (QUESTION, NAME, ready)
        good = struct.pack("!HHHHHH", 7, 0x8180, 1, 1, 0, 0) + QUESTION.wire() + wire.record(wire.OWNER, 1, 60, b"abcd")
        octets = b"".join(struct.pack("!H", len(f)) + f for f in (good if f == b"ours" else f for f in frames))
        at = 0
        for size in [*cuts, len(octets)]:
            stream.data_received(octets[at : at + size])
            at += size
            assert len(stream._buffer) <= 65537
        assert not stream._buffer
        assert ready.done() or b"ours" not in frames
        stream.close()

    asyncio.run(whole())
