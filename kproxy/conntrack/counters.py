"""What the reconciliation of conntrack did, one value for each family; metrics read it. Pure."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, replace

BUCKETS_S = tuple(0.001 * 2**n for n in range(15))  # upper bounds as in kube-proxy, 1 ms to 16.4 s


@dataclass(frozen=True, slots=True, kw_only=True)
class Counters:
    """durations: how many passes took at most the bucket's bound and longer than the one before it; the last is for all longer ones."""

    deleted: int = 0
    passes: int = 0
    seconds: float = 0.0
    durations: tuple[int, ...] = (0,) * (len(BUCKETS_S) + 1)

    def with_pass(self, deleted: int, duration_s: float) -> Counters:
        """These after one more pass."""
        at = bisect_left(BUCKETS_S, duration_s)
        durations = (*self.durations[:at], self.durations[at] + 1, *self.durations[at + 1 :])
        return replace(
            self,
            deleted=self.deleted + deleted,
            passes=self.passes + 1,
            seconds=self.seconds + duration_s,
            durations=durations,
        )
