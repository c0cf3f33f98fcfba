"""Counting passes, and how Prometheus sees it."""

from __future__ import annotations

from kproxy.conntrack.counters import BUCKETS_S, Counters
from kproxy.model.names import Family
from kproxy.sync.status import SyncStatus
from kproxy.telemetry.metrics import families, text_of


def test_a_pass_falls_into_the_first_bucket_that_holds_it() -> None:
    counted = Counters().with_pass(3, 0.001).with_pass(0, 0.0011).with_pass(1, 60.0)
    assert (counted.deleted, counted.passes, counted.seconds) == (4, 3, 0.001 + 0.0011 + 60.0)
    assert counted.durations == (1, 1, *(0,) * (len(BUCKETS_S) - 2), 1)


def test_the_names_are_those_of_kube_proxy() -> None:
    flows = {Family.IPV4: Counters().with_pass(7, 0.0015), Family.IPV6: Counters()}
    text = text_of(families(SyncStatus(), (), now=0.0, flows=flows)).decode()
    lines = [line for line in text.splitlines() if line.startswith("kubeproxy_conntrack_reconciler_")]
    name = "kubeproxy_conntrack_reconciler_sync_duration_seconds"
    for line in (
        'kubeproxy_conntrack_reconciler_deleted_entries_total{ip_family="IPv4"} 7.0',
        'kubeproxy_conntrack_reconciler_deleted_entries_total{ip_family="IPv6"} 0.0',
        f'{name}_bucket{{ip_family="IPv4",le="0.001"}} 0.0',
        f'{name}_bucket{{ip_family="IPv4",le="0.002"}} 1.0',
        f'{name}_bucket{{ip_family="IPv4",le="+Inf"}} 1.0',
        f'{name}_count{{ip_family="IPv4"}} 1.0',
        f'{name}_sum{{ip_family="IPv4"}} 0.0015',
    ):
        assert line in lines, lines
