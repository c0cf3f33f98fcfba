"""OpenAPI documents, version 3: enough of them for kubectl to know the server's parameters, fields and merge keys.

What comes in: `kinds` and `schema`. What comes out: `/openapi/v3` and one document per group version, encoded once. kubectl reads from them
whether PATCH takes `fieldValidation` (then it leaves validation to the server), and the merge keys for client-side apply. Version 2 is
served empty: clients fall back to what they have built in.
"""

from __future__ import annotations

import hashlib
from functools import cache
from typing import Any

from kproxy.lab.api.discovery import subresources
from kproxy.lab.api.kinds import GROUPS, RESOURCES, Resource
from kproxy.lab.api.patch import APPLY_PATCH, JSON_PATCH, MERGE_PATCH, STRATEGIC_PATCH
from kproxy.lab.api.schema import Field, Type, structure_name, structures
from kproxy.lab.api.values import Object, encode

# gnostic's Document message: field 1 is `swagger`, field 2 `info` with title and version.
EMPTY_V2_PROTOBUF = b"\x0a\x032.0\x12\x10\x0a\x06kproxy\x12\x06v1.36."
EMPTY_V2: Object = {"swagger": "2.0", "info": {"title": "kproxy", "version": "v1.36."}, "paths": {}, "definitions": {}}

_SCALARS: dict[str, Object] = {
    "string": {"type": "string"},
    "bytes": {"type": "string", "format": "byte"},
    "bool": {"type": "boolean"},
    "int32": {"type": "integer", "format": "int32"},
    "int64": {"type": "integer", "format": "int64"},
    "float64": {"type": "number", "format": "double"},
    "time": {"type": "string", "format": "date-time"},
    "microtime": {"type": "string", "format": "date-time"},
    "intorstring": {"oneOf": [{"type": "integer"}, {"type": "string"}], "format": "int-or-string"},
    "quantity": {"oneOf": [{"type": "string"}, {"type": "number"}]},
}
_QUERY = ("dryRun", "fieldManager", "fieldValidation", "pretty")


def _full_name(name: str) -> str:
    package, kind = name.split(".")
    if package == "meta":
        return f"io.k8s.apimachinery.pkg.apis.meta.v1.{kind}"
    return f"io.k8s.api.{package}.v1.{kind}"


def _type_schema(kind: Type) -> Object:
    if kind.kind == "struct":
        return {"allOf": [{"$ref": "#/components/schemas/" + _full_name(kind.structure)}], "default": {}}
    if kind.kind == "list" and kind.item is not None:
        return {"type": "array", "items": _type_schema(kind.item)}
    if kind.kind == "map" and kind.item is not None:
        return {"type": "object", "additionalProperties": _type_schema(kind.item)}
    return dict(_SCALARS.get(kind.kind, {"type": "object"}))


def _field_schema(item: Field) -> Object:
    schema = _type_schema(item.type)
    if item.pointer and item.type.kind == "struct":
        schema.pop("default")
    if item.merges or item.retains_keys:
        words = (["merge"] if item.merges else []) + (["retainKeys"] if item.retains_keys else [])
        schema["x-kubernetes-patch-strategy"] = ",".join(words)
    if item.merge_key:
        schema["x-kubernetes-patch-merge-key"] = item.merge_key
    if item.type.kind == "list":
        schema["x-kubernetes-list-type"] = item.list_type
        if item.keys:
            schema["x-kubernetes-list-map-keys"] = list(item.keys)
    if item.atomic:
        schema["x-kubernetes-map-type"] = "atomic"
    return schema


def _component(name: str) -> Object:
    properties = {item.name: _field_schema(item) for item in structures()[name].fields.values()}
    required = [item.name for item in structures()[name].fields.values() if item.always and not item.pointer]
    schema: Object = {"type": "object", "properties": properties}
    if required:
        schema["required"] = required
    return schema


def _reachable(names: list[str]) -> list[str]:
    found: list[str] = []
    while names:
        name = names.pop()
        if name in found:
            continue
        found.append(name)
        for item in structures()[name].fields.values():
            kind: Type | None = item.type
            while kind is not None and kind.kind in ("list", "map"):
                kind = kind.item
            if kind is not None and kind.kind == "struct":
                names.append(kind.structure)
    return sorted(found)


def _operation(resource: Resource, action: str, parameters: tuple[str, ...]) -> Object:
    kind = {"group": resource.group, "version": resource.version, "kind": resource.kind}
    operation: Object = {
        "parameters": [
            {"name": name, "in": "query", "schema": {"type": "string", "uniqueItems": True}} for name in parameters
        ],
        "responses": {"200": {"description": "OK"}},
        "x-kubernetes-action": action,
        "x-kubernetes-group-version-kind": kind,
    }
    schema = {"$ref": "#/components/schemas/" + resource.schema}
    if action == "patch":
        patch = {"schema": {"type": "object"}}
        operation["requestBody"] = {
            "content": dict.fromkeys((APPLY_PATCH, JSON_PATCH, MERGE_PATCH, STRATEGIC_PATCH), patch)
        }
    elif action in ("post", "put"):
        operation["requestBody"] = {"content": {"*/*": {"schema": schema}}}
    return operation


def _paths(resource: Resource) -> Object:
    base = f"/apis/{resource.api_version}" if resource.group else "/api/v1"
    if resource.namespaced:
        base += "/namespaces/{namespace}"
    collection = f"{base}/{resource.plural}"
    item = collection + "/{name}"
    writes = _QUERY
    paths: Object = {
        collection: {"get": _operation(resource, "list", ()), "post": _operation(resource, "post", writes)},
        item: {
            "get": _operation(resource, "get", ()),
            "put": _operation(resource, "put", writes),
            "patch": _operation(resource, "patch", (*writes, "force")),
            "delete": _operation(resource, "delete", ("dryRun", "gracePeriodSeconds", "propagationPolicy")),
        },
    }
    for name, _, _, _ in subresources(resource):
        if name == "status":
            paths[f"{item}/status"] = {
                "get": _operation(resource, "get", ()),
                "put": _operation(resource, "put", writes),
                "patch": _operation(resource, "patch", (*writes, "force")),
            }
    return paths


@cache
def document(group: str) -> bytes:
    """The document of one group's v1."""
    mine = [resource for resource in RESOURCES if resource.group == group]
    components: dict[str, Any] = {
        _full_name(name): _component(name) for name in _reachable([structure_name(r) for r in mine])
    }
    paths: Object = {}
    for resource in mine:
        kind = {"group": resource.group, "version": resource.version, "kind": resource.kind}
        components[resource.schema]["x-kubernetes-group-version-kind"] = [kind]
        paths.update(_paths(resource))
    info = {"title": "Kubernetes", "version": "v1.36.3"}
    return encode({"openapi": "3.0.0", "info": info, "paths": paths, "components": {"schemas": components}})


def group_path(group: str) -> str:
    """The key of a group's document: `api/v1` or `apis/GROUP/v1`."""
    return f"apis/{group}/v1" if group else "api/v1"


@cache
def index() -> bytes:
    """/openapi/v3: where the documents are, with a hash each so that clients may keep them."""
    paths = {}
    for group in ("", *GROUPS):
        digest = hashlib.sha256(document(group)).hexdigest().upper()
        paths[group_path(group)] = {"serverRelativeURL": f"/openapi/v3/{group_path(group)}?hash={digest}"}
    return encode({"paths": paths})


def find(path: str) -> bytes | None:
    """The document at a path below /openapi/v3; None when there is none."""
    if path in ("/openapi/v3", "/openapi/v3/"):
        return index()
    for group in ("", *GROUPS):
        if path == f"/openapi/v3/{group_path(group)}":
            return document(group)
    return None
