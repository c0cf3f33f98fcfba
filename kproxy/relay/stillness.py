"""Which relay workers hang: those that have not been on a processor for ten seconds, though nothing keeps them from it.

In: process ids, and the moment. Out: `look` names those that hang. A worker that lives wakes several times a second even when nothing is
open (timers of relay/worker.py), so one whose time on a processor (/proc/PID/schedstat, nanoseconds) stands still has been stopped or is
stuck in the kernel. Its listeners go on to get their share of new connections, which then wait in vain; with the process they go, and the
other workers get all until its successor is there. A worker that is busy, or runnable and starved, does not hang. One that runs and never
comes back to its event loop is not seen here: it ends itself (relay/worker.py).

Looks are counted, not seconds: a machine, a container or a supervisor that was frozen for a minute has looked once.

What must not happen here: waiting, an exception, or imports (the supervisor is who looks).
"""

from __future__ import annotations

from collections.abc import Iterable

LOOK_S = 1.0  # between two looks that count
LOOKS = 10


class Stillness:
    """Of some processes. `look` may be called more often than LOOK_S."""

    def __init__(self) -> None:
        self._seen: dict[int, tuple[int, int]] = {}  # its time on a processor, and looks since that was another one
        self._next = 0.0

    def look(self, pids: Iterable[int], now: float) -> list[int]:
        """Those that hang, each again after as long if it is still there. now: monotonic seconds. Others than `pids` are forgotten."""
        if now < self._next:
            return []
        self._next = now + LOOK_S
        before, self._seen, found = self._seen, {}, []
        for pid in pids:
            ran = _ran(pid)
            at, looks = before.get(pid, (ran, 0))
            looks = looks + 1 if ran and ran == at else 0
            if looks > LOOKS and not _runnable(pid):
                found.append(pid)
                looks = 0
            self._seen[pid] = (ran, looks)
        return found


def _ran(pid: int) -> int:
    """Nanoseconds on a processor so far; 0 where the kernel does not count them, or the process is gone."""
    try:
        with open(f"/proc/{pid}/schedstat", encoding="ascii") as file:
            return int(file.read(100).split()[0])
    except (OSError, ValueError, IndexError):
        return 0


def _runnable(pid: int) -> bool:
    """Whether it waits for a processor, as far as can be known."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            return file.read(500).rpartition(")")[2].split()[0] == "R"
    except (OSError, IndexError):
        return True
