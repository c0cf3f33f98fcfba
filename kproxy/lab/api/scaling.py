"""The subresources with objects of their own: scale, binding, finalize."""

from __future__ import annotations

from kproxy.lab.api import kinds
from kproxy.lab.api.fields import FieldErrors
from kproxy.lab.api.kinds import Resource
from kproxy.lab.api.registry import Registry, WriteOptions
from kproxy.lab.api.selectors import label_selector, map_selector, selector_text
from kproxy.lab.api.status import bad_request, conflict, invalid
from kproxy.lab.api.values import Object, dig


def scale_of(resource: Resource, obj: Object) -> Object:
    """The Scale of a workload."""
    selector = dig(obj, "spec", "selector", default={})
    terms = map_selector(selector) if resource is kinds.REPLICATION_CONTROLLERS else label_selector(selector)
    metadata = {
        key: obj["metadata"][key]
        for key in ("name", "namespace", "uid", "resourceVersion", "creationTimestamp")
        if key in obj["metadata"]
    }
    status: Object = {"replicas": dig(obj, "status", "replicas", default=0)}
    if terms:
        status["selector"] = selector_text(terms)
    spec = {"replicas": dig(obj, "spec", "replicas", default=0)}
    return {"kind": "Scale", "apiVersion": "autoscaling/v1", "metadata": metadata, "spec": spec, "status": status}


def set_scale(
    registry: Registry, resource: Resource, namespace: str, name: str, scale: Object, options: WriteOptions
) -> Object:
    """Set a workload's replicas; returns the new Scale."""
    replicas = dig(scale, "spec", "replicas", default=0)
    if replicas < 0:
        errors = FieldErrors()
        errors.invalid("spec.replicas", replicas, "must be greater than or equal to 0")
        raise invalid("autoscaling", "Scale", name, errors)

    def change(obj: Object) -> Object:
        obj["spec"]["replicas"] = replicas
        version = dig(scale, "metadata", "resourceVersion")
        if version:
            obj["metadata"]["resourceVersion"] = version
        return obj

    return scale_of(resource, registry.update(resource, namespace, name, change, options))


def bind(registry: Registry, namespace: str, name: str, binding: Object) -> None:
    """Give a pod its node."""
    node = dig(binding, "target", "name", default="")
    if not node or dig(binding, "target", "kind", default="Node") not in ("", "Node"):
        raise bad_request("a binding needs a node as its target")

    def change(pod: Object) -> Object:
        if dig(pod, "metadata", "deletionTimestamp"):
            raise conflict(kinds.PODS, name, f"pod {name} is being deleted, cannot be assigned to a host")
        bound = dig(pod, "spec", "nodeName", default="")
        if bound:
            raise conflict(kinds.PODS, name, f"pod {name} is already assigned to node {quote(bound)}")
        pod["spec"]["nodeName"] = node
        set_condition(pod, {"type": "PodScheduled", "status": "True"}, registry.now())
        return pod

    registry.update(kinds.PODS, namespace, name, change, subresource="binding")


def quote(text: str) -> str:
    """A text in double quotes."""
    return f'"{text}"'


def set_condition(obj: Object, condition: Object, now: str) -> None:
    """Put a condition into status.conditions; its transition time changes when its status does."""
    conditions = obj.setdefault("status", {}).setdefault("conditions", [])
    for position, old in enumerate(conditions):
        if old.get("type") == condition["type"]:
            changed = old.get("status") != condition["status"]
            moment = now if changed else old.get("lastTransitionTime", now)
            conditions[position] = {**condition, "lastTransitionTime": moment}
            return
    conditions.append({**condition, "lastTransitionTime": now})


def finalize(registry: Registry, name: str, finalizers: list[str]) -> Object:
    """Set a namespace's spec.finalizers; the namespace goes when none is left."""

    def change(namespace: Object) -> Object:
        namespace["spec"] = {"finalizers": list(finalizers)} if finalizers else {}
        return namespace

    return registry.update(kinds.NAMESPACES, "", name, change, subresource="finalize")
