"""What differs between the rules that are wanted and those that the kernel holds, for people: missing, extra, changed, in other order.

In: an observed ruleset (`plan.ours` of a save) and the wanted one. Out: one `ChainDifference` for each chain that is not as it should
be, none when all is well. It is read off the very plan that would mend it, so it says "nothing" exactly when the next sync would write
nothing: spellings of other versions, the order of dispatch entries and other people's rules are no difference here because they are
none there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from kproxy.backends.iptables.plan import plan
from kproxy.backends.iptables.rules import Rule, comparable
from kproxy.backends.iptables.ruleset import Chain, Place, Ruleset
from kproxy.model.names import Family


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainDifference:
    """One chain that is not as wanted.

    absent: the chain is not there at all. unwanted: it should not be. missing, extra: rules, in the order of their chain.
    moved: the rules are the right ones, in another order.
    """

    family: Family
    place: Place
    absent: bool = False
    unwanted: bool = False
    missing: tuple[Rule, ...] = ()
    extra: tuple[Rule, ...] = ()
    moved: bool = False

    def __str__(self) -> str:
        words = [
            "chain is missing" if self.absent else "",
            "chain is not wanted" if self.unwanted else "",
            f"{len(self.missing)} missing" if self.missing else "",
            f"{len(self.extra)} extra" if self.extra else "",
            "another order" if self.moved else "",
        ]
        return f"{self.family.value} {self.place.table} {self.place.chain}: {', '.join(filter(None, words))}"


@dataclass(slots=True)
class _Draft:
    absent: bool = False
    unwanted: bool = False
    missing: list[Rule] = field(default_factory=list)
    extra: list[Rule] = field(default_factory=list)
    moved: bool = False


def differences(observed: Ruleset, wanted: Ruleset) -> tuple[ChainDifference, ...]:
    """Every chain that is not as wanted, by family, table and name. Empty when `observed` needs no mending."""
    found: dict[tuple[Family, Place], _Draft] = {}
    for batch in plan(observed, wanted).batches:
        there = observed.of(batch.family)

        def draft(place: Place, family: Family = batch.family) -> _Draft:
            return found.setdefault((family, place), _Draft())

        for change in batch.changes:
            for place, rules in change.written:
                _compare(draft(place), there.chain(place.table, place.chain), rules)
            for place, rule in (*change.appended, *change.inserted):
                draft(place).missing.append(rule)
            for place, rule in change.deleted:
                draft(place).extra.append(rule)
            for place in change.removed:
                draft(place).unwanted = True
                draft(place).extra += there.chain(place.table, place.chain) or ()
    return tuple(sorted(_finished(found), key=lambda d: (d.family.value, d.place.table, d.place.chain)))


def _compare(draft: _Draft, there: Chain | None, wanted: Chain) -> None:
    """A chain that would be emptied and written anew."""
    if there is None:
        draft.absent = True
        draft.missing += wanted
        return
    missing, extra = list(_surplus(wanted, there)), list(_surplus(there, wanted))
    draft.missing += missing
    draft.extra += extra
    draft.moved = draft.moved or not (missing or extra)


def _surplus(chain: Chain, other: Chain) -> Iterator[Rule]:
    """The rules of `chain` that `other` lacks, however they are spelled."""
    left = Counter(comparable(rule.text) for rule in other)
    for rule in chain:
        text = comparable(rule.text)
        if left[text]:
            left[text] -= 1
        else:
            yield rule


def _finished(found: dict[tuple[Family, Place], _Draft]) -> Iterable[ChainDifference]:
    for (family, place), draft in found.items():
        # A rule that goes out at one place of its chain and in at another was only moved.
        missing, extra = tuple(draft.missing), tuple(draft.extra)
        kept_missing, kept_extra = tuple(_surplus(missing, extra)), tuple(_surplus(extra, missing))
        yield ChainDifference(
            family=family,
            place=place,
            absent=draft.absent,
            unwanted=draft.unwanted,
            missing=kept_missing,
            extra=kept_extra,
            moved=draft.moved or (len(missing) > len(kept_missing) and not (kept_missing or kept_extra)),
        )
