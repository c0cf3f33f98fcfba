"""Which kinds of Service need what; shared by defaults, rules and pools."""

from __future__ import annotations

from kproxy.lab.api.values import Object


def needs_cluster_ip(spec: Object) -> bool:
    """Every type but ExternalName has cluster IPs ("None" counts)."""
    return spec.get("type") != "ExternalName"


def is_headless(spec: Object) -> bool:
    """`clusterIP: None`."""
    addresses = spec.get("clusterIPs")
    return addresses == ["None"] if addresses else spec.get("clusterIP") == "None"


def needs_node_ports(spec: Object) -> bool:
    """NodePort, and LoadBalancer unless its node ports are switched off."""
    if spec.get("type") == "NodePort":
        return True
    return spec.get("type") == "LoadBalancer" and spec.get("allocateLoadBalancerNodePorts", True) is not False


def needs_health_check_port(spec: Object) -> bool:
    """LoadBalancer with externalTrafficPolicy Local."""
    return spec.get("type") == "LoadBalancer" and spec.get("externalTrafficPolicy") == "Local"


def is_externally_reachable(spec: Object) -> bool:
    """Whether externalTrafficPolicy means anything."""
    if spec.get("type") in ("LoadBalancer", "NodePort"):
        return True
    return spec.get("type") == "ClusterIP" and bool(spec.get("externalIPs"))
