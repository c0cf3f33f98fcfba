"""Metrics of the kernel's table of flows, of TCP flows that were ended, and of the listener on loopback. Values in, families out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from kproxy.conntrack.counters import Counters
from kproxy.conntrack.fullness import Fullness
from kproxy.model.names import Family

_NOW = {"tcp_connections": "open connections", "udp_sessions": "open sessions"}
_SINCE = {
    "tcp_accepted": "connections accepted",
    "tcp_refused": "connections reset for want of room",
    "tcp_connect_failed": "endpoints that did not accept a connection",
    "udp_begun": "sessions begun",
    "udp_lost": "datagrams that went nowhere",
}


def flow_table(table: Fullness | None) -> Iterator[Metric]:
    """How full the table is; nothing while the kernel does not tell."""
    if table is None:
        return
    yield GaugeMetricFamily("kproxy_conntrack_entries", "open flows in the kernel's table", value=table.entries)
    yield GaugeMetricFamily("kproxy_conntrack_limit", "flows that the table takes; 0: no limit", value=table.limit)
    yield GaugeMetricFamily("kproxy_conntrack_full", "1: new connections are being dropped", value=int(table.is_full))
    for name, count, text in (
        ("dropped_packets", table.dropped, "packets of new flows that found no room"),
        ("evicted_entries", table.evicted, "flows that the kernel ended to make room"),
        ("insert_failures", table.insert_failed, "new flows that met another of the same tuple"),
    ):
        yield CounterMetricFamily(f"kproxy_conntrack_{name}", text, value=count)


def ended_flows(counters: Mapping[Family, Counters]) -> Iterator[Metric]:
    """TCP flows ended because their endpoint is gone; nothing where they are left alone."""
    if not counters:
        return
    made = CounterMetricFamily("kproxy_ended_tcp_flows", "TCP flows ended with their endpoint", labels=["ip_family"])
    for family, counted in counters.items():
        made.add_metric([family.value], counted.deleted)
    yield made


def loopback(counts: Mapping[str, int], *, listeners: int, taken: int) -> Iterator[Metric]:
    """The worker that serves node ports on loopback; `counts` as it told them last."""
    yield GaugeMetricFamily("kproxy_loopback_listeners", "node ports to listen on", value=listeners)
    yield GaugeMetricFamily("kproxy_loopback_taken", "of these, held by somebody else", value=taken)
    for name, text in _NOW.items():
        yield GaugeMetricFamily(f"kproxy_loopback_{name}", text, value=counts.get(name, 0))
    for name, text in _SINCE.items():
        yield CounterMetricFamily(f"kproxy_loopback_{name}", text, value=counts.get(name, 0))
