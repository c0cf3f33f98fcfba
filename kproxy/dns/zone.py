"""The zone as a value: what is known about every Service, keyed so that a question finds it by a slice of its own bytes.

In: records made by `compile`, or the same records out of a worker's channel. Out: a frozen `Zone`, and the next one by `with_changes`.
What must not happen here: looking at an API object, or building wire messages (`answer` does that).

A Service's key is two labels in wire form, `\\x04name\\x09namespace`, exactly the bytes that stand in the question before `\\x03svc…`.
Records are kept per Service, not per owner name: 10,000 Services with four endpoints each have 70,000 names, but a change touches one
entry, and a worker holds them in 14 MB. Finished answers are made from them on the first question and then kept by `cache`.

Records are msgspec's structs and no dataclasses: there are 50,000 of them, and a frozen dataclass takes 1 to 3 us to make, to decode or to
copy, a struct a fifth of that. With them 10,000 Services are compiled in 0.17 s instead of 0.26, and taken in by a worker in 0.05 s instead
of 0.14. They hold octets and tuples of their own kind, so no cycle can begin in one, and the collector need not know of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from itertools import compress, islice
from operator import is_not
from typing import Any, TypeVar

from msgspec import Struct
from msgspec.structs import replace as with_other

from kproxy.dns import names
from kproxy.dns.apexes import Apex, apexes
from kproxy.dns.order import Order
from kproxy.dns.settings import DnsSettings
from kproxy.model.layered import Changeable, Layered, changeable, finished, touched_between
from kproxy.model.snapshot import Snapshot

K = TypeVar("K")
V = TypeVar("V")


class RecordKind(Enum):
    """The three shapes a Service has in DNS."""

    CLUSTER = "cluster"
    HEADLESS = "headless"
    EXTERNAL = "external"


class Port(Struct, frozen=True, gc=False, array_like=True):
    """A port by its lower-case name (b"" for none) and protocol (`tcp`)."""

    name: bytes
    protocol: bytes
    number: int


class Member(Struct, frozen=True, gc=False, array_like=True):
    """A ready endpoint: its label (hostname, pod name or dashed address; no length byte) and packed address."""

    label: bytes
    address: bytes


class Group(Struct, frozen=True, gc=False, array_like=True):
    """Ready endpoints that share their ports, as a slice gives them.

    cluster: the label of the cluster they run in, for imported Services. place: their topology zone, lower case, where zonal names are on.
    """

    ports: tuple[Port, ...]
    members: tuple[Member, ...]
    cluster: bytes = b""
    place: bytes = b""

    def name_of(self, member: Member, key: bytes) -> bytes:
        """The labels of one of its endpoints in front of `svc.<zone>`, wire form. key: the Service's."""
        cluster = bytes((len(self.cluster),)) + self.cluster if self.cluster else b""
        return bytes((len(member.label),)) + member.label + cluster + key


class ServiceRecords(Struct, frozen=True, gc=False, array_like=True):
    """All that DNS says about one Service.

    addresses: cluster IPs, packed (CLUSTER only). groups: ready endpoints. target: the external name, wire form (EXTERNAL only).
    external, hostnames: its external and load-balancer addresses and its load balancer's names (wire form), where some `k8s_external` wants
    them.
    """

    key: bytes
    kind: RecordKind
    addresses: tuple[bytes, ...] = ()
    ports: tuple[Port, ...] = ()
    groups: tuple[Group, ...] = ()
    target: bytes = b""
    external: tuple[bytes, ...] = ()
    hostnames: tuple[bytes, ...] = ()

    @property
    def name(self) -> str:
        """`namespace/name`."""
        parts = names.split(self.key)
        return f"{parts[1].decode()}/{parts[0].decode()}"

    @property
    def namespace(self) -> bytes:
        """The namespace's label, without length."""
        return self.key[self.key[0] + 2 :]

    @property
    def weight(self) -> int:
        """What it costs to send and to take in: one, and one for each endpoint."""
        return 1 + sum(len(group.members) for group in self.groups)

    def owned(self) -> set[bytes]:
        """Every packed address that has a reverse name because of this Service."""
        found = {*self.addresses, *self.external}
        for group in self.groups:
            found.update([member.address for member in group.members])
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Zone:
    """Everything a worker answers from.

    serial: of the SOA, Unix time of the last change. synced: Services, EndpointSlices and Namespaces have all been listed.
    namespaces: labels, lower case, only those exposed. owners: packed address → keys of the Services it belongs to, sorted.
    order: the keys of `owners` in order, which is how an empty non-terminal of a reverse tree is recognised.
    pods: packed address and namespace of every pod, for `pods verified`; imports: the ServiceImports, for `multicluster`. Either is None
    until it has been listed, and where nobody asked for it.
    problems, pod_counts, source: for the controller; workers have none of them.
    """

    settings: DnsSettings
    apexes: Mapping[bytes, Apex]
    serial: int = 0
    synced: bool = False
    namespaces: frozenset[bytes] = frozenset()
    services: Mapping[bytes, ServiceRecords] = field(default_factory=dict)
    owners: Mapping[bytes, tuple[bytes, ...]] = field(default_factory=dict)
    order: Order = field(default_factory=Order)
    pods: frozenset[bytes] | None = None
    imports: Mapping[bytes, ServiceRecords] | None = None
    pod_counts: Mapping[bytes, int] = field(default_factory=dict, compare=False, repr=False)
    problems: Mapping[bytes, str] = field(default_factory=dict, compare=False)
    source: Snapshot | None = field(default=None, compare=False, repr=False)

    def has_prefix(self, low: bytes, high: bytes) -> bool:
        """Whether some address with a reverse name lies between two packed addresses of one family, both included."""
        return self.order.holds(low, high)


def empty_zone(settings: DnsSettings) -> Zone:
    """The zone before anything is known: every name that depends on objects is SERVFAIL."""
    return Zone(settings=settings, apexes=apexes(settings))


@dataclass(frozen=True, slots=True)
class PodChange:
    """Pod keys (see `Zone.pods`) that came and went."""

    added: tuple[bytes, ...] = ()
    removed: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class ImportChange:
    """ServiceImports that came or changed, and keys of those that went."""

    changed: tuple[ServiceRecords, ...] = ()
    removed: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ZoneDelta:
    """What leads from one zone to the next. namespaces, pods, imports: None when they are the same."""

    serial: int
    synced: bool
    namespaces: frozenset[bytes] | None = None
    changed: tuple[ServiceRecords, ...] = ()
    removed: tuple[bytes, ...] = ()
    pods: PodChange | None = None
    imports: ImportChange | None = None

    @property
    def is_wide(self) -> bool:
        """It may change answers of other names than those of the Services it names."""
        return self.namespaces is not None or self.pods is not None or self.imports is not None


def with_changes(zone: Zone, delta: ZoneDelta) -> Zone:
    """The zone after `delta`; costs the change itself, and once in some hundreds a copy of its maps (layered.py)."""
    services, owners, order = zone.services, zone.owners, zone.order
    if delta.changed or delta.removed:
        services, owners, order = _apply(zone, delta.changed, delta.removed)
    return replace(
        zone,
        serial=delta.serial,
        synced=delta.synced,
        namespaces=zone.namespaces if delta.namespaces is None else delta.namespaces,
        services=services,
        owners=owners,
        order=order,
        pods=_pods_after(zone.pods, delta.pods),
        imports=_imports_after(zone.imports, delta.imports),
    )


def _pods_after(pods: frozenset[bytes] | None, change: PodChange | None) -> frozenset[bytes] | None:
    return pods if change is None else (pods or frozenset()).difference(change.removed).union(change.added)


def _imports_after(
    imports: Mapping[bytes, ServiceRecords] | None, change: ImportChange | None
) -> Mapping[bytes, ServiceRecords] | None:
    if change is None:
        return imports
    after = dict(imports or {})
    for key in change.removed:
        after.pop(key, None)
    return after | {records.key: records for records in change.changed}


class Loading:
    """A whole zone on its way in, part by part, each in time bounded by the part's size.

    Ports are the same few in most Services; those that came as equal values are kept once, which saves a quarter of a worker's zone.
    """

    def __init__(self, settings: DnsSettings) -> None:
        self._settings = settings
        self._services: dict[bytes, ServiceRecords] = {}
        self._owners: dict[bytes, tuple[bytes, ...]] = {}
        self._ports: dict[tuple[Port, ...], tuple[Port, ...]] = {}

    def add(self, part: Iterable[ServiceRecords]) -> None:
        """Takes further Services, each once."""
        for records in map(self._shared, part):
            self._services[records.key] = records
            alone = (records.key,)
            for address in records.owned():
                others = self._owners.get(address)
                self._owners[address] = alone if others is None else tuple(sorted({*others, records.key}))

    def _shared(self, records: ServiceRecords) -> ServiceRecords:
        once = self._ports.setdefault
        groups = tuple([with_other(group, ports=once(group.ports, group.ports)) for group in records.groups])
        return with_other(records, ports=once(records.ports, records.ports), groups=groups)

    def finish(self, delta: ZoneDelta) -> Zone:
        """The zone; `delta` tells everything but the Services, see `rest_of`."""
        return Zone(
            settings=self._settings,
            apexes=apexes(self._settings),
            serial=delta.serial,
            synced=delta.synced,
            namespaces=delta.namespaces or frozenset(),
            services=Layered.of(self._services),
            owners=Layered.of(self._owners),
            order=Order.of(self._owners),
            pods=_pods_after(None, delta.pods),
            imports=_imports_after(None, delta.imports),
        )


def rest_of(zone: Zone) -> ZoneDelta:
    """All of a zone but its Services: what follows them when a whole zone is sent."""
    return ZoneDelta(
        serial=zone.serial,
        synced=zone.synced,
        namespaces=zone.namespaces,
        pods=None if zone.pods is None else PodChange(tuple(zone.pods)),
        imports=None if zone.imports is None else ImportChange(tuple(zone.imports.values())),
    )


_Applied = tuple[Mapping[bytes, ServiceRecords], Mapping[bytes, tuple[bytes, ...]], Order]


def _apply(zone: Zone, changed: Sequence[ServiceRecords], removed: Sequence[bytes]) -> _Applied:
    """The next Services and owners, and the addresses that have a reverse name then, in order."""
    many = len(changed) + len(removed)
    services, owners = changeable(zone.services, many), changeable(zone.owners, many)
    touched: set[bytes] = set()
    for key in removed:
        old = services.get(key)
        if old is not None:
            del services[key]
        for address in old.owned() if old else ():
            touched.add(address)
            _disown(owners, address, key)
    for records in changed:
        old = services.get(records.key)
        after = records.owned()
        services[records.key] = records
        alone = (records.key,)
        if old is not None:
            before = old.owned()
            for address in before - after:
                _disown(owners, address, records.key)
                touched.add(address)
            after -= before
        touched |= after
        for address in after:
            others = owners.get(address)
            owners[address] = alone if others is None else tuple(sorted({*others, records.key}))
    if not zone.owners:
        return finished(services), finished(owners), Order.of(owners)
    lost = [address for address in touched if address in zone.owners and address not in owners]
    gained = [address for address in touched if address not in zone.owners and address in owners]
    return finished(services), finished(owners), zone.order.after(lost, gained)


def _disown(owners: Changeable[bytes, tuple[bytes, ...]], address: bytes, key: bytes) -> None:
    known = owners.get(address, ())
    rest = tuple(other for other in known if other != key)
    if rest:
        owners[address] = rest
    elif known:
        del owners[address]


def difference(old: Zone, new: Zone) -> ZoneDelta | None:
    """What leads from `old` to `new`; None when nothing does but a full transfer (other settings)."""
    if old.settings != new.settings:
        return None
    found = changes(old.services, new.services)
    return ZoneDelta(
        serial=new.serial,
        synced=new.synced,
        namespaces=None if old.namespaces == new.namespaces else new.namespaces,
        changed=tuple(new.services[key] for key in found[0]),
        removed=tuple(found[1]),
        pods=pod_change(old.pods, new.pods),
        imports=_import_change(old.imports, new.imports),
    )


def pod_change(old: frozenset[bytes] | None, new: frozenset[bytes] | None) -> PodChange | None:
    """What leads from one set of pods to the next; None when nothing has to."""
    if new is None or new is old:
        return None
    before = frozenset() if old is None else old
    return PodChange(tuple(new - before), tuple(before - new)) if new != before or old is None else None


def _import_change(
    old: Mapping[bytes, ServiceRecords] | None, new: Mapping[bytes, ServiceRecords] | None
) -> ImportChange | None:
    if new is None or new is old:
        return None
    changed, removed = changes(old or {}, new)
    return ImportChange(tuple(new[key] for key in changed), tuple(removed))


def changes(old: Mapping[K, V], new: Mapping[K, V]) -> tuple[list[K], list[K]]:
    """Keys whose value is another object in `new` (or was not there before), and keys that are gone.

    Two versions of one line know what was touched between them. Other maps descend from one another by copying, so their order is nearly
    the same: walking them side by side compares identities without hashing (1 ms for 10,000 Services instead of 10), and only where they
    run apart are they looked up.
    """
    if old is new:
        return [], []
    touched = touched_between(old, new)
    if touched is not None:
        return (
            [key for key in touched if key in new and new[key] is not old.get(key)],
            [key for key in touched if key not in new and key in old],
        )
    if not any(map(is_not, old, new)):  # one is the other with further keys at its end, or none: no walk in Python
        longer, common = (old, len(new)) if len(old) > len(new) else (new, len(old))
        differing = compress(longer, map(is_not, old.values(), new.values()))
        rest = list(islice(longer, common, None))
        return ([*differing], rest) if longer is old else ([*differing, *rest], [])
    changed: list[K] = []
    removed: list[K] = []
    missing: Any = object()
    mine = iter(new.items())
    key, value = next(mine, (missing, missing))
    moved: set[K] = set()
    for old_key, old_value in old.items():
        if old_key is key or old_key == key:
            if old_value is not value:
                changed.append(old_key)
            key, value = next(mine, (missing, missing))
        elif old_key not in new:
            removed.append(old_key)
        else:  # it stands further back: compared here, passed over there
            moved.add(old_key)
            if new[old_key] is not old_value:
                changed.append(old_key)
            while key in moved:
                key, value = next(mine, (missing, missing))
    while key is not missing:
        if key not in moved:
            changed.append(key)
        key, value = next(mine, (missing, missing))
    return changed, removed
