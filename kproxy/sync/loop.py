"""Two tasks between the watch and the kernel: one owns the snapshot, one writes rules.

    emit(event) ─▶ [pending] ─▶ keep_snapshot: fold ─▶ Snapshot ─┬─▶ zone ─▶ DNS workers   at once
                                                                 └─▶ keep_rules: resolve ─▶ compile ─▶ plan ─▶ apply   when the pacer allows

The snapshot is a value behind one reference: `keep_snapshot` replaces it, `keep_rules` reads it, nobody locks. What must not happen here:
a decision about a Service (model/resolve.py), a word of iptables (backends), a write before the API has been heard. Rules wait for
Services, EndpointSlices, the Node and the node's addresses; the zone for Services, EndpointSlices and Namespaces. Pods of this node only
improve DNS answers and hold nobody up.

A failed sync observes the kernel afresh and plans again from what is really there. Rules are never removed because a sync failed, and once
one sync went well nothing that the tools do ends the process: whatever they say, it is tried again.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from kproxy.backends.base import ApplyReport, Backend
from kproxy.errors import ApplyError, KproxyError, UnsupportedError
from kproxy.model.desired import DesiredState, NodeSettings
from kproxy.model.diff import summarize
from kproxy.model.events import Applied, Event
from kproxy.model.objects import Kind, Problem
from kproxy.model.resolve import Resolved, resolve_with_problems
from kproxy.model.snapshot import Snapshot, fold
from kproxy.sync.pacer import Pacer
from kproxy.sync.status import SyncStatus
from kproxy.telemetry.logs import fields

log = logging.getLogger("kproxy.sync")

RULES_NEED = frozenset({Kind.SERVICE, Kind.ENDPOINT_SLICE, Kind.NODE})
ZONE_NEEDS = frozenset({Kind.SERVICE, Kind.ENDPOINT_SLICE, Kind.NAMESPACE})
# Events are gathered for so long for each one of the round before: a lone one is acted upon at once, a thousand a second in twenty rounds
# instead of a hundred, in each of which maps are layered, zones compared and every DNS worker told.
GATHER_S = 0.002
LONGEST_GATHER_S = 0.05
# A new Service without endpoints is refused packets a moment later than it could be; in most cases its slices follow at once, and one sync
# instead of two serves it sooner.
SLICES_FOLLOW_S = 0.05
_LOOK_AGAIN_S = 0.25  # whether a pause has to be as long as it seemed: the node may be strained no longer
_LOOK_LASTS_S = 5.0  # how old an early look at the kernel may be for the first sync to start from it


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncOutcome:
    """What one sync did, for those who count, tell or remember. Monotonic seconds; `before` and `after` share what did not change.

    full: the kernel was observed first (start, after a failure, after drift). error: set when it failed, and then nothing else is new.
    """

    started: float
    ended: float
    snapshot: Snapshot
    before: DesiredState
    after: DesiredState
    full: bool
    report: ApplyReport
    error: ApplyError | None = None


@dataclass(slots=True)
class _Kernel:
    """What was last written, and what it was made from.

    applied: None when the kernel has to be observed first. observed: `applied` is what was seen at `looked`, not what was written.
    """

    applied: Any = None
    resolved: Resolved | None = None
    observed: bool = False
    looked: float = 0.0  # when it was observed, monotonic seconds


@dataclass(frozen=True, slots=True)
class _Done:
    """One sync that went well, and the snapshot that it was made from."""

    snapshot: Snapshot
    report: ApplyReport


class SyncLoop:
    """The controller's heart: give it events, run its two tasks in a task group."""

    def __init__(
        self,
        backend: Backend[Any, Any],
        settings: Callable[[Snapshot], NodeSettings],
        pacer: Pacer,
        publish_zone: Callable[[Snapshot], Awaitable[None]],
        before_first: Callable[[], Awaitable[None]] | None = None,
        strained: Callable[[], bool] = lambda: False,
    ) -> None:
        """before_first: awaited once, when everything has been heard and the first sync could begin.

        strained: whether processors are so short that syncs had better come seldomer.
        """
        self.snapshot = Snapshot()
        self.desired = DesiredState()
        self.status = SyncStatus()
        self.written = asyncio.Event()  # set by every sync that went well; who waits for it clears it
        self.observers: list[Callable[[SyncOutcome], None]] = []  # told of every sync, before the next one can start
        self._backend = backend
        self._settings = settings
        self._pacer = pacer
        self._publish_zone = publish_zone
        self._before_first = before_first
        self._strained = strained
        self._pending: list[Event] = []
        self._events = asyncio.Event()
        self._rules = asyncio.Event()
        self._kernel = _Kernel()
        self.turn = asyncio.Lock()  # held by a sync; by others only to keep syncs from starting
        self.started = 0  # syncs

    def emit(self, event: Event) -> None:
        """Takes one event; called by reflectors and the netlink watch, never blocks."""
        self._pending.append(event)
        self._events.set()

    def use(self, settings: Callable[[Snapshot], NodeSettings]) -> None:
        """Changes how this node's settings follow from a snapshot; the next sync obeys."""
        self._settings = settings
        self._queue()

    def renew(self) -> None:
        """Something besides snapshot and settings has changed that rules follow from: a sync, soon."""
        if self.heard_enough:
            self._queue()

    # For healing.py, which looks and never writes

    @property
    def busy(self) -> bool:
        """Whether a sync is under way."""
        return self.turn.locked()

    @property
    def applied(self) -> Any:
        """The ruleset that the kernel should hold now; None when that is not known (before the first sync, after a failure)."""
        return None if self._kernel.observed else self._kernel.applied

    def mend(self, observed: Any) -> None:
        """The kernel holds `observed` instead of what was written: the next sync, at once, starts from there."""
        self._kernel.applied, self._kernel.observed, self._kernel.looked = observed, True, time.monotonic()
        self._queue()

    def distrust(self) -> None:
        """The kernel may hold anything: the next sync, at once, looks first."""
        self._kernel.applied = None
        self._queue()

    def _queue(self, after_s: float = 0.0) -> None:
        now = time.monotonic()
        since = self.status.queued_since if self.status.queued_since is not None else now
        self.status = replace(self.status, queued_since=since, last_queued=time.time())
        if after_s:
            asyncio.get_running_loop().call_later(after_s, self._rules.set)
        else:
            self._rules.set()

    async def keep_snapshot(self) -> None:
        """Folds events as they come and publishes the zone; runs for ever."""
        events: list[Event] = []
        while True:
            await asyncio.sleep(min(len(events) * GATHER_S, LONGEST_GATHER_S))
            await self._events.wait()
            self._events.clear()
            events, self._pending = self._pending, []
            before = self.snapshot
            self.snapshot = fold(before, events)
            if self.snapshot is before:
                continue
            # The zone first: telling the DNS workers takes a fraction of a millisecond, and whoever waits for a new name waits for this.
            # Deciding upon rules takes longer, and who is woken first acts first.
            if self.snapshot.synced >= ZONE_NEEDS:
                await self._publish_zone(self.snapshot)
                if not self.status.dns_published:
                    self.status = replace(self.status, dns_published=True)
            _log_problems(before, self.snapshot)
            self.status = replace(
                self.status,
                synced=self.snapshot.synced,
                services=len(self.snapshot.services),
                slices=len(self.snapshot.slices),
                problems=self._problems(),
            )
            if self.heard_enough:
                self._queue(SLICES_FOLLOW_S if all(_awaits_slices(e, before, self.snapshot) for e in events) else 0.0)

    async def keep_rules(self) -> None:
        """Brings the kernel to the wanted state whenever it changed and the pacer allows; runs for ever."""
        self.status = replace(self.status, writer=True)
        with suppress(KproxyError):  # the first sync looks again, and says what is wrong
            await self._look()  # while the API is being listed: it is a child process that works
        await self._rules.wait()
        if self._before_first is not None:
            await self._before_first()
        while True:
            await self._rules.wait()
            while (pause_s := self._pause_s()) > 0.0:  # noqa: ASYNC110 - time passes, and nobody tells
                await asyncio.sleep(min(pause_s, _LOOK_AGAIN_S))
            await self.sync()

    def _pause_s(self) -> float:
        now = time.monotonic()
        return self._pacer.next_run(now, strained=self._strained()) - now

    @property
    def heard_enough(self) -> bool:
        """Whether the snapshot holds all that rules follow from; less would look like Services that are gone."""
        return self.snapshot.synced >= RULES_NEED and bool(self.snapshot.local_addresses)

    async def sync(self) -> bool:
        """One sync now, from the present snapshot; whether it went well. Nothing at all while the snapshot has not heard enough."""
        async with self.turn:
            self._rules.clear()
            if not self.heard_enough:
                return False
            self.started += 1
            started = time.monotonic()
            queued_since, before = self.status.queued_since, self.desired
            full = self._kernel.applied is None or self._kernel.observed
            self.status = replace(self.status, queued_since=None)
            try:
                done = await self._sync_once()
            except (ApplyError, UnsupportedError) as error:
                if isinstance(error, UnsupportedError) and not self.status.syncs:
                    raise  # this machine cannot do it at all
                self._failed(error, started, queued_since, full)
                return False
            except BaseException:  # cancelled half-way: what the kernel holds has to be looked at
                self._kernel.applied = None
                raise
            ended = time.monotonic()
            self._pacer = self._pacer.succeeded(started, ended)
            self._succeeded(done.report, ended - started)
            self._tell(SyncOutcome(
                started=started, ended=ended, snapshot=done.snapshot, before=before, after=self.desired, full=full,
                report=done.report,
            ))  # fmt: skip
            return True

    def _failed(
        self, error: ApplyError | UnsupportedError, started: float, queued_since: float | None, full: bool
    ) -> None:
        ended = time.monotonic()
        self._kernel.applied = None
        self._pacer = self._pacer.failed(started, ended)
        self.status = replace(
            self.status,
            failures=self.status.failures + 1,
            last_error=str(error),
            queued_since=queued_since or started,
        )
        told = error if isinstance(error, ApplyError) else ApplyError(str(error), retryable=False)
        log.error("Sync failed", extra=fields(error=error, detail=told.detail, retry_s=self._pacer.pause_s))
        self._rules.set()
        self._tell(SyncOutcome(
            started=started, ended=ended, snapshot=self.snapshot, before=self.desired, after=self.desired, full=full,
            report=ApplyReport(), error=told,
        ))  # fmt: skip

    def _tell(self, outcome: SyncOutcome) -> None:
        for observer in self.observers:
            observer(outcome)

    async def _look(self) -> None:
        kernel, looked = self._kernel, time.monotonic()
        kernel.applied = await self._backend.observe()
        kernel.observed, kernel.looked = True, looked

    async def _sync_once(self) -> _Done:
        kernel = self._kernel
        if kernel.applied is None or (kernel.observed and time.monotonic() - kernel.looked > _LOOK_LASTS_S):
            await self._look()
        snapshot = self.snapshot  # now: observing takes a while
        known = kernel.resolved.desired if kernel.resolved else None
        resolved = resolve_with_problems(snapshot, self._settings(snapshot), known)
        changes = summarize(self.desired, resolved.desired)
        wanted, report = await self._backend.bring(kernel.applied, resolved.desired)
        # What the kernel refused is not in it: the next sync has to find that out by looking.
        kernel.applied = wanted if not report.problems else None
        kernel.observed = False
        kernel.resolved = resolved
        self.desired = resolved.desired
        if changes or report.batches:
            log.info(
                "Synced", extra=fields(changed=changes or "nothing", batches=report.batches, rules=report.rules_written)
            )
        return _Done(snapshot, report)

    def _succeeded(self, report: ApplyReport, duration_s: float) -> None:
        for problem in report.problems:
            log.warning("The kernel refused a Service port", extra=fields(problem=problem))
        self.status = replace(
            self.status,
            syncs=self.status.syncs + 1,
            last_success=time.time(),
            last_duration_s=duration_s,
            last_error="",
            service_ports=len(self.desired.ipv4.service_ports) + len(self.desired.ipv6.service_ports),
            problems=self._problems(),
        )
        self.written.set()

    def _problems(self) -> tuple[Problem, ...]:
        found = [problem for problems in self.snapshot.problems.values() for problem in problems]
        if self._kernel.resolved is not None:
            found.extend(self._kernel.resolved.problems)
        return tuple(sorted([*found, *self._backend.refused]))


def _awaits_slices(event: Event, before: Snapshot, after: Snapshot) -> bool:
    """Whether an event brings a new Service that has no slice yet: all that follows from it is a refusal."""
    if not isinstance(event, Applied) or event.object.key.kind is not Kind.SERVICE:
        return False
    name = event.object.key.name
    return name not in before.services and not after.slices_of.get(name)


def _log_problems(before: Snapshot, after: Snapshot) -> None:
    if before.problems is after.problems:
        return
    for key, problems in after.problems.items():
        if before.problems.get(key) != problems:
            for problem in problems:
                log.warning("Bad object", extra=fields(problem=problem))
