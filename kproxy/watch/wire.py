"""The JSON of the API, cut down to the fields kproxy reads, and a way to read it when parts of it are of the wrong type.

In: bytes or parsed JSON. Out: the structs below. Two ways lead there. The strict one, for the 99.99 %: msgspec decodes into the struct and
skips unknown fields (10,000 slices: 0.11 s). The tolerant one, for the rest: `salvage` walks the parsed JSON along the same
structs, keeps every part that fits and notes each that does not, so that a number where a text belongs costs one port and not the Service.

`null` is an absent field, everywhere, as in Go. Every field has a default. Nothing here knows what a field means.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec
from msgspec import UNSET, Struct, UnsetType, field

from kproxy.watch.fields import shown

T = TypeVar("T", bound=Struct)

MAX_ITEMS = 20_000  # of any list in one object; the API allows 20,000 ports in a slice and less of everything else
MAX_NOTES = 16  # per object: a hostile object must not fill the state page


class Notes:
    """Collects what is wrong with one object, under field paths.

    remarks: everything, in words. errors: those among them that the API server would have refused (a file with one is wrong).
    unreadable: paths whose value is of the wrong JSON type, so that nothing at all is known about it.
    """

    def __init__(self) -> None:
        self.remarks: list[str] = []
        self.errors: list[tuple[str, str]] = []  # path, reason
        self.unreadable: set[str] = set()
        self.unsaid = 0

    @property
    def count(self) -> int:
        """How many notes there were, those not kept included."""
        return len(self.remarks) + self.unsaid

    def add(self, path: str, reason: str, *, error: bool = True) -> None:
        """Notes that the value at `path` is unusable, and why."""
        if len(self.remarks) >= MAX_NOTES:
            self.unsaid += 1
            return
        self.remarks.append(f"{path}: {reason}")
        if error:
            self.errors.append((path, reason))

    def add_type(self, path: str, reason: str) -> None:
        """Notes that the value at `path` has the wrong JSON type."""
        if len(self.unreadable) < MAX_NOTES:
            self.unreadable.add(path)
        self.add(path, reason)


class Labels(Struct):
    """The labels that decide something, each by its presence alone but the first."""

    service_name: str | None = field(default=None, name="kubernetes.io/service-name")
    proxy_name: str | UnsetType | None = field(default=UNSET, name="service.kubernetes.io/service-proxy-name")
    headless: str | UnsetType | None = field(default=UNSET, name="service.kubernetes.io/headless")
    zone: str | None = field(default=None, name="topology.kubernetes.io/zone")
    imported_name: str | None = field(default=None, name="multicluster.kubernetes.io/service-name")
    source_cluster: str | None = field(default=None, name="multicluster.kubernetes.io/source-cluster")


class Annotations(Struct):
    """The annotations that are read."""

    trigger_time: str | None = field(default=None, name="endpoints.kubernetes.io/last-change-trigger-time")
    list_end: str | None = field(default=None, name="k8s.io/initial-events-end")
    balancing: str | None = field(default=None, name="kproxy.io/balancing")
    proxy_protocol: str | None = field(default=None, name="kproxy.io/proxy-protocol")
    preserve_source: str | None = field(default=None, name="kproxy.io/preserve-source-address")
    drain: str | None = field(default=None, name="kproxy.io/drain-seconds")


class Meta(Struct, rename="camel"):
    """ObjectMeta."""

    name: str = ""
    namespace: str = ""
    resource_version: str = ""
    deletion_timestamp: str | None = None
    labels: Labels | None = None
    annotations: Annotations | None = None


class WirePort(Struct, rename="camel"):
    """ServicePort."""

    name: str = ""
    protocol: str = "TCP"
    port: int = 0
    node_port: int = 0


class ClientIP(Struct, rename="camel"):
    """ClientIPConfig."""

    timeout_seconds: int | None = None


class AffinityConfig(Struct):
    """SessionAffinityConfig."""

    client_ip: ClientIP | None = field(default=None, name="clientIP")


class ServiceSpec(Struct, rename="camel"):
    """ServiceSpec. A cluster IP that is missing is not the same as an empty one in a file, but is to the proxy."""

    type: str | None = None
    cluster_ip: str | None = field(default=None, name="clusterIP")
    cluster_ips: list[str] | None = field(default=None, name="clusterIPs")
    ip_families: list[str] | None = None
    external_name: str = ""
    external_ips: list[str] | None = field(default=None, name="externalIPs")
    load_balancer_source_ranges: list[str] | None = None
    ports: list[WirePort] | None = None
    session_affinity: str = ""
    session_affinity_config: AffinityConfig | None = None
    internal_traffic_policy: str | None = None
    external_traffic_policy: str | None = None
    health_check_node_port: int = 0
    selector: dict[str, str] | None = None


class Ingress(Struct, rename="camel"):
    """LoadBalancerIngress."""

    ip: str | None = None
    ip_mode: str | None = None
    hostname: str | None = None


class Balancer(Struct):
    """LoadBalancerStatus."""

    ingress: list[Ingress] | None = None


class ServiceStatus(Struct, rename="camel"):
    """ServiceStatus."""

    load_balancer: Balancer | None = None


class WireService(Struct):
    """Service."""

    metadata: Meta | None = None
    spec: ServiceSpec | None = None
    status: ServiceStatus | None = None


class WireSlicePort(Struct):
    """EndpointPort; a missing name means "ignore me", an empty one is the unnamed port."""

    name: str | None = None
    protocol: str | None = None
    port: int | None = None


class Conditions(Struct):
    """EndpointConditions."""

    ready: bool | None = None
    serving: bool | None = None
    terminating: bool | None = None


class Target(Struct):
    """ObjectReference."""

    kind: str = ""
    name: str = ""


class Hint(Struct):
    """ForZone and ForNode."""

    name: str = ""


class Hints(Struct, rename="camel"):
    """EndpointHints."""

    for_zones: list[Hint] | None = None
    for_nodes: list[Hint] | None = None


class WireEndpoint(Struct, rename="camel"):
    """Endpoint of a slice."""

    addresses: list[str] | None = None
    conditions: Conditions | None = None
    hostname: str | None = None
    node_name: str | None = None
    zone: str | None = None
    hints: Hints | None = None
    target_ref: Target | None = None


class WireSlice(Struct, rename="camel"):
    """EndpointSlice of discovery.k8s.io/v1: its fields lie at the top, without a spec."""

    metadata: Meta | None = None
    address_type: str = ""
    ports: list[WireSlicePort] | None = None
    endpoints: list[WireEndpoint] | None = None


class Taint(Struct):
    """Taint."""

    key: str = ""


class NodeSpec(Struct):
    """NodeSpec."""

    pod_cidr: str | None = field(default=None, name="podCIDR")
    pod_cidrs: list[str] | None = field(default=None, name="podCIDRs")
    taints: list[Taint] | None = None


class NodeAddress(Struct):
    """NodeAddress."""

    type: str = ""
    address: str = ""


class NodeStatus(Struct):
    """NodeStatus."""

    addresses: list[NodeAddress] | None = None


class WireNode(Struct):
    """Node."""

    metadata: Meta | None = None
    spec: NodeSpec | None = None
    status: NodeStatus | None = None


class WireNamespace(Struct):
    """Namespace."""

    metadata: Meta | None = None


class DnsOption(Struct):
    """PodDNSConfigOption."""

    name: str | None = None
    value: str | None = None


class DnsConfig(Struct):
    """PodDNSConfig."""

    nameservers: list[str] | None = None
    searches: list[str] | None = None
    options: list[DnsOption] | None = None


class PodSpec(Struct, rename="camel"):
    """PodSpec."""

    node_name: str | None = None
    host_network: bool | None = None
    dns_policy: str | None = None
    dns_config: DnsConfig | None = None


class PodIP(Struct):
    """PodIP."""

    ip: str | None = None


class PodStatus(Struct):
    """PodStatus."""

    phase: str | None = None
    pod_ip: str | None = field(default=None, name="podIP")
    pod_ips: list[PodIP] | None = field(default=None, name="podIPs")


class WirePod(Struct):
    """Pod."""

    metadata: Meta | None = None
    spec: PodSpec | None = None
    status: PodStatus | None = None


class ImportSpec(Struct):
    """ServiceImportSpec."""

    type: str = ""
    ips: list[str] | None = None
    ports: list[WirePort] | None = None


class WireImport(Struct):
    """ServiceImport of multicluster.x-k8s.io/v1alpha1."""

    metadata: Meta | None = None
    spec: ImportSpec | None = None


def salvage(kind: type[T], raw: object, path: str, notes: Notes) -> T:
    """What of `raw` fits `kind`; the rest is noted under its path and left at its default.

    A list item with anything wrong inside is left out whole: half a port or an endpoint with half its conditions could send traffic
    where nobody meant it to go.
    """
    if not isinstance(raw, Mapping):
        notes.add_type(path or ".", f"is {_name(raw)}, not an object")
        return kind()
    values: dict[str, Any] = {}
    for item in msgspec.structs.fields(kind):
        value = raw.get(item.encode_name)
        if value is None:  # absent, or null: a label with value null is absent too, no API server stores one
            continue
        kept = _salvage_value(item.type, value, f"{path}.{item.encode_name}" if path else item.encode_name, notes)
        if kept is not None:
            values[item.name] = kept
    return kind(**values)


def _salvage_value(wanted: Any, value: object, path: str, notes: Notes) -> Any:
    """`value` as `wanted` (a struct, list, dict or scalar, possibly with None or UNSET beside it), or None."""
    if isinstance(wanted, types.UnionType):
        wanted = next(arm for arm in typing.get_args(wanted) if arm not in (types.NoneType, UnsetType))
    if isinstance(wanted, type) and issubclass(wanted, Struct):
        return salvage(wanted, value, path, notes)
    origin = typing.get_origin(wanted)
    if origin is list:
        return _salvage_list(typing.get_args(wanted)[0], value, path, notes)
    if origin is dict:
        return _salvage_texts(value, path, notes)
    if type(value) is wanted:
        return value
    notes.add_type(path, f"is {_name(value)} {shown(value)}, not {_NAMES[wanted]}")
    return None


def _salvage_list(wanted: Any, value: object, path: str, notes: Notes) -> list[Any] | None:
    if not isinstance(value, list):
        notes.add_type(path, f"is {_name(value)}, not a list")
        return None
    kept = []
    for index, item in enumerate(value[:MAX_ITEMS]):
        if item is not None:
            before = notes.count
            good = _salvage_value(wanted, item, f"{path}[{index}]", notes)
            if good is not None and notes.count == before:
                kept.append(good)
    return kept


def _salvage_texts(value: object, path: str, notes: Notes) -> dict[str, str] | None:
    if not isinstance(value, Mapping):
        notes.add_type(path, f"is {_name(value)}, not an object")
        return None
    kept = {key: text for key, text in value.items() if isinstance(key, str) and isinstance(text, str)}
    if len(kept) < len(value):
        notes.add_type(path, "has entries that are not text; they are ignored")
    return kept


_NAMES = {str: "a text", int: "a whole number", bool: "true or false"}


def _name(value: object) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "the truth value"
        case int() | float():
            return "the number"
        case str():
            return "the text"
        case list():
            return "a list"
        case _:
            return "an object"
