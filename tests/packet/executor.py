"""Runs rows of the behaviour table with real packets through the iptables data plane.

Between rows and steps only the backend's own plans change the rules, so the table is also a long test of incremental application; after
every step a fresh look at the kernel has to find nothing left to do.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, defaultdict

from kproxy.backends.iptables.apply import IptablesBackend
from kproxy.backends.iptables.ruleset import Ruleset
from kproxy.backends.iptables.settings import IptablesSettings
from kproxy.backends.iptables.variant import Variant
from kproxy.model.resolve import resolve
from tests.support.bed import Bed
from tests.support.flows import IPT, Expect, Flow, Outcome, Row, Seen, Step
from tests.support.netns import run
from tests.support.probing import Answered, Refused, Result, Silent, probe

SILENCE_S = 0.5  # answers take less than a millisecond here
PATIENCE_S = 3.0  # for what must be answered, on a busy machine


class Executor:
    """One variant's rules on one bed."""

    mode = IPT  # of the flows that are tried
    silence_s = SILENCE_S

    def __init__(self, bed: Bed, variant: Variant, settings: IptablesSettings | None = None) -> None:
        self.bed = bed
        self.variant = variant
        with bed.node.entered():
            self.backend = IptablesBackend(settings, variant=variant)
            self.applied: Ruleset = asyncio.run(self.backend.observe())

    def run_row(self, row: Row) -> list[str]:
        """All steps of a row; what went wrong, in words."""
        wrong: list[str] = []
        landed: defaultdict[str, set[str]] = defaultdict(set)
        self.bed.forget_flows()
        for number, step in enumerate(row.steps, 1):
            name = f"step {number}{f' ({step.label})' if step.label else ''}"
            self.bed.place(step)
            self.sync(row, step)
            wrong += [f"{name}: {text}" for text in self._leftover()]
            for flow in step.flows:
                if self.mode in flow.modes:
                    wrong += [f"{name}: {flow}: {text}" for text in self._flow(flow, landed)]
        wrong += [f"sticky group {group!r} landed on {sorted(hit)}" for group, hit in landed.items() if len(hit) > 1]
        return wrong

    def sync(self, row: Row, step: Step) -> None:
        """Brings the kernel to what this step wants."""
        wanted = self.backend.compile(resolve(step.snapshot(), row.settings))
        plan = self.backend.plan(self.applied, wanted)
        with self.bed.node.entered():
            report = asyncio.run(self.backend.apply(plan))
        assert not report.problems, report.problems
        self.applied = wanted

    def _leftover(self) -> list[str]:
        with self.bed.node.entered():
            seen = asyncio.run(self.backend.observe())
        return [
            f"the kernel does not hold what is wanted: {batch}"
            for batch in self.backend.plan(seen, self.applied).batches
        ]

    def _flow(self, flow: Flow, landed: defaultdict[str, set[str]]) -> list[str]:
        results = self._results(flow)
        if flow.sticky:
            landed[flow.sticky] |= {result.by for result in results if isinstance(result, Answered)}
        return self._judge(flow, results)

    def _results(self, flow: Flow) -> list[Result]:
        expect = flow.expect
        silent = expect.outcome is Outcome.DROP
        count = max(flow.connections, 40 if len(expect.endpoints) > 1 and not flow.sticky else 3)
        if silent:
            count = 2
        time.sleep(flow.wait_s)
        if flow.input_drop:
            self._input_policy(flow, "DROP")
        with self.bed.at(flow.source):
            results = probe(
                flow.protocol, flow.source.address, flow.to, count, self.silence_s if silent else PATIENCE_S
            )
        if flow.input_drop:
            self._input_policy(flow, "ACCEPT")
        return results

    def _input_policy(self, flow: Flow, policy: str) -> None:
        tool = "ip6tables" if ":" in flow.to[0] else "iptables"
        run(self.bed.node, f"{tool}-{self.variant.value}", "-w", "5", "-P", "INPUT", policy)

    def _judge(self, flow: Flow, results: list[Result]) -> list[str]:
        expect = flow.expect
        match expect.outcome:
            case Outcome.REJECT:
                bad = [r for r in results if r != Refused("icmp")]
            case Outcome.DROP:
                bad = [r for r in results if not isinstance(r, Silent)]
            case Outcome.PASS:
                to = f"[{flow.to[0]}]:{flow.to[1]}" if ":" in flow.to[0] else f"{flow.to[0]}:{flow.to[1]}"
                bad = [r for r in results if r != Answered(to, flow.source.address)]
            case Outcome.REACH:
                bad = [r for r in results if not self._as_expected(r, flow)]
        wrong = [f"expected {expect.outcome.value}, saw {_told(bad)}"] if bad else []
        return wrong or self._shares(flow, expect, results)

    def _as_expected(self, result: Result, flow: Flow) -> bool:
        if not isinstance(result, Answered) or result.by not in flow.expect.endpoints:
            return False
        own = result.client == flow.source.address
        match flow.expect.endpoints[result.by]:
            case Seen.KEEP:
                return own
            case Seen.SNAT:
                return not own and result.client in self.bed.node_addresses
            case Seen.EITHER:
                return own or result.client in self.bed.node_addresses

    def _shares(self, flow: Flow, expect: Expect, results: list[Result]) -> list[str]:
        if expect.outcome is not Outcome.REACH or flow.sticky:
            return []
        hits = Counter(result.by for result in results if isinstance(result, Answered))
        missed = sorted(set(expect.endpoints) - set(hits))
        if missed:
            return [f"never reached {missed} in {len(results)} connections"]
        if flow.connections < 1000:
            return []
        share = 1 / len(expect.endpoints)
        sigma = (len(results) * share * (1 - share)) ** 0.5
        return [
            f"{by} got {count} of {len(results)}"
            for by, count in hits.items()
            if abs(count - len(results) * share) > 4 * sigma
        ]


def _told(results: list[Result]) -> str:
    return ", ".join(f"{result} × {count}" for result, count in Counter(results).most_common(4))
