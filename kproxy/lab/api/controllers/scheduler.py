"""The scheduler: gives every pod a node.

A node fits when it is Ready, not cordoned, bears the labels that nodeSelector and required node affinity ask for, and has no taint the
pod does not tolerate. Among those that fit, the one with the fewest pods of the same owner, then the fewest pods at all, then the first
by name: predictable, so that exercises look the same every time.
"""

from __future__ import annotations

from collections.abc import Iterable

from kproxy.lab.api import kinds, scaling
from kproxy.lab.api.controllers import pods
from kproxy.lab.api.controllers.events import Recorder
from kproxy.lab.api.controllers.index import Index
from kproxy.lab.api.controllers.owners import controller_reference
from kproxy.lab.api.kinds import Resource
from kproxy.lab.api.registry import Registry
from kproxy.lab.api.selectors import Requirement, matches_labels
from kproxy.lab.api.store import Change, Key
from kproxy.lab.api.values import Object, dig, is_terminating, labels_of

NAME = "default-scheduler"


class Scheduler:
    """The controller that binds pods."""

    def __init__(self, registry: Registry, index: Index, recorder: Recorder) -> None:
        self._registry = registry
        self._index = index
        self._recorder = recorder

    def concerned(self, resource: Resource, change: Change) -> Iterable[Key]:
        """A pod without a node; every such pod when a node changes."""
        if resource is kinds.PODS:
            return (change.record.key,) if waits(change.record.object) else ()
        if resource is kinds.NODES:
            return [record.key for record in self._registry.store.records(kinds.PODS) if waits(record.object)]
        return ()

    def reconcile(self, key: Key) -> None:
        """Bind one pod, or say why not."""
        pod = self._registry.find(kinds.PODS, *key)
        if pod is None or not waits(pod):
            return
        nodes = self._registry.objects(kinds.NODES)
        reasons = {node["metadata"]["name"]: misfit(pod, node) for node in nodes}
        fitting = [name for name, reason in reasons.items() if not reason]
        if not fitting:
            self._report_unschedulable(pod, list(reasons.values()))
            return
        node = self._emptiest(pod, fitting)
        scaling.bind(self._registry, key[0], key[1], {"target": {"kind": "Node", "name": node}})
        message = f"Successfully assigned {key[0]}/{key[1]} to {node}"
        self._recorder.record(kinds.PODS, pod, "Normal", "Scheduled", message)

    def _emptiest(self, pod: Object, fitting: list[str]) -> str:
        owner = (controller_reference(pod) or {}).get("uid", "")
        return min(fitting, key=lambda name: (*self._index.load(name, owner), name))

    def _report_unschedulable(self, pod: Object, reasons: list[str]) -> None:
        listed = ", ".join(sorted(f"{reasons.count(reason)} {reason}" for reason in set(reasons)))
        message = (
            f"0/{len(reasons)} nodes are available: {listed}." if reasons else "no nodes available to schedule pods"
        )
        condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}

        def change(copy: Object) -> Object:
            scaling.set_condition(copy, condition, self._registry.now())
            return copy

        known = pods.condition(pod, "PodScheduled")
        if known is None or known.get("message") != message:
            self._registry.update(
                kinds.PODS, pod["metadata"]["namespace"], pod["metadata"]["name"], change, subresource="status"
            )
            self._recorder.record(kinds.PODS, pod, "Warning", "FailedScheduling", message)


def waits(pod: Object) -> bool:
    """Whether a pod is to be scheduled by us."""
    spec = pod.get("spec") or {}
    if spec.get("nodeName") or is_terminating(pod) or pods.has_ended(pod) or spec.get("schedulingGates"):
        return False
    return bool(spec.get("schedulerName", NAME) == NAME)


def misfit(pod: Object, node: Object) -> str:
    """Why a pod cannot run on a node, in the scheduler's words; "" when it can."""
    if dig(node, "spec", "unschedulable"):
        return "node(s) were unschedulable"
    ready = pods.condition(node, "Ready")
    if ready is None or ready.get("status") != "True":
        return "node(s) were not ready"
    labels = labels_of(node)
    selector = dig(pod, "spec", "nodeSelector", default={})
    if any(labels.get(key) != value for key, value in selector.items()) or not _meets_affinity(pod, node):
        return "node(s) didn't match Pod's node affinity/selector"
    for taint in dig(node, "spec", "taints", default=[]):
        if taint.get("effect") in ("NoSchedule", "NoExecute") and not _is_tolerated(taint, pod):
            return f"node(s) had untolerated taint(s) {{{taint.get('key')}: {taint.get('value', '')}}}"
    return ""


def _meets_affinity(pod: Object, node: Object) -> bool:
    required = dig(pod, "spec", "affinity", "nodeAffinity", "requiredDuringSchedulingIgnoredDuringExecution")
    if not required:
        return True
    fields = {"metadata.name": node["metadata"]["name"]}
    for term in required.get("nodeSelectorTerms") or ():
        by_label = [_requirement(item) for item in term.get("matchExpressions") or ()]
        by_field = [_requirement(item) for item in term.get("matchFields") or ()]
        fits = matches_labels(tuple(by_label), labels_of(node)) and matches_labels(tuple(by_field), fields)
        if fits and (by_label or by_field):
            return True
    return False


def _requirement(item: Object) -> Requirement:
    return Requirement(item.get("key", ""), item.get("operator", ""), frozenset(item.get("values") or ()))


def _is_tolerated(taint: Object, pod: Object) -> bool:
    for toleration in dig(pod, "spec", "tolerations", default=[]):
        if toleration.get("effect") not in (None, "", taint.get("effect")):
            continue
        if toleration.get("operator") == "Exists" and toleration.get("key") in (None, "", taint.get("key")):
            return True
        if toleration.get("key") == taint.get("key") and toleration.get("value", "") == taint.get("value", ""):
            return True
    return False
