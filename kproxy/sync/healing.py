"""Notices that somebody else changed our rules, and has the sync loop put them right; only what differs is written.

    every period   glance     has anything changed that we did not write?       microseconds
    if so          count      do all chains hold as many rules as wanted?       0.15 s for 80,000 rules; rests 9 times as long
    if not, and once a minute
                   compare    is every rule as it was written?                  a second; rests 100 times as long
    if it differs  mend       observe, and a sync that starts from there

Why three: a node where a network plug-in adds a rule for each pod changes its tables all day, and reading 80,000 rules for each of those
would cost more than the proxying. glance.py has the figures. Counting cannot see a rule replaced by another one; comparing does, a minute
later. Where the kernel does not answer the cheap questions, rules are compared instead, at a twentieth of a core.

Our own writes change the tables as well: nothing is looked at while a sync runs, and what was looked at meanwhile is thrown away. What must
not happen here: a write (the sync loop does it, in its own order), a decision about a rule.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

from kproxy.backends.base import Backend
from kproxy.errors import KproxyError
from kproxy.sync.drift import SHOWN, DriftFound, DriftStatus, Patience
from kproxy.sync.loop import SyncLoop, SyncOutcome
from kproxy.telemetry.logs import fields

log = logging.getLogger("kproxy.healing")

_DISCARDED = 3  # looks in a row that a sync overtook; the next one makes syncs wait
_NAMED = 3  # differences in the log line

R = TypeVar("R", contravariant=True)
T = TypeVar("T")


class Look(Protocol):
    """What a glance shows: `others` stays the same while nobody but us writes, `all` while nobody does at all."""

    @property
    def others(self) -> object: ...
    @property
    def all(self) -> object: ...


class Guard(Protocol[R]):
    """What a data plane offers for finding drift cheaply. All may raise OSError and ValueError."""

    def glance(self, applied: R) -> Look:
        """Costs next to nothing."""

    def disagreeing(self, applied: R) -> tuple[str, ...]:
        """Which parts do not hold as much as `applied`; blocks, called in a thread."""

    async def unchanged(self, applied: R) -> bool:
        """Whether every rule is as it was written. False is no proof: `differences` tells. Raises KproxyError."""

    def differences(self, applied: R, observed: R) -> Sequence[str]:
        """What would have to be written to lead from `observed` to `applied`, in words; empty when nothing would."""


@dataclass(slots=True)
class _Seen:
    """What the last look showed, and of which ruleset."""

    look: Look | None = None
    applied: object = None
    discarded: int = 0
    mending: bool = False
    blind: str = ""  # why the kernel does not answer
    explained: tuple[str, ...] = ()  # counts that disagree although all is well


class Healer:
    """Give it the loop and a guard, run `keep` in the task group. now: monotonic seconds."""

    def __init__(
        self,
        loop: SyncLoop,
        backend: Backend[Any, Any],
        guard: Guard[Any],
        patience: Patience,
        *,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.status = DriftStatus()
        self.observers: list[Callable[[DriftFound], None]] = []  # told of every finding
        self._loop, self._backend, self._guard = loop, backend, guard
        self._patience = patience
        self._now = now
        self._seen = _Seen()
        loop.observers.append(self._told)

    async def keep(self) -> None:
        """Looks for ever."""
        self.status = replace(self.status, watched=True)
        while True:
            await asyncio.sleep(self._patience.pause_s)
            async with self._loop.turn:
                pass
            await self.look()

    async def look(self) -> None:
        """One look now; nothing while there is nothing written to compare with."""
        applied, now = self._loop.applied, self._now()
        if self._loop.busy:
            return
        if applied is None:
            # Parts were refused, and nothing has changed since. (A sync that failed is tried again anyway.)
            if self._loop.status.syncs and now >= self._patience.compare_at:
                self._patience = self._patience.compared(now, now)
                self._loop.distrust()
            return
        changed = self._glance(applied)
        if changed:
            if now >= self._patience.count_at:
                await self._count(applied)
        elif now >= (self._patience.compare_at if changed is False else self._patience.blind_at):
            await self._compare(applied, None)

    def _glance(self, applied: object) -> bool | None:
        """Whether somebody else may have written since the last look that was followed up; None when that cannot be told."""
        seen = self._seen
        self.status = replace(self.status, looks=self.status.looks + 1)
        try:
            look = self._guard.glance(applied)
        except (OSError, ValueError) as error:
            self._cannot_tell(error)
            return None
        before = seen.look
        quiet = before is not None and look.others == before.others
        if before is None or not quiet or (seen.applied is applied and look.all != before.all):
            return True
        self._in_order(look, applied)
        return False

    def _in_order(self, look: Look, applied: object) -> None:
        """What `look` shows is what later ones are held against."""
        self._seen.look, self._seen.applied, self._seen.blind = look, applied, ""
        self._patience = self._patience.calm(self._now())
        if self.status.contested != self._patience.contested:
            self.status = replace(self.status, contested=self._patience.contested)

    def _cannot_tell(self, error: Exception) -> None:
        self.status = replace(self.status, failures=self.status.failures + 1)
        if self._seen.blind != str(error):
            self._seen.blind = str(error)
            log.warning(
                "The kernel does not say whether rules changed; they are compared instead", extra=fields(error=error)
            )

    async def _count(self, applied: object) -> None:
        started = self._now()
        try:
            look = self._guard.glance(applied)  # first: what changes while counting is found by the next look
            off = await self._undisturbed(lambda: asyncio.to_thread(self._guard.disagreeing, applied))
        except (OSError, ValueError) as error:
            self._cannot_tell(error)
            await self._compare(applied, None)
            return
        self._patience = self._patience.counted(started, self._now())
        if off is None:
            return
        self.status = replace(self.status, counts=self.status.counts + 1)
        if off == self._seen.explained:  # not also when all agrees: a lost rule may hide behind somebody's jump
            self._in_order(look, applied)
            return
        log.debug("Chains do not hold as many rules as were written", extra=fields(chains=", ".join(off[:SHOWN])))
        await self._compare(applied, look, off)

    async def _compare(self, applied: object, look: Look | None, off: tuple[str, ...] = ()) -> None:
        """Reads every rule. off: the chains whose counts are the reason."""
        started = self._now()
        try:
            same = await self._undisturbed(lambda: self._guard.unchanged(applied))
            observed = None if same in (True, None) else await self._undisturbed(self._backend.observe)
        except KproxyError as error:
            self._patience = self._patience.compared(started, self._now())
            self._unreadable(error, suspicious=bool(off))
            return
        self._patience = self._patience.compared(started, self._now())
        if same is None or (not same and observed is None):  # a sync came in between
            return
        self.status = replace(self.status, comparisons=self.status.comparisons + 1)
        if not same and (differences := self._guard.differences(applied, observed)):
            self._found(differences, observed)
            return
        # Counts that disagree although every rule is in its place: somebody's own rules jump to our chains.
        self._seen.explained = off
        if look is not None:
            self._in_order(look, applied)

    def _unreadable(self, error: KproxyError, *, suspicious: bool) -> None:
        self.status = replace(self.status, failures=self.status.failures + 1)
        log.warning("Rules cannot be read", extra=fields(error=error))
        if suspicious:  # the loop tries until it succeeds, and health tells how long that takes
            self._seen.mending = True
            self._loop.distrust()

    def _found(self, differences: Sequence[str], observed: object) -> None:
        before = self._patience.contested
        self._patience = self._patience.found(self._now())
        contested = self._patience.contested
        self.status = replace(
            self.status,
            found=self.status.found + 1,
            differences=len(differences),
            last=tuple(differences[:SHOWN]),
            last_found=self._now(),
            contested=contested,
        )
        log.warning(
            "Rules are not as they were written; mending",
            extra=fields(differences=len(differences), first="; ".join(differences[:_NAMED])),
        )
        if contested and not before:
            log.error(
                "Somebody undoes what is mended; mending slows down", extra=fields(pause_s=self._patience.pause_s)
            )
        told = DriftFound(
            differences=len(differences),
            shown=tuple(differences[:SHOWN]),
            contested=contested,
            first_contested=contested and not before,
        )
        for observer in self.observers:
            observer(told)
        self._seen.look, self._seen.mending = None, True
        self._loop.mend(observed)

    async def _undisturbed(self, work: Callable[[], Awaitable[T]]) -> T | None:
        """What `work` finds; None when a sync wrote meanwhile, for then it found neither the old state nor the new one."""
        seen, loop = self._seen, self._loop
        if seen.discarded >= _DISCARDED:  # a node this busy would never be looked at
            async with loop.turn:
                seen.discarded = 0
                return await work()
        started = loop.started
        result = await work()
        if loop.busy or loop.started != started:
            seen.discarded += 1
            return None
        seen.discarded = 0
        return result

    def _told(self, outcome: SyncOutcome) -> None:
        if outcome.error is not None or not outcome.full:
            return
        self._patience = self._patience.observed(self._now())
        if self._seen.mending:
            self._seen.mending = False
            self.status = replace(self.status, mended=self.status.mended + 1)
            log.info("Mended", extra=fields(rules=outcome.report.rules_written, took_s=outcome.ended - outcome.started))
