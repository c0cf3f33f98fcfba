"""`errors`: what is told at once, what is counted, and what a period ends with."""

from __future__ import annotations

import asyncio
import logging

import pytest

from kproxy.dns import names
from kproxy.dns.blocks import Consolidate, Errors, ServerBlock
from kproxy.dns.consolidation import Consolidation, Line
from kproxy.dns.failing import LINES_PER_S, Failing
from kproxy.dns.wire import Query

TIMEOUT = "2 a.test. A: no upstream has answered"


def _query(name: bytes) -> Query:
    return Query(b"\0\0", 0, name, name, 1, 1, name + b"\0\1\0\1", None, True)


def test_without_consolidate_everything_is_told() -> None:
    told = Consolidation(Errors())
    assert [told.take(TIMEOUT, 0.0) for _ in range(2)] == [Line("error", TIMEOUT)] * 2
    assert told.next_at() is None and told.due(1e9) == []


def test_what_fits_is_counted_and_told_once_a_period() -> None:
    told = Consolidation(Errors(consolidate=(Consolidate(period_s=300.0, pattern="answered$", level="warning"),)))
    assert [told.take(TIMEOUT, float(at)) for at in range(3)] == [None] * 3
    assert told.take("2 a.test. A: another one", 3.0) == Line("error", "2 a.test. A: another one")
    assert told.next_at() == 300.0 and told.due(299.0) == []
    assert told.due(300.0) == [Line("warning", "3 errors like 'answered$' occurred in last 5m0s")]
    assert told.due(900.0) == [] and told.next_at() is None
    assert told.take(TIMEOUT, 1000.0) is None and told.next_at() == 1300.0


def test_the_first_one_is_told_at_once_where_that_is_wished() -> None:
    told = Consolidation(Errors(consolidate=(Consolidate(period_s=0.5, pattern="answered", show_first=True),)))
    assert told.take(TIMEOUT, 0.0) == Line("error", TIMEOUT)
    assert told.due(1.0) == [], "it was alone"
    assert told.take(TIMEOUT, 2.0) is not None and told.take(TIMEOUT, 2.1) is None
    assert told.due(2.5) == [Line("error", "2 errors like 'answered' occurred in last 500ms")]


def test_the_first_pattern_that_fits_takes_it() -> None:
    patterns = (Consolidate(period_s=1.0, pattern="a"), Consolidate(period_s=5405.0, pattern="b", level="info"))
    told = Consolidation(Errors(consolidate=patterns))
    told.take("ab", 0.0)
    told.take("b", 0.0)
    assert [line.text for line in told.due(1e6)] == [
        "1 errors like 'a' occurred in last 1s",
        "1 errors like 'b' occurred in last 1h30m5s",
    ]


def test_failures_reach_the_log_escaped_and_bounded(caplog: pytest.LogCaptureFixture) -> None:
    failing = Failing()
    failing.follow((ServerBlock(errors=Errors()), ServerBlock()))
    with caplog.at_level(logging.INFO, "kproxy.dns.errors"):
        failing.failed(1, _query(b"\x05quiet\0"), "no reason")
        for _ in range(10 * LINES_PER_S):
            failing.failed(0, _query(b"\x03a\n\x1b\0"), "no upstream has answered")
    assert 0 < len(caplog.messages) <= 2 * LINES_PER_S
    assert set(caplog.messages) == {"2 a\\010\\027. A: no upstream has answered"}


def test_what_was_counted_is_told_in_time_and_before_a_reload(caplog: pytest.LogCaptureFixture) -> None:
    soon = ServerBlock(errors=Errors(consolidate=(Consolidate(period_s=0.05, pattern="answered"),)))
    late = ServerBlock(errors=Errors(consolidate=(Consolidate(period_s=500.0, pattern="answered"),)))

    async def run() -> None:
        failing = Failing()
        failing.follow((soon,))
        failing.failed(0, _query(names.encode("a.test")), "no upstream has answered")
        while not caplog.messages:
            await asyncio.sleep(0.01)
        failing.follow((late,))
        failing.failed(0, _query(names.encode("a.test")), "no upstream has answered")
        failing.follow((ServerBlock(),))

    with caplog.at_level(logging.INFO, "kproxy.dns.errors"):
        asyncio.run(run())
    assert caplog.messages == [
        "1 errors like 'answered' occurred in last 50ms",
        "1 errors like 'answered' occurred in last 8m20s",
    ]
