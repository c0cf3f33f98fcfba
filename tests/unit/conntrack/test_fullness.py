"""When the table of flows counts as full, and how the kernel's counters are read."""

from __future__ import annotations

import struct

import pytest

from kproxy.conntrack.fullness import CALM_S, Fullness, judge, questions, read


def _attribute(kind: int, value: int) -> bytes:
    return struct.pack("=HH", 8, kind) + value.to_bytes(4, "big")


def _message(kind: int, body: bytes) -> bytes:
    return struct.pack("=IHHII", 20 + len(body), kind, 2, 1, 0) + bytes(4) + body


def test_counters_of_all_processors_are_added() -> None:
    one = _message(0x104, _attribute(9, 1) + _attribute(10, 20) + _attribute(11, 300))
    found, done = read(one + one, Fullness())
    assert not done
    found, done = read(one + struct.pack("=IHHIIi", 20, 3, 2, 1, 0, 0), found)
    assert done and (found.insert_failed, found.dropped, found.evicted) == (3, 60, 900)
    found, done = read(_message(0x105, _attribute(1, 7) + _attribute(2, 262144)), found)
    assert done and (found.entries, found.limit, found.dropped) == (7, 262144, 60)
    assert found.text == "7 of 262144 entries, 60 packets dropped"


@pytest.mark.parametrize(
    "nonsense",
    [struct.pack("=IHHII", 8, 0x104, 2, 1, 0), struct.pack("=IHHII", 99, 0x104, 2, 1, 0), _message(0x105, b"\2\0\1\0"),
     struct.pack("=IHHIIi", 20, 2, 0, 1, 0, -1)],
)  # fmt: skip
def test_nonsense_and_refusals_are_value_errors(nonsense: bytes) -> None:
    with pytest.raises(ValueError):
        read(nonsense, Fullness())


def test_the_questions_are_a_dump_and_a_plain_one() -> None:
    per_cpu, size = questions()
    assert struct.unpack("=IHH", per_cpu[:8]) == (20, 0x104, 0x301)
    assert struct.unpack("=IHH", size[:8]) == (20, 0x105, 0x1)


def _now(entries: int, dropped: int = 0) -> Fullness:
    return Fullness(entries=entries, limit=1000, dropped=dropped)


def test_full_begins_with_a_drop_or_the_last_entry_and_ends_with_room_and_calm() -> None:
    first = judge(_now(10, dropped=5), None, at=0.0)
    assert not first.is_full, "drops of long ago"
    dropping = judge(_now(950, dropped=6), first, at=5.0)
    assert dropping.full_since == 5.0
    emptier = judge(_now(100, dropped=6), dropping, at=10.0)
    assert emptier.full_since == 5.0, "too soon to call it over"
    assert judge(_now(950, dropped=6), dropping, at=5.0 + CALM_S).is_full, "no room yet"
    assert not judge(_now(900, dropped=6), emptier, at=5.0 + CALM_S).is_full
    assert judge(_now(1000), None, at=0.0).is_full
    assert not judge(Fullness(entries=10**6, limit=0), None, at=0.0).is_full, "no limit, nothing to fill"
