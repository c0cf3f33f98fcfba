"""What every Kubernetes component tells: its process, its requests to the API server, its version, its own health as metrics; and what only
kproxy has: counters of Services, drift, Events. Turns numbers into families; counts nothing.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import CollectorRegistry

from kproxy.backends.iptables.counters import Counts, ServiceKey
from kproxy.sync.drift import DriftStatus
from kproxy.telemetry.health import Health
from kproxy.watch.requests import RequestCounts

# Whose behaviour this is; alerts compare it with the other components' versions. kproxy's own is in kproxy_build_info.
UPSTREAM = ("1", "36", "v1.36.3")
_BUILD = (
    "major",
    "minor",
    "git_version",
    "git_commit",
    "git_tree_state",
    "build_date",
    "go_version",
    "compiler",
    "platform",
)


def process() -> Iterator[Metric]:
    """process_*: memory, processor time and files of the controller, from /proc."""
    yield from ProcessCollector(registry=CollectorRegistry()).collect()


def build() -> Iterator[Metric]:
    """kubernetes_build_info with kube-proxy's labels."""
    made = GaugeMetricFamily(
        "kubernetes_build_info", "the kube-proxy release whose behaviour this program has", labels=_BUILD
    )
    major, minor, version = UPSTREAM
    machine = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
    python = f"{platform.python_implementation().lower()}{platform.python_version()}"
    made.add_metric(
        [major, minor, version, "unknown", "clean", "1970-01-01T00:00:00Z", "", python, f"linux/{machine}"], 1
    )
    yield made


def requests(counts: RequestCounts) -> Iterator[Metric]:
    """rest_client_*, as client-go has them."""
    total = CounterMetricFamily("rest_client_requests", "requests to the API server", labels=["code", "host", "method"])
    for (host, method, code), count in sorted(counts.answers.items()):
        total.add_metric([code, host, method], count)
    took = HistogramMetricFamily(
        "rest_client_request_duration_seconds", "until the first byte of an answer", labels=["host", "verb"]
    )
    for (host, method), counted in sorted(counts.seconds.items()):
        took.add_metric([host, method], counted.buckets, counted.sum)
    yield from (total, took)


def services(counts: Mapping[ServiceKey, Counts]) -> Iterator[Metric]:
    """Packets and bytes of each Service port; nothing unless `iptables.service_counters` is set."""
    if not counts:
        return
    labels = ["namespace", "service", "port", "protocol", "ip_family"]
    text = "that rules of a Service port sent to an endpoint: the first packet of each connection"
    packets = CounterMetricFamily("kproxy_service_packets", f"packets {text}", labels=labels)
    octets = CounterMetricFamily("kproxy_service_bytes", f"bytes of packets {text}", labels=labels)
    for (family, name), (count, size) in counts.items():
        values = [name.service.namespace, name.service.name, name.port, name.protocol.value, family.value]
        packets.add_metric(values, count)
        octets.add_metric(values, size)
    yield from (packets, octets)


def events(counts: Mapping[str, int]) -> Iterator[Metric]:
    """What became of Events: written, repeated, dropped, refused."""
    made = CounterMetricFamily("kproxy_events", "Events by what became of them", labels=["outcome"])
    for outcome, count in sorted(counts.items()):
        made.add_metric([outcome], count)
    yield made


def drift(status: DriftStatus) -> Iterator[Metric]:
    """Rules that somebody else changed: looked for, found, put right."""
    yield CounterMetricFamily("kproxy_drift_looks", "looks for rules that somebody else changed", value=status.looks)
    yield CounterMetricFamily("kproxy_drift_comparisons", "comparisons of every rule", value=status.comparisons)
    yield CounterMetricFamily("kproxy_drift_failures", "looks that the kernel or a tool refused", value=status.failures)
    yield CounterMetricFamily("kproxy_drift_found", "times that rules were not as written", value=status.found)
    yield CounterMetricFamily("kproxy_drift_mended", "times that they were put right", value=status.mended)
    yield GaugeMetricFamily(
        "kproxy_drift_contested", "1 while somebody undoes what is mended", value=int(status.contested)
    )


def slis(health: Health, answers: Mapping[tuple[str, int], int], started: float) -> Iterator[Metric]:
    """/metrics/slis: each health check as a gauge, and how the health pages have answered. `started`: Unix seconds."""
    now = {
        ("ping", "healthz"): True,
        ("data-path", "livez"): health.data_path,
        ("node-eligible", "healthz"): health.node_eligible,
        ("synced", "readyz"): health.ready,
    }
    check = GaugeMetricFamily("kubernetes_healthcheck", "the result of a single health check", labels=["name", "type"])
    for (name, kind), ok in now.items():
        check.add_metric([name, kind], int(ok))
    total = CounterMetricFamily(
        "kubernetes_healthchecks", "answers of the health pages", labels=["name", "status", "type"]
    )
    for (page, code), count in sorted(answers.items()):
        total.add_metric([page, "success" if code == 200 else "error", page], count)
    since = GaugeMetricFamily("process_start_time_seconds", "start of the process, Unix seconds", value=started)
    yield from (check, total, since)
