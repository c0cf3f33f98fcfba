"""Bringing a lab up, watching its events, taking it down: the outside half, used by the command line and by tests.

What comes in: the state directory and what the caller wishes. What comes out: events as dictionaries, in order, until the lab is ready
or ends.
"""

from __future__ import annotations

import fcntl
import json
import os
import select
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from kproxy import __version__
from kproxy.errors import ExitCode, KproxyError, UnsupportedError
from kproxy.lab import addressing, isolation, statefile
from kproxy.lab.isolation import LabSettings, Started
from kproxy.lab.statefile import LabState

_DOWN_LIMIT_S = 5.0


@dataclass(slots=True)
class Rising:
    """A lab that was just started by this process. Letting go of the leash without `detach` ends it."""

    started: Started
    state: LabState

    def events(self) -> Iterator[dict[str, object]]:
        """Events as they come, until the lab ends. KproxyError for its failure."""
        pending = b""
        while True:
            chunk = os.read(self.started.report_fd, 65536)
            if not chunk:
                return
            *lines, pending = (pending + chunk).split(b"\n")
            for line in lines:
                event = json.loads(line)
                if event["event"] == "failed":
                    text = str(event["text"])
                    raise UnsupportedError(text) if event.get("code") == ExitCode.UNSUPPORTED else KproxyError(text)
                yield event

    def waiting(self, seconds: float) -> bool:
        """True when an event can be read, or the lab has ended, within `seconds`."""
        return bool(select.select([self.started.report_fd], [], [], seconds)[0])

    def detach(self) -> None:
        """The lab lives on without this process."""
        os.write(self.started.leash_fd, b"d")


def open_directory(directory: Path) -> None:
    """Makes the state directory ready and clears what a killed lab left. KproxyError when a lab runs there."""
    statefile.make_dir(directory)
    if (state := statefile.running(directory)) is not None:
        raise KproxyError(
            f"a lab is up already (process {state.pid}, API at 127.0.0.1:{state.port}); `kproxy lab down` ends it"
        )
    _end_strays(directory)
    statefile.clear(directory)


def up(directory: Path, settings: LabSettings) -> Rising:
    """Starts a lab; its events tell when it is ready. UnsupportedError when this machine does not allow it."""
    statefile.make_dir(directory)
    with (directory / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise KproxyError(f"another `lab up` is at work in {directory}") from None
        open_directory(directory)
        with isolation.listen(settings.port) as door:
            port = door.getsockname()[1]
            started = isolation.start(replace(settings, port=port, directory=str(directory)), door)
        state = LabState(
            version=__version__,
            pid=started.pid,
            started=statefile.start_time(started.pid) or 0,
            api=settings.api,
            mode=settings.mode,
            variant=settings.variant,
            nodes=tuple(node.name for node in addressing.nodes(settings.nodes)),
            port=port,
            user_namespace=started.user_namespace,
        )
        statefile.save(directory, state)
    return Rising(started, state)


def down(directory: Path) -> LabState | None:
    """Ends the lab of `directory` and clears what is left; the state of the lab that was ended, None when none ran."""
    state = statefile.running(directory)
    if state is not None:
        for number in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.kill(state.pid, number)
            except ProcessLookupError:
                break
            except PermissionError as error:
                raise KproxyError(f"the lab of process {state.pid} belongs to another user") from error
            if _gone(state, _DOWN_LIMIT_S):
                break
    if directory.exists():
        _end_strays(directory)
        statefile.clear(directory)
    return state


def _end_strays(directory: Path) -> None:
    for pid in statefile.strays(directory):
        try:
            os.kill(pid, signal.SIGKILL)  # the lab's other processes die with it
        except (ProcessLookupError, PermissionError):
            pass


def _gone(state: LabState, seconds: float) -> bool:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if statefile.start_time(state.pid) != state.started:
            return True
        time.sleep(0.02)
    return False


def require(directory: Path) -> LabState:
    """The running lab, or an error that says how to get one."""
    state = statefile.running(directory)
    if state is None:
        raise KproxyError("no lab is up; `kproxy lab up` starts one")
    return state
