"""Failures of queries, in the log: what the `errors` directive of their block says of them, and never more than LINES_PER_S.

In: a query that could not be answered, and why. Out: lines. What must not happen here: deciding which are told (`consolidation` does), an
unescaped byte of a client's name, or lines in the number of a flood's queries.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from time import monotonic

from kproxy.dns import names
from kproxy.dns.blocks import ServerBlock
from kproxy.dns.consolidation import Consolidation, Line
from kproxy.dns.recordtext import type_name
from kproxy.dns.wire import Query, Rcode

log = logging.getLogger("kproxy.dns.errors")

LINES_PER_S = 10

_LEVELS = {"warning": logging.WARNING, "error": logging.ERROR, "info": logging.INFO, "debug": logging.DEBUG}


class Failing:
    """Of one worker."""

    def __init__(self) -> None:
        self._blocks: tuple[ServerBlock, ...] = ()
        self._told: dict[int, Consolidation] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._left = float(LINES_PER_S)
        self._since = monotonic()
        self._left_out = 0

    def follow(self, blocks: Sequence[ServerBlock]) -> None:
        """The blocks in force. What the old ones have counted is told. Raises ValueError for a bad pattern, changing nothing."""
        if tuple(blocks) == self._blocks:
            return
        told = {index: Consolidation(block.errors) for index, block in enumerate(blocks) if block.errors is not None}
        self._tell(float("inf"))
        self._blocks, self._told = tuple(blocks), told

    def failed(self, block: int, query: Query, why: str) -> None:
        """A query of this block was answered SERVFAIL."""
        told = self._told.get(block)
        if told is None:
            return
        now = monotonic()
        line = told.take(f"{int(Rcode.SERVFAIL)} {names.decode(query.lowered)} {type_name(query.qtype)}: {why}", now)
        if line is not None:
            self._write(line, now)
        self._wake(now)

    def _wake(self, now: float) -> None:
        due = min((at for told in self._told.values() if (at := told.next_at()) is not None), default=None)
        if due is not None and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(max(0.0, due - now), self._later)

    def _later(self) -> None:
        self._timer = None
        now = monotonic()
        self._tell(now)
        self._wake(now)

    def _tell(self, now: float) -> None:
        for told in self._told.values():
            for line in told.due(now):
                log.log(_LEVELS[line.level], "%s", line.text)

    def _write(self, line: Line, now: float) -> None:
        self._left = min(float(LINES_PER_S), self._left + (now - self._since) * LINES_PER_S)
        self._since = now
        if self._left < 1:
            self._left_out += 1
            return
        self._left -= 1
        if self._left_out:
            log.warning("%d failures of queries were not told: there were too many", self._left_out)
            self._left_out = 0
        log.log(_LEVELS[line.level], "%s", line.text)
