"""What has to happen to the kernel's rules, as values, and as input of `iptables-restore --noflush`.

A `Change` is what has to happen together, a `Batch` the changes that go to the kernel in one turn, a `Plan` the batches in order. Each
batch is written in sections, one table's commit each: nothing at all of a section is in force, or everything.

What must not happen here: deciding what has to change (plan.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Set
from dataclasses import dataclass, field, replace
from enum import Enum

from kproxy.backends.iptables.rules import Rule
from kproxy.backends.iptables.ruleset import Chain, Place, Ruleset, declaration
from kproxy.model.names import Family, ServicePortName


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What has to happen together. Lists in the order in which `render_batch` writes them.

    written: chains emptied and filled. appended, inserted, deleted: single rules of chains that stay. removed: chains that go.
    """

    owner: ServicePortName | None = None
    written: tuple[tuple[Place, Chain], ...] = ()
    appended: tuple[tuple[Place, Rule], ...] = ()
    inserted: tuple[tuple[Place, Rule], ...] = ()
    deleted: tuple[tuple[Place, Rule], ...] = ()
    removed: tuple[Place, ...] = ()

    @property
    def lines(self) -> int:
        """How many lines of restore input this becomes."""
        written = sum(len(chain) + 1 for _, chain in self.written)
        return written + len(self.appended) + len(self.inserted) + len(self.deleted) + 2 * len(self.removed)

    @property
    def rules_written(self) -> int:
        """How many rules are added."""
        return sum(len(chain) for _, chain in self.written) + len(self.appended) + len(self.inserted)

    def without(self, missing: Set[str]) -> Change:
        """The same without what leads to `missing` chains, in whatever writes whole chains or appends to them."""
        if not any(rule.jump in missing for _, chain in self.written for rule in chain) and not any(
            rule.jump in missing for _, rule in self.appended
        ):
            return self
        written = [(place, tuple(rule for rule in chain if rule.jump not in missing)) for place, chain in self.written]
        appended = [(place, rule) for place, rule in self.appended if rule.jump not in missing]
        return replace(self, written=tuple(written), appended=tuple(appended))

    def halves(self) -> tuple[Change, Change] | None:
        """The filling of one chain, or the removal of several, as two changes; None for anything else, or a single rule or chain."""
        match self:
            case Change(written=((place, chain),), appended=()) if chain:
                start, rules = (replace(self, written=((place, ()),)), tuple((place, rule) for rule in chain))
                return start, replace(self, written=(), appended=rules)
            case Change(written=(), appended=(_, _, *_) as rules):
                middle = len(rules) // 2
                return replace(self, appended=rules[:middle]), replace(self, appended=rules[middle:])
            case Change(written=(), appended=(), inserted=(), deleted=(), removed=(_, _, *_) as places):
                middle = len(places) // 2  # referring chains stand before those that they refer to
                return replace(self, removed=places[:middle]), replace(self, removed=places[middle:])
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Changes that go to the kernel in one input."""

    family: Family
    changes: tuple[Change, ...]

    @property
    def rules_written(self) -> int:
        """How many rules are added."""
        return sum(change.rules_written for change in self.changes)

    @property
    def chains_deleted(self) -> int:
        """How many chains go."""
        return sum(len(change.removed) for change in self.changes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Batches in the order in which they have to run.

    blind: nothing was known about the kernel when this was made; whoever applies it has to observe and plan again towards `wanted`.
    """

    batches: tuple[Batch, ...]
    wanted: Ruleset = field(compare=False, repr=False)
    blind: bool = False


def batches_of(family: Family, changes: Iterable[Change], batch_lines: int) -> Iterator[Batch]:
    """`changes` in batches of at most so many lines each; a change that is longer is a batch of its own."""
    group: list[Change] = []
    lines = 0
    for change in changes:
        if group and lines + change.lines > batch_lines:
            yield Batch(family=family, changes=tuple(group))
            group, lines = [], 0
        group.append(change)
        lines += change.lines
    if group:
        yield Batch(family=family, changes=tuple(group))


class Section(Enum):
    """The steps of a batch: each is one table's commit, all or nothing. In this order no packet slips through between two of them."""

    OTHER = "mangle and raw"
    FILTER_GAINS = "filter, what is added"
    NAT = "nat"
    FILTER_LOSSES = "filter, what goes"


def render_batch(batch: Batch) -> str:
    """All sections of a batch as one input, for people to read."""
    return "".join(render_section(section, batch.changes) for section in Section)


def render_section(section: Section, changes: Iterable[Change]) -> str:
    """The input for `iptables-restore --noflush` that carries out this part of `changes`; empty when there is nothing to do."""
    changes = tuple(changes)
    match section:
        case Section.OTHER:
            tables = {place.table for change in changes for place in _places(change)} - {"filter", "nat"}
            lines = [line for table in sorted(tables) for line in _both(table, changes)]
        case Section.FILTER_GAINS:
            lines = _table("filter", _gains(changes, "filter"))
        case Section.NAT:
            lines = _both("nat", changes)
        case Section.FILTER_LOSSES:
            lines = _table("filter", _losses(changes, "filter"))
    return "\n".join([*lines, ""]) if lines else ""


def _places(change: Change) -> Iterator[Place]:
    for group in (change.written, change.appended, change.inserted, change.deleted):
        for place, _ in group:
            yield place
    yield from change.removed


def _both(table: str, changes: tuple[Change, ...]) -> list[str]:
    return _table(table, [*_gains(changes, table), *_losses(changes, table)])


def _table(table: str, lines: list[str]) -> list[str]:
    """A table's lines; what makes or empties chains comes first, once each, since rules may name any of them.

    Sorted, because the legacy tool keeps its chains in order: 30,000 of them in the order of Services take it 0.15 s longer.
    """
    if not lines:
        return []
    heads = sorted({line for line in lines if line[0] == ":"})
    return [f"*{table}", *heads, *[line for line in lines if line[0] != ":"], "COMMIT"]


def _gains(changes: tuple[Change, ...], table: str) -> list[str]:
    lines: list[str] = []
    for change in changes:
        for place, chain in change.written:
            if place.table == table:
                lines.append(declaration(place.chain))
                lines += [f"-A {place.chain} {rule.text}" for rule in chain]
        lines += [f"-I {place.chain} {rule.text}" for place, rule in change.inserted if place.table == table]
    return lines


def _losses(changes: tuple[Change, ...], table: str) -> list[str]:
    """Deletions; also what is appended, for that may take the place of what is deleted."""
    lines: list[str] = []
    for change in changes:
        lines += [f"-D {place.chain} {rule.text}" for place, rule in change.deleted if place.table == table]
        lines += [f"-A {place.chain} {rule.text}" for place, rule in change.appended if place.table == table]
    removed = [place.chain for change in changes for place in change.removed if place.table == table]
    return [*(declaration(chain) for chain in removed), *lines, *(f"-X {chain}" for chain in removed)]
