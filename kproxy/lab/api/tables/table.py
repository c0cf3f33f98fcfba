"""Rendering objects as meta.k8s.io/v1 Tables, which is what `kubectl get` asks for and prints.

What comes in: records and the present time. What comes out: a Table. Columns are those of pkg/printers/internalversion at v1.36.3; a column
with priority 1 appears with `-o wide`. A kind without rows of its own gets name and age.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from kproxy.lab.api.store import Record
from kproxy.lab.api.values import Object, dig, parse_timestamp


@dataclass(frozen=True, slots=True)
class Column:
    """One column and how to compute its cell from an object and the time."""

    name: str
    cell: Callable[[Object, float], Any]
    priority: int = 0
    type: str = "string"

    def definition(self) -> Object:
        """The column as the Table describes it."""
        return {
            "name": self.name,
            "type": self.type,
            "format": "name" if self.name == "Name" and not self.priority else "",
            "description": "",
            "priority": self.priority,
        }


def duration(seconds: float) -> str:
    """A span of time in kubectl's short form (k8s.io/apimachinery duration.HumanDuration)."""
    whole = int(seconds)
    if whole < -1:
        return "<invalid>"
    if whole < 0:
        return "0s"
    if whole < 120:
        return f"{whole}s"
    minutes = whole // 60
    if minutes < 10:
        return f"{minutes}m" + (f"{whole % 60}s" if whole % 60 else "")
    if minutes < 180:
        return f"{minutes}m"
    hours = whole // 3600
    if hours < 8:
        return f"{hours}h" + (f"{minutes % 60}m" if minutes % 60 else "")
    if hours < 48:
        return f"{hours}h"
    days = hours // 24
    if hours < 192:
        return f"{days}d" + (f"{hours % 24}h" if hours % 24 else "")
    if hours < 24 * 365 * 2:
        return f"{days}d"
    years = days // 365
    if hours < 24 * 365 * 8:
        return f"{years}y" + (f"{days % 365}d" if days % 365 else "")
    return f"{years}y"


def since(text: Any, now: float) -> str:
    """The time since a timestamp, or `<unknown>`."""
    then = parse_timestamp(text)
    return "<unknown>" if then is None else duration(now - then)


def name_cell(obj: Object, now: float) -> str:
    """The object's name."""
    return str(dig(obj, "metadata", "name", default=""))


def age_cell(obj: Object, now: float) -> str:
    """The time since the object was made."""
    return since(dig(obj, "metadata", "creationTimestamp"), now)


NAME = Column("Name", name_cell)
AGE = Column("Age", age_cell)
DEFAULT = (NAME, AGE)


def partial_metadata(obj: Object) -> Object:
    """An object reduced to its metadata."""
    return {"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": obj["metadata"]}


def row(columns: tuple[Column, ...], record: Record, include: str, now: float) -> Object:
    """One row. `include` is Object, Metadata or None."""
    cells = [column.cell(record.object, now) for column in columns]
    line: Object = {"cells": cells}
    if include == "Object":
        line["object"] = record.object
    elif include != "None":
        line["object"] = partial_metadata(record.object)
    return line


def table(
    columns: tuple[Column, ...],
    records: list[Record],
    metadata: Object,
    include: str,
    now: float,
    *,
    headers: bool = True,
) -> Object:
    """A whole Table; the later events of a watch omit the column definitions."""
    return {
        "kind": "Table",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": metadata,
        "columnDefinitions": [column.definition() for column in columns] if headers else [],
        "rows": [row(columns, record, include, now) for record in records],
    }
