"""The rules of a node as a value: family → table → chain → rules; its text for `iptables-restore`, and the way back.

In: what the compiler wants, or what `iptables-save` printed. Out: text that `iptables-restore --noflush` takes: a chain that is declared is
emptied and filled anew, a chain that is not declared is left alone, so the text may be about any part of a table.

Built-in chains (`PREROUTING` …) are never declared, for that would empty them of other people's rules. They appear with *our* rules
only, from the top down; `render` writes them as inserts in reverse, so that they end up above what is there.

What must not happen here: knowing what a rule is for.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from kproxy.backends.iptables.rules import Rule
from kproxy.model.desired import ServicePort
from kproxy.model.names import Family, ServicePortName
from kproxy.model.ordering import alike

Chain = tuple[Rule, ...]

TABLES = ("mangle", "raw", "filter", "nat")  # the order in which text is written
BUILT_IN = frozenset({"PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"})


class RulesetSyntaxError(ValueError):
    """Text that neither iptables-save nor iptables-restore would know; the message names the line."""


class Place(NamedTuple):
    """A chain of a table: chain names repeat between tables (`KUBE-SERVICES` is in nat and in filter).

    A tuple, because places are keys of many dictionaries, and tuples hash three times as fast as other values.
    """

    table: str
    chain: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A rule in a dispatch chain.

    key: what it catches; of two entries with one key in one place only the first can ever match. at: the number by which a tree finds
    it (tree.py), in places that have a tree.
    """

    place: Place
    key: str
    rule: Rule
    at: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Fragment:
    """What one ServicePort adds: chains of its own (all in nat), and entries in the chains that dispatch to them.

    cluster_key: the key of its cluster IP, which nobody else's external address may take.
    """

    service_port: ServicePort
    chains: Mapping[str, Chain]
    entries: tuple[Entry, ...]
    cluster_key: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class FamilyRuleset:
    """All rules of one family.

    tables: table → chain → rules, built-in chains with our rules only. For rulesets that were compiled, and no part of equality:
    fragments: who owns what, in order of the names, so that the plan keeps together what belongs together; memo: the compiler's own.
    """

    family: Family
    tables: Mapping[str, Mapping[str, Chain]] = field(default_factory=dict)
    fragments: Mapping[ServicePortName, Fragment] = field(default_factory=dict, compare=False, repr=False)
    memo: object = field(default=None, compare=False, repr=False)

    def chain(self, table: str, name: str) -> Chain | None:
        """The rules of a chain, None when there is no such chain."""
        return self.tables.get(table, {}).get(name)

    def places(self) -> Iterator[Place]:
        """Every chain of every table."""
        for table, chains in self.tables.items():
            for chain in chains:
                yield Place(table, chain)

    @property
    def rule_count(self) -> int:
        """How many rules there are."""
        return sum(len(chain) for chains in self.tables.values() for chain in chains.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class Ruleset:
    """The rules of a node, both families."""

    ipv4: FamilyRuleset = FamilyRuleset(family=Family.IPV4)
    ipv6: FamilyRuleset = FamilyRuleset(family=Family.IPV6)

    @property
    def rule_count(self) -> int:
        """How many rules there are, both families together."""
        return self.ipv4.rule_count + self.ipv6.rule_count

    def of(self, family: Family) -> FamilyRuleset:
        """The rules of `family`."""
        return self.ipv4 if family is Family.IPV4 else self.ipv6


Fragments = Mapping[ServicePortName, Fragment]


def differing(one: Fragments, other: Fragments) -> tuple[Fragments, Fragments]:
    """What of `one` is not in `other` as the same object, and the reverse.

    Both are in order of their names, so what lies between a same head and a same tail is walked side by side: hashing 10,000 names takes
    longer (20 ms) than all else that one changed Service costs the compiler.
    """
    left: dict[ServicePortName, Fragment] = {}
    right: dict[ServicePortName, Fragment] = {}
    mine, yours = list(one.values()), list(other.values())
    head, tail = alike(mine, yours)
    ours, theirs = iter(mine[head : len(mine) - tail]), iter(yours[head : len(yours) - tail])
    a, b = next(ours, None), next(theirs, None)
    while a is not None or b is not None:
        if a is b:
            a, b = next(ours, None), next(theirs, None)
        elif b is None or (a is not None and a.service_port.name.sort_key < b.service_port.name.sort_key):
            assert a is not None
            left[a.service_port.name] = a
            a = next(ours, None)
        elif a is None or b.service_port.name.sort_key < a.service_port.name.sort_key:
            right[b.service_port.name] = b
            b = next(theirs, None)
        else:
            left[a.service_port.name], right[b.service_port.name] = a, b
            a, b = next(ours, None), next(theirs, None)
    return left, right


def declaration(chain: str) -> str:
    """The line that makes a chain, or empties it."""
    return f":{chain} - [0:0]"


def render(ruleset: FamilyRuleset) -> str:
    """`ruleset` as input of `iptables-restore --noflush`; tables in the order of TABLES, chains by name."""
    lines: list[str] = []
    known = [table for table in TABLES if table in ruleset.tables]
    for table in [*known, *sorted(set(ruleset.tables) - set(TABLES))]:
        lines.extend(render_table(table, ruleset.tables[table]))
    return "\n".join([*lines, ""]) if lines else ""


def render_table(table: str, chains: Mapping[str, Chain]) -> Iterable[str]:
    """The lines of one table, from `*table` to `COMMIT`."""
    own = sorted(chain for chain in chains if chain not in BUILT_IN)
    lines = [f"*{table}", *(declaration(chain) for chain in own)]
    for chain in sorted(set(chains) & BUILT_IN):
        lines.extend([f"-I {chain} {rule.text}" for rule in reversed(chains[chain])])
    for chain in own:
        lines.extend([f"-A {chain} {rule.text}".rstrip() for rule in chains[chain]])
    lines.append("COMMIT")
    return lines


_RULE = re.compile(r"(?:\[\d+:\d+\] )?-([AI]) (\S+)(?: (.*))?$")
_CHAIN = re.compile(r":(\S+) (\S+)(?: \[\d+:\d+\])?$")


def parse(text: str, family: Family) -> FamilyRuleset:
    """The rules that `text` describes, starting from nothing: what `iptables-save` printed, or restore input that only adds.

    Foreign chains and rules are read like all others. Raises RulesetSyntaxError.
    """
    tables: dict[str, dict[str, list[Rule]]] = {}
    chains: dict[str, list[Rule]] | None = None
    for number, line in enumerate(text.splitlines(), 1):
        # Nearly all lines of 80,000 are this: a partition takes a third of the time of an expression.
        if chains is not None and line.startswith("-A "):
            name, _, rest = line[3:].partition(" ")
            if name in chains:
                chains[name].append(Rule(rest))
                continue
        if not line or line[0] == "#":
            continue
        if line[0] == "*":
            chains = tables.setdefault(line[1:].strip(), {})
        elif line == "COMMIT":
            chains = None
        elif chains is None:
            raise RulesetSyntaxError(f"line {number}: {line!r} stands outside of any table")
        elif line[0] == ":":
            found = _CHAIN.match(line)
            if found is None:
                raise RulesetSyntaxError(f"line {number}: {line!r} declares no chain")
            if found[1] not in BUILT_IN:
                chains[found[1]] = []
        else:
            _add(chains, line, number)
    return FamilyRuleset(
        family=family,
        tables={table: {name: tuple(rules) for name, rules in chains.items()} for table, chains in tables.items()},
    )


def _add(chains: dict[str, list[Rule]], line: str, number: int) -> None:
    found = _RULE.match(line)
    if found is None:
        raise RulesetSyntaxError(f"line {number}: {line!r} adds no rule")
    operation, name, text = found[1], found[2], found[3] or ""
    chain = chains.get(name)
    if chain is None:
        if name not in BUILT_IN:
            raise RulesetSyntaxError(f"line {number}: chain {name} is not declared")
        chain = chains[name] = []
    if operation == "A":
        chain.append(Rule(text))
        return
    head, _, rest = text.partition(" ")
    position, text = (int(head), rest) if head.isdigit() else (1, text)
    chain.insert(position - 1, Rule(text))
