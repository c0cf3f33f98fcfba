"""The resolv.conf of a pod, as its kubelet writes it: rows T220-T222 and the limits. tests/peers compares with the kubelet's own code."""

from __future__ import annotations

from typing import Any

import pytest

from kproxy.dns.clients import PodView
from kproxy.dns.resolver import (
    MAX_SEARCH_TEXT,
    MAX_SEARCHES,
    ResolverConfig,
    candidates,
    pod_config,
    pod_views,
    read_config,
    wire_searches,
)
from kproxy.model.names import NamespacedName
from kproxy.model.objects import Pod

NODE = """\
# made by something
nameserver 192.0.2.53
nameserver 192.0.2.54
search old.example
domain ignored.example
options timeout:1 rotate
search corp.example. internal .
options timeout:3
"""
CLUSTER = ("test-1.svc.cluster.local", "svc.cluster.local", "cluster.local")


def config(
    node: str | None = NODE,
    *,
    cluster_dns: tuple[str, ...] = ("10.96.0.10",),
    domain: str = "cluster.local",
    **pod: Any,
) -> ResolverConfig:
    """Of a pod of test-1."""
    made = Pod(name=NamespacedName("test-1", "x"), **pod)
    return pod_config(made, read_config(node) if node is not None else None, cluster_dns=cluster_dns, domain=domain)


def test_the_nodes_file_is_read_as_the_kubelet_reads_it() -> None:
    found = read_config(NODE)
    assert found.nameservers == ("192.0.2.53", "192.0.2.54")
    assert found.searches == ("corp.example", "internal"), (
        "the last line counts, final dots and the lone one are dropped"
    )
    assert dict(found.options) == {"timeout": "3", "rotate": ""}


@pytest.mark.parametrize(
    "pod",
    [{}, {"dns_policy": "ClusterFirst"}, {"dns_policy": "ClusterFirstWithHostNet"},
     {"dns_policy": "ClusterFirstWithHostNet", "host_network": True}, {"dns_policy": "Nonsense"}],
    ids=str,
)  # fmt: skip
def test_t222_cluster_first_and_with_the_hosts_network(pod: dict[str, Any]) -> None:
    found = config(**pod)
    assert found.text == (
        "nameserver 10.96.0.10\n"
        "search test-1.svc.cluster.local svc.cluster.local cluster.local corp.example internal\n"
        "options ndots:5\n"
    )
    assert candidates("kubernetes.default", found.searches, found.ndots)[1] == "kubernetes.default.svc.cluster.local."


@pytest.mark.parametrize("pod", [{"dns_policy": "Default"}, {"host_network": True}], ids=str)
def test_default_is_the_nodes_own(pod: dict[str, Any]) -> None:
    found = config(**pod)
    assert (found.nameservers, found.searches) == (("192.0.2.53", "192.0.2.54"), ("corp.example", "internal"))
    assert found.ndots == 1
    assert config(None, **pod).text == "nameserver 127.0.0.1\nsearch .\n", "a kubelet without --resolv-conf"


def test_t220_none_is_what_dns_config_says_and_nothing_else() -> None:
    found = config(
        dns_policy="None",
        nameservers=("1.1.1.1",),
        searches=("resolv.conf.local",),
        options=(("ndots", "2"), ("edns0", "")),
    )
    assert found.text == "nameserver 1.1.1.1\nsearch resolv.conf.local\noptions ndots:2 edns0\n"


def test_dns_config_is_merged_behind_what_the_policy_gives() -> None:
    found = config(
        nameservers=("10.96.0.10", "1.1.1.1", "1.0.0.1", "8.8.8.8"),
        searches=("svc.cluster.local", "more.example", "."),
        options=(("ndots", "3"), ("use-vc", "")),
    )
    assert found.nameservers == ("10.96.0.10", "1.1.1.1", "1.0.0.1")
    assert found.searches == (*CLUSTER, "corp.example", "internal", "more.example", ".")
    assert found.options == (("ndots", "3"), ("use-vc", ""))


def test_t221_more_than_six_search_names_with_underscores_and_a_lone_dot() -> None:
    wished = ("_tcp.example", "a.example", "b.example", ".", "c.example", "d.example", "e_f.example")
    found = config("", searches=wished)
    assert found.searches == (*CLUSTER, *wished)
    asked = candidates("web", found.searches, found.ndots)
    assert asked == [
        *(f"web.{name}." for name in (*CLUSTER, *wished[:3])),
        "web.",
        *(f"web.{name}." for name in wished[4:]),
    ]
    assert b"\0" in wire_searches(found.searches) and b"\x04_tcp\x07example\0" in wire_searches(found.searches)


def test_what_exceeds_a_limit_is_cut_off() -> None:
    many = config("", searches=tuple(f"n{i}.example" for i in range(40)))
    assert len(many.searches) == MAX_SEARCHES and many.searches[-1] == "n28.example"
    assert many.omitted[0] == "n29.example" and len(many.omitted) == 11
    wide = config("", searches=tuple(f"{'w' * 60}.{'x' * 60}.n{i}" for i in range(25)))
    assert len(" ".join(wide.searches)) <= MAX_SEARCH_TEXT < len(" ".join(wide.searches)) + 126
    long = ".".join(["y" * 60] * 5)
    assert config("", searches=(long, "short.example")).searches == (*CLUSTER, "short.example")


def test_a_kubelet_without_cluster_dns_or_domain() -> None:
    assert config(cluster_dns=()).searches == ("corp.example", "internal")
    assert config(domain="").searches == ("corp.example", "internal")


@pytest.mark.parametrize(
    ("options", "ndots"), [("ndots:0", 0), ("ndots:99", 15), ("ndots:x", 1), ("ndots:", 1), ("ndots:²", 1), ("", 1)]
)
def test_ndots(options: str, ndots: int) -> None:
    assert read_config(f"options {options}\n").ndots == ndots


@pytest.mark.parametrize(
    ("name", "ndots", "expected"),
    [
        ("web", 5, ["web.a.", "web.b.", "web."]),
        ("www.example.net", 2, ["www.example.net.", "www.example.net.a.", "www.example.net.b."]),
        ("www.example.net.", 5, ["www.example.net."]),
        ("a.", 5, ["a."]),
    ],
)
def test_candidates(name: str, ndots: int, expected: list[str]) -> None:
    assert candidates(name, ("a", "b"), ndots) == expected


def test_views_of_pods() -> None:
    node = read_config("search internal\n")
    name = NamespacedName("test-1", "x")
    pods = [
        Pod(name=name, ips=("10.244.0.5", "fd00::5")),
        Pod(name=name, ips=("10.244.0.6",), finished=True),
        Pod(name=name, ips=("10.244.1.7",), node="node-2"),
        Pod(name=name),
        Pod(name=name, ips=("192.0.2.1",), host_network=True),
        Pod(name=name, ips=("192.0.2.1",), host_network=True, dns_policy="ClusterFirstWithHostNet"),
    ]
    searches = wire_searches((*CLUSTER, "internal"))
    assert pod_views(pods, node, cluster_dns=("10.96.0.10",), domain="cluster.local", node_name="node-1") == (
        PodView(address="10.244.0.5", name="test-1/x", searches=searches),
        PodView(address="fd00::5", name="test-1/x", searches=searches),
        PodView(address="192.0.2.1", name="test-1/x", ndots=1, host_network=True),
        PodView(address="192.0.2.1", name="test-1/x", searches=searches, host_network=True),
    )


def test_a_list_that_begins_with_the_root_is_not_walked() -> None:
    assert wire_searches((".", "a")) == () == wire_searches(("a..b", "c")) == wire_searches(())
    assert wire_searches(("A", "a..b", "a", "b")) == (b"\x01a\0", b"\x01b\0")
