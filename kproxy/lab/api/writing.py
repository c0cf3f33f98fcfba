"""The writing verbs as requests make them: create, replace, patch, apply, delete, and the subresources scale, binding, eviction, finalize.

What comes in: a target, a body and the query. What comes out: an `Answer`. Every verb ends in one call of the registry.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from kproxy.lab.api import kinds, scaling
from kproxy.lab.api.fields import FieldErrors
from kproxy.lab.api.intake import STRICT, field_validation, read_kind, read_value, take, take_other, unknown_texts
from kproxy.lab.api.kinds import Resource
from kproxy.lab.api.managed import Conflict, apply_configuration, find_conflicts
from kproxy.lab.api.objects.base import DeleteOptions
from kproxy.lab.api.patch import (
    APPLY_PATCH,
    JSON_PATCH,
    MERGE_PATCH,
    PATCH_TYPES,
    STRATEGIC_PATCH,
    PatchError,
    json_patch,
    merge_patch,
    strategic_merge,
)
from kproxy.lab.api.registry import Registry, WriteOptions
from kproxy.lab.api.requests import Target, flag, is_dry_run, whole_number
from kproxy.lab.api.schema import TypeMismatch, conform, structure_of, structures
from kproxy.lab.api.selectors import selection
from kproxy.lab.api.status import (
    ApiError,
    apply_conflict,
    bad_request,
    invalid,
    method_not_allowed,
    no_such_path,
    not_found,
    patch_failed,
    unsupported_media_type,
)
from kproxy.lab.api.values import Object, clone, dig, encode, namespace_of, prune


@dataclass(frozen=True, slots=True)
class Answer:
    """What to send back. `resource` is set when `body` is an object of that resource, which may be shown as a table."""

    body: Object
    code: int = 200
    resource: Resource | None = None


@dataclass(frozen=True, slots=True)
class WriteRequest:
    """One request that changes something."""

    method: str
    target: Target
    body: bytes
    content_type: str
    query: Mapping[str, str]
    user_agent: str
    warnings: list[str] = field(default_factory=list)  # for the client, whether the write succeeds or not

    @property
    def manager(self) -> str:
        """Who is recorded as the fields' manager: the parameter, else the program's name."""
        return self.query.get("fieldManager", "") or self.user_agent.split("/")[0][:128] or "unknown"

    @property
    def options(self) -> WriteOptions:
        """The options every write has; the registry adds to the warnings."""
        return WriteOptions(dry_run=is_dry_run(self.query), manager=self.manager, warnings=self.warnings)


def write(registry: Registry, request: WriteRequest) -> Answer:
    """Carry out a request that changes something. ApiError when it is refused."""
    target = request.target
    if target.subresource in ("scale", "binding", "eviction", "finalize"):
        return _write_subresource(registry, request)
    if target.subresource not in ("", "status") or (target.subresource and not target.resource.has_status):
        raise no_such_path()
    match request.method:
        case "POST" if not target.name:
            return _create(registry, request)
        case "PUT" if target.name:
            return _replace(registry, request)
        case "PATCH" if target.name:
            return _patch(registry, request)
        case "DELETE" if not target.subresource:
            return _delete(registry, request)
        case _:
            raise method_not_allowed()


def _take(request: WriteRequest) -> Object:
    """The object in a body, conformed to the target's kind."""
    resource = request.target.resource
    value = read_kind(request.body, request.content_type, resource.kind, resource.api_version)
    obj, warnings = take(resource, value, field_validation(request.query))
    request.warnings.extend(warnings)
    return obj


def _create(registry: Registry, request: WriteRequest) -> Answer:
    resource = request.target.resource
    obj = _take(request)
    made = registry.create(resource, request.target.namespace or namespace_of(obj), obj, request.options)
    return Answer(made, 201, resource)


def _replace(registry: Registry, request: WriteRequest) -> Answer:
    target, resource = request.target, request.target.resource
    obj = _take(request)
    name = obj["metadata"].setdefault("name", target.name)
    if name != target.name:
        raise bad_request(f"the name of the object ({name}) does not match the name on the URL ({target.name})")
    exists = registry.store.get(resource, target.namespace, target.name) is not None
    if not exists and registry.strategy(resource).create_on_update and not target.subresource:
        return Answer(registry.create(resource, target.namespace, obj, request.options), 201, resource)
    made = registry.update(
        resource, target.namespace, target.name, lambda _: obj, request.options, subresource=target.subresource
    )
    return Answer(made, 200, resource)


# patches


def _patch(registry: Registry, request: WriteRequest) -> Answer:
    target, resource = request.target, request.target.resource
    language = request.content_type.split(";")[0].strip()
    if language == APPLY_PATCH:
        return _apply(registry, request)
    if language not in PATCH_TYPES:
        raise unsupported_media_type(PATCH_TYPES)
    value = read_value(request.body, "application/json")
    validation = field_validation(request.query)

    def change(current: Object) -> Object:
        patched = prune(patched_object(current, value, language, resource))
        unknown: list[str] = []
        try:
            obj = conform(structure_of(resource), patched, unknown)
        except TypeMismatch as problem:
            raise _patch_refused(value, language, str(problem)) from None
        if unknown and validation == STRICT:
            raise _patch_refused(value, language, "strict decoding error: " + ", ".join(unknown_texts(unknown)))
        request.warnings.extend(unknown_texts(unknown) if validation == "Warn" else ())
        return obj

    made = registry.update(
        resource, target.namespace, target.name, change, request.options, subresource=target.subresource
    )
    return Answer(made, 200, resource)


def patched_object(current: Object, patch: object, language: str, resource: Resource) -> Object:
    """Apply a patch to a copy of an object; ApiError 400 or 422."""
    try:
        if language == JSON_PATCH:
            result: object = json_patch(current, patch)
        elif language == MERGE_PATCH:
            result = merge_patch(current, patch)
        else:
            result = strategic_merge(current, patch, structure_of(resource))
    except PatchError as problem:
        if problem.malformed:
            raise bad_request(str(problem)) from None
        raise patch_failed() from problem
    if not isinstance(result, dict):
        raise bad_request("the patched value is no object")
    return result


def go_text(value: object) -> str:
    """A JSON value as Go prints it with %+v, which is how refusals quote a strategic patch."""
    if isinstance(value, dict):
        return "map[" + " ".join(f"{key}:{go_text(value[key])}" for key in sorted(value)) + "]"
    if isinstance(value, list):
        return "[" + " ".join(go_text(item) for item in value) + "]"
    if value is None:
        return "<nil>"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _patch_refused(patch: object, language: str, why: str) -> ApiError:
    errors = FieldErrors()
    errors.invalid("patch", go_text(patch) if language == STRATEGIC_PATCH else encode(patch).decode(), why)
    return invalid("", "", "", errors)


def _apply(registry: Registry, request: WriteRequest) -> Answer:
    """Server-side apply; makes the object when there is none."""
    target, resource = request.target, request.target.resource
    if not request.query.get("fieldManager"):
        errors = FieldErrors()
        errors.required("fieldManager", "is required for apply patch")
        raise invalid("meta.k8s.io", "PatchOptions", "", errors)
    value = prune(read_kind(request.body, APPLY_PATCH, resource.kind, resource.api_version))
    if dig(value, "metadata", "managedFields"):
        raise bad_request("metadata.managedFields must be nil")
    conformed, warnings = take(resource, clone(value), field_validation(request.query))
    request.warnings.extend(warnings)
    applied = _only_stated(conformed, value)
    applied.setdefault("metadata", {})
    applied["metadata"].setdefault("name", target.name)
    if resource.namespaced:
        applied["metadata"].setdefault("namespace", target.namespace)
    if registry.store.get(resource, target.namespace, target.name) is None:
        return _apply_new(registry, request, applied)
    structure = structure_of(resource)

    def change(current: Object) -> Object:
        conflicts = find_conflicts(structure, current, applied, request.manager, target.subresource)
        if conflicts and not flag(request.query, "force"):
            raise conflict_refusal(conflicts)
        new = apply_configuration(structure, current, applied, request.manager, target.subresource, registry.now())
        new["metadata"]["resourceVersion"] = (
            applied["metadata"].get("resourceVersion") or current["metadata"]["resourceVersion"]
        )
        return conform(structure, new, [])

    made = registry.update(
        resource,
        target.namespace,
        target.name,
        change,
        request.options,
        subresource=target.subresource,
        tracked=False,
    )
    return Answer(made, 200, resource)


def _apply_new(registry: Registry, request: WriteRequest, applied: Object) -> Answer:
    target, resource = request.target, request.target.resource
    if target.subresource:
        raise not_found(resource, target.name)
    structure = structure_of(resource)
    bare = {"apiVersion": resource.api_version, "kind": resource.kind, "metadata": {}}
    new = apply_configuration(structure, bare, applied, request.manager, "", registry.now())
    managed = new["metadata"]["managedFields"]
    new["metadata"].update(applied["metadata"])
    # The registry drops managedFields of new objects, as the API does for creates; an apply states its own.
    made = registry.create(
        resource,
        target.namespace,
        conform(structure, new, []),
        replace(request.options, manager=""),
        managed_fields=managed,
    )
    return Answer(made, 201, resource)


def _only_stated(conformed: Object, stated: Object) -> Object:
    """What a client applies is what it wrote, not the empty structures and zeros that Go's encoder adds."""
    result: Object = {}
    for key, value in conformed.items():
        if key not in stated:
            continue
        if isinstance(value, dict) and isinstance(stated[key], dict):
            result[key] = _only_stated(value, stated[key])
        elif isinstance(value, list) and isinstance(stated[key], list) and len(value) == len(stated[key]):
            result[key] = [
                _only_stated(part, said) if isinstance(part, dict) and isinstance(said, dict) else part
                for part, said in zip(value, stated[key], strict=True)
            ]
        else:
            result[key] = value
    return result


def conflict_refusal(conflicts: list[Conflict]) -> ApiError:
    """409 with one cause per field, worded as managedfields' NewConflictError."""
    causes = [
        {"reason": "FieldManagerConflict", "message": f"conflict with {conflict.manager}", "field": conflict.text}
        for conflict in conflicts
    ]
    if len(conflicts) == 1:
        only = conflicts[0]
        return apply_conflict(causes, f"Apply failed with 1 conflict: conflict with {only.manager}: {only.text}")
    lines = []
    for manager in sorted({conflict.manager for conflict in conflicts}):
        lines.append(f"conflicts with {manager}:")
        lines += [f"- {conflict.text}" for conflict in conflicts if conflict.manager == manager]
    return apply_conflict(causes, f"Apply failed with {len(conflicts)} conflicts: " + "\n".join(lines))


# deletes


def _delete(registry: Registry, request: WriteRequest) -> Answer:
    value: object = read_value(request.body, request.content_type or "application/json") if request.body else {}
    options = delete_options(value if isinstance(value, dict) else {}, request.query)
    target, resource = request.target, request.target.resource
    if target.name:
        return Answer(registry.delete(resource, target.namespace, target.name, options))
    records = registry.delete_collection(resource, target.namespace, selection(resource, request.query), options)
    metadata = {"resourceVersion": str(registry.store.revision)}
    items = [record.object for record in records]
    return Answer(
        {"kind": resource.kind + "List", "apiVersion": resource.api_version, "metadata": metadata, "items": items}
    )


def delete_options(value: Object, query: Mapping[str, str]) -> DeleteOptions:
    """DeleteOptions from a body, else from the query."""
    orphan = value.get("orphanDependents")
    if orphan is None and "orphanDependents" in query:
        orphan = flag(query, "orphanDependents")
    propagation = value.get("propagationPolicy") or query.get("propagationPolicy", "")
    if orphan is not None and not propagation:
        propagation = "Orphan" if orphan else "Background"
    if propagation not in ("", "Background", "Foreground", "Orphan"):
        raise bad_request(f'invalid propagationPolicy "{propagation}"')
    grace = value.get("gracePeriodSeconds")
    if grace is None:
        grace = whole_number(query, "gracePeriodSeconds")
    if grace is not None and grace < 0:
        grace = 1  # as in rest.BeforeDelete
    return DeleteOptions(
        grace_period_s=grace,
        propagation=propagation,
        uid=str(dig(value, "preconditions", "uid", default="")),
        resource_version=str(dig(value, "preconditions", "resourceVersion", default="")),
        dry_run=is_dry_run(query) or value.get("dryRun") == ["All"],
    )


# subresources


def _write_subresource(registry: Registry, request: WriteRequest) -> Answer:
    target = request.target
    resource = target.resource
    match (target.subresource, request.method):
        case ("scale", "PUT" | "PATCH") if resource.has_scale:
            return _scale(registry, request)
        case ("binding", "POST") if resource is kinds.PODS:
            value = read_kind(request.body, request.content_type, "Binding", "v1")
            scaling.bind(registry, target.namespace, target.name, value)
            return Answer({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201}, 201)
        case ("eviction", "POST") if resource is kinds.PODS:
            value = read_kind(request.body, request.content_type, "Eviction", "policy/v1")
            options = delete_options(value.get("deleteOptions") or {}, request.query)
            registry.delete(resource, target.namespace, target.name, options)
            return Answer({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201}, 201)
        case ("finalize", "PUT") if resource is kinds.NAMESPACES:
            value = read_kind(request.body, request.content_type, resource.kind, resource.api_version)
            return Answer(scaling.finalize(registry, target.name, dig(value, "spec", "finalizers", default=[])))
        case ("scale" | "binding" | "eviction" | "finalize", _):
            raise method_not_allowed()
        case _:
            raise no_such_path()


def _scale(registry: Registry, request: WriteRequest) -> Answer:
    target, resource = request.target, request.target.resource
    current = registry.get(resource, target.namespace, target.name).object
    if request.method == "PUT":
        value = read_kind(request.body, request.content_type, "Scale", "autoscaling/v1")
    else:
        language = request.content_type.split(";")[0].strip()
        patch = read_value(request.body, "application/json")
        value = patched_object(
            scaling.scale_of(resource, current), patch, language if language == JSON_PATCH else MERGE_PATCH, resource
        )
    wanted = take_other(structures()["autoscaling.Scale"], prune(value))
    return Answer(scaling.set_scale(registry, resource, target.namespace, target.name, wanted, request.options))
