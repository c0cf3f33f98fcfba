"""The verbs of the API on typed paths, without HTTP: create, read, update, patch, delete, and the few subresources that change things.

What comes in: objects as clients send them. What comes out: objects as stored, or ApiError. The order of the steps is kube-apiserver's
(k8s.io/apiserver pkg/registry at v0.36.3), because the order decides which of two errors a client sees. Controllers of the lab write
through this too. Clock and randomness are arguments; nothing here waits, so every verb is one transaction.
"""

from __future__ import annotations

import random
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field

from kproxy.lab.api import kinds
from kproxy.lab.api.fields import FieldErrors
from kproxy.lab.api.kinds import Resource
from kproxy.lab.api.managed import note_update
from kproxy.lab.api.objects.base import DeleteOptions, Strategy, check_metadata, check_metadata_update
from kproxy.lab.api.schema import structure_of
from kproxy.lab.api.selectors import Selection
from kproxy.lab.api.status import (
    ApiError,
    already_exists,
    bad_request,
    conflict,
    forbidden,
    invalid,
    modified,
    not_found,
    success,
)
from kproxy.lab.api.store import Record, Store
from kproxy.lab.api.values import Object, clone, dig, is_terminating, parse_timestamp, prune, timestamp

# k8s.io/apimachinery pkg/util/rand: no vowels (no words by accident), no characters that look alike.
_NAME_LETTERS = "bcdfghjklmnpqrstvwxz2456789"
_NAME_LIMIT = 63 - 5

ORPHAN = "orphan"
FOREGROUND = "foregroundDeletion"


@dataclass(frozen=True, slots=True)
class WriteOptions:
    """What a write request says besides the object."""

    dry_run: bool = False
    manager: str = ""  # field manager; "" for the lab's own controllers, whose fields are not tracked
    warnings: list[str] = field(default_factory=list)  # what the client should be told is added here


class Registry:
    """The cluster as its API sees it."""

    def __init__(
        self, store: Store, strategies: dict[str, Strategy], *, clock: Callable[[], float], randomness: random.Random
    ) -> None:
        self.store = store
        self.clock = clock
        self._strategies = strategies
        self._random = randomness

    def strategy(self, resource: Resource) -> Strategy:
        """The rules of one kind."""
        return self._strategies[resource.group_resource]

    def now(self) -> str:
        """The present as the API writes it."""
        return timestamp(self.clock())

    # reading

    def get(self, resource: Resource, namespace: str, name: str) -> Record:
        """One object. ApiError 404 when there is none."""
        record = self.store.get(resource, namespace, name)
        if record is None:
            raise not_found(resource, name)
        return record

    def find(self, resource: Resource, namespace: str, name: str) -> Object | None:
        """One object, or None. The object is the store's own: do not change it."""
        record = self.store.get(resource, namespace, name)
        return record.object if record else None

    def objects(self, resource: Resource, namespace: str = "") -> list[Object]:
        """All objects (of a namespace). They are the store's own: do not change them."""
        return [record.object for record in self.store.records(resource, namespace)]

    # writing

    def create(
        self,
        resource: Resource,
        namespace: str,
        obj: Object,
        options: WriteOptions = WriteOptions(),
        *,
        managed_fields: list[Object] | None = None,
    ) -> Object:
        """Store a new object; `obj` belongs to the registry from now on. managed_fields: those of a server-side apply."""
        strategy = self.strategy(resource)
        self._adopt(resource, namespace, prune(obj))
        self._check_namespace(resource, namespace, obj)
        self._fill_metadata(resource, obj)
        strategy.default(obj)
        # Before addresses and ports are filled in: nobody manages what the system chose.
        note_update(structure_of(resource), obj, None, options.manager, "", self.now())
        transaction = strategy.begin(obj, None, dry_run=options.dry_run)
        try:
            strategy.prepare_create(obj)
            if resource.has_generation:
                obj["metadata"]["generation"] = 1
            errors = FieldErrors()
            check_metadata(strategy, obj, errors)
            strategy.validate(obj, None, errors)
            metadata = obj["metadata"]
            if errors:
                raise invalid(resource.group, resource.kind, metadata.get("name", ""), errors)
            if self.store.get(resource, metadata.get("namespace", ""), metadata["name"]):
                raise already_exists(resource, metadata["name"])
        except BaseException:
            transaction.revert()
            raise
        transaction.commit()
        options.warnings.extend(strategy.warnings(obj, None))
        if managed_fields:
            obj["metadata"]["managedFields"] = managed_fields
        if options.dry_run:
            return obj
        return self.store.put(resource, obj).object

    def update(
        self,
        resource: Resource,
        namespace: str,
        name: str,
        change: Callable[[Object], Object],
        options: WriteOptions = WriteOptions(),
        *,
        subresource: str = "",
        tracked: bool = True,
    ) -> Object:
        """Replace an object by `change(copy of it)`.

        subresource "status" keeps everything but status and metadata; "binding" and "finalize" skip the kind's rules.
        A resourceVersion in the result must be the present one. tracked: whether managedFields are to be kept up here.
        """
        current = self.get(resource, namespace, name)
        old = current.object
        new: Object = prune(change(clone(old)))
        strategy = self.strategy(resource)
        self._adopt(resource, namespace, new)
        self._check_version(resource, name, new, old)
        strategy.default(new)
        self._keep_metadata(new, old)
        if tracked:
            note_update(structure_of(resource), new, old, options.manager, subresource, self.now())
        if subresource:
            # Binding and finalize are made by this server itself: there is nothing to keep from the old object.
            if subresource == "status":
                strategy.prepare_status(new, old)
            errors = FieldErrors()
            check_metadata_update(new, old, errors)
            if errors:
                raise invalid(resource.group, resource.kind, name, errors)
        else:
            self._validated_update(resource, strategy, new, old, options)
        if resource.has_generation and not subresource and strategy.asked(new) != strategy.asked(old):
            new["metadata"]["generation"] = dig(old, "metadata", "generation", default=0) + 1
        if new == old or options.dry_run:
            return new
        if self._ends(strategy, new):
            return self._remove(resource, new)
        return self.store.put(resource, new).object

    def delete(
        self,
        resource: Resource,
        namespace: str,
        name: str,
        options: DeleteOptions = DeleteOptions(),  # noqa: B008
    ) -> Object:
        """Delete an object, or begin to; returns what the real server answers: the object or a Status."""
        old = self.get(resource, namespace, name).object
        strategy = self.strategy(resource)
        metadata = old["metadata"]
        self._check_preconditions(resource, name, metadata, options)
        finalizers = self._finalizers(strategy, metadata, options)
        period = strategy.grace_period_s(old, options)
        if is_terminating(old) and period:
            pending = metadata.get("deletionGracePeriodSeconds") or 0
            if not pending or options.grace_period_s is None or period >= pending:
                return old
        if not period and not finalizers and not strategy.blocks_removal(old):
            if options.dry_run:
                return self._deleted(strategy, old)
            return self._deleted(strategy, self._remove(resource, old))
        new: Object = clone(old)
        self._mark(strategy, new, finalizers, period or 0)
        if new == old or options.dry_run:
            return new
        return self.store.put(resource, new).object

    def delete_collection(
        self, resource: Resource, namespace: str, selected: Selection, options: DeleteOptions
    ) -> list[Record]:
        """Delete every selected object; returns them as they were."""
        records = [
            r for r in self.store.snapshot(resource, namespace, self.store.revision) if selected.matches(r.object)
        ]
        for record in records:
            try:
                self.delete(resource, record.key[0], record.key[1], options)
            except ApiError as error:
                if error.code != 404:  # the deletion of another one took it along
                    raise
        return records

    # the steps

    def _adopt(self, resource: Resource, namespace: str, obj: Object) -> None:
        metadata = obj.setdefault("metadata", {})
        if not isinstance(metadata, dict):
            raise bad_request(
                f"{resource.kind} in version {resource.version} cannot be handled as a {resource.kind}: metadata is no map"
            )
        obj["apiVersion"], obj["kind"] = resource.api_version, resource.kind
        if not resource.namespaced:
            metadata.pop("namespace", None)
        elif metadata.setdefault("namespace", namespace) != namespace:
            raise bad_request("the namespace of the provided object does not match the namespace sent on the request")

    def _check_namespace(self, resource: Resource, namespace: str, obj: Object) -> None:
        if not resource.namespaced:
            return
        home = self.find(kinds.NAMESPACES, "", namespace)
        if home is None:
            raise not_found(kinds.NAMESPACES, namespace)
        if is_terminating(home):
            why = f"unable to create new content in namespace {namespace} because it is being terminated"
            refusal = forbidden(resource, dig(obj, "metadata", "name", default=""), why)
            cause = {
                "reason": "NamespaceTerminating",
                "message": f"namespace {namespace} is being terminated",
                "field": "metadata.namespace",
            }
            refusal.details = {**(refusal.details or {}), "causes": [cause]}
            raise refusal

    def _fill_metadata(self, resource: Resource, obj: Object) -> None:
        metadata = obj["metadata"]
        if metadata.get("resourceVersion"):
            # No reason, and a server's error, although it is the client's: so the real one answers.
            raise ApiError(500, "", "resourceVersion should not be set on objects to be created")
        for name in (
            "resourceVersion",
            "selfLink",
            "deletionTimestamp",
            "deletionGracePeriodSeconds",
            "managedFields",
            "generation",
        ):
            metadata.pop(name, None)
        metadata["uid"] = str(uuid.UUID(int=self._random.getrandbits(128), version=4))
        metadata["creationTimestamp"] = self.now()
        prefix = metadata.get("generateName")
        if prefix and not metadata.get("name"):
            metadata["name"] = self.generated_name(prefix)

    def generated_name(self, prefix: str) -> str:
        """A name that begins with `prefix`, cut so that the whole is a DNS label."""
        return prefix[:_NAME_LIMIT] + "".join(self._random.choice(_NAME_LETTERS) for _ in range(5))

    def _check_version(self, resource: Resource, name: str, new: Object, old: Object) -> None:
        metadata = new["metadata"]
        if metadata.get("name", name) != name:
            raise bad_request(
                f"the name of the object ({metadata.get('name')}) does not match the name on the URL ({name})"
            )
        uid = metadata.get("uid")
        if uid and uid != old["metadata"]["uid"]:
            why = f"Precondition failed: UID in precondition: {uid}, UID in object meta: {old['metadata']['uid']}"
            raise conflict(resource, name, why)
        version = metadata.get("resourceVersion")
        if not version or version == "0":
            if not self.strategy(resource).unconditional_update:
                errors = FieldErrors()
                errors.invalid("metadata.resourceVersion", 0, "must be specified for an update")
                raise invalid(resource.group, resource.plural, name, errors)
        elif version != old["metadata"]["resourceVersion"]:
            raise modified(resource, name)

    def _keep_metadata(self, new: Object, old: Object) -> None:
        metadata, before = new["metadata"], old["metadata"]
        metadata.setdefault("name", before["name"])
        metadata.pop("selfLink", None)
        for name in (
            "uid",
            "resourceVersion",
            "creationTimestamp",
            "generation",
            "deletionTimestamp",
            "deletionGracePeriodSeconds",
        ):
            if name in before:
                metadata[name] = before[name]
            else:
                metadata.pop(name, None)

    def _validated_update(
        self, resource: Resource, strategy: Strategy, new: Object, old: Object, options: WriteOptions
    ) -> None:
        transaction = strategy.begin(new, old, dry_run=options.dry_run)
        try:
            strategy.prepare_update(new, old)
            errors = FieldErrors()
            check_metadata_update(new, old, errors)
            strategy.validate(new, old, errors)
            if errors:
                raise invalid(resource.group, resource.kind, new["metadata"]["name"], errors)
        except BaseException:
            transaction.revert()
            raise
        transaction.commit()
        options.warnings.extend(strategy.warnings(new, old))

    def _check_preconditions(self, resource: Resource, name: str, metadata: Object, options: DeleteOptions) -> None:
        if options.uid and options.uid != metadata["uid"]:
            why = (
                f"the UID in the precondition ({options.uid}) does not match the UID in record ({metadata['uid']}). "
                "The object might have been deleted and then recreated"
            )
            raise conflict(resource, name, why)
        if options.resource_version and options.resource_version != metadata["resourceVersion"]:
            why = (
                f"the ResourceVersion in the precondition ({options.resource_version}) does not match the ResourceVersion in record "
                f"({metadata['resourceVersion']}). The object might have been modified"
            )
            raise conflict(resource, name, why)

    def _finalizers(self, strategy: Strategy, metadata: Object, options: DeleteOptions) -> list[str]:
        finalizers = list(metadata.get("finalizers") or ())
        propagation = options.propagation or (strategy.default_propagation if not finalizers else "")
        if propagation:
            finalizers = [item for item in finalizers if item not in (ORPHAN, FOREGROUND)]
        if propagation == "Orphan":
            finalizers.append(ORPHAN)
        elif propagation == "Foreground":
            finalizers.append(FOREGROUND)
        return finalizers

    def _mark(self, strategy: Strategy, new: Object, finalizers: list[str], period: int) -> None:
        metadata = new["metadata"]
        if finalizers:
            metadata["finalizers"] = finalizers
        if not metadata.get("deletionTimestamp"):
            metadata["deletionTimestamp"] = timestamp(self.clock() + period)
            if metadata.get("generation"):
                metadata["generation"] += 1
        elif period < (metadata.get("deletionGracePeriodSeconds") or 0):
            began = (parse_timestamp(metadata["deletionTimestamp"]) or self.clock()) - metadata[
                "deletionGracePeriodSeconds"
            ]
            metadata["deletionTimestamp"] = timestamp(max(began + period, self.clock()))
        metadata["deletionGracePeriodSeconds"] = period
        strategy.mark_deleted(new)

    def _ends(self, strategy: Strategy, obj: Object) -> bool:
        metadata = obj["metadata"]
        if not metadata.get("deletionTimestamp") or metadata.get("finalizers"):
            return False
        return not metadata.get("deletionGracePeriodSeconds") and not strategy.blocks_removal(obj)

    def _remove(self, resource: Resource, obj: Object) -> Object:
        record = self.store.remove(resource, obj["metadata"].get("namespace", ""), obj["metadata"]["name"])
        self.strategy(resource).after_delete(record.object)
        return record.object

    def _deleted(self, strategy: Strategy, obj: Object) -> Object:
        if strategy.returns_deleted:
            return obj
        return success(strategy.resource, obj["metadata"]["name"], obj["metadata"]["uid"])
