"""Counts what is given to the kernel's tools: a runner around the runner. Changes nothing about what is run.

In: a runner as apply.py has them. Out: the same, and numbers for the metrics: rules written by table, refused inputs by family, how long
each tool ran.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from kproxy.backends.iptables.tool_runs import Done, Runner, Text
from kproxy.model.names import Family
from kproxy.telemetry.histogram import SYNC_S, Histogram

_MAX_TOOLS = 32
_LOCKED = 4  # iptables' exit code for a resource problem: the lock, or memory


class Tally:
    """One for the life of a backend. `last`: (family, table) → rules written in the sync before `settle` was called."""

    def __init__(self, runner: Runner) -> None:
        self.restore_failures: Counter[Family] = Counter()
        self.lock_failures = 0
        self.last: Counter[tuple[Family, str]] = Counter()
        self.seconds: dict[str, Histogram] = {}
        self._runner = runner
        self._writing: Counter[tuple[Family, str]] = Counter()

    async def run(self, program: Sequence[str], text: Text, timeout_s: float) -> Done | None:
        """The runner's answer, counted."""
        name = Path(program[0]).name
        family = Family.IPV6 if name.startswith("ip6") else Family.IPV4
        started = time.monotonic()
        counted: Counter[str] = Counter()
        try:
            done = await self._runner(program, text if isinstance(text, str) else _counting(text, counted), timeout_s)
        except OSError:  # it cannot be started
            self.restore_failures[family] += "restore" in name
            raise
        if name in self.seconds or len(self.seconds) < _MAX_TOOLS:
            self.seconds.setdefault(name, Histogram(SYNC_S)).observe(time.monotonic() - started)
        if "restore" in name:
            if done is None or done.exit_code:
                self.restore_failures[family] += 1
                self.lock_failures += done is not None and done.exit_code == _LOCKED and "lock" in done.stderr
            else:
                for table, count in (written(text) if isinstance(text, str) else counted).items():
                    self._writing[family, table] += count
        return done

    def settle(self) -> None:
        """A sync has ended: what was written since the one before is what it wrote."""
        self.last, self._writing = self._writing, Counter()


def written(text: str) -> dict[str, int]:
    """Table → rules that this input of iptables-restore adds."""
    found: dict[str, int] = {}
    for part in text.split("\n*"):
        table, _, body = part.partition("\n")
        body = "\n" + body
        found[table.removeprefix("*").strip()] = body.count("\n-A ") + body.count("\n-I ")
    return {table: count for table, count in found.items() if table}


def _counting(pieces: Iterator[str], found: Counter[str]) -> Iterator[str]:
    """The pieces of an input of one table; the first begins with its name."""
    table = ""
    for piece in pieces:
        table = table or piece.partition("\n")[0].removeprefix("*")
        found[table] += written(f"*{table}\n{piece}").get(table, 0)
        yield piece
