"""An executor for flows that outlive a change of rules: clients keep their sockets from step to step."""

from __future__ import annotations

import asyncio
import re
from collections import defaultdict

from kproxy.backends.iptables.variant import Variant
from kproxy.conntrack.reconciler import Reconciler
from kproxy.model.resolve import resolve
from tests.packet.executor import PATIENCE_S, SILENCE_S, Executor
from tests.support.bed import Bed
from tests.support.flows import Flow, Outcome, Row, Step
from tests.support.netns import run
from tests.support.probing import Answered, Lasting, Refused, Silent


class Lasters(Executor):
    """An executor whose named sockets stay open from step to step, and who reconciles after each sync unless told otherwise."""

    def __init__(self, bed: Bed, variant: Variant) -> None:
        super().__init__(bed, variant)
        self.reconciles = True
        self.reconciler = Reconciler()
        self.clients: dict[tuple[str, tuple[str, int]], Lasting] = {}

    def run_row(self, row: Row) -> list[str]:
        try:
            return super().run_row(row)
        finally:
            self.hang_up()

    def hang_up(self) -> None:
        for client in self.clients.values():
            client.close()
        self.clients.clear()

    def sync(self, row: Row, step: Step) -> None:
        super().sync(row, step)
        if self.reconciles:
            self.look(row, step)

    def look(self, row: Row, step: Step) -> int:
        """One pass; how many flows it deleted."""
        desired = resolve(step.snapshot(), row.settings)
        with self.bed.node.entered():
            reports = asyncio.run(self.reconciler.look(desired, step.local_addresses))
        return sum(report.deleted for report in reports)

    def _flow(self, flow: Flow, landed: defaultdict[str, set[str]]) -> list[str]:
        if not flow.socket:
            return super()._flow(flow, landed)
        return self._judge(flow, [self.ask(flow)])

    def ask(self, flow: Flow) -> Answered | Refused | Silent:
        """One datagram from the flow's socket."""
        key = (flow.socket, flow.to)
        if key not in self.clients:
            with self.bed.at(flow.source):
                self.clients[key] = Lasting(flow.source.address, flow.to)
        return self.clients[key].ask(SILENCE_S if flow.expect.outcome is Outcome.DROP else PATIENCE_S)

    def flows(self) -> dict[str, str]:
        """The kernel's UDP flows, id → line without its running time."""
        found = {}
        for family in ("ipv4", "ipv6"):
            for line in run(self.bed.node, "conntrack", "-L", "-f", family, "-p", "udp", "-o", "id").splitlines():
                if match := re.search(r" id=(\d+)", line):
                    found[match[1]] = line
        return found
