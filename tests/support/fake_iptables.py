"""An iptables in memory: takes what `iptables-restore --noflush` takes, prints what `iptables-save` prints, and is as strict.

Each table's commit is all or nothing. Refused, in the legacy tool's words: rules for or jumps to chains that do not exist, deleting a
rule that is not there, deleting a chain that is used or not empty, inserting beyond the end, targets in tables that do not know them.
The packet lane holds it to the real tools (tests/packet/test_contract.py).

`weather` makes operations fail: a function that is asked before each restore and may return an error text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kproxy.backends.iptables.libiptc import Capabilities
from kproxy.backends.iptables.matches import (
    DestinationNat,
    Jump,
    MasqueradeTarget,
    NoTrack,
    OtherTarget,
    Reject,
    Target,
)
from kproxy.backends.iptables.rules import RuleSyntaxError, comparable, parse_rule
from kproxy.backends.iptables.tool_runs import Done, Text
from kproxy.backends.iptables.tools import Tools
from kproxy.backends.iptables.variant import Variant, VariantChoice
from kproxy.model.names import Family

_HOOKS = {
    "filter": ("INPUT", "FORWARD", "OUTPUT"),
    "nat": ("PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"),
    "mangle": ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"),
    "raw": ("PREROUTING", "OUTPUT"),
}
_ONLY_IN: tuple[tuple[type, str], ...] = (
    (DestinationNat, "nat"),
    (MasqueradeTarget, "nat"),
    (Reject, "filter"),
    (NoTrack, "raw"),
)
_LINE = re.compile(r"-([AIDX]) (\S+)(?: (.*))?$")


class RefusedError(Exception):
    """The input was refused; the text is what the tool prints."""

    def __init__(self, exit_code: int, words: str) -> None:
        super().__init__(words)
        self.exit_code = exit_code


def _table(name: str) -> dict[str, list[str]]:
    return {hook: [] for hook in _HOOKS[name]}


@dataclass
class FakeIptables:
    """The tables of one family."""

    tables: dict[str, dict[str, list[str]]] = field(default_factory=dict)
    weather: Callable[[str], Done | None] = lambda text: None
    restored: list[str] = field(default_factory=list)  # every input that was taken

    def restore(self, text: str) -> None:
        """Takes one input of `iptables-restore --noflush`. Raises RefusedError; tables before the refused one are committed, as really."""
        name, draft = "", {}
        for number, line in enumerate(text.splitlines(), 1):
            if not line or line.startswith("#"):
                continue
            if line.startswith("*"):
                name = line[1:]
                if name not in _HOOKS:
                    raise RefusedError(
                        2, f"iptables-restore: unable to initialize table '{name}'\nError occurred at line: {number}"
                    )
                draft = {chain: list(rules) for chain, rules in self.tables.get(name, _table(name)).items()}
            elif line == "COMMIT":
                _check(name, draft, number)
                self.tables[name] = draft
            elif line.startswith(":"):
                chain, policy, *_ = line[1:].split(" ")
                if policy == "-":
                    draft[chain] = []
            else:
                _change(draft, line, number)
        self.restored.append(text)

    def save(self) -> str:
        """What `iptables-save` prints, without counters and comments."""
        lines: list[str] = []
        for name, chains in self.tables.items():
            hooks = _HOOKS[name]
            own = sorted(set(chains) - set(hooks))
            lines.append(f"*{name}")
            lines += [f":{hook} ACCEPT [0:0]" for hook in hooks] + [f":{chain} - [0:0]" for chain in own]
            lines += [f"-A {chain} {rule}".rstrip() for chain in [*sorted(hooks), *own] for rule in chains[chain]]
            lines.append("COMMIT")
        return "\n".join([*lines, ""])

    def rules(self, table: str, chain: str) -> list[str]:
        """The rules of a chain."""
        return self.tables[table][chain]


def _failed(number: int) -> RefusedError:
    return RefusedError(1, f"iptables-restore: line {number} failed")


def _change(draft: dict[str, list[str]], line: str, number: int) -> None:
    found = _LINE.match(line)
    if found is None:
        raise RefusedError(2, f"iptables-restore: unknown option\nError occurred at line: {number}")
    verb, chain, rest = found[1], found[2], found[3] or ""
    rules = draft.get(chain)
    if rules is None:
        raise _failed(number)
    if verb == "X":
        used = any(_jumps_to(rule) == chain for others in draft.values() for rule in others)
        if rules or used:
            raise _failed(number)
        del draft[chain]
        return
    position = 1
    head, _, tail = rest.partition(" ")
    if verb == "I" and head.isdigit():
        position, rest = int(head), tail
    _parsed(rest, draft, number)
    if verb == "A":
        rules.append(rest)
    elif verb == "I":
        if position > len(rules) + 1:
            raise _failed(number)
        rules.insert(position - 1, rest)
    else:
        twin = next((i for i, rule in enumerate(rules) if comparable(rule) == comparable(rest)), None)
        if twin is None:
            raise _failed(number)
        del rules[twin]


def _jumps_to(rule: str) -> str:
    target = parse_rule(rule).target
    return target.chain if isinstance(target, Jump) else ""


def _parsed(text: str, draft: dict[str, list[str]], number: int) -> Target | None:
    try:
        target = parse_rule(text).target
    except RuleSyntaxError as error:
        raise RefusedError(2, f"iptables-restore v1.8.9 (legacy): {error}\nError occurred at line: {number}") from error
    if isinstance(target, Jump) and target.chain not in draft:
        words = f"Couldn't load target `{target.chain}':No such file or directory"
        raise RefusedError(2, f"iptables-restore v1.8.9 (legacy): {words}\n\nError occurred at line: {number}")
    return target


def _check(name: str, draft: dict[str, list[str]], number: int) -> None:
    for rules in draft.values():
        for rule in rules:
            target = parse_rule(rule).target
            known = isinstance(target, OtherTarget) or all(
                not isinstance(target, kind) or name == table for kind, table in _ONLY_IN
            )
            if not known or (isinstance(target, Jump) and target.chain not in draft):
                raise _failed(number)


class FakeMachine:
    """Both families, as the runner of an IptablesBackend."""

    def __init__(self) -> None:
        self.lacking: tuple[str, ...] = ()
        self.of = {family: FakeIptables() for family in Family}

    def tools(self, variant: Variant = Variant.LEGACY) -> Tools:
        """Tools whose programs only this machine knows."""
        names = {(family, verb): f"{family.value}-{verb}" for family in Family for verb in ("restore", "save")}
        return Tools(choice=VariantChoice(variant=variant, evidence="a fake"), programs=names, version=(1, 8, 9))

    async def capabilities(self) -> Capabilities:
        """What this machine's kernel lacks."""
        return Capabilities(missing=self.lacking)

    async def run(self, program: Sequence[str], given: Text, timeout_s: float) -> Done | None:
        """The runner."""
        text = given if isinstance(given, str) else "".join(given)
        name, _, verb = Path(program[0]).name.partition("-")
        fake = self.of[Family(name)]
        if verb == "save":
            return Done(0, fake.save(), "")
        if storm := fake.weather(text):
            return storm
        try:
            fake.restore(text)
        except RefusedError as refused:
            return Done(refused.exit_code, "", str(refused))
        return Done(0, "", "")
