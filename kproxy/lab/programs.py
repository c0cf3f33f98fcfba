"""The programs of a lab as its first process sees them: started, reaped, started again.

The first process is pid 1 of its namespace, so it inherits every orphan and must reap what it did not start as well. That is why this
is not `subprocess`: one `waitpid(-1)` loop serves all. What comes in: `Program` values. What goes out: processes, and a call of
`ended` for each that stops.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 10.0
_HEALTHY_AFTER_S = 30.0
HANDED_FD = 10  # where a program finds the descriptor it was given


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """One program of the lab. `argv[0]` is an absolute path. `hand` is a descriptor it finds as HANDED_FD, -1 for none."""

    name: str
    argv: tuple[str, ...]
    place: str = ""  # where it runs, for people
    hand: int = -1
    speaks: bool = False  # its stdout is read by the first process instead of going to its log


@dataclass(slots=True, kw_only=True)
class Running:
    """A program's present life. pid 0: not running."""

    program: Program
    pid: int = 0
    restarts: int = 0
    started: float = 0.0  # monotonic seconds
    pause_s: float = _FIRST_PAUSE_S
    stdout_fd: int = -1  # our end, when it speaks


@dataclass(slots=True, kw_only=True)
class Programs:
    """All programs of the lab."""

    logs: Path
    environment: Mapping[str, str]
    ended: Callable[[Running, int], None]  # (which, exit code or minus signal)
    all: dict[str, Running] = field(default_factory=dict)

    def start(self, program: Program) -> Running:
        """Starts a program, or starts it again."""
        running = self.all.setdefault(program.name, Running(program=program))
        if running.started:
            running.restarts += 1
        reading, writing = os.pipe() if program.speaks else (-1, -1)
        log = str(self.logs / f"{program.name}.log")
        appending = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        actions: list[tuple[object, ...]] = [
            (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 2, log, appending, 0o600),
            (os.POSIX_SPAWN_DUP2, writing, 1) if program.speaks else (os.POSIX_SPAWN_DUP2, 2, 1),
        ]
        if program.hand >= 0:
            actions.append((os.POSIX_SPAWN_DUP2, program.hand, HANDED_FD))
        running.pid = os.posix_spawn(
            program.argv[0], list(program.argv), dict(self.environment),
            file_actions=actions, setsid=True, setsigmask=[], setsigdef=[signal.SIGPIPE, signal.SIGINT],
        )  # fmt: skip
        if program.speaks:
            os.close(writing)
            running.stdout_fd = reading
        running.started = time.monotonic()
        return running

    def reap(self) -> None:
        """Collects every ended child and adopted orphan; to be called at each SIGCHLD."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            for running in self.all.values():
                if running.pid == pid:
                    running.pid = 0
                    if time.monotonic() - running.started > _HEALTHY_AFTER_S:
                        running.pause_s = _FIRST_PAUSE_S
                    self.ended(running, os.waitstatus_to_exitcode(status))

    def pause_before_restart(self, running: Running) -> float:
        """Seconds to wait before this program may start again; doubles while it keeps failing."""
        pause = running.pause_s
        running.pause_s = min(2 * pause, _LONGEST_PAUSE_S)
        return pause
