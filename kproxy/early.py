"""The controller's process, begun before its configuration has been read: its imports take as long as the reading does, on another core.

    kproxy run ─┬─ begin ─▶ python -m kproxy.app -      imports everything, then waits for its flags on standard input
                ├─ flags and configuration are read and checked
                └─ hand_over ─▶ flags                   and this process becomes the supervisor, whose first child it is

In: the words of the command line. Out: a process id, for the supervisor. A command that ends instead (an error in the configuration, a
flag that only asks for something) takes the process back, which sees the end of its input and goes without a word. What must not happen
here: a look at the configuration, or more imports than the supervisor has.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

WAITS = "-"  # the argument of a controller that reads its flags from standard input
_ENDS = (
    "-h",
    "--help",
    "--version",
    "--write-config-to",
    "--init-only",
    "--cleanup",
)  # with these nothing is controlled
_MOST = 32_768  # octets of flags that a pipe surely takes at once


@dataclass(slots=True)
class _Begun:
    """pid: 0 when there is no such process (any more). pipe: where it reads its flags from."""

    pid: int = 0
    pipe: int = -1


_begun = _Begun()


def begin(words: Sequence[str]) -> None:
    """Starts a controller that waits, for a command line of `kproxy run` with these words; nothing where it would not come to control."""
    if _begun.pid or any(word.partition("=")[0] in _ENDS for word in words):
        return
    reading, writing = os.pipe()
    actions = [(os.POSIX_SPAWN_DUP2, reading, 0)]
    try:
        command = [sys.executable, "-m", "kproxy.app", WAITS]
        # A supervisor that begins anew (mode userspace) blocks signals, which survives exec: a controller without SIGCHLD would wait for
        # its first tool for ever.
        _begun.pid = os.posix_spawn(command[0], command, dict(os.environ), file_actions=actions, setsigmask=[])
    except OSError:
        os.close(writing)
        return  # the supervisor starts one in the ordinary way, and says why it cannot
    finally:
        os.close(reading)
    _begun.pipe = writing
    atexit.register(_take_back)


def hand_over(flags: Mapping[str, object]) -> int:
    """Gives the waiting controller its flags; its process id, 0 where there is none. This process has to become the supervisor next."""
    told = json.dumps(flags).encode()
    if not _begun.pid or len(told) > _MOST:
        _take_back()
        return 0
    try:
        os.write(_begun.pipe, told)
    except OSError:  # it has ended
        _take_back()
        return 0
    os.close(_begun.pipe)
    return _begun.pid


def flags_from(argument: str) -> dict[str, Any] | None:
    """The flags of `kproxy run` for a controller with this argument; None when there is nothing to control after all."""
    if argument != WAITS:
        found: dict[str, Any] = json.loads(argument)
        return found
    with open(0, "rb", closefd=False) as stream:
        told = stream.read()
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    return json.loads(told) if told else None


def _take_back() -> None:
    """Ends the process that waits, if there is one."""
    pid, _begun.pid = _begun.pid, 0
    if pid:
        os.close(_begun.pipe)
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
