"""Whether a worker that does not answer hangs, or has more to do than it gets processor time for.

In: process ids, and the moment. Out: `strained`: of the last half second it spent most running or waiting for a processor, as the kernel
counts it (/proc/PID/schedstat, Linux 2.6.23: nanoseconds on a processor and in the run queue). Such a worker answers others than those who
look, or will as soon as it has its turn; ending it would lose what it has in hand and all that it remembers, and its successor would
have the same load with cold caches. A worker that sleeps or is stopped while questions wait hangs. One that has been strained for
LOOP_S without an answer may be in a loop that never ends: it hangs as well.

What must not happen here: waiting, or imports (the supervisor is one of those who look).
"""

from __future__ import annotations

from collections.abc import Iterable

WINDOW_S = 0.5
SHARE = 0.5  # of a window
LOOP_S = 10.0  # 64 walks of a full queue are done in a second, on a processor shared with ten others


class Pulses:
    """Of some processes. `look` is called a few times a second, `answered` whenever one of them is known to have answered."""

    def __init__(self) -> None:
        self._seen: dict[int, tuple[float, int]] = {}  # when its time was last taken, and that time, ns
        self._since: dict[int, float] = {}  # from when on it has been strained
        self._now = 0.0

    def look(self, pids: Iterable[int], now: float) -> None:
        """Takes their times. now: monotonic seconds. Who is not among them is forgotten."""
        known, self._now, seen = self._seen, now, {}
        for pid in pids:
            when, before = known.get(pid, (now, _spent(pid)))
            seen[pid] = (when, before)
            if now - when < WINDOW_S:
                continue
            spent = _spent(pid)
            seen[pid] = (now, spent)
            if (spent - before) * 1e-9 > SHARE * (now - when):
                self._since.setdefault(pid, when)
            else:
                self._since.pop(pid, None)
        self._seen = seen
        self._since = {pid: since for pid, since in self._since.items() if pid in seen}

    def strained(self, pid: int) -> bool:
        """Whether it works as much as it can, and has not done so for too long without an answer."""
        since = self._since.get(pid)
        return since is not None and self._now - since < LOOP_S

    def answered(self) -> None:
        """One of them has: whoever is strained is so from now on."""
        self._since = dict.fromkeys(self._since, self._now)


def _spent(pid: int) -> int:
    """Nanoseconds on a processor and in the run queue; 0 where the kernel does not count them or the process is gone."""
    try:
        with open(f"/proc/{pid}/schedstat", encoding="ascii") as file:
            running, waiting, _ = file.read(100).split()
        return int(running) + int(waiting)
    except (OSError, ValueError):
        return 0
