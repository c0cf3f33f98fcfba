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

from dataclasses import replace
from functools import lru_cache

from kproxy.dns import names, selector
from kproxy.dns.blocks import PodRecords
from kproxy.dns.compile_further import import_change, pods_of
from kproxy.dns.compile_service import compile_service
from kproxy.dns.settings import DnsSettings
from kproxy.dns.zone import (
    ServiceRecords,
    Zone,
    ZoneDelta,
    changes,
    empty_zone,
    with_changes,
)
from kproxy.model.layered import reading
from kproxy.model.names import NamespacedName
from kproxy.model.objects import EndpointSlice, Kind
from kproxy.model.snapshot import Snapshot

NEEDED = frozenset({Kind.SERVICE, Kind.ENDPOINT_SLICE, Kind.NAMESPACE})

_NO_SLICES: tuple[EndpointSlice, ...] = ()


def needed(settings: DnsSettings) -> frozenset[Kind]:
    """The kinds that have to be listed before any answer is right; pods and ServiceImports only hold up the names made of them."""
    return NEEDED - {Kind.ENDPOINT_SLICE} if settings.no_endpoints else NEEDED


def compile_zone(snapshot: Snapshot, settings: DnsSettings, previous: Zone | None = None, *, serial: int) -> Zone:
    """The zone of `snapshot`; `previous` itself when no answer changes.

    serial: Unix time in seconds, for the SOA; the zone's serial always grows, so two changes within a second count on.
    Raises ValueError for malformed settings, never for objects.
    """
    base = previous if previous is not None and previous.settings == settings else empty_zone(settings)
    old = base.source if base.source is not None else Snapshot()
    problems = dict(base.problems)
    changed, removed = _services(snapshot, settings, base, old, problems)
    namespaces = base.namespaces
    if snapshot.namespaces is not old.namespaces or base.source is None:
        namespaces = exposed(snapshot, settings)
    synced = snapshot.synced >= needed(settings)
    pods, counts = base.pods, base.pod_counts
    if settings.pods is PodRecords.VERIFIED and Kind.POD in snapshot.synced:
        pods, counts = pods_of(snapshot.pods, old.pods, base.pods, base.pod_counts)
    imports = import_change(snapshot, settings, base.imports, old) if settings.multicluster else None
    if (
        previous is base
        and not changed
        and not removed
        and synced == base.synced
        and namespaces == base.namespaces
        and problems == base.problems
        and pods is base.pods
        and imports is None
    ):
        # The source must follow the snapshot even so, or the next comparison would look at the same objects again.
        return previous if old is snapshot else replace(previous, source=snapshot, pod_counts=counts)
    delta = ZoneDelta(
        serial=max(serial, base.serial + 1) & 0xFFFFFFFF,
        synced=synced,
        namespaces=namespaces,
        changed=tuple(changed),
        removed=tuple(removed),
        imports=imports,
    )
    return replace(with_changes(base, delta), problems=problems, source=snapshot, pods=pods, pod_counts=counts)


def _services(
    snapshot: Snapshot, settings: DnsSettings, base: Zone, old: Snapshot, problems: dict[bytes, str]
) -> tuple[list[ServiceRecords], list[bytes]]:
    """The records that changed and the keys that are gone since `base`; `problems` follows."""
    changed, removed = [], []
    wanted = selector.parse(settings.labels)
    touched = _touched(old, snapshot)
    services, slices_of = reading(snapshot.services, len(touched)), reading(snapshot.slices_of, len(touched))
    for name in touched:
        key = key_of(name)
        if key is None:
            continue
        service = services.get(name)
        if service is not None and wanted.requirements and not wanted.holds(dict(service.labels)):
            service = None
        records, problem = compile_service(service, slices_of.get(name, _NO_SLICES), settings, key)
        if records is None:
            if key in base.services:
                removed.append(key)
        elif base.services.get(key) != records:
            changed.append(records)
        if problem:
            problems[key] = problem
        else:
            problems.pop(key, None)
    return changed, removed


def key_of(name: NamespacedName) -> bytes | None:
    """A Service's key in the zone; None when its name cannot stand in DNS."""
    try:
        return (names.label(name.name.encode()) + _namespace(name.namespace)).lower()
    except ValueError:
        return None


@lru_cache(maxsize=4096)
def _namespace(name: str) -> bytes:
    return names.label(name.encode())


def exposed(snapshot: Snapshot, settings: DnsSettings) -> frozenset[bytes]:
    """The labels of the namespaces that exist for DNS."""
    wanted = selector.parse(settings.namespace_labels)
    return frozenset(
        name.name.lower().encode()
        for name, namespace in snapshot.namespaces.items()
        if (not settings.namespaces or name.name in settings.namespaces) and wanted.holds(dict(namespace.labels))
    )


def _touched(old: Snapshot, new: Snapshot) -> list[NamespacedName]:
    """The Services whose own object or whose slices are not the same objects as before."""
    found: dict[NamespacedName, None] = {}
    for before, after in ((old.services, new.services), (old.slices_of, new.slices_of)):
        changed, removed = changes(before, after)
        found.update(dict.fromkeys(changed))
        found.update(dict.fromkeys(removed))
    return list(found)
