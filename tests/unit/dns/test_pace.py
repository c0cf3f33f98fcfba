"""So many a second for each, and as many at once."""

from __future__ import annotations

from kproxy.dns.room import Pace


def test_as_many_at_once_then_so_many_a_second() -> None:
    pace = Pace(10)
    assert [pace.take("a", 0.0) for _ in range(12)] == [True] * 10 + [False] * 2
    assert [pace.take("a", 0.1 * n) for n in range(1, 6)] == [True] * 5
    assert pace.take("b", 0.0)
    assert sum(pace.take("a", 100.0) for _ in range(20)) == 10


def test_memory_is_bounded() -> None:
    pace = Pace(1, whos=3)
    for n in range(10):
        assert pace.take(n, 0.0)
        assert len(pace._left) <= 3
