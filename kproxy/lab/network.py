"""Links, addresses and routes of the lab, by netlink.

    parent ── bridge lab0 (192.168.200.1) ─┬─ node-1 eth0 ─┬─ veth per pod, host route to it
                                           ├─ node-2 eth0   …
                                           ├─ client eth0
                                           └─ outside eth0 (+ 203.0.113.x on lo)

Pods hang on their node by a veth pair of their own and a host route, not on a bridge: packets between two ports of a bridge skip the
IP layer, so Service rules would not see pod-to-pod traffic of one node unless the module br_netfilter is loaded and switched on, which
a network namespace cannot do for itself. (The bridge of the parent is a mere wire: no rules belong there.)

All functions block (netlink, /proc/sys): they run before the event loop starts, or in a thread of their own, since a network namespace
belongs to a thread and pyroute2 brings an event loop with it. What must not happen here: iptables. The only rules in a node are kproxy's.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pyroute2 import IPRoute

from kproxy.lab import addressing
from kproxy.lab.addressing import LabNode
from kproxy.lab.namespaces import create_netns, inside, open_netns, remove_netns

BRIDGE = "lab0"
_LINK_SCOPE = 253
# Values a fresh namespace does not have by itself. Reverse-path filtering would drop DNATed replies that return on another link;
# redirects would teach pods short cuts around their node, and so around the Service rules.
_FORWARDING = {
    "net/ipv4/ip_forward": "1",
    "net/ipv4/conf/all/rp_filter": "0",
    "net/ipv4/conf/default/rp_filter": "0",
    "net/ipv4/conf/all/send_redirects": "0",
    "net/ipv4/conf/default/send_redirects": "0",
    # "Unreachable" is told at once and every time, so that a failing connection fails in milliseconds instead of hanging when
    # somebody tries twice within a second (the kernel's default allows one such message a second and destination, after a few).
    "net/ipv4/icmp_ratelimit": "0",
}


# IPv6 wants to be told: forwarding, and no waiting for duplicate address detection (a pod's address would be unusable for a second).
_FORWARDING6 = {
    "net/ipv6/conf/all/disable_ipv6": "0",
    "net/ipv6/conf/default/disable_ipv6": "0",
    "net/ipv6/conf/all/forwarding": "1",
    "net/ipv6/conf/all/accept_dad": "0",
    "net/ipv6/conf/default/accept_dad": "0",
    "net/ipv6/conf/default/accept_ra": "0",
}
_NO_DAD = 0x02  # IFA_F_NODAD


def has_ipv6() -> bool:
    """Whether this kernel has IPv6 at all; where it has not, the lab is IPv4 alone."""
    return Path("/proc/sys/net/ipv6/conf").exists()


def _sysctl(values: dict[str, str]) -> None:
    for name, value in values.items():
        Path("/proc/sys", name).write_text(value)


def _index(ip: Any, name: str) -> int:
    found: list[int] = ip.link_lookup(ifname=name)
    return found[0]


def build(nodes: Iterable[LabNode]) -> None:
    """Makes the whole standing network, called in the parent's network namespace; pods come later."""
    nodes = tuple(nodes)
    _settle_forwarding()
    with IPRoute() as ip:
        ip.link("set", index=1, state="up")
        # A fixed address: otherwise the bridge takes that of its lowest port, and forgets multicast groups when it changes.
        ip.link("add", ifname=BRIDGE, kind="bridge", address="02:00:c0:a8:c8:01", br_mcast_snooping=0)
        bridge = _index(ip, BRIDGE)
        _add_addresses(ip, bridge, addressing.PARENT_IP, 24, addressing.PARENT_IP6, addressing.WIRE6_LENGTH)
        ip.link("set", index=bridge, state="up")
        for node in nodes:
            _attach_machine(ip, bridge, node.name, node.ip, node.ip6)
            _add_routes(ip, node)
        _attach_machine(ip, bridge, addressing.CLIENT, addressing.CLIENT_IP, addressing.CLIENT_IP6)
        _attach_machine(ip, bridge, addressing.OUTSIDE, addressing.OUTSIDE_IP, addressing.OUTSIDE_IP6)
        ip.route("add", dst=addressing.INTERNET, gateway=addressing.OUTSIDE_IP)
    for node in nodes:
        _settle_node(node, nodes)
    _settle_client(nodes[0])
    _settle_outside(nodes)


def _settle_forwarding() -> None:
    _sysctl(_FORWARDING)
    if has_ipv6():
        _sysctl(_FORWARDING6)


def _add_addresses(ip: Any, index: int, address: str, length: int, address6: str, length6: int) -> None:
    ip.addr("add", index=index, address=address, prefixlen=length)
    if has_ipv6():
        ip.addr("add", index=index, address=address6, prefixlen=length6, flags=_NO_DAD)


def _add_routes(ip: Any, node: LabNode) -> None:
    """The pods of `node` are behind its addresses on the wire."""
    ip.route("add", dst=node.pod_cidr, gateway=node.ip)
    if has_ipv6():
        ip.route("add", dst=node.pod_cidr6, gateway=node.ip6)


def _attach_machine(ip: Any, bridge: int, name: str, address: str, address6: str) -> None:
    """A namespace `name` whose eth0 has these addresses on the wire."""
    netns = create_netns(name)
    try:
        port = f"to-{name}"[:15]
        ip.link("add", ifname=port, kind="veth", peer={"ifname": "eth0", "net_ns_fd": netns})
        index = _index(ip, port)
        ip.link("set", index=index, master=bridge, state="up")
        with inside(netns), IPRoute() as there:
            eth0 = _index(there, "eth0")
            there.link("set", index=1, state="up")
            there.link("set", index=eth0, state="up")
            _add_addresses(there, eth0, address, 24, address6, addressing.WIRE6_LENGTH)
    finally:
        os.close(netns)


def _settle_node(node: LabNode, nodes: tuple[LabNode, ...]) -> None:
    netns = open_netns(node.name)
    try:
        with inside(netns):
            _settle_forwarding()
            with IPRoute() as ip:
                for other in nodes:
                    if other != node:
                        _add_routes(ip, other)
                ip.route("add", dst="default", gateway=addressing.PARENT_IP)
                if has_ipv6():
                    ip.route("add", dst="::/0", gateway=addressing.PARENT_IP6)
                    ip.route("add", dst=node.pod_cidr6, type="unreachable")
                # An address of the pod network that no pod has must not travel out and back by the parent's route.
                ip.route("add", dst=node.pod_cidr, type="unreachable")
    finally:
        os.close(netns)


def _settle_client(first: LabNode) -> None:
    """The client reaches the wire and the load-balancer pool, and nothing of the cluster's inside."""
    netns = open_netns(addressing.CLIENT)
    try:
        with inside(netns), IPRoute() as ip:
            for network in addressing.POOL:
                ip.route("add", dst=network, gateway=first.ip)
            ip.route("add", dst=addressing.INTERNET, gateway=addressing.OUTSIDE_IP)
    finally:
        os.close(netns)


def _settle_outside(nodes: tuple[LabNode, ...]) -> None:
    """The outside machine is the Internet too, and answers pods by the way they came: nobody masquerades them on leaving."""
    netns = open_netns(addressing.OUTSIDE)
    try:
        with inside(netns), IPRoute() as ip:
            for address in addressing.INTERNET_IPS:
                ip.addr("add", index=1, address=address, prefixlen=32)
            for node in nodes:
                _add_routes(ip, node)
            ip.route("add", dst="default", gateway=addressing.PARENT_IP)
    finally:
        os.close(netns)


def attach_pod(node: LabNode, netns_name: str, link: str, address: str) -> None:
    """Makes a pod's network namespace with `address` and connects it to `node` by the veth `link` (at most 15 characters)."""
    node_netns = open_netns(node.name)
    pod_netns = create_netns(netns_name)
    try:
        with inside(node_netns), IPRoute() as ip:
            _remove_link(ip, link)
            ip.link("add", ifname=link, kind="veth", peer={"ifname": "eth0", "net_ns_fd": pod_netns})
            index = _index(ip, link)
            ip.link("set", index=index, state="up")
            _add_addresses(ip, index, node.gateway, 32, node.gateway6, 128)
            ip.route("replace", dst=f"{address}/32", oif=index, scope=_LINK_SCOPE)
            if has_ipv6():
                ip.route("replace", dst=f"{node.pod_ip6(address)}/128", oif=index)
        with inside(pod_netns), IPRoute() as ip:
            eth0 = _index(ip, "eth0")
            ip.link("set", index=1, state="up")
            ip.link("set", index=eth0, state="up")
            _add_addresses(ip, eth0, address, 32, node.pod_ip6(address), 128)
            ip.route("add", dst=f"{node.gateway}/32", oif=eth0, scope=_LINK_SCOPE)
            ip.route("add", dst="default", gateway=node.gateway)
            if has_ipv6():
                ip.route("add", dst=f"{node.gateway6}/128", oif=eth0)
                ip.route("add", dst="::/0", gateway=node.gateway6, oif=eth0)
    finally:
        os.close(node_netns)
        os.close(pod_netns)


def detach_pod(node: LabNode, netns_name: str, link: str) -> None:
    """Undoes `attach_pod`: the link goes now (and with it the route), the namespace with its last user."""
    node_netns = open_netns(node.name)
    try:
        with inside(node_netns), IPRoute() as ip:
            _remove_link(ip, link)
    finally:
        os.close(node_netns)
    remove_netns(netns_name)


def _remove_link(ip: Any, link: str) -> None:
    for index in ip.link_lookup(ifname=link):
        ip.link("del", index=index)
