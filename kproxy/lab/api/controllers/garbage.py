"""The garbage collector: what was made for an owner goes with the owner.

It knows who owns what from the changes it sees. An object whose owners are all gone is deleted. An owner that is deleted with `--cascade=
orphan` or `foreground` waits, held by a finalizer, until its dependents are released or gone. Pods on a node that does not exist end here
too, since nobody is there to end them.
"""

from __future__ import annotations

from collections.abc import Iterable

from kproxy.lab.api import kinds
from kproxy.lab.api.kinds import RESOURCES, Resource
from kproxy.lab.api.objects.base import DeleteOptions
from kproxy.lab.api.registry import FOREGROUND, ORPHAN, Registry
from kproxy.lab.api.store import Change, Key
from kproxy.lab.api.values import Object, dig, is_terminating

Place = tuple[str, str, str]  # resource, namespace, name

_BY_NAME = {resource.group_resource: resource for resource in RESOURCES}


class GarbageCollector:
    """The controller of ownership; its keys are places written as one text, with the resource in front."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._alive: dict[str, Place] = {}  # uid → where it is
        self._dependents: dict[str, dict[Place, None]] = {}  # owner's uid → what it owns

    def concerned(self, resource: Resource, change: Change) -> Iterable[Key]:
        """An object with owners; the dependents of one that is going or gone; the owner that waits for a dependent."""
        obj = change.record.object
        place = (resource.group_resource, *change.record.key)
        owners = [reference["uid"] for reference in dig(obj, "metadata", "ownerReferences", default=[])]
        keys: list[Key] = []
        uid = obj["metadata"]["uid"]
        if change.type == "DELETED":
            self._alive.pop(uid, None)
            for owner in owners:
                self._dependents.get(owner, {}).pop(place, None)
                if owner in self._alive:
                    keys.append(_key(self._alive[owner]))
            return keys + [_key(dependent) for dependent in self._dependents.pop(uid, {})]
        self._alive[uid] = place
        before = dig(change.previous.object, "metadata", "ownerReferences", default=[]) if change.previous else []
        for reference in before:
            if reference["uid"] not in owners:
                self._dependents.get(reference["uid"], {}).pop(place, None)
        for owner in owners:
            self._dependents.setdefault(owner, {})[place] = None
        if owners or is_terminating(obj):
            keys.append(_key(place))
        if resource is kinds.PODS and is_terminating(obj):
            keys.append(_key(place))
        return keys

    def reconcile(self, key: Key) -> None:
        """One object: as a dependent, and as an owner that waits."""
        resource = _BY_NAME[key[0]]
        namespace, _, name = key[1].partition("/")
        obj = self._registry.find(resource, namespace, name)
        if obj is None:
            return
        finalizers = dig(obj, "metadata", "finalizers", default=[])
        if is_terminating(obj) and ORPHAN in finalizers:
            self._orphan(resource, obj)
        elif is_terminating(obj) and FOREGROUND in finalizers:
            self._delete_dependents(resource, obj)
        elif resource is kinds.PODS and is_terminating(obj) and not self._has_node(obj):
            self._registry.delete(resource, namespace, name, DeleteOptions(grace_period_s=0))
        elif not is_terminating(obj):
            self._delete_if_abandoned(resource, obj)

    def _has_node(self, pod: Object) -> bool:
        return self._registry.find(kinds.NODES, "", dig(pod, "spec", "nodeName", default="")) is not None

    def _delete_if_abandoned(self, resource: Resource, obj: Object) -> None:
        references = dig(obj, "metadata", "ownerReferences", default=[])
        if not references or any(reference["uid"] in self._alive for reference in references):
            return
        metadata = obj["metadata"]
        self._registry.delete(
            resource, metadata.get("namespace", ""), metadata["name"], DeleteOptions(propagation="Background")
        )

    def _owned(self, owner: Object) -> list[tuple[Resource, Object]]:
        found = []
        for name, namespace, item in list(self._dependents.get(owner["metadata"]["uid"], {})):
            obj = self._registry.find(_BY_NAME[name], namespace, item)
            if obj is not None:
                found.append((_BY_NAME[name], obj))
        return found

    def _orphan(self, resource: Resource, owner: Object) -> None:
        uid = owner["metadata"]["uid"]

        def release(copy: Object) -> Object:
            references = [item for item in copy["metadata"]["ownerReferences"] if item["uid"] != uid]
            copy["metadata"]["ownerReferences"] = references or None
            return copy

        for kind, obj in self._owned(owner):
            self._registry.update(kind, obj["metadata"].get("namespace", ""), obj["metadata"]["name"], release)
        self._release(resource, owner, ORPHAN)

    def _delete_dependents(self, resource: Resource, owner: Object) -> None:
        uid = owner["metadata"]["uid"]
        blocking = False
        for kind, obj in self._owned(owner):
            metadata = obj["metadata"]
            if not is_terminating(obj):
                options = DeleteOptions(
                    propagation="Foreground" if self._dependents.get(metadata["uid"]) else "Background"
                )
                self._registry.delete(kind, metadata.get("namespace", ""), metadata["name"], options)
            reference = next(item for item in metadata["ownerReferences"] if item["uid"] == uid)
            still_there = self._registry.find(kind, metadata.get("namespace", ""), metadata["name"]) is not None
            blocking = blocking or (still_there and bool(reference.get("blockOwnerDeletion")))
        if not blocking:
            self._release(resource, owner, FOREGROUND)

    def _release(self, resource: Resource, owner: Object, finalizer: str) -> None:
        def change(copy: Object) -> Object:
            kept = [item for item in copy["metadata"].get("finalizers") or () if item != finalizer]
            copy["metadata"]["finalizers"] = kept or None
            return copy

        metadata = owner["metadata"]
        if self._registry.find(resource, metadata.get("namespace", ""), metadata["name"]) is not None:
            self._registry.update(resource, metadata.get("namespace", ""), metadata["name"], change)


def _key(place: Place) -> Key:
    return place[0], f"{place[1]}/{place[2]}"
