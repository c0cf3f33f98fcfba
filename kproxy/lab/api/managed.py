"""Who set which field, and server-side apply: `metadata.managedFields`.

What comes in: an object before and after a write, or what a client applies. What comes out: managedFields entries, and the merge of an
applied configuration with the live object: fields the manager applied before and does not apply now are removed unless another one owns
them, fields of others with another value are conflicts. A set of fields is a set of paths; a path's steps are written as in FieldsV1:
`f:name`, `k:{"port":80}`, `v:"item"`, with `.` for the element itself. (k8s.io/apimachinery pkg/util/managedfields,
structured-merge-diff v6.)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from kproxy.lab.api.schema import Field, Structure, Type, structures
from kproxy.lab.api.values import Object, clone, decode, dig, encode

Path = tuple[str, ...]
APPLY, UPDATE = "Apply", "Update"

# Fields the system owns: nobody manages them (k8s.io/apimachinery managedfields/internal/stripmeta.go).
_SYSTEM = (
    "creationTimestamp",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "generation",
    "managedFields",
    "name",
    "namespace",
    "resourceVersion",
    "selfLink",
    "uid",
)
_ABSENT = object()


@dataclass(frozen=True, slots=True)
class Conflict:
    """One field that another manager owns with another value."""

    path: Path
    manager: str
    text: str


def step_key(item: Field, element: Any) -> str:
    """The step to an element of a list that is a map or a set."""
    if item.list_type == "map" and isinstance(element, dict):
        # The one key with a default in all of the API: a port's protocol.
        defaults = {"protocol": "TCP"} if "protocol" in item.keys else {}
        keys = {
            key: element.get(key, defaults.get(key)) for key in sorted(item.keys) if key in element or key in defaults
        }
        return "k:" + encode(keys).decode()
    return "v:" + encode(element).decode()


def paths_of(structure: Structure, obj: Object) -> dict[Path, Any]:
    """Every leaf of an object with its value, and `.` for the elements of keyed lists."""
    found: dict[Path, Any] = {}
    for path, value in _walk_structure(structure, obj, ()):
        found[path] = value
    for path in [path for path in found if path[:1] == ("f:metadata",) and path[1:2] and path[1][2:] in _SYSTEM]:
        del found[path]
    for name in ("f:apiVersion", "f:kind"):
        found.pop((name,), None)
    return found


def _walk_structure(structure: Structure, obj: Object, prefix: Path) -> Iterator[tuple[Path, Any]]:
    for name, value in obj.items():
        item = structure.fields.get(name)
        if item is not None:
            yield from _walk_value(item, item.type, value, (*prefix, "f:" + name))


def _walk_value(item: Field, kind: Type, value: Any, path: Path) -> Iterator[tuple[Path, Any]]:
    if kind.kind == "struct" and isinstance(value, dict) and not item.atomic and value:
        yield from _walk_structure(structures()[kind.structure], value, path)
    elif kind.kind == "map" and isinstance(value, dict) and not item.atomic and value:
        yield (*path, "."), True
        for key, part in value.items():
            yield (*path, "f:" + key), part
    elif kind.kind == "list" and isinstance(value, list) and item.list_type == "map" and value:
        yield (*path, "."), True
        inner = structures()[kind.item.structure] if kind.item and kind.item.kind == "struct" else None
        for element in value:
            step = (*path, step_key(item, element))
            yield (*step, "."), True
            if inner is not None and isinstance(element, dict):
                yield from _walk_structure(inner, element, step)
    elif kind.kind == "list" and isinstance(value, list) and item.list_type == "set" and value:
        yield (*path, "."), True
        for element in value:
            yield (*path, step_key(item, element)), element
    elif not (kind.kind == "struct" and value == {} and not item.pointer):
        yield path, value


def is_container(path: Path) -> bool:
    """Whether a path stands for a list or map as such: plain writes own those, applied configurations do not."""
    return path[-1] == "." and not path[-2].startswith(("k:", "v:"))


def to_fields(paths: set[Path]) -> Object:
    """A set of paths as FieldsV1."""
    tree: Object = {}
    for path in sorted(paths):
        at = tree
        for step in path:
            at = at.setdefault(step, {})
    return tree


def from_fields(tree: Any) -> set[Path]:
    """FieldsV1 as a set of paths."""
    found: set[Path] = set()

    def descend(at: Any, prefix: Path) -> None:
        if not isinstance(at, dict) or not at:
            if prefix:
                found.add(prefix)
            return
        for step, below in at.items():
            descend(below, (*prefix, step))

    descend(tree, ())
    return found


def _entry(obj: Object, manager: str, operation: str, subresource: str, paths: set[Path], now: str) -> Object:
    entry: Object = {
        "manager": manager,
        "operation": operation,
        "apiVersion": obj["apiVersion"],
        "time": now,
        "fieldsType": "FieldsV1",
        "fieldsV1": to_fields(paths),
    }
    if subresource:
        entry["subresource"] = subresource
    return entry


def _set_entries(obj: Object, entries: list[Object]) -> None:
    kept = [entry for entry in entries if entry.get("fieldsV1")]
    if kept:
        obj["metadata"]["managedFields"] = kept
    else:
        obj["metadata"].pop("managedFields", None)


def note_update(
    structure: Structure, new: Object, old: Object | None, manager: str, subresource: str, now: str
) -> None:
    """Record in `new` that `manager` made it out of `old` by a plain write. "" (the lab's own controllers) only loses removed fields."""
    before = dig(old, "metadata", "managedFields", default=[]) if old else []
    stated = dig(new, "metadata", "managedFields")
    if stated == [{}] or (stated is not None and not stated and before):
        new["metadata"].pop("managedFields", None)  # the documented way to clear it
        return
    if stated and old:
        before = stated  # kubectl moves fields from one manager to another when it changes over to server-side apply
    if not manager and not before:
        new["metadata"].pop("managedFields", None)
        return
    had = paths_of(structure, old) if old else {}
    has = paths_of(structure, new)
    changed = {path for path, value in has.items() if had.get(path, _ABSENT) != value}
    # The main resource cannot change the status, nor the status subresource the spec.
    useless = "f:spec" if subresource == "status" else "f:status"
    changed = {path for path in changed if path[0] != useless}
    gone = {path for path in had if path not in has}
    if not changed and not gone:
        new["metadata"]["managedFields"] = before
        if not before:
            new["metadata"].pop("managedFields")
        return
    entries: list[Object] = []
    mine: set[Path] = set(changed)
    for entry in before:
        owned = from_fields(entry.get("fieldsV1"))
        own = (
            entry.get("operation") == UPDATE
            and entry["manager"] == manager
            and entry.get("subresource", "") == subresource
        )
        if own:
            mine |= owned - gone
            continue
        left = owned - gone
        if manager:
            left -= {path for path in changed if path[-1] != "."}
        entries.append({**entry, "fieldsV1": to_fields(left)} if left != owned else entry)
    if manager and mine:
        entries.append(_entry(new, manager, UPDATE, subresource, mine, now))
    _set_entries(new, entries)


def find_conflicts(
    structure: Structure, live: Object, applied: Object, manager: str, subresource: str
) -> list[Conflict]:
    """The fields of `applied` that others own with another value."""
    have, want = paths_of(structure, live), paths_of(structure, applied)
    differing = {
        path for path, value in want.items() if path[-1] != "." and have.get(path, _ABSENT) not in (_ABSENT, value)
    }
    conflicts = []
    for entry in dig(live, "metadata", "managedFields", default=[]):
        if (
            entry.get("operation") == APPLY
            and entry.get("manager") == manager
            and entry.get("subresource", "") == subresource
        ):
            continue
        for path in sorted(differing & from_fields(entry.get("fieldsV1"))):
            by = f'"{entry["manager"]}"'
            if entry.get("subresource"):
                by += f' with subresource "{entry["subresource"]}"'
            if entry.get("operation") == UPDATE:
                by += f" using {entry['apiVersion']}"
            conflicts.append(Conflict(path, by, path_text(path)))
    return conflicts


def path_text(path: Path) -> str:
    """A path as conflicts show it: `.spec.ports[port=80,protocol="TCP"].name`."""
    text = ""
    for step in path:
        if step.startswith("f:"):
            text += "." + step[2:]
        elif step.startswith("k:"):
            keys = decode(step[2:])
            text += "[" + ",".join(f"{key}={encode(value).decode()}" for key, value in keys.items()) + "]"
        elif step.startswith("v:"):
            text += f"[={step[2:]}]"
    return text


def apply_configuration(
    structure: Structure, live: Object, applied: Object, manager: str, subresource: str, now: str
) -> Object:
    """Merge what `manager` applies into a copy of the live object, with managedFields brought up to date. Conflicts are settled before."""
    new: Object = clone(live)
    _merge(structure, new, applied)
    want = {path for path in paths_of(structure, applied) if not is_container(path)}
    entries, previous, others = [], set(), set()
    for entry in dig(live, "metadata", "managedFields", default=[]):
        owned = from_fields(entry.get("fieldsV1"))
        if (
            entry.get("operation") == APPLY
            and entry.get("manager") == manager
            and entry.get("subresource", "") == subresource
        ):
            previous = owned
        else:
            entries.append((entry, owned))
            others |= owned
    given_up = previous - want - others
    # Whole elements of lists first: without its key fields an element could not be found any more.
    for path in sorted(given_up, key=lambda path: (path[-1] != ".", -len(path))):
        _remove(structure, new, path)
    values, live_values = paths_of(structure, applied), paths_of(structure, live)
    lost = {
        path
        for path, value in values.items()
        if path[-1] != "." and live_values.get(path, _ABSENT) not in (_ABSENT, value)
    }
    kept = [{**entry, "fieldsV1": to_fields(owned - lost)} if owned & lost else entry for entry, owned in entries]
    _set_entries(new, [_entry(new, manager, APPLY, subresource, want, now), *kept])
    return new


def _merge(structure: Structure, target: Object, applied: Object) -> None:
    for name, value in applied.items():
        item = structure.fields.get(name)
        current = target.get(name)
        if item is None:
            continue
        if item.type.kind == "struct" and not item.atomic and isinstance(current, dict):
            _merge(structures()[item.type.structure], current, value)
        elif item.type.kind == "map" and not item.atomic and isinstance(current, dict):
            current.update(clone(value))
        elif item.type.kind == "list" and item.list_type in ("map", "set") and isinstance(current, list):
            target[name] = _merge_elements(item, current, value)
        else:
            target[name] = clone(value)


def _merge_elements(item: Field, current: list[Any], applied: list[Any]) -> list[Any]:
    inner = structures()[item.type.item.structure] if item.type.item and item.type.item.kind == "struct" else None
    merged = list(current)
    places = {step_key(item, element): index for index, element in enumerate(merged)}
    for element in applied:
        key = step_key(item, element)
        if key not in places:
            merged.append(clone(element))
        elif inner is not None:
            _merge(inner, merged[places[key]], element)
    return merged


def _remove(structure: Structure, obj: Object, path: Path) -> None:
    at: Any = obj
    inside: Structure | None = structure
    item: Field | None = None
    for depth, step in enumerate(path):
        last = depth == len(path) - 1 or path[depth + 1 :] == (".",)
        if step == ".":
            return
        if step.startswith("f:") and isinstance(at, dict):
            if last:
                if path[-1] != "." or not at.get(step[2:]):
                    at.pop(step[2:], None)
                return
            item = inside.fields.get(step[2:]) if inside else None
            at = at.get(step[2:])
            inside = structures()[item.type.structure] if item and item.type.kind == "struct" else None
        elif isinstance(at, list) and item is not None:
            found = next((index for index, element in enumerate(at) if step_key(item, element) == step), None)
            if found is None:
                return
            if last:
                del at[found]
                return
            at = at[found]
            inside = (
                structures()[item.type.item.structure] if item.type.item and item.type.item.kind == "struct" else None
            )
        else:
            return
