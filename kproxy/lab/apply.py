"""`kproxy lab apply`: objects from manifest files into the lab's API, without kubectl.

An object is created; one that exists already is patched with what the file says (a JSON merge patch: lists are replaced whole, fields
that the file does not mention stay). Namespaces go first, whatever the order of the files, because everything else needs them. Errors
name file, line and field.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kproxy.config.documents import Document, read_documents
from kproxy.errors import ConfigError
from kproxy.lab.client import ApiClient, ApiError

Raw = dict[str, Any]
_FIRST_KINDS = (
    "Namespace",
    "IngressClass",
    "ConfigMap",
    "Secret",
    "Service",
)  # a pod's variables name the Services that were there before it


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """One object of a file, with the place it came from."""

    where: str  # file:line
    obj: Raw


@dataclass(frozen=True, slots=True, kw_only=True)
class Applied:
    """What became of one object."""

    kind: str
    namespace: str
    name: str
    outcome: str  # created, configured
    path: str  # of the object


def read(paths: Iterable[str]) -> list[Manifest]:
    """The objects of files and directories (`-` is standard input). ConfigError with file, line and field."""
    found: list[Manifest] = []
    for path in paths:
        for file in _files(path):
            for document in read_documents(file):
                found += _objects(document)
    return sorted(
        found, key=lambda m: _FIRST_KINDS.index(m.obj["kind"]) if m.obj["kind"] in _FIRST_KINDS else len(_FIRST_KINDS)
    )


def _files(path: str) -> list[str]:
    if path == "-" or not Path(path).is_dir():
        return [path]
    found = sorted(str(file) for file in Path(path).iterdir() if file.suffix in {".yaml", ".yml", ".json"})
    if not found:
        raise ConfigError("no .yaml, .yml or .json file in this directory", where=path)
    return found


def _objects(document: Document) -> list[Manifest]:
    value = document.value
    if not isinstance(value, dict):
        raise ConfigError("an object of the API is a mapping with apiVersion and kind", where=document.where())
    if str(value.get("kind", "")).endswith("List") and isinstance(value.get("items"), list):
        made = []
        for index, item in enumerate(value["items"]):
            made.append(_checked(item, document, f"items[{index}]"))
        return made
    return [_checked(value, document, "")]


def _checked(value: object, document: Document, prefix: str) -> Manifest:
    if not isinstance(value, dict):
        raise ConfigError("an object of the API is a mapping", where=document.where(prefix))
    for field in ("apiVersion", "kind"):
        if not isinstance(value.get(field), str):
            raise ConfigError(f"{field} is missing", where=document.where(f"{prefix}.{field}".lstrip(".")))
    meta = value.get("metadata")
    if not isinstance(meta, dict) or not isinstance(meta.get("name") or meta.get("generateName"), str):
        raise ConfigError("a name is missing", where=document.where(f"{prefix}.metadata.name".lstrip(".")))
    return Manifest(where=document.where(prefix).split(": ")[0], obj=value)


async def apply(api: ApiClient, manifests: Iterable[Manifest], namespace: str = "default") -> list[Applied]:
    """Creates or patches each object in turn. ConfigError (with file and line) for what the API refuses."""
    return [await apply_one(api, manifest, namespace) for manifest in manifests]


async def apply_one(api: ApiClient, manifest: Manifest, namespace: str = "default") -> Applied:
    """Creates or patches one object."""
    meta = manifest.obj["metadata"]
    meta.setdefault("namespace", namespace)
    try:
        collection = await api.path_of(manifest.obj)
        if "/namespaces/" not in collection:
            meta.pop("namespace")
        stored, outcome = await _create_or_patch(api, collection, manifest.obj)
    except ApiError as error:
        if error.code in {400, 403, 404, 415, 422}:
            raise ConfigError(str(error), where=manifest.where) from error
        raise
    name = stored["metadata"]["name"]
    return Applied(
        kind=manifest.obj["kind"],
        namespace=meta.get("namespace", ""),
        name=name,
        outcome=outcome,
        path=f"{collection}/{name}",
    )


async def _create_or_patch(api: ApiClient, collection: str, obj: Raw) -> tuple[Raw, str]:
    name = obj["metadata"].get("name")
    if name is not None:
        try:
            await api.get(f"{collection}/{name}")
            return await api.merge(f"{collection}/{name}", obj), "configured"
        except ApiError as error:
            if error.code != 404:
                raise
    return await api.request("POST", collection, obj), "created"
