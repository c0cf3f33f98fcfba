"""Snapshot → Zone: every decision about which records exist is taken here or nowhere.

In: the same snapshot the proxy resolves. Out: a `Zone`. What must not happen here: time (the serial is an argument), logging, raising
over a bad object (it becomes a line in `Zone.problems` and the rest of the object still works).

Incremental by identity: `fold` keeps unchanged objects, so with a previous zone only the Services whose Service or slices are other objects
are compiled again; everything else is shared. The result equals a fresh compilation (tests/property/test_dns_compile.py).

What exists (the reference is the DNS-Based Service Discovery specification 1.1.0, and CoreDNS where that is silent):
* a Service with cluster IPs: its addresses, whatever its endpoints do; its ports; its ready endpoints by label;
* a headless Service: its ready endpoints. Without any it does not exist;
* an ExternalName: a CNAME. With an IP literal for a name it does not exist;
* nothing for a Service whose cluster IPs are not allocated yet.
"""

from __future__ import annotations

import ipaddress
from dataclasses import replace
from functools import lru_cache

from kproxy.dns import names
from kproxy.dns.settings import DnsSettings
from kproxy.dns.zone import (
    Group,
    Member,
    Port,
    RecordKind,
    ServiceRecords,
    Zone,
    ZoneDelta,
    changes,
    empty_zone,
    with_changes,
)
from kproxy.model.names import NamespacedName
from kproxy.model.objects import EndpointSlice, Kind, Service, SliceEndpoint
from kproxy.model.snapshot import Snapshot

NEEDED = frozenset({Kind.SERVICE, Kind.ENDPOINT_SLICE, Kind.NAMESPACE})

_NO_SLICES: tuple[EndpointSlice, ...] = ()


def compile_zone(snapshot: Snapshot, settings: DnsSettings, previous: Zone | None = None, *, serial: int) -> Zone:
    """The zone of `snapshot`; `previous` itself when no answer changes.

    serial: Unix time in seconds, for the SOA; the zone's serial always grows, so two changes within a second count on.
    Raises ValueError for malformed settings, never for objects.
    """
    base = previous if previous is not None and previous.settings == settings else empty_zone(settings)
    old = base.source if base.source is not None else Snapshot()
    touched = _touched(old, snapshot)
    problems = dict(base.problems)
    changed, removed = [], []
    for name in touched:
        key = key_of(name)
        if key is None:
            continue
        records, problem = compile_service(
            snapshot.services.get(name), snapshot.slices_of.get(name, _NO_SLICES), settings, key
        )
        if records is None:
            if key in base.services:
                removed.append(key)
        elif base.services.get(key) != records:
            changed.append(records)
        if problem:
            problems[key] = problem
        else:
            problems.pop(key, None)
    namespaces = base.namespaces
    if snapshot.namespaces is not old.namespaces or base.source is None:
        namespaces = _exposed(snapshot, settings)
    synced = snapshot.synced >= NEEDED
    if (
        previous is base
        and not changed
        and not removed
        and synced == base.synced
        and namespaces == base.namespaces
        and problems == base.problems
    ):
        # The source must follow the snapshot even so, or the next comparison would look at the same objects again.
        return previous if old is snapshot else replace(previous, source=snapshot)
    delta = ZoneDelta(
        serial=max(serial, base.serial + 1) & 0xFFFFFFFF,
        synced=synced,
        namespaces=namespaces,
        changed=tuple(changed),
        removed=tuple(removed),
    )
    return replace(with_changes(base, delta), problems=problems, source=snapshot)


def key_of(name: NamespacedName) -> bytes | None:
    """A Service's key in the zone; None when its name cannot stand in DNS."""
    try:
        return (names.label(name.name.encode()) + names.label(name.namespace.encode())).lower()
    except ValueError:
        return None


def compile_service(
    service: Service | None, slices: tuple[EndpointSlice, ...], settings: DnsSettings, key: bytes
) -> tuple[ServiceRecords | None, str]:
    """The records of one Service (None: it does not exist for DNS) and what was wrong with it ("" for nothing)."""
    if service is None:
        return None, ""
    if service.type == "ExternalName":
        return _external(service, key)
    groups = _groups(slices, settings)
    if service.headless:
        return (ServiceRecords(key, RecordKind.HEADLESS, groups=groups), "") if groups else (None, "")
    if not service.cluster_ips or (settings.ignore_empty_service and not groups):
        return None, ""
    addresses = tuple(dict.fromkeys(names.pack(ip) for ip in service.cluster_ips))
    ports = tuple(_port(port.name, port.protocol.lower, port.port) for port in service.ports)
    return ServiceRecords(key, RecordKind.CLUSTER, addresses, ports, groups), ""


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


def _groups(slices: tuple[EndpointSlice, ...], settings: DnsSettings) -> tuple[Group, ...]:
    """Ready endpoints by their ports; an address that stands in two slices with the same label and ports counts once."""
    by_ports: dict[tuple[Port, ...], dict[Member, None]] = {}
    for item in slices:
        ports = tuple(_port(port.name, port.protocol.lower, port.port) for port in item.ports)
        for endpoint in item.endpoints:
            if endpoint.ready:
                member = Member(_label(endpoint, settings), names.pack(endpoint.address))
                by_ports.setdefault(ports, {})[member] = None
    return tuple(Group(ports, tuple(members)) for ports, members in by_ports.items())


@lru_cache(maxsize=4096)
def _port(name: str, protocol: str, number: int) -> Port:
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


def _exposed(snapshot: Snapshot, settings: DnsSettings) -> frozenset[bytes]:
    known = frozenset(name.name for name in snapshot.namespaces)
    visible = known & frozenset(settings.namespaces) if settings.namespaces else known
    return frozenset(name.lower().encode() for name in visible)


def _touched(old: Snapshot, new: Snapshot) -> list[NamespacedName]:
    """The Services whose own object or whose slices are not the same objects as before."""
    found: dict[NamespacedName, None] = {}
    for before, after in ((old.services, new.services), (old.slices_of, new.slices_of)):
        changed, removed = changes(before, after)
        found.update(dict.fromkeys(changed))
        found.update(dict.fromkeys(removed))
    return list(found)
