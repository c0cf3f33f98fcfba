"""What upstream said: which of it is remembered, for how long, and what goes when there is no room."""

from __future__ import annotations

import struct
from dataclasses import replace

import pytest

from kproxy.dns import cache_forward, names
from kproxy.dns.blocks import Cache
from kproxy.dns.cache_forward import AgingReplies, ReplyCache
from kproxy.dns.room import Room
from kproxy.dns.upstream import Question, Record, Reply, split_at_ttl
from kproxy.dns.wire import Type

WWW = names.encode("www.example.com.")
QUESTION = Question(WWW, Type.A)


def answer(ttl: int = 300, *, rtype: int = Type.A, question: Question = QUESTION) -> Reply:
    rdata = b"\xc0\0\2\1" if rtype == Type.A else names.encode("web.example.net.")
    return Reply(0, answer=(Record(question.name, rtype, ttl, rdata),), ttl=ttl)


def denial(ttl: int = 300, *, rcode: int = 3) -> Reply:
    soa = names.encode("a.") + names.encode("b.") + struct.pack("!IIIII", 1, 2, 3, 4, ttl)
    return Reply(rcode, authority=(Record(b"\0", Type.SOA, ttl, soa),), ttl=ttl)


@pytest.mark.parametrize(
    ("reply", "seconds"),
    [
        (answer(300), 300),
        (answer(100_000), 3600),
        (answer(0), 5),
        (denial(300), 300),
        (denial(100_000), 1800),
        (denial(1), 5),
        (denial(300, rcode=0), 300),
        (replace(denial(), authority=()), None),
        (replace(denial(rcode=0), authority=()), None),
        (answer(rtype=Type.CNAME), None),
        (replace(answer(rtype=Type.CNAME), authority=denial().authority), 300),
        (replace(answer(), truncated=True), None),
        (Reply(5), None),
        (Reply(4), None),
        (Reply(2), 5),
    ],
)
def test_what_is_kept_and_how_long(reply: Reply, seconds: int | None) -> None:
    cache = ReplyCache(Cache())
    cache.store(QUESTION, reply, 100.0)
    entry = cache.get(QUESTION, 100.0)
    assert (None if entry is None else entry.until - 100.0) == seconds
    if seconds is not None:
        assert entry is not None and entry.left(100.0) == seconds and entry.left(100.1) == seconds
        assert entry.left(101.0) == seconds - 1 and entry.left(100.0 + seconds) == 0
        assert cache.get(QUESTION, 100.0 + seconds) is None


@pytest.mark.parametrize("qtype", [Type.ANY, Type.AXFR, 200])
def test_questions_about_a_server_are_not_kept(qtype: int) -> None:
    assert ReplyCache(Cache()).store(Question(WWW, qtype), answer(), 0.0) is None


def test_the_key_is_name_type_do_and_cd() -> None:
    cache = ReplyCache(Cache())
    cache.store(QUESTION, answer(), 0.0)
    for other in (
        replace(QUESTION, name=WWW[4:]),
        replace(QUESTION, qtype=28),
        replace(QUESTION, dnssec_ok=True),
        replace(QUESTION, checking_disabled=True),
        replace(QUESTION, options=b"x"),
    ):
        assert cache.get(other, 0.0) is None


@pytest.mark.parametrize(
    ("directive", "kept"),
    [
        (Cache(zones=("example.com",)), (True, True)),
        (Cache(zones=("example.org",)), (False, False)),
        (Cache(disable_success=("example.com",)), (False, True)),
        (Cache(disable_denial=(".",)), (True, False)),
        (Cache(disable_success=("ample.com",)), (True, True)),
        (Cache(success_entries=0), (False, True)),
    ],
)
def test_zones(directive: Cache, kept: tuple[bool, bool]) -> None:
    found = []
    for reply in (answer(), denial()):
        cache = ReplyCache(directive)
        cache.store(QUESTION, reply, 0.0)
        found.append(cache.get(QUESTION, 0.0) is not None)
    assert tuple(found) == kept


def questions(count: int) -> list[Question]:
    return [Question(names.encode(f"n{n}.example.com."), Type.A) for n in range(count)]


def test_the_least_recently_used_goes_first() -> None:
    cache = ReplyCache(Cache(success_entries=3))
    first, second, third, fourth = questions(4)
    for one in (first, second, third):
        cache.store(one, answer(question=one), 0.0)
    assert cache.get(first, 1.0)
    cache.store(fourth, answer(question=fourth), 1.0)
    assert [cache.get(one, 1.0) is not None for one in (first, second, third, fourth)] == [True, False, True, True]
    assert cache.evictions == 1


def test_room_is_bounded_in_octets_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_forward, "OCTETS", 20_000)
    cache = ReplyCache(Cache())
    big = replace(answer(), answer=tuple(Record(WWW, 16, 60, bytes(1000)) for _ in range(5)))
    for one in (many := questions(50)):
        cache.store(replace(one, qtype=16), big, 0.0)
    assert 1 <= len(cache.answers.entries) <= 3
    assert cache.get(replace(many[-1], qtype=16), 0.0) is not None


def test_a_failure_does_not_take_the_place_of_what_has_expired() -> None:
    cache = ReplyCache(Cache(stale_s=100.0))
    cache.store(QUESTION, answer(10), 0.0)
    cache.store(QUESTION, Reply(2), 20.0)
    entry = cache.get(QUESTION, 20.0)
    assert entry is not None and entry.reply.answer and entry.failed_until == 25.0
    assert cache.get(QUESTION, 110.0) is None, "an end there is"


def test_an_answer_takes_the_place_of_a_denial_and_the_other_way_round() -> None:
    cache = ReplyCache(Cache(stale_s=100.0))
    for reply in (answer(), denial(), answer()):
        cache.store(QUESTION, reply, 0.0)
        entry = cache.get(QUESTION, 0.0)
        assert entry is not None and entry.reply == reply
    assert len(cache.answers.entries) == 1 and not cache.denials.entries


def test_prefer_positive() -> None:
    cache = ReplyCache(Cache(stale_s=100.0, prefer_positive=True))
    cache.store(QUESTION, answer(10), 0.0)
    cache.store(QUESTION, denial(300), 20.0)
    stale = cache.stale_answer(QUESTION, 20.0)
    assert stale is not None and stale.reply.answer
    entry = cache.get(QUESTION, 20.0)
    assert entry is not None and entry.reply.rcode == 3


def test_prefetch_wants_enough_uses_in_time_and_little_time_left() -> None:
    cache = ReplyCache(Cache(prefetch_amount=3, prefetch_within_s=60.0, prefetch_percent=10))
    entry = cache.store(QUESTION, answer(300), 0.0)
    assert entry is not None
    assert [cache.wants_refresh(entry, at) for at in (10.0, 20.0, 30.0)] == [False] * 3, "much time left"
    assert not cache.wants_refresh(entry, 275.0), "a gap of more than a minute"
    assert [cache.wants_refresh(entry, at) for at in (276.0, 277.0)] == [False, True]
    assert not ReplyCache(Cache()).wants_refresh(entry, 299.0)


REPLY = (
    bytes.fromhex("abcd81800001000200010001")
    + WWW
    + b"\0\1\0\1"
    + b"".join(b"\xc0\x0c\0\1\0\1" + struct.pack("!IH", 30, 4) + bytes(4) for _ in range(2))
    + b"\xc0\x10\0\6\0\1"
    + struct.pack("!IH", 30, 2)
    + b"\0\0"
    + b"\0\0\x29\4\xd0\0\0\x80\0\0\0"
)


def test_a_reply_is_the_same_with_another_ttl() -> None:
    cut = split_at_ttl(REPLY)
    assert cut is not None
    pieces, ttl = cut
    assert ttl == 30 and (30).to_bytes(4, "big").join(pieces) == REPLY[2:]
    assert split_at_ttl(REPLY.replace(struct.pack("!IH", 30, 2), struct.pack("!IH", 31, 2))) is None
    assert split_at_ttl(REPLY[:12].replace(b"\0\1\0\2\0\1\0\1", bytes(8))) is None


def test_aging_replies_fall_and_are_made_anew() -> None:
    aging = AgingReplies()
    counts = [0, 0]
    assert aging.store("key", REPLY, counts, 1, 100.0)
    found = aging.get("key", 103.2)
    assert found is not None and found[1] is counts and found[2]
    assert found[0] == REPLY[2:].replace(struct.pack("!I", 30), struct.pack("!I", 27))
    assert aging.get("key", 105.0) is None and aging.get("other", 100.0) is None


def test_orders_of_aging_replies_go_round_once_all_are_there() -> None:
    aging = AgingReplies()
    for turn in range(2):
        assert aging.get("key", 100.0) is None and aging.turn_to_make("key", 100.0) == turn
        aging.store("key", REPLY.replace(b"\0\4\0\0\0\0", b"\0\4\0\0\0" + bytes((turn,)), 1), [0, 0], 2, 100.0)
    found = {got[0] for _ in range(4) if (got := aging.get("key", 100.0)) is not None}
    assert len(found) == 2


def test_aging_replies_are_bounded() -> None:
    aging = AgingReplies(entries=10)
    for number in range(1000):
        aging.store(number, REPLY, [0, 0], 1, 100.0)
        assert len(aging._aging) <= 10
    aging = AgingReplies(octets=1000)
    for number in range(1000):
        aging.store(number, REPLY, [0, 0], 1, 100.0)
        assert len(aging._aging) <= 15


def test_room_is_shared() -> None:
    room = Room(100)
    assert sum(room.take("greedy") for _ in range(1000)) == 80 + 1
    assert all(room.take(f"other {n}") for n in range(10))
    room.give("greedy")
    assert room.held_by("greedy") == 80 and room.taken == 90
    assert sum(room.take("second") for _ in range(1000)) == 9
    assert sum(room.take(n) for n in range(1000)) == 1 and not room.take("late")
    for n in range(10):
        room.give(f"other {n}")
        assert room.held_by(f"other {n}") == 0
    unlimited = Room(0)
    assert all(unlimited.take("one") for _ in range(10_000))
