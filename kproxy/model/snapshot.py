"""Everything known at one instant, as one value; `fold` makes the next one.

In: events in any order about different objects. Out: equal snapshots for equal facts, whatever the order. A snapshot is replaced, never
changed: readers hold one without a lock. Unchanged objects keep their identity from one snapshot to the next; `resolve` and the DNS
compiler skip them by `is`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from kproxy.model.events import AddressesChanged, Applied, Event, Removed, Replaced
from kproxy.model.layered import Changeable, changeable, finished, touched_between
from kproxy.model.names import NamespacedName
from kproxy.model.objects import (
    Decoded,
    EndpointSlice,
    Kind,
    Namespace,
    Node,
    ObjectKey,
    Pod,
    Problem,
    Service,
    ServiceImport,
)
from kproxy.model.ordering import alike

K = TypeVar("K")
_ABSENT = object()

_FIELDS: Mapping[Kind, str] = {
    Kind.SERVICE: "services",
    Kind.ENDPOINT_SLICE: "slices",
    Kind.NODE: "nodes",
    Kind.NAMESPACE: "namespaces",
    Kind.POD: "pods",
    Kind.SERVICE_IMPORT: "imports",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """The API objects and node addresses that kproxy acts on."""

    services: Mapping[NamespacedName, Service] = field(default_factory=dict)
    slices: Mapping[NamespacedName, EndpointSlice] = field(default_factory=dict)
    slices_of: Mapping[NamespacedName, tuple[EndpointSlice, ...]] = field(
        default_factory=dict
    )  # by Service, sorted by name
    nodes: Mapping[NamespacedName, Node] = field(default_factory=dict)
    namespaces: Mapping[NamespacedName, Namespace] = field(default_factory=dict)
    pods: Mapping[NamespacedName, Pod] = field(default_factory=dict)
    imports: Mapping[NamespacedName, ServiceImport] = field(default_factory=dict)
    local_addresses: frozenset[str] = frozenset()
    synced: frozenset[Kind] = frozenset()
    problems: Mapping[ObjectKey, tuple[Problem, ...]] = field(default_factory=dict)

    def node(self, name: str) -> Node | None:
        """The Node of this name, if the API has told of it."""
        return self.nodes.get(NamespacedName("", name))

    def has_namespace(self, name: str) -> bool:
        """Whether the namespace exists."""
        return NamespacedName("", name) in self.namespaces


class _Draft:
    """New versions of the maps that the events of one `fold` touch; a map nobody touches is shared with the old snapshot."""

    def __init__(self, base: Snapshot) -> None:
        self.base = base
        self.maps: dict[str, Changeable[Any, Any]] = {}
        self.changes: dict[str, Any] = {}
        self.touched_services: set[NamespacedName] = set()
        self.fresh_slices: set[NamespacedName] = set()

    def of(self, name: str, changes: int = 1) -> Changeable[Any, Any]:
        if name not in self.maps:
            self.maps[name] = changeable(getattr(self.base, name), changes)
        return self.maps[name]

    def read(self, name: str) -> Mapping[Any, Any]:
        current: Mapping[Any, Any] = self.maps.get(name, getattr(self.base, name))
        return current

    def put(self, decoded: Decoded) -> None:
        key, name = decoded.key, _FIELDS[decoded.key.kind]
        old = self.read(name).get(key.name)
        if decoded.problems:
            if self.read("problems").get(key) != decoded.problems:
                self.of("problems")[key] = decoded.problems
        elif key in self.read("problems"):
            del self.of("problems")[key]
        if decoded.object is None:
            self._drop(key)
        elif old != decoded.object:
            self._touch(old)
            self._touch(decoded.object)
            self.of(name)[key.name] = decoded.object
            if key.kind is Kind.ENDPOINT_SLICE:
                self.fresh_slices.add(key.name)

    def remove(self, key: ObjectKey) -> None:
        self._drop(key)
        if key in self.read("problems"):
            del self.of("problems")[key]

    def _drop(self, key: ObjectKey) -> None:
        name = _FIELDS[key.kind]
        if key.name in self.read(name):
            self._touch(self.of(name).pop(key.name))

    def _touch(self, obj: object) -> None:
        if isinstance(obj, EndpointSlice):
            self.touched_services.add(obj.service)

    def replace_kind(self, event: Replaced) -> None:
        """A list; the first one of a kind has nothing to be compared with."""
        self.changes["synced"] = self.changes.get("synced", self.base.synced) | {event.kind}
        if not self.read(_FIELDS[event.kind]) and not any(key.kind is event.kind for key in self.read("problems")):
            self._begin_kind(event)
            return
        listed = {decoded.key for decoded in event.objects}
        for name in list(self.read(_FIELDS[event.kind])):
            if ObjectKey(event.kind, name) not in listed:
                self._drop(ObjectKey(event.kind, name))
        for key in [k for k in self.read("problems") if k.kind is event.kind and k not in listed]:
            del self.of("problems")[key]
        new = len(event.objects) - len(self.read(_FIELDS[event.kind]))
        self.of(_FIELDS[event.kind], new)  # else a first list would go entry by entry through a layer
        for decoded in event.objects:
            self.put(decoded)

    def _begin_kind(self, event: Replaced) -> None:
        target = self.of(_FIELDS[event.kind], len(event.objects))
        for decoded in event.objects:
            if decoded.problems or decoded.object is None:
                self.put(decoded)
            else:
                target[decoded.key.name] = decoded.object
        if event.kind is Kind.ENDPOINT_SLICE:
            self.fresh_slices.update(target)
            self.touched_services.update([item.service for item in target.values()])

    def finish(self) -> Snapshot:
        if self.touched_services:
            self._index()
        if not self.maps and not self.changes:
            return self.base
        maps = {name: finished(changed) for name, changed in self.maps.items()}
        changes: dict[str, Any] = {**maps, **self.changes}
        return replace(self.base, **changes)

    def _index(self) -> None:
        found: dict[NamespacedName, list[EndpointSlice]] = {service: [] for service in self.touched_services}
        # A list: one pass over all slices. Events, however many have gathered: the old index plus whatever is new. A pass over 11,000
        # slices for every ten of them was a fifth of the controller's time at a thousand endpoint changes a second.
        if len(found) > 8 and len(found) > len(self.read("slices")) // 4:
            candidates: Iterable[EndpointSlice] = self.read("slices").values()
        else:
            candidates = self._candidates()
        for item in candidates:
            if (listed := found.get(item.service)) is not None:
                listed.append(item)
        index = self.of("slices_of", len(found))
        for service, items in found.items():
            if items:
                index[service] = tuple(sorted(items, key=lambda s: s.name)) if len(items) > 1 else (items[0],)
            elif service in index:
                del index[service]

    def _candidates(self) -> list[EndpointSlice]:
        slices, names = self.read("slices"), set(self.fresh_slices)
        for service in self.touched_services:
            names |= {item.name for item in self.base.slices_of.get(service, ())}
        return [slices[name] for name in names if name in slices]


def fold(snapshot: Snapshot, events: Iterable[Event]) -> Snapshot:
    """The snapshot after `events`; the same object when they change nothing."""
    draft = _Draft(snapshot)
    for event in events:
        match event:
            case Replaced():
                draft.replace_kind(event)
            case Applied():
                draft.put(event.object)
            case Removed():
                draft.remove(event.key)
            case AddressesChanged():
                if event.addresses != snapshot.local_addresses or "local_addresses" in draft.changes:
                    draft.changes["local_addresses"] = event.addresses
    return draft.finish()


def differing(before: Mapping[K, object], now: Mapping[K, object]) -> set[K]:
    """The keys under which two maps do not hold the very same object, those of one map only included.

    Two versions of one line (layered.py) know what was touched between them. Maps that came from one another otherwise differ in few places
    and else keep their order: head and tail are compared by identity without hashing a single key, a millisecond for 10,000. What lies
    between is compared key by key.
    """
    if before is now:
        return set()
    touched = touched_between(before, now)
    if touched is not None:
        return {key for key in touched if before.get(key, _ABSENT) is not now.get(key, _ABSENT)}
    old, new = list(before), list(now)
    head, tail = alike(old, new)
    there, here = list(before.values()), list(now.values())
    found = {key for key, was, value in zip(new[:head], there, here, strict=False) if was is not value}
    if tail:
        found |= {k for k, was, v in zip(new[-tail:], there[-tail:], here[-tail:], strict=True) if was is not v}
    found |= {key for key in new[head : len(new) - tail] if before.get(key, _ABSENT) is not now[key]}
    return found.union(key for key in old[head : len(old) - tail] if key not in now)
