"""The Endpoints controller (for `kubectl get endpoints`), and the mirroring of hand-made Endpoints into EndpointSlices.

Endpoints carry the first family only, group addresses by their ports, and leave terminating pods out. Mirroring is for Services without a
selector: what people write into Endpoints appears as slices, which is all that proxies and DNS look at.
"""

from __future__ import annotations

from collections.abc import Iterable

from kproxy.lab.api import kinds
from kproxy.lab.api.controllers import endpoints as parts
from kproxy.lab.api.controllers import pods
from kproxy.lab.api.controllers.index import Index
from kproxy.lab.api.controllers.owners import owner_reference
from kproxy.lab.api.controllers.slices import selecting
from kproxy.lab.api.fields import parse_ip
from kproxy.lab.api.kinds import Resource
from kproxy.lab.api.objects.service_types import is_headless
from kproxy.lab.api.registry import Registry
from kproxy.lab.api.store import Change, Key
from kproxy.lab.api.values import Object, annotations_of, clone, dig, labels_of

MANAGED_BY = "endpoints.kubernetes.io/managed-by"
NAME = "endpoint-controller"
MIRROR_NAME = "endpointslicemirroring-controller.k8s.io"
SKIP_MIRROR = "endpointslice.kubernetes.io/skip-mirror"
LEADER = "control-plane.alpha.kubernetes.io/leader"
APPLIED = "kubectl.kubernetes.io/last-applied-configuration"
MAX_ADDRESSES = 1000

Port = tuple[str, str, int]


class EndpointsController:
    """The controller of Endpoints made from pods."""

    def __init__(self, registry: Registry, index: Index) -> None:
        self._registry = registry
        self._index = index
        self._triggers = parts.TriggerTimes()

    def concerned(self, resource: Resource, change: Change) -> Iterable[Key]:
        """The Service, its Endpoints, and the Services that select a pod now or did before."""
        key = change.record.key
        if resource in (kinds.SERVICES, kinds.ENDPOINTS):
            return (key,)
        if resource is not kinds.PODS:
            return ()
        return selecting(self._index, change)

    def reconcile(self, key: Key) -> None:
        """Bring one Service's Endpoints up to date; they go with the Service."""
        service = self._registry.find(kinds.SERVICES, *key)
        current = self._registry.find(kinds.ENDPOINTS, *key)
        if service is None:
            self._triggers.forget(key)
            if current is not None and LEADER not in annotations_of(current):
                self._registry.delete(kinds.ENDPOINTS, *key)
            return
        if not parts.has_endpoints_of_pods(service):
            return
        published = bool(service["spec"].get("publishNotReadyAddresses"))
        members = self._index.pods_selected(key[0], service["spec"]["selector"])
        trigger = self._triggers.changed_at(service, members)
        members = [pod for pod in members if parts.belongs(pod, include_terminating=published)]
        subsets = subsets_of(service, members)
        labels = dict(labels_of(service))
        labels.pop(parts.HEADLESS, None)
        if is_headless(service["spec"]):
            labels[parts.HEADLESS] = ""
        labels[MANAGED_BY] = NAME
        if current is None:
            metadata: Object = {"name": key[1], "labels": labels}
            if trigger:
                metadata["annotations"] = {parts.TRIGGER: trigger}
            self._registry.create(kinds.ENDPOINTS, key[0], {"metadata": metadata, "subsets": subsets or None})
        elif (current.get("subsets") or []) != subsets or labels_of(current) != labels:
            self._write(key, subsets, labels, trigger)

    def _write(self, key: Key, subsets: list[Object], labels: dict[str, str], trigger: str) -> None:
        def change(copy: Object) -> Object:
            copy["subsets"] = subsets or None
            copy["metadata"]["labels"] = labels
            annotations = {name: value for name, value in annotations_of(copy).items() if name != parts.TRIGGER}
            if trigger:
                annotations[parts.TRIGGER] = trigger
            copy["metadata"]["annotations"] = annotations or None
            return copy

        self._registry.update(kinds.ENDPOINTS, key[0], key[1], change)


def subsets_of(service: Object, members: list[Object]) -> list[Object]:
    """The subsets: addresses that have the same ports stand together (RepackSubsets)."""
    family = (service["spec"].get("ipFamilies") or ["IPv4"])[0]
    published = bool(service["spec"].get("publishNotReadyAddresses"))
    groups: dict[tuple[Port, ...], tuple[list[Object], list[Object]]] = {}
    for pod in members:
        address = _address(service, pod, family)
        if address is None:
            continue
        ports = tuple((p["name"], p["protocol"], p["port"]) for p in parts.slice_ports(service, pod))
        if not ports and service["spec"].get("ports"):
            continue
        ready, waiting = groups.setdefault(ports, ([], []))
        (ready if published or pods.is_ready(pod) else waiting).append(address)
    subsets = []
    for ports in sorted(groups):
        ready, waiting = groups[ports]
        subset: Object = {}
        for field, addresses in (("addresses", ready), ("notReadyAddresses", waiting)):
            if addresses:
                subset[field] = sorted(addresses, key=lambda address: int(parse_ip(address["ip"]) or 0))
        if ports:
            subset["ports"] = [_port(*port) for port in sorted(ports)]
        subsets.append(subset)
    return subsets


def _port(name: str, protocol: str, number: int) -> Object:
    port: Object = {"port": number, "protocol": protocol}
    return {"name": name, **port} if name else port


def _address(service: Object, pod: Object, family: str) -> Object | None:
    ip = parts.address_of(pod, family)
    if not ip:
        return None
    address: Object = {"ip": ip, "targetRef": parts.reference(pod)}
    if dig(pod, "spec", "nodeName"):
        address["nodeName"] = pod["spec"]["nodeName"]
    if parts.shows_hostname(service, pod):
        address["hostname"] = pod["spec"]["hostname"]
    return address


class MirrorController:
    """The controller of slices made from hand-made Endpoints."""

    def __init__(self, registry: Registry, index: Index) -> None:
        self._registry = registry
        self._index = index

    def concerned(self, resource: Resource, change: Change) -> Iterable[Key]:
        """Endpoints, and the Service of the same name."""
        if resource in (kinds.ENDPOINTS, kinds.SERVICES):
            return (change.record.key,)
        labels = labels_of(change.record.object)
        if resource is kinds.ENDPOINT_SLICES and labels.get(parts.MANAGED_BY) == MIRROR_NAME:
            return ((change.record.key[0], labels.get(parts.SERVICE_NAME, "")),)
        return ()

    def reconcile(self, key: Key) -> None:
        """Make the slices say what the Endpoints say, or remove them."""
        source = self._registry.find(kinds.ENDPOINTS, *key)
        service = self._registry.find(kinds.SERVICES, *key)
        wanted: list[Object] = []
        if (
            source is not None
            and service is not None
            and not service["spec"].get("selector")
            and self._is_mirrored(source)
        ):
            wanted = mirrored(source)
        existing = [obj for obj in self._index.slices_of(key) if self._is_mine(obj)]
        for new in wanted:
            old = next((obj for obj in existing if _same_place(obj, new)), None)
            if old is None:
                self._registry.create(kinds.ENDPOINT_SLICES, key[0], new)
            else:
                existing.remove(old)
                self._write(old, new)
        for old in existing:
            self._registry.delete(kinds.ENDPOINT_SLICES, key[0], old["metadata"]["name"])

    def _is_mirrored(self, source: Object) -> bool:
        return labels_of(source).get(SKIP_MIRROR) != "true" and LEADER not in annotations_of(source)

    def _is_mine(self, obj: Object) -> bool:
        return labels_of(obj).get(parts.MANAGED_BY) == MIRROR_NAME

    def _write(self, old: Object, new: Object) -> None:
        def change(copy: Object) -> Object:
            copy["endpoints"], copy["ports"] = new["endpoints"], new["ports"]
            copy["metadata"]["labels"] = new["metadata"]["labels"]
            copy["metadata"]["annotations"] = new["metadata"].get("annotations")
            return copy

        self._registry.update(kinds.ENDPOINT_SLICES, old["metadata"]["namespace"], old["metadata"]["name"], change)


def _same_place(old: Object, new: Object) -> bool:
    return bool(old["addressType"] == new["addressType"] and (old.get("ports") or []) == new["ports"])


def mirrored(source: Object) -> list[Object]:
    """The slices that hand-made Endpoints become: one per subset and family."""
    metadata = source["metadata"]
    labels = {**labels_of(source), parts.SERVICE_NAME: metadata["name"], parts.MANAGED_BY: MIRROR_NAME}
    annotations = {k: v for k, v in annotations_of(source).items() if k not in (parts.TRIGGER, APPLIED)}
    made: dict[tuple[str, str], Object] = {}
    for subset in source.get("subsets") or ():
        ports = [_mirrored_port(port) for port in subset.get("ports") or ()]
        for field, ready in (("addresses", True), ("notReadyAddresses", False)):
            for address in (subset.get(field) or ())[:MAX_ADDRESSES]:
                parsed = parse_ip(address.get("ip"))
                if parsed is None:
                    continue
                family = f"IPv{parsed.version}"
                place = (family, str(ports))
                if place not in made:
                    made[place] = {
                        "metadata": {
                            "generateName": metadata["name"] + "-",
                            "labels": dict(labels),
                            "ownerReferences": [owner_reference(kinds.ENDPOINTS, source)],
                        },
                        "addressType": family,
                        "endpoints": [],
                        "ports": ports,
                    }
                    if annotations:
                        made[place]["metadata"]["annotations"] = dict(annotations)
                made[place]["endpoints"].append(_mirrored_endpoint(address, str(parsed), ready))
    return list(made.values())


def _mirrored_port(port: Object) -> Object:
    made: Object = {"name": port.get("name", ""), "protocol": port.get("protocol", "TCP"), "port": port.get("port")}
    if "appProtocol" in port:
        made["appProtocol"] = port["appProtocol"]
    return made


def _mirrored_endpoint(address: Object, ip: str, ready: bool) -> Object:
    made: Object = {"addresses": [ip], "conditions": {"ready": ready}}
    for field in ("nodeName", "hostname"):
        if address.get(field):
            made[field] = address[field]
    if address.get("targetRef"):
        made["targetRef"] = clone(address["targetRef"])
    return made
