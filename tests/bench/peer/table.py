"""Figures of a run → one table: medians with the fastest and slowest, the ratio, the goal and whether it is met."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from kproxy.backends.iptables.variant import Variant
from tests.support.proxies import Program


@dataclass(frozen=True, slots=True)
class Size:
    """How much is in the cluster."""

    services: int
    endpoints: int  # of each Service

    def __str__(self) -> str:
        return f"{self.services:,} x {self.endpoints}"


@dataclass(frozen=True, slots=True)
class Seen:
    """What a goal looks at: medians of kproxy and kube-proxy in one place of the table (None: not measured) and of its other rows."""

    ours: float
    theirs: float | None
    others: Callable[
        [str], float | None
    ]  # kproxy's median of another row, same size and variant; without rules: everybody's
    variant: Variant
    size: Size


@dataclass(frozen=True, slots=True)
class Goal:
    """What is wanted, in words, and whether it is so; None where this run does not tell."""

    text: str
    met: Callable[[Seen], bool | None]


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the table. `scale` turns seconds (or whatever was measured) into `unit`."""

    key: str
    text: str
    unit: str
    scale: float = 1.0
    digits: int = 2
    goal: Callable[[Variant, Size], Goal | None] = lambda _variant, _size: None


def at_most(times: float) -> Goal:
    """At most so many times kube-proxy's."""
    return Goal(f"<= {times:g} x kube-proxy", lambda s: None if s.theirs is None else s.ours <= times * s.theirs)


def below(limit: float, unit: str, scale: float = 1.0) -> Goal:
    """Below an absolute limit, given in `unit`."""
    return Goal(f"< {limit:g} {unit}", lambda s: s.ours * scale < limit)


def none_at_all() -> Goal:
    """Nothing of it."""
    return Goal("0", lambda s: s.ours == 0)


def compared(times: float, key: str, name: str) -> Goal:
    """At most so many times kproxy's own figure of another row."""

    def met(seen: Seen) -> bool | None:
        other = seen.others(key)
        return None if other is None else seen.ours <= times * other

    return Goal(f"<= {times:g} x {name}", met)


def _cold(variant: Variant, _size: Size) -> Goal:
    return at_most(1.2) if variant is Variant.LEGACY else Goal("10 times faster", _ten_times)


def _ten_times(seen: Seen) -> bool | None:
    if seen.size.services < 5000:
        return None  # kube-proxy's start over nft becomes slow with the number of Services
    return None if seen.theirs is None else seen.ours * 10 <= seen.theirs


def _change(variant: Variant, size: Size) -> Goal | None:
    if size.services >= 10_000:
        return below(600 if variant is Variant.LEGACY else 150, "ms", 1e3)
    return below(100, "ms", 1e3) if size.services == 1000 else None


def _always(goal: Goal) -> Callable[[Variant, Size], Goal]:
    return lambda _variant, _size: goal


ROWS: tuple[Row, ...] = (
    Row("cold.first", "cold start → a connection through the last Service", "s", goal=_cold),
    Row("cold.synced", "cold start → end of the first sync", "s", goal=_cold),
    Row("cold.cpu", "… CPU until then, itself and its tools", "s"),
    Row("restart", "restart over its own rules → end of the first sync", "s", goal=_always(at_most(0.3))),
    Row("restart.cpu", "… CPU until then, itself and its tools", "s"),
    Row("new", "new Service and its first slice → answered", "ms", 1e3, 0, _change),
    Row("write", "… of that the API server's writes", "ms", 1e3, 0),
    Row("change", "its one endpoint replaced → answered", "ms", 1e3, 0, _change),
    Row("floor", "… the floor: iptables-restore alone, one chain with one rule", "ms", 1e3, 0),
    Row("path.none", "connect, direct, no rules, p50", "us", 1e6, 0),
    Row("path.direct", "connect, direct, rules present, p50", "us", 1e6, 0, _always(compared(1.3, "path.none", "no rules"))),
    Row("path.first", "connect, first Service in the rules, p50", "us", 1e6, 0),
    Row("path.middle", "connect, middle Service, p50", "us", 1e6, 0),
    Row("path.last", "connect, last Service, p50", "us", 1e6, 0, _always(compared(1.3, "path.first", "first"))),
    Row("path.slowest", "connect, slowest of 50 Services spread over the rules, p50", "us", 1e6, 0),
    Row("path.none.p99", "connect, direct, no rules, p99", "us", 1e6, 0),
    Row("path.direct.p99", "connect, direct, rules present, p99", "us", 1e6, 0),
    Row("path.first.p99", "connect, first Service, p99", "us", 1e6, 0),
    Row("path.last.p99", "connect, last Service, p99", "us", 1e6, 0),
    Row("rss", "memory, RSS of all processes after the start", "MiB", 1, 0, _always(at_most(1.2))),
    Row("pss", "memory, PSS", "MiB", 1, 0),
    Row("rss.later", "memory, RSS after the changes", "MiB", 1, 0, _always(at_most(1.2))),
    Row("kill.failed", "SIGKILL and restart under 500 new connections/s: failed", "", 1, 0, _always(none_at_all())),
    Row("kill.connections", "… of", "", 1, 0),
    Row("kill.slowest", "… slowest connection", "ms", 1e3, 1),
    Row("kill.flows", "… long-lived TCP flows broken or stalled", "", 1, 0, _always(none_at_all())),
    Row("kill.moved", "… UDP flows that changed their endpoint", "", 1, 0, _always(none_at_all())),
    Row("kill.lost", "… UDP datagrams without an answer", "", 1, 0, _always(none_at_all())),
    Row("churn.p50", "100 endpoint changes/s: API write → answered by the new endpoint, p50", "ms", 1e3, 0),
    Row("churn.p99", "… p99", "ms", 1e3, 0, _always(below(1000, "ms", 1e3))),
    Row("churn.own.p50", "… programming latency by its own histogram (bucket), p50", "ms", 1e3, 0),
    Row("churn.own.p99", "… p99", "ms", 1e3, 0, _always(below(1000, "ms", 1e3))),
    Row("churn.rate", "… changes a second that the API server took", "/s", 1, 0),
    Row("churn.cpu", "… CPU, itself and its tools", "%", 100, 0),
    Row("churn.rss.start", "… RSS after the first minute", "MiB", 1, 0),
    Row("churn.rss.end", "… RSS at the end", "MiB", 1, 0, _always(compared(1.05, "churn.rss.start", "at the start"))),
)  # fmt: skip


@dataclass(slots=True)
class Figures:
    """All that was measured."""

    samples: dict[tuple[Size, Variant, Program, str], list[float]] = field(default_factory=dict)

    def add(self, size: Size, variant: Variant, program: Program, key: str, *values: float) -> None:
        """Takes samples of a row."""
        self.samples.setdefault((size, variant, program, key), []).extend(values)

    def median(self, size: Size, variant: Variant, program: Program, key: str) -> float | None:
        """The median, None where nothing was measured."""
        found = self.samples.get((size, variant, program, key))
        return statistics.median(found) if found else None

    def pooled(self, size: Size, variant: Variant, key: str) -> float | None:
        """kproxy's median; where no program is involved, that of all samples."""
        programs = tuple(Program) if key.startswith("path.none") else (Program.KPROXY,)
        found = [value for program in programs for value in self.samples.get((size, variant, program, key), ())]
        return statistics.median(found) if found else None

    def places(self) -> list[tuple[Size, Variant]]:
        """Sizes and variants, in the order they were measured in."""
        return list(dict.fromkeys((size, variant) for size, variant, _, _ in self.samples))

    def as_json(self) -> str:
        """Everything, samples included."""
        listed = []
        for (size, variant, program, key), values in self.samples.items():
            row = next(row for row in ROWS if row.key == key)
            listed.append({
                "services": size.services, "endpoints": size.endpoints, "variant": variant.value, "program": program.value,
                "row": key, "text": row.text, "unit": row.unit, "median": statistics.median(values) * row.scale,
                "min": min(values) * row.scale, "max": max(values) * row.scale, "samples": [v * row.scale for v in values],
            })  # fmt: skip
        return json.dumps(listed, indent=1)


def lines(figures: Figures) -> Iterator[tuple[str, ...]]:
    """Rows of text: what, size and variant, kube-proxy, kproxy, ratio, goal, met."""
    for size, variant in figures.places():
        for row in ROWS:
            if any((size, variant, program, row.key) in figures.samples for program in Program):
                yield _line(figures, size, variant, row)


def _line(figures: Figures, size: Size, variant: Variant, row: Row) -> tuple[str, ...]:
    theirs = figures.median(size, variant, Program.KUBE_PROXY, row.key)
    ours = figures.median(size, variant, Program.KPROXY, row.key)
    goal = row.goal(variant, size)
    ratio = f"{ours / theirs:.2f}" if ours is not None and theirs else ""
    met = ""
    if goal is not None and ours is not None:
        seen = Seen(ours, theirs, lambda key: figures.pooled(size, variant, key), variant, size)
        told = goal.met(seen)
        met = "" if told is None else "yes" if told else "NO"
    told_of = [_told(figures.samples.get((size, variant, program, row.key)), row) for program in Program]
    return (row.text, str(size), variant.value, *told_of, ratio, goal.text if goal else "", met)


def _told(values: list[float] | None, row: Row) -> str:
    if not values:
        return ""
    middle, low, high = (v * row.scale for v in (statistics.median(values), min(values), max(values)))
    spread = f" ({low:.{row.digits}f}-{high:.{row.digits}f})" if len(values) > 1 else ""
    return f"{middle:.{row.digits}f}{' ' if row.unit else ''}{row.unit}{spread}"


HEAD = ("", "Services", "variant", "kube-proxy", "kproxy", "ratio", "goal", "met")


def as_text(figures: Figures) -> str:
    """The table for a terminal."""
    table = [HEAD, *lines(figures)]
    widths = [max(len(line[n]) for line in table) for n in range(len(HEAD))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in table
    )


def as_markdown(figures: Figures) -> str:
    """The table for the README."""
    return "\n".join(_piped([HEAD, ("---",) * len(HEAD), *lines(figures)]))


def _piped(table: Iterable[tuple[str, ...]]) -> Iterator[str]:
    for line in table:
        yield f"| {' | '.join(line)} |"
