"""Uses of replies become counters under CoreDNS's names."""

from __future__ import annotations

from collections import Counter

from kproxy.dns.tally import DURATIONS_S, KINDS, Place, Tally

PLACE = Place("dns://:53", ".")
LABELS = 'server="dns://:53",zone=".",view=""'


def kind(tally: Tally, **changes: object) -> list[int]:
    usual: dict[str, object] = {
        "proto": "udp", "qtype": 1, "rcode": 0, "plugin": "kubernetes", "dnssec_ok": False, "asked": 50, "said": 66, "quick": True,
    }  # fmt: skip
    return tally.kind(PLACE, **(usual | changes))  # type: ignore[arg-type]


def test_uses_are_counted_by_family_type_rcode_and_size() -> None:
    counters: Counter[str] = Counter()
    tally = Tally(counters)
    counts = kind(tally)
    counts[0] += 3
    counts[1] += 1
    tally.settle(0.004)
    assert counters[f'coredns_dns_requests_total{{{LABELS},proto="udp",family="1",type="A"}}'] == 3
    assert counters[f'coredns_dns_requests_total{{{LABELS},proto="udp",family="2",type="A"}}'] == 1
    assert counters[f'coredns_dns_responses_total{{{LABELS},rcode="NOERROR",plugin="kubernetes"}}'] == 4
    assert counters[f'coredns_dns_response_size_bytes{{{LABELS},proto="udp"}}|100'] == 4
    assert counters[f'coredns_dns_response_size_bytes{{{LABELS},proto="udp"}}|sum'] == 4 * 72
    assert counters[f"coredns_dns_request_duration_seconds{{{LABELS}}}|0.00025"] == 4
    assert counters[f"coredns_dns_request_duration_seconds{{{LABELS}}}|sum_ns"] == 4_000_000
    assert counters["rcode_0"] == 4


def test_settling_twice_counts_once() -> None:
    tally = Tally(Counter())
    kind(tally, dnssec_ok=True)[0] += 5
    tally.settle()
    tally.settle()
    assert tally.counters[f"coredns_dns_do_requests_total{{{LABELS}}}"] == 5 == tally.counters["rcode_0"]


def test_slow_queries_are_timed_one_by_one() -> None:
    tally = Tally(Counter())
    for seconds in (0.0001, 0.003, 20.0):
        tally.took(PLACE, seconds)
    tally.settle()
    name = f"coredns_dns_request_duration_seconds{{{LABELS}}}"
    assert [tally.counters[f"{name}|{bound:g}"] for bound in (DURATIONS_S[0], 0.004, float("inf"))] == [1, 1, 1]


def test_unusual_types_are_other_and_share_a_kind() -> None:
    tally = Tally(Counter())
    assert kind(tally, qtype=65280) is kind(tally, qtype=65281) is not kind(tally)


def test_kinds_are_bounded() -> None:
    tally = Tally(Counter())
    for said in range(65000):
        kind(tally, said=said)[0] += 1
    assert len(tally._kinds) <= KINDS + 20
    tally.settle()
    assert tally.counters["rcode_0"] == 65000


def test_further_counters_grow_with_a_kind() -> None:
    tally = Tally(Counter())
    kind(tally, also=("walks_saved",) * 3)[1] += 2
    tally.settle()
    assert tally.counters["walks_saved"] == 6
