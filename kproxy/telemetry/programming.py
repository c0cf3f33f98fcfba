"""How long a change of endpoints takes until DNS answers it: CoreDNS's `dns_programming_duration_seconds`, as CoreDNS measures it.

From the slice's annotation `endpoints.kubernetes.io/last-change-trigger-time`, which whoever wrote the slice sets, to the moment
when the zone with the change was given to the workers; they have it a millisecond later. As there, only headless Services count: those of
the others have no endpoints in DNS. What must not happen here: an exception for what an object says, a clock.
"""

from __future__ import annotations

from kproxy.model.snapshot import Snapshot, differing
from kproxy.telemetry.counting import unix_of
from kproxy.telemetry.histogram import Histogram

KIND = "headless_with_selector"  # CoreDNS's label; the other two kinds it knows are not measured there either
PROGRAMMING_S = tuple(0.001 * 2**n for n in range(20))


class DnsProgramming:
    """Since `started`, Unix seconds: older times belong to an earlier life."""

    def __init__(self, started: float) -> None:
        self.seconds = Histogram(PROGRAMMING_S)
        self._started = started
        self._seen: Snapshot | None = None

    def published(self, snapshot: Snapshot, unix: float) -> None:
        """The zone of `snapshot` has been given to the workers at `unix`."""
        before, self._seen = self._seen, snapshot
        if before is None or before.slices is snapshot.slices:
            return
        for name in differing(before.slices, snapshot.slices):
            found, known = snapshot.slices.get(name), before.slices.get(name)
            if found is None or not found.last_change_trigger_time:
                continue
            service = snapshot.services.get(found.service)
            if service is None or not service.headless:
                continue
            if known is not None and known.last_change_trigger_time == found.last_change_trigger_time:
                continue
            at = unix_of(found.last_change_trigger_time)
            if at is not None and at > self._started:
                self.seconds.observe(max(0.0, unix - at))
