"""Names of this data plane in the kernel: tables, chains, sets. All of it lives in two tables of our own, one for each family.

A name of nf_tables may have 255 characters (NFT_NAME_MAXLEN is 256 with the final zero), a comment of an element 127
(NFTNL_UDATA_COMMENT_MAXLEN is 128); names here are constants, and comments are cut.
"""

from __future__ import annotations

from kproxy.model.names import Family

TABLE = "kproxy-userspace"  # in families ip and ip6
NFT_FAMILY = {Family.IPV4: "ip", Family.IPV6: "ip6"}

# Maps and sets. What a destination of a Service leads to:
DESTINATIONS = "destinations"  # address . protocol . port → way
NODE_PORTS = "node-ports"  # protocol . port → way, on addresses of this node; and health check node ports
RELAYED = "relayed"  # the keys of DESTINATIONS: a map that leads to `tproxy` may not be asked in an output hook
SOURCES = "sources"  # address . protocol . port . client's network, for destinations with source ranges
REFUSALS = "refusals"  # address . protocol . port → drop or refuse
REFUSED_NODE_PORTS = "refused-node-ports"  # protocol . port → drop or refuse
SETS = (DESTINATIONS, NODE_PORTS, RELAYED, SOURCES, REFUSALS, REFUSED_NODE_PORTS)

# Ways: chains that the maps lead to. INSIDE and OUTSIDE (kproxy/relay/targets.py) are the two listeners.
INSIDE = "relay-inside"  # whoever asks
OUTSIDE = "relay-outside"
BY_SOURCE = "relay-by-source"  # pods and this node: inside; others: outside
INSIDE_ONLY = "relay-inside-only"  # pods and this node: inside; others go on, and are refused or dropped later
GUARDED = "relay-guarded"  # by source, if its network is among SOURCES; else dropped
GUARDED_INSIDE_ONLY = "relay-guarded-inside-only"
NODE_PORT_BY_SOURCE = "node-port-by-source"  # the same two on addresses where node ports answer
NODE_PORT_INSIDE_ONLY = "node-port-inside-only"
HEALTH_CHECK = (
    "health-check"  # not relayed, and marked as if: who lets marked packets past a closed INPUT lets these in
)

# What the two maps of refusals lead to: chains, and the verdict `drop`
REFUSE = "refuse"  # a chain: ICMP port unreachable
DROP = "drop"
NODE_PORT_REFUSE = "node-port-refuse"  # the same two on addresses where node ports answer
NODE_PORT_DROP = "node-port-drop"

COMMENT_LIMIT = 127


def comment(text: str) -> str:
    """`text` as an element may bear it."""
    return text[:COMMENT_LIMIT]
