"""One Service and its slices → its records, or the reason why DNS has none.

In: model objects. Out: `ServiceRecords` and what was wrong, in words. What must not happen here: looking at any other object.
"""

from __future__ import annotations

import ipaddress
from functools import lru_cache

from kproxy.dns import names
from kproxy.dns.settings import DnsSettings
from kproxy.dns.zone import Group, Member, Port, RecordKind, ServiceRecords
from kproxy.model.objects import EndpointSlice, Service, SliceEndpoint


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
    addresses = tuple(dict.fromkeys(names.pack(ip) for ip in service.cluster_ips))
    ports = tuple(port_of(port.name, port.protocol.lower, port.port) for port in service.ports)
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
        ports = tuple(port_of(port.name, port.protocol.lower, port.port) for port in item.ports)
        cluster = item.cluster.lower().encode()
        for endpoint in item.endpoints:
            if endpoint.ready:
                place = endpoint.zone.lower().encode() if settings.zonal else b""
                member = Member(_label(endpoint, settings), names.pack(endpoint.address))
                by_ports.setdefault((ports, cluster, place), {})[member] = None
    return tuple(Group(ports, tuple(members), *where) for (ports, *where), members in by_ports.items())


@lru_cache(maxsize=4096)
def port_of(name: str, protocol: str, number: int) -> Port:
    """A port; equal ones are the same object."""
    return Port(name.lower().encode(), protocol.encode(), number)


def _label(endpoint: SliceEndpoint, settings: DnsSettings) -> bytes:
    """hostname, else the pod's name if wanted and short enough for a label, else the dashed address."""
    candidates = [endpoint.hostname]
    if settings.endpoint_pod_names:
        candidates.append(endpoint.pod)
    for text in candidates:
        if text and len(text.encode()) <= names.MAX_LABEL and "." not in text:
            return text.lower().encode()
    return names.dashed(endpoint.address)
