"""All that a controller tells to the outside, in one object: pages, metrics, Events, health check node ports.

In: the parts, as `app` built them, and the outcome of every sync. Out: tasks for the app's group. Nothing here decides about a Service, and
nothing that fails here stops the data plane, but for a port of the pages with `bindAddressHardFail`.
"""

from __future__ import annotations

import asyncio
import itertools
import platform
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kproxy.config.config import Config
from kproxy.conntrack.counters import Counters
from kproxy.errors import SourceError
from kproxy.healthcheck.server import HealthChecks
from kproxy.model.names import Family
from kproxy.model.objects import Problem
from kproxy.sync.healing import Healer
from kproxy.sync.loop import SyncLoop, SyncOutcome
from kproxy.telemetry import metrics_program, metrics_proxy, notices
from kproxy.telemetry.counting import Counting, without_local_endpoints
from kproxy.telemetry.events import Recorder
from kproxy.telemetry.http import Health, Pages, Routes, health_routes, metrics_only, metrics_routes, serve
from kproxy.telemetry.metrics import Metric, families, text_of
from kproxy.telemetry.plane import Plane
from kproxy.telemetry.state import health_of, status_of, watch_text
from kproxy.watch.client import Api
from kproxy.watch.reflector import WatchStats

DNS_METRICS_PORT = 9153  # the port `metrics` of the kube-dns Service


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """What only the app knows, asked at every request. api: None before it is connected. dns: lines for /statusz."""

    api: Callable[[], Api | None]
    dns: Callable[[], Mapping[str, Any]]
    flows: Callable[[], Mapping[Family, Counters]]
    further: Callable[[], Iterable[Metric]]  # families of parts that are not there on every node
    configz: Callable[[], Mapping[str, Any]]
    flagz: Callable[[], Mapping[str, str]]
    page: Callable[[], bytes]  # the StatusPage that `kproxy status` reads, as JSON


class Monitor:
    """One for each controller. `counting.emit` belongs between the reflectors and the loop."""

    def __init__(
        self,
        config: Config,
        *,
        loop: SyncLoop,
        plane: Plane,
        healer: Healer,
        watches: Sequence[WatchStats],
        sources: Sources,
    ) -> None:
        self._config, self._loop, self._plane = config, loop, plane
        self._healer, self._watches, self._sources = healer, watches, sources
        self._answers: Counter[tuple[str, int]] = Counter()
        self._problems: tuple[Problem, ...] = ()
        self.counting = Counting(loop.emit, lambda: loop.snapshot, unix=time.time, monotonic=time.monotonic)
        self.recorder = Recorder(
            self._write,
            instance=f"kproxy-{platform.node()}",
            unix_ns=time.time_ns,
            monotonic=time.monotonic,
            enabled=config.events,
        )
        self.checks = HealthChecks(
            lambda: self.health().data_path,
            lambda service, why: self.recorder.record(notices.check_failed(config.node_name, service, why)),
        )
        loop.observers.extend([self.counting.observe, self.checks.observe, self._observe])
        healer.observers.append(lambda found: self.recorder.record(notices.drift(config.node_name, found)))

    async def _write(self, method: str, path: str, body: bytes, content_type: str) -> bytes:
        api = self._sources.api()
        if api is None:
            raise SourceError("not connected to the API server yet")
        return await api.write(method, path, body, content_type)

    def _observe(self, outcome: SyncOutcome) -> None:
        self._plane.observe(outcome)
        if outcome.error is not None:
            self.recorder.record(notices.sync_failed(self._config.node_name, str(outcome.error)))
        before, self._problems = self._problems, self._loop.status.problems
        if before is not self._problems:
            for note in notices.of_problems(self._config.node_name, before, self._problems):
                self.recorder.record(note)

    def health(self) -> Health:
        """For the health pages."""
        status, snapshot = self._loop.status, self._loop.snapshot
        period = self._config.iptables.sync_period_s
        return health_of(
            status,
            snapshot,
            self._config.node_name,
            now=time.monotonic(),
            sync_period_s=period,
            dns=self._config.dns.enabled,
        )

    def status(self) -> dict[str, Any]:
        """For `/statusz`."""
        api = self._sources.api()
        return status_of(
            self._loop.status,
            node_name=self._config.node_name,
            mode=self._plane.mode,
            evidence="; ".join(self._plane.notes),
            server=api.server if api is not None else "",
            watches=tuple(watch_text(stats, time.monotonic()) for stats in self._watches),
            drift=self._healer.status,
            dns=self._sources.dns(),
        )

    async def metrics(self) -> bytes:
        """For `/metrics`. The text is made in a thread: with counters of Services it has tens of thousands of lines."""
        await self._plane.refresh()
        told, services = self._families(), self._plane.long_metrics()
        return await asyncio.to_thread(text_of, itertools.chain(told, services))

    def _families(self) -> list[Metric]:
        api = self._sources.api()
        return [
            *families(
                self._loop.status,
                self._watches,
                now=time.monotonic(),
                flows=self._sources.flows(),
            ),
            *metrics_proxy.syncs(self.counting, self._loop.status),
            *self._plane.metrics(self.counting),
            *metrics_proxy.no_local_endpoints(without_local_endpoints(self._loop.desired)),
            *metrics_proxy.answers(self._answers),
            *metrics_program.drift(self._healer.status),
            *self._sources.further(),
            *metrics_program.events(self.recorder.outcomes),
            *(metrics_program.requests(api.requests) if api is not None else ()),
            *metrics_program.build(),
            *metrics_program.process(),
        ]

    def slis(self) -> bytes:
        """For `/metrics/slis`."""
        return text_of(metrics_program.slis(self.health(), self._answers, self.counting.started))

    def tasks(self, dns_addresses: Sequence[str]) -> Iterator[Coroutine[Any, Any, None]]:
        """What has to run. dns_addresses: where DNS is answered; its metrics are there as well."""
        config, pages = self._config, self._pages()
        yield self._tell_and_keep()
        yield self.checks.keep()
        for address, routes, reason in (
            (config.healthz_bind_address, health_routes(pages), "FailedToStartProxierHealthcheck"),
            (config.metrics_bind_address, metrics_routes(pages), "FailedToStartMetricServer"),
        ):
            if address:
                yield serve(routes, address, hard_fail=config.bind_address_hard_fail, failed=self._failed(reason))
        for address in dns_addresses:
            yield serve(metrics_only(pages), _with_port(address))

    def scraped(self) -> Routes:
        """/metrics alone, for further addresses."""
        return metrics_only(self._pages())

    def _pages(self) -> Pages:
        return Pages(
            health=self.health,
            status=self.status,
            page=self._sources.page,
            metrics=self.metrics,
            slis=self.slis,
            configz=self._sources.configz,
            flagz=self._sources.flagz,
            mode=self._plane.mode,
            answers=self._answers,
            started=self.counting.started,
        )

    def _failed(self, reason: str) -> Callable[[str], None]:
        return lambda why: self.recorder.record(notices.pages_failed(self._config.node_name, reason, why))

    async def _tell_and_keep(self) -> None:
        self.recorder.record(notices.starting(self._config.node_name))
        for note in notices.variants(self._config.node_name, self._plane.warnings):
            self.recorder.record(note)
        await self.recorder.keep()


def _with_port(address: str) -> str:
    return f"[{address}]:{DNS_METRICS_PORT}" if ":" in address else f"{address}:{DNS_METRICS_PORT}"
