"""Keeps those who answer names off the processor on which a tool holds the kernel.

iptables-legacy reads and replaces a whole table in one system call each, which most servers' kernels (preempt=none, =voluntary) do not
interrupt: with 10,000 Services of two endpoints 34 MiB, 90 and 140 ms on Linux 6.18. A DNS worker that waits for that processor answers
nobody so long, whatever its priority, and is moved to another one only when that has been idle for a while, which it hardly is on a busy
node. So while a tool runs, the workers may run everywhere else, and the scheduler moves them at once.

In: the process of a tool that has just begun. Effects: on which processors the DNS workers beside this process may run, until the tool has
ended; where they stay so because this process was killed, each mends it by itself (dns/feed.py). What must not happen here: touching a
process that somebody else has put on processors of his choice, or an error (whatever goes wrong, it is as if this were not).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_WORKERS = "kproxy-dns"
_PROCESSOR = 36  # field of /proc/PID/stat behind the name: where it ran last


class Aside:
    """Of one process and its siblings. everywhere: the processors that it may use itself."""

    def __init__(self, everywhere: frozenset[int] | None = None, parent: int | None = None) -> None:
        self._everywhere = frozenset(os.sched_getaffinity(0)) if everywhere is None else everywhere
        self._parent = os.getppid() if parent is None else parent

    @contextmanager
    def beside(self, tool: int) -> Iterator[None]:
        """While it lasts, `tool` (a process id) stays where it is and the workers stay away from there."""
        moved: list[int] = []
        with suppress(OSError, ValueError, IndexError):
            moved = self._move(tool)
        try:
            yield
        finally:
            for worker in moved:
                with suppress(OSError):  # it has ended
                    os.sched_setaffinity(worker, self._everywhere)

    def _move(self, tool: int) -> list[int]:
        if len(self._everywhere) < 2 or not (workers := self._workers()):
            return []
        fields = Path(f"/proc/{tool}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
        here = {int(fields[_PROCESSOR])}
        os.sched_setaffinity(tool, here)
        moved = []
        for worker in workers:
            with suppress(OSError):
                if os.sched_getaffinity(worker) == self._everywhere:
                    os.sched_setaffinity(worker, self._everywhere - here)
                    moved.append(worker)
        return moved

    def _workers(self) -> list[int]:
        children = Path(f"/proc/{self._parent}/task/{self._parent}/children").read_text(encoding="ascii").split()
        return [pid for pid in map(int, children) if _name(pid).startswith(_WORKERS)]


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
