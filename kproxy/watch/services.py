"""Services: from the API's fields to the model's, as `convert` does for the other kinds.

In: a `WireService`. Out: a `Service`; headless and ExternalName ones too, since DNS answers for them. Unknown enum values fall back to
the API's defaults with a note; source ranges fall back to "nobody".
"""

from __future__ import annotations

from functools import lru_cache
from sys import intern

from kproxy.model.addresses import family_of
from kproxy.model.names import Family, NamespacedName, Protocol
from kproxy.model.objects import PortSpec, Service, ServiceImport, TrafficPolicy
from kproxy.watch.convert import (
    FAMILIES,
    MAX_ADDRESSES,
    MAX_TEXTS,
    PROTOCOLS,
    address_of,
    addresses_of,
    destination,
    first,
    is_ours,
    virtual_ip,
)
from kproxy.watch.fields import BadText, canonical_network, is_dns_name, is_label, shown
from kproxy.watch.relay_options import relay_options
from kproxy.watch.wire import (
    MAX_ITEMS,
    ImportSpec,
    Ingress,
    Meta,
    Notes,
    ServiceSpec,
    WireImport,
    WirePort,
    WireService,
)

DEFAULT_AFFINITY_S = 10_800
MAX_AFFINITY_S = 86_400
NOBODY = ("0.0.0.0/32", "::/128")  # source ranges that match no packet
_POLICIES = {policy.value: policy for policy in TrafficPolicy}
_TYPES = frozenset({"ClusterIP", "NodePort", "LoadBalancer", "ExternalName"})


def service_of(name: NamespacedName, found: WireService, notes: Notes) -> Service | None:
    """The Service; None never, as DNS has a use for every one."""
    meta, spec = found.metadata or Meta(), found.spec or ServiceSpec()
    kind = _service_type(spec, notes)
    headless, cluster_ips = _cluster_ips(spec, kind, notes)
    balancer_ips, proxy_ips, hostnames = _load_balancer(found, notes)
    health = spec.health_check_node_port
    return Service(  # a first list brings 10,000: what most of them do not have is not called for
        name=name,
        type=kind,
        proxied=is_ours(meta.labels),
        cluster_ips=cluster_ips,
        headless=headless,
        external_name=_external_name(spec, notes) if kind == "ExternalName" else "",
        external_ips=addresses_of(spec.external_ips, "spec.externalIPs", notes, destination),
        load_balancer_ips=balancer_ips,
        load_balancer_proxy_ips=proxy_ips,
        load_balancer_hostnames=hostnames,
        source_ranges=_source_ranges(spec, notes) if spec.load_balancer_source_ranges or notes.unreadable else (),
        ports=service_ports(spec.ports, notes),
        affinity_timeout_s=None if spec.session_affinity in ("", "None") else _affinity(spec, notes),
        internal_policy=_policy(spec.internal_traffic_policy, "spec.internalTrafficPolicy", notes),
        external_policy=_policy(spec.external_traffic_policy, "spec.externalTrafficPolicy", notes),
        health_check_node_port=_port_or_zero(health, "spec.healthCheckNodePort", notes) if health else 0,
        selector=tuple(sorted(spec.selector.items())[:MAX_TEXTS]) if spec.selector else (),
        relay=relay_options(meta.annotations, notes) if meta.annotations is not None else None,
    )


def import_of(name: NamespacedName, found: WireImport, notes: Notes) -> ServiceImport | None:
    """The ServiceImport."""
    spec = found.spec or ImportSpec()
    return ServiceImport(
        name=name,
        headless=spec.type == "Headless",
        ips=addresses_of(spec.ips, "spec.ips", notes, virtual_ip),
        ports=service_ports(spec.ports, notes),
    )


def _service_type(spec: ServiceSpec, notes: Notes) -> str:
    kind = spec.type or "ClusterIP"
    if kind in _TYPES:
        return intern(kind)
    notes.add("spec.type", f"{shown(kind)} is unknown; treated as ClusterIP")
    return "ClusterIP"


def _cluster_ips(spec: ServiceSpec, kind: str, notes: Notes) -> tuple[bool, tuple[str, ...]]:
    """Whether headless, and the cluster IPs: at most one per family.

    ExternalName keeps none, even where an older type left one behind. `clusterIP` counts when `clusterIPs` is missing (objects
    stored before 1.20). An address whose family is not the one `ipFamilies` names at its place is not served, as upstream.
    """
    if kind == "ExternalName":
        return False, ()
    families = spec.ip_families or []
    if (
        spec.cluster_ips is not None and len(spec.cluster_ips) == 1 and spec.cluster_ips[0] not in ("", "None")
    ):  # nearly all
        address = address_of(spec.cluster_ips[0], "spec.clusterIPs[0]", notes, virtual_ip)
        if not address or not families or FAMILIES.get(families[0]) in (None, family_of(address)):
            return False, (address,) if address else ()
    texts = list(first(spec.cluster_ips, MAX_TEXTS, "spec.clusterIPs", notes)) or [spec.cluster_ip or ""]
    if "None" in texts:
        return True, ()
    found: dict[Family, str] = {}
    for index, text in enumerate(texts):
        path = f"spec.clusterIPs[{index}]" if spec.cluster_ips else "spec.clusterIP"
        address = address_of(text, path, notes, virtual_ip) if text else ""
        if not address:
            continue
        family = family_of(address)
        wanted = FAMILIES.get(families[index]) if index < len(families) else None
        if wanted not in (None, family):
            notes.add(
                path, f"{address} is {family.value}, but spec.ipFamilies[{index}] says {families[index]}; it is ignored"
            )
        elif family in found:
            notes.add(path, f"{address} is a second {family.value} cluster IP; it is ignored")
        else:
            found[family] = address
    return False, tuple(found.values())


def _external_name(spec: ServiceSpec, notes: Notes) -> str:
    if is_dns_name(spec.external_name):
        return spec.external_name
    why = f"{shown(spec.external_name)} is no DNS name" if spec.external_name else "is missing"
    notes.add("spec.externalName", f"{why}; the Service has no answer")
    return ""


def _load_balancer(found: WireService, notes: Notes) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """The addresses that the load balancer leaves on the packet; those of ipMode Proxy, which sends to node ports; its names."""
    balancer = found.status.load_balancer if found.status else None
    if balancer is None or not balancer.ingress:
        return (), (), ()
    return *_load_balancer_ips(balancer.ingress, notes), _load_balancer_hostnames(balancer.ingress, notes)


def _load_balancer_ips(listed: list[Ingress], notes: Notes) -> tuple[tuple[str, ...], tuple[str, ...]]:
    texts: tuple[dict[str, None], dict[str, None]] = ({}, {})
    path = "status.loadBalancer.ingress"
    for index, ingress in enumerate(first(listed, MAX_ADDRESSES, path, notes)):
        if ingress.ip_mode not in (None, "VIP", "Proxy"):
            notes.add(f"{path}[{index}].ipMode", f"{shown(ingress.ip_mode)} is unknown; the address is ignored")
        elif ingress.ip:
            address = address_of(ingress.ip, f"{path}[{index}].ip", notes, virtual_ip)
            if address:
                texts[ingress.ip_mode == "Proxy"][address] = None
    return tuple(texts[0]), tuple(texts[1])


def _load_balancer_hostnames(listed: list[Ingress], notes: Notes) -> tuple[str, ...]:
    kept: dict[str, None] = {}
    path = "status.loadBalancer.ingress"
    for index, ingress in enumerate(listed[:MAX_ADDRESSES]):
        if ingress.hostname and is_dns_name(ingress.hostname):
            kept[ingress.hostname] = None
        elif ingress.hostname:
            notes.add(f"{path}[{index}].hostname", f"{shown(ingress.hostname)} is no DNS name; it is ignored")
    return tuple(kept)


def _source_ranges(spec: ServiceSpec, notes: Notes) -> tuple[str, ...]:
    """Who may come in. Ranges of which none can be read let nobody in: a typing error must not open a Service to the world."""
    path = "spec.loadBalancerSourceRanges"
    found: dict[str, None] = {}
    if not spec.load_balancer_source_ranges and not notes.unreadable:
        return ()
    ranges = first(spec.load_balancer_source_ranges, MAX_ADDRESSES, path, notes)
    for index, text in enumerate(ranges):
        try:
            found[canonical_network(text)] = None
        except BadText as error:
            notes.add(f"{path}[{index}]", f"{error}; it is ignored")
    unreadable = any(broken.startswith(path) for broken in notes.unreadable)
    if not found and (ranges or unreadable):
        notes.add(path, "has no range that can be read; nobody is let in", error=False)
        return NOBODY
    return tuple(found)


def service_ports(ports: list[WirePort] | None, notes: Notes) -> tuple[PortSpec, ...]:
    """The usable entries of `spec.ports`."""
    found: dict[tuple[str, Protocol], PortSpec] = {}
    for index, port in enumerate(first(ports, MAX_ITEMS, "spec.ports", notes)):
        protocol = PROTOCOLS.get(port.protocol or "TCP")
        good = protocol is not None and 0 < port.port < 65536 and 0 <= port.node_port < 65536
        if (
            good
            and protocol is not None
            and (port.name, protocol) not in found
            and (not port.name or is_label(port.name))
        ):
            found[port.name, protocol] = _port_spec(intern(port.name), protocol, port.port, port.node_port)
            continue
        path = f"spec.ports[{index}]"
        if protocol is None:
            notes.add(f"{path}.protocol", f"{shown(port.protocol)} is unknown; the port is ignored")
        elif not 0 < port.port < 65536:
            notes.add(f"{path}.port", f"{shown(port.port)} is not between 1 and 65535; the port is ignored")
        elif port.name and not is_label(port.name):
            notes.add(f"{path}.name", f"{shown(port.name)} is no legal port name; the port is ignored")
        elif (port.name, protocol) in found:
            notes.add(f"{path}.name", f"{shown(port.name)} {protocol.value} is there already; the port is ignored")
        else:
            node_port = _port_or_zero(port.node_port, f"{path}.nodePort", notes)
            found[port.name, protocol] = _port_spec(intern(port.name), protocol, port.port, node_port)
    return tuple(found.values())


@lru_cache(maxsize=1024)
def _port_spec(name: str, protocol: Protocol, port: int, node_port: int) -> PortSpec:
    """Equal ones are mostly the same object: most Services have the same few ports."""
    return PortSpec(name=name, protocol=protocol, port=port, node_port=node_port)


def _port_or_zero(number: int, path: str, notes: Notes) -> int:
    if 0 <= number < 65536:
        return number
    notes.add(path, f"{shown(number)} is not between 0 and 65535; there is none")
    return 0


def _affinity(spec: ServiceSpec, notes: Notes) -> int | None:
    if spec.session_affinity != "ClientIP":
        notes.add("spec.sessionAffinity", f"{shown(spec.session_affinity)} is unknown; there is none")
        return None
    config = spec.session_affinity_config
    timeout = config.client_ip.timeout_seconds if config and config.client_ip else None
    if timeout is None:
        return DEFAULT_AFFINITY_S
    if 0 < timeout <= MAX_AFFINITY_S:
        return timeout
    path = "spec.sessionAffinityConfig.clientIP.timeoutSeconds"
    notes.add(path, f"{shown(timeout)} is not between 1 and {MAX_AFFINITY_S}; {DEFAULT_AFFINITY_S} is used")
    return DEFAULT_AFFINITY_S


def _policy(text: str | None, path: str, notes: Notes) -> TrafficPolicy:
    if text is None:
        return TrafficPolicy.CLUSTER
    policy = _POLICIES.get(text or "Cluster")
    if policy is None:
        notes.add(path, f"{shown(text)} is unknown; treated as Cluster")
    return policy or TrafficPolicy.CLUSTER
