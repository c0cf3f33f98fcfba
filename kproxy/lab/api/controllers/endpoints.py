"""What EndpointSlices and Endpoints are made of: one Service's pods as endpoints, and when they last changed.

Shared by `slices` and `endpoints_objects`; follows k8s.io/endpointslice v0.36.3. Pure functions of Service, pods and nodes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from kproxy.lab.api.controllers import index, pods
from kproxy.lab.api.fields import parse_ip
from kproxy.lab.api.objects.service_types import is_headless
from kproxy.lab.api.values import Object, dig, is_terminating, labels_of, parse_timestamp, timestamp

ZONE = "topology.kubernetes.io/zone"
TRIGGER = "endpoints.kubernetes.io/last-change-trigger-time"
HEADLESS = "service.kubernetes.io/headless"
SERVICE_NAME = "kubernetes.io/service-name"
MANAGED_BY = "endpointslice.kubernetes.io/managed-by"


def has_endpoints_of_pods(service: Object) -> bool:
    """Whether a Service's endpoints are ours to find."""
    return service["spec"].get("type") != "ExternalName" and bool(service["spec"].get("selector"))


def selects(service: Object, pod: Object) -> bool:
    """Whether a Service selects a pod."""
    return index.selects(service["spec"].get("selector"), labels_of(pod))


def belongs(pod: Object, *, include_terminating: bool) -> bool:
    """Whether a selected pod appears at all: it has an address and has not ended."""
    if pods.has_ended(pod) or not pods.addresses(pod):
        return False
    return include_terminating or not is_terminating(pod)


def address_of(pod: Object, family: str) -> str:
    """The pod's address in one family, "" when it has none."""
    for address in pods.addresses(pod):
        parsed = parse_ip(address)
        if parsed is not None and f"IPv{parsed.version}" == family:
            return address
    return ""


def target_port(service_port: Object, pod: Object) -> int | None:
    """The port of the pod that a port of the Service leads to; None when the pod has no port of that name."""
    wanted = service_port.get("targetPort", service_port.get("port"))
    if isinstance(wanted, int):
        return wanted
    for container in pods.containers(pod):
        for port in container.get("ports") or ():
            if port.get("name") == wanted and port.get("protocol", "TCP") == service_port.get("protocol", "TCP"):
                return int(port["containerPort"])
    return None


def slice_ports(service: Object, pod: Object) -> list[Object]:
    """The ports of a slice that this pod may appear in."""
    ports = []
    for service_port in service["spec"].get("ports") or ():
        number = target_port(service_port, pod)
        if number is None:
            continue
        port: Object = {
            "name": service_port.get("name", ""),
            "protocol": service_port.get("protocol", "TCP"),
            "port": number,
        }
        if "appProtocol" in service_port:
            port["appProtocol"] = service_port["appProtocol"]
        ports.append(port)
    return ports


def shows_hostname(service: Object, pod: Object) -> bool:
    """Whether the pod has a DNS name of its own below the Service."""
    spec = pod["spec"]
    return bool(spec.get("hostname")) and spec.get("subdomain") == service["metadata"]["name"]


def reference(pod: Object) -> Object:
    """The reference to a pod."""
    metadata = pod["metadata"]
    return {"kind": "Pod", "namespace": metadata["namespace"], "name": metadata["name"], "uid": metadata["uid"]}


def endpoint(service: Object, pod: Object, family: str, zones: Mapping[str, str]) -> Object:
    """One endpoint of a slice, with the hint that trafficDistribution asks for."""
    serving, terminating = pods.is_ready(pod), is_terminating(pod)
    ready = bool(service["spec"].get("publishNotReadyAddresses")) or (serving and not terminating)
    made: Object = {
        "addresses": [address_of(pod, family)],
        "conditions": {"ready": ready, "serving": serving, "terminating": terminating},
        "targetRef": reference(pod),
    }
    node = dig(pod, "spec", "nodeName", default="")
    if node:
        made["nodeName"] = node
        if zones.get(node):
            made["zone"] = zones[node]
    if shows_hostname(service, pod):
        made["hostname"] = pod["spec"]["hostname"]
    hints = _hints(service["spec"].get("trafficDistribution"), made) if ready else {}
    if hints:
        made["hints"] = hints
    return made


def _hints(distribution: object, made: Object) -> Object:
    hints: Object = {}
    if distribution in ("PreferClose", "PreferSameZone", "PreferSameNode") and made.get("zone"):
        hints["forZones"] = [{"name": made["zone"]}]
    if distribution == "PreferSameNode" and made.get("nodeName"):
        hints["forNodes"] = [{"name": made["nodeName"]}]
    return hints


def copied_labels(service: Object) -> dict[str, str]:
    """The Service's labels without those that belong to slices."""
    reserved = (SERVICE_NAME, MANAGED_BY, HEADLESS)
    labels = {key: value for key, value in labels_of(service).items() if key not in reserved}
    if is_headless(service["spec"]):
        labels[HEADLESS] = ""
    return labels


@dataclass(slots=True)
class TriggerTimes:
    """When the pods of each Service last changed, so that a slice can say which change it shows."""

    _known: dict[tuple[str, str], dict[str, float]] = field(default_factory=dict)

    def changed_at(self, service: Object, members: list[Object]) -> str:
        """The time of the earliest change since the last call, as the annotation's value; "" when there was none."""
        metadata = service["metadata"]
        key = (metadata["namespace"], metadata["name"])
        seen = {metadata["uid"]: parse_timestamp(metadata.get("creationTimestamp")) or 0.0}
        for pod in members:
            condition = pods.condition(pod, "Ready")
            moment = parse_timestamp((condition or {}).get("lastTransitionTime"))
            if moment is not None:
                seen[pod["metadata"]["uid"]] = moment
        before = self._known.get(key, {})
        self._known[key] = seen
        changed = [moment for uid, moment in seen.items() if before.get(uid) != moment]
        return timestamp(min(changed)) if changed else ""

    def forget(self, key: tuple[str, str]) -> None:
        """The Service is gone."""
        self._known.pop(key, None)
