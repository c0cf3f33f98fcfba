"""What the wire structs mean: from the API's fields to model objects, one function per kind.

In: structs as `wire` read them, types already right. Out: model objects with canonical text and the API's defaults filled in, or None when
nothing of the object concerns kproxy. Every value left out is noted with its field path and with what is done instead. What must not happen
here: deciding what traffic does (that is `model.resolve`), or an exception over a value.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from sys import intern
from typing import TypeVar

from msgspec import UNSET

from kproxy.model.addresses import family_of, refusal, special_class
from kproxy.model.names import Family, NamespacedName, Protocol
from kproxy.model.objects import (
    EndpointSlice,
    Namespace,
    Node,
    Pod,
    SliceEndpoint,
    SlicePort,
)
from kproxy.watch.fields import (
    BadText,
    canonical_address,
    canonical_network,
    is_dns_name,
    is_label,
    shown,
)
from kproxy.watch.wire import (
    MAX_ITEMS,
    Hint,
    Labels,
    Meta,
    Notes,
    WireEndpoint,
    WireNamespace,
    WireNode,
    WirePod,
    WireSlice,
    WireSlicePort,
)

Refusal = Callable[[str], str]
A = TypeVar("A")

MAX_ENDPOINTS = 1000  # per slice; what the API server accepts
MAX_ADDRESSES = 1000  # of one list in a Service
MAX_TEXTS = 100  # of other lists; the API's own limits are between 3 and 32
PROTOCOLS = {protocol.value: protocol for protocol in Protocol}
FAMILIES = {family.value: family for family in Family}


def first(items: Sequence[A] | None, limit: int, path: str, notes: Notes) -> Sequence[A]:
    """`items`, at most `limit` of them."""
    if not items:
        return ()
    if len(items) > limit:
        notes.add(path, f"has {len(items)} entries; only the first {limit} are used", error=False)
        return items[:limit]
    return items


def addresses_of(items: Sequence[str] | None, path: str, notes: Notes, refuse: Refusal) -> tuple[str, ...]:
    """Canonical addresses in their order, each once."""
    found: dict[str, None] = {}
    if not items:
        return ()
    for index, text in enumerate(first(items, MAX_ADDRESSES, path, notes)):
        address = address_of(text, f"{path}[{index}]", notes, refuse)
        if address:
            found[address] = None
    return tuple(found)


def address_of(text: str, path: str, notes: Notes, refuse: Refusal) -> str:
    """Canonical address, or "" with a note. `refuse` says why an address must not be used here, or ""."""
    try:
        address = canonical_address(text)
    except BadText as error:
        notes.add(path, f"{error}; it is ignored")
        return ""
    why = refuse(address)
    if why:
        notes.add(path, f"{address} is refused ({why}); it is ignored", error=False)
        return ""
    return address


def destination(address: str) -> str:
    """The test of endpoints and external IPs, which users write: what the API server refuses there (ValidateNonSpecialIP)."""
    return special_class(address)


def virtual_ip(address: str) -> str:
    """The test of addresses that clusters give out: they may be link-local, as node-local DNS caches are."""
    return special_class(address, link_local=False)


def anything(address: str) -> str:
    """No test: the address is a fact about the node or a pod, not a destination."""
    return ""


def is_ours(labels: Labels | None) -> bool:
    """kube-proxy's test of a Service's label, on presence alone: even an empty value hands it to another proxy."""
    return labels is None or labels.proxy_name is UNSET


def is_for_proxies(labels: Labels | None) -> bool:
    """kube-proxy's test of a slice's label, on presence alone: slices of headless Services are DNS's business."""
    return labels is None or labels.headless is UNSET


def slice_of(name: NamespacedName, found: WireSlice, notes: Notes) -> EndpointSlice | None:
    """The slice; None for FQDN slices, which nobody serves, and for slices that belong to no Service."""
    if found.address_type == "FQDN":
        return None
    family = FAMILIES.get(found.address_type)
    if family is None:
        notes.add("addressType", f"{shown(found.address_type)} is not IPv4, IPv6 or FQDN; the slice is ignored")
        return None
    meta = found.metadata or Meta()
    owner = meta.labels.service_name if meta.labels else None
    imported = meta.labels.imported_name if meta.labels else None
    if imported and not is_label(imported):
        imported = None
    if (not owner or not is_label(owner)) and not imported:
        why = f"{shown(owner)} names no Service" if owner else "is missing"
        notes.add("metadata.labels[kubernetes.io/service-name]", f"{why}; the slice is ignored")
        return None
    endpoints = []
    for index, item in enumerate(first(found.endpoints, MAX_ENDPOINTS, "endpoints", notes)):
        endpoint = _endpoint(item, family, index, notes)
        if endpoint is not None:
            endpoints.append(endpoint)
    return EndpointSlice(
        name=name,
        service=NamespacedName(name.namespace, owner or ""),
        family=family,
        proxied=is_for_proxies(meta.labels),
        ports=_slice_ports(found.ports, notes),
        endpoints=tuple(endpoints),
        last_change_trigger_time=(meta.annotations.trigger_time or "") if meta.annotations else "",
        imported=NamespacedName(name.namespace, imported) if imported else None,
        cluster=_cluster(meta.labels, notes) if imported else "",
    )


def _cluster(labels: Labels | None, notes: Notes) -> str:
    text = (labels.source_cluster if labels else None) or ""
    if not text or is_label(text):
        return text
    notes.add("metadata.labels[multicluster.kubernetes.io/source-cluster]", f"{shown(text)} is no label; it is ignored")
    return ""


def _slice_ports(ports: Sequence[WireSlicePort] | None, notes: Notes) -> tuple[SlicePort, ...]:
    found: dict[tuple[str, Protocol], SlicePort] = {}
    for index, port in enumerate(first(ports, MAX_ITEMS, "ports", notes)):
        if port.name is None or not port.port:
            continue  # "all ports" and "not for proxies" in the API's words
        protocol = PROTOCOLS.get(port.protocol or "TCP")
        if protocol is None:
            notes.add(f"ports[{index}].protocol", f"{shown(port.protocol)} is unknown; the port is ignored")
        elif not 0 < port.port < 65536:
            notes.add(f"ports[{index}].port", f"{shown(port.port)} is not between 1 and 65535; the port is ignored")
        elif port.name and not is_label(port.name):
            notes.add(f"ports[{index}].name", f"{shown(port.name)} is no legal port name; the port is ignored")
        elif (port.name, protocol) in found:
            notes.add(
                f"ports[{index}].name", f"{shown(port.name)} {protocol.value} is there already; the port is ignored"
            )
        else:
            found[port.name, protocol] = _slice_port(intern(port.name), protocol, port.port)
    return tuple(found.values())


@lru_cache(maxsize=1024)
def _slice_port(name: str, protocol: Protocol, port: int) -> SlicePort:
    """Equal ones are mostly the same object: most slices have the same few ports."""
    return SlicePort(name=name, protocol=protocol, port=port)


def _endpoint(found: WireEndpoint, family: Family, index: int, notes: Notes) -> SliceEndpoint | None:
    if not found.addresses:
        notes.add(f"endpoints[{index}].addresses", "is empty; the endpoint is ignored")
        return None
    address = _endpoint_address(found.addresses[0], family, index, notes)
    if not address:
        return None
    conditions, hints, target = found.conditions, found.hints, found.target_ref
    hostname = found.hostname or ""
    if hostname and not is_label(hostname):
        notes.add(f"endpoints[{index}].hostname", f"{shown(hostname)} is no DNS label; the endpoint has no name")
        hostname = ""
    ready = conditions is None or conditions.ready is not False
    return SliceEndpoint(
        address=address,
        ready=ready,
        serving=conditions is None or conditions.serving is not False,
        terminating=conditions is not None and conditions.terminating is True,
        node_name=intern(found.node_name or ""),
        hostname=hostname,
        zone=intern(found.zone or ""),
        hint_zones=_hints(hints.for_zones if hints else None),
        hint_nodes=_hints(hints.for_nodes if hints else None),
        pod=target.name if target is not None and target.kind == "Pod" else "",
    )


def _endpoint_address(text: str, family: Family, index: int, notes: Notes) -> str:
    """Canonical, "" with a note when it cannot be used. The first lines are the way of nearly all."""
    try:
        address = canonical_address(text)
        if (":" in address) is (family is Family.IPV6) and not refusal(address, family):
            return address
    except BadText:
        pass
    path = f"endpoints[{index}].addresses[0]"
    address = address_of(text, path, notes, destination)
    if address and family_of(address) is not family:
        notes.add(path, f"{address} is not {family.value}; the endpoint is ignored")
        return ""
    return address


def _hints(hints: Iterable[Hint] | None) -> tuple[str, ...]:
    return tuple(intern(hint.name) for hint in hints if hint.name)[:MAX_TEXTS] if hints else ()


def node_of(name: NamespacedName, found: WireNode, notes: Notes) -> Node:
    """The Node. Its addresses: internal ones first, then external ones; names among them are nobody's destination."""
    items = first(found.status.addresses if found.status else None, MAX_TEXTS, "status.addresses", notes)
    ordered = [a.address for t in ("InternalIP", "ExternalIP") for a in items if a.type == t]
    spec = found.spec
    texts = (spec.pod_cidrs or ([spec.pod_cidr] if spec.pod_cidr else [])) if spec else []
    cidrs: dict[str, None] = {}
    for index, text in enumerate(first(texts, MAX_TEXTS, "spec.podCIDRs", notes)):
        try:
            cidrs[canonical_network(text)] = None
        except BadText as error:
            notes.add(f"spec.podCIDRs[{index}]", f"{error}; it is ignored")
    meta = found.metadata or Meta()
    return Node(
        name=name.name,
        addresses=addresses_of(ordered, "status.addresses", notes, anything),
        pod_cidrs=tuple(cidrs),
        zone=(meta.labels.zone or "") if meta.labels else "",
        deleting=meta.deletion_timestamp is not None,
        leaving=any(taint.key == "ToBeDeletedByClusterAutoscaler" for taint in (spec.taints or [] if spec else [])),
    )


def namespace_of(name: NamespacedName, found: WireNamespace, notes: Notes) -> Namespace:
    """The Namespace: its existence is all there is to know."""
    return Namespace(name=name.name)


def pod_of(name: NamespacedName, found: WirePod, notes: Notes) -> Pod:
    """The Pod, as far as its DNS queries go."""
    spec, status = found.spec, found.status
    dns = spec.dns_config if spec else None
    listed = [item.ip for item in (status.pod_ips or []) if item.ip] if status else []
    alone = [status.pod_ip] if status and status.pod_ip else []
    options = [(option.name, option.value or "") for option in (dns.options or [] if dns else []) if option.name]
    return Pod(
        name=name,
        ips=addresses_of(listed or alone, "status.podIPs", notes, anything),
        host_network=bool(spec and spec.host_network),
        dns_policy=(spec.dns_policy if spec else None) or "ClusterFirst",
        nameservers=addresses_of(dns.nameservers if dns else None, "spec.dnsConfig.nameservers", notes, anything),
        searches=_searches(dns.searches if dns else None, notes),
        options=tuple(options[:MAX_TEXTS]),
        finished=(status.phase if status else None) in ("Succeeded", "Failed"),
        terminating=bool(found.metadata and found.metadata.deletion_timestamp),
        node=intern((spec.node_name if spec else None) or ""),
    )


def _searches(names: Sequence[str] | None, notes: Notes) -> tuple[str, ...]:
    kept = []
    for index, name in enumerate(first(names, MAX_TEXTS, "spec.dnsConfig.searches", notes)):
        if name == "." or is_dns_name(name):
            kept.append(name)
        else:
            notes.add(f"spec.dnsConfig.searches[{index}]", f"{shown(name)} is no DNS name; it is ignored")
    return tuple(kept)
