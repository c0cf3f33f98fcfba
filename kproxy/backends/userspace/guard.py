"""What healing asks this data plane: has anything changed, do counts agree, what is different (sync/healing.py).

In: what was written last. Out: facts about the kernel, each at its price (55,000 elements, 2 busy cores): a glance 0.1 ms, counts 50 ms,
all elements read 0.5 s. A glance is nf_tables' generation, which everybody's writing moves, and whether marked packets are still taken
in, which no generation tells. What must not happen here: a write.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from kproxy.backends.userspace import kernel, rules
from kproxy.backends.userspace.apply import UserspaceBackend
from kproxy.backends.userspace.ruleset import Element, FamilyRuleset, Ruleset
from kproxy.model.names import Family

_NAMED = 3  # keys in one line


@dataclass(frozen=True, slots=True)
class Glance:
    """What a short look shows; our own writes move it as well, and are counted once more after each."""

    others: Hashable
    all: Hashable


class UserspaceGuard:
    """Sees what `backend` writes; families that it cannot serve are nobody's."""

    def __init__(self, backend: UserspaceBackend) -> None:
        self._backend = backend

    def glance(self, applied: Ruleset) -> Glance:
        """Whether somebody may have written: a tenth of a millisecond. Raises OSError or ValueError."""
        routed = tuple(self._backend.is_routed(family) for family in self._served())
        seen = (kernel.generation(), routed)
        return Glance(seen, seen)

    def disagreeing(self, applied: Ruleset) -> tuple[str, ...]:
        """Sets that hold more or less than `applied`, rules and routes that are not as written. Blocks. Raises OSError, ValueError."""
        found: list[str] = []
        for family in self._served():
            if not self._backend.is_routed(family):
                found.append(f"{family.value} policy route")
            if kernel.digest(family) != self._backend.digest(family):
                found.append(f"{family.value} rules")
            counts = kernel.counts(family)
            for name, elements in applied.of(family).elements.items():
                if counts.get(name) != len(elements):
                    found.append(f"{family.value} {name} {counts.get(name, 0) - len(elements):+d}")
        return tuple(found)

    async def unchanged(self, applied: Ruleset) -> bool:
        """Whether all is there as it was written; False asks for `differences`. Raises ApplyError."""
        return not self.differences(applied, await self._backend.observe())

    def differences(self, applied: Ruleset, observed: Ruleset) -> Sequence[str]:
        """What is missing and what is too much, for people; empty when a plan would have nothing to do."""
        return [text for family in self._served() for text in _differences(family, applied, observed)]

    def _served(self) -> list[Family]:
        return [family for family in Family if family not in self._backend.unserved]


def _differences(family: Family, applied: Ruleset, observed: Ruleset) -> Iterator[str]:
    ours, there = applied.of(family), observed.of(family)
    if family in applied.routed - observed.routed:
        yield f"{family.value} policy route: missing"
    if there.frame != ours.frame or there.stale:
        yield f"{family.value} rules: {_frame_told(there)}"
    for name in rules.set_kinds(family):
        yield from _elements(f"{family.value} {name}", ours.elements.get(name, {}), there.elements.get(name, {}))


def _frame_told(there: FamilyRuleset) -> str:
    return "not as they were written" if there.elements or there.stale else "missing, with the whole table"


def _elements(where: str, ours: Mapping[str, Element], there: Mapping[str, Element]) -> Iterator[str]:
    missing = [key for key in ours if key not in there]
    extra = [key for key in there if key not in ours]
    other = [key for key, element in ours.items() if key in there and there[key] != element]
    for word, keys in (("missing", missing), ("extra", extra), ("changed", other)):
        if keys:
            more = f" and {len(keys) - _NAMED} more" if len(keys) > _NAMED else ""
            yield f"{where}: {word} {', '.join(keys[:_NAMED])}{more}"
