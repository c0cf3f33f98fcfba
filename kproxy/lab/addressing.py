"""The lab's addressing plan: every address that appears in the lab is decided here, and nowhere else.

    192.168.200.0/24   one wire (a bridge in the parent namespace)
        .1             the parent: API server on 6443, the outside world's DNS resolver on 53
        .10            client: a machine outside the cluster; knows no route to pods or Services
        .21 .22 .23    node-1, node-2, node-3
        .100           outside: a machine that serves web pages (an "external database" for the exercises)
        .240 - .250    load-balancer addresses; the client sends them to node-1
    203.0.113.0/24     "the Internet" (documentation addresses), all served by the outside machine
    10.244.N.0/24      pods of node N+1; .1 is the node itself as its pods see it
    10.96.0.0/16       Services; 10.96.0.1 the API, 10.96.0.10 the cluster DNS

and beside it IPv6 with the same host numbers, for Services that ask for it (ipFamilyPolicy); without asking, everything is IPv4:

    fd00:200::/64      the wire; ::1 the parent, ::21 node-1, …
    fd00:10:244:N::/64 pods of node N+1
    fd00:10:96::/112   Services

Pure: values in, values out. Why these numbers: the exercises in the notes use 192.168.200.21-23 for the nodes and 10.96.0.10 for DNS.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Network

WIRE6_LENGTH = 64
PARENT_IP6 = "fd00:200::1"
CLIENT_IP6 = "fd00:200::10"
OUTSIDE_IP6 = "fd00:200::100"
POD_CIDR6 = "fd00:10:244::/48"
SERVICE_CIDR6 = "fd00:10:96::/112"
WIRE = "192.168.200.0/24"
PARENT_IP = "192.168.200.1"
CLIENT_IP = "192.168.200.10"
OUTSIDE_IP = "192.168.200.100"
INTERNET = "203.0.113.0/24"
INTERNET_IPS = tuple(f"203.0.113.{host}" for host in (10, 11, 12, 13, 80))
POOL = ("192.168.200.240/29", "192.168.200.248/31", "192.168.200.250/32")  # .240 to .250 as networks
POOL_FIRST, POOL_LAST = "192.168.200.240", "192.168.200.250"
POD_CIDR = "10.244.0.0/16"
SERVICE_CIDR = "10.96.0.0/16"
API_SERVICE_IP = "10.96.0.1"
DNS_SERVICE_IP = "10.96.0.10"
API_PORT = 6443
CLUSTER_DOMAIN = "cluster.local"
HOST_SEARCH = ("lab.internal",)  # the "host's domains" that a node's resolv.conf hands on to its pods
MAX_NODES = 9  # node addresses .21 to .29

CLIENT = "client"
OUTSIDE = "outside"
PARENT = "parent"


@dataclass(frozen=True, slots=True, kw_only=True)
class LabNode:
    """One node of the lab."""

    name: str
    ip: str
    pod_cidr: str
    ip6: str
    pod_cidr6: str
    zone: str

    @property
    def gateway(self) -> str:
        """The node's own address in its pod network: the first one."""
        return str(IPv4Network(self.pod_cidr)[1])

    @property
    def gateway6(self) -> str:
        """The same in the other family."""
        return str(IPv6Network(self.pod_cidr6)[1])

    def pod_ip6(self, pod_ip: str) -> str:
        """The IPv6 address of the pod that has `pod_ip`: the same host number."""
        host = int(IPv4Address(pod_ip)) - int(IPv4Network(self.pod_cidr).network_address)
        return str(IPv6Network(self.pod_cidr6)[host])


def nodes(count: int) -> tuple[LabNode, ...]:
    """The first `count` nodes (1 to MAX_NODES). Zones alternate so that topology hints have something to say."""
    if not 1 <= count <= MAX_NODES:
        raise ValueError(f"a lab has 1 to {MAX_NODES} nodes, not {count}")
    return tuple(
        LabNode(
            name=f"node-{index + 1}",
            ip=f"192.168.200.{21 + index}",
            pod_cidr=f"10.244.{index}.0/24",
            ip6=f"fd00:200::{21 + index}",
            pod_cidr6=f"fd00:10:244:{index}::/64",
            zone="zone-a" if index % 2 == 0 else "zone-b",
        )
        for index in range(count)
    )


def is_pod_address(node: LabNode, address: str) -> bool:
    """Whether a pod of `node` may have this address."""
    try:
        found = IPv4Address(address)
    except ValueError:
        return False
    network = IPv4Network(node.pod_cidr)
    return found in network and 2 <= int(found) - int(network.network_address) < network.num_addresses - 1


def pod_address(node: LabNode, taken: frozenset[str], last: int) -> tuple[str, int] | None:
    """A free pod address of `node` and its index, going round from `last`, so that addresses are not reused at once.

    None when all are taken. Index 0 and the last one are the network and broadcast addresses, 1 is the gateway.
    """
    network = IPv4Network(node.pod_cidr)
    usable = range(2, network.num_addresses - 1)
    for step in range(1, len(usable) + 1):
        index = 2 + (max(last, 1) - 2 + step) % len(usable)
        address = str(network[index])
        if address not in taken:
            return address, index
    return None
