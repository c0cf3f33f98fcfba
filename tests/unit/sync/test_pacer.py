"""When the next sync may run: idle nodes at once, busy ones coalesced, failing ones later and later."""

from __future__ import annotations

import pytest

from kproxy.sync.pacer import Pacer


def test_an_idle_node_syncs_at_once() -> None:
    assert Pacer().next_run(now=100.0) == 100.0
    assert Pacer().succeeded(100.0, 100.1).next_run(now=110.0) == 110.0


@pytest.mark.parametrize(
    ("duration_s", "pause_s"),
    [(0.01, 0.01), (0.1, 0.1), (0.8, 0.8), (3.0, 1.0)],
    ids=["quick", "noticeable", "slow", "slower than the minimum period"],
)
def test_the_pause_follows_the_duration_up_to_the_minimum_period(duration_s: float, pause_s: float) -> None:
    pacer = Pacer(min_period_s=1.0, ended=99.9).succeeded(100.0, 100.0 + duration_s)
    assert pacer.next_run(now=100.0 + duration_s) == pytest.approx(100.0 + duration_s + pause_s)


def test_what_comes_in_pairs_to_an_idle_node_does_not_wait() -> None:
    first = Pacer(min_period_s=1.0).succeeded(100.0, 100.3)
    assert first.next_run(now=100.3) == 100.3
    second = first.succeeded(100.3, 100.6)
    assert second.next_run(now=100.6) == pytest.approx(100.9), "a third one rests"
    assert second.succeeded(102.0, 102.3).next_run(now=102.3) == 102.3, "after a rest it is as in the beginning"


@pytest.mark.parametrize(
    ("duration_s", "pause_s"),
    [(0.01, 1.0), (0.5, 1.5), (0.9, 2.7), (3.0, 3.0)],
    ids=["the minimum period", "three times as long", "slow", "three minimum periods at most"],
)
def test_where_processors_are_short_syncs_come_seldomer(duration_s: float, pause_s: float) -> None:
    ended = 100.0 + duration_s
    for before in (99.9, 10.0):  # also after a rest
        pacer = Pacer(min_period_s=1.0, ended=before).succeeded(100.0, ended)
        assert pacer.next_run(now=ended, strained=True) == pytest.approx(ended + pause_s)
        assert pacer.next_run(now=ended) < ended + pause_s
        assert pacer.next_run(now=ended + 10, strained=True) == ended + 10, "a lone change waits for nothing"
    assert Pacer().next_run(now=100.0, strained=True) == 100.0
    failing = Pacer(min_period_s=1.0, max_retry_s=30.0, failures=9).failed(100.0, 100.1)
    assert failing.next_run(now=100.1, strained=True) == failing.next_run(now=100.1), "what fails rests longer already"


def test_failures_double_the_pause_up_to_the_limit_and_success_forgets_them() -> None:
    pacer = Pacer(max_retry_s=5.0)
    pauses = []
    for n in range(7):
        pacer = pacer.failed(float(n), float(n))
        pauses.append(pacer.pause_s)
    assert pauses == [0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]
    assert pacer.succeeded(10.0, 10.0).pause_s == 0.0
