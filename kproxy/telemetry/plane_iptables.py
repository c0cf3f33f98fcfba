"""The iptables data plane as pages and metrics show it: `Plane` over the backend, the tally of its tools and the kernel's counters.

What must not happen here: a write, or a decision about a rule.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice

from kproxy.backends.iptables.apply import IptablesBackend
from kproxy.backends.iptables.counters import KernelCounters
from kproxy.backends.iptables.ruleset import BUILT_IN, Chain, FamilyRuleset, Ruleset, declaration
from kproxy.backends.iptables.tally import Tally
from kproxy.backends.iptables.tool_runs import run_tool
from kproxy.model.names import Family
from kproxy.sync.loop import SyncOutcome
from kproxy.telemetry import metrics_program, metrics_proxy
from kproxy.telemetry.counting import Counting
from kproxy.telemetry.metrics import Metric
from kproxy.telemetry.statepage import HeaderRules

_CHUNK_LINES = 500  # of rules: about 1 ms


class IptablesPlane:
    """services: whether packets and bytes of each Service port are read from the kernel."""

    def __init__(self, backend: IptablesBackend, tally: Tally, *, services: bool) -> None:
        self._backend, self._tally = backend, tally
        self._kernel = KernelCounters(backend.tools, run_tool, lambda: backend.wanted, services=services)
        # Counted once for each ruleset.
        self._owned: tuple[Ruleset | None, Mapping[tuple[Family, str], int]] = (None, {})

    @property
    def mode(self) -> str:
        """What `/proxyMode` says."""
        return self._backend.mode

    @property
    def notes(self) -> tuple[str, ...]:
        """The variant and its evidence, warnings, families that cannot be served."""
        return self._backend.notes

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is wrong about the variant."""
        return self._backend.tools.choice.warnings

    @property
    def rules(self) -> int:
        """Wanted rules."""
        wanted = self._backend.wanted
        return wanted.rule_count if wanted is not None else 0

    @property
    def header(self) -> HeaderRules:
        """Settings and variant."""
        return HeaderRules(mode=self.mode, iptables=self._backend.settings, variant=self._backend.tools.variant.value)

    def wanted(self, family: Family) -> Iterator[bytes] | None:
        """Input of iptables-restore; None before the first compilation."""
        wanted = self._backend.wanted
        return rendered(wanted.of(family)) if wanted is not None else None

    def relay(self) -> None:
        """Rules do the work."""

    def observe(self, outcome: SyncOutcome) -> None:
        """A sync has ended: what was written since the one before is what it wrote."""
        self._tally.settle()
        if outcome.full:
            self._kernel.expire()

    async def refresh(self) -> None:
        """Reads the packet counters, if they are old."""
        await self._kernel.refresh()

    def metrics(self, counting: Counting) -> Iterator[Metric]:
        """Rules held and written, tools, packets dropped as INVALID."""
        yield from metrics_proxy.rules(self._tally, counting, self._rules())
        yield from metrics_proxy.invalid_dropped(self._kernel.dropped)

    def long_metrics(self) -> Iterator[Metric]:
        """Counters of Services, where they are wanted."""
        return metrics_program.services(self._kernel.services)

    def _rules(self) -> Mapping[tuple[Family, str], int]:
        wanted = self._backend.wanted
        if wanted is not None and wanted is not self._owned[0]:
            self._owned = (wanted, _owned(wanted))
        return self._owned[1]


def _owned(wanted: Ruleset) -> Mapping[tuple[Family, str], int]:
    tables = ((family, table, chains) for family in Family for table, chains in wanted.of(family).tables.items())
    return {(family, table): sum(map(len, chains.values())) for family, table, chains in tables}


def rendered(ruleset: FamilyRuleset) -> Iterator[bytes]:
    """`ruleset.render`, piece by piece, and chains in the order they have: sorting those of 10,000 Services alone would take 30 ms."""
    for table, chains in ruleset.tables.items():
        lines = _lines(table, chains)
        while piece := list(islice(lines, _CHUNK_LINES)):
            yield ("\n".join(piece) + "\n").encode()


def _lines(table: str, chains: Mapping[str, Chain]) -> Iterator[str]:
    yield f"*{table}"
    for name in chains:
        if name not in BUILT_IN:
            yield declaration(name)
    for name, rules in chains.items():
        if name in BUILT_IN:
            yield from (f"-I {name} {rule.text}" for rule in reversed(rules))
        else:
            yield from (f"-A {name} {rule.text}".rstrip() for rule in rules)
    yield "COMMIT"
