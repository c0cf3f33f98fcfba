"""Runs rows of the behaviour table through mode userspace: real nft rules, real relay workers, real packets.

It tries the flows of iptables mode. Where the list of differences names one, two things must hold: what the list says is seen, and what
the table says is not.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path

from kproxy.backends.iptables.variant import Variant
from kproxy.model.names import Family
from kproxy.model.objects import RelayOptions
from kproxy.model.resolve import resolve
from tests.packet.executor import PATIENCE_S, Executor
from tests.packet.userspace_differences import Case, difference
from tests.support.bed import Bed
from tests.support.flows import IPT, USERSPACE, Expect, Flow, Outcome, Row, Step
from tests.support.probing import Answered, Lasting, Result
from tests.support.relaying import Relaying


class UserspaceExecutor(Executor):
    """One relay on one bed. preserves: the mode with `preserveSourceAddress`."""

    mode = USERSPACE
    silence_s = 0.3
    variant = Variant.NFT  # of the tool that closes INPUT for a while

    def __init__(self, bed: Bed, folder: Path, *, preserves: bool = False) -> None:
        self.bed, self.preserves = bed, preserves
        self.relaying = Relaying(bed.node, folder, options=RelayOptions(preserve_source=preserves))
        self.used: Counter[str] = Counter()  # flows by the entry of the list that they fell under

        self._sticky: dict[tuple[str, str], set[str]] = {}  # of this step: ServicePort and client → where it landed

        self._clients: dict[tuple[str, tuple[str, int]], Lasting] = {}  # of this row: sockets that stay open

    def close(self) -> None:
        """Ends the workers."""
        self.relaying.close()

    def run_row(self, row: Row) -> list[str]:
        try:
            return super().run_row(row)
        finally:
            for client in self._clients.values():
                client.close()
            self._clients.clear()

    def sync(self, row: Row, step: Step) -> None:
        stays, self._sticky = self._sticky, {}
        self.relaying.settle(stays)
        self._row, self._step = row, step
        self._desired = resolve(step.snapshot(), row.settings)
        report = self.relaying.bring(self._desired)
        assert not report.problems, report.problems

    def _leftover(self) -> list[str]:
        return [f"the kernel does not hold what is wanted: {batch}" for batch in self.relaying.leftover()]

    def _flow(self, flow: Flow, landed: defaultdict[str, set[str]]) -> list[str]:
        known = difference(Case(self._row, self._step, flow, self.preserves))
        tried = flow if known is None else replace(flow, expect=known[1])
        results = self._results(tried)
        if flow.sticky:
            landed[flow.sticky] |= {result.by for result in results if isinstance(result, Answered)}
        self._note_affinity(flow, results)
        wrong = self._judge(tried, results)
        if known is not None:
            self.used[known[0].name] += 1
            if _tells_apart(flow.expect, tried.expect, results) and not self._judge(flow, results):
                wrong.append(f"does what the table says: it is no case of {known[0].name!r}")
        return wrong

    def _results(self, flow: Flow) -> list[Result]:
        if not flow.socket:
            return super()._results(flow)
        key = (flow.socket, flow.to)
        if key not in self._clients:
            with self.bed.at(flow.source):
                self._clients[key] = Lasting(flow.source.address, flow.to)
        return [self._clients[key].ask(self.silence_s if flow.expect.outcome is Outcome.DROP else PATIENCE_S)]

    def _note_affinity(self, flow: Flow, results: list[Result]) -> None:
        """Workers tell one another of a client a fifth of a second later; one that comes in between, after a change, may be another's."""
        landed = {result.by.rpartition(":")[0].strip("[]") for result in results if isinstance(result, Answered)}
        if not landed:
            return
        for port in self._desired.of(Family.IPV6 if ":" in flow.to[0] else Family.IPV4).service_ports.values():
            if port.affinity is not None and flow.to[1] in (port.port, port.node_port):
                self._sticky[str(port.name), flow.source.address] = landed


def _tells_apart(one: Expect, other: Expect, results: list[Result]) -> bool:
    """Whether what was seen could agree with one of them alone: a client with affinity reaches one endpoint, where they may be alike."""
    reached = {result.by for result in results if isinstance(result, Answered)}
    return not reached or any(one.endpoints.get(by) != other.endpoints.get(by) for by in reached)


def _tried(flow: Flow) -> Flow:
    """Shares are judged from a thousand connections on; a relay takes longer for each than rules do."""
    return replace(flow, modes=flow.modes | {USERSPACE}, connections=min(flow.connections, 1000))


def as_userspace(row: Row) -> Row:
    """The row as this executor tries it: the flows of iptables mode."""
    return replace(
        row,
        steps=tuple(replace(step, flows=tuple(_tried(f) for f in step.flows if IPT in f.modes)) for step in row.steps),
    )
