"""Families of the flow table, of ended flows and of the loopback worker."""

from __future__ import annotations

from kproxy.conntrack.counters import Counters
from kproxy.conntrack.fullness import Fullness
from kproxy.model.names import Family
from kproxy.telemetry.metrics import text_of
from kproxy.telemetry.metrics_flows import ended_flows, flow_table, loopback


def test_what_is_known_is_told_and_nothing_else() -> None:
    table = Fullness(entries=7, limit=9, dropped=3, evicted=2, insert_failed=1, full_since=5.0)
    text = text_of(flow_table(table)).decode()
    for line in (
        "kproxy_conntrack_entries 7.0",
        "kproxy_conntrack_limit 9.0",
        "kproxy_conntrack_full 1.0",
        "kproxy_conntrack_dropped_packets_total 3.0",
        "kproxy_conntrack_evicted_entries_total 2.0",
        "kproxy_conntrack_insert_failures_total 1.0",
    ):
        assert line in text.splitlines()
    assert not list(flow_table(None)) and not list(ended_flows({}))


def test_ended_flows_and_loopback() -> None:
    assert (
        'kproxy_ended_tcp_flows_total{ip_family="IPv6"} 4.0'
        in text_of(ended_flows({Family.IPV6: Counters(deleted=4)})).decode()
    )
    text = text_of(loopback({"tcp_connections": 2, "udp_lost": 5}, listeners=3, taken=1)).decode()
    for line in (
        "kproxy_loopback_listeners 3.0",
        "kproxy_loopback_taken 1.0",
        "kproxy_loopback_tcp_connections 2.0",
        "kproxy_loopback_udp_sessions 0.0",
        "kproxy_loopback_udp_lost_total 5.0",
    ):
        assert line in text.splitlines()
