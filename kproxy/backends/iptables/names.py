"""Names of chains: kube-proxy's own, so that it and kproxy can replace each other without a gap.

A chain name may have 28 characters (XT_EXTENSION_MAXNAMELEN is 29 with the final zero). The hashed names are a prefix of at most 9 and
16 characters of base32; the fixed ones are spelled out below. `tests/unit/backends/test_names.py` proves both.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable
from hashlib import sha256

from kproxy.model.desired import Endpoint
from kproxy.model.names import ServicePortName

CHAIN_NAME_LIMIT = 28

SERVICES = "KUBE-SERVICES"
EXTERNAL_SERVICES = "KUBE-EXTERNAL-SERVICES"
NODE_PORTS = "KUBE-NODEPORTS"
POSTROUTING = "KUBE-POSTROUTING"
MARK_MASQ = "KUBE-MARK-MASQ"
FORWARD = "KUBE-FORWARD"
PROXY_FIREWALL = "KUBE-PROXY-FIREWALL"
KUBELET_FIREWALL = "KUBE-FIREWALL"  # shared with the kubelet, which makes the same rule; never deleted
CANARY = "KUBE-PROXY-CANARY"
KUBELET_CANARIES = ("KUBE-KUBELET-CANARY", "KUBE-IPTABLES-HINT")  # the kubelet's, in mangle: they tell the variant
DNS_PREROUTING = "KPROXY-DNS-PREROUTING"  # kproxy's own, in raw
DNS_OUTPUT = "KPROXY-DNS-OUTPUT"  # in raw and in filter
DNS_INPUT = "KPROXY-DNS-INPUT"  # in filter

CLUSTER_PREFIX = "KUBE-SVC-"
LOCAL_PREFIX = "KUBE-SVL-"
EXTERNAL_PREFIX = "KUBE-EXT-"
FIREWALL_PREFIX = "KUBE-FW-"
ENDPOINT_PREFIX = "KUBE-SEP-"
# Branches of the dispatch trees (tree.py). They carry prefixes that kube-proxy sweeps, so that it takes them away when it takes over, and
# a character behind them that no hash has, so that they can be told from chains of ServicePorts.
_NETWORK_PREFIX = CLUSTER_PREFIX  # KUBE-SVC-10.96.16.0/20
_HASHED_NETWORK_PREFIX = "KUBE-SVC-NET-"  # and 15 characters of hash, for IPv6
_NOT_IN_HASHES = re.compile(r"KUBE-(?:SVC|EXT)-[^-/]*[-/]")
HASHED_PREFIXES = (CLUSTER_PREFIX, LOCAL_PREFIX, EXTERNAL_PREFIX, FIREWALL_PREFIX, ENDPOINT_PREFIX)

# table → the chains that kproxy (or kube-proxy) makes there under a fixed name, and may take away again
FIXED_CHAINS: dict[str, frozenset[str]] = {
    "mangle": frozenset({CANARY}),
    "raw": frozenset({DNS_PREROUTING, DNS_OUTPUT}),
    "filter": frozenset(
        {SERVICES, EXTERNAL_SERVICES, NODE_PORTS, FORWARD, PROXY_FIREWALL, CANARY, DNS_INPUT, DNS_OUTPUT}
    ),
    "nat": frozenset({SERVICES, NODE_PORTS, POSTROUTING, MARK_MASQ, CANARY}),
}
# Chains that lead to ServicePorts: their entries exclude each other, so the order among them has no meaning.
DISPATCH_CHAINS: dict[str, frozenset[str]] = {
    "filter": frozenset({SERVICES, EXTERNAL_SERVICES, NODE_PORTS, PROXY_FIREWALL}),
    "nat": frozenset({SERVICES, NODE_PORTS}),
}


_ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"
_PAIRS = [first + second for first in _ALPHABET for second in _ALPHABET]
_TEN_BYTES = struct.Struct(">QH").unpack_from


def _hash(text: str) -> str:
    """SHA-256 in base32, the first 16 characters.

    Two characters at a time and in small numbers, 1 us: base64.b32encode takes 20, and there are 30,000 chains at 10,000 Services.
    """
    a, b = _TEN_BYTES(sha256(text.encode()).digest())
    return (
        f"{_PAIRS[a >> 54]}{_PAIRS[a >> 44 & 1023]}{_PAIRS[a >> 34 & 1023]}{_PAIRS[a >> 24 & 1023]}"
        f"{_PAIRS[a >> 14 & 1023]}{_PAIRS[a >> 4 & 1023]}{_PAIRS[(a & 15) << 6 | b >> 10]}{_PAIRS[b & 1023]}"
    )


def service_hash(name: ServicePortName) -> str:
    """The 16 characters that all chains of a ServicePort end in."""
    return _hash(f"{name}{name.protocol.lower}")


def endpoint_chain(name: ServicePortName, endpoint: Endpoint) -> str:
    """The chain of one endpoint of one ServicePort. An endpoint shared by two Services has two."""
    return ENDPOINT_PREFIX + _hash(f"{name}{name.protocol.lower}{endpoint.text}")


def endpoint_chains(name: ServicePortName, endpoints: Iterable[Endpoint]) -> dict[str, str]:
    """The chains of many endpoints of one ServicePort, by the endpoints' texts."""
    start = f"{name}{name.protocol.lower}"
    return {text: ENDPOINT_PREFIX + _hash(start + text) for text in [endpoint.text for endpoint in endpoints]}


def network_chain(network: str) -> str:
    """The branch of the tree of addresses below `network` (with prefix length)."""
    if ":" not in network:
        return _NETWORK_PREFIX + network
    return (_HASHED_NETWORK_PREFIX + _hash(network))[:CHAIN_NAME_LIMIT]


def port_range_chain(protocol: str, first: int, last: int) -> str:
    """The branch of the tree of node ports for the ports from `first` to `last`."""
    return f"{EXTERNAL_PREFIX}{protocol}-{first}-{last}"


def is_branch(chain: str) -> bool:
    """Whether `chain` (of table nat) is a branch of a dispatch tree."""
    return _NOT_IN_HASHES.match(chain) is not None


def is_dispatch(table: str, chain: str) -> bool:
    """Whether `chain` leads to ServicePorts, so that the order of its entries has no meaning."""
    return chain in DISPATCH_CHAINS.get(table, ()) or (table == "nat" and is_branch(chain))


def is_hashed(chain: str) -> bool:
    """Whether `chain` (of table nat) belongs to a ServicePort or to a dispatch tree, kproxy's or kube-proxy's."""
    return chain.startswith(HASHED_PREFIXES)


def is_removable(table: str, chain: str) -> bool:
    """Whether kproxy may empty and delete this chain when nothing wants it."""
    return chain in FIXED_CHAINS.get(table, ()) or (table == "nat" and is_hashed(chain))


def is_entered(table: str, chain: str) -> bool:
    """Whether kproxy or kube-proxy jumps to `chain` from a built-in one. Others jump to KUBE-MARK-MASQ: those are their rules."""
    fixed = chain in FIXED_CHAINS.get(table, ()) and chain not in (MARK_MASQ, CANARY)
    return fixed or (table == "filter" and chain == KUBELET_FIREWALL)


def is_known(table: str, chain: str) -> bool:
    """Whether kproxy writes this chain at all: the removable ones, and the one shared with the kubelet."""
    return is_removable(table, chain) or (table == "filter" and chain == KUBELET_FIREWALL)
