"""Who looks at answers, and what of them is shown: `kproxy dns observe`, and the `log` directive's lines.

In: answers, while somebody looks. Out: records in bounded number, and lines in the log. What must not happen here: a cost while nobody
looks (`active` is False then and nothing is called), waiting, or more than RECORDS_PER_S and LINES_PER_S, however many queries come. What
was left out is counted and told.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

from kproxy.dns.blocks import Log
from kproxy.dns.chain import Served
from kproxy.dns.clients import Client
from kproxy.dns.names import encode, is_below
from kproxy.dns.records import Seen, class_of, line, seen

log = logging.getLogger("kproxy.dns.queries")

RECORDS_PER_S = 2000
LINES_PER_S = 500
WAITING = 4000  # records that have not been fetched


class _Rate:
    """So many a second; what is beyond is counted."""

    def __init__(self, each_s: int) -> None:
        self._each_s = each_s
        self._left = float(each_s)
        self._since = time.monotonic()
        self.left_out = 0

    def allows(self) -> bool:
        now = time.monotonic()
        self._left = min(float(self._each_s), self._left + (now - self._since) * self._each_s)
        self._since = now
        if self._left < 1:
            self.left_out += 1
            return False
        self._left -= 1
        return True


class Observing:
    """Of one worker. switch: is told when looking begins and ends."""

    def __init__(self, switch: Callable[[bool], None]) -> None:
        self.active = False
        self.records: list[Seen] = []
        self._switch = switch
        self.observed = False
        self._logs: dict[int, tuple[Log, ...]] = {}
        self._zones: list[tuple[bytes, int]] = []
        self._local = "-"
        self._records = _Rate(RECORDS_PER_S)
        self._lines = _Rate(LINES_PER_S)

    def observe(self, on: bool) -> None:
        """Whether records are collected from now on."""
        self.observed = on
        if not on:
            self.records = []
        self._turn()

    def follow(self, served: Served) -> None:
        """The blocks of `served` say what is logged."""
        self._logs = {index: block.log for index, block in enumerate(served.blocks) if block.log}
        listen = served.settings.listen  # with several addresses it would take a look at the socket for every reply
        self._local = (f"[{listen[0]}]" if ":" in listen[0] else listen[0]) if len(listen) == 1 else "-"
        zones = [
            (encode(zone).lower(), index) for index, block in enumerate(served.blocks) for zone in _names(block.zones)
        ]
        self._zones = sorted(zones, key=lambda pair: -len(pair[0]))
        self._turn()

    def _turn(self) -> None:
        active = self.observed or bool(self._logs)
        if active != self.active:
            self.active = active
            self._switch(active)

    def take(self) -> tuple[list[Seen], int]:
        """The records collected since the last time, and how many were left out."""
        found, self.records = self.records, []
        left_out, self._records.left_out = self._records.left_out, 0
        return found, left_out

    def answered(
        self,
        data: bytes,
        reply: bytes,
        peer: Any,
        client: Client,
        took_s: float,
        how: str,
        proto: str,
        *,
        block: int | None = None,
        saved: int = 0,
    ) -> None:
        """One answer. block: None when only the question can tell (it came out of a cache)."""
        collected = self.observed and len(self.records) < WAITING and self._records.allows()
        logs = self._logs_of(data, block) if self._logs else ()
        if not collected and not logs:
            return
        one = seen(
            data,
            reply,
            at=time.time(),  # noqa: TID251 - for people
            client=peer[0],
            port=peer[1],
            pod=client.name,
            duration_s=took_s,
            how=how,
            proto=proto,
            saved=saved,
        )
        if collected:
            self.records.append(one)
        for directive in logs:
            if self._is_wanted(directive, one, data) and self._lines.allows():
                log.info("%s", line(one, directive.format.replace("{local}", self._local)))
                if self._lines.left_out:
                    log.warning("%d further lines about queries were left out", self._lines.left_out)
                    self._lines.left_out = 0

    def _logs_of(self, data: bytes, block: int | None) -> tuple[Log, ...]:
        if block is None:
            lowered = data[12:].lower()
            end = _end(lowered)
            block = next((index for zone, index in self._zones if is_below(lowered[:end], zone)), -1)
        return self._logs.get(block, ())

    def _is_wanted(self, directive: Log, one: Seen, data: bytes) -> bool:
        classes = set(directive.classes)
        if "all" not in classes and class_of(one) not in classes:
            return False
        if not directive.zones:
            return True
        lowered = data[12:].lower()
        name = lowered[: _end(lowered)]
        return any(is_below(name, encode(zone).lower()) for zone in directive.zones)


def _names(zones: tuple[str, ...]) -> list[str]:
    """Zones that are names; networks (reverse zones) are matched by the chain alone."""
    return [zone for zone in zones if "/" not in zone]


def _end(name: bytes) -> int:
    at = 0
    while at < len(name) and 0 < name[at] < 64:
        at += name[at] + 1
    return at + 1
