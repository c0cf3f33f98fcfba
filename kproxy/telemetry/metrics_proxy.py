"""kube-proxy's own metrics under kube-proxy's names, and the finer ones of ours beside them. Turns numbers into families; counts nothing.

A sync writes both families at once, so the two `ip_family` values of a duration, a last time or a partial failure are the same number; what
differs by family (rules, restore failures, programming latency) is counted by family.

| not here | why |
| sync_proxy_rules_nftables_* | of kube-proxy's nftables mode; it does not show them in iptables mode either |
| iptables_localhost_nodeports_accepted_packets_total | needs one rule more for every node port, for every new connection to pass |
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from kproxy.backends.iptables.tally import Tally
from kproxy.conntrack.counters import BUCKETS_S, Counters
from kproxy.model.names import Family
from kproxy.model.objects import Kind
from kproxy.sync.status import SyncStatus
from kproxy.telemetry.counting import Counting
from kproxy.telemetry.histogram import Histogram

_PREFIX = "kubeproxy_sync_proxy_rules_"


def histogram(name: str, text: str, by_family: Mapping[Family, Histogram]) -> Metric:
    """One histogram for each IP family."""
    made = HistogramMetricFamily(name, text, labels=["ip_family"])
    for family, counted in by_family.items():
        made.add_metric([family.value], counted.buckets, counted.sum)
    return made


def _alike(counted: Histogram) -> Mapping[Family, Histogram]:
    return dict.fromkeys(Family, counted)


def _gauge(name: str, text: str, by_family: Mapping[Family, float]) -> Metric:
    made = GaugeMetricFamily(name, text, labels=["ip_family"])
    for family, value in by_family.items():
        made.add_metric([family.value], value)
    return made


def _counter(name: str, text: str, by_family: Mapping[Family, float]) -> Metric:
    made = CounterMetricFamily(name, text, labels=["ip_family"])
    for family, value in by_family.items():
        made.add_metric([family.value], value)
    return made


def syncs(counting: Counting, status: SyncStatus) -> Iterator[Metric]:
    """Durations, times, changes and latency."""
    name = "kubeproxy_sync_{}proxy_rules_duration_seconds"
    yield histogram(name.format(""), "how long syncs took", _alike(counting.syncs))
    yield histogram(name.format("full_"), "syncs that observed the kernel first", _alike(counting.full_syncs))
    yield histogram(name.format("partial_"), "syncs that wrote what had changed", _alike(counting.partial_syncs))
    yield _gauge(
        f"{_PREFIX}last_timestamp_seconds",
        "Unix time of the last successful sync",
        dict.fromkeys(Family, status.last_success),
    )
    yield _gauge(
        f"{_PREFIX}last_queued_timestamp_seconds",
        "Unix time a sync was last asked for",
        dict.fromkeys(Family, status.last_queued),
    )
    text = "from the change of an endpoint, as its controller noted it, to the rules in the kernel"
    yield histogram("kubeproxy_network_programming_duration_seconds", text, counting.programming)
    yield histogram("kproxy_network_programming_duration_seconds", f"{text}; finer buckets", counting.programming_fine)
    delay = HistogramMetricFamily("kproxy_change_duration_seconds", "from the watch event to the rules in the kernel")
    delay.add_metric([], counting.change.buckets, counting.change.sum)
    yield delay
    pending = counting.pending()
    for kind, word in ((Kind.ENDPOINT_SLICE, "endpoint"), (Kind.SERVICE, "service")):
        yield GaugeMetricFamily(
            f"{_PREFIX}{word}_changes_pending", f"{kind.value}s changed and not yet in the kernel", value=pending[kind]
        )
        yield CounterMetricFamily(
            f"{_PREFIX}{word}_changes", f"{kind.value} events heard", value=counting.changes[kind]
        )


def rules(tally: Tally, counting: Counting, owned: Mapping[tuple[Family, str], int]) -> Iterator[Metric]:
    """What iptables holds and was told. owned: (family, table) → rules of ours."""
    total = GaugeMetricFamily(
        f"{_PREFIX}iptables_total", "rules in the kernel that are ours", labels=["table", "ip_family"]
    )
    last = GaugeMetricFamily(f"{_PREFIX}iptables_last", "rules written by the last sync", labels=["table", "ip_family"])
    for (family, table), count in owned.items():
        total.add_metric([table, family.value], count)
        last.add_metric([table, family.value], tally.last[family, table])
    yield total
    yield last
    failures = {family: float(tally.restore_failures[family]) for family in Family}
    yield _counter(f"{_PREFIX}iptables_restore_failures", "inputs that iptables-restore refused", failures)
    partial = dict.fromkeys(Family, float(counting.partial_failures))
    yield _counter(f"{_PREFIX}iptables_partial_restore_failures", "syncs of what had changed that failed", partial)
    tools = HistogramMetricFamily(
        "kproxy_tool_duration_seconds",
        "how long the kernel's tools ran, the wait for their lock included",
        labels=["tool"],
    )
    for tool, took in sorted(tally.seconds.items()):
        tools.add_metric([tool], took.buckets, took.sum)
    yield tools
    yield CounterMetricFamily(
        "kproxy_xtables_lock_failures",
        "inputs given up because another program held the xtables lock",
        value=tally.lock_failures,
    )


def no_local_endpoints(found: Mapping[tuple[str, Family], int]) -> Iterator[Metric]:
    """Service ports of policy Local that drop on this node."""
    made = GaugeMetricFamily(
        f"{_PREFIX}no_local_endpoints_total",
        "Service ports of policy Local without an endpoint here",
        labels=["traffic_policy", "ip_family"],
    )
    for (direction, family), count in found.items():
        made.add_metric([direction, family.value], count)
    yield made


def answers(found: Mapping[tuple[str, int], int]) -> Iterator[Metric]:
    """Answers of the health pages by code."""
    for page in ("healthz", "livez", "readyz"):
        owner = "kproxy" if page == "readyz" else "kubeproxy"
        made = CounterMetricFamily(f"{owner}_proxy_{page}", f"answers of /{page}", labels=["code"])
        for (name, code), count in sorted(found.items()):
            if name == page:
                made.add_metric([str(code)], count)
        yield made


def flows(counters: Mapping[Family, Counters]) -> Iterator[Metric]:
    """The reconciliation of conntrack."""
    prefix = "kubeproxy_conntrack_reconciler_"
    deleted = CounterMetricFamily(f"{prefix}deleted_entries", "stale UDP flows deleted", labels=["ip_family"])
    took = HistogramMetricFamily(
        f"{prefix}sync_duration_seconds", "how long it took to look through the open flows", labels=["ip_family"]
    )
    for family, counted in counters.items():
        passes = Histogram(BUCKETS_S)
        passes.counts[:] = counted.durations
        deleted.add_metric([family.value], counted.deleted)
        took.add_metric([family.value], passes.buckets, counted.seconds)
    yield from (deleted, took)


def invalid_dropped(packets: float | None) -> Iterable[Metric]:
    """Packets that conntrack calls INVALID and KUBE-FORWARD dropped, both families; nothing when the kernel cannot be asked."""
    if packets is not None:
        name = "kubeproxy_iptables_ct_state_invalid_dropped_packets"
        yield CounterMetricFamily(name, "packets dropped because conntrack calls them INVALID", value=packets)
