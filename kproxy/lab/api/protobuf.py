"""Reading Kubernetes' protobuf, which kubectl's typed commands send (`create namespace`, `create deployment` …) without asking first.

What comes in: a body of type application/vnd.kubernetes.protobuf: the magic `k8s\\0`, then a runtime.Unknown that carries apiVersion, kind
and the object's own message. What comes out: the same object as JSON. Field numbers come from `schema`. Answers are always JSON, which the
same clients accept. Bounded by the body's size; anything malformed raises `MalformedProtobuf`.
"""

from __future__ import annotations

import base64
import struct
from collections.abc import Iterator
from typing import Any

from kproxy.lab.api.kinds import BY_KIND
from kproxy.lab.api.schema import Field, Structure, Type, structure_name, structures
from kproxy.lab.api.values import Object, decode, micro_timestamp, timestamp

MEDIA_TYPE = "application/vnd.kubernetes.protobuf"
MAGIC = b"k8s\x00"
_DEPTH = 40
_OTHER_KINDS = {
    "Scale": "autoscaling.Scale",
    "Eviction": "policy.Eviction",
    "Binding": "core.Binding",
    "DeleteOptions": "meta.DeleteOptions",
}


class MalformedProtobuf(Exception):
    """The bytes are no message of the kind they claim to be."""


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if position >= len(data) or shift > 63:
            raise MalformedProtobuf("a number is cut off or too long")
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7


def fields_of(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """The fields of one message: number and value, in the order of the wire."""
    position = 0
    while position < len(data):
        tag, position = _varint(data, position)
        number, wire = tag >> 3, tag & 7
        if wire == 0:
            value, position = _varint(data, position)
            yield number, value
            continue
        if wire == 2:
            size, position = _varint(data, position)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        else:
            raise MalformedProtobuf(f"wire type {wire} is not used by Kubernetes")
        if position + size > len(data):
            raise MalformedProtobuf("a field is longer than its message")
        yield number, data[position : position + size]
        position += size


def read_object(body: bytes) -> Object:
    """The object in a request body."""
    if not body.startswith(MAGIC):
        raise MalformedProtobuf(
            "provided data does not appear to be a protobuf message, expected prefix [107 56 115 0]"
        )
    api_version = kind = ""
    raw = b""
    for number, value in fields_of(body[4:]):
        if number == 1 and isinstance(value, bytes):
            for inner, text in fields_of(value):
                if inner == 1 and isinstance(text, bytes):
                    api_version = text.decode()
                elif inner == 2 and isinstance(text, bytes):
                    kind = text.decode()
        elif number == 2 and isinstance(value, bytes):
            raw = value
    resource = BY_KIND.get((api_version, kind))
    name = structure_name(resource) if resource else _OTHER_KINDS.get(kind)
    if name is None:
        raise MalformedProtobuf(f'no kind "{kind}" is registered for version "{api_version}"')
    obj = _message(structures()[name], raw, _DEPTH)
    return {"apiVersion": api_version, "kind": kind, **obj}


def _message(structure: Structure, data: bytes, depth: int) -> Object:
    if depth <= 0:
        raise MalformedProtobuf("messages are nested too deeply")
    obj: Object = {}
    for number, value in fields_of(data):
        if number in structure.inlined:
            if isinstance(value, bytes):
                obj.update(_message(structures()[structure.inlined[number]], value, depth - 1))
            continue
        item = structure.numbers.get(number)
        if item is None:
            continue
        if item.type.kind == "list" and item.type.item is not None:
            obj.setdefault(item.name, []).append(_value(item.type.item, value, depth))
        elif item.type.kind == "map" and item.type.item is not None:
            key, part = _map_entry(item.type.item, value, depth)
            obj.setdefault(item.name, {})[key] = part
        else:
            read = _value(item.type, value, depth)
            if not _is_unset(item, read):
                obj[item.name] = read
    return obj


def _is_unset(item: Field, value: Any) -> bool:
    """Go writes the zero value of every field that is no pointer; in JSON those are absent."""
    return value is None or (not item.pointer and value in ("", 0, False))


def _map_entry(kind: Type, value: int | bytes, depth: int) -> tuple[str, Any]:
    key, part = "", b""
    if isinstance(value, bytes):
        for number, inner in fields_of(value):
            if isinstance(inner, bytes):
                key, part = (inner.decode(), part) if number == 1 else (key, inner)
    return key, _value(kind, part, depth)


def _value(kind: Type, value: int | bytes, depth: int) -> Any:
    try:
        if isinstance(value, int):
            if kind.kind == "bool":
                return bool(value)
            return value - (1 << 64) if value >= 1 << 63 else value
        return _bytes_value(kind, value, depth)
    except UnicodeDecodeError as problem:
        raise MalformedProtobuf(f"text that is not UTF-8: {problem}") from None


def _bytes_value(kind: Type, value: bytes, depth: int) -> Any:
    match kind.kind:
        case "struct":
            return _message(structures()[kind.structure], value, depth - 1)
        case "string":
            return value.decode()
        case "bytes":
            return base64.b64encode(value).decode()
        case "time" | "microtime":
            parts = {number: part for number, part in fields_of(value) if isinstance(part, int)}
            if not parts:
                return None
            seconds = parts.get(1, 0) + parts.get(2, 0) / 1e9
            return micro_timestamp(seconds) if kind.kind == "microtime" else timestamp(seconds)
        case "quantity":
            return next(
                (part.decode() for number, part in fields_of(value) if number == 1 and isinstance(part, bytes)), "0"
            )
        case "intorstring":
            return _int_or_string(value)
        case "fields" | "raw":
            raw = next((part for number, part in fields_of(value) if number == 1 and isinstance(part, bytes)), b"{}")
            return decode(raw)
        case "float64":
            return struct.unpack("<d", value)[0]
        case _:
            raise MalformedProtobuf(f"bytes where a {kind.kind} belongs")


def _int_or_string(value: bytes) -> int | str:
    parts = dict(fields_of(value))
    if parts.get(1) == 1:
        text = parts.get(3, b"")
        return text.decode() if isinstance(text, bytes) else ""
    number = parts.get(2, 0)
    return number if isinstance(number, int) else 0
