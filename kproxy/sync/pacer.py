"""When may the next sync run? A pure answer from what has happened so far.

kube-proxy pauses at least `minSyncPeriod` (1 s) after *every* sync, so a Service and its EndpointSlice written back to back take 1.2 s at
any speed of programming: the Service starts a sync, the slice comes a few milliseconds later and waits (reference measurements, "slice
must wait for the minimum pause"). Here the pause is as long as the last sync took and never longer than `minSyncPeriod`: an idle node
applies at once, a busy one spends at most half of its time in syncs and coalesces the rest, and a slow kernel slows it down by itself.
On a node whose DNS workers wait for a processor a quarter of the time is enough, and changes wait for `minSyncPeriod` as they do there: one
changed Service of 10,000 is 0.2 to 0.4 s of work, which holds a processor for most of it (iptables-legacy).

In: monotonic seconds. Out: a new Pacer value or a time. No clock is read here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

REST = 1.0  # pause after a sync, in multiples of its own duration
STRAINED_REST = 3.0  # … and where processors are short
LONGEST_STRAINED = 3.0  # and at most so many minimum periods
FIRST_RETRY_S = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Pacer:
    """What the pace depends on. All times are monotonic seconds; `min_period_s` and `max_retry_s` come from configuration."""

    min_period_s: float = 1.0
    max_retry_s: float = 30.0
    ended: float = float("-inf")
    duration_s: float = 0.0
    failures: int = 0
    rested: bool = False  # the last sync came after a rest

    def succeeded(self, started: float, ended: float) -> Pacer:
        """The pace after a sync that went well."""
        rested = started - self.ended >= self.min_period_s
        return replace(self, ended=ended, duration_s=ended - started, failures=0, rested=rested)

    def failed(self, started: float, ended: float) -> Pacer:
        """The pace after a sync that failed: the pause doubles up to `max_retry_s`."""
        return replace(self, ended=ended, duration_s=ended - started, failures=self.failures + 1)

    @property
    def pause_s(self) -> float:
        """How long to rest after the last sync."""
        rest = min(self.duration_s * REST, self.min_period_s)
        if self.failures == 0:
            return 0.0 if self.rested else rest
        retry: float = FIRST_RETRY_S * 2.0 ** min(self.failures - 1, 16)
        return max(rest, min(retry, self.max_retry_s))

    def next_run(self, now: float, *, strained: bool = False) -> float:
        """The earliest time for the next sync. strained: whether those who answer wait for a processor."""
        pause_s = self.pause_s
        if strained:
            longest_s = LONGEST_STRAINED * self.min_period_s
            pause_s = max(pause_s, min(max(STRAINED_REST * self.duration_s, self.min_period_s), longest_s))
        return max(now, self.ended + pause_s)
