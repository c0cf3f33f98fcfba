"""The shape of every kind: which fields there are, of which type, and how they merge.

What comes in: structures.json, made from Kubernetes' own Go types (Apache License 2.0) by tests/support/structures.py. What comes out:
`Structure` values that the field check, the patches, server-side apply, the protobuf reader and the OpenAPI documents all go by. What must
not happen here: rules of one kind; those stand in `objects`.

`conform` brings a client's object into the form Go's encoder would give it: unknown fields are reported and dropped, zero values of fields
that are omitted when empty disappear, embedded structures appear even when empty (`status: {}`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from kproxy.lab.api.kinds import Resource
from kproxy.lab.api.values import Object, decode, parse_timestamp

_INTEGERS = ("int32", "int64", "uint32", "uint64", "byte")
_JSON_WORDS = {dict: "object", list: "array", str: "string", bool: "bool", int: "number", float: "number"}


@dataclass(frozen=True, slots=True)
class Type:
    """A type: a scalar's name, or `list` or `map` of another, or `struct`."""

    kind: str
    item: Type | None = None
    structure: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """One field of a structure."""

    name: str
    type: Type
    go: str  # the Go type, for error messages
    pointer: bool = False
    always: bool = False  # encoded even when empty
    omitzero: bool = False
    number: int = 0  # in protobuf
    merges: bool = False  # patchStrategy=merge
    retains_keys: bool = False  # patchStrategy=retainKeys
    merge_key: str = ""
    list_type: str = "atomic"  # atomic, set or map
    keys: tuple[str, ...] = ()
    atomic: bool = False  # maps and structures that are replaced as a whole


@dataclass(slots=True)
class Structure:
    """One Go structure with its inlined structures folded in."""

    name: str
    fields: dict[str, Field] = field(default_factory=dict)
    numbers: dict[int, Field] = field(default_factory=dict)
    inlined: dict[int, str] = field(default_factory=dict)  # protobuf number → structure whose fields appear among ours
    embedded: tuple[Field, ...] = ()  # structures that appear even when empty
    zeros: tuple[Field, ...] = ()  # scalars that appear even when zero


class TypeMismatch(Exception):
    """A value cannot be read as its field's type; the text is Go's."""


@cache
def structures() -> dict[str, Structure]:
    """Every structure by name, such as `core.ServiceSpec`."""
    table = decode((Path(__file__).parent / "structures.json").read_bytes())
    return {name: _structure(name, table) for name in table}


def structure_of(resource: Resource) -> Structure:
    """The structure of a kind's objects."""
    return structures()[structure_name(resource)]


def structure_name(resource: Resource) -> str:
    """`core.Service` for the schema io.k8s.api.core.v1.Service."""
    parts = resource.schema.split(".")
    return f"{parts[-3]}.{parts[-1]}"


def _structure(name: str, table: dict[str, Any]) -> Structure:
    made = Structure(name)
    for key, (text, number, *rest) in table[name].items():
        if key.startswith("<"):
            inner = text.lstrip("*@")
            made.fields.update(_structure(inner, table).fields)
            made.inlined[number] = inner
            continue
        extra = rest[0] if rest else {}
        item = _field(key, text, number, extra)
        made.fields[key] = item
        if number:
            made.numbers[number] = item
    plain = [item for item in made.fields.values() if not item.pointer]
    made.embedded = tuple(i for i in plain if i.type.kind == "struct" and not i.omitzero)
    made.zeros = tuple(i for i in plain if i.always and i.type.kind in ("string", "bool", *_INTEGERS))
    return made


def _field(key: str, text: str, number: int, extra: dict[str, Any]) -> Field:
    kind = _type(text.lstrip("*"))
    patch = extra.get("patch", "").split(",")
    default_list = "set" if kind.kind == "list" and "merge" in patch and "mergeKey" not in extra else "atomic"
    return Field(
        name=key,
        type=kind,
        go=extra.get("go", _go_name(kind)),
        pointer=text.startswith("*"),
        always=extra.get("always", False),
        omitzero=extra.get("omitzero", False),
        number=number,
        merges="merge" in patch,
        retains_keys="retainKeys" in patch,
        merge_key=extra.get("mergeKey", ""),
        list_type=extra.get("list", default_list),
        keys=tuple(extra.get("keys", ())),
        atomic=extra.get("map") == "atomic",
    )


def _type(text: str) -> Type:
    if text.startswith("[]"):
        return Type("list", _type(text[2:].lstrip("*")))
    if text.startswith("{}"):
        return Type("map", _type(text[2:].lstrip("*")))
    if text.startswith("@"):
        return Type("struct", None, text[1:])
    return Type(text)


def _go_name(kind: Type) -> str:
    if kind.kind == "list":
        return "[]" + _go_name(kind.item or kind)
    if kind.kind == "map":
        return "map[string]" + _go_name(kind.item or kind)
    return "v1." + kind.structure.split(".")[1] if kind.kind == "struct" else kind.kind


def conform(structure: Structure, obj: Object, unknown: list[str], path: str = "") -> Object:
    """Bring `obj` into the encoder's form, in place. Appends the paths of unknown fields; raises TypeMismatch."""
    for name in list(obj):
        value = obj[name]
        item = structure.fields.get(name)
        if item is None:
            unknown.append(path + name)
            del obj[name]
            continue
        if value is None:
            del obj[name]
            continue
        value = _conform_value(structure, item, item.type, value, unknown, path + name)
        if not item.pointer and not item.always and _is_empty(item.type, value):
            del obj[name]
        else:
            obj[name] = value
    for item in structure.embedded:
        if item.name not in obj:
            obj[item.name] = conform(structures()[item.type.structure], {}, unknown)
    for item in structure.zeros:
        if item.name not in obj:
            obj[item.name] = "" if item.type.kind == "string" else False if item.type.kind == "bool" else 0
    return obj


def _is_empty(kind: Type, value: Any) -> bool:
    return kind.kind != "struct" and (value == "" or value is False or value == 0 or value == [] or value == {})


def _conform_value(structure: Structure, item: Field, kind: Type, value: Any, unknown: list[str], path: str) -> Any:
    if kind.kind == "struct":
        if not isinstance(value, dict):
            raise _mismatch(structure, item, kind, value, path)
        return conform(structures()[kind.structure], value, unknown, path + ".")
    if kind.kind == "list":
        if not isinstance(value, list):
            raise _mismatch(structure, item, kind, value, path)
        inner = kind.item or kind
        return [
            _conform_value(
                structure, item, inner, part if part is not None else _zero(inner), unknown, f"{path}[{index}]"
            )
            for index, part in enumerate(value)
        ]
    if kind.kind == "map":
        if not isinstance(value, dict):
            raise _mismatch(structure, item, kind, value, path)
        inner = kind.item or kind
        return {
            key: _conform_value(
                structure, item, inner, part if part is not None else _zero(inner), unknown, f"{path}.{key}"
            )
            for key, part in value.items()
        }
    return _conform_scalar(structure, item, kind, value, path)


def _zero(kind: Type) -> Any:
    if kind.kind in ("struct", "map"):
        return {}
    if kind.kind == "list":
        return []
    return False if kind.kind == "bool" else 0 if kind.kind in _INTEGERS else ""


def _conform_scalar(structure: Structure, item: Field, kind: Type, value: Any, path: str) -> Any:
    name = kind.kind
    if name == "string" or name == "bytes":
        fits = isinstance(value, str)
    elif name == "bool":
        fits = isinstance(value, bool)
    elif name in _INTEGERS:
        fits = isinstance(value, int) and not isinstance(value, bool)
    elif name in ("intorstring", "quantity"):
        fits = isinstance(value, (int, str, float)) and not isinstance(value, bool)
        if fits and name == "quantity":
            value = str(value)
        elif isinstance(value, float):
            fits = False
    elif name in ("time", "microtime"):
        fits = isinstance(value, str)
        if fits and value and parse_timestamp(value) is None:
            raise TypeMismatch(
                f'parsing time "{value}" as "2006-01-02T15:04:05Z07:00": cannot parse "{value}" as "2006"'
            )
    else:
        fits = True
    if not fits:
        raise _mismatch(structure, item, kind, value, path)
    return value


def _mismatch(structure: Structure, item: Field, kind: Type, value: Any, path: str) -> TypeMismatch:
    word = _JSON_WORDS.get(type(value), "null")
    where = ".".join(part.split("[")[0] for part in path.split("."))
    name = structure.name.split(".")[1]
    go = item.go if kind is item.type else _go_name(kind)
    return TypeMismatch(f"json: cannot unmarshal {word} into Go struct field {name}.{where} of type {go}")
