"""The difference between two rulesets as an ordered list of bounded batches. Pure.

In: what is applied (or observed), what is wanted. Out: for each family first the frame if it may differ, then the elements that do. A batch
is one transaction. All of one destination is in one batch: a packet never meets a destination that its own node's packets are led to lo
for while prerouting does not know it, nor one without its source ranges.

A table of another shape is made anew: deleted, made and filled in one transaction, however large: in between there would be nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from kproxy.backends.userspace import names
from kproxy.backends.userspace.rules import frame_text
from kproxy.backends.userspace.ruleset import Element, FamilyRuleset, Frame, Ruleset
from kproxy.model.layered import touched_between
from kproxy.model.names import Family, ServicePortName
from kproxy.relay.targets import Table

BATCH_ELEMENTS = 8000  # in one transaction: 30 ms of nft and as much of Python between two looks at the clock

_NOTHING: Mapping[str, Element] = {}
_Keys = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """All that changes about one destination. removed: set, key. added: set, key, element."""

    key: str
    removed: _Keys = ()
    added: tuple[tuple[str, str, Element], ...] = ()

    @property
    def size(self) -> int:
        """How many elements it writes or deletes."""
        return len(self.removed) + len(self.added)


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """One transaction of one family. anew: what is there of the table goes first."""

    family: Family
    frame: Frame | None = None
    anew: bool = False
    changes: tuple[Change, ...] = ()

    @property
    def written(self) -> int:
        """Elements."""
        return sum(len(change.added) for change in self.changes)

    @property
    def deleted(self) -> int:
        """Elements."""
        return sum(len(change.removed) for change in self.changes)

    @property
    def text(self) -> str:
        """Input of `nft -f`."""
        return "".join(_text(self))


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to do, in order. applied: what it starts from; None when nothing is known, and the kernel has to be observed first."""

    applied: Ruleset | None
    wanted: Ruleset
    batches: tuple[Batch, ...] = ()

    @property
    def blind(self) -> bool:
        """Whether it has to be made again from what is observed."""
        return self.applied is None


def plan(applied: Ruleset | None, wanted: Ruleset, limit: int = BATCH_ELEMENTS) -> Plan:
    """The way from `applied` to `wanted`. limit: elements in one batch, unless one destination has more."""
    if applied is None:
        return Plan(applied=None, wanted=wanted)
    batches = [batch for family in Family for batch in _of_family(applied.of(family), wanted.of(family), limit)]
    return Plan(applied=applied, wanted=wanted, batches=tuple(batches))


def delete_text(family: Family) -> str:
    """Takes the whole table away, also when it is not there."""
    place = f"{names.NFT_FAMILY[family]} {names.TABLE}"
    return f"add table {place}\ndelete table {place}\n"


def _of_family(applied: FamilyRuleset, wanted: FamilyRuleset, limit: int) -> Iterator[Batch]:
    family = wanted.family
    if applied.stale:
        changes = _changes({}, wanted.elements)
        yield Batch(family=family, frame=wanted.frame, anew=True, changes=tuple(changes.values()))
        return
    if applied.frame != wanted.frame:
        yield Batch(family=family, frame=wanted.frame)
    chunk: list[Change] = []
    size = 0
    for change in _changes(applied.elements, wanted.elements).values():
        if chunk and size + change.size > limit:
            yield Batch(family=family, changes=tuple(chunk))
            chunk, size = [], 0
        chunk.append(change)
        size += change.size
    if chunk:
        yield Batch(family=family, changes=tuple(chunk))


def _changes(
    applied: Mapping[str, Mapping[str, Element]], wanted: Mapping[str, Mapping[str, Element]]
) -> dict[str, Change]:
    """What differs, by destination."""
    removed: dict[str, list[tuple[str, str]]] = {}
    added: dict[str, list[tuple[str, str, Element]]] = {}
    for name in names.SETS:
        old, new = applied.get(name, _NOTHING), wanted.get(name, _NOTHING)
        if old is new:
            continue
        touched = touched_between(old, new)
        for key in touched if touched is not None else {**old, **new}:
            was, element = old.get(key), new.get(key)
            if was == element:
                continue
            group = _destination(name, key)
            if was is not None:
                removed.setdefault(group, []).append((name, key))
            if element is not None:
                added.setdefault(group, []).append((name, key, element))
    return {
        key: Change(key=key, removed=tuple(removed.get(key, ())), added=tuple(added.get(key, ())))
        for key in {**removed, **added}
    }


def _destination(name: str, key: str) -> str:
    """Whose element it is: a range of sources belongs to its destination."""
    return key.rpartition(" . ")[0] if name == names.SOURCES else key


def _text(batch: Batch) -> Iterator[str]:
    place = f"{names.NFT_FAMILY[batch.family]} {names.TABLE}"
    if batch.anew:
        yield delete_text(batch.family)
    if batch.frame is not None:
        yield frame_text(batch.frame)
    removed: dict[str, list[str]] = {}
    added: dict[str, list[str]] = {}
    for change in batch.changes:
        for name, key in change.removed:
            removed.setdefault(name, []).append(key)
        for name, key, element in change.added:
            added.setdefault(name, []).append(_element(key, element))
    for name, keys in removed.items():
        yield f"delete element {place} {name} {{ {', '.join(keys)} }}\n"
    for name, lines in added.items():
        yield f"add element {place} {name} {{ {', '.join(lines)} }}\n"


def _element(key: str, element: Element) -> str:
    comment = f' comment "{element.comment}"' if element.comment else ""
    return f"{key}{comment} : {element.verdict}" if element.verdict else f"{key}{comment}"


def render(ruleset: FamilyRuleset) -> str:
    """The whole table as input of `nft -f`, an element a line, in order."""
    place = f"{names.NFT_FAMILY[ruleset.family]} {names.TABLE}"
    lines = [frame_text(ruleset.frame)] if ruleset.frame is not None else []
    for name in names.SETS:
        found = ruleset.elements.get(name, _NOTHING)
        lines += [f"add element {place} {name} {{ {_element(key, found[key])} }}\n" for key in sorted(found)]
    return "".join(lines)


def halves(changes: tuple[Change, ...]) -> tuple[tuple[Change, ...], ...]:
    """To find what the kernel refuses; () when only one destination is left."""
    middle = len(changes) // 2
    return (changes[:middle], changes[middle:]) if middle else ()


def owners(changes: Iterable[Change], ruleset: FamilyRuleset) -> list[ServicePortName]:
    """Whose destinations these are."""
    return sorted({ruleset.owners[change.key] for change in changes if change.key in ruleset.owners})


def joined(old: Table | None, new: Table) -> Table:
    """Everything that either leads to; where both do, the new. One of the two itself, where that is all."""
    if old is None or old.targets is new.targets:
        return new
    touched = touched_between(old.targets, new.targets)
    candidates = touched if touched is not None else old.targets
    gone = {key: old.targets[key] for key in candidates if key in old.targets and key not in new.targets}
    return Table({**gone, **new.targets}) if gone else new
