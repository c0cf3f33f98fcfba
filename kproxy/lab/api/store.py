"""The objects and their history: what etcd and the watch cache are to kube-apiserver, in one process and without a disk.

What comes in: whole objects that passed every check. What comes out: records (an object and its encoded bytes), snapshots at any
remembered revision, and a log of changes that watches read with a cursor of their own, so that a slow watcher costs nothing and cannot
make the server remember more than `history` changes per resource: it falls off the log and is told 410 Expired, as with the real one.
One task owns the store; every method is synchronous, so a check followed by a write cannot be interrupted. What must not happen here:
changing an object that is stored, or knowing what a kind means.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from kproxy.lab.api.kinds import RESOURCES, Resource
from kproxy.lab.api.status import expired
from kproxy.lab.api.values import Object, encode

Key = tuple[str, str]  # namespace ("" for the cluster's own), name


class Record:
    """One version of one object. Its JSON is made once, by whoever needs it first."""

    __slots__ = ("_json", "key", "object", "revision")

    def __init__(self, key: Key, obj: Object, revision: int) -> None:
        self.key = key
        self.object = obj
        self.revision = revision
        self._json: bytes | None = None

    @property
    def json(self) -> bytes:
        """The object as JSON."""
        if self._json is None:
            self._json = encode(self.object)
        return self._json


@dataclass(frozen=True, slots=True)
class Change:
    """One entry of the log. `record` is the new version, or for DELETED the last one under the deletion's revision."""

    type: str  # ADDED, MODIFIED or DELETED
    record: Record
    previous: Record | None


class Log:
    """The remembered changes of one resource, numbered from 0 for ever; the oldest are forgotten."""

    def __init__(self, limit: int, revision: int) -> None:
        self._changes: deque[Change] = deque()
        self._limit = limit
        self.first = 0  # number of the oldest change still remembered
        self.compacted = revision  # changes up to this revision are forgotten
        self._wakers: set[asyncio.Event] = set()

    @property
    def end(self) -> int:
        """The number the next change will get."""
        return self.first + len(self._changes)

    def append(self, change: Change) -> None:
        """Remember a change, forget the oldest beyond the limit, wake the watches."""
        self._changes.append(change)
        if len(self._changes) > self._limit:
            self._forget()
        for waker in self._wakers:
            waker.set()

    def _forget(self) -> None:
        self.compacted = self._changes.popleft().record.revision
        self.first += 1

    def compact(self, revision: int) -> None:
        """Forget every change up to a revision."""
        while self._changes and self._changes[0].record.revision <= revision:
            self._forget()
        self.compacted = max(self.compacted, revision)

    def position(self, revision: int) -> int:
        """The number of the first change after a revision."""
        number = self.end
        for change in reversed(self._changes):
            if change.record.revision <= revision:
                break
            number -= 1
        return number

    def read(self, position: int, limit: int = 500) -> list[Change] | None:
        """Up to `limit` changes from a position on; None when that position is forgotten."""
        if position < self.first:
            return None
        start = position - self.first
        stop = min(start + limit, len(self._changes))
        return [self._changes[index] for index in range(start, stop)]

    def backwards(self) -> Iterator[Change]:
        """The remembered changes, newest first."""
        return reversed(self._changes)

    def waker(self) -> asyncio.Event:
        """An event that is set at every change; give it back with `release`."""
        waker = asyncio.Event()
        self._wakers.add(waker)
        return waker

    def release(self, waker: asyncio.Event) -> None:
        """Stop waking."""
        self._wakers.discard(waker)

    def wake_all(self) -> None:
        """Let every watch look again, for example because the server stops."""
        for waker in self._wakers:
            waker.set()


class Store:
    """All objects of the cluster.

    first_revision: where resourceVersions start; a server that is restarted starts higher, so that its clients see their old
    resourceVersions refused as expired instead of waiting for numbers that mean something else now.
    history: changes remembered per resource.
    """

    def __init__(self, *, first_revision: int = 1, history: int = 10_000) -> None:
        self.revision = first_revision
        # By namespace first: most readers look at one namespace only.
        self._tables: dict[str, dict[str, dict[str, Record]]] = {r.group_resource: {} for r in RESOURCES}
        self._logs: dict[str, Log] = {r.group_resource: Log(history, first_revision - 1) for r in RESOURCES}
        self._listeners: list[Callable[[Resource, Change], None]] = []

    def log(self, resource: Resource) -> Log:
        """The changes of one resource."""
        return self._logs[resource.group_resource]

    def subscribe(self, listener: Callable[[Resource, Change], None]) -> None:
        """Call `listener` after every change, in the same task. It must not write to the store itself."""
        self._listeners.append(listener)

    def get(self, resource: Resource, namespace: str, name: str) -> Record | None:
        """The newest version of one object."""
        home = self._tables[resource.group_resource].get(namespace)
        return home.get(name) if home else None

    def count(self, resource: Resource) -> int:
        """How many objects of a resource there are."""
        return sum(len(home) for home in self._tables[resource.group_resource].values())

    def records(self, resource: Resource, namespace: str = "") -> list[Record]:
        """The newest versions of all objects (of one namespace), in no particular order."""
        homes = self._tables[resource.group_resource]
        if namespace:
            return list(homes.get(namespace, {}).values())
        return [record for home in homes.values() for record in home.values()]

    def snapshot(self, resource: Resource, namespace: str, revision: int) -> list[Record]:
        """All objects as they were at a revision, in the order of their keys. Raises Expired when that is forgotten."""
        records = self.records(resource, namespace)
        if revision < self.revision:
            records = self._rewind(resource, namespace, revision, records)
        records.sort(key=lambda record: record.key)
        return records

    def _rewind(self, resource: Resource, namespace: str, revision: int, records: list[Record]) -> list[Record]:
        """Undo the changes since a revision."""
        log = self.log(resource)
        if revision < log.compacted:
            raise expired(f"The resourceVersion for the provided list is too old: {revision} ({log.compacted})")
        table = {record.key: record for record in records}
        for change in log.backwards():
            if change.record.revision <= revision:
                break
            if namespace and change.record.key[0] != namespace:
                continue
            if change.previous is None:
                table.pop(change.record.key, None)
            else:
                table[change.record.key] = change.previous
        return list(table.values())

    def put(self, resource: Resource, obj: Object) -> Record:
        """Store a new object or a new version; the object gets its resourceVersion and belongs to the store from now on."""
        metadata = obj["metadata"]
        key = (metadata.get("namespace", ""), metadata["name"])
        self.revision += 1
        metadata["resourceVersion"] = str(self.revision)
        home = self._tables[resource.group_resource].setdefault(key[0], {})
        previous = home.get(key[1])
        record = Record(key, obj, self.revision)
        home[key[1]] = record
        self._publish(resource, Change("MODIFIED" if previous else "ADDED", record, previous))
        return record

    def remove(self, resource: Resource, namespace: str, name: str) -> Record:
        """Forget an object; returns its last version under the revision of the removal. KeyError when there is none."""
        previous = self._tables[resource.group_resource][namespace].pop(name)
        self.revision += 1
        obj = dict(previous.object)
        obj["metadata"] = {**obj["metadata"], "resourceVersion": str(self.revision)}
        record = Record(previous.key, obj, self.revision)
        self._publish(resource, Change("DELETED", record, previous))
        return record

    def compact(self) -> None:
        """Forget the whole history, as etcd does every five minutes; watches from before get 410."""
        for log in self._logs.values():
            log.compact(self.revision)

    def wake_all(self) -> None:
        """Let every watch look again."""
        for log in self._logs.values():
            log.wake_all()

    def _publish(self, resource: Resource, change: Change) -> None:
        self.log(resource).append(change)
        for listener in self._listeners:
            listener(resource, change)
