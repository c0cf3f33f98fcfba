"""Virtual addresses that two Services claim, named for their owners.

In: the ServicePorts of one family. Out: a Problem for each claim that comes second. The API server prevents this for cluster IPs and node
ports, and for nothing else: whoever may write `externalIPs` can name any address, another Service's cluster IP included (CVE-2020-8554).
Data planes keep to the same order (cluster IPs first, then by name), so a claim of that kind takes nothing away; it only fails, and its
owner should hear why. Decides nothing itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from kproxy.model.desired import ServicePort, VirtualIPKind
from kproxy.model.names import Protocol, ServicePortName
from kproxy.model.objects import Problem

_Claim = tuple[str, int, Protocol]  # an address ("" for a node port), a port, a protocol


def conflicts(service_ports: Mapping[ServicePortName, ServicePort]) -> tuple[Problem, ...]:
    """One Problem for each claim on an address and port that another ServicePort comes first with; `service_ports` in order of names."""
    owners: dict[_Claim, ServicePortName] = {
        (port.virtual_ips[0].address, port.port, name.protocol): name
        for name, port in reversed(list(service_ports.items()))
    }
    found: list[Problem] = []
    if len(owners) < len(service_ports):
        for name, port in service_ports.items():
            claim = (port.virtual_ips[0].address, port.port, name.protocol)
            if owners[claim] is not name:
                found.append(_problem(port, "spec.clusterIP", claim, owners[claim]))
    for name, port in service_ports.items():
        if port.node_port is None and len(port.virtual_ips) == 1:
            continue
        for path, claim in _claims(port):
            owner = owners.setdefault(claim, name)
            if owner is not name:
                found.append(_problem(port, path, claim, owner))
    return tuple(found)


def _claims(port: ServicePort) -> Iterator[tuple[str, _Claim]]:
    """What the ServicePort claims besides its cluster IP, and by which field."""
    protocol = port.name.protocol
    for virtual_ip in port.virtual_ips:
        if virtual_ip.kind is VirtualIPKind.EXTERNAL:
            yield "spec.externalIPs", (virtual_ip.address, port.port, protocol)
        elif virtual_ip.kind is VirtualIPKind.LOAD_BALANCER:
            yield "status.loadBalancer.ingress[].ip", (virtual_ip.address, port.port, protocol)
    if port.node_port is not None:
        yield "spec.ports[].nodePort", ("", port.node_port, protocol)


def _problem(port: ServicePort, path: str, claim: _Claim, owner: ServicePortName) -> Problem:
    address, number, protocol = claim
    what = f"{address} port {number}" if address else str(number)
    reason = f"{path}: {what}/{protocol.value} of port {port.name.port!r} belongs to {owner}, which comes first"
    return Problem("Service", str(port.name.service), reason)
