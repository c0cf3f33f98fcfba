"""From a request's body to an object this server may store: JSON, YAML or protobuf, of the right kind, with known fields only.

What comes in: bytes and what the client says about them. What comes out: an object and the warnings to send back; ApiError 400 or 415 with
the words of kube-apiserver's decoder. `fieldValidation` decides what becomes of unknown fields: Strict refuses, Warn (the default) tells,
Ignore drops them in silence.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import yaml

from kproxy.lab.api.fields import quoted
from kproxy.lab.api.kinds import Resource
from kproxy.lab.api.negotiation import parse_body
from kproxy.lab.api.protobuf import MEDIA_TYPE as PROTOBUF
from kproxy.lab.api.protobuf import MalformedProtobuf, read_object
from kproxy.lab.api.schema import Structure, TypeMismatch, conform, structure_of
from kproxy.lab.api.status import ApiError, bad_request, invalid_option
from kproxy.lab.api.values import Object

STRICT, WARN, IGNORE = "Strict", "Warn", "Ignore"


class Unreadable(ApiError):
    """A body that is neither JSON nor YAML nor protobuf."""

    def __init__(self, why: str) -> None:
        super().__init__(400, "BadRequest", f"couldn't get version/kind; json parse error: {why}")
        self.why = why


def _unrecognized(kind: str, why: str) -> ApiError:
    expected = f"the object provided is unrecognized (must be of type {kind})"
    return bad_request(f"{expected}: couldn't get version/kind; json parse error: {why}")


def field_validation(parameters: Mapping[str, str]) -> str:
    """How unknown fields are treated; ApiError 422 for a word that is none of the three."""
    word = parameters.get("fieldValidation", "") or WARN
    if word not in (STRICT, WARN, IGNORE):
        raise invalid_option("fieldValidation", word, ("", IGNORE, STRICT, WARN))
    return word


def read_value(body: bytes, content_type: str) -> Any:
    """The value in a body. ApiError 400 when it cannot be read, 415 when its type is unknown."""
    try:
        if content_type.split(";")[0].strip() == PROTOBUF:
            return read_object(body)
        return parse_body(body, content_type)
    except (
        msgspec.MsgspecError,
        yaml.YAMLError,
        MalformedProtobuf,
        UnicodeError,
        RecursionError,
        TypeError,
    ) as problem:
        raise Unreadable(str(problem)) from None


def read_kind(body: bytes, content_type: str, kind: str, api_version: str) -> Object:
    """An object that must be of one kind, when it says so."""
    try:
        value = read_value(body, content_type)
    except Unreadable as problem:
        raise _unrecognized(kind, problem.why) from None
    if not isinstance(value, dict):
        raise _unrecognized(kind, f"a JSON {type(value).__name__} is no object")
    said_kind, said_version = value.get("kind") or kind, value.get("apiVersion") or api_version
    if said_version != api_version and said_kind == kind:
        message = (
            f"the API version in the data ({said_version}) does not match the expected API version ({api_version})"
        )
        raise bad_request(message)
    if said_kind != kind:
        version = str(said_version).rpartition("/")[2]
        package = (api_version.rpartition("/")[0] or "core").split(".")[0]
        why = f"converting ({version}.{said_kind}) to ({package}.{kind}): unknown conversion"
        raise bad_request(f'{said_kind} in version "{version}" cannot be handled as a {kind}: {why}')
    return value


def take(resource: Resource, value: Object, validation: str) -> tuple[Object, list[str]]:
    """Conform an object to its kind's shape; returns it with the warnings it deserves. ApiError 400 by kube-apiserver's words."""
    unknown: list[str] = []
    try:
        obj = conform(structure_of(resource), value, unknown)
    except TypeMismatch as problem:
        raise _refused(resource, str(problem)) from None
    if unknown and validation == STRICT:
        raise _refused(resource, "strict decoding error: " + ", ".join(unknown_texts(unknown)))
    return obj, unknown_texts(unknown) if validation == WARN else []


def take_other(structure: Structure, value: Object) -> Object:
    """Conform an object of a subresource's kind."""
    try:
        return conform(structure, value, [])
    except TypeMismatch as problem:
        raise bad_request(str(problem)) from None


def unknown_texts(unknown: list[str]) -> list[str]:
    """Unknown fields as the decoder speaks of them."""
    return [f"unknown field {quoted(path)}" for path in unknown]


def _refused(resource: Resource, why: str) -> ApiError:
    return bad_request(f'{resource.kind} in version "{resource.version}" cannot be handled as a {resource.kind}: {why}')
