"""ReplicaSets and ReplicationControllers: as many pods as wanted."""

from __future__ import annotations

from collections.abc import Iterable

from kproxy.lab.api import kinds
from kproxy.lab.api.controllers import pods
from kproxy.lab.api.controllers.events import Recorder
from kproxy.lab.api.controllers.index import Index
from kproxy.lab.api.controllers.owners import controller_reference, is_controlled_by, owner_reference
from kproxy.lab.api.kinds import Resource
from kproxy.lab.api.registry import Registry
from kproxy.lab.api.selectors import Requirements, label_selector, map_selector, matches_labels
from kproxy.lab.api.store import Change, Key
from kproxy.lab.api.values import Object, clone, dig, is_terminating, labels_of, parse_timestamp

BURST = 500  # pods made or deleted in one step, as in the real controller


class ReplicaController:
    """The controller of one of the two kinds."""

    def __init__(self, registry: Registry, index: Index, resource: Resource, recorder: Recorder) -> None:
        self._registry = registry
        self._index = index
        self._resource = resource
        self._recorder = recorder

    def concerned(self, resource: Resource, change: Change) -> Iterable[Key]:
        """The set itself, the set a pod belongs to, or all sets of the namespace for a pod that belongs to none."""
        if resource is self._resource:
            return (change.record.key,)
        if resource is not kinds.PODS:
            return ()
        pod = change.record.object
        reference = controller_reference(pod)
        if reference is not None:
            return ((change.record.key[0], reference["name"]),) if reference["kind"] == self._resource.kind else ()
        return [record.key for record in self._registry.store.records(self._resource, change.record.key[0])]

    def selector(self, owner: Object) -> Requirements:
        """What selects the pods of a set."""
        selector = dig(owner, "spec", "selector", default={})
        return map_selector(selector) if self._resource is kinds.REPLICATION_CONTROLLERS else label_selector(selector)

    def reconcile(self, key: Key) -> float | None:
        """Make or delete pods, then report."""
        owner = self._registry.find(self._resource, *key)
        if owner is None:
            return None
        mine = self._claim(owner)
        active = [pod for pod in mine if pods.is_active(pod)]
        if not is_terminating(owner):
            wanted = int(dig(owner, "spec", "replicas", default=0))
            for _ in range(min(wanted - len(active), BURST)):
                self._make_pod(owner)
            for pod in surplus(active, min(len(active) - wanted, BURST)):
                self._registry.delete(kinds.PODS, key[0], pod["metadata"]["name"])
                self._say(owner, "SuccessfulDelete", f"Deleted pod: {pod['metadata']['name']}")
        return self._report(key)

    def _claim(self, owner: Object) -> list[Object]:
        """The pods of a set, after adopting those that are selected and belong to nobody."""
        selector = self.selector(owner)
        mine = []
        for pod in self._candidates(owner):
            selected = matches_labels(selector, labels_of(pod))
            free = controller_reference(pod) is None and pods.is_active(pod) and not is_terminating(owner)
            if is_controlled_by(pod, owner):
                if selected:
                    mine.append(pod)
                elif pods.is_active(pod):
                    self._release(pod, owner)
            elif selected and free:
                mine.append(self._adopt(pod, owner))
        return mine

    def _candidates(self, owner: Object) -> list[Object]:
        """The pods that are ours, and those that may be: found by the plain part of the selector where it has one."""
        selector = dig(owner, "spec", "selector", default={})
        plain = selector if self._resource is kinds.REPLICATION_CONTROLLERS else selector.get("matchLabels")
        namespace = owner["metadata"]["namespace"]
        if not plain:
            return self._registry.objects(kinds.PODS, namespace)
        found = {pod["metadata"]["uid"]: pod for pod in self._index.pods_owned(owner)}
        found.update((pod["metadata"]["uid"], pod) for pod in self._index.pods_selected(namespace, plain))
        return list(found.values())

    def _adopt(self, pod: Object, owner: Object) -> Object:
        def change(copy: Object) -> Object:
            copy["metadata"].setdefault("ownerReferences", []).append(owner_reference(self._resource, owner))
            return copy

        return self._registry.update(kinds.PODS, pod["metadata"]["namespace"], pod["metadata"]["name"], change)

    def _release(self, pod: Object, owner: Object) -> None:
        """A pod whose labels were changed leaves the set: it goes on running, and belongs to nobody."""
        uid = owner["metadata"]["uid"]

        def change(copy: Object) -> Object:
            references = [r for r in copy["metadata"]["ownerReferences"] if r["uid"] != uid]
            copy["metadata"]["ownerReferences"] = references
            return copy

        self._registry.update(kinds.PODS, pod["metadata"]["namespace"], pod["metadata"]["name"], change)

    def _make_pod(self, owner: Object) -> None:
        template = clone(owner["spec"]["template"])
        metadata: Object = {
            "generateName": owner["metadata"]["name"] + "-",
            "ownerReferences": [owner_reference(self._resource, owner)],
        }
        for field in ("labels", "annotations", "finalizers"):
            if dig(template, "metadata", field):
                metadata[field] = template["metadata"][field]
        pod = self._registry.create(
            kinds.PODS, owner["metadata"]["namespace"], {"metadata": metadata, "spec": template.get("spec") or {}}
        )
        self._say(owner, "SuccessfulCreate", f"Created pod: {pod['metadata']['name']}")

    def _say(self, owner: Object, reason: str, message: str) -> None:
        self._recorder.record(self._resource, owner, "Normal", reason, message)

    def _report(self, key: Key) -> float | None:
        owner = self._registry.find(self._resource, *key)
        if owner is None:
            return None
        now = self._registry.clock()
        min_ready_s = int(dig(owner, "spec", "minReadySeconds", default=0))
        labels = dig(owner, "spec", "template", "metadata", "labels", default={}).items()
        mine = [pod for pod in self._index.pods_owned(owner) if pods.is_active(pod)]
        ready = [pod for pod in mine if pods.is_ready(pod)]
        available = [pod for pod in ready if pods.is_available(pod, min_ready_s, now)]
        counts = {
            "replicas": len(mine),
            "fullyLabeledReplicas": sum(1 for pod in mine if labels <= labels_of(pod).items()),
            "readyReplicas": len(ready),
            "availableReplicas": len(available),
        }
        status: Object = {name: count for name, count in counts.items() if count or name == "replicas"}
        status["observedGeneration"] = owner["metadata"].get("generation", 1)

        def change(copy: Object) -> Object:
            conditions = dig(copy, "status", "conditions")
            copy["status"] = {**status, "conditions": conditions} if conditions else status
            return copy

        self._registry.update(self._resource, key[0], key[1], change, subresource="status")
        return float(min_ready_s) if len(available) < len(ready) else None


def surplus(active: list[Object], count: int) -> list[Object]:
    """Which pods go first: without a node, not running, not ready, the youngest."""
    if count <= 0:
        return []

    def rank(pod: Object) -> tuple[bool, bool, bool, float]:
        created = parse_timestamp(pod["metadata"].get("creationTimestamp")) or 0.0
        has_node = bool(dig(pod, "spec", "nodeName"))
        return has_node, dig(pod, "status", "phase") == "Running", pods.is_ready(pod), -created

    return sorted(active, key=rank)[:count]
