"""Effects: runs `iptables-save` and `iptables-restore`, and tells what their failures mean for whoever wants to write.

Out: the saved text, or nothing; or an ApplyError. `retryable`: the kernel is busy, the lock is held (by whom is said), the tool hangs,
cannot be started or fails at everything: what is written stays as it is and the same may succeed soon. Not retryable: the tool works, and
it refuses this very input.

To tell the last two apart, a tool that refuses is asked to make and take away a chain in one commit, which changes nothing. Without that
question a kernel out of memory would look like one that refuses each Service in turn.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from kproxy.backends.iptables.failures import classify
from kproxy.backends.iptables.lock import lock_holder
from kproxy.backends.iptables.tools import Tools
from kproxy.errors import ApplyError, KproxyError
from kproxy.model.names import Family

_RACES = 3  # how often a commit that may have met a concurrent writer is tried
_RACE_PAUSE_S = 0.05
_HARMLESS = "*nat\n:KPROXY-PROBE - [0:0]\n-X KPROXY-PROBE\nCOMMIT\n"


@dataclass(frozen=True, slots=True)
class Done:
    """A tool that has ended."""

    exit_code: int
    stdout: str
    stderr: str


Runner = Callable[
    [Sequence[str], str, float], Awaitable[Done | None]
]  # program, input, seconds → None when it did not end


async def run_tool(program: Sequence[str], text: str, timeout_s: float) -> Done | None:
    """Runs one tool with `text` as its input; None when it had to be ended after `timeout_s`. Raises OSError if it cannot be started."""
    # The text is in a file, not in a pipe: a tool that ends without reading it all (or at all) closes a pipe under the writer, which
    # uvloop 0.23 answers with a RuntimeError, and a pipe has to be fed in pieces while its reader works.
    with open(os.memfd_create("iptables-input"), "w+b") as stdin:
        stdin.write(text.encode())
        stdin.seek(0)
        process = await asyncio.create_subprocess_exec(
            *program, stdin=stdin, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
    try:
        out, err = await asyncio.wait_for(process.communicate(), timeout_s)
    except TimeoutError:
        return None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return Done(process.returncode or 0, out.decode(errors="replace"), err.decode(errors="replace"))


async def save(tools: Tools, runner: Runner, family: Family) -> str:
    """All tables of `family`. Raises ApplyError or UnsupportedError."""
    return await _run(tools, runner, tools.program(family, "save"), "")


async def restore(tools: Tools, runner: Runner, family: Family, text: str) -> None:
    """Commits `text`, table by table. Raises ApplyError or UnsupportedError."""
    program = (*tools.program(family, "restore"), "--noflush", "-w", str(tools.lock_wait_s))
    for attempt in range(1, _RACES + 1):
        try:
            await _run(tools, runner, program, text)
            return
        except ApplyError as error:
            if "xtables lock" in error.detail:
                told = f"{error}; it is held by {lock_holder() or 'somebody who cannot be seen from here'}"
                raise ApplyError(told, retryable=True, batch=text, detail=error.detail) from error
            if error.retryable and not error.may_be_race:
                raise
            if error.retryable and attempt < _RACES:
                await asyncio.sleep(_RACE_PAUSE_S * attempt)
                continue
            works = await _works(tools, runner, program)
            raise ApplyError(str(error), retryable=not works, batch=text, detail=error.detail) from error


async def _works(tools: Tools, runner: Runner, program: Sequence[str]) -> bool:
    try:
        await _run(tools, runner, program, _HARMLESS)
    except KproxyError:
        return False
    return True


async def _run(tools: Tools, runner: Runner, program: Sequence[str], text: str) -> str:
    name = Path(program[0]).name
    try:
        done = await runner(program, text, tools.timeout_s)
    except OSError as error:
        told = f"{name} cannot be started: {error.strerror or error}"
        raise ApplyError(told, retryable=True, batch=text, detail=str(error)) from error
    if done is None:
        told = f"{name}: no end after {tools.timeout_s:g} s"
        raise ApplyError(told, retryable=True, batch=text, detail="timeout")
    if done.exit_code:
        raise classify(name, done.exit_code, done.stderr, text)
    return done.stdout
