"""The wanted state of one node: every Service decision taken, none left to a data plane.

`resolve` makes these values from a snapshot; backends translate them. A data plane that finds itself asking "is the policy Local?"
is asking the wrong layer: the answer is already the difference between `external` and `short_circuit`.

Equality is meaning. `resolve` returns the *same* ServicePort object as before when nothing about it changed, so compilers keep
ServicePortName → (ServicePort, fragment) and skip by identity.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from kproxy.model.external_ips import ExternalIPSettings, Guard
from kproxy.model.names import Family, NamespacedName, ServicePortName
from kproxy.model.objects import EndpointSlice, Problem, RelayOptions, Service


class Verdict(Enum):
    """What happens to a packet for which there is no endpoint."""

    REJECT = "reject"  # ICMP port unreachable: no endpoint exists anywhere
    DROP = "drop"  # silence: endpoints exist, but none that this traffic may use


class Masquerade(Enum):
    """Whose packets leave with this node's source address. Hairpin (endpoint to itself) is always masqueraded, whatever this says."""

    NEVER = "never"
    OFF_CLUSTER_SOURCES = (
        "off-cluster-sources"  # unless the local detector says "a pod"; without a detector: never, for cluster IPs
    )
    ALWAYS = "always"


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Endpoint:
    """Where a connection may end."""

    address: str  # canonical
    port: int
    is_local: bool = False

    @property
    def text(self) -> str:
        """`ip:port`, IPv6 as `[ip]:port`: the spelling of chain hashes and DNAT targets."""
        return f"[{self.address}]:{self.port}" if ":" in self.address else f"{self.address}:{self.port}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """Where one class of traffic to a ServicePort goes. All policy is already decided.

    local_only says which set `endpoints` is (policy Local or Cluster), for data planes that name their chains by it (KUBE-SVL-,
    KUBE-SVC-). Two routes of one ServicePort with equal `local_only` have equal endpoints.
    """

    endpoints: tuple[Endpoint, ...] = ()  # sorted by `text`
    when_empty: Verdict = Verdict.REJECT  # REJECT whenever there are endpoints, so that equal routes compare equal
    masquerade: Masquerade = Masquerade.NEVER
    local_only: bool = False


class VirtualIPKind(Enum):
    """Which field of the Service an address comes from; data planes name it in comments."""

    CLUSTER = "cluster IP"
    EXTERNAL = "external IP"
    LOAD_BALANCER = "loadbalancer IP"


@dataclass(frozen=True, slots=True, kw_only=True)
class VirtualIP:
    """An address on which a ServicePort is reached."""

    address: str
    kind: VirtualIPKind


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientIPAffinity:
    """Connections of one client address stay with one endpoint for `timeout_s` after its last new connection."""

    timeout_s: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceRanges:
    """Who may use the load-balancer IPs of a ServicePort; everybody else is dropped."""

    networks: tuple[str, ...]  # canonical, sorted
    allow_own_virtual_ip: (
        bool  # the node's own IP is inside: packets whose source is the load-balancer IP itself pass too
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ServicePort:
    """One port of one Service as this node must serve it, for one IP family.

    internal: to the cluster IP. external: to the other virtual IPs and the node port, from outside. short_circuit: the same
    destinations from pods (when a local detector can tell) and from this node; its OFF_CLUSTER_SOURCES means that pods keep their
    source and the node's own packets are masqueraded. With policy Cluster the last two are equal; without any destination but the cluster
    IP both are `Route()`.
    reachable: every endpoint some route names, sorted; data planes make one chain or element for each.
    serving: for UDP every endpoint of the cluster that still answers, whatever readiness, policies and topology say of new connections:
    an open flow to one of them is in order. For TCP every endpoint that any slice names, terminating or not, if `follows_tcp` is set.
    () for what nobody ends.
    local_ready: how many addresses have a ready endpoint of the Service on this node, whatever the port: what load balancers weigh nodes
    by. Only where there is a health_check_node_port, else 0.
    """

    name: ServicePortName
    family: Family
    port: int
    virtual_ips: tuple[VirtualIP, ...]  # cluster first, then external, then load-balancer, each sorted
    node_port: int | None
    internal: Route
    external: Route
    short_circuit: Route
    reachable: tuple[Endpoint, ...]
    source_ranges: SourceRanges | None = None
    affinity: ClientIPAffinity | None = None
    health_check_node_port: int | None = None
    local_ready: int = 0
    serving: tuple[Endpoint, ...] = ()
    relay: RelayOptions | None = None  # means something in mode userspace alone

    @property
    def externally_reachable(self) -> bool:
        """Whether any destination besides the cluster IP exists."""
        return self.node_port is not None or any(v.kind is not VirtualIPKind.CLUSTER for v in self.virtual_ips)


class DetectMode(Enum):
    """How a packet is recognised as coming from a pod of this node; the values are KubeProxyConfiguration's `detectLocalMode`."""

    CLUSTER_CIDR = "ClusterCIDR"
    NODE_CIDR = "NodeCIDR"
    BRIDGE_INTERFACE = "BridgeInterface"
    INTERFACE_NAME_PREFIX = "InterfaceNamePrefix"


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalDetector:
    """One test for "comes from a pod": exactly one field is set."""

    source: str = ""  # a canonical network
    interface: str = ""  # an interface name, exact
    interface_prefix: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodePortAddresses:
    """On which of the node's addresses node ports answer.

    everywhere: on every local address; `addresses` is then empty. loopback: whether 127.0.0.0/8 counts as one of them for the kernel's
    rules (IPv4 only, and only with `localhostNodePorts`; ::1 never does). listener: a listener of ours serves 127.0.0.0/8 or ::1; then
    `loopback` is false and rules leave it alone.
    """

    everywhere: bool = True
    loopback: bool = False
    listener: bool = False
    addresses: tuple[str, ...] = ()  # sorted; when not everywhere


@dataclass(frozen=True, slots=True, kw_only=True)
class FamilyState:
    """The wanted state for one IP family."""

    family: Family
    service_ports: Mapping[ServicePortName, ServicePort] = field(
        default_factory=dict
    )  # iterates in order of `sort_key`
    node_ip: str = ""  # this node's own address: bindAddress, else the Node's first, else loopback
    local_detector: LocalDetector | None = None
    node_port_addresses: NodePortAddresses = NodePortAddresses()
    untracked_dns: tuple[str, ...] = ()  # addresses whose port 53 this node answers itself, without conntrack


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """What of the node bears on a ServicePort. While these are equal, an unchanged Service resolves to what it was before."""

    name: str
    zone: str
    node_ips: tuple[str, str]  # IPv4, IPv6; loopback when the node has none
    detects: tuple[bool, bool]  # IPv4, IPv6: whether a local detector exists
    masquerade_all: bool
    follows_tcp: bool = False
    cluster_dns: frozenset[str] = frozenset()  # addresses of the DNS Service, where this node answers them itself
    local_dns: tuple[str, ...] = ()  # further addresses of the same servers, which no Service knows of (169.254.20.10)


@dataclass(frozen=True, slots=True)
class ServiceMemo:
    """What one Service resolved to, and the objects (by identity) that it was resolved from."""

    service: Service
    slices: tuple[EndpointSlice, ...]
    service_ports: tuple[ServicePort, ...]  # of both families
    problems: tuple[Problem, ...]


@dataclass(frozen=True, slots=True)
class ResolveMemo:
    """What the next `resolve` may take over. No part of the meaning of a DesiredState, hence not compared."""

    facts: NodeFacts
    services: Mapping[NamespacedName, Service]  # the snapshot's own maps: their objects tell by identity what changed
    slices_of: Mapping[NamespacedName, tuple[EndpointSlice, ...]]
    resolved: Mapping[NamespacedName, ServiceMemo]
    guard: Guard
    guard_sources: tuple[object, ...]  # while these are the very same, so is the guard
    claimants: frozenset[
        NamespacedName
    ]  # Services that name external IPs: they are judged again when the guard changes
    problems: tuple[Problem, ...] = ()  # of all Services, sorted
    conflicts: tuple[tuple[Problem, ...], tuple[Problem, ...]] = ((), ())  # IPv4, IPv6


@dataclass(frozen=True, slots=True, kw_only=True)
class DesiredState:
    """The wanted state of the node: what `resolve` makes and data planes obey."""

    ipv4: FamilyState = FamilyState(family=Family.IPV4)
    ipv6: FamilyState = FamilyState(family=Family.IPV6)
    memo: ResolveMemo | None = field(default=None, compare=False, repr=False)  # how `resolve` skips what did not change

    def of(self, family: Family) -> FamilyState:
        """The state for `family`."""
        return self.ipv4 if family is Family.IPV4 else self.ipv6


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeSettings:
    """What configuration and the machine say about this node; the rest `resolve` reads from the snapshot's Node.

    Taken from KubeProxyConfiguration: `detectLocalMode` and its inputs, `nodePortAddresses`, `masqueradeAll`,
    `localhostNodePorts`, `bindAddress` (as `node_ips` when set).
    """

    name: str
    node_ips: tuple[str, ...] = ()  # overrides the Node's addresses, at most one per family
    detect_mode: DetectMode = DetectMode.CLUSTER_CIDR
    cluster_cidrs: tuple[str, ...] = ()
    bridge_interface: str = ""
    interface_prefix: str = ""
    masquerade_all: bool = False
    node_port_addresses: tuple[str, ...] = ()  # CIDRs and the words primary, localhost, all; empty: all
    localhost_node_ports: bool = True
    localhost_listener: bool = False  # node ports on loopback by a listener of ours instead of rules; both families
    follows_tcp: bool = False  # open TCP flows end with their endpoint: `ServicePort.serving` says which may stay
    dns_addresses: tuple[str, ...] = ()  # cluster DNS addresses this node holds and answers at the moment
    cluster_dns: tuple[str, ...] = ()  # those it answers whenever it can, and
    local_dns: tuple[str, ...] = ()  # those besides that only nodes know, not the Service
    external_ips: ExternalIPSettings = field(default_factory=ExternalIPSettings)
    max_endpoints_with_comments: int = 1000  # above this many, data planes leave per-endpoint comments out
