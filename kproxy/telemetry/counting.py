"""Counts what syncs and watch events do; metrics read it. Stands between the reflectors and the sync loop, and is told of every sync.

    reflectors ── emit ──▶ Counting ── emit ──▶ SyncLoop ── outcome ──▶ Counting

Network programming latency, as kube-proxy defines it: from the moment that a controller wrote into a slice's annotation
`endpoints.kubernetes.io/last-change-trigger-time` to the end of the sync that put the slice into the kernel. Every change of a slice
counts, also those that one sync gathers; a time before the start of this process, an unreadable one and one that has been told before
(an event about something else) do not, nor does a slice that is gone. The second measure, `change`, begins when the event reached this
process and needs nobody's clock but our own.

What must not happen here: holding an event up, keeping more than a bounded number of times, an exception for what an object says.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime

from kproxy.model.desired import DesiredState, FamilyState, Verdict
from kproxy.model.events import Applied, Event, Removed, Replaced
from kproxy.model.names import Family, NamespacedName
from kproxy.model.objects import EndpointSlice, Kind
from kproxy.model.snapshot import Snapshot, differing
from kproxy.sync.loop import SyncOutcome
from kproxy.telemetry.histogram import FINE_S, PROGRAMMING_S, SYNC_S, Histogram

MAX_PENDING = 10_000  # times waiting for a sync; what comes beyond is not measured
_COUNTED = (Kind.SERVICE, Kind.ENDPOINT_SLICE)


@dataclass(frozen=True, slots=True)
class _Trigger:
    text: str  # as the annotation has it: two equal texts are one change
    unix: float


class Counting:
    """All that is counted about changes and syncs since the start of this process. Histograms are in seconds."""

    def __init__(
        self,
        forward: Callable[[Event], None],
        snapshot: Callable[[], Snapshot],
        *,
        unix: Callable[[], float],
        monotonic: Callable[[], float],
    ) -> None:
        self.changes: dict[Kind, int] = dict.fromkeys(_COUNTED, 0)  # events seen, those that change nothing included
        self.syncs = Histogram(SYNC_S)  # every sync, failed ones included; each serves both families
        self.full_syncs = Histogram(SYNC_S)
        self.partial_syncs = Histogram(SYNC_S)
        self.partial_failures = 0
        self.programming = {family: Histogram(PROGRAMMING_S) for family in Family}
        self.programming_fine = {family: Histogram(FINE_S) for family in Family}
        self.change = Histogram(FINE_S)  # from the event to the kernel
        self.started = unix()  # Unix seconds
        self._forward, self._snapshot, self._unix, self._monotonic = forward, snapshot, unix, monotonic
        self._synced = Snapshot()  # what the kernel was last brought in step with
        self._triggers: dict[NamespacedName, list[_Trigger]] = {}
        self._arrivals: deque[float] = deque(maxlen=MAX_PENDING)

    def emit(self, event: Event) -> None:
        """Counts one event and passes it on."""
        match event:
            case Applied(object=decoded) if decoded.key.kind in _COUNTED:
                self.changes[decoded.key.kind] += 1
                known = self._known(decoded.key.kind).get(decoded.key.name)
                if decoded.object != known:
                    self._arrivals.append(self._monotonic())
                    self._note(decoded.object, known)
            case Removed(key=key) if key.kind in _COUNTED:
                self.changes[key.kind] += 1
                if key.kind is Kind.ENDPOINT_SLICE:
                    self._triggers.pop(key.name, None)
                if key.name in self._known(key.kind):
                    self._arrivals.append(self._monotonic())
            case Replaced(kind=kind, objects=objects) if kind in _COUNTED:
                self.changes[kind] += len(objects)
                if kind is Kind.ENDPOINT_SLICE and self._triggers:
                    listed = {decoded.key.name for decoded in objects}
                    self._triggers = {name: waiting for name, waiting in self._triggers.items() if name in listed}
                for decoded in objects:
                    self._note(decoded.object, self._known(kind).get(decoded.key.name))
        self._forward(event)

    def _known(self, kind: Kind) -> Mapping[NamespacedName, object]:
        snapshot = self._snapshot()
        return snapshot.services if kind is Kind.SERVICE else snapshot.slices

    def _note(self, now: object, before: object) -> None:
        """Remembers the trigger time of a slice, unless it says nothing about this change."""
        if not isinstance(now, EndpointSlice) or not now.proxied:
            return
        text = now.last_change_trigger_time
        if not text:
            self._triggers.pop(now.name, None)  # what was waiting is overtaken
            return
        if isinstance(before, EndpointSlice) and before.last_change_trigger_time == text:
            return
        unix = unix_of(text)
        if unix is None or unix <= self.started or len(self._triggers) >= MAX_PENDING:
            return
        waiting = self._triggers.setdefault(now.name, [])
        if len(waiting) < MAX_PENDING // 100 and all(trigger.text != text for trigger in waiting):
            waiting.append(_Trigger(text, unix))

    def observe(self, outcome: SyncOutcome) -> None:
        """Counts one sync."""
        took = outcome.ended - outcome.started
        self.syncs.observe(took)
        (self.full_syncs if outcome.full else self.partial_syncs).observe(took)
        if outcome.error is not None:
            self.partial_failures += not outcome.full
            return
        self._synced = outcome.snapshot
        while self._arrivals and self._arrivals[0] <= outcome.started:
            self.change.observe(outcome.ended - self._arrivals.popleft())
        if self._triggers:
            self._told(outcome.snapshot, self._unix())

    def _told(self, snapshot: Snapshot, unix: float) -> None:
        for name, waiting in list(self._triggers.items()):
            found = snapshot.slices.get(name)
            if found is None:
                continue  # not folded yet; had it been removed, it would have been forgotten
            texts = [trigger.text for trigger in waiting]
            if found.last_change_trigger_time not in texts:
                continue
            at = texts.index(found.last_change_trigger_time) + 1
            for trigger in waiting[:at]:
                self.programming[found.family].observe(max(0.0, unix - trigger.unix))
                self.programming_fine[found.family].observe(max(0.0, unix - trigger.unix))
            del waiting[:at]
            if not waiting:
                del self._triggers[name]

    def pending(self) -> dict[Kind, int]:
        """How many Services and slices differ from what the kernel was last brought in step with."""
        now = self._snapshot()
        return {
            Kind.SERVICE: len(differing(self._synced.services, now.services)),
            Kind.ENDPOINT_SLICE: len(differing(self._synced.slices, now.slices)),
        }


def unix_of(text: str) -> float | None:
    """RFC 3339 as Unix seconds; None for anything else, a time without a zone included."""
    try:
        found = datetime.fromisoformat(text[:40])
        return found.timestamp() if found.tzinfo is not None else None
    except (ValueError, OverflowError):
        return None


def without_local_endpoints(desired: DesiredState) -> dict[tuple[str, Family], int]:
    """(`internal` or `external`, family) → Service ports of policy Local that drop, because what could answer is on other nodes."""
    return {
        pair: count
        for family in Family
        for pair, count in zip((("internal", family), ("external", family)), _without(desired.of(family)), strict=True)
    }


def _without(state: FamilyState) -> tuple[int, int]:
    ports = state.service_ports.values()
    internal = sum(1 for p in ports if p.internal.when_empty is Verdict.DROP)
    external = sum(1 for p in ports if p.external.when_empty is Verdict.DROP)
    return internal, external
