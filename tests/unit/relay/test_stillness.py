"""Processes that work, wake now and then, sleep, are stopped or wait for a processor, as the kernel counts their time."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from kproxy.relay.stillness import LOOK_S, LOOKS, Stillness

_BUSY = "while True: pass"
_WAKING = "import time\nwhile True: time.sleep(0.05)"
_SLEEPING = "import time; time.sleep(600)"


@contextlib.contextmanager
def _running(*programs: str) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Returns once each is in its last line: what Python does before would be work."""
    made = [
        subprocess.Popen([sys.executable, "-c", f"print(flush=True)\n{one}"], stdout=subprocess.PIPE)
        for one in programs
    ]
    try:
        for process in made:
            assert process.stdout is not None and process.stdout.readline() == b"\n"
        yield made
    finally:
        for process in made:
            process.kill()
            process.communicate(timeout=10)


def _ran(pid: int) -> int:
    return int(Path(f"/proc/{pid}/schedstat").read_text(encoding="ascii").split()[0])


def _until_it_ran(pid: int) -> None:
    before, limit = _ran(pid), time.monotonic() + 20
    while _ran(pid) == before:
        assert time.monotonic() < limit, "it does not run"
        time.sleep(0.01)


def _until_still(pid: int) -> None:
    """It may have had to go to sleep first."""
    limit, since, seen = time.monotonic() + 20, time.monotonic(), 0
    while time.monotonic() - since < 0.2:
        assert time.monotonic() < limit, "it runs"
        if (ran := _ran(pid)) != seen:
            seen, since = ran, time.monotonic()
        time.sleep(0.01)


def test_who_has_not_been_on_a_processor_for_ten_looks_hangs_and_who_works_or_wakes_does_not() -> None:
    with _running(_BUSY, _WAKING, _SLEEPING, _WAKING) as (busy, waking, sleeping, stopped):
        stopped.send_signal(signal.SIGSTOP)
        _until_still(stopped.pid)
        _until_still(sleeping.pid)
        pids, stillness = [busy.pid, waking.pid, sleeping.pid, stopped.pid], Stillness()
        found = []
        for number in range(LOOKS + 1):
            assert not found, f"{found} after {number} looks"
            _until_it_ran(busy.pid)
            _until_it_ran(waking.pid)
            found = stillness.look(pids, number * LOOK_S)
        assert found == [sleeping.pid, stopped.pid]
        for number in range(LOOKS + 1, 2 * LOOKS + 1):
            assert stillness.look(pids[3:], number * LOOK_S) == [], "named once"
        assert stillness.look(pids[3:], (2 * LOOKS + 1) * LOOK_S) == [stopped.pid], "and again, if it is still there"


def test_looks_are_counted_and_not_seconds() -> None:
    """Who was frozen together with whom it looks at finds all as it was; who looks more often than asked knows no sooner."""
    with _running(_SLEEPING) as (sleeping,):
        _until_still(sleeping.pid)
        stillness = Stillness()
        for number in range(LOOKS):
            assert stillness.look([sleeping.pid], number * 3600.0) == []
        last = (LOOKS - 1) * 3600.0
        for number in range(1000):
            assert stillness.look([sleeping.pid], last + number * LOOK_S / 1000) == []
        assert stillness.look([sleeping.pid], last + LOOK_S) == [sleeping.pid]


def test_one_that_ran_in_between_begins_anew() -> None:
    with _running(_WAKING) as (waking,):
        stillness, moment = Stillness(), 0.0
        for _ in range(2):
            waking.send_signal(signal.SIGSTOP)
            _until_still(waking.pid)
            for _ in range(LOOKS):
                assert stillness.look([waking.pid], moment) == []
                moment += LOOK_S
            waking.send_signal(signal.SIGCONT)
            _until_it_ran(waking.pid)
        assert stillness.look([waking.pid], moment) == []


def test_who_waits_for_a_processor_does_not_hang() -> None:
    """One of the idle class beside one that is busy has three parts in a thousand: between two turns all looks find the same."""
    one = {min(os.sched_getaffinity(0))}
    with _running(_BUSY, _BUSY) as (busy, starved):
        os.sched_setscheduler(starved.pid, os.SCHED_IDLE, os.sched_param(0))
        for process in (busy, starved):
            os.sched_setaffinity(process.pid, one)
        time.sleep(0.2)
        for _ in range(20):
            stillness = Stillness()
            for number in range(3 * LOOKS):
                assert stillness.look([starved.pid], number * LOOK_S) == []


def test_processes_that_are_gone_are_not_named() -> None:
    stillness = Stillness()
    for number in range(3 * LOOKS):
        assert stillness.look([2**22 + 1], number * LOOK_S) == []
