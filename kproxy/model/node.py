"""What the node itself contributes: its addresses, the test for "a pod's packet", and where node ports answer.

In: the snapshot's Node and interface addresses, and `NodeSettings`. Out: `NodeFacts` (what Service decisions depend on) and, per
family, the local detector and the node port addresses. Nothing about Services here.

Without a netlink watch (commands on files) the snapshot has no interface addresses; the Node's own then stand in for them.
"""

from __future__ import annotations

from dataclasses import replace

from kproxy.model.addresses import (
    LOOPBACK_ADDRESS,
    LOOPBACK_NETWORK,
    contains,
    family_of,
    in_any,
    is_zero_network,
    of_family,
)
from kproxy.model.desired import (
    DetectMode,
    LocalDetector,
    NodeFacts,
    NodePortAddresses,
    NodeSettings,
    ServicePort,
    VirtualIP,
    VirtualIPKind,
)
from kproxy.model.names import Family
from kproxy.model.snapshot import Snapshot
from kproxy.model.topology import DNS_PORT

_FAMILIES = (Family.IPV4, Family.IPV6)


def node_facts(snapshot: Snapshot, settings: NodeSettings) -> NodeFacts:
    """The node as Service decisions see it."""
    node = snapshot.node(settings.name)
    four, six = (node_ip(snapshot, settings, family) for family in _FAMILIES)
    detects_four, detects_six = (local_detector(snapshot, settings, family) is not None for family in _FAMILIES)
    return NodeFacts(
        name=settings.name,
        zone=node.zone if node else "",
        node_ips=(four, six),
        detects=(detects_four, detects_six),
        masquerade_all=settings.masquerade_all,
        follows_tcp=settings.follows_tcp,
        cluster_dns=frozenset(settings.cluster_dns),
        local_dns=settings.local_dns,
    )


def node_ip(snapshot: Snapshot, settings: NodeSettings, family: Family) -> str:
    """This node's own address: the configured one, else the first in the Node's status, else loopback (as kube-proxy falls back)."""
    node = snapshot.node(settings.name)
    known = [*of_family(settings.node_ips, family), *of_family(node.addresses if node else (), family)]
    return known[0] if known else LOOPBACK_ADDRESS[family]


def local_detector(snapshot: Snapshot, settings: NodeSettings, family: Family) -> LocalDetector | None:
    """The test for packets of pods; None where the mode's input is missing for this family."""
    match settings.detect_mode:
        case DetectMode.CLUSTER_CIDR:
            networks = of_family(settings.cluster_cidrs, family)
            return LocalDetector(source=networks[0]) if networks else None
        case DetectMode.NODE_CIDR:
            node = snapshot.node(settings.name)
            networks = of_family(node.pod_cidrs if node else (), family)
            return LocalDetector(source=networks[0]) if networks else None
        case DetectMode.BRIDGE_INTERFACE:
            return LocalDetector(interface=settings.bridge_interface) if settings.bridge_interface else None
        case DetectMode.INTERFACE_NAME_PREFIX:
            return LocalDetector(interface_prefix=settings.interface_prefix) if settings.interface_prefix else None


def node_port_addresses(snapshot: Snapshot, settings: NodeSettings, family: Family) -> NodePortAddresses:
    """On which addresses node ports of `family` answer.

    A family without an entry of its own answers everywhere, as upstream does; the words `primary` and `localhost` are entries for both
    families, so they never open a family by having no address in it. Loopback counts only for IPv4 and with `localhostNodePorts`: the
    kernel has no route_localnet for ::1. A listener of ours has neither limit, and takes loopback away from the rules.
    """
    networks, words = _networks_and_words(settings, family)
    listens = settings.localhost_node_ports and settings.localhost_listener
    loopback_works = family is Family.IPV4 and settings.localhost_node_ports and not listens
    if "all" in words or any(is_zero_network(n) for n in networks) or not (networks or words):
        return NodePortAddresses(everywhere=True, loopback=loopback_works, listener=listens)
    primary = node_ip(snapshot, settings, family)
    if "localhost" in words:
        networks.append(LOOPBACK_NETWORK[family])
    chosen = {address for address in _local_addresses(snapshot, settings, family) if in_any(networks, address)}
    if "primary" in words:
        chosen.add(primary)
    loopbacks = {address for address in chosen if contains(LOOPBACK_NETWORK[family], address)}
    if not loopback_works:
        chosen -= loopbacks
    addresses = tuple(sorted(chosen))
    return NodePortAddresses(
        everywhere=False,
        loopback=loopback_works and bool(loopbacks),
        listener=listens and bool(loopbacks),
        addresses=addresses,
    )


def _networks_and_words(settings: NodeSettings, family: Family) -> tuple[list[str], set[str]]:
    words = {entry for entry in settings.node_port_addresses if entry in ("primary", "localhost", "all")}
    return of_family([e for e in settings.node_port_addresses if e not in words], family), words


def _local_addresses(snapshot: Snapshot, settings: NodeSettings, family: Family) -> list[str]:
    if snapshot.local_addresses:
        return of_family(snapshot.local_addresses, family)
    node = snapshot.node(settings.name)
    return [
        *of_family(node.addresses if node else (), family),
        *of_family(settings.node_ips, family),
        LOOPBACK_ADDRESS[family],
    ]


def at_local_dns(port: ServicePort, facts: NodeFacts) -> ServicePort:
    """`port`, reached at the node-local DNS addresses as well if it is the cluster DNS: they lead elsewhere while nobody answers here."""
    cluster_ip = port.virtual_ips[0].address
    if port.port != DNS_PORT or cluster_ip not in facts.cluster_dns:
        return port
    further = [a for a in facts.local_dns if family_of(a) is port.family and a != cluster_ip]
    also = tuple(VirtualIP(address=address, kind=VirtualIPKind.CLUSTER) for address in further)
    return replace(port, virtual_ips=(port.virtual_ips[0], *also, *port.virtual_ips[1:])) if also else port


def untracked_dns(settings: NodeSettings, family: Family) -> tuple[str, ...]:
    """The cluster DNS addresses of `family` that this node answers itself."""
    return tuple(sorted({address for address in settings.dns_addresses if family_of(address) is family}))
