"""`lab check` from outside: brings a lab up if there is none, runs the exercises inside it, prints the report.

Progress goes to standard error (a bar on a terminal, one line per exercise otherwise), the report alone to standard output.
"""

from __future__ import annotations

import asyncio
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import kproxy
from kproxy.errors import ConfigError, ExitCode, KproxyError
from kproxy.lab import entering, lifecycle
from kproxy.lab.check.report import Line, as_json, as_table
from kproxy.lab.isolation import LabSettings
from kproxy.lab.statefile import LabState

if TYPE_CHECKING:
    from rich.progress import Progress


_FILE_WIDTH = 180  # of the table, where nobody's terminal says how wide it is


def known(ids: Sequence[str]) -> None:
    """ConfigError for a line that does not exist, before anything is started."""
    from kproxy.lab.check.run import chosen

    chosen(ids)


def examples_directory(asked: Path | None) -> Path:
    """Where the manifests are: as asked, or beside the package in a checkout, or below the working directory."""
    beside = Path(kproxy.__file__).resolve().parent.parent / "deploy" / "examples"
    for place in (asked, beside, Path.cwd() / "deploy" / "examples"):
        if place is not None and place.is_dir():
            return place.resolve()
    raise ConfigError("the manifests of deploy/examples are not here; name their directory with --examples")


def bring_up(directory: Path, settings: LabSettings, say: Callable[[str], None]) -> LabState:
    """Starts a lab and waits until it is ready. It stays on the leash: should this command be killed, the lab ends with it."""
    rising = lifecycle.up(directory, settings)
    try:
        for event in rising.events():
            if event["event"] == "ready":
                say(str(event["text"]))
                return rising.state
    except BaseException:
        lifecycle.down(directory)
        raise
    lifecycle.down(directory)
    raise KproxyError(f"the lab did not come up; its logs are in {directory / 'logs'}")


def run(state: LabState, directory: Path, examples: Path, ids: Sequence[str], *, as_json: bool) -> int:
    """Runs the lines inside the lab, prints the report, returns the exit code."""
    return entering.within(state, lambda: _inside(state, directory, examples, ids, json_wanted=as_json))


def _inside(state: LabState, directory: Path, examples: Path, ids: Sequence[str], *, json_wanted: bool) -> int:
    from kproxy.lab.check.run import check, chosen

    wanted, left_out = chosen(ids)
    with _Progress(len(wanted)) as progress:
        lines = asyncio.run(check(directory / "inside.config", examples, state, wanted, progress.done))
    if json_wanted:
        print(as_json(lines, left_out))
    else:
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else _FILE_WIDTH
        print(as_table(lines, left_out, width))
    return ExitCode.OK if all(line.passed for line in lines) else ExitCode.FINDINGS


class _Progress:
    """Says on standard error which lines are done."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._count = 0
        self._bar: Progress | None = None

    def __enter__(self) -> _Progress:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import Progress

            self._bar = Progress(console=Console(stderr=True), transient=True)
            self._bar.start()
            self._task = self._bar.add_task("exercises", total=self._total)
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def done(self, line: Line) -> None:
        """One line has ended."""
        self._count += 1
        if self._bar is not None:
            self._bar.update(
                self._task, completed=self._count, description=f"{line.id} {'passed' if line.passed else 'NOT passed'}"
            )
        else:
            verdict = "passed" if line.passed else "NOT passed"
            print(
                f"{self._count:3}/{self._total} {line.id:4} {verdict:10} {line.seconds:5.1f} s  {line.title}",
                file=sys.stderr,
                flush=True,
            )
