"""What the server does to every kind on its way in, and the hooks a kind may fill.

What comes in: an object as a client sent it, pruned and with its apiVersion and kind set. The registry calls, in the order of
kube-apiserver: `default`, then `begin` (addresses and ports are taken here, before validation, as there), `prepare_create` or
`prepare_update`, `validate`. What must not happen here: writing to the store.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from kproxy.lab.api.fields import FieldErrors, check_labels, qualified_name_problems, quoted, subdomain_problems
from kproxy.lab.api.kinds import Resource
from kproxy.lab.api.status import ApiError
from kproxy.lab.api.values import Object, dig

ANNOTATIONS_LIMIT = 256 * 1024  # bytes of all keys and values together


class Transaction(Protocol):
    """What `begin` took, to be kept or given back."""

    def commit(self) -> None:
        """The write happened."""

    def revert(self) -> None:
        """The write did not happen."""


class NoTransaction:
    """Nothing was taken."""

    def commit(self) -> None:
        """Nothing to keep."""

    def revert(self) -> None:
        """Nothing to give back."""


@dataclass(frozen=True, slots=True)
class DeleteOptions:
    """The parts of DeleteOptions that change what happens."""

    grace_period_s: int | None = None
    propagation: str = ""  # Background, Foreground, Orphan; "" is the kind's default
    uid: str = ""
    resource_version: str = ""
    dry_run: bool = False


class Strategy:
    """One kind's rules; this class is the whole rule book of kinds without any."""

    create_on_update = False  # PUT of a missing object creates it
    unconditional_update = True  # PUT without resourceVersion overwrites
    default_propagation = "Background"
    returns_deleted = False  # the answer to a delete is the object, not a Status

    def __init__(self, resource: Resource) -> None:
        self.resource = resource

    def default(self, obj: Object) -> None:
        """Fill in what the client left out; runs on create, update and patch."""

    def begin(self, new: Object, old: Object | None, *, dry_run: bool) -> Transaction:
        """Take what the object needs from the cluster's pools."""
        return NoTransaction()

    def prepare_create(self, obj: Object) -> None:
        """Remove what only the system may set."""
        if self.resource.has_status:
            obj["status"] = {}

    def prepare_update(self, new: Object, old: Object) -> None:
        """Keep what an update of the main resource may not change."""
        if self.resource.has_status:
            keep(new, old, "status")

    def prepare_status(self, new: Object, old: Object) -> None:
        """Keep what an update of the status may not change."""
        keep(new, old, "spec")

    def validate(self, new: Object, old: Object | None, errors: FieldErrors) -> None:
        """Report what is wrong with the object, or with the change from `old`."""

    def name_problems(self, name: str) -> list[str]:
        """Why a name cannot be a name of this kind."""
        return subdomain_problems(name)

    def asked(self, obj: Object) -> object:
        """What the user asked for: `metadata.generation` counts its changes."""
        return obj.get("spec")

    def grace_period_s(self, obj: Object, options: DeleteOptions) -> int | None:
        """Seconds between a delete and the object's end; None for kinds that end at once."""
        return None

    def mark_deleted(self, obj: Object) -> None:
        """What else changes when deletion begins."""

    def blocks_removal(self, obj: Object) -> bool:
        """Whether something besides metadata.finalizers keeps a deleted object."""
        return False

    def after_delete(self, obj: Object) -> None:
        """The object is gone: give back what it held."""

    def warnings(self, new: Object, old: Object | None) -> list[str]:
        """What the client should be told although it is allowed."""
        return []


def keep(new: Object, old: Object, field: str) -> None:
    """Make one top-level field of `new` that of `old`."""
    if field in old:
        new[field] = old[field]
    else:
        new.pop(field, None)


def check_metadata(strategy: Strategy, obj: Object, errors: FieldErrors) -> None:
    """The checks of object metadata on create (ValidateObjectMeta)."""
    metadata = obj["metadata"]
    generate = metadata.get("generateName")
    if generate:
        # A prefix may end in a dash: what follows it makes the name legal.
        for problem in strategy.name_problems(generate.rstrip("-") + "a" if generate.endswith("-") else generate):
            errors.invalid("metadata.generateName", generate, problem)
    name = metadata.get("name")
    if not name:
        errors.required("metadata.name", "name or generateName is required")
    else:
        for problem in strategy.name_problems(name):
            errors.invalid("metadata.name", name, problem)
    check_common_metadata(metadata, errors)


def check_common_metadata(metadata: Object, errors: FieldErrors) -> None:
    """Labels, annotations, owner references and finalizers; on create and update."""
    check_labels(errors, "metadata.labels", metadata.get("labels"))
    total = 0
    for key, value in (metadata.get("annotations") or {}).items():
        for problem in qualified_name_problems(key.lower()):
            errors.invalid("metadata.annotations", key, problem)
        total += len(key.encode()) + len(str(value).encode())
    if total > ANNOTATIONS_LIMIT:
        errors.too_long("metadata.annotations", ANNOTATIONS_LIMIT)
    controllers = 0
    for reference in metadata.get("ownerReferences") or ():
        for field in ("apiVersion", "kind", "name", "uid"):
            if not reference.get(field):
                path = f"metadata.ownerReferences.{field}"
                errors.invalid(path, reference.get(field, ""), f"{_OWNER_WORDS[field]} must not be empty")
        controllers += bool(reference.get("controller"))
    if controllers > 1:
        errors.invalid(
            "metadata.ownerReferences",
            metadata["ownerReferences"],
            "Only one reference can have Controller set to true.",
        )
    for finalizer in metadata.get("finalizers") or ():
        for problem in qualified_name_problems(finalizer):
            errors.invalid("metadata.finalizers", finalizer, problem)


_OWNER_WORDS = {"apiVersion": "version", "kind": "kind", "name": "name", "uid": "uid"}


def check_metadata_update(new: Object, old: Object, errors: FieldErrors) -> None:
    """The checks of object metadata on update (ValidateObjectMetaUpdate)."""
    before, after = old["metadata"], new["metadata"]
    if before.get("deletionTimestamp"):
        added = [item for item in after.get("finalizers") or () if item not in (before.get("finalizers") or ())]
        if added:
            listed = "[]string{" + ", ".join(map(quoted, added)) + "}"
            detail = f"no new finalizers can be added if the object is being deleted, found new finalizers {listed}"
            errors.forbidden("metadata.finalizers", detail)
    for field in ("name", "namespace", "uid", "creationTimestamp", "deletionTimestamp"):
        immutable(errors, f"metadata.{field}", after.get(field), before.get(field))
    check_common_metadata(after, errors)


def immutable(errors: FieldErrors, path: str, new: object, old: object) -> None:
    """A field that may not change."""
    if new != old:
        errors.invalid(path, new, "field is immutable")


def check_enum(errors: FieldErrors, path: str, value: object, supported: tuple[str, ...]) -> None:
    """A field that is one of a few words; absent values are the caller's business."""
    if value is not None and value not in supported:
        errors.not_supported(path, value, supported)


def spec_of(obj: Object) -> Object:
    """`spec`, made when absent."""
    spec: Object = obj.setdefault("spec", {})
    return spec


def status_of(obj: Object) -> Object:
    """`status`, made when absent."""
    status: Object = obj.setdefault("status", {})
    return status


def number(obj: Object, *path: str) -> int:
    """An integer field, 0 when absent."""
    value = dig(obj, *path, default=0)
    return int(value) if isinstance(value, (int, float)) else 0


Refusal = Callable[[str], ApiError]
