"""Which endpoints a node may use: readiness, locality, the terminating fallback, and the hints of traffic distribution.

In: every endpoint of one Service port in the cluster, with its conditions. Out: `Usable`, the three answers from which all routes are
made (kube-proxy's CategorizeEndpoints; the rules are those of KEP-1669, KEP-2433, KEP-3015 and KEP-4444). No policy is decided here,
no address judged.

Hints are honoured only if *every* ready endpoint bears them and one of them names this node or its zone. One endpoint without hints
turns the feature off for the whole Service port: half-written hints (a controller in the middle of an update) must never
starve the zones that are still missing. Hints never apply to the Local set, nor to terminating endpoints.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import Enum

from kproxy.model.desired import Endpoint, NodeFacts

DNS_PORT = 53


@dataclass(frozen=True, slots=True)
class Candidate:
    """One endpoint of a Service port as the slices describe it, wherever it runs."""

    endpoint: Endpoint
    ready: bool
    draining: bool  # serving, terminating and not ready: used only where nothing is ready
    hint_zones: tuple[str, ...] = ()
    hint_nodes: tuple[str, ...] = ()
    serving: bool = True  # it answers, new connections or not


@dataclass(frozen=True, slots=True)
class Place:
    """Where this node stands, as hints name it; "" when unknown."""

    node: str = ""
    zone: str = ""
    own_dns: tuple[str, ...] = ()  # this node's addresses, where its own DNS answers this port; see `elsewhere`


def place_of(port: int, virtual_ips: Collection[str], facts: NodeFacts) -> Place:
    """Where this node stands for one Service port. virtual_ips: the Service's."""
    is_dns = port == DNS_PORT and not facts.cluster_dns.isdisjoint(virtual_ips)
    return Place(facts.name, facts.zone, facts.node_ips if is_dns else ())


def elsewhere(candidates: Sequence[Candidate], place: Place) -> Sequence[Candidate]:
    """`candidates` without this node's own DNS server, if another one is ready.

    While it answers, queries reach it by the address that the node holds and never meet a rule; those that do come when it does not.
    """
    if not place.own_dns:
        return candidates
    others = [c for c in candidates if not (c.endpoint.is_local and c.endpoint.address in place.own_dns)]
    return others if any(c.ready for c in others) else candidates


class Hints(Enum):
    """Which hints a Service port's endpoints make this node follow."""

    NONE = "none"
    SAME_NODE = "node"
    SAME_ZONE = "zone"


@dataclass(frozen=True, slots=True)
class Usable:
    """cluster: for policy Cluster. local: for policy Local, endpoints of this node only. any_anywhere: whether one could answer at all.

    All are ordered like the candidates they come from.
    """

    cluster: tuple[Endpoint, ...] = ()
    local: tuple[Endpoint, ...] = ()
    any_anywhere: bool = False


def hints_in_force(ready: Sequence[Candidate], place: Place) -> Hints:
    """Which hints of the `ready` endpoints count at `place`."""
    if not ready:
        return Hints.NONE
    first = ready[0]  # tells of most Services that their endpoints have no hints
    if (
        place.node
        and first.hint_nodes
        and all(c.hint_nodes for c in ready)
        and any(place.node in c.hint_nodes for c in ready)
    ):
        return Hints.SAME_NODE
    if (
        place.zone
        and first.hint_zones
        and all(c.hint_zones for c in ready)
        and any(place.zone in c.hint_zones for c in ready)
    ):
        return Hints.SAME_ZONE
    return Hints.NONE


def _hinted(ready: Sequence[Candidate], place: Place) -> Sequence[Candidate]:
    match hints_in_force(ready, place):
        case Hints.SAME_NODE:
            return [c for c in ready if place.node in c.hint_nodes]
        case Hints.SAME_ZONE:
            return [c for c in ready if place.zone in c.hint_zones]
        case Hints.NONE:
            return ready


def usable(candidates: Sequence[Candidate], place: Place) -> Usable:
    """What of `candidates` may be used at `place`."""
    everywhere, candidates = candidates, elsewhere(candidates, place) if place.own_dns else candidates
    ready = [c for c in candidates if c.ready]
    # Only where nothing is ready do draining endpoints serve, so that a rollout without a spare pod loses no request (KEP-1669).
    cluster = _hinted(ready, place) if ready else [c for c in candidates if c.draining]
    local = [c.endpoint for c in everywhere if c.ready and c.endpoint.is_local]
    if not local:
        local = [c.endpoint for c in everywhere if c.draining and c.endpoint.is_local]
    return Usable(cluster=tuple([c.endpoint for c in cluster]), local=tuple(local), any_anywhere=bool(cluster))
