"""What workers count of their upstreams, as metrics, on the state page and as an Event."""

from __future__ import annotations

from kproxy.dns.memory import NO_MEMORY
from kproxy.telemetry.metrics_dns import DnsFacts, families
from kproxy.telemetry.notices import dns_loop
from kproxy.telemetry.state_dns import dns_page

COUNTERS = {
    "forward_duration|192.0.2.1:53|NOERROR|0.001": 3,
    "forward_duration_us|192.0.2.1:53|NOERROR": 2500,
    "forward_duration|192.0.2.1:53||+Inf": 2,
    "forward_health_failures|192.0.2.1:53": 4,
    "forward_loops": 1,
    "forward_loops|192.0.2.2:53": 1,
    "forward_loops|192.0.2.3:53": 2,
    "forward_loops_mended|192.0.2.3:53": 2,
    "forward_connection_hits|192.0.2.1:53|tcp-tls": 5,
    "forward_connection_misses|192.0.2.1:53|tcp-tls": 1,
    "forward_rejects": 6,
    "forward_health_broken": 7,
}


def test_metrics_have_coredns_s_names() -> None:
    found = {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in families(COUNTERS, DnsFacts())
        for sample in family.samples
    }
    place = (("proxy_name", "forward"), ("to", "192.0.2.1:53"))
    assert found[("coredns_proxy_request_duration_seconds_count", place[0], ("rcode", "NOERROR"), place[1])] == 3
    assert found[("coredns_proxy_healthcheck_failures_total", *place)] == 4
    assert found[("coredns_proxy_conn_cache_hits_total", ("proto", "tcp-tls"), *place)] == 5
    assert found[("coredns_proxy_conn_cache_misses_total", ("proto", "tcp-tls"), *place)] == 1
    assert found[("coredns_forward_requests_total", place[1])] == 5
    assert found[("kproxy_dns_forward_loop_total", ("to", "192.0.2.2:53"))] == 1
    assert found[("coredns_forward_max_concurrent_rejects_total",)] == 6
    assert found[("coredns_forward_healthcheck_broken_total",)] == 7
    assert not any("|" in name for name, *_ in found)


def test_the_state_page_and_the_event_name_an_upstream_that_leads_back() -> None:
    page = dns_page(
        COUNTERS, NO_MEMORY, serial=1, zone_age_s=None, from_memory=False, away_s=None, held_s=None, handover={}
    )
    assert [(one.address, one.answers, one.silences, one.failed_probes, one.loops) for one in page.upstreams] == [
        ("192.0.2.1:53", 3, 2, 4, 0),
        ("192.0.2.2:53", 0, 0, 0, 1),
        ("192.0.2.3:53", 0, 0, 0, 0),
    ]
    note = dns_loop("node-1", "192.0.2.2:53")
    assert note.reason == "DNSForwardLoop" and note.about.kind == "Node" and "192.0.2.2:53" in note.text
