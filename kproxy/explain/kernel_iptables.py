"""What the kernel holds of one Service's rules: which are there, how often they matched, and what else stands in their chains.

In: the text of `iptables-save -c`, and rules as `rules_iptables` lists them. Out: counters by rule, and rules that nobody wants. Chains
that are not asked about are passed over line by line: a node may have a hundred thousand of them.

Counters of table nat count first packets, that is connections.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from kproxy.backends.iptables.rules import comparable
from kproxy.explain.rules_iptables import Part, RuleSeen

_LINE = re.compile(r"\[(\d+):(\d+)\] -A (\S+)(?: (.*))?$")
_Mark = tuple[str, str, str]  # table, chain, comparable text


@dataclass(frozen=True, slots=True)
class Counted:
    """A rule in the kernel."""

    packets: int
    octets: int


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelRules:
    """Chains of the kernel, as far as they were asked for. counted: by table, chain and rule; order: of each chain."""

    counted: Mapping[_Mark, Counted]
    order: Mapping[tuple[str, str], Sequence[str]]

    def of(self, rule: RuleSeen) -> Counted | None:
        """The rule's counters, None when it is not there."""
        return self.counted.get((rule.table, rule.chain, comparable(rule.text)))

    def extra(self, rules: Sequence[RuleSeen]) -> list[tuple[str, str, str]]:
        """What stands in the chains that belong to one ServicePort alone and is none of `rules`: table, chain, rule."""
        wanted = {(rule.table, rule.chain, comparable(rule.text)) for rule in rules}
        chains = dict.fromkeys((rule.table, rule.chain) for rule in rules if rule.part is Part.OWN_CHAIN)
        return [
            (table, chain, text)
            for table, chain in chains
            for text in self.order.get((table, chain), ())
            if (table, chain, text) not in wanted
        ]


def read_counters(text: str, rules: Iterable[RuleSeen]) -> KernelRules:
    """What `text` (of `iptables-save -c`) says about the chains that `rules` stand in."""
    asked = {(rule.table, rule.chain) for rule in rules}
    counted: dict[_Mark, Counted] = {}
    order: dict[tuple[str, str], list[str]] = {}
    table = ""
    for line in text.splitlines():
        if line.startswith("*"):
            table = line[1:].strip()
            continue
        found = _LINE.match(line)
        if found is None or (table, found[3]) not in asked:
            continue
        spelled = comparable(found[4] or "")
        counted[table, found[3], spelled] = Counted(int(found[1]), int(found[2]))
        order.setdefault((table, found[3]), []).append(spelled)
    return KernelRules(counted=counted, order=order)
