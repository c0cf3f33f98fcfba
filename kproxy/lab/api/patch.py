"""The three patch languages: JSON patch (RFC 6902), JSON merge patch (RFC 7386) and Kubernetes' strategic merge patch.

What comes in: an object that may be changed (a copy of the stored one) and a patch. What comes out: the patched object; `PatchError` when
the patch cannot be applied. Strategic merge knows from `schema` which lists are merged and by which key; its directives are `$patch`,
`$retainKeys`, `$setElementOrder/…` and `$deleteFromPrimitiveList/…` (k8s.io/apimachinery pkg/util/strategicpatch at v0.36.3).
"""

from __future__ import annotations

from typing import Any

from kproxy.lab.api.schema import Field, Structure, structures
from kproxy.lab.api.values import Object, clone, encode

JSON_PATCH = "application/json-patch+json"
MERGE_PATCH = "application/merge-patch+json"
STRATEGIC_PATCH = "application/strategic-merge-patch+json"
APPLY_PATCH = "application/apply-patch+yaml"
APPLY_CBOR = "application/apply-patch+cbor"
PATCH_TYPES = (JSON_PATCH, MERGE_PATCH, STRATEGIC_PATCH, APPLY_PATCH)

MAX_OPERATIONS = 10_000

_DIRECTIVE = "$patch"
_RETAIN = "$retainKeys"
_ORDER = "$setElementOrder/"
_DELETE = "$deleteFromPrimitiveList/"


class PatchError(Exception):
    """The patch cannot be applied. `malformed`: the patch itself is wrong (400); else the object does not fit it (422)."""

    def __init__(self, message: str, *, malformed: bool = False) -> None:
        super().__init__(message)
        self.malformed = malformed


# JSON merge patch


def merge_patch(target: Any, patch: Any) -> Any:
    """RFC 7386: null removes, maps merge, everything else replaces."""
    if not isinstance(patch, dict):
        return clone(patch)
    if not isinstance(target, dict):
        target = {}
    for key, value in patch.items():
        if value is None:
            target.pop(key, None)
        elif isinstance(value, dict):
            target[key] = merge_patch(target.get(key), value)
        else:
            target[key] = clone(value)
    return target


# JSON patch


def json_patch(target: Object, operations: Any) -> Object:
    """RFC 6902."""
    if not isinstance(operations, list):
        raise PatchError("cannot unmarshal object into Go value of type jsonpatch.Patch", malformed=True)
    if len(operations) > MAX_OPERATIONS:
        raise PatchError(f"The allowed maximum operations in a JSON patch is {MAX_OPERATIONS}, got {len(operations)}")
    root = {"": target}
    for operation in operations:
        if not isinstance(operation, dict) or not isinstance(operation.get("path"), str):
            raise PatchError("a JSON patch operation needs op and path", malformed=True)
        _json_operation(root, operation)
    if not isinstance(root.get(""), dict):
        raise PatchError("the patch leaves no object")
    return root[""]


def _pointer(path: str) -> list[str]:
    if path and not path.startswith("/"):
        raise PatchError(f"{path!r} is no JSON pointer", malformed=True)
    return [""] + [part.replace("~1", "/").replace("~0", "~") for part in path.split("/")[1:]]


def _json_operation(root: Any, operation: Object) -> None:
    path = operation["path"]
    match operation.get("op"):
        case "add":
            _put(root, path, clone(operation.get("value")), insert=True)
        case "replace":
            _get(root, path, "replace")
            _put(root, path, clone(operation.get("value")), insert=False)
        case "remove":
            _take(root, path)
        case "test":
            if _get(root, path, "test", missing_ok=True) != operation.get("value"):
                raise PatchError(f"testing value {path} failed: test failed")
        case "move":
            _put(root, path, _take(root, operation.get("from", "")), insert=True)
        case "copy":
            _put(root, path, clone(_get(root, operation.get("from", ""), "copy")), insert=True)
        case other:
            raise PatchError(f"Unexpected kind: {other}", malformed=True)


def _index(container: list[Any], part: str, path: str, *, end: bool) -> int:
    if part == "-" and end:
        return len(container)
    try:
        index = int(part)
    except ValueError:
        raise PatchError(f"{path}: {part!r} is no index") from None
    if index < 0:
        index += len(container)
    if not 0 <= index < len(container) + end:
        raise PatchError(f"Unable to access invalid index: {part}: invalid index referenced")
    return index


def _container(root: Any, path: str, verb: str) -> tuple[Any, str]:
    *way, last = _pointer(path)
    at = root
    for part in way:
        if isinstance(at, dict) and part in at:
            at = at[part]
        elif isinstance(at, list):
            at = at[_index(at, part, path, end=False)]
        else:
            raise PatchError(f'{verb} operation does not apply: doc is missing path: "{path}": missing value')
    return at, last


def _get(root: Any, path: str, verb: str, *, missing_ok: bool = False) -> Any:
    at, last = _container(root, path, verb)
    if isinstance(at, dict) and last in at:
        return at[last]
    if isinstance(at, list):
        return at[_index(at, last, path, end=False)]
    if missing_ok:
        return None
    raise PatchError(f"{verb} operation does not apply: doc is missing key: {path}: missing value")


def _put(root: Any, path: str, value: Any, *, insert: bool) -> None:
    at, last = _container(root, path, "add")
    if isinstance(at, dict):
        at[last] = value
    elif isinstance(at, list) and insert:
        at.insert(_index(at, last, path, end=True), value)
    elif isinstance(at, list):
        at[_index(at, last, path, end=False)] = value
    else:
        raise PatchError(f'add operation does not apply: doc is missing path: "{path}": missing value')


def _take(root: Any, path: str) -> Any:
    at, last = _container(root, path, "remove")
    if isinstance(at, dict) and last in at:
        return at.pop(last)
    if isinstance(at, list):
        return at.pop(_index(at, last, path, end=False))
    raise PatchError(f"remove operation does not apply: doc is missing path: {path}: missing value")


# strategic merge patch


def strategic_merge(target: Object, patch: Any, structure: Structure) -> Object:
    """Merge `patch` into `target` by the rules of a structure."""
    if not isinstance(patch, dict):
        raise PatchError("cannot unmarshal array into Go value of type map[string]interface {}", malformed=True)
    return _merge_map(target, patch, structure)


def _merge_map(target: Object, patch: Object, structure: Structure | None) -> Object:
    directive = patch.get(_DIRECTIVE)
    if directive == "replace":
        return {key: clone(value) for key, value in patch.items() if key != _DIRECTIVE}
    if directive == "delete":
        return {}
    if directive not in (None, "merge"):
        raise PatchError(f"Unknown patch type: {directive}", malformed=True)
    retain = patch.get(_RETAIN)
    if isinstance(retain, list):
        target = {key: value for key, value in target.items() if key in retain}
    for key, value in patch.items():
        if key.startswith(_DELETE):
            name = key.removeprefix(_DELETE)
            target[name] = [item for item in target.get(name) or [] if item not in value]
    for key, value in patch.items():
        if key.startswith("$"):
            continue
        item = structure.fields.get(key) if structure else None
        order = patch.get(_ORDER + key)
        if value is None:
            target.pop(key, None)
        elif isinstance(value, dict):
            current = target.get(key)
            target[key] = _merge_map(current if isinstance(current, dict) else {}, value, _below(item))
        elif isinstance(value, list) and item is not None and item.merges:
            current = target.get(key)
            target[key] = _merge_list(current if isinstance(current, list) else [], value, order, item)
        else:
            target[key] = clone(value)
    _order_untouched(target, patch, structure)
    return target


def _order_untouched(target: Object, patch: Object, structure: Structure | None) -> None:
    """An order without a patch of the list itself: the client removed nothing and added nothing, it only sorted."""
    for key, order in patch.items():
        name = key.removeprefix(_ORDER)
        if key.startswith(_ORDER) and name not in patch and isinstance(target.get(name), list):
            item = structure.fields.get(name) if structure else None
            if item is not None:
                target[name] = _in_order(target[name], target[name], order, item)


def _below(item: Field | None) -> Structure | None:
    if item is None:
        return None
    kind = item.type
    return structures()[kind.structure] if kind.kind == "struct" else None


def _merge_list(current: list[Any], patch: list[Any], order: Any, item: Field) -> list[Any]:
    if not item.merge_key:
        merged = list(current) + [value for value in patch if value not in current]
        return _in_order(merged, current, order, item)
    inner = item.type.item
    structure = structures()[inner.structure] if inner is not None and inner.kind == "struct" else None
    if any(isinstance(part, dict) and part.get(_DIRECTIVE) == "replace" for part in patch):
        return [clone(part) for part in patch if not (isinstance(part, dict) and part.get(_DIRECTIVE) == "replace")]
    merged = list(current)
    for part in patch:
        if not isinstance(part, dict) or item.merge_key not in part:
            text = encode(part).decode()
            raise PatchError(f"map: {text} does not contain declared merge key: {item.merge_key}", malformed=True)
        key = part[item.merge_key]
        if part.get(_DIRECTIVE) == "delete":
            merged = [old for old in merged if old.get(item.merge_key) != key]
            continue
        for position, old in enumerate(merged):
            if old.get(item.merge_key) == key:
                merged[position] = _merge_map(dict(old), part, structure)
                break
        else:
            merged.append(_merge_map({}, part, structure))
    return _in_order(merged, current, order, item)


def _in_order(merged: list[Any], before: list[Any], order: Any, item: Field) -> list[Any]:
    """Sort as the patch wants; items it does not name keep their place relative to the live list."""
    if not isinstance(order, list):
        return merged
    wanted = [_identity(part, item) for part in order]
    live = [_identity(part, item) for part in before]
    named = sorted(
        (part for part in merged if _identity(part, item) in wanted), key=lambda p: wanted.index(_identity(p, item))
    )
    others = [part for part in merged if _identity(part, item) not in wanted]
    result: list[Any] = []
    while named and others:
        left = _identity(named[0], item)
        if left not in live or live.index(left) < _place(live, _identity(others[0], item)):
            result.append(named.pop(0))
        else:
            result.append(others.pop(0))
    return result + named + others


def _place(live: list[Any], identity: Any) -> int:
    return live.index(identity) if identity in live else len(live)


def _identity(part: Any, item: Field) -> Any:
    return part.get(item.merge_key) if item.merge_key and isinstance(part, dict) else part
