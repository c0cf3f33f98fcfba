"""One Service and its slices → its records, or the reason why DNS has none.

In: model objects. Out: `ServiceRecords` and what was wrong, in words. What must not happen here: looking at any other object.
"""

from __future__ import annotations

import ipaddress
from functools import lru_cache

from kproxy.dns import names
from kproxy.dns.settings import DnsSettings
from kproxy.dns.zone import Group, Member, Port, RecordKind, ServiceRecords
from kproxy.model.names import Protocol
from kproxy.model.objects import EndpointSlice, PortSpec, Service, SliceEndpoint, SlicePort


def compile_service(
    service: Service | None, slices: tuple[EndpointSlice, ...], settings: DnsSettings, key: bytes
) -> tuple[ServiceRecords | None, str]:
    """The records of one Service (None: it does not exist for DNS) and what was wrong with it ("" for nothing)."""
    if service is None:
        return None, ""
    if service.type == "ExternalName":
        return _external(service, key)
    groups = () if settings.no_endpoints else groups_of(slices, settings)
    if service.headless:
        return (ServiceRecords(key, RecordKind.HEADLESS, groups=groups), "") if groups else (None, "")
    if not service.cluster_ips or (settings.ignore_empty_service and not groups):
        return None, ""
    addresses = tuple(dict.fromkeys([names.pack(ip) for ip in service.cluster_ips]))
    ports = ports_of(service.ports)
    if not settings.external:
        return ServiceRecords(key, RecordKind.CLUSTER, addresses, ports, groups), ""
    outside, hostnames, problem = _outside(service)
    return ServiceRecords(key, RecordKind.CLUSTER, addresses, ports, groups, b"", outside, hostnames), problem


def _outside(service: Service) -> tuple[tuple[bytes, ...], tuple[bytes, ...], str]:
    """Packed addresses and names by which a Service is reached from outside of the cluster, and what was wrong with them."""
    texts = (*service.external_ips, *service.load_balancer_ips, *service.load_balancer_proxy_ips)
    found, problem = [], ""
    for text in service.load_balancer_hostnames:
        try:
            found.append(names.encode(text))
        except ValueError as error:
            problem = f"load balancer's hostname: {error}; no record is made for it"
    return tuple(dict.fromkeys(map(names.pack, texts))), tuple(dict.fromkeys(found)), problem


def _external(service: Service, key: bytes) -> tuple[ServiceRecords | None, str]:
    text = service.external_name
    try:
        ipaddress.ip_address(text.rstrip("."))
    except ValueError:
        pass
    else:
        return None, f"externalName {text!r} is an IP address: no record is made for it"
    try:
        target = names.encode(text)
    except ValueError as error:
        return None, f"externalName: {error}; no record is made for it"
    if target == b"\0":
        return None, "externalName is empty: no record is made for it"
    return ServiceRecords(key, RecordKind.EXTERNAL, target=target), ""


def groups_of(slices: tuple[EndpointSlice, ...], settings: DnsSettings) -> tuple[Group, ...]:
    """Ready endpoints by their ports; an address that stands in two slices with the same label and ports counts once."""
    by_ports: dict[tuple[tuple[Port, ...], bytes, bytes], dict[Member, None]] = {}
    for item in slices:
        ports = ports_of(item.ports)
        cluster = item.cluster.lower().encode()
        for place, endpoints in _places(item, settings):
            members = [Member(_label(endpoint, settings), names.pack(endpoint.address)) for endpoint in endpoints]
            by_ports.setdefault((ports, cluster, place), {}).update(dict.fromkeys(members))
    return tuple([Group(ports, tuple(members), *where) for (ports, *where), members in by_ports.items()])


def _places(item: EndpointSlice, settings: DnsSettings) -> list[tuple[bytes, list[SliceEndpoint]]]:
    """The ready endpoints of a slice by topology zone, where zonal names are on; all of them in one else."""
    ready = [endpoint for endpoint in item.endpoints if endpoint.ready]
    if not settings.zonal:
        return [(b"", ready)] if ready else []
    found: dict[bytes, list[SliceEndpoint]] = {}
    for endpoint in ready:
        found.setdefault(endpoint.zone.lower().encode(), []).append(endpoint)
    return list(found.items())


def ports_of(ports: tuple[PortSpec, ...] | tuple[SlicePort, ...]) -> tuple[Port, ...]:
    """The ports of a Service, an import or a slice."""
    return tuple([_port_of(port.name, port.protocol, port.port) for port in ports])


@lru_cache(maxsize=4096)
def _port_of(name: str, protocol: Protocol, number: int) -> Port:
    """A port; equal ones are the same object."""
    return Port(name.lower().encode(), protocol.lower.encode(), number)


def _label(endpoint: SliceEndpoint, settings: DnsSettings) -> bytes:
    """hostname, else the pod's name if wanted and short enough for a label, else the dashed address."""
    for text in (endpoint.hostname, endpoint.pod if settings.endpoint_pod_names else ""):
        if text and len(text.encode()) <= names.MAX_LABEL and "." not in text:
            return text.lower().encode()
    return names.dashed(endpoint.address)
