"""What walked search lists save, pod by pod: bounded, and under names that the metrics understand."""

from __future__ import annotations

from kproxy.dns.savings import PODS, Savings, saved_by_pod
from kproxy.telemetry.metrics_dns import DnsFacts, families


def test_pods_are_counted_apart_and_forgotten() -> None:
    savings = Savings()
    savings.add("shop/a", 4)
    savings.add("shop/a", 3)
    savings.add("shop/b.c", 2)
    assert saved_by_pod(savings.counters()) == {"shop/a": 7, "shop/b.c": 2}
    savings.keep(["shop/a"])
    assert saved_by_pod(savings.counters()) == {"shop/a": 7}


def test_uses_of_remembered_replies_count_for_the_pod_and_for_their_kind() -> None:
    savings, kind = Savings(), [0, 0]
    line = savings.line("shop/a", 4, kind)
    assert savings.line("shop/a", 4, kind) is line and savings.line("shop/b", 4, kind) is not line
    line[0] += 3
    line[1] += 2
    savings.settle()
    assert kind == [3, 2] and saved_by_pod(savings.counters()) == {"shop/a": 20}
    savings.settle()
    line[0] += 1
    savings.settle()
    assert kind == [4, 2] and saved_by_pod(savings.counters()) == {"shop/a": 24}
    savings.settle()
    savings.settle()
    assert savings.line("shop/a", 4, kind) is not line, "what is idle twice is forgotten"


def test_many_pods_are_counted_together() -> None:
    savings = Savings()
    for number in range(PODS + 5):
        savings.add(f"shop/p{number}", 1)
    told = saved_by_pod(savings.counters())
    assert len(told) == PODS + 1 and told[""] == 5


def test_the_metric_has_labels() -> None:
    savings = Savings()
    savings.add("shop/a", 4)
    found = {m.name: m for m in families(savings.counters() | {"walks_saved": 4}, DnsFacts())}
    (sample,) = found["kproxy_dns_search_queries_saved"].samples
    assert sample.name == "kproxy_dns_search_queries_saved_total"
    assert (sample.labels, sample.value) == ({"namespace": "shop", "pod": "a"}, 4)
