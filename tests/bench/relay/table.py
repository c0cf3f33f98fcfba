"""Figures of a run → one table: medians with the least and the most, kproxy against HAProxy and nothing, and whether goals are met."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from tests.bench.relay.ground import Way

Median = Callable[[Way], float | None]


@dataclass(frozen=True, slots=True)
class Row:
    """One row. scale: what was measured times this is in `unit`. times: kproxy is at least so much of HAProxy (`most`: at most)."""

    key: str
    text: str
    unit: str
    scale: float = 1.0
    digits: int = 0
    least: float | None = None
    most: float | None = None
    below: float | None = None  # an absolute goal, in `unit`
    above: float | None = None  # likewise

    def goal(self) -> str:
        """In words."""
        if self.least is not None:
            return f">= {self.least:g} x HAProxy"
        if self.most is not None:
            return f"<= {self.most:g} x HAProxy"
        if self.above is not None:
            return f">= {self.above:,g} {self.unit}".strip()
        return "" if self.below is None else f"< {self.below:g} {self.unit}".strip()

    def met(self, median: Median) -> bool | None:
        """None: this run does not tell."""
        ours, theirs = median(Way.KPROXY), median(Way.HAPROXY)
        if ours is None:
            return None
        if self.above is not None:
            return ours * self.scale >= self.above
        if self.below is not None:
            return ours * self.scale < self.below
        if theirs is None or (self.least is None and self.most is None):
            return None
        return ours >= (self.least or 0) * theirs if self.most is None else ours <= self.most * theirs


_US = {"unit": "us", "scale": 1e6, "digits": 1}
ROWS = (
    Row("stream.rate", "one stream (iperf3)", "Gb/s", 1e-9, 1, least=1.3),
    Row("stream.cpu", "… CPU for a gigabit", "ms", 1e3, 1),
    Row("keep.rate", "50 connections that are kept (wrk)", "requests/s", least=1.0),
    Row("keep.cpu", "… CPU for a request", **_US),  # type: ignore[arg-type]
    Row("keep.whole", "… of the whole machine, wrk and endpoints included", **_US),  # type: ignore[arg-type]
    Row("free.rate", "… wrk on whichever core has time", "requests/s", least=1.0),
    Row("free.whole", "… CPU of the whole machine for a request", **_US),  # type: ignore[arg-type]
    Row("each.rate", "one connection for each request (wrk)", "requests/s", least=0.9),
    Row("each.cpu", "… CPU for a connection", **_US),  # type: ignore[arg-type]
    Row("each.whole", "… of the whole machine", **_US),  # type: ignore[arg-type]
    Row("each_free.rate", "… wrk on whichever core has time", "requests/s", least=0.9),
    Row("each_free.whole", "… CPU of the whole machine for a connection", **_US),  # type: ignore[arg-type]
    Row("idle.memory", "an idle connection (RSS)", "octets", most=1.0),
    Row("idle.count", "… of so many", ""),
    Row("half.p99", "p99 at half of HAProxy's load", "us", 1e6, most=1.0),
    Row("half.rate", "… requests that were made", "requests/s"),
    Row("half.cpu", "… CPU for a request", **_US),  # type: ignore[arg-type]
    Row("dead.failed", "1 of 4 endpoints silent: failed requests of 2,000", "", below=0.5),
    Row("dead.added", "… added p99", "ms", 1e3, 1, below=300),
    Row("dead.slowest", "… slowest", "ms", 1e3),
    Row("dead.waited", "… requests that waited for it", ""),
    Row("dead.late", "… of those in the second half (ejected; probes)", "", below=10),
    Row("udp.rate", "UDP question and answer, 64 sessions", "/s", above=60_000),
    Row("udp.core", "… for a second of the worker's CPU", "/s"),
)  # fmt: skip


@dataclass(slots=True)
class Figures:
    """Everything measured: key → way → one value for each turn."""

    values: dict[str, dict[Way, list[float]]] = field(default_factory=dict)

    def add(self, way: Way, found: dict[str, float]) -> None:
        """The figures of one turn."""
        for key, value in found.items():
            self.values.setdefault(key, {}).setdefault(way, []).append(value)

    def median(self, key: str, way: Way) -> float | None:
        """None: not measured."""
        found = self.values.get(key, {}).get(way)
        return statistics.median(found) if found else None

    def ratio(self, key: str, peer: Way = Way.HAPROXY) -> float | None:
        """kproxy's to HAProxy's, turn by turn, the median of it: both had the same neighbours."""
        ours, theirs = (self.values.get(key, {}).get(way, []) for way in (Way.KPROXY, peer))
        pairs = [one / other for one, other in zip(ours, theirs, strict=False) if other]
        return statistics.median(pairs) if pairs else None

    def as_json(self) -> str:
        """All values."""
        return json.dumps({key: {way.value: found for way, found in by.items()} for key, by in self.values.items()})


def _cells(figures: Figures) -> Iterator[list[str]]:
    yield ["", *(way.value for way in Way), "kproxy / HAProxy (tracked)", "goal", "met"]
    for row in ROWS:
        if row.key not in figures.values:
            continue

        def median(way: Way, key: str = row.key) -> float | None:
            return figures.median(key, way)

        cells = [f"{row.text}, {row.unit}" if row.unit else row.text]
        for way in Way:
            found = [value * row.scale for value in figures.values[row.key].get(way, [])]
            if not found:
                cells.append("-")
                continue
            text = f"{statistics.median(found):,.{row.digits}f}"
            spread = f" ({min(found):,.{row.digits}f}-{max(found):,.{row.digits}f})" if len(found) > 1 else ""
            cells.append(text + spread)
        ratio, tracked, met = figures.ratio(row.key), figures.ratio(row.key, Way.TRACKED), row.met(median)
        second = "" if tracked is None else f" ({tracked:.2f})"
        cells += [
            "-" if ratio is None else f"{ratio:.2f}{second}",
            row.goal(),
            {None: "", True: "yes", False: "NO"}[met],
        ]
        yield cells


def as_markdown(figures: Figures) -> str:
    """A table for the README."""
    rows = [*_cells(figures)]
    lines = [f"| {' | '.join(cells)} |" for cells in rows]
    return "\n".join([lines[0], "|" + " --- |" * len(rows[0]), *lines[1:]])


def as_text(figures: Figures) -> str:
    """For a terminal."""
    rows = [*_cells(figures)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
