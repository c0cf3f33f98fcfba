"""Counters of DNS workers as CoreDNS's families, and how long a headless Service's change takes."""

from __future__ import annotations

from dataclasses import replace

from kproxy.dns.blocks import Cache, ServerBlock
from kproxy.dns.memory import MemoryState
from kproxy.model.names import Family, NamespacedName
from kproxy.model.objects import EndpointSlice, Service
from kproxy.model.snapshot import Snapshot
from kproxy.telemetry.histogram import Histogram
from kproxy.telemetry.metrics import text_of
from kproxy.telemetry.metrics_dns import DnsFacts, families
from kproxy.telemetry.programming import DnsProgramming
from kproxy.telemetry.state_dns import dns_page

COUNTERS = {
    'coredns_dns_requests_total{server="dns://:53",zone=".",view="",proto="udp",family="1",type="A"}': 7,
    'coredns_dns_request_duration_seconds{server="dns://:53",zone=".",view=""}|0.0005': 4,
    'coredns_dns_request_duration_seconds{server="dns://:53",zone=".",view=""}|+Inf': 1,
    'coredns_dns_request_duration_seconds{server="dns://:53",zone=".",view=""}|sum_ns': 2_500_000_000,
    "forward_duration|192.0.2.1:53|NOERROR|0.001": 3,
    "forward_duration_us|192.0.2.1:53|NOERROR": 2500,
    "forward_duration|192.0.2.1:53||+Inf": 2,
    "forward_health_failures|192.0.2.1:53": 5,
    "forward_cache_hits": 11,
    "faults": 1,
    "walks_saved": 9,
}


def _lines(facts: DnsFacts | None = None) -> set[str]:
    block = ServerBlock(cache=Cache())
    return set(text_of(families(COUNTERS, facts or DnsFacts(blocks=(block,)))).decode().splitlines())


def test_counters_become_families() -> None:
    lines = _lines()
    for line in (
        'coredns_dns_requests_total{family="1",proto="udp",server="dns://:53",type="A",view="",zone="."} 7.0',
        'coredns_dns_request_duration_seconds_bucket{le="0.00025",server="dns://:53",view="",zone="."} 0.0',
        'coredns_dns_request_duration_seconds_bucket{le="8.192",server="dns://:53",view="",zone="."} 4.0',
        'coredns_dns_request_duration_seconds_count{server="dns://:53",view="",zone="."} 5.0',
        'coredns_dns_request_duration_seconds_sum{server="dns://:53",view="",zone="."} 2.5',
        'coredns_proxy_request_duration_seconds_sum{proxy_name="forward",rcode="NOERROR",to="192.0.2.1:53"} 0.0025',
        'coredns_forward_requests_total{to="192.0.2.1:53"} 5.0',
        'coredns_forward_responses_total{rcode="NOERROR",to="192.0.2.1:53"} 3.0',
        'coredns_proxy_healthcheck_failures_total{proxy_name="forward",to="192.0.2.1:53"} 5.0',
        'coredns_cache_hits_total{server="dns://:53",type="success",view="",zones="."} 11.0',
        "coredns_panics_total 1.0",
        "kproxy_dns_walks_saved_total 9.0",
        'coredns_plugin_enabled{name="cache",server="dns://:53",view="",zone="."} 1.0',
    ):
        assert line in lines, line
    assert not any("|" in line for line in lines)


def test_what_only_kproxy_has() -> None:
    facts = DnsFacts(
        memory=MemoryState(age_s=12.0, octets=99), from_memory=True, handover={"handed_back": 2}, workers=3
    )
    lines = _lines(facts)
    assert {"kproxy_dns_memory_age_seconds 12.0", "kproxy_dns_from_memory 1.0", "kproxy_dns_workers 3.0"} <= lines
    assert "kproxy_dns_handed_back_total 2.0" in lines
    took = Histogram((0.001,))
    took.observe(0.5)
    text = text_of(families({}, DnsFacts(programming={"headless_with_selector": took}))).decode()
    assert (
        'coredns_kubernetes_dns_programming_duration_seconds_count{service_kind="headless_with_selector"} 1.0' in text
    )


def test_the_page_sums_upstreams() -> None:
    page = dns_page(
        COUNTERS, MemoryState(), serial=1, zone_age_s=2.0, from_memory=False, away_s=None, held_s=3.0, handover={}
    )
    (upstream,) = page.upstreams
    assert (upstream.address, upstream.answers, upstream.silences, upstream.failed_probes) == ("192.0.2.1:53", 3, 2, 5)
    assert (page.queries, page.saved) == (7, 9)


def test_only_new_triggers_of_headless_services_count() -> None:
    name = NamespacedName("ns", "a")
    headless = Service(name=name, headless=True)
    known = EndpointSlice(
        name=NamespacedName("ns", "a-x"),
        service=name,
        family=Family.IPV4,
        last_change_trigger_time="1970-01-01T00:16:40Z",
    )

    def snapshot(one: EndpointSlice, service: Service = headless) -> Snapshot:
        return replace(Snapshot(), services={name: service}, slices={one.name: one})

    counted = DnsProgramming(started=500.0)
    counted.published(snapshot(known), 1000.5)
    assert counted.seconds.count == 0, "what was there at the start"
    newer = replace(known, last_change_trigger_time="1970-01-01T00:20:00Z")
    counted.published(snapshot(newer), 1200.25)
    assert (counted.seconds.count, counted.seconds.sum) == (1, 0.25)
    counted.published(snapshot(replace(newer, endpoints=())), 1300.0)
    counted.published(snapshot(replace(newer, last_change_trigger_time="nonsense")), 1300.0)
    counted.published(snapshot(replace(newer, last_change_trigger_time="1970-01-01T00:00:01Z")), 1300.0)
    later = replace(newer, last_change_trigger_time="1970-01-01T00:21:00Z")
    counted.published(snapshot(later, replace(headless, headless=False)), 1300.0)
    assert counted.seconds.count == 1
