"""The API objects kproxy looks at, cut down to the fields it uses, already parsed.

What comes in: JSON from a watch or YAML from a file, decoded and checked by `watch.decode`. What comes out: frozen values whose
addresses and networks are *canonical text* (`10.0.0.1`, `fd00::1`, `10.0.0.0/8`): text hashes and compares faster than
`ipaddress` objects and is what every data plane prints in the end. What must not happen here: raising over a bad object. The decoder
returns the object without its broken part and a `Problem` for each such part.

The label tests of kube-proxy (`service.kubernetes.io/service-proxy-name` on Services, `service.kubernetes.io/headless` on slices)
are a field here (`proxied`), not a selector of the watch: one watch feeds the proxy *and* DNS, and DNS has to answer for headless
Services, whose slices bear the second label.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from kproxy.model.names import Family, NamespacedName, Protocol


class Kind(Enum):
    """The kinds that are watched; the value is the API's kind."""

    __hash__ = object.__hash__

    SERVICE = "Service"
    ENDPOINT_SLICE = "EndpointSlice"
    NODE = "Node"
    NAMESPACE = "Namespace"
    POD = "Pod"
    SERVICE_IMPORT = "ServiceImport"


@dataclass(frozen=True, slots=True, order=True)
class Problem:
    """Something wrong with one object, in words for its owner. The rest of the object still works."""

    kind: str
    name: str  # "ns/name", or the file and line where an object has no name
    reason: str  # what is wrong, with the field path, and what was done instead

    def __str__(self) -> str:
        return f"{self.kind} {self.name}: {self.reason}"


class TrafficPolicy(Enum):
    """`internalTrafficPolicy` and `externalTrafficPolicy`."""

    CLUSTER = "Cluster"
    LOCAL = "Local"


@dataclass(frozen=True, slots=True, kw_only=True)
class PortSpec:
    """One entry of `spec.ports`."""

    name: str
    protocol: Protocol
    port: int
    node_port: int = 0  # 0: none


@dataclass(frozen=True, slots=True, kw_only=True)
class RelayOptions:
    """What a Service's annotations `kproxy.io/*` say about how its connections are relayed. None: as the configuration says."""

    balancing: str | None = None  # one of relay.targets.BALANCINGS
    proxy_protocol: int | None = None  # version of the header that endpoints of TCP ports get first: 1 or 2; 0: none
    preserve_source: bool | None = None  # endpoints on this node see the client's address
    drain_s: float | None = None  # how long connections to an endpoint that is gone may go on; 0: as long as they like


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """A Service. Addresses of both families are mixed, in the order of the API object."""

    name: NamespacedName
    type: str = "ClusterIP"  # ClusterIP, NodePort, LoadBalancer or ExternalName
    proxied: bool = True  # no label that hands it to another proxy
    cluster_ips: tuple[str, ...] = ()  # () when headless, ExternalName or not yet allocated
    headless: bool = False  # clusterIP: None
    external_name: str = ""
    external_ips: tuple[str, ...] = ()
    load_balancer_ips: tuple[str, ...] = ()  # ingress entries with ipMode VIP (or none)
    load_balancer_proxy_ips: tuple[str, ...] = ()  # those with ipMode Proxy: never served, shown to people
    load_balancer_hostnames: tuple[str, ...] = ()
    source_ranges: tuple[str, ...] = ()  # loadBalancerSourceRanges, canonical networks
    ports: tuple[PortSpec, ...] = ()
    affinity_timeout_s: int | None = None  # sessionAffinity ClientIP
    internal_policy: TrafficPolicy = TrafficPolicy.CLUSTER
    external_policy: TrafficPolicy = TrafficPolicy.CLUSTER
    health_check_node_port: int = 0
    selector: tuple[tuple[str, str], ...] = ()
    labels: tuple[tuple[str, str], ...] = ()  # only those that some label selector of the configuration asks for
    relay: RelayOptions | None = None  # None: no such annotation


@dataclass(frozen=True, slots=True, kw_only=True)
class SlicePort:
    """One usable entry of an EndpointSlice's `ports` (entries without name or number are dropped by the decoder)."""

    name: str
    protocol: Protocol
    port: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SliceEndpoint:
    """One endpoint of a slice; conditions carry the API's defaults already (ready and serving: nil means true)."""

    address: str  # addresses[0], canonical
    ready: bool = True
    serving: bool = True
    terminating: bool = False
    node_name: str = ""
    hostname: str = ""
    zone: str = ""
    hint_zones: tuple[str, ...] = ()
    hint_nodes: tuple[str, ...] = ()
    pod: str = ""  # targetRef.name when it is a Pod


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointSlice:
    """An EndpointSlice of family `family`; FQDN slices are dropped by the decoder."""

    name: NamespacedName
    service: NamespacedName  # from the label kubernetes.io/service-name
    family: Family
    proxied: bool = True  # no label that marks it as a headless Service's
    ports: tuple[SlicePort, ...] = ()
    endpoints: tuple[SliceEndpoint, ...] = ()
    last_change_trigger_time: str = ""  # annotation, RFC 3339
    imported: NamespacedName | None = None  # the ServiceImport it belongs to; `service` then may have no name
    cluster: str = ""  # where its endpoints run, for an imported Service


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """The node kproxy runs on."""

    name: str
    addresses: tuple[str, ...] = ()  # status.addresses that are IPs, InternalIP first
    pod_cidrs: tuple[str, ...] = ()
    zone: str = ""  # label topology.kubernetes.io/zone
    deleting: bool = False
    leaving: bool = False  # taint ToBeDeletedByClusterAutoscaler


@dataclass(frozen=True, slots=True, kw_only=True)
class Namespace:
    """A namespace exists or it does not: DNS answers NXDOMAIN below one that does not."""

    name: str
    labels: tuple[tuple[str, str], ...] = ()  # as a Service's


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceImport:
    """A Service of a set of clusters (KEP-1645)."""

    name: NamespacedName
    headless: bool = False
    ips: tuple[str, ...] = ()
    ports: tuple[PortSpec, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Pod:
    """A pod: whose queries these are, and with what search path it asks. Those of other nodes are known only where DNS answers for them."""

    name: NamespacedName
    ips: tuple[str, ...] = ()
    host_network: bool = False
    dns_policy: str = "ClusterFirst"
    nameservers: tuple[str, ...] = ()
    searches: tuple[str, ...] = ()
    options: tuple[tuple[str, str], ...] = ()
    finished: bool = False  # phase Succeeded or Failed
    terminating: bool = False
    node: str = ""


Object = Service | EndpointSlice | Node | Namespace | Pod | ServiceImport


@dataclass(frozen=True, slots=True)
class ObjectKey:
    """Kind and name of an object: `NamespacedName("", name)` for kinds without namespace."""

    kind: Kind
    name: NamespacedName


def key_of(obj: Object) -> ObjectKey:
    """The key under which a snapshot keeps `obj`."""
    match obj:
        case Service():
            return ObjectKey(Kind.SERVICE, obj.name)
        case EndpointSlice():
            return ObjectKey(Kind.ENDPOINT_SLICE, obj.name)
        case Pod():
            return ObjectKey(Kind.POD, obj.name)
        case ServiceImport():
            return ObjectKey(Kind.SERVICE_IMPORT, obj.name)
        case Node():
            return ObjectKey(Kind.NODE, NamespacedName("", obj.name))
        case Namespace():
            return ObjectKey(Kind.NAMESPACE, NamespacedName("", obj.name))


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoded:
    """What the decoder makes of one API object: the object, unless nothing of it is usable, and what was wrong with it."""

    key: ObjectKey
    object: Object | None
    problems: tuple[Problem, ...] = ()
    resource_version: str = ""
