"""Processes that work, wait for a processor, sleep or are stopped, as the kernel counts their time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

from kproxy.dns.pulse import LOOP_S, WINDOW_S, Pulses

_BUSY = "while True: pass"
_IDLE = "import time; time.sleep(60)"


def _until(pulses: Pulses, pids: list[int], wanted: list[bool], ahead_s: float = 0.0) -> None:
    """Looks until they are strained or not as wanted. ahead_s: how far the clock of `look` is before this one."""
    limit = time.monotonic() + 20
    while [pulses.strained(pid) for pid in pids] != wanted:
        assert time.monotonic() < limit, f"{[pulses.strained(pid) for pid in pids]}, not {wanted}"
        time.sleep(WINDOW_S / 10)
        pulses.look(pids, time.monotonic() + ahead_s)


def test_who_works_or_waits_for_a_processor_is_strained_and_who_sleeps_or_is_stopped_is_not() -> None:
    one = {min(os.sched_getaffinity(0))}
    busy = [subprocess.Popen([sys.executable, "-c", _BUSY]) for _ in range(2)]
    idle = subprocess.Popen([sys.executable, "-c", _IDLE])
    try:
        for process in busy:
            os.sched_setaffinity(process.pid, one)  # each has half of a processor, and waits for it the other half
        pids, pulses = [*(process.pid for process in busy), idle.pid], Pulses()
        pulses.look(pids, time.monotonic())
        assert not any(map(pulses.strained, pids)), "nothing is known yet"
        _until(pulses, pids, [True, True, False])
        assert pulses.longest_wait() == 0.0, "a moment is none"
        limit = time.monotonic() + 20
        while pulses.longest_wait() < 0.2:  # each of two has half of what there is, and on a busy machine less
            assert time.monotonic() < limit, pulses.longest_wait()
            time.sleep(WINDOW_S / 10)
            pulses.look(pids, time.monotonic())
        pulses.look(pids[2:], time.monotonic())
        assert pulses.longest_wait() == 0.0, "who sleeps waits for no processor, and others are forgotten"
        _until(pulses, pids, [True, True, False])
        later = LOOP_S + 1.0
        pulses.look([], time.monotonic())
        assert not pulses.strained(pids[0]), "forgotten"
        _until(pulses, pids, [True, True, False])
        busy[0].send_signal(signal.SIGSTOP)
        _until(pulses, pids, [False, True, False])
        _until(pulses, pids, [False, False, False], later)  # a loop that never ends
        pulses.answered()
        _until(pulses, pids, [False, True, False], later)
        assert not pulses.strained(2**22 + 1)
    finally:
        for process in (*busy, idle):
            process.kill()
            process.wait(timeout=10)
