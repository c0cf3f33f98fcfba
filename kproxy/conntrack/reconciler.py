"""When open flows are looked at: after each sync that matters to them, at start, and once more a second later.

In: the wanted state that was just written. Out: passes (apply.py), counters, a line in the log. What must not happen here: a wait in the
path of a sync. A pass runs after the rules, never before: a client that keeps sending would have its flow made anew by the old rules. The
second look finds what a packet in flight made by the old rules after the first one.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import time
from collections.abc import Callable
from pathlib import Path

from kproxy.conntrack import memory
from kproxy.conntrack.apply import Report, end, reconcile
from kproxy.conntrack.counters import Counters
from kproxy.conntrack.stale import Allowed, allowed, flows_concerned, known
from kproxy.model.desired import DesiredState
from kproxy.model.names import Family, Protocol
from kproxy.telemetry.logs import fields

log = logging.getLogger("kproxy.conntrack")

_SECOND_LOOK_S = 1.0
_REST = 4  # times the length of the last pass, so that a busy cluster's changes cost at most a fifth of a core
_LONGEST_REST_S = 5.0
_FIRST_RETRY_S, _LONGEST_RETRY_S = 1.0, 30.0


class Reconciler:
    """Keeps open flows of one protocol in step with the rules: one pass for every family after each sync that matters to them.

    tells: both sides of a TCP flow are reset before it is forgotten. remembered: the file that keeps what was known over a restart.
    """

    def __init__(
        self, protocol: Protocol = Protocol.UDP, *, tells: bool = False, remembered: Path | None = None
    ) -> None:
        self._protocol, self._end, self._remembered = protocol, end if tells else reconcile, remembered
        self._saved: memory.Keys = {}
        self.counters: dict[Family, Counters] = {family: Counters() for family in Family}
        self._rules: dict[Family, Allowed] = {family: Allowed() for family in Family}
        self._told = ""

    async def keep(self, written: asyncio.Event, wanted: Callable[[], tuple[DesiredState, frozenset[str]]]) -> None:
        """Runs for ever. `written` is set after each sync that went well, `wanted` gives what it wrote and the node's addresses."""
        looked: DesiredState | None = None
        retry_s = _FIRST_RETRY_S
        second_look: float | None = None  # when, on the monotonic clock
        await asyncio.to_thread(self._recall)
        while True:
            await _until(written, second_look)
            written.clear()
            desired, addresses = wanted()
            changed = flows_concerned(looked, desired, self._protocol)
            due = second_look is not None and time.monotonic() >= second_look
            if not changed and not due:
                continue
            started = time.monotonic()
            try:
                await (self.look(desired, addresses) if changed else self.look_again())
            except OSError as error:
                self._tell(str(error), retry_s)
                await asyncio.sleep(retry_s)
                retry_s = min(2 * retry_s, _LONGEST_RETRY_S)
                written.set()
                continue
            retry_s, self._told = _FIRST_RETRY_S, ""
            await asyncio.to_thread(self._remember)
            looked = desired if changed else looked
            second_look = time.monotonic() + _SECOND_LOOK_S if changed else None
            await asyncio.sleep(min(_REST * (time.monotonic() - started), _LONGEST_REST_S))

    async def look(self, desired: DesiredState, addresses: frozenset[str]) -> tuple[Report, ...]:
        """One pass with the rules of `desired`. OSError as `reconcile`, also when the kernel refused deletions."""
        return await self._pass(
            lambda family: allowed(desired.of(family), addresses, self._protocol).after(self._rules[family])
        )

    async def look_again(self) -> tuple[Report, ...]:
        """One more pass with the rules of the last."""
        return await self._pass(lambda family: self._rules[family])

    async def _pass(self, rules_of: Callable[[Family], Allowed]) -> tuple[Report, ...]:
        reports = []
        for family in Family:
            rules, report = await asyncio.to_thread(self._one, family, rules_of)
            reports.append(report)
            if rules:
                self.counters[family] = self.counters[family].with_pass(report.deleted, report.duration_s)
            self._say(family, report)
            if report.failed:
                raise OSError(errno.EBUSY, f"conntrack: {report.failed} stale flows could not be deleted")
            self._rules[family] = rules
        return tuple(reports)

    def _one(self, family: Family, rules_of: Callable[[Family], Allowed]) -> tuple[Allowed, Report]:
        rules = rules_of(family)
        return rules, self._end(family, rules)

    def _say(self, family: Family, report: Report) -> None:
        if not report.deleted:
            return
        told = {"clients_reset": report.told.clients, "endpoints_reset": report.told.endpoints}
        found = fields(
            family=family.value,
            deleted=report.deleted,
            flows=report.seen,
            seconds=round(report.duration_s, 3),
            **(told if self._end is end else {}),
        )
        log.info(f"Stale {self._protocol.value} flows deleted", extra=found)

    def _recall(self) -> None:
        """Takes over what the controller before knew; a flow of a Service that was removed meanwhile is found by it."""
        if self._remembered is None:
            return
        try:
            self._saved = memory.load(self._remembered)
        except FileNotFoundError:
            return
        except (OSError, ValueError) as error:
            log.warning("What was known of flows is lost", extra=fields(file=self._remembered, error=error))
            return
        self._rules = {family: known(self._saved[family]) for family in Family}

    def _remember(self) -> None:
        keys = {family: rules.keys for family, rules in self._rules.items()}
        if self._remembered is None or keys == self._saved:
            return
        try:
            memory.save(self._remembered, keys)
        except OSError as error:  # tried again after the next pass
            log.warning("What is known of flows cannot be kept", extra=fields(file=self._remembered, error=error))
            return
        self._saved = keys

    def _tell(self, error: str, retry_s: float) -> None:
        if error != self._told:
            self._told = error
            log.warning(
                f"Stale {self._protocol.value} flows stay until the next try",
                extra=fields(error=error, retry_s=retry_s),
            )


async def _until(written: asyncio.Event, moment: float | None) -> None:
    try:
        async with asyncio.timeout(None if moment is None else max(0.0, moment - time.monotonic())):
            await written.wait()
    except TimeoutError:
        pass
