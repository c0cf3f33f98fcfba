"""The first filling of an empty nat table, given to the tool piece by piece while the rest is still being compiled.

In: one family's wanted state and what the kernel holds. Out: pieces of one input of `iptables-restore --noflush`, and when they have all
been taken the compiled ruleset. What must not happen here: running a tool; filling a table that has Services in it (the plan knows in which
order those change).

Why: of a start with 10,000 Services of two endpoints the tool needs 0.6 s to read its 110,000 lines, and the compiler as long to make them.
In one after the other the node has no Service for 1.9 s of CPU time that two cores can share. Until the commit at the end nothing is in
force, as ever; that filter follows nat here, instead of leading it, matters to nobody while no Service has ever worked.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import islice

from kproxy.backends.iptables import names
from kproxy.backends.iptables.changes import Section, render_section
from kproxy.backends.iptables.compile import compile_family, context_of, fragment_of
from kproxy.backends.iptables.plan import changes_between
from kproxy.backends.iptables.ruleset import FamilyRuleset, Fragment, declaration
from kproxy.backends.iptables.settings import IptablesSettings
from kproxy.model.desired import FamilyState
from kproxy.model.names import ServicePortName

WORTH_IT = 500  # ServicePorts: a tenth of a second
PIECE = 250  # ServicePorts: 0.2 MB


class Filling:
    """One family's. `wanted` is complete when `pieces` has ended."""

    def __init__(self, state: FamilyState, settings: IptablesSettings, applied: FamilyRuleset) -> None:
        self.wanted = FamilyRuleset(family=state.family)
        self._state = state
        self._settings = settings
        self._applied = applied

    @property
    def is_worth_it(self) -> bool:
        """Whether there are many ServicePorts and the kernel has chains of none."""
        there = self._applied.tables.get("nat", {})
        return len(self._state.service_ports) >= WORTH_IT and not any(
            chain.startswith(names.HASHED_PREFIXES) for chain in there
        )

    def pieces(self) -> Iterator[str]:
        """The input, from `*nat` to `COMMIT`. Every piece makes its chains before rules name them; what leads to them comes last."""
        yield f"*nat\n{declaration(names.MARK_MASQ)}\n"
        context = context_of(self._state, self._settings)
        made: dict[ServicePortName, Fragment] = {}
        ports = iter(self._state.service_ports.items())
        while some := list(islice(ports, PIECE)):
            fragments = [fragment_of(port, context) for _, port in some]
            made.update(zip([name for name, _ in some], fragments, strict=True))
            yield _text(fragments)
        self.wanted = compile_family(self._state, self._settings, made=made)
        nat = {chain: rules for fragment in made.values() for chain, rules in fragment.chains.items()}
        nat.update(self._applied.tables.get("nat", {}))
        filled = replace(self._applied, tables={**self._applied.tables, "nat": nat})
        rest = render_section(Section.NAT, changes_between(filled, self.wanted))
        yield rest.removeprefix("*nat\n") or "COMMIT\n"

    @property
    def applied(self) -> FamilyRuleset:
        """What the kernel holds after the commit."""
        return replace(self._applied, tables={**self._applied.tables, "nat": self.wanted.tables["nat"]})


def _text(fragments: Iterable[Fragment]) -> str:
    """Sorted, because the legacy tool keeps its chains in order."""
    chains = [(chain, rules) for fragment in fragments for chain, rules in fragment.chains.items()]
    lines = sorted(declaration(chain) for chain, _ in chains)
    lines += [f"-A {chain} {rule.text}" for chain, rules in chains for rule in rules]
    return "\n".join([*lines, ""])
