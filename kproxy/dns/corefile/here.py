"""What of a Corefile means this very server: NodeLocal DNSCache's sends the cluster's names to the cluster's DNS, which kproxy is.

In: a Corefile, and the addresses at which this node is the cluster's DNS. Out: the same with such forwards gone: the cluster's names are
answered here, reverse names that no object has go where all other names go. A question that was forwarded to ourselves would go round until
its time is over. The two words that node-local-dns's own program puts addresses in place of are understood as well. Pure.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from kproxy.dns.blocks import Corefile, Forward, Kubernetes, PodRecords, ServerBlock
from kproxy.dns.corefile.forwarding import CLUSTER_DNS, UPSTREAM_SERVERS
from kproxy.dns.corefile.zones import is_reverse

_RESOLV_CONF = "/etc/resolv.conf"
_TTL_S = 30  # what kubeadm's Corefile says, which answered until now
_REVERSE = ("in-addr.arpa", "ip6.arpa")


def served_here(corefile: Corefile, own: Collection[str]) -> Corefile:
    """`corefile` without forwards to `own` addresses; itself when there is none."""
    blocks, notes = corefile.blocks, list(corefile.warnings)
    if any(UPSTREAM_SERVERS in forward.to for block in blocks for forward in block.forwards):
        blocks = tuple(_named(block) for block in blocks)
    to_us = [block for block in blocks if any(_is_own(word, own) for forward in block.forwards for word in forward.to)]
    if to_us:
        zones = [zone for block in to_us for zone in block.zones if zone != "."]
        forward_zones = [zone for zone in zones if zone not in _REVERSE and not is_reverse(zone)] or ["cluster.local"]
        reverse = [zone for zone in zones if zone not in forward_zones]
        cluster = Kubernetes(
            zones=tuple(dict.fromkeys((*forward_zones, *reverse))),
            pods=PodRecords.INSECURE,
            ttl=_TTL_S,
            fallthrough=tuple(reverse) or None,
        )
        others = _others(blocks, own)
        blocks = tuple(_served(block, own, cluster, others) if block in to_us else block for block in blocks)
        names = ", ".join(dict.fromkeys(zones or ["."]))
        notes.append(f"the cluster's DNS is this server: {names} answered here, not forwarded to itself")
    if blocks == corefile.blocks:
        return corefile
    return replace(corefile, blocks=blocks, warnings=tuple(notes))


def _named(block: ServerBlock) -> ServerBlock:
    """With the node's own resolvers for the word that stands for them."""
    forwards = (
        replace(forward, to=tuple(_RESOLV_CONF if word == UPSTREAM_SERVERS else word for word in forward.to))
        for forward in block.forwards
    )
    return replace(block, forwards=tuple(forwards))


def _is_own(word: str, own: Collection[str]) -> bool:
    host = word.removeprefix("[").rpartition("]")[0] or (word.rpartition(":")[0] if word.count(":") == 1 else word)
    return word == CLUSTER_DNS or host in own


def _others(blocks: tuple[ServerBlock, ...], own: Collection[str]) -> tuple[str, ...]:
    """Where all other names go."""
    for block in blocks:
        if "." in block.zones:
            for forward in block.forwards:
                if to := tuple(word for word in forward.to if not _is_own(word, own)):
                    return to
    return (_RESOLV_CONF,)


def _served(block: ServerBlock, own: Collection[str], cluster: Kubernetes, others: tuple[str, ...]) -> ServerBlock:
    forwards: list[Forward] = []
    for forward in block.forwards:
        to = tuple(word for word in forward.to if not _is_own(word, own))
        if to == forward.to:
            forwards.append(forward)
        elif to:
            forwards.append(replace(forward, to=to))
        elif block.zones == (".",) or any(
            zone not in cluster.zones or zone in (cluster.fallthrough or ()) for zone in block.zones
        ):
            forwards.append(replace(forward, to=others, force_tcp=False))
    kubernetes = block.kubernetes or (cluster if set(block.zones) <= set(cluster.zones) else None)
    return replace(block, forwards=tuple(forwards), kubernetes=kubernetes)
