"""Metrics in Prometheus' text form, under kube-proxy's names where kube-proxy has the same thing.

Counting is plain integers wherever it happens (sync status, reflector statistics, DNS workers); this module turns them into an exposition
when somebody asks, and into nothing when nobody does. Nothing in here is on a hot path.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector, CollectorRegistry

from kproxy import __version__
from kproxy.conntrack.counters import Counters
from kproxy.model.names import Family
from kproxy.sync.status import SyncStatus
from kproxy.telemetry import metrics_proxy
from kproxy.watch.reflector import WatchStats

__all__ = ["Metric", "families", "text_of"]


class _Once(Collector):
    """A collector over metrics that are already there."""

    def __init__(self, metrics: Iterable[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Iterator[Metric]:
        yield from self._metrics


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=value)


def _counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(name, text, value=value)


def _watches(watches: Iterable[WatchStats], now: float) -> Iterator[Metric]:
    age = GaugeMetricFamily(
        "kproxy_watch_age_seconds", "since the last event, bookmark or list of a watch", labels=["kind"]
    )
    relists = CounterMetricFamily("kproxy_watch_relists", "complete lists after the first one", labels=["kind"])
    failures = CounterMetricFamily("kproxy_watch_failures", "failed requests and broken streams", labels=["kind"])
    waits = GaugeMetricFamily(
        "kproxy_watch_backoff_seconds", "pause before the next attempt of a watch, 0 when all is well", labels=["kind"]
    )
    for stats in watches:
        age.add_metric([stats.kind.value], now - stats.last_heard_s)
        relists.add_metric([stats.kind.value], stats.relists)
        failures.add_metric([stats.kind.value], stats.errors)
        waits.add_metric([stats.kind.value], stats.waits_s)
    yield from (age, relists, failures, waits)


def text_of(metrics: Iterable[Metric]) -> bytes:
    """Prometheus' text form."""
    registry = CollectorRegistry()
    registry.register(_Once(metrics))
    return bytes(generate_latest(registry))


def families(
    status: SyncStatus,
    watches: Iterable[WatchStats],
    *,
    now: float,
    flows: Mapping[Family, Counters],
) -> list[Metric]:
    """What every instance tells. `now` is on the reflectors' clock (monotonic seconds)."""
    build = GaugeMetricFamily("kproxy_build_info", "version of this program", labels=["version"])
    build.add_metric([__version__], 1)
    problems = GaugeMetricFamily("kproxy_problems", "objects or parts of objects that are not served", labels=["kind"])
    kinds: dict[str, int] = {}
    for problem in status.problems:
        kinds[problem.kind] = kinds.get(problem.kind, 0) + 1
    for kind, count in sorted(kinds.items()):
        problems.add_metric([kind], count)
    return [
        build,
        problems,
        _gauge("kproxy_sync_last_duration_seconds", "how long the last sync took", status.last_duration_s),
        _counter("kproxy_syncs", "syncs that went well", status.syncs),
        _counter("kproxy_sync_failures", "syncs the kernel's tools refused", status.failures),
        _gauge("kproxy_service_ports", "Service ports in the kernel, both families", status.service_ports),
        _gauge("kproxy_writer", "1 while this instance writes the rules of the node", int(status.writer)),
        *_watches(watches, now),
        *metrics_proxy.flows(flows),
    ]
