"""What only some Corefiles ask for: the addresses of pods (`pods verified`) and ServiceImports (`multicluster`).

In: the maps of two snapshots and what was made of the older one. Out: the newer one's. Incremental by identity, as `compile` is. What must
not happen here: work of any size while nobody asked for it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from kproxy.dns import names
from kproxy.dns.compile_service import groups_of, ports_of
from kproxy.dns.settings import DnsSettings
from kproxy.dns.zone import ImportChange, RecordKind, ServiceRecords, changes
from kproxy.model.names import NamespacedName
from kproxy.model.objects import EndpointSlice, Kind, Pod, ServiceImport
from kproxy.model.snapshot import Snapshot

Pods = Mapping[NamespacedName, Pod]


def pod_keys(pod: Pod) -> tuple[bytes, ...]:
    """What a pod is called below `pod.<zone>`: each of its addresses, packed, and its namespace. Nothing once it has ended or is ending."""
    if pod.finished or pod.terminating:
        return ()
    namespace = pod.name.namespace.lower().encode()
    return tuple(names.pack(address) + namespace for address in pod.ips)


def pods_of(
    new: Pods, old: Pods, known: frozenset[bytes] | None, counts: Mapping[bytes, int]
) -> tuple[frozenset[bytes], Mapping[bytes, int]]:
    """The keys of all pods and how many pods have each (those on a node's own network share its addresses)."""
    if known is not None and new is old:
        return known, counts
    after = Counter(counts)
    before = old if known is not None else {}
    changed, removed = changes(before, new)
    for name in (*removed, *(n for n in changed if n in before)):
        after.subtract(pod_keys(before[name]))
    for name in changed:
        after.update(pod_keys(new[name]))
    gone = [key for key in after if not after[key]]
    for key in gone:
        del after[key]
    keys = frozenset(after)
    return (known if known == keys else keys), after


def import_change(
    snapshot: Snapshot, settings: DnsSettings, known: Mapping[bytes, ServiceRecords] | None, old: Snapshot
) -> ImportChange | None:
    """What changed among the ServiceImports' records; None for nothing. They are few, so all are looked at."""
    if Kind.SERVICE_IMPORT not in snapshot.synced:
        return None
    if known is not None and snapshot.imports is old.imports and snapshot.slices is old.slices:
        return None
    slices: dict[NamespacedName, list[EndpointSlice]] = {name: [] for name in snapshot.imports}
    for item in snapshot.slices.values():
        if item.imported is not None and item.imported in slices:
            slices[item.imported].append(item)
    made = {}
    for name, found in snapshot.imports.items():
        ordered = tuple(sorted(slices[name], key=lambda item: item.name))
        records = _import(found, ordered, settings)
        if records is not None:
            made[records.key] = records
    before = known or {}
    changed = tuple(records for key, records in made.items() if before.get(key) != records)
    removed = tuple(key for key in before if key not in made)
    return ImportChange(changed, removed) if changed or removed or known is None else None


def _import(found: ServiceImport, slices: tuple[EndpointSlice, ...], settings: DnsSettings) -> ServiceRecords | None:
    try:
        key = (names.label(found.name.name.encode()) + names.label(found.name.namespace.encode())).lower()
    except ValueError:
        return None
    groups = () if settings.no_endpoints else groups_of(slices, settings)
    if found.headless:
        return ServiceRecords(key, RecordKind.HEADLESS, groups=groups) if groups else None
    if not found.ips:
        return None
    ports = ports_of(found.ports)
    addresses = tuple(dict.fromkeys(map(names.pack, found.ips)))
    return ServiceRecords(key, RecordKind.CLUSTER, addresses, ports, groups)
