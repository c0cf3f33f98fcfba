"""Effects: runs `iptables-save` and `iptables-restore`, and tells what their failures mean for whoever wants to write.

Out: the saved text, or nothing; or an ApplyError. `retryable`: the kernel is busy, the lock is held (by whom is said), the tool hangs,
cannot be started or fails at everything: what is written stays as it is and the same may succeed soon. Not retryable: the tool works, and
it refuses this very input.

To tell the last two apart, a tool that refuses is asked to make and take away a chain in one commit, which changes nothing. Without that
question a kernel out of memory would look like one that refuses each Service in turn.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import subprocess  # noqa: TID251 - an effect, too
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

from kproxy.backends.iptables.failures import classify
from kproxy.backends.iptables.lock import lock_holder
from kproxy.backends.iptables.tools import Tools
from kproxy.errors import ApplyError, KproxyError
from kproxy.model.names import Family

_PIPE_OCTETS = 1 << 20  # the most that an unprivileged process may ask for by default
_RACES = 3  # how often a commit that may have met a concurrent writer is tried
_RACE_PAUSE_S = 0.05
_LOOK_S = 0.002
_HARMLESS = "*nat\n:KPROXY-PROBE - [0:0]\n-X KPROXY-PROBE\nCOMMIT\n"


@dataclass(frozen=True, slots=True)
class Done:
    """A tool that has ended."""

    exit_code: int
    stdout: str
    stderr: str


Text = str | Iterator[str]  # pieces are given to the tool while the next ones are made
Runner = Callable[
    [Sequence[str], Text, float], Awaitable[Done | None]
]  # program, input, seconds → None when it did not end


async def run_tool(program: Sequence[str], text: Text, timeout_s: float) -> Done | None:
    """Runs one tool with `text` as its input; None when it had to be ended after `timeout_s`. Raises OSError if it cannot be started."""
    if not isinstance(text, str):
        return await _pour(program, text, timeout_s)
    # The text is in a file, not in a pipe: a tool that ends without reading it all (or at all) closes a pipe under the writer, which
    # uvloop 0.23 answers with a RuntimeError, and a pipe has to be fed in pieces while its reader works. What it prints likewise: a save of
    # 10,000 Services are 10 MB, which would wait in a full pipe whenever this process has something else to do, as decoding lists.
    with (
        open(os.memfd_create("iptables-input"), "w+b") as stdin,
        _Tool() as tool,
    ):
        stdin.write(text.encode())
        stdin.seek(0)
        tool.begin(program, stdin.fileno())
        try:
            return await tool.end(timeout_s)
        finally:
            await tool.ended()


class _Tool:
    """A tool while it runs, and the files that it prints to.

    Begun by `subprocess`, which does it with vfork, and not by the loop: uvloop's fork copies the page tables of a controller of 10,000
    Services, which holds everything up for 18 ms, and makes every page that is touched afterwards fault: 950 of them when the next Service
    was written, a millisecond of the three that it took to be answered.
    """

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._said = [open(os.memfd_create(f"iptables-{name}"), "w+b") for name in ("output", "errors")]  # noqa: SIM115

    def __enter__(self) -> _Tool:
        return self

    def __exit__(self, *_: object) -> None:
        """It has ended by now, see `ended`."""
        for file in self._said:
            file.close()

    def begin(self, program: Sequence[str], stdin: int) -> None:
        """Raises OSError when it cannot be started."""
        stdout, stderr = self._said
        self._process = subprocess.Popen(program, stdin=stdin, stdout=stdout, stderr=stderr)

    async def end(self, timeout_s: float) -> Done | None:
        """What came of it; None when it has not ended by then."""
        assert self._process is not None
        try:
            async with asyncio.timeout(timeout_s):  # wait_for of Python 3.11 may swallow a cancellation
                await _until_end(self._process)
        except TimeoutError:
            return None
        for file in self._said:
            file.seek(0)  # the tool's own position is this one, too
        out, err = (file.read().decode(errors="replace") for file in self._said)
        return Done(self._process.returncode, out, err)

    async def ended(self) -> None:
        """Ends it if it has not; one that is in the kernel takes its time."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            await _until_end(self._process)


async def _until_end(process: subprocess.Popen[bytes]) -> None:
    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    try:
        descriptor = os.pidfd_open(process.pid)
    except OSError:  # before Linux 5.3
        while process.poll() is None:  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(_LOOK_S)
        return
    loop.add_reader(descriptor, ended.set)
    try:
        await ended.wait()
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)
    process.wait()


async def _pour(program: Sequence[str], pieces: Iterator[str], timeout_s: float) -> Done | None:
    """As `run_tool`: a thread writes into a pipe, so that the tool reads on the other core while the next piece is being made here."""
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, _PIPE_OCTETS)
    made: SimpleQueue[bytes] = SimpleQueue()
    tool = _Tool()
    try:
        tool.begin(program, reading)
    except OSError:
        os.close(writing)
        tool.__exit__()
        raise
    finally:
        os.close(reading)
    writer = asyncio.ensure_future(asyncio.to_thread(_write, writing, made))
    try:
        for piece in pieces:
            made.put(piece.encode())
            await asyncio.sleep(0)
        made.put(b"")
        return await tool.end(timeout_s)
    finally:
        made.put(b"")
        await tool.ended()  # whatever is not read any more is refused to the writer
        await writer
        tool.__exit__()


def _write(pipe: int, made: SimpleQueue[bytes]) -> None:
    """Writes until an empty piece. A tool that ended early refuses the rest; why, it says itself."""
    try:
        with os.fdopen(pipe, "wb", buffering=0) as stream:
            while piece := made.get():
                rest = memoryview(piece)
                while rest:
                    rest = rest[stream.write(rest) :]
    except BrokenPipeError:
        pass


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


async def pour(tools: Tools, runner: Runner, family: Family, pieces: Iterator[str]) -> None:
    """Commits the pieces as one input. Once: whoever is refused has the text no more. Raises ApplyError or UnsupportedError."""
    await _run(tools, runner, (*tools.program(family, "restore"), "--noflush", "-w", str(tools.lock_wait_s)), pieces)


async def _works(tools: Tools, runner: Runner, program: Sequence[str]) -> bool:
    try:
        await _run(tools, runner, program, _HARMLESS)
    except KproxyError:
        return False
    return True


async def _run(tools: Tools, runner: Runner, program: Sequence[str], given: Text) -> str:
    name = Path(program[0]).name
    text = given if isinstance(given, str) else ""
    try:
        done = await runner(program, given, tools.timeout_s)
    except OSError as error:
        told = f"{name} cannot be started: {error.strerror or error}"
        raise ApplyError(told, retryable=True, batch=text, detail=str(error)) from error
    if done is None:
        told = f"{name}: no end after {tools.timeout_s:g} s"
        raise ApplyError(told, retryable=True, batch=text, detail="timeout")
    if done.exit_code:
        raise classify(name, done.exit_code, done.stderr, text)
    return done.stdout
