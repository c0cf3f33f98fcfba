"""What the kernel holds of one Service's rules, for every data plane: which are there, how often they matched, and what else is.

In: rules as `explain` lists them, and what was read back, both in one spelling. Out: counters by rule, rules that nobody wants. Values.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from kproxy.explain.rules import Part, RuleSeen

Mark = tuple[str, str, str]  # table, chain, comparable text


@dataclass(frozen=True, slots=True)
class Counted:
    """A rule in the kernel. packets, octets: None where nobody counts them."""

    packets: int | None = None
    octets: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelRules:
    """Chains of the kernel, as far as they were asked for. counted: by table, chain and rule; order: of each chain.

    spelled: a rule's text in the spelling that the kernel's are in. asked: the chains that were asked for, where those are not all.
    """

    counted: Mapping[Mark, Counted]
    order: Mapping[tuple[str, str], Sequence[str]]
    spelled: Callable[[str], str] = str
    asked: Collection[tuple[str, str]] | None = None

    def knows(self, rule: RuleSeen) -> bool:
        """Whether anything is known of the rule's chain."""
        return self.asked is None or (rule.table, rule.chain) in self.asked

    def of(self, rule: RuleSeen) -> Counted | None:
        """The rule's counters, None when it is not there."""
        return self.counted.get((rule.table, rule.chain, self.spelled(rule.text)))

    def extra(self, rules: Sequence[RuleSeen]) -> list[Mark]:
        """What stands in the chains that belong to one ServicePort alone and is none of `rules`: table, chain, rule."""
        wanted = {(rule.table, rule.chain, self.spelled(rule.text)) for rule in rules}
        chains = dict.fromkeys((rule.table, rule.chain) for rule in rules if rule.part is Part.OWN_CHAIN)
        return [
            (table, chain, text)
            for table, chain in chains
            for text in self.order.get((table, chain), ())
            if (table, chain, text) not in wanted
        ]
