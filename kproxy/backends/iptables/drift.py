"""What is different between the rules that are wanted and those that the kernel holds, for people. Pure.

In: two rulesets (the second one as `observe` gives it: what is ours alone). Out: differences, each naming family, table, chain and rule.
`plan.py` decides what is written about it; this says what was found: the log line after a loss, and `kproxy diff`.

Spelling does not count, nor does the order where it has no meaning: among our rules of a built-in chain and among the entries of a dispatch
chain. KUBE-FIREWALL is shared with the kubelet: what else stands in there is none of our business.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum

from kproxy.backends.iptables import names
from kproxy.backends.iptables.rules import Rule, comparable
from kproxy.backends.iptables.ruleset import BUILT_IN, Chain, FamilyRuleset, Ruleset
from kproxy.model.names import Family


class Kind(Enum):
    """The value is how it is told."""

    MISSING_CHAIN = "chain missing"
    MISSING_RULE = "rule missing"
    UNEXPECTED_CHAIN = "chain not wanted"
    UNEXPECTED_RULE = "rule not wanted"
    ORDER = "rules in another order"


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One thing that the kernel lacks or has too much. rule: empty where a whole chain is meant; then `rules` is how many it has."""

    family: Family
    table: str
    chain: str
    kind: Kind
    rule: str = ""
    rules: int = 0

    def __str__(self) -> str:
        """`IPv4 nat: rule missing: -A PREROUTING … -j KUBE-SERVICES`."""
        what = f"-A {self.chain} {self.rule}".rstrip() if self.rule else self.chain
        count = f" ({self.rules} rules)" if self.rules and not self.rule else ""
        return f"{self.family.value} {self.table}: {self.kind.value}: {what}{count}"


def differences(wanted: Ruleset, observed: Ruleset) -> Iterator[Difference]:
    """Everything in which `observed` differs from `wanted`; lazy, for a flushed table of 10,000 Services has 30,000 of them."""
    for family in (Family.IPV4, Family.IPV6):
        yield from _of_family(wanted.of(family), observed.of(family))


def _of_family(wanted: FamilyRuleset, observed: FamilyRuleset) -> Iterator[Difference]:
    family = wanted.family
    for table in [*wanted.tables, *(t for t in observed.tables if t not in wanted.tables)]:
        ours, there = wanted.tables.get(table, {}), observed.tables.get(table, {})
        for chain, rules in ours.items():
            found = there.get(chain)
            if found is None and chain not in BUILT_IN:
                yield Difference(family=family, table=table, chain=chain, kind=Kind.MISSING_CHAIN, rules=len(rules))
            elif found != rules:
                yield from _of_chain(family, table, chain, rules, found or ())
        for chain in there.keys() - ours.keys():
            if chain in BUILT_IN:
                yield from _of_chain(family, table, chain, (), there[chain])
            elif names.is_removable(table, chain):
                yield Difference(
                    family=family, table=table, chain=chain, kind=Kind.UNEXPECTED_CHAIN, rules=len(there[chain])
                )


def _of_chain(family: Family, table: str, chain: str, wanted: Chain, found: Chain) -> Iterator[Difference]:
    missing, unexpected = _unmatched(wanted, found), _unmatched(found, wanted)
    if chain == names.KUBELET_FIREWALL:
        unexpected = []
    elif chain in BUILT_IN:
        unexpected = [rule for rule in unexpected if rule.jump != names.KUBELET_FIREWALL]
    for kind, rules in ((Kind.MISSING_RULE, missing), (Kind.UNEXPECTED_RULE, unexpected)):
        for rule in rules:
            yield Difference(family=family, table=table, chain=chain, kind=kind, rule=rule.text)
    if missing or unexpected or chain in (names.KUBELET_FIREWALL, *BUILT_IN, *names.DISPATCH_CHAINS.get(table, ())):
        return
    if [comparable(rule.text) for rule in wanted] != [comparable(rule.text) for rule in found]:
        yield Difference(family=family, table=table, chain=chain, kind=Kind.ORDER)


def _unmatched(some: Iterable[Rule], others: Iterable[Rule]) -> list[Rule]:
    """Those of `some` that have no twin of their own in `others`."""
    texts = Counter(rule.text for rule in others)
    texts.subtract(rule.text for rule in some)
    if not any(count < 0 for count in texts.values()):
        return []
    spelled = Counter(comparable(rule.text) for rule in others)
    left = []
    for rule in some:
        text = comparable(rule.text)
        if spelled[text] > 0:
            spelled[text] -= 1
        else:
            left.append(rule)
    return left
