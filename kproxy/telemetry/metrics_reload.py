"""Metrics of the Corefile: which one is in force, and how many were refused, by CoreDNS's names and labels. Values in, families out."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric


def reloads(failed: int, digest: str) -> Iterator[Metric]:
    """failed: Corefiles refused since the start. digest: SHA-512 of the one in force, "" while there is none."""
    yield CounterMetricFamily("coredns_reload_failed", "changed Corefiles that were wrong and not taken", value=failed)
    if digest:
        made = GaugeMetricFamily("coredns_reload_version_info", "the Corefile in force", labels=["hash", "value"])
        made.add_metric(["sha512", digest], 1)
        yield made
