"""Events: what controllers tell people about objects, as `kubectl describe` shows it. Bounded: the oldest go first."""

from __future__ import annotations

from collections import deque

from kproxy.lab.api import kinds
from kproxy.lab.api.kinds import Resource
from kproxy.lab.api.registry import Registry
from kproxy.lab.api.status import ApiError
from kproxy.lab.api.store import Key
from kproxy.lab.api.values import Object, clone

LIMIT = 1_000


class Recorder:
    """Writes events in the name of one component; says the same thing again by counting."""

    def __init__(self, registry: Registry, component: str, written: deque[Key]) -> None:
        self._registry = registry
        self._component = component
        self._written = written  # shared by all recorders of a cluster: the limit is for all
        self._known: dict[tuple[str, str, str], Key] = {}

    def record(self, resource: Resource, obj: Object, kind: str, reason: str, message: str) -> None:
        """Write or count one event. Never fails: an event is not worth an error."""
        metadata = obj["metadata"]
        said = (metadata["uid"], reason, message)
        try:
            if said in self._known and self._count(self._known[said]):
                return
            self._known[said] = self._write(resource, metadata, kind, reason, message)
        except ApiError:
            return
        if len(self._known) > LIMIT:
            self._known.pop(next(iter(self._known)))

    def _count(self, key: Key) -> bool:
        if self._registry.find(kinds.EVENTS, *key) is None:
            return False

        def change(event: Object) -> Object:
            event["count"] = event.get("count", 1) + 1
            event["lastTimestamp"] = self._registry.now()
            return event

        self._registry.update(kinds.EVENTS, key[0], key[1], change)
        return True

    def _write(self, resource: Resource, metadata: Object, kind: str, reason: str, message: str) -> Key:
        namespace = metadata.get("namespace") or "default"
        now = self._registry.now()
        about: Object = {"kind": resource.kind, "apiVersion": resource.api_version, "name": metadata["name"]}
        for field in ("namespace", "uid", "resourceVersion"):
            if metadata.get(field):
                about[field] = metadata[field]
        event = {
            "metadata": {"name": self._registry.generated_name(metadata["name"] + ".")},
            "involvedObject": clone(about),
            "reason": reason,
            "message": message,
            "source": {"component": self._component},
            "reportingComponent": self._component,
            "firstTimestamp": now,
            "lastTimestamp": now,
            "count": 1,
            "type": kind,
        }
        made = self._registry.create(kinds.EVENTS, namespace, event)
        key = (namespace, str(made["metadata"]["name"]))
        self._written.append(key)
        while len(self._written) > LIMIT:
            old = self._written.popleft()
            if self._registry.find(kinds.EVENTS, *old) is not None:
                self._registry.delete(kinds.EVENTS, *old)
        return key
