"""The userspace data plane as pages and metrics show it: `Plane` over the backend, whose rules lead to the relay, and its publisher.

What must not happen here: a write, a question to the workers (what they told last is told), or a decision about a connection.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from itertools import islice

from kproxy.backends.userspace.apply import UserspaceBackend
from kproxy.backends.userspace.ruleset import FamilyRuleset
from kproxy.config.config import UserspaceConfig
from kproxy.model.names import Family
from kproxy.relay import counts
from kproxy.relay.kernel_links import KernelLinks
from kproxy.relay.publisher import RelayPublisher
from kproxy.sync.loop import SyncOutcome
from kproxy.telemetry import metrics_relay
from kproxy.telemetry.counting import Counting
from kproxy.telemetry.metrics import Metric
from kproxy.telemetry.statepage import HeaderRules, RelayPage

_CHUNK_LINES = 500  # about 1 ms


class UserspacePlane:
    """config: `userspace:` of the configuration. kernel: None where it says that the kernel is to relay nothing."""

    def __init__(
        self,
        backend: UserspaceBackend,
        publisher: RelayPublisher,
        config: UserspaceConfig,
        kernel: KernelLinks | None = None,
    ) -> None:
        self._backend, self._publisher, self._config, self._kernel = backend, publisher, config, kernel
        self._series = metrics_relay.RelaySeries(endpoints=config.endpoint_counters)

    @property
    def mode(self) -> str:
        """What `/proxyMode` says."""
        return self._backend.mode

    @property
    def notes(self) -> tuple[str, ...]:
        """What leads packets to the relay, and where its workers listen."""
        return self._backend.notes

    @property
    def warnings(self) -> tuple[str, ...]:
        """None: there are no variants to be in doubt about."""
        return ()

    @property
    def rules(self) -> int:
        """Elements of sets and maps; the rules themselves are constant."""
        wanted = self._backend.wanted
        return wanted.rule_count if wanted is not None else 0

    @property
    def header(self) -> HeaderRules:
        """The mode and its settings; nothing follows from iptables' settings."""
        return HeaderRules(mode=self.mode, userspace=self._config)

    def wanted(self, family: Family) -> Iterator[bytes] | None:
        """A line of JSON about the constant rules and the policy route, then one for each element; None before the first compilation."""
        wanted, settings = self._backend.wanted, self._backend.settings
        if wanted is None:
            return None
        head = {"digest": self._backend.digest(family), "mark": settings.mark, "table": settings.routing_table}
        return _lines(head, wanted.of(family))

    def relay(self) -> RelayPage:
        """What the workers told last."""
        publisher, kernel = self._publisher, self._kernel
        sums, processes = publisher.counters(endpoints=False), publisher.pids()
        return RelayPage(
            workers=sum(not draining for _, draining in processes),
            draining=sum(draining for _, draining in processes),
            ports=list(publisher.ports or ()),
            connections=_sum(sums.services, counts.BEGAN),
            open=publisher.open,
            failed_connects=_sum(sums.services, counts.FAILED),
            retries=_sum(sums.services, counts.RETRIES),
            gave_up=_sum(sums.services, counts.GAVE_UP),
            shed=sums.worker.get("shed", 0),
            kernel_flows=sums.worker.get("handed", 0),
            kernel_openings=sums.worker.get("opened", 0),
            kernel_links=kernel.links if kernel is not None else 0,
            kernel_why_not=kernel.why_not if kernel is not None else "userspace.kernelFlows is false",
            ejected=sorted(f"[{address}]:{port}" if ":" in address else f"{address}:{port}" for address, port in publisher.ejected()),
        )  # fmt: skip

    def observe(self, outcome: SyncOutcome) -> None:
        """Nothing is counted of a sync but what `Counting` does."""

    async def refresh(self) -> None:
        """The kernel counts nothing of ours."""

    def metrics(self, counting: Counting) -> Iterator[Metric]:
        """The relay as a whole."""
        return metrics_relay.relay(self._publisher.whole(), self._publisher.ejected(), self._publisher.pids())

    def long_metrics(self) -> Iterator[Metric]:
        """Counters of Service ports, and of endpoints where they are wanted."""
        return self._series.of(self._publisher.counters(endpoints=self._config.endpoint_counters))


def _sum(rows: Mapping[str, list[int]], column: int) -> int:
    return sum(row[column] for row in rows.values())


def _lines(head: Mapping[str, object], ruleset: FamilyRuleset) -> Iterator[bytes]:
    yield (json.dumps(head) + "\n").encode()
    sets = ruleset.elements.items()
    lines = (json.dumps([name, key, *element]) + "\n" for name, found in sets for key, element in found.items())
    while piece := list(islice(lines, _CHUNK_LINES)):
        yield "".join(piece).encode()
