"""Owner references: who made what."""

from __future__ import annotations

from kproxy.lab.api.kinds import Resource
from kproxy.lab.api.values import Object, dig


def owner_reference(resource: Resource, owner: Object) -> Object:
    """The reference that makes `owner` the controller of an object."""
    return {
        "apiVersion": resource.api_version,
        "kind": resource.kind,
        "name": owner["metadata"]["name"],
        "uid": owner["metadata"]["uid"],
        "controller": True,
        "blockOwnerDeletion": True,
    }


def controller_reference(obj: Object) -> Object | None:
    """The reference to an object's controller."""
    for reference in dig(obj, "metadata", "ownerReferences", default=[]):
        if reference.get("controller"):
            found: Object = reference
            return found
    return None


def is_controlled_by(obj: Object, owner: Object) -> bool:
    """Whether `owner` is the controller of `obj`."""
    reference = controller_reference(obj)
    return reference is not None and reference["uid"] == owner["metadata"]["uid"]
