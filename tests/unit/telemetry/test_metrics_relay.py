"""Families of the relay: what is told of workers, Services and endpoints, and that the number of series has an end."""

from __future__ import annotations

from kproxy.relay.counts import BEGAN, COLUMNS, FAILED, GAVE_UP, LOST, OPEN, RECEIVED, RETRIES, SENT, SENT_DATAGRAMS
from kproxy.relay.totals import Sums
from kproxy.telemetry.metrics import text_of
from kproxy.telemetry.metrics_relay import RelaySeries, relay


def row(**columns: int) -> list[int]:
    """A row of counts by the names of its columns."""
    return [columns.get(name, 0) for name in COLUMNS]


def value(text: str, series: str) -> float:
    """The value of one series; KeyError when it is not there."""
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in text.splitlines() if line[0] != "#"}[
        series
    ]


def test_the_relay_as_a_whole() -> None:
    whole = {"accepted": 9, "shed": 2, "evicted": 3, "unknown": 1, "hedged": 4, "ejections": 5, "handed": 8, "odd": 6}
    text = text_of(relay(whole, {("10.0.0.1", 80): 3.0}, [(7, False), (8, False), (5, True)])).decode()
    assert {
        name: value(text, name)
        for name in (
            'kproxy_relay_workers{state="serving"}', 'kproxy_relay_workers{state="draining"}', "kproxy_relay_ejected_endpoints",
            "kproxy_relay_accepted_connections_total", "kproxy_relay_shed_connections_total", "kproxy_relay_ejections_total",
            "kproxy_relay_hedged_connects_total", "kproxy_relay_unknown_destinations_total", "kproxy_relay_udp_evicted_sessions_total",
            "kproxy_relay_kernel_flows_total",
        )
    } == {
        'kproxy_relay_workers{state="serving"}': 2, 'kproxy_relay_workers{state="draining"}': 1, "kproxy_relay_ejected_endpoints": 1,
        "kproxy_relay_accepted_connections_total": 9, "kproxy_relay_shed_connections_total": 2, "kproxy_relay_ejections_total": 5,
        "kproxy_relay_hedged_connects_total": 4, "kproxy_relay_unknown_destinations_total": 1,
        "kproxy_relay_udp_evicted_sessions_total": 3, "kproxy_relay_kernel_flows_total": 8,
    }  # fmt: skip
    assert "odd" not in text, "a word of another version's worker is no metric"


def test_services_and_endpoints_where_they_are_wanted() -> None:
    counted = row(began=5, open=2, failed=3, retries=4, gave_up=1, sent=100, received=200, sent_datagrams=7, lost=6)
    assert (counted[BEGAN], counted[SENT_DATAGRAMS], counted[LOST], counted[GAVE_UP]) == (5, 7, 6, 1)
    end = ("fd00::1", 8080)
    sums = Sums(services={"shop/web:http": counted, "shop/dns": row()}, endpoints={("shop/web:http", end): counted})
    text = text_of(RelaySeries(endpoints=True).of(sums)).decode()
    web = 'namespace="shop",port="http",service="web"'
    for family, column in (
        ("connections_total", BEGAN), ("open", OPEN), ("failed_connects_total", FAILED), ("retries_total", RETRIES),
        ("gave_up_total", GAVE_UP), ("lost_datagrams_total", LOST),
    ):  # fmt: skip
        assert value(text, f"kproxy_relay_{family}{{{web}}}") == counted[column]
    for direction, column in (("sent", SENT), ("received", RECEIVED)):
        assert value(text, f'kproxy_relay_bytes_total{{direction="{direction}",{web}}}') == counted[column]
    assert value(text, 'kproxy_relay_datagrams_total{direction="sent",namespace="shop",port="",service="dns"}') == 0
    ends = 'endpoint="[fd00::1]:8080",' + web
    assert value(text, f"kproxy_relay_endpoint_connections_total{{{ends}}}") == 5
    assert value(text, f'kproxy_relay_endpoint_bytes_total{{direction="received",{ends}}}') == 200
    assert "kproxy_relay_endpoint_gave_up" not in text
    assert "kproxy_relay_endpoint" not in text_of(RelaySeries(endpoints=False).of(sums)).decode()


def test_series_have_an_end_and_their_sum_never_falls() -> None:
    series = RelaySeries(endpoints=False, services_at_most=2)
    services = {f"a/s{n}": row(began=n, open=1) for n in range(5)}
    others = 'namespace="",port="",service=""'

    def told() -> str:
        return text_of(series.of(Sums(services=services))).decode()

    text = told()
    assert value(text, 'kproxy_relay_connections_total{namespace="a",port="",service="s1"}') == 1
    assert value(text, f"kproxy_relay_connections_total{{{others}}}") == 2 + 3 + 4
    assert text.count("kproxy_relay_connections_total{") == 3
    del services["a/s0"], services["a/s4"]
    services["a/new"] = row(began=50)
    text = told()
    assert value(text, f"kproxy_relay_connections_total{{{others}}}") == 9, "what is forgotten stays in the sum"
    assert value(text, f"kproxy_relay_open{{{others}}}") == 2, "and what is open does not"
    assert value(text, 'kproxy_relay_connections_total{namespace="a",port="",service="new"}') == 50, (
        "a seat is free again"
    )
    assert 'service="s2"' not in text, "nobody moves out of the sum"
