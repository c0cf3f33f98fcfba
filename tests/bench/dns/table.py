"""Figures of a run → one table: medians with the least and the most, kproxy against CoreDNS, the goal and whether it is met."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from tests.bench.dns.servers import Server

Median = Callable[[Server], float | None]


@dataclass(frozen=True, slots=True)
class Goal:
    """What is wanted, in words, and whether the medians say so; None where this run does not tell."""

    text: str
    met: Callable[[Callable[[str, Server], float | None]], bool | None]


@dataclass(frozen=True, slots=True)
class Row:
    """One row. `scale` turns what was measured (seconds, mostly) into `unit`."""

    key: str
    text: str
    unit: str
    scale: float = 1.0
    digits: int = 0
    goals: tuple[Goal, ...] = ()


def _ours(median: Callable[[str, Server], float | None], key: str) -> float | None:
    """kproxy's figure that is like the others': without rules in its way, where that was measured."""
    alone = median(key, Server.WORKER)
    return alone if alone is not None else median(key, Server.KPROXY)


def _faster(key: str, times: float, other: Server = Server.COREDNS) -> Goal:
    def met(median: Callable[[str, Server], float | None]) -> bool | None:
        ours, theirs = _ours(median, key), median(key, other)
        return None if ours is None or theirs is None else ours >= times * theirs

    return Goal(f">= {times:g} x {other.value}", met)


def _at_most(key: str, times: float, extra: float = 0.0, words: str = "") -> Goal:
    def met(median: Callable[[str, Server], float | None]) -> bool | None:
        ours, theirs = median(key, Server.KPROXY), median(key, Server.COREDNS)
        return None if ours is None or theirs is None else ours <= times * theirs + extra

    return Goal(words or f"<= {times:g} x CoreDNS", met)


def _below(key: str, limit: float, words: str) -> Goal:
    def met(median: Callable[[str, Server], float | None]) -> bool | None:
        ours = median(key, Server.KPROXY)
        return None if ours is None else ours < limit

    return Goal(words, met)


def _near(key: str, other: str, times: float, words: str) -> Goal:
    """kproxy's own figure of another row, times this, is the most."""

    def met(median: Callable[[str, Server], float | None]) -> bool | None:
        ours, calm = median(key, Server.KPROXY), median(other, Server.KPROXY)
        return None if ours is None or calm is None else ours <= times * calm

    return Goal(words, met)


_US = {"unit": "us", "scale": 1.0, "digits": 1}
_MS = {"unit": "ms", "scale": 1e3, "digits": 2}

ROWS: tuple[Row, ...] = (
    Row("a.rate", "existing A, one core", "q/s", goals=(_faster("a.rate", 5), _faster("a.rate", 0.9, Server.NSD))),
    Row("a.cpu", "… CPU a query: its processes", **_US),
    Row("a.all", "… CPU a query: the whole machine, client too", **_US),
    Row("nx.rate", "NXDOMAIN of the search path, 10,000 names over and over", "q/s", goals=(_faster("nx.rate", 5),)),
    Row("nx.cpu", "… CPU a query: its processes", **_US),
    Row("nx.all", "… CPU a query: the whole machine, client too", **_US),
    Row("new.rate", "NXDOMAIN of the search path, each name once", "q/s", goals=(_faster("new.rate", 5),)),
    Row("new.cpu", "… CPU a query: its processes", **_US),
    Row("new.all", "… CPU a query: the whole machine, client too", **_US),
    Row("fwd.rate", "forwarded name, remembered", "q/s", goals=(_faster("fwd.rate", 3),)),
    Row("fwd.cpu", "… CPU a query: its processes", **_US),
    Row("fwd.all", "… CPU a query: the whole machine, client too", **_US),
    Row("walk.names", "outside name through a pod's search list (A and AAAA, 5 candidates)", "names/s",
        goals=(_faster("walk.names", 10), _faster("walk.names", 5, Server.AUTOPATH))),
    Row("walk.queries", "… queries a name", "", digits=1),
    Row("walk.cpu", "… CPU a name", **_US),
    Row("walk.mean", "… mean time of a name", "us", digits=0),
    Row("paced.mean", "10,000 q/s: mean latency", "ms", 1e-3, 3, (_below("paced.mean", 100, "< 0.1 ms"),)),
    Row("paced.p99", "… p99", "ms", 1e-3, 3),
    Row("paced.cpu", "… CPU a query", **_US),
    Row("write.all", "Service written → first right answer", **_MS),
    Row("write.post", "… until the API server's own answer", **_MS),
    Row("write.after", "… right answer after the API server's", **_MS,
        goals=(_at_most("write.after", 1, 1e-3, "CoreDNS + 1 ms"),)),
    Row("start.first", "start → first right answer", "s", digits=2, goals=(_at_most("start.first", 1.5),)),
    Row("start.again", "… started again on the same node", "s", digits=2),
    Row("start.cpu", "… CPU until 3 s after", "s", digits=2),
    Row("rss.dns", "RSS of DNS on two cores; kproxy's: workers, and what the controller has more with DNS than without", "MiB",
        goals=(_at_most("rss.dns", 1),)),
    Row("pss.dns", "… PSS", "MiB"),
    Row("rss.whole", "RSS of the whole node: kproxy against kube-proxy + CoreDNS", "MiB", goals=(_at_most("rss.whole", 1),)),
    Row("pss.whole", "… PSS", "MiB"),
    Row("rss.peak", "… most RSS at one moment of a relist", "MiB", goals=(_at_most("rss.peak", 1),)),
    Row("churn.p99", "1,000 endpoint changes/s at 20,000 q/s: p99", "ms", 1e-3, 2, (_below("churn.p99", 5000, "< 5 ms"),)),
    Row("churn.p50", "… p50", "ms", 1e-3, 3),
    Row("churn.max", "… slowest", "ms", 1e-3, 1),
    Row("churn.lost", "… queries lost", "", goals=(_below("churn.lost", 0.5, "0"),)),
    Row("churn.seen", "… a change → in the answers, p50", **_MS),
    Row("churn.seen99", "… p99", **_MS),
    Row("churn.rate", "… changes a second that were taken", "/s"),
    Row("churn.cpu", "… CPU of all its processes", "%", 100),
    Row("flood.calm", "a pod's p99 at 1,000 q/s, nobody else asks", "us"),
    Row("flood.other", "… while another pod asks 50,000 NXDOMAIN/s", "us",
        goals=(_near("flood.other", "flood.calm", 1.2, "<= 1.2 x without"),)),
    Row("flood.p50calm", "… p50 without", "us"),
    Row("flood.p50", "… p50 meanwhile", "us"),
    Row("flood.lost", "… queries lost", ""),
    Row("flood.rate", "… the flood's answers", "q/s"),
)  # fmt: skip


@dataclass(slots=True)
class Figures:
    """All that was measured."""

    samples: dict[tuple[str, Server], list[float]] = field(default_factory=dict)

    def add(self, key: str, server: Server, *values: float) -> None:
        """Takes samples of a row."""
        assert any(row.key == key for row in ROWS), key
        self.samples.setdefault((key, server), []).extend(values)

    def median(self, key: str, server: Server) -> float | None:
        """The median, None where nothing was measured."""
        found = self.samples.get((key, server))
        return statistics.median(found) if found else None

    def as_json(self) -> str:
        """Everything, samples included."""
        rows = {row.key: row for row in ROWS}
        listed = [
            {
                "row": key, "text": rows[key].text, "server": server.value, "unit": rows[key].unit,
                "median": statistics.median(values) * rows[key].scale, "samples": [v * rows[key].scale for v in values],
            }
            for (key, server), values in self.samples.items()
        ]  # fmt: skip
        return json.dumps(listed, indent=1)


HEAD = ("", *(server.value for server in Server), "kproxy : CoreDNS", "goal", "met")


def lines(figures: Figures) -> Iterator[tuple[str, ...]]:
    """Rows of text."""
    for row in ROWS:
        if any((row.key, server) in figures.samples for server in Server):
            told = [_told(figures.samples.get((row.key, server)), row) for server in Server]
            ours, theirs = _ours(figures.median, row.key), figures.median(row.key, Server.COREDNS)
            ratio = f"{ours / theirs:.2f}" if ours is not None and theirs else ""
            yield (row.text, *told, ratio, ", ".join(goal.text for goal in row.goals), _met(figures, row.goals))


def _met(figures: Figures, goals: Iterable[Goal]) -> str:
    found = [goal.met(figures.median) for goal in goals]
    return ", ".join("" if one is None else "yes" if one else "NO" for one in found).strip(", ")


def _told(values: list[float] | None, row: Row) -> str:
    if not values:
        return ""
    middle, low, high = (v * row.scale for v in (statistics.median(values), min(values), max(values)))
    spread = f" ({low:,.{row.digits}f}-{high:,.{row.digits}f})" if len(values) > 1 else ""
    return f"{middle:,.{row.digits}f}{' ' if row.unit else ''}{row.unit}{spread}"


def as_text(figures: Figures) -> str:
    """The table for a terminal."""
    table = [HEAD, *lines(figures)]
    widths = [max(len(line[n]) for line in table) for n in range(len(HEAD))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in table
    )


def as_markdown(figures: Figures) -> str:
    """The table for the README."""
    return "\n".join(f"| {' | '.join(line)} |" for line in (HEAD, ("---",) * len(HEAD), *lines(figures)))
