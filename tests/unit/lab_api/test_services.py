"""Services: what they are given, what is refused, what a change of type wipes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from kproxy.lab.api import kinds
from tests.unit.lab_api.conftest import World


def test_defaults(empty: World) -> None:
    spec = empty.service("s", sessionAffinity="ClientIP")["spec"]
    assert spec["type"] == "ClusterIP"
    assert spec["ports"] == [{"port": 80, "protocol": "TCP", "targetPort": 80}]
    assert spec["sessionAffinityConfig"] == {"clientIP": {"timeoutSeconds": 10800}}
    assert spec["internalTrafficPolicy"] == "Cluster"
    assert "externalTrafficPolicy" not in spec
    assert spec["clusterIPs"] == [spec["clusterIP"]]
    assert spec["clusterIP"].startswith("10.96.")
    assert (spec["ipFamilies"], spec["ipFamilyPolicy"]) == (["IPv4"], "SingleStack")


def test_tcp_and_udp_of_one_port_share_a_node_port(empty: World) -> None:
    ports = [{"name": "t", "port": 53, "protocol": "TCP"}, {"name": "u", "port": 53, "protocol": "UDP"}]
    spec = empty.service("dns", type="NodePort", ports=ports)["spec"]
    assert spec["ports"][0]["nodePort"] == spec["ports"][1]["nodePort"]


def test_health_check_port_comes_and_goes_with_the_policy(empty: World) -> None:
    spec = empty.service("lb", type="LoadBalancer", externalTrafficPolicy="Local")["spec"]
    port = spec["healthCheckNodePort"]
    assert 30000 <= port <= 32767
    changed = empty.change(kinds.SERVICES, "lb", lambda s: s["spec"].update(externalTrafficPolicy="Cluster"))
    assert "healthCheckNodePort" not in changed["spec"]
    empty.service("other", type="NodePort", ports=[{"port": 1, "nodePort": port}])


def test_a_load_balancer_without_node_ports(empty: World) -> None:
    spec = empty.service("lb", type="LoadBalancer", allocateLoadBalancerNodePorts=False)["spec"]
    assert "nodePort" not in spec["ports"][0]


def test_the_type_can_go_round(empty: World) -> None:
    first = empty.service("s", type="NodePort")
    port, address = first["spec"]["ports"][0]["nodePort"], first["spec"]["clusterIP"]
    to_cluster = empty.change(kinds.SERVICES, "s", lambda s: s["spec"].update(type="ClusterIP"))
    assert "nodePort" not in to_cluster["spec"]["ports"][0]
    assert to_cluster["spec"]["clusterIP"] == address
    assert "externalTrafficPolicy" not in to_cluster["spec"]
    external = {"type": "ExternalName", "externalName": "example.com"}
    to_name = empty.change(kinds.SERVICES, "s", lambda s: s["spec"].update(external))
    assert not {"clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"} & set(to_name["spec"])
    empty.service("heir", clusterIP=address)
    empty.service("port-heir", type="NodePort", ports=[{"port": 80, "nodePort": port}])
    back = empty.change(kinds.SERVICES, "s", lambda s: s["spec"].update(type="ClusterIP"))
    assert back["spec"]["clusterIP"] not in ("", address)


def test_what_a_refused_write_took_is_free_again(empty: World) -> None:
    bad = [{"port": 0}]
    assert "between 1 and 65535" in empty.refused(lambda: empty.service("s", clusterIP="10.96.5.5", ports=bad))
    empty.service("s", clusterIP="10.96.5.5")


def test_deleting_gives_everything_back(empty: World) -> None:
    empty.service("s", type="NodePort", clusterIP="10.96.5.5", ports=[{"port": 80, "nodePort": 30100}])
    empty.delete(kinds.SERVICES, "s")
    empty.service("t", type="NodePort", clusterIP="10.96.5.5", ports=[{"port": 80, "nodePort": 30100}])


def test_sending_the_first_manifest_again_keeps_what_was_given(empty: World) -> None:
    first = empty.service("s", type="NodePort")
    manifest: dict[str, Any] = {"metadata": {"name": "s"}, "spec": {"type": "NodePort", "ports": [{"port": 80}]}}
    again = empty.cluster.registry.update(kinds.SERVICES, "default", "s", lambda _: manifest)
    assert again["spec"]["clusterIP"] == first["spec"]["clusterIP"]
    assert again["spec"]["ports"] == first["spec"]["ports"]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            {"clusterIP": "10.96.0.1"},
            'spec.clusterIPs: Invalid value: ["10.96.0.1"]: failed to allocate IP 10.96.0.1: provided IP is already allocated',
        ),
        (
            {"type": "NodePort", "ports": [{"port": 80, "nodePort": 80}]},
            "spec.ports[0].nodePort: Invalid value: 80: provided port is not in the valid range. "
            "The range of valid ports is 30000-32767",
        ),
        (
            {"ports": [{"port": 1}, {"port": 2}]},
            "[spec.ports[0].name: Required value, spec.ports[1].name: Required value]",
        ),
        (
            {"clusterIP": "None", "type": "NodePort"},
            "spec.clusterIPs[0]: Invalid value: \"None\": may not be set to 'None' for NodePort services",
        ),
        (
            {"ipFamilyPolicy": "RequireDualStack"},
            'spec.ipFamilyPolicy: Invalid value: "RequireDualStack": '
            "this cluster is not configured for dual-stack services",
        ),
        (
            {"externalIPs": ["169.254.1.1"]},
            'spec.externalIPs[0]: Invalid value: "169.254.1.1": '
            "may not be in the link-local range (169.254.0.0/16, fe80::/10)",
        ),
    ],
)
def test_refused(empty: World, spec: dict[str, Any], message: str) -> None:
    assert empty.refused(lambda: empty.service("s", **spec)) == f'Service "s" is invalid: {message}'


def test_dual_stack(make_world: Callable[..., World]) -> None:
    import ipaddress

    networks = (ipaddress.ip_network("10.96.0.0/16"), ipaddress.ip_network("fd00:10:96::/112"))
    world = make_world(service_networks=networks, hollow_nodes=0)
    assert world.service("single")["spec"]["ipFamilies"] == ["IPv4"]
    spec = world.service("dual", ipFamilyPolicy="PreferDualStack")["spec"]
    assert spec["ipFamilies"] == ["IPv4", "IPv6"]
    assert spec["clusterIPs"][1].startswith("fd00:10:96::")
    six = world.service("six", ipFamilies=["IPv6"])["spec"]
    assert six["clusterIP"].startswith("fd00:10:96::")
    single = world.change(kinds.SERVICES, "dual", lambda s: s["spec"].update(ipFamilyPolicy="SingleStack"))
    assert single["spec"]["clusterIPs"] == spec["clusterIPs"][:1]
    world.service("heir", ipFamilies=["IPv6"], clusterIP=spec["clusterIPs"][1])


def test_balancer_addresses(empty: World) -> None:
    for name in ("a", "b", "c"):
        empty.service(name, type="LoadBalancer")
    empty.settle()

    def address(name: str) -> str:
        service = empty.get(kinds.SERVICES, name)
        assert service is not None
        ingress = service["status"]["loadBalancer"].get("ingress", [{}])
        return str(ingress[0].get("ip", ""))

    assert [address(name) for name in "abc"] == ["192.168.200.240", "192.168.200.241", ""]
    empty.change(kinds.SERVICES, "a", lambda s: s["spec"].update(type="ClusterIP"))
    empty.settle()
    assert [address(name) for name in "abc"] == ["", "192.168.200.241", "192.168.200.240"]
