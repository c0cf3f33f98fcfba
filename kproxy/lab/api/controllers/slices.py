"""The EndpointSlice controller: every Service with a selector gets slices that list its pods.

At most 100 endpoints a slice. Pods whose ports differ (named target ports) stand in slices of their own. An endpoint stays in the slice it
is in, new ones fill the gaps: one change writes one slice. A Service without endpoints keeps one empty slice per family.
"""

from __future__ import annotations

from collections.abc import Iterable

from kproxy.lab.api import kinds
from kproxy.lab.api.controllers import endpoints as parts
from kproxy.lab.api.controllers.index import Index
from kproxy.lab.api.controllers.owners import owner_reference
from kproxy.lab.api.kinds import Resource
from kproxy.lab.api.registry import Registry
from kproxy.lab.api.store import Change, Key
from kproxy.lab.api.values import Object, annotations_of, clone, dig, is_terminating, labels_of

NAME = "endpointslice-controller.k8s.io"
CAPACITY = 100

Ports = tuple[tuple[str, str, int, str], ...]


def selecting(index: Index, change: Change) -> list[Key]:
    """The Services that select a pod now or did before the change."""
    namespace = change.record.key[0]
    keys = index.services_selecting(namespace, labels_of(change.record.object))
    if change.previous is not None and labels_of(change.previous.object) != labels_of(change.record.object):
        keys += index.services_selecting(namespace, labels_of(change.previous.object))
    return keys


class SliceController:
    """The controller of slices made from pods."""

    def __init__(self, registry: Registry, index: Index) -> None:
        self._registry = registry
        self._index = index
        self._triggers = parts.TriggerTimes()

    def concerned(self, resource: Resource, change: Change) -> Iterable[Key]:
        """The Service; the Services that select a pod now or did before; every Service when a node changes its zone."""
        key = change.record.key
        if resource is kinds.SERVICES:
            return (key,)
        if resource is kinds.ENDPOINT_SLICES:
            name = labels_of(change.record.object).get(parts.SERVICE_NAME)
            mine = labels_of(change.record.object).get(parts.MANAGED_BY) == NAME
            return ((key[0], name),) if name and mine else ()
        if resource is kinds.PODS:
            return selecting(self._index, change)
        if resource is kinds.NODES and self._zone_changed(change):
            return [record.key for record in self._registry.store.records(kinds.SERVICES)]
        return ()

    def _zone_changed(self, change: Change) -> bool:
        before = labels_of(change.previous.object).get(parts.ZONE) if change.previous else None
        return change.type == "DELETED" or labels_of(change.record.object).get(parts.ZONE) != before

    def reconcile(self, key: Key) -> None:
        """Bring one Service's slices up to date."""
        service = self._registry.find(kinds.SERVICES, *key)
        existing = self._mine(key)
        if service is None or service["spec"].get("type") == "ExternalName":
            self._triggers.forget(key)
            for old in existing:
                self._delete(old)
            return
        if not parts.has_endpoints_of_pods(service) or is_terminating(service):
            return
        members = self._index.pods_selected(key[0], service["spec"]["selector"])
        members = [pod for pod in members if parts.belongs(pod, include_terminating=True)]
        trigger = self._triggers.changed_at(service, members)
        families = service["spec"].get("ipFamilies") or ["IPv4"]
        zones = {
            node["metadata"]["name"]: labels_of(node).get(parts.ZONE, "")
            for node in self._registry.objects(kinds.NODES)
        }
        for old in existing:
            if old["addressType"] not in families:
                self._delete(old)
        for family in families:
            mine = [old for old in existing if old["addressType"] == family]
            self._reconcile_family(service, family, members, zones, mine, trigger)

    def _mine(self, key: Key) -> list[Object]:
        found = []
        for obj in self._index.slices_of(key):
            if labels_of(obj).get(parts.MANAGED_BY) == NAME and not is_terminating(obj):
                found.append(obj)
        return sorted(found, key=lambda obj: str(obj["metadata"]["name"]))

    def _reconcile_family(
        self,
        service: Object,
        family: str,
        members: list[Object],
        zones: dict[str, str],
        existing: list[Object],
        trigger: str,
    ) -> None:
        wanted: dict[Ports, dict[str, Object]] = {}
        ports_of: dict[Ports, list[Object]] = {}
        for pod in sorted(members, key=lambda pod: str(pod["metadata"]["name"])):
            if parts.address_of(pod, family):
                ports = parts.slice_ports(service, pod)
                identity = _identity(ports)
                ports_of[identity] = ports
                made = parts.endpoint(service, pod, family, zones)
                wanted.setdefault(identity, {})[pod["metadata"]["uid"]] = made
        if not wanted:
            self._keep_placeholder(service, family, existing, trigger)
            return
        for old in existing:
            if _identity(old.get("ports") or []) not in wanted:
                self._delete(old)
        for identity, group in wanted.items():
            mine = [old for old in existing if _identity(old.get("ports") or []) == identity]
            self._fill(service, family, ports_of[identity], group, mine, trigger)

    def _keep_placeholder(self, service: Object, family: str, existing: list[Object], trigger: str) -> None:
        if not existing:
            self._create(service, family, [], [], trigger)
            return
        for old in existing[1:]:
            self._delete(old)
        self._write(service, existing[0], [], [], trigger)

    def _fill(
        self,
        service: Object,
        family: str,
        ports: list[Object],
        group: dict[str, Object],
        mine: list[Object],
        trigger: str,
    ) -> None:
        left = dict(group)
        contents: list[tuple[Object, list[Object]]] = []
        for old in mine:
            uids = [dig(item, "targetRef", "uid", default="") for item in old.get("endpoints") or ()]
            contents.append((old, [left.pop(uid) for uid in uids if uid in left]))
        new = list(left.values())
        for _, content in sorted(contents, key=lambda pair: -len(pair[1])):
            space = CAPACITY - len(content)
            content += new[:space]
            new = new[space:]
        for old, content in contents:
            if content:
                self._write(service, old, content, ports, trigger)
            else:
                self._delete(old)
        for start in range(0, len(new), CAPACITY):
            self._create(service, family, new[start : start + CAPACITY], ports, trigger)

    def _labels(self, service: Object) -> dict[str, str]:
        labels = parts.copied_labels(service)
        labels[parts.SERVICE_NAME] = service["metadata"]["name"]
        labels[parts.MANAGED_BY] = NAME
        return labels

    def _create(self, service: Object, family: str, content: list[Object], ports: list[Object], trigger: str) -> None:
        metadata: Object = {
            "generateName": service["metadata"]["name"] + "-",
            "labels": self._labels(service),
            "ownerReferences": [owner_reference(kinds.SERVICES, service)],
        }
        if trigger:
            metadata["annotations"] = {parts.TRIGGER: trigger}
        made = {"metadata": metadata, "addressType": family, "endpoints": content, "ports": ports}
        self._registry.create(kinds.ENDPOINT_SLICES, service["metadata"]["namespace"], made)

    def _write(self, service: Object, old: Object, content: list[Object], ports: list[Object], trigger: str) -> None:
        labels = self._labels(service)
        same = (old.get("endpoints") or [], old.get("ports") or [], labels_of(old)) == (content, ports, labels)
        if same:
            return

        def change(copy: Object) -> Object:
            copy["endpoints"], copy["ports"] = content, clone(ports)
            copy["metadata"]["labels"] = labels
            annotations = {key: value for key, value in annotations_of(copy).items() if key != parts.TRIGGER}
            if trigger:
                annotations[parts.TRIGGER] = trigger
            copy["metadata"]["annotations"] = annotations or None
            return copy

        self._registry.update(kinds.ENDPOINT_SLICES, old["metadata"]["namespace"], old["metadata"]["name"], change)

    def _delete(self, old: Object) -> None:
        self._registry.delete(kinds.ENDPOINT_SLICES, old["metadata"]["namespace"], old["metadata"]["name"])


def _identity(ports: list[Object]) -> Ports:
    """What makes two lists of ports the same, whatever their order."""
    return tuple(
        sorted(
            (port.get("name", ""), port.get("protocol", "TCP"), port.get("port") or 0, port.get("appProtocol", ""))
            for port in ports
        )
    )
