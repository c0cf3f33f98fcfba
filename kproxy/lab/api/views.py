"""Objects, lists and events in the form the client asked for."""

from __future__ import annotations

from collections.abc import Callable

from kproxy.lab.api.kinds import Resource
from kproxy.lab.api.listing import Page
from kproxy.lab.api.negotiation import YAML, Form
from kproxy.lab.api.store import Record
from kproxy.lab.api.tables.catalogue import columns_of
from kproxy.lab.api.tables.table import partial_metadata, table
from kproxy.lab.api.values import Object, encode


def one(resource: Resource, record: Record, form: Form, include: str, now: float) -> bytes:
    """One object."""
    if form.view == "Table":
        metadata = {"resourceVersion": record.object["metadata"].get("resourceVersion", "")}
        return form.body(table(columns_of(resource), [record], metadata, include, now))
    if form.view.startswith("PartialObjectMetadata"):
        return form.body(partial_metadata(record.object))
    return form.body(record.object) if form.media_type == YAML else record.json


def many(resource: Resource, page: Page, form: Form, include: str, now: float) -> bytes:
    """One page of a list."""
    if form.view == "Table":
        return form.body(table(columns_of(resource), page.records, page.metadata(), include, now))
    if form.view.startswith("PartialObjectMetadata"):
        items = [partial_metadata(record.object) for record in page.records]
        api_version = "meta.k8s.io/v1"
        return form.body(
            {
                "kind": "PartialObjectMetadataList",
                "apiVersion": api_version,
                "metadata": page.metadata(),
                "items": items,
            }
        )
    kind, api_version = resource.kind + "List", resource.api_version
    if form.media_type == YAML:
        objects = [record.object for record in page.records]
        return form.body({"kind": kind, "apiVersion": api_version, "metadata": page.metadata(), "items": objects})
    head = encode({"kind": kind, "apiVersion": api_version, "metadata": page.metadata()})
    return b"".join((head[:-1], b',"items":[', b",".join([record.json for record in page.records]), b"]}"))


def event_renderer(
    resource: Resource, form: Form, include: str, clock: Callable[[], float]
) -> Callable[[Record], bytes]:
    """How a watch in this form shows objects; the first table carries the column definitions."""
    if form.view == "Table":
        first = True

        def as_table(record: Record) -> bytes:
            nonlocal first
            headers, first = first, False
            metadata: Object = {"resourceVersion": str(record.revision)}
            return encode(table(columns_of(resource), [record], metadata, include, clock(), headers=headers))

        return as_table
    if form.view.startswith("PartialObjectMetadata"):
        return lambda record: encode(partial_metadata(record.object))
    return lambda record: record.json
