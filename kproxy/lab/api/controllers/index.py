"""What controllers look up often, kept up to date with every change instead of searched for: who selects a pod, which pods a selector
selects, whose pods they are, how many run where, which slices a Service has.

It must be subscribed to the store before the controllers are, for they ask about the change they are told of. Every answer is a superset
check away from exact: a selector is looked up by one of its terms, the rest is compared.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Mapping
from typing import TypeVar

from kproxy.lab.api import kinds
from kproxy.lab.api.controllers.owners import controller_reference
from kproxy.lab.api.controllers.pods import is_active
from kproxy.lab.api.kinds import Resource
from kproxy.lab.api.store import Change, Key, Store
from kproxy.lab.api.values import Object, dig, labels_of

Term = tuple[str, str, str]  # namespace, label, value
SERVICE_NAME = "kubernetes.io/service-name"
K = TypeVar("K", bound=Hashable)
V = TypeVar("V", bound=Hashable)


def selects(selector: Mapping[str, str] | None, labels: Mapping[str, str]) -> bool:
    """Whether a plain selector matches labels; an empty one matches nothing."""
    if not selector:
        return False
    for key, value in selector.items():  # noqa: SIM110  (a loop is twice as fast as all() here, and this runs for every pair)
        if labels.get(key) != value:
            return False
    return True


class Index:
    """The look-ups over one store."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._services: dict[Term, dict[str, None]] = defaultdict(dict)  # one term of each selector → Services
        self._pods: dict[Term, dict[str, None]] = defaultdict(dict)  # every label → pods
        self._owned: dict[str, dict[Key, None]] = defaultdict(dict)  # controller's uid → pods
        self._slices: dict[Key, dict[str, None]] = defaultdict(dict)  # Service → slices
        self._on_node: Counter[str] = Counter()
        self._siblings: Counter[tuple[str, str]] = Counter()  # node, controller's uid
        store.subscribe(self._notice)

    def services_selecting(self, namespace: str, labels: Mapping[str, str]) -> list[Key]:
        """The Services that select a pod with these labels."""
        found = []
        for key, value in labels.items():
            for name in self._services.get((namespace, key, value), ()):
                record = self._store.get(kinds.SERVICES, namespace, name)
                if record is not None and selects(record.object["spec"].get("selector"), labels):
                    found.append(record.key)
        return found

    def pods_selected(self, namespace: str, selector: Mapping[str, str] | None) -> list[Object]:
        """The pods a plain selector selects."""
        if not selector:
            return []
        key, value = next(iter(selector.items()))
        found = self._look_up(kinds.PODS, ((namespace, name) for name in self._pods.get((namespace, key, value), ())))
        return [pod for pod in found if selects(selector, labels_of(pod))]

    def pods_owned(self, owner: Object) -> list[Object]:
        """The pods whose controller an object is."""
        return self._look_up(kinds.PODS, self._owned.get(owner["metadata"]["uid"], ()))

    def slices_of(self, service: Key) -> list[Object]:
        """The EndpointSlices that name a Service."""
        return self._look_up(kinds.ENDPOINT_SLICES, ((service[0], name) for name in self._slices.get(service, ())))

    def load(self, node: str, owner: str) -> tuple[int, int]:
        """How many active pods of one controller, and how many at all, are on a node."""
        return self._siblings[(node, owner)] if owner else 0, self._on_node[node]

    def _look_up(self, resource: Resource, keys: Iterable[Key]) -> list[Object]:
        records = (self._store.get(resource, *key) for key in list(keys))
        return [record.object for record in records if record is not None]

    def _notice(self, resource: Resource, change: Change) -> None:
        if resource not in (kinds.SERVICES, kinds.PODS, kinds.ENDPOINT_SLICES):
            return
        key = change.record.key
        if change.previous is not None:
            self._turn(resource, key, change.previous.object, add=False)
        if change.type != "DELETED":
            self._turn(resource, key, change.record.object, add=True)

    def _turn(self, resource: Resource, key: Key, obj: Object, *, add: bool) -> None:
        namespace, name = key
        if resource is kinds.SERVICES:
            selector = dig(obj, "spec", "selector", default={})
            for label, value in list(selector.items())[:1]:
                _put(self._services, (namespace, label, value), name, add=add)
        elif resource is kinds.ENDPOINT_SLICES:
            _put(self._slices, (namespace, labels_of(obj).get(SERVICE_NAME, "")), name, add=add)
        else:
            for label, value in labels_of(obj).items():
                _put(self._pods, (namespace, label, value), name, add=add)
            owner = (controller_reference(obj) or {}).get("uid", "")
            if owner:
                _put(self._owned, owner, key, add=add)
            node = dig(obj, "spec", "nodeName", default="")
            if node and is_active(obj):
                self._on_node[node] += 1 if add else -1
                self._siblings[(node, owner)] += 1 if add else -1


def _put(table: dict[K, dict[V, None]], key: K, value: V, *, add: bool) -> None:
    if add:
        table[key][value] = None
    elif key in table:
        table[key].pop(value, None)
        if not table[key]:
            del table[key]
