"""API objects from JSON: what came over the wire becomes a model object and a list of Problems.

In: one object, a page of a list, or a line of a watch, as bytes (or, from files, as parsed mappings). Out: `Decoded`, `ListPage`, or one
of the watch's words. What must not happen here: an exception over anything the other side sent. Input that is not even JSON
comes back as `Malformed`, so that the reflector can drop the connection; an object that is JSON but nonsense comes back as
`Decoded` without object and with a Problem.

The rule for broken parts: leave out the smallest part that stands alone (an address, a port, an endpoint), say so, keep the
rest. Where leaving out would *open* something (source ranges that cannot be read), it is closed instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from sys import intern
from typing import Any, TypeVar

import msgspec

from kproxy.model.events import Applied, Removed
from kproxy.model.names import NamespacedName
from kproxy.model.objects import Decoded, Kind, Namespace, Object, ObjectKey, Problem, Service
from kproxy.watch import wire
from kproxy.watch.convert import namespace_of, node_of, pod_of, slice_of
from kproxy.watch.fields import is_label, is_subdomain, shown
from kproxy.watch.services import import_of, service_of
from kproxy.watch.wire import Meta, Notes

W = TypeVar("W", bound=msgspec.Struct)

MAX_PAGE_ITEMS = 200_000  # of one page; a streaming or unpaged list of the largest supported cluster has 150,000 pods


@dataclass(frozen=True, slots=True)
class ListPage:
    """One page of a list."""

    items: tuple[Decoded, ...]
    resource_version: str
    continue_token: str  # "" on the last page


@dataclass(frozen=True, slots=True)
class Change:
    """An object was added, changed or deleted, and the version of the whole kind after that."""

    event: Applied | Removed
    resource_version: str


@dataclass(frozen=True, slots=True)
class Bookmark:
    """The server's "you have seen everything up to here". `list_end`: a streaming list is complete now."""

    resource_version: str
    list_end: bool


@dataclass(frozen=True, slots=True)
class Refusal:
    """A Status object instead of what was asked for: in a watch's ERROR event or as the body of a failed request."""

    code: int
    reason: str
    message: str
    retry_after_s: float | None = None


@dataclass(frozen=True, slots=True)
class Malformed:
    """Not JSON, or not of the envelope's shape: nothing of it can be used."""

    reason: str


Raw = bytes | msgspec.Raw | Mapping[str, object]
WatchWord = Change | Bookmark | Refusal | Malformed


class _Line(msgspec.Struct):
    type: str
    object: msgspec.Raw


class _ListMeta(msgspec.Struct, rename="camel"):
    resource_version: str = ""
    continue_token: str | None = msgspec.field(default=None, name="continue")


class _Page(msgspec.Struct):
    metadata: _ListMeta
    items: list[msgspec.Raw] | None = None


class _Details(msgspec.Struct, rename="camel"):
    retry_after_seconds: int | None = None


class _Status(msgspec.Struct):
    code: int | None = None
    reason: str | None = None
    message: str | None = None
    details: _Details | None = None


class _Marker(msgspec.Struct):
    metadata: Meta


class _LabelMeta(msgspec.Struct):
    labels: dict[str, str] | None = None


class _Labelled(msgspec.Struct):
    metadata: _LabelMeta | None = None


@dataclass(frozen=True, slots=True)
class _Reader:
    """How one kind is read: the strict decoder, its struct for the tolerant way, and what makes the model object."""

    kind: Kind
    struct: type[msgspec.Struct]
    strict: msgspec.json.Decoder[Any]
    convert: Callable[[NamespacedName, Any, Notes], Object | None]
    namespaced: bool = True
    labels_only: bool = False  # the name must be a single DNS label


def _reader(
    kind: Kind, struct: type[W], convert: Callable[[NamespacedName, W, Notes], Object | None], **facts: bool
) -> _Reader:
    return _Reader(kind, struct, msgspec.json.Decoder(struct), convert, **facts)


_READERS: Mapping[Kind, _Reader] = {
    reader.kind: reader
    for reader in (
        _reader(Kind.SERVICE, wire.WireService, service_of, labels_only=True),
        _reader(Kind.ENDPOINT_SLICE, wire.WireSlice, slice_of),
        _reader(Kind.NODE, wire.WireNode, node_of, namespaced=False),
        _reader(Kind.NAMESPACE, wire.WireNamespace, namespace_of, namespaced=False, labels_only=True),
        _reader(Kind.POD, wire.WirePod, pod_of),
        _reader(Kind.SERVICE_IMPORT, wire.WireImport, import_of),
    )
}
_LABELS = msgspec.json.Decoder(_Labelled)
_LINES = msgspec.json.Decoder(_Line)
_PAGES = msgspec.json.Decoder(_Page)
_STATUSES = msgspec.json.Decoder(_Status)
_MARKERS = msgspec.json.Decoder(_Marker)
_BAD_JSON = (
    ValueError,
    RecursionError,
)  # msgspec's and unicode's errors are ValueErrors; deep nesting is a RecursionError


NO_LABELS: frozenset[str] = frozenset()


def decode(kind: Kind, raw: Raw, labels: frozenset[str] = NO_LABELS) -> Decoded:
    """The object in `raw` as a model object with the Problems it has; never raises.

    labels: keys of the labels that a Service or Namespace is to keep; a second reading, for those who ask.
    """
    found = decode_noting(kind, raw, Notes())
    return with_labels(found, raw, labels) if labels else found


def decode_all(kind: Kind, items: Iterable[Raw], labels: frozenset[str] = NO_LABELS) -> list[Decoded]:
    """As `decode` for each of them; a place for notes is made anew only for the one after an object that needed it."""
    found, notes = [], Notes()
    for item in items:
        decoded = decode_noting(kind, item, notes)
        if notes.count:
            notes = Notes()
        found.append(with_labels(decoded, item, labels) if labels else decoded)
    return found


def with_labels(found: Decoded, raw: Raw, wanted: frozenset[str]) -> Decoded:
    """A Service or Namespace with those of its labels that are wanted; anything else as it is."""
    if not wanted or not isinstance(found.object, Service | Namespace):
        return found
    try:
        read = msgspec.convert(raw, _Labelled) if isinstance(raw, Mapping) else _LABELS.decode(raw)
    except _BAD_JSON:
        return found  # the first reading has said what is wrong
    labels = (read.metadata.labels if read.metadata else None) or {}
    kept = tuple(sorted((intern(key), value) for key, value in labels.items() if key in wanted))
    return replace(found, object=replace(found.object, labels=kept))


def decode_noting(kind: Kind, raw: Raw, notes: Notes) -> Decoded:
    """As `decode`, leaving in `notes` what was found, with field paths; for readers of files."""
    reader = _READERS[kind]
    found = _read(reader, raw, notes)
    meta = getattr(found, "metadata", None) or Meta()
    name = NamespacedName(meta.namespace if reader.namespaced else "", meta.name)
    obj = reader.convert(name, found, notes) if _name_is_usable(reader, name, notes) else None
    if not notes.remarks:
        return Decoded(key=ObjectKey(kind, name), object=obj, resource_version=meta.resource_version)
    remarks = notes.remarks + ([f"and {notes.unsaid} more like these"] if notes.unsaid else [])
    spoken = str(name) if name.namespace else name.name
    label = spoken if is_subdomain(spoken.replace("/", ".")) else shown(spoken) if spoken.strip("/") else "(unnamed)"
    problems = tuple(Problem(kind.value, label, remark) for remark in remarks)
    return Decoded(key=ObjectKey(kind, name), object=obj, problems=problems, resource_version=meta.resource_version)


def _read(reader: _Reader, raw: Raw, notes: Notes) -> msgspec.Struct:
    """The strict way, and the tolerant one when that fails."""
    parsed: object = raw
    try:
        found: msgspec.Struct = (
            msgspec.convert(raw, reader.struct) if isinstance(raw, Mapping) else reader.strict.decode(raw)
        )
        return found
    except _BAD_JSON:
        pass
    try:
        if not isinstance(raw, Mapping):
            parsed = msgspec.json.decode(raw)
        return wire.salvage(reader.struct, parsed, "", notes)
    except _BAD_JSON as error:
        notes.add_type("the object", f"is not JSON that can be read ({error})")
        return reader.struct()


_is_namespace = lru_cache(maxsize=4096)(is_label)  # of few


def _name_is_usable(reader: _Reader, name: NamespacedName, notes: Notes) -> bool:
    """Names go into rule comments, owner names and logs, so a name no API server accepts is not passed on."""
    if not name.name:
        notes.add("metadata.name", "is missing; the object is ignored")
        return False
    good = is_label(name.name) if reader.labels_only else is_subdomain(name.name)
    if not good:
        notes.add("metadata.name", f"{shown(name.name)} is no legal name; the object is ignored")
    elif reader.namespaced and not _is_namespace(name.namespace):
        notes.add("metadata.namespace", f"{shown(name.namespace)} is no legal namespace; the object is ignored")
        return False
    return good


@dataclass(frozen=True, slots=True)
class RawPage:
    """A page of a list whose items have not been looked at; they are `decode`'s to read."""

    items: list[msgspec.Raw]
    resource_version: str
    continue_token: str  # "" on the last page


def split_page(kind: Kind, raw: bytes) -> RawPage | Malformed:
    """A page of a list, taken apart: 10,000 items take 10 ms, and are read in portions by whoever has other things to do as well."""
    try:
        page = _PAGES.decode(raw)
    except _BAD_JSON as error:
        return Malformed(f"not a list of {kind.value} objects: {error}")
    items = page.items or []
    if len(items) > MAX_PAGE_ITEMS:
        return Malformed(f"a page of {len(items)} {kind.value} objects; {MAX_PAGE_ITEMS} are the most that is read")
    return RawPage(items, page.metadata.resource_version, page.metadata.continue_token or "")


def decode_page(kind: Kind, raw: bytes, labels: frozenset[str] = NO_LABELS) -> ListPage | Malformed:
    """A page of a list. Items that are nonsense are Decoded with Problems; a page that is nonsense is Malformed."""
    page = split_page(kind, raw)
    if isinstance(page, Malformed):
        return page
    return ListPage(tuple(decode_all(kind, page.items, labels)), page.resource_version, page.continue_token)


def decode_line(kind: Kind, raw: bytes, labels: frozenset[str] = NO_LABELS) -> WatchWord:
    """One line of a watch stream."""
    try:
        line = _LINES.decode(raw)
        match line.type:
            case "ADDED" | "MODIFIED":
                found = decode(kind, line.object, labels)
                return Change(Applied(found), found.resource_version)
            case "DELETED":
                found = decode(kind, line.object)
                return Change(Removed(found.key), found.resource_version)
            case "BOOKMARK":
                meta = _MARKERS.decode(line.object).metadata
                ended = meta.annotations is not None and meta.annotations.list_end == "true"
                return Bookmark(meta.resource_version, ended)
            case "ERROR":
                return decode_status(bytes(line.object), 0)
            case other:
                return Malformed(f"an event of unknown type {shown(other)}")
    except _BAD_JSON as error:
        return Malformed(f"not a watch event: {error}")


def decode_status(raw: bytes, code: int) -> Refusal:
    """A Status body; `code` (the HTTP status) counts when the body has none or is no Status at all."""
    try:
        status = _STATUSES.decode(raw)
    except _BAD_JSON:
        return Refusal(code, "", raw[:200].decode("utf-8", "replace").strip())
    wait = status.details.retry_after_seconds if status.details else None
    return Refusal(
        status.code or code, status.reason or "", (status.message or "")[:500], float(wait) if wait else None
    )
