"""What of `resolve` the behaviour table cannot show: shape, order, identity, Problems."""

from __future__ import annotations

from dataclasses import replace

import pytest

from kproxy.model.desired import (
    ClientIPAffinity,
    DesiredState,
    Endpoint,
    Masquerade,
    NodeSettings,
    Route,
    ServicePort,
    SourceRanges,
    Verdict,
    VirtualIP,
    VirtualIPKind,
)
from kproxy.model.events import Applied, Removed
from kproxy.model.names import Family, NamespacedName, Protocol, ServicePortName
from kproxy.model.objects import Service, key_of
from kproxy.model.resolve import resolve, resolve_with_problems
from kproxy.model.snapshot import fold
from tests.support.addressing import CLUSTER_IP, EXTERNAL_IP, NODE, VIP, VIP_2, six
from tests.support.builders import (
    Built,
    applied,
    draining,
    ep,
    node,
    port,
    slice_,
    snapshot,
    svc,
    terminated,
    unready,
)
from tests.support.flows import SETTINGS

_NAME = ServicePortName(NamespacedName("ns1", "svc1"), "p80", Protocol.TCP)


def _only(*objects: Built, settings: NodeSettings = SETTINGS) -> ServicePort:
    (found,) = resolve(snapshot(*objects), settings).ipv4.service_ports.values()
    return found


def test_one_port_whole() -> None:
    """Every field at once, with policy Local outside."""
    local, remote = Endpoint(address="10.180.2.1", port=80, is_local=True), Endpoint(address="10.180.0.1", port=80)
    service = svc(
        ports=[port(node=3001)],
        lb=[VIP_2, VIP],
        external=[EXTERNAL_IP],
        ranges=["203.0.113.0/25", " 192.168.0.0/24"],
        external_policy="Local",
        affinity_s=600,
        health=30000,
    )
    found = _only(service, slice_(ep("10.180.2.1", local=True), ep("10.180.0.1")), node())
    assert found == ServicePort(
        name=_NAME,
        family=Family.IPV4,
        port=80,
        virtual_ips=(
            VirtualIP(address=CLUSTER_IP, kind=VirtualIPKind.CLUSTER),
            VirtualIP(address=EXTERNAL_IP, kind=VirtualIPKind.EXTERNAL),
            VirtualIP(address=VIP, kind=VirtualIPKind.LOAD_BALANCER),
            VirtualIP(address=VIP_2, kind=VirtualIPKind.LOAD_BALANCER),
        ),
        node_port=3001,
        internal=Route(endpoints=(remote, local), masquerade=Masquerade.OFF_CLUSTER_SOURCES),
        external=Route(endpoints=(local,), local_only=True),
        short_circuit=Route(endpoints=(remote, local), masquerade=Masquerade.OFF_CLUSTER_SOURCES),
        reachable=(remote, local),
        source_ranges=SourceRanges(networks=("192.168.0.0/24", "203.0.113.0/25"), allow_own_virtual_ip=True),
        affinity=ClientIPAffinity(timeout_s=600),
        health_check_node_port=30000,
        local_ready=1,
    )


def test_endpoints_are_sorted_by_their_text_not_their_numbers() -> None:
    found = _only(svc(), slice_(ep("10.0.0.10"), ep("10.0.0.9"), ep("10.0.0.1")))
    assert [e.text for e in found.reachable] == ["10.0.0.10:80", "10.0.0.1:80", "10.0.0.9:80"]


def test_a_copy_on_this_node_wins_over_any_other() -> None:
    far, near = slice_(ep("10.0.0.1"), name="a"), slice_(ep("10.0.0.1", local=True, ready=False), name="b")
    found = _only(svc(internal_policy="Local"), far, near)
    assert found.internal == Route(
        when_empty=Verdict.REJECT, masquerade=Masquerade.OFF_CLUSTER_SOURCES, local_only=True
    )
    ready = slice_(ep("10.0.0.1", local=True), name="c")
    assert _only(svc(internal_policy="Local"), far, near, ready).internal.endpoints[0].is_local


def test_of_two_copies_elsewhere_the_ready_one_wins() -> None:
    for first, second in ((True, False), (False, True)):
        found = _only(
            svc(), slice_(ep("10.0.0.1", ready=first), name="a"), slice_(ep("10.0.0.1", ready=second), name="b")
        )
        assert [e.text for e in found.reachable] == ["10.0.0.1:80"]


def test_open_udp_flows_may_stay_with_every_endpoint_that_serves() -> None:
    """Whatever the routes say: one drains, one is on another node under policy Local, one is hinted for another zone."""
    members = slice_(
        ep("10.0.0.1", zones=["elsewhere"]),
        ep("10.0.0.2", local=True),
        draining("10.0.0.3"),
        terminated("10.0.0.4"),
        unready("10.0.0.5"),
        ports=[("p80", 80, "UDP")],
    )
    found = _only(svc(ports=[port(protocol="UDP")], internal_policy="Local"), members)
    assert [e.text for e in found.internal.endpoints] == ["10.0.0.2:80"]
    assert [e.text for e in found.serving] == ["10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80"]


def test_a_udp_port_without_endpoints_keeps_nothing_and_tcp_never_says() -> None:
    assert _only(svc(ports=[port(protocol="UDP")])).serving == ()
    assert _only(svc(), slice_(ep("10.0.0.1"))).serving == ()


def test_a_node_without_a_name_has_no_local_endpoints() -> None:
    unnamed = Built(
        {},
        replace(
            slice_(ep("10.0.0.1")).object,
            endpoints=(replace(slice_(ep("10.0.0.1")).object.endpoints[0], node_name=""),),
        ),
    )  # type: ignore[type-var,union-attr]
    found = _only(svc(), unnamed, settings=NodeSettings(name=""))
    assert not found.reachable[0].is_local


def test_a_plain_cluster_ip_has_no_external_routes() -> None:
    found = _only(svc(external_policy="Local"), slice_(ep("10.0.0.1")))
    assert (found.external, found.short_circuit, found.externally_reachable) == (Route(), Route(), False)


def test_without_detector_cluster_ips_are_never_masqueraded() -> None:
    found = _only(svc(), slice_(ep("10.0.0.1")), settings=NodeSettings(name=NODE))
    assert found.internal.masquerade is Masquerade.NEVER


_HEALTH = [
    pytest.param({"lb": [VIP], "external_policy": "Local"}, 30000, id="load balancer, Local"),
    pytest.param({"lb": [VIP]}, None, id="load balancer, Cluster"),
    pytest.param({"ports": [port(node=3001)], "external_policy": "Local"}, None, id="node port, Local"),
    pytest.param({"type": "LoadBalancer", "external_policy": "Local"}, 30000, id="load balancer without address yet"),
]


@pytest.mark.parametrize(("fields", "wanted"), _HEALTH)
def test_health_check_node_port(fields: dict[str, object], wanted: int | None) -> None:
    assert _only(svc(health=30000, **fields)).health_check_node_port == wanted  # type: ignore[arg-type]


def test_local_ready_counts_addresses_of_ready_endpoints_of_this_node_once() -> None:
    members = slice_(
        ep("10.0.0.1", local=True),
        ep("10.0.0.2", local=True),
        ep("10.0.0.3"),
        draining("10.0.0.4", local=True),
        unready("10.0.0.5", local=True),
        ports=[("p80", 80, "TCP"), ("metrics", 9100, "TCP")],
    )
    again = slice_(ep("10.0.0.1", local=True), name="again", ports=[("p80", 8080, "TCP")])
    balanced = svc(lb=[VIP], external_policy="Local", health=30000)
    assert _only(balanced, members, again, node()).local_ready == 2
    assert _only(svc(lb=[VIP]), members, again, node()).local_ready == 0  # nobody asks


def test_source_ranges_of_the_other_family_do_not_restrict() -> None:
    found = _only(svc(lb=[VIP], ranges=["2001:db8::/32"]), slice_(ep("10.0.0.1")))
    assert found.source_ranges is None


def test_source_ranges_without_a_load_balancer_ip_mean_nothing() -> None:
    assert _only(svc(ports=[port(node=3001)], ranges=["10.0.0.0/8"])).source_ranges is None


def test_the_node_outside_of_the_ranges_does_not_admit_the_virtual_ip() -> None:
    found = _only(svc(lb=[VIP], ranges=["203.0.113.0/25"]), node())
    assert found.source_ranges == SourceRanges(networks=("203.0.113.0/25",), allow_own_virtual_ip=False)


# Problems


def test_fault_42_hostile_endpoints_are_named_in_one_problem_per_slice() -> None:
    bad = [ep(f"127.0.0.{n}") for n in range(1, 6)]
    resolved = resolve_with_problems(snapshot(svc(), slice_(*bad, ep("10.0.0.1"))), SETTINGS)
    (problem,) = resolved.problems
    assert str(problem) == (
        "EndpointSlice ns1/svc1-ipv4: endpoints[].addresses: 127.0.0.1 (loopback), 127.0.0.2 (loopback), 127.0.0.3 (loopback)"
        " and 2 more not usable as endpoints; ignored"
    )
    assert [e.text for e in resolved.desired.ipv4.service_ports[_NAME].reachable] == ["10.0.0.1:80"]


def test_an_endpoint_of_the_wrong_family_is_a_problem() -> None:
    resolved = resolve_with_problems(snapshot(svc(), slice_(ep("fd00::1"))), SETTINGS)
    assert "fd00::1 (not IPv4)" in resolved.problems[0].reason


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("127.0.0.1", "loopback"),
        ("169.254.169.254", "link-local"),
        ("224.0.0.1", "multicast"),
        ("239.1.1.1", "multicast"),
        ("0.0.0.0", "unspecified"),
        ("255.255.255.255", "broadcast"),
        ("::ffff:10.0.0.1", "not IPv4"),
    ],
)
def test_fault_42_no_hostile_endpoint_gets_a_rule(address: str, why: str) -> None:
    """Manifests and other API servers may hold what this API server refuses; nothing of it reaches a data plane."""
    good = [ep("10.0.0.1"), ep("10.0.0.1"), ep("10.0.0.2", ready=None, serving=None, terminating=None)]
    resolved = resolve_with_problems(snapshot(svc(), slice_(ep(address), *good)), SETTINGS)
    assert [e.text for e in resolved.desired.ipv4.service_ports[_NAME].reachable] == ["10.0.0.1:80", "10.0.0.2:80"]
    assert f"{address} ({why}) not usable as endpoints; ignored" in resolved.problems[0].reason


@pytest.mark.parametrize(
    ("address", "why"),
    [("::1", "loopback"), ("fe80::1", "link-local"), ("ff0e::1", "multicast"), ("::ffff:127.0.0.1", "IPv4-mapped")],
)
def test_fault_42_nor_in_ipv6(address: str, why: str) -> None:
    hostile = slice_(ep(address), ep("fd00::1"), family="IPv6")
    resolved = resolve_with_problems(snapshot(svc(six(CLUSTER_IP)), hostile), SETTINGS)
    assert [e.text for e in resolved.desired.ipv6.service_ports[_NAME].reachable] == ["[fd00::1]:80"]
    assert f"{address} ({why})" in resolved.problems[0].reason


def test_fault_42_ten_slices_of_a_thousand_endpoints_are_one_set() -> None:
    slices = [
        slice_(*(ep(f"10.{n}.{m >> 8}.{m & 255}") for m in range(1000)), ep("127.0.0.1"), name=f"s{n}")
        for n in range(10)
    ]
    resolved = resolve_with_problems(snapshot(svc(), *slices), SETTINGS)
    assert len(resolved.desired.ipv4.service_ports[_NAME].reachable) == 10_000
    assert len(resolved.problems) == 10


def test_virtual_ips_of_the_other_family_are_passed_over_silently() -> None:
    resolved = resolve_with_problems(snapshot(svc(external=[EXTERNAL_IP, six(EXTERNAL_IP)], lb=[six(VIP)])), SETTINGS)
    assert resolved.problems == ()
    assert not resolved.desired.ipv6.service_ports


def test_loopback_is_no_virtual_ip() -> None:
    resolved = resolve_with_problems(snapshot(svc(external=["127.0.0.1"], lb=["0.0.0.0"])), SETTINGS)
    assert [p.reason.split(":")[0] for p in resolved.problems] == [
        "spec.externalIPs",
        "status.loadBalancer.ingress[].ip",
    ]
    assert len(resolved.desired.ipv4.service_ports[_NAME].virtual_ips) == 1


def test_a_port_named_twice_counts_once() -> None:
    resolved = resolve_with_problems(snapshot(svc(ports=[port(80), port(81)])), SETTINGS)
    assert [p.port for p in resolved.desired.ipv4.service_ports.values()] == [80]
    assert resolved.problems[0].reason == "spec.ports: 'p80' TCP twice; the first is used"


def test_problems_go_with_their_cause() -> None:
    cluster = snapshot(svc(), slice_(ep("127.0.0.1")))
    first = resolve_with_problems(cluster, SETTINGS)
    assert first.problems
    healed = resolve_with_problems(fold(cluster, applied(slice_(ep("10.0.0.1")))), SETTINGS, first.desired)
    assert healed.problems == ()


# What does not change stays the same object


def _two() -> list[Built]:
    return [svc(), slice_(ep("10.0.0.1")), svc("172.30.0.42", name="svc2"), slice_(ep("10.0.0.2"), of="svc2")]


def test_nothing_new_gives_the_very_same_states() -> None:
    cluster = snapshot(*_two())
    first = resolve(cluster, SETTINGS)
    again = resolve(cluster, SETTINGS, first)
    assert again.ipv4 is first.ipv4
    assert again.ipv6 is first.ipv6


def test_only_the_service_that_changed_is_new() -> None:
    cluster = snapshot(*_two())
    first = resolve(cluster, SETTINGS)
    changed = resolve(fold(cluster, applied(slice_(ep("10.0.0.3")))), SETTINGS, first)
    same = {str(n) for n, p in changed.ipv4.service_ports.items() if first.ipv4.service_ports[n] is p}
    assert same == {"ns1/svc2:p80"}
    assert changed.ipv6 is first.ipv6


def test_a_change_without_meaning_changes_nothing() -> None:
    cluster = snapshot(*_two())
    first = resolve(cluster, SETTINGS)
    relabelled = replace(slice_(ep("10.0.0.1")).object, last_change_trigger_time="2026-01-01T00:00:00Z")  # type: ignore[type-var]
    again = resolve(fold(cluster, applied(Built({}, relabelled))), SETTINGS, first)
    assert again.ipv4 is first.ipv4


def test_services_come_and_go_in_order() -> None:
    cluster = snapshot(*_two())
    desired = resolve(cluster, SETTINGS)
    cluster = fold(cluster, applied(svc("172.30.0.40", name="aaa")))
    desired = resolve(cluster, SETTINGS, desired)
    assert [str(n) for n in desired.ipv4.service_ports] == ["ns1/aaa:p80", "ns1/svc1:p80", "ns1/svc2:p80"]
    cluster = fold(cluster, [Removed(key_of(svc().object))])
    desired = resolve(cluster, SETTINGS, desired)
    assert [str(n) for n in desired.ipv4.service_ports] == ["ns1/aaa:p80", "ns1/svc2:p80"]


def test_a_new_zone_reaches_every_service() -> None:
    hinted = slice_(ep("10.0.0.1", zones=["z1"]), ep("10.0.0.2", zones=["z2"]))
    cluster = snapshot(svc(), hinted, node(zone="z1"))
    first = resolve(cluster, SETTINGS)
    moved = resolve(fold(cluster, applied(node(zone="z2"))), SETTINGS, first)
    assert [[e.text for e in d.ipv4.service_ports[_NAME].reachable] for d in (first, moved)] == [
        ["10.0.0.1:80"],
        ["10.0.0.2:80"],
    ]


def test_a_previous_state_made_by_hand_is_no_obstacle() -> None:
    cluster = snapshot(*_two())
    assert resolve(cluster, SETTINGS, DesiredState()) == resolve(cluster, SETTINGS)


def test_the_past_does_not_pile_up() -> None:
    """The memo holds one entry per Service, whatever the history."""
    cluster, desired = snapshot(*_two()), None
    for n in range(50):
        service = svc(ports=[port(node=3001 + n)]).object
        assert isinstance(service, Service)
        cluster = fold(cluster, [Applied(Built({}, service).decoded)])
        desired = resolve(cluster, SETTINGS, desired)
    assert desired is not None
    assert desired.memo is not None
    assert len(desired.memo.resolved) == 2
