"""Namespaces: what every one is given, and how one that is deleted is emptied."""

from __future__ import annotations

from collections.abc import Iterable

from kproxy.lab.api import kinds, scaling
from kproxy.lab.api.kinds import RESOURCES, Resource
from kproxy.lab.api.registry import Registry
from kproxy.lab.api.store import Change, Key
from kproxy.lab.api.values import is_terminating


class NamespaceController:
    """Gives every namespace its default ServiceAccount; empties those that are going, and lets them go when they are empty."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def concerned(self, resource: Resource, change: Change) -> Iterable[Key]:
        """The namespace; and a namespace that is going when something in it has gone."""
        if resource is kinds.NAMESPACES:
            return (("", change.record.key[1]),)
        gone = change.type == "DELETED" and change.record.key[0]
        return (("", change.record.key[0]),) if gone else ()

    def reconcile(self, key: Key) -> None:
        """One namespace."""
        namespace = self._registry.find(kinds.NAMESPACES, "", key[1])
        if namespace is None:
            return
        if not is_terminating(namespace):
            if self._registry.find(kinds.SERVICE_ACCOUNTS, key[1], "default") is None:
                self._registry.create(kinds.SERVICE_ACCOUNTS, key[1], {"metadata": {"name": "default"}})
            return
        left = False
        for resource in RESOURCES:
            for record in self._registry.store.records(resource, key[1]) if resource.namespaced else ():
                if self._registry.store.get(resource, *record.key) is None:
                    continue
                if not is_terminating(record.object):
                    self._registry.delete(resource, *record.key)
                left = left or self._registry.store.get(resource, *record.key) is not None
        if not left and self._registry.find(kinds.NAMESPACES, "", key[1]) is not None:
            scaling.finalize(self._registry, key[1], [])
