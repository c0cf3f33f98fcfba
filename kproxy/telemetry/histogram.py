"""A histogram as plain integers: cheap to add to, turned into an exposition only when somebody asks. Pure."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate

SYNC_S = tuple(0.001 * 2**n for n in range(15))  # kube-proxy's for the duration of a sync: 1 ms to 16.4 s
# kube-proxy's for network programming latency: 0 (its way of merging lists leaves one), 0.25 s, 0.5 s, then by 1 s, 5 s and 30 s to 5 min
PROGRAMMING_S = (
    0.0,
    0.25,
    0.5,
    *map(float, range(1, 60)),
    *map(float, range(60, 116, 5)),
    *map(float, range(120, 301, 30)),
)
# Ours for the same: kube-proxy's first bucket (0.25 s) holds nearly everything that an idle node does.
FINE_S = (
    0.001, 0.002, 0.004, 0.006, 0.008, 0.01, 0.015, 0.02, 0.03, 0.04, 0.06, 0.08, 0.1, 0.15, 0.2, 0.3, 0.4, 0.6, 0.8,
    1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 10.0, 15.0, 20.0, 30.0, 60.0, 120.0, 300.0,
)  # fmt: skip
# client-go's for requests to the API server
REQUEST_S = (0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0)


class Histogram:
    """Counts values (seconds, as a rule) between the bounds it was made with; `bounds` are upper ones, inclusive, in order."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        """Counts one value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    @property
    def count(self) -> int:
        """How many values there were."""
        return sum(self.counts)

    @property
    def buckets(self) -> list[tuple[str, float]]:
        """Cumulative, with the labels that Prometheus' text form wants."""
        labels = [*(f"{bound:g}" for bound in self.bounds), "+Inf"]
        return list(zip(labels, map(float, accumulate(self.counts)), strict=True))
