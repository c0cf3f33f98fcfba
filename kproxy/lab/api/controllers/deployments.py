"""Deployments: a ReplicaSet per pod template, and the rolling from one to the next.

What comes in: Deployments and the ReplicaSets they own. What comes out: ReplicaSets with the right numbers, and the Deployment's status.
The arithmetic of a rolling update is that of the real controller: never more pods than replicas + maxSurge, never fewer available than
replicas - maxUnavailable. A Deployment that makes no progress within progressDeadlineSeconds says so.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from kproxy.lab.api import kinds, scaling
from kproxy.lab.api.controllers import pods
from kproxy.lab.api.controllers.events import Recorder
from kproxy.lab.api.controllers.index import Index
from kproxy.lab.api.controllers.owners import controller_reference, is_controlled_by, owner_reference
from kproxy.lab.api.kinds import Resource
from kproxy.lab.api.registry import Registry
from kproxy.lab.api.store import Change, Key
from kproxy.lab.api.values import Object, annotations_of, clone, dig, encode, is_terminating, parse_timestamp

HASH_LABEL = "pod-template-hash"
REVISION = "deployment.kubernetes.io/revision"
DESIRED = "deployment.kubernetes.io/desired-replicas"
MAXIMUM = "deployment.kubernetes.io/max-replicas"
_LETTERS = "bcdfghjklmnpqrstvwxz2456789"


def template_hash(template: Object) -> str:
    """A short name for a pod template: FNV-1a over its JSON, in letters that are safe in names."""
    number = 0x811C9DC5
    for byte in encode(_sorted(template)):
        number = ((number ^ byte) * 0x01000193) & 0xFFFFFFFF
    return "".join(_LETTERS[ord(digit) % len(_LETTERS)] for digit in str(number))


def _sorted(value: object) -> object:
    if isinstance(value, dict):
        return {key: _sorted(value[key]) for key in sorted(value)}
    return [_sorted(item) for item in value] if isinstance(value, list) else value


def resolve_share(value: object, total: int, *, round_up: bool) -> int:
    """A number, or a share of `total` written as `25%`."""
    if isinstance(value, str) and value.endswith("%"):
        share = total * int(value[:-1]) / 100
        return math.ceil(share) if round_up else math.floor(share)
    return int(value) if isinstance(value, (int, str)) else 0


@dataclass(frozen=True, slots=True)
class Limits:
    """How far a rolling update may go."""

    surge: int
    unavailable: int


def limits_of(deployment: Object) -> Limits:
    """maxSurge rounds up, maxUnavailable down; both 0 would never move, so one pod may be missing then."""
    total = int(deployment["spec"]["replicas"])
    rolling = dig(deployment, "spec", "strategy", "rollingUpdate", default={})
    if dig(deployment, "spec", "strategy", "type") == "Recreate":
        return Limits(0, total)
    surge = resolve_share(rolling.get("maxSurge", "25%"), total, round_up=True)
    unavailable = resolve_share(rolling.get("maxUnavailable", "25%"), total, round_up=False)
    if surge == 0 and unavailable == 0:
        unavailable = 1
    return Limits(surge, min(unavailable, total))


def replicas(replica_set: Object) -> int:
    """How many pods a ReplicaSet is to have."""
    return int(dig(replica_set, "spec", "replicas", default=0))


def available(replica_set: Object) -> int:
    """How many of them are available."""
    return int(dig(replica_set, "status", "availableReplicas", default=0))


def revision(obj: Object) -> int:
    """The revision a ReplicaSet stands for."""
    text = annotations_of(obj).get(REVISION, "0")
    return int(text) if text.isdigit() else 0


def same_template(deployment: Object, replica_set: Object) -> bool:
    """Whether a ReplicaSet runs the Deployment's present template."""
    template = clone(dig(replica_set, "spec", "template", default={}))
    (dig(template, "metadata", "labels", default={})).pop(HASH_LABEL, None)
    wanted = clone(dig(deployment, "spec", "template", default={}))
    (dig(wanted, "metadata", "labels", default={})).pop(HASH_LABEL, None)
    return bool(template == wanted)


class DeploymentController:
    """The controller of Deployments."""

    def __init__(self, registry: Registry, index: Index, recorder: Recorder) -> None:
        self._registry = registry
        self._index = index
        self._recorder = recorder

    def concerned(self, resource: Resource, change: Change) -> Iterable[Key]:
        """The Deployment; the owner of a ReplicaSet; the owners of a pod that goes, for Recreate waits for that."""
        if resource is kinds.DEPLOYMENTS:
            return (change.record.key,)
        namespace = change.record.key[0]
        if resource is kinds.REPLICA_SETS:
            reference = controller_reference(change.record.object)
            return ((namespace, reference["name"]),) if reference and reference["kind"] == "Deployment" else ()
        if resource is kinds.PODS and change.type == "DELETED":
            return [r.key for r in self._registry.store.records(kinds.DEPLOYMENTS, namespace)]
        return ()

    def reconcile(self, key: Key) -> float | None:
        """One step of a rollout, then the status."""
        deployment = self._registry.find(kinds.DEPLOYMENTS, *key)
        if deployment is None:
            return None
        if not is_terminating(deployment):
            new, old = self._sets(deployment)
            if not dig(deployment, "spec", "paused"):
                new = self._ensure_new(deployment, new, old)
            if new is not None:
                self._roll(deployment, new, old)
                self._forget_history(deployment, self._sets(deployment)[1])
        return self._report(key)

    def _owned(self, deployment: Object) -> list[Object]:
        sets = self._registry.objects(kinds.REPLICA_SETS, deployment["metadata"]["namespace"])
        return [item for item in sets if is_controlled_by(item, deployment)]

    def _sets(self, deployment: Object) -> tuple[Object | None, list[Object]]:
        owned = sorted(
            self._owned(deployment), key=lambda item: (str(item["metadata"]["creationTimestamp"]), revision(item))
        )
        new = next((item for item in owned if same_template(deployment, item)), None)
        return new, [item for item in owned if item is not new]

    # the new ReplicaSet

    def _ensure_new(self, deployment: Object, new: Object | None, old: list[Object]) -> Object:
        wanted = max((revision(item) for item in old), default=0) + 1
        if new is None:
            new = self._make(deployment, wanted, old)
        elif revision(new) < wanted:
            new = self._annotate(new, {REVISION: str(wanted)})
        if annotations_of(deployment).get(REVISION) != annotations_of(new).get(REVISION):
            self._set_revision(deployment, annotations_of(new).get(REVISION, "1"))
        return new

    def _make(self, deployment: Object, number: int, old: list[Object]) -> Object:
        template = clone(deployment["spec"]["template"])
        name_hash = template_hash(template)
        template["metadata"].setdefault("labels", {})[HASH_LABEL] = name_hash
        selector = clone(deployment["spec"]["selector"])
        selector.setdefault("matchLabels", {})[HASH_LABEL] = name_hash
        metadata = deployment["metadata"]
        applied = "kubectl.kubernetes.io/last-applied-configuration"
        annotations = {k: v for k, v in annotations_of(deployment).items() if k not in (applied, REVISION)}
        annotations[REVISION] = str(number)
        replica_set = {
            "metadata": {
                "name": f"{metadata['name']}-{name_hash}",
                "labels": dict(template["metadata"]["labels"]),
                "annotations": {**annotations, **self._size_notes(deployment)},
                "ownerReferences": [owner_reference(kinds.DEPLOYMENTS, deployment)],
            },
            "spec": {"replicas": self._first_size(deployment, old), "selector": selector, "template": template},
        }
        if dig(deployment, "spec", "minReadySeconds"):
            replica_set["spec"]["minReadySeconds"] = deployment["spec"]["minReadySeconds"]
        made = self._registry.create(kinds.REPLICA_SETS, metadata["namespace"], replica_set)
        size = replicas(made)
        if size:
            self._say(deployment, f"Scaled up replica set {made['metadata']['name']} from 0 to {size}")
        return made

    def _size_notes(self, deployment: Object) -> dict[str, str]:
        total = int(deployment["spec"]["replicas"])
        return {DESIRED: str(total), MAXIMUM: str(total + limits_of(deployment).surge)}

    def _first_size(self, deployment: Object, old: list[Object]) -> int:
        total = int(deployment["spec"]["replicas"])
        running = sum(replicas(item) for item in old)
        if dig(deployment, "spec", "strategy", "type") == "Recreate":
            return 0 if running or self._old_pods(old) else total
        return max(0, min(total, total + limits_of(deployment).surge - running))

    def _annotate(self, replica_set: Object, notes: dict[str, str]) -> Object:
        def change(copy: Object) -> Object:
            copy["metadata"]["annotations"] = {**annotations_of(copy), **notes}
            return copy

        metadata = replica_set["metadata"]
        return self._registry.update(kinds.REPLICA_SETS, metadata["namespace"], metadata["name"], change)

    def _set_revision(self, deployment: Object, number: str) -> None:
        def change(copy: Object) -> Object:
            copy["metadata"]["annotations"] = {**annotations_of(copy), REVISION: number}
            return copy

        metadata = deployment["metadata"]
        self._registry.update(kinds.DEPLOYMENTS, metadata["namespace"], metadata["name"], change)

    # rolling

    def _roll(self, deployment: Object, new: Object, old: list[Object]) -> None:
        total = int(deployment["spec"]["replicas"])
        paused = bool(dig(deployment, "spec", "paused"))
        running = [item for item in old if replicas(item)]
        if not running and not self._must_wait(deployment, old):
            self._scale(deployment, new, total)
        elif paused:
            return
        elif dig(deployment, "spec", "strategy", "type") == "Recreate":
            for item in running:
                self._scale(deployment, item, 0)
        else:
            self._roll_up(deployment, new, running, total)
            self._roll_down(deployment, running, total)

    def _must_wait(self, deployment: Object, old: list[Object]) -> bool:
        recreate = dig(deployment, "spec", "strategy", "type") == "Recreate"
        return recreate and self._old_pods(old)

    def _old_pods(self, old: list[Object]) -> bool:
        return any(not pods.has_ended(pod) for item in old for pod in self._index.pods_owned(item))

    def _roll_up(self, deployment: Object, new: Object, running: list[Object], total: int) -> None:
        if replicas(new) > total:
            self._scale(deployment, new, total)
            return
        room = total + limits_of(deployment).surge - replicas(new) - sum(replicas(item) for item in running)
        if room > 0 and replicas(new) < total:
            self._scale(deployment, new, min(total, replicas(new) + room))

    def _roll_down(self, deployment: Object, running: list[Object], total: int) -> None:
        new = self._sets(deployment)[0]
        if new is None:
            return
        least = total - limits_of(deployment).unavailable
        everything = replicas(new) + sum(replicas(item) for item in running)
        spare = everything - least - (replicas(new) - available(new))
        for item in running:  # first those that are of no use anyway
            useless = replicas(item) - available(item)
            step = min(useless, spare)
            if step > 0:
                self._scale(deployment, item, replicas(item) - step)
                spare -= step
        current = [
            self._registry.find(kinds.REPLICA_SETS, i["metadata"]["namespace"], i["metadata"]["name"]) for i in running
        ]
        spare = available(new) + sum(min(available(i), replicas(i)) for i in current if i) - least
        for item in filter(None, current):
            step = min(replicas(item), spare)
            if step > 0:
                self._scale(deployment, item, replicas(item) - step)
                spare -= step

    def _scale(self, deployment: Object, replica_set: Object, size: int) -> None:
        before = replicas(replica_set)
        notes = self._size_notes(deployment)
        if before == size and notes.items() <= annotations_of(replica_set).items():
            return

        def change(copy: Object) -> Object:
            copy["spec"]["replicas"] = size
            copy["metadata"]["annotations"] = {**annotations_of(copy), **notes}
            return copy

        metadata = replica_set["metadata"]
        self._registry.update(kinds.REPLICA_SETS, metadata["namespace"], metadata["name"], change)
        if before != size:
            way = "up" if size > before else "down"
            self._say(deployment, f"Scaled {way} replica set {metadata['name']} from {before} to {size}")

    def _forget_history(self, deployment: Object, old: list[Object]) -> None:
        kept = int(dig(deployment, "spec", "revisionHistoryLimit", default=10))
        empty = [item for item in old if not replicas(item) and not dig(item, "status", "replicas")]
        for item in sorted(empty, key=revision)[: max(0, len(empty) - kept)]:
            self._registry.delete(kinds.REPLICA_SETS, item["metadata"]["namespace"], item["metadata"]["name"])

    def _say(self, deployment: Object, message: str) -> None:
        self._recorder.record(kinds.DEPLOYMENTS, deployment, "Normal", "ScalingReplicaSet", message)

    # status

    def _report(self, key: Key) -> float | None:
        deployment = self._registry.find(kinds.DEPLOYMENTS, *key)
        if deployment is None:
            return None
        new, old = self._sets(deployment)
        everything = [*old, new] if new is not None else old
        total = int(deployment["spec"]["replicas"])
        counts = {
            "replicas": sum(dig(item, "status", "replicas", default=0) for item in everything),
            "updatedReplicas": dig(new, "status", "replicas", default=0),
            "readyReplicas": sum(dig(item, "status", "readyReplicas", default=0) for item in everything),
            "availableReplicas": sum(available(item) for item in everything),
        }
        counts["unavailableReplicas"] = max(0, total - counts["availableReplicas"])
        status = {name: count for name, count in counts.items() if count}
        status["observedGeneration"] = deployment["metadata"].get("generation", 1)
        now = self._registry.now()
        again: list[float] = []

        def change(copy: Object) -> Object:
            conditions = dig(copy, "status", "conditions", default=[])
            progressed = any(dig(copy, "status", name, default=0) != count for name, count in counts.items())
            copy["status"] = {**status, "conditions": conditions}
            self._set_available(copy, counts["availableReplicas"], now)
            again.extend(self._set_progressing(copy, new, counts, progressed=progressed))
            return copy

        self._registry.update(kinds.DEPLOYMENTS, key[0], key[1], change, subresource="status")
        return again[0] if again else None

    def _set_available(self, deployment: Object, count: int, now: str) -> None:
        total = int(deployment["spec"]["replicas"])
        enough = count >= total - limits_of(deployment).unavailable
        condition = {
            "type": "Available",
            "status": "True" if enough else "False",
            "reason": "MinimumReplicasAvailable" if enough else "MinimumReplicasUnavailable",
            "message": f"Deployment {'has' if enough else 'does not have'} minimum availability.",
        }
        _put(deployment, condition, now)

    def _set_progressing(
        self, deployment: Object, new: Object | None, counts: dict[str, int], *, progressed: bool
    ) -> list[float]:
        """Set the condition; returns the seconds until the deadline, when there is one to watch."""
        if new is None:
            return []
        now = self._registry.now()
        total = int(deployment["spec"]["replicas"])
        name = f'ReplicaSet "{new["metadata"]["name"]}"'
        condition = {"type": "Progressing", "status": "True"}
        known = pods.condition(deployment, "Progressing")
        if counts["updatedReplicas"] == counts["replicas"] == counts["availableReplicas"] == total:
            condition |= {"reason": "NewReplicaSetAvailable", "message": f"{name} has successfully progressed."}
            _put(deployment, condition, now)
            return []
        if known is None or progressed or known.get("reason") == "NewReplicaSetAvailable":
            condition |= {"reason": "ReplicaSetUpdated", "message": f"{name} is progressing."}
            _put(deployment, condition, now, refresh=True)
            known = pods.condition(deployment, "Progressing")
        deadline = float(deployment["spec"].get("progressDeadlineSeconds", 600))
        since = parse_timestamp((known or {}).get("lastUpdateTime")) or self._registry.clock()
        left = since + deadline - self._registry.clock()
        if left > 0:
            return [left]
        failed = {"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded"}
        _put(deployment, failed | {"message": f"{name} has timed out progressing."}, now)
        return []


def _put(deployment: Object, condition: Object, now: str, *, refresh: bool = False) -> None:
    """Set a condition; lastUpdateTime changes with reason or message, or when asked to."""
    known = pods.condition(deployment, condition["type"])
    same = known is not None and all(known.get(field) == condition[field] for field in ("status", "reason", "message"))
    moment = known["lastUpdateTime"] if known is not None and same and not refresh else now
    scaling.set_condition(deployment, {**condition, "lastUpdateTime": moment}, now)
