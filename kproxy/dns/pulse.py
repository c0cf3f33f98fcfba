"""Whether a worker that does not answer hangs, or has more to do than it gets processor time for.

In: process ids, and the moment. Out: `strained`: of the last half second it spent most running or waiting for a processor, as the kernel
counts it (/proc/PID/schedstat, Linux 2.6.23: nanoseconds on a processor and in the run queue). Such a worker answers others than those who
look, or will as soon as it has its turn; ending it would lose what it has in hand and all that it remembers, and its successor would
have the same load with cold caches. A worker that sleeps or is stopped while questions wait hangs. One that has been strained for
LOOP_S without an answer may be in a loop that never ends: it hangs as well.

`longest_wait` is of waiting alone, and for a second: a worker that works all the time may have all that it needs, one that waits has not.

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
        self._seen: dict[
            int, tuple[float, int, int]
        ] = {}  # when its times were last taken; ns that it ran, and waited to
        self._waits: dict[int, tuple[float, float]] = {}  # which part of its last two windows it waited
        self._since: dict[int, float] = {}  # from when on it has been strained
        self._now = 0.0

    def look(self, pids: Iterable[int], now: float) -> None:
        """Takes their times. now: monotonic seconds. Who is not among them is forgotten."""
        known, self._now, seen = self._seen, now, {}
        for pid in pids:
            when, ran, waited = known.get(pid) or (now, *_spent(pid))
            seen[pid] = (when, ran, waited)
            if now - when < WINDOW_S:
                continue
            running, waiting = _spent(pid)
            seen[pid] = (now, running, waiting)
            self._waits[pid] = (self._waits.get(pid, (0.0, 0.0))[1], (waiting - waited) * 1e-9 / (now - when))
            if (running - ran + waiting - waited) * 1e-9 > SHARE * (now - when):
                self._since.setdefault(pid, when)
            else:
                self._since.pop(pid, None)
        self._seen = seen
        self._since = {pid: since for pid, since in self._since.items() if pid in seen}
        self._waits = {pid: waits for pid, waits in self._waits.items() if pid in seen}

    def strained(self, pid: int) -> bool:
        """Whether it works as much as it can, and has not done so for too long without an answer."""
        since = self._since.get(pid)
        return since is not None and self._now - since < LOOP_S

    def longest_wait(self) -> float:
        """Of the one that waits most for a processor: which part of each of its last two windows it had none at least, 0 to 1."""
        return max(map(min, self._waits.values()), default=0.0)

    def answered(self) -> None:
        """One of them has: whoever is strained is so from now on."""
        self._since = dict.fromkeys(self._since, self._now)


def _spent(pid: int) -> tuple[int, int]:
    """Nanoseconds on a processor, and in the run queue; 0 where the kernel does not count them or the process is gone."""
    try:
        with open(f"/proc/{pid}/schedstat", encoding="ascii") as file:
            running, waiting, _ = file.read(100).split()
        return int(running), int(waiting)
    except (OSError, ValueError):
        return 0, 0
