"""Which columns belong to which kind."""

from __future__ import annotations

from kproxy.lab.api.kinds import Resource
from kproxy.lab.api.tables.table import DEFAULT, Column

_TABLES: dict[str, tuple[Column, ...]] = {}


def columns_of(resource: Resource) -> tuple[Column, ...]:
    """The columns of a kind."""
    return _TABLES.get(resource.group_resource, DEFAULT)
