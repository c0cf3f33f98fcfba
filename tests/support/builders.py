"""Short builders of API objects: each gives the manifest (what an API server is told) and the decoded object (what the model sees).

    svc(ports=[port(80, node=3001)], lb=[VIP])    Service ns1/svc1, port p80, cluster IP 172.30.0.41
    slice_(ep("10.180.0.1", local=True))          its EndpointSlice: p80 -> 80, one ready endpoint on this node

`Built.api` is complete enough for a real API server: created as it stands, then its `status` written to the status subresource. Two
things about such a server: the rows use node ports like 3001 (start it with --service-node-port-range=1-32767) and cluster IPs of
172.30.0.0/16 and fd00:172:30::/112. The two halves are made separately on purpose: a test decodes `api` with the real decoder and
expects `object`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from kproxy.model.events import Applied, Event, Replaced
from kproxy.model.names import Family, NamespacedName, Protocol
from kproxy.model.objects import (
    Decoded,
    EndpointSlice,
    Kind,
    Node,
    Object,
    PortSpec,
    Service,
    SliceEndpoint,
    SlicePort,
    TrafficPolicy,
    key_of,
)
from kproxy.model.snapshot import Snapshot, fold
from tests.support.addressing import CLUSTER_IP, NODE, NODE_IP, OTHER_NODE, six

PROXY_NAME_LABEL = "service.kubernetes.io/service-proxy-name"
HEADLESS_LABEL = "service.kubernetes.io/headless"
ZONE_LABEL = "topology.kubernetes.io/zone"


@dataclass(frozen=True)
class Built:
    """One object, twice: as a manifest and as the model's value."""

    api: dict[str, Any]
    object: Object

    @property
    def decoded(self) -> Decoded:
        """What a flawless decoder makes of `api`."""
        return Decoded(key=key_of(self.object), object=self.object)


@dataclass(frozen=True)
class Port:
    """One port of a Service; `target` is what the API is told, the slice says where traffic really goes."""

    number: int
    name: str
    protocol: Protocol
    node: int
    target: int


def port(number: int = 80, name: str = "p80", protocol: str = "TCP", *, node: int = 0, target: int = 0) -> Port:
    """A Service port; `node` is its node port."""
    return Port(number, name, Protocol(protocol), node, target or number)


def svc(
    ip: str | Sequence[str] = CLUSTER_IP,
    *,
    name: str = "svc1",
    namespace: str = "ns1",
    ports: Sequence[Port] | None = None,
    type: str = "",
    external: Sequence[str] = (),
    lb: Sequence[str | dict[str, str]] = (),
    ranges: Sequence[str] = (),
    internal_policy: str = "Cluster",
    external_policy: str = "Cluster",
    affinity_s: int | None = None,
    labels: dict[str, str] | None = None,
    health: int = 0,
    external_name: str = "",
) -> Built:
    """A Service.

    ip: cluster IPs in order, "None" for headless. lb: ingress entries, an address or the whole entry. type: derived when empty.
    """
    ips = [ip] if isinstance(ip, str) else list(ip)
    ports = [port()] if ports is None else ports
    type = type or _type_of(ports, lb)
    spec: dict[str, Any] = {
        "type": type,
        "internalTrafficPolicy": internal_policy,
        "ports": [_api_port(p) for p in ports],
    }
    if ips:
        spec |= {"clusterIP": ips[0], "clusterIPs": ips}
    if ips and ips[0] != "None":
        spec["ipFamilies"] = [("IPv6" if ":" in a else "IPv4") for a in ips]
        spec["ipFamilyPolicy"] = "RequireDualStack" if len(ips) > 1 else "SingleStack"
    if external:
        spec["externalIPs"] = list(external)
    if ranges:
        spec["loadBalancerSourceRanges"] = list(ranges)
    if type != "ClusterIP" or external or external_policy != "Cluster":
        spec["externalTrafficPolicy"] = external_policy
    if affinity_s is not None:
        spec |= {"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": affinity_s}}}
    if health:
        spec["healthCheckNodePort"] = health
    if external_name:
        spec["externalName"] = external_name
        spec.pop("externalTrafficPolicy"), spec.pop("internalTrafficPolicy")
    ingress = [{"ip": entry} if isinstance(entry, str) else entry for entry in lb]
    api = _api("v1", "Service", name, namespace, labels, spec=spec)
    if ingress:
        api["status"] = {"loadBalancer": {"ingress": ingress}}
    built = Service(
        name=NamespacedName(namespace, name),
        type=type,
        proxied=PROXY_NAME_LABEL not in (labels or {}),
        cluster_ips=tuple(a for a in ips if a != "None"),
        headless=ips == ["None"],
        external_name=external_name,
        external_ips=tuple(external),
        load_balancer_ips=tuple(e["ip"] for e in ingress if e.get("ip") and e.get("ipMode", "VIP") == "VIP"),
        load_balancer_proxy_ips=tuple(e["ip"] for e in ingress if e.get("ip") and e.get("ipMode") == "Proxy"),
        load_balancer_hostnames=tuple(e["hostname"] for e in ingress if e.get("hostname")),
        source_ranges=tuple(r.strip() for r in ranges),
        ports=tuple(PortSpec(name=p.name, protocol=p.protocol, port=p.number, node_port=p.node) for p in ports),
        affinity_timeout_s=affinity_s,
        internal_policy=TrafficPolicy(internal_policy),
        external_policy=TrafficPolicy(external_policy),
        health_check_node_port=health,
    )
    return Built(api, built)


def _type_of(ports: Sequence[Port], lb: Sequence[object]) -> str:
    if lb:
        return "LoadBalancer"
    return "NodePort" if any(p.node for p in ports) else "ClusterIP"


def _api_port(p: Port) -> dict[str, Any]:
    entry: dict[str, Any] = {"name": p.name, "protocol": p.protocol.value, "port": p.number, "targetPort": p.target}
    return entry | ({"nodePort": p.node} if p.node else {})


@dataclass(frozen=True)
class Member:
    """One endpoint of a slice; a condition of None is left out of the manifest, as old controllers do."""

    addresses: tuple[str, ...]
    node: str
    ready: bool | None
    serving: bool | None
    terminating: bool | None
    zones: tuple[str, ...]
    nodes: tuple[str, ...]


def ep(
    address: str,
    *also: str,
    local: bool = False,
    node: str = "",
    ready: bool | None = True,
    serving: bool | None = None,
    terminating: bool | None = None,
    zones: Iterable[str] = (),
    nodes: Iterable[str] = (),
) -> Member:
    """An endpoint, ready unless said otherwise; `also` are further entries of `addresses`, `zones` and `nodes` its hints."""
    where = node or (NODE if local else OTHER_NODE)
    return Member((address, *also), where, ready, serving, terminating, tuple(zones), tuple(nodes))


def draining(address: str, *, local: bool = False) -> Member:
    """Serving and terminating: the API's picture of a pod that is shutting down and still answers."""
    return ep(address, local=local, ready=False, serving=True, terminating=True)


def terminated(address: str, *, local: bool = False) -> Member:
    """Terminating and no longer serving."""
    return ep(address, local=local, ready=False, serving=False, terminating=True)


def unready(address: str, *, local: bool = False) -> Member:
    """Not ready, not terminating."""
    return ep(address, local=local, ready=False, serving=False, terminating=False)


def slice_(
    *members: Member,
    of: str = "svc1",
    namespace: str = "ns1",
    name: str = "",
    ports: Sequence[tuple[str | None, int | None, str]] = (("p80", 80, "TCP"),),
    family: str = "IPv4",
    labels: dict[str, str] | None = None,
) -> Built:
    """An EndpointSlice of Service `of`. ports: (name, number, protocol); None leaves the field out."""
    name = name or f"{of}-{family.lower()}"
    api_ports = []
    for port_name, number, protocol in ports:
        entry: dict[str, Any] = {"protocol": protocol}
        if port_name is not None:
            entry["name"] = port_name
        if number is not None:
            entry["port"] = number
        api_ports.append(entry)
    api = _api(
        "discovery.k8s.io/v1", "EndpointSlice", name, namespace, {"kubernetes.io/service-name": of} | (labels or {})
    )
    api |= {"addressType": family, "endpoints": [_api_member(m) for m in members], "ports": api_ports}
    built = EndpointSlice(
        name=NamespacedName(namespace, name),
        service=NamespacedName(namespace, of),
        family=Family(family),
        proxied=HEADLESS_LABEL not in (labels or {}),
        ports=tuple(SlicePort(name=n, protocol=Protocol(p), port=no) for n, no, p in ports if n is not None and no),
        endpoints=tuple(_member(m) for m in members),
    )
    return Built(api, built)


def _api_member(m: Member) -> dict[str, Any]:
    pairs = {"ready": m.ready, "serving": m.serving, "terminating": m.terminating}
    entry: dict[str, Any] = {
        "addresses": list(m.addresses),
        "nodeName": m.node,
        "conditions": {k: v for k, v in pairs.items() if v is not None},
    }
    hints: dict[str, Any] = {}
    if m.zones:
        hints["forZones"] = [{"name": z} for z in m.zones]
    if m.nodes:
        hints["forNodes"] = [{"name": n} for n in m.nodes]
    return entry | ({"hints": hints} if hints else {})


def _member(m: Member) -> SliceEndpoint:
    return SliceEndpoint(
        address=m.addresses[0],
        ready=m.ready is not False,
        serving=m.serving is not False,
        terminating=bool(m.terminating),
        node_name=m.node,
        hint_zones=m.zones,
        hint_nodes=m.nodes,
    )


def node(
    name: str = NODE,
    *,
    addresses: Sequence[str] = (NODE_IP, six(NODE_IP)),
    pod_cidrs: Sequence[str] = ("10.0.0.0/24", "fd00:10::/64"),
    zone: str = "",
) -> Built:
    """A Node with both families."""
    api: dict[str, Any] = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}}
    if zone:
        api["metadata"]["labels"] = {ZONE_LABEL: zone}
    api["spec"] = {"podCIDR": pod_cidrs[0], "podCIDRs": list(pod_cidrs)} if pod_cidrs else {}
    api["status"] = {"addresses": [{"type": "InternalIP", "address": a} for a in addresses]}
    return Built(api, Node(name=name, addresses=tuple(addresses), pod_cidrs=tuple(pod_cidrs), zone=zone))


def _api(
    version: str, kind: str, name: str, namespace: str, labels: dict[str, str] | None, **rest: Any
) -> dict[str, Any]:
    metadata: dict[str, Any] = {"name": name, "namespace": namespace}
    if labels:
        metadata["labels"] = dict(labels)
    return {"apiVersion": version, "kind": kind, "metadata": metadata, **rest}


def replaced(objects: Iterable[Built]) -> list[Event]:
    """The events of a first list of every kind that holds exactly `objects`."""
    of_kind: dict[Kind, list[Decoded]] = {kind: [] for kind in Kind}
    for built in objects:
        of_kind[key_of(built.object).kind].append(built.decoded)
    return [Replaced(kind, tuple(listed)) for kind, listed in of_kind.items()]


def applied(*objects: Built) -> list[Event]:
    """One event for each object."""
    return [Applied(built.decoded) for built in objects]


def snapshot(*objects: Built) -> Snapshot:
    """A synced snapshot that holds exactly `objects`."""
    return fold(Snapshot(), replaced(objects))
