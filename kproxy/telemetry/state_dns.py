"""The DNS part of the state page, from what the workers count. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from kproxy.dns.memory import MemoryState
from kproxy.dns.savings import saved_by_pod
from kproxy.telemetry.statepage import DnsPage, UpstreamPage


def dns_page(
    counters: Mapping[str, int],
    memory: MemoryState,
    *,
    serial: int,
    zone_age_s: float | None,
    from_memory: bool,
    away_s: float | None,
    held_s: float | None,
    handover: Mapping[str, int],
    kernel_links: int = 0,
    kernel_why_not: str = "",
) -> DnsPage:
    """counters: sums over all workers, by their own words (dns/tally.py, dns/forward_pool.py). kernel_links …: see dns/kernel_links.py."""
    return DnsPage(
        serial=serial,
        zone_age_s=_rounded(zone_age_s),
        from_memory=from_memory,
        memory_age_s=_rounded(memory.age_s),
        memory_bytes=memory.octets,
        memory_problem=memory.problem,
        away_s=_rounded(away_s),
        held_s=_rounded(held_s),
        handed_back=handover.get("handed_back", 0),
        workers_ended=handover.get("workers_ended", 0),
        queries=sum(count for word, count in counters.items() if word.startswith("coredns_dns_requests_total")),
        saved=counters.get("walks_saved", 0),
        saved_by_pod=saved_by_pod(counters),
        refused=counters.get("refused_clients", 0),
        kernel_answers=counters.get("kernel_answers", 0),
        kernel_links=kernel_links,
        kernel_why_not=kernel_why_not,
        upstreams=_upstreams(counters),
    )


def _rounded(seconds: float | None) -> float | None:
    return round(seconds, 1) if seconds is not None else None


def _upstreams(counters: Mapping[str, int]) -> list[UpstreamPage]:
    found: dict[str, UpstreamPage] = {}
    for word, count in counters.items():
        what, *parts = word.split("|")
        if (
            what not in ("forward_duration", "forward_health_failures", "forward_loops", "forward_loops_mended")
            or not parts
        ):
            continue
        page = found.setdefault(parts[0], UpstreamPage(address=parts[0]))
        if what == "forward_health_failures":
            page.failed_probes += count
        elif what == "forward_loops":
            page.loops += count
        elif what == "forward_loops_mended":
            page.loops -= count
        elif parts[1]:
            page.answers += count
        else:
            page.silences += count
    return [found[address] for address in sorted(found)]
