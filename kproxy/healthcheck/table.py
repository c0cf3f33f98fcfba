"""Which health check node ports this node must answer on, and with what count. Pure.

In: the wanted state of the node. Out: one `Check` for each Service and family that has such a port. A Service has one only with type
LoadBalancer and externalTrafficPolicy Local (`resolve` decided that). Families stand apart, as in kube-proxy: the count that a load
balancer hears over IPv4 is of IPv4 endpoints.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from kproxy.model.desired import DesiredState
from kproxy.model.names import Family, NamespacedName
from kproxy.model.snapshot import differing

UNSPECIFIED = {Family.IPV4: "0.0.0.0", Family.IPV6: "::"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One Service's health check for one family. addresses: to listen on, from `nodePortAddresses`; endpoints: local ready ones."""

    service: NamespacedName
    family: Family
    port: int
    addresses: tuple[str, ...]
    endpoints: int = 0


Key = tuple[NamespacedName, Family]


def wanted(desired: DesiredState) -> Mapping[Key, Check]:
    """Every health check of the node. Of two ports of one Service the first speaks; they cannot differ."""
    found: dict[Key, Check] = {}
    for family in Family:
        state = desired.of(family)
        where = state.node_port_addresses
        addresses = (UNSPECIFIED[family],) if where.everywhere else where.addresses
        for port in state.service_ports.values():
            if port.health_check_node_port is not None:
                name = port.name.service
                check = Check(
                    service=name,
                    family=family,
                    port=port.health_check_node_port,
                    addresses=addresses,
                    endpoints=port.local_ready,
                )
                found.setdefault((name, family), check)
    return found


def concerned(before: DesiredState, after: DesiredState) -> bool:
    """Whether `wanted` may differ. Costs one sweep of identities, a fifth of making the table anew at 10,000 Services."""
    for family in Family:
        old, new = before.of(family), after.of(family)
        if old is new:
            continue
        if old.node_port_addresses != new.node_port_addresses:
            return True
        for name in differing(old.service_ports, new.service_ports):
            ports = (old.service_ports.get(name), new.service_ports.get(name))
            if any(port is not None and port.health_check_node_port is not None for port in ports):
                return True
    return False


def answer(check: Check, *, healthy: bool) -> tuple[int, dict[str, str], bytes]:
    """Code, headers and body, as kube-proxy gives them. healthy: of the proxy itself, whatever the node's fate."""
    code = 200 if check.endpoints and healthy else 503
    headers = {
        "Content-Type": "application/json",
        "X-Content-Type-Options": "nosniff",
        "X-Load-Balancing-Endpoint-Weight": str(check.endpoints),
    }
    lines = (
        "{",
        '\t"service": {',
        f'\t\t"namespace": "{check.service.namespace}",',
        f'\t\t"name": "{check.service.name}"',
        "\t},",
        f'\t"localEndpoints": {check.endpoints},',
        f'\t"serviceProxyHealthy": {str(healthy).lower()}',
        "}",
    )
    return code, headers, "\n".join(lines).encode()
