"""Why each endpoint of a Service port gets which traffic, or gets none.

In: the slices of a Service, one of its ports, and the ServicePort that `resolve` made of them. Out: one `EndpointSeen` for every
endpoint in every slice, refused and duplicate ones included.

Nothing is decided here. Whether an endpoint is used is read from the ServicePort. The reason is found by asking the functions that decided
about it: `candidates_of` for one endpoint alone tells whether it was refused, and whether the copy that counts is this one;
`hints_in_force` tells which hints were followed. tests/property/test_explain.py holds the reasons to account: change what a reason blames,
and `resolve` changes its mind.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum

from kproxy.model.addresses import refusal
from kproxy.model.desired import Endpoint, NodeFacts, Route, ServicePort
from kproxy.model.endpoints import candidates_of
from kproxy.model.objects import EndpointSlice, PortSpec, SliceEndpoint
from kproxy.model.topology import Candidate, Hints, Place, elsewhere, hints_in_force, place_of


class Reason(Enum):
    """Why an endpoint is used for some traffic, or is not."""

    READY = "ready"
    HINTED_ZONE = "hinted for this zone"
    HINTED_NODE = "hinted for this node"
    DRAINING = "terminating but still serving, and no ready endpoint is left"
    LOCAL = "ready and on this node"
    LOCAL_DRAINING = "terminating but still serving, and no ready endpoint on this node is left"
    # the others are not used
    NOT_READY = "not ready"
    TERMINATING = "terminating, and ready endpoints are there"
    OTHER_NODE = "on another node, and the policy is Local"
    OTHER_ZONE = "hinted for other zones"
    OTHER_HINTED_NODE = "hinted for other nodes"
    REFUSED = "its address may not be an endpoint"
    DUPLICATE = "listed more than once, and another copy counts"
    NO_SUCH_PORT = "its slice has no port of this name and protocol"
    HEADLESS_SLICE = "its slice is labelled as a headless Service's"
    OWN_DNS = "this node's own DNS server, which is asked without rules; they stand in when it does not answer"
    NO_SUCH_TRAFFIC = "the Service has no such addresses"


USED = frozenset(
    {Reason.READY, Reason.HINTED_ZONE, Reason.HINTED_NODE, Reason.DRAINING, Reason.LOCAL, Reason.LOCAL_DRAINING}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """Whether an endpoint gets one class of traffic, and why. detail: names and zones for the reason, "" when it needs none."""

    reason: Reason
    detail: str = ""

    @property
    def used(self) -> bool:
        """Whether it gets that traffic."""
        return self.reason in USED

    def __str__(self) -> str:
        return f"{self.reason.value} ({self.detail})" if self.detail else self.reason.value


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointSeen:
    """One endpoint of one slice, as it concerns one Service port. endpoint: None where it could not become one."""

    slice: str
    member: SliceEndpoint
    port: int | None
    endpoint: Endpoint | None
    internal: Use
    external: Use
    short_circuit: Use


@dataclass(frozen=True, slots=True)
class _Row:
    """An endpoint in its slice; candidate: what it is as an endpoint, None with `why` otherwise."""

    slice: EndpointSlice
    member: SliceEndpoint
    candidate: Candidate | None
    why: Use | None


def explain_endpoints(
    slices: Sequence[EndpointSlice], port: PortSpec, service_port: ServicePort, facts: NodeFacts
) -> tuple[EndpointSeen, ...]:
    """Every endpoint of the ServicePort's family, in the order of slices."""
    key = (port.name, port.protocol)
    every, _ = candidates_of(slices, service_port.family, facts.name)
    winners = {candidate.endpoint.text: candidate for candidate in every.get(key, ())}
    addresses = [virtual_ip.address for virtual_ip in service_port.virtual_ips]
    judge = _Judge(tuple(winners.values()), place_of(service_port.port, addresses, facts))
    seen = []
    for row in _rows(slices, port, service_port, facts.name, winners):
        uses = [
            judge.use(row, route, exists=exists)
            for route, exists in (
                (service_port.internal, True),
                (service_port.external, service_port.externally_reachable),
                (service_port.short_circuit, service_port.externally_reachable),
            )
        ]
        endpoint = row.candidate.endpoint if row.candidate is not None else None
        seen.append(
            EndpointSeen(
                slice=row.slice.name.name,
                member=row.member,
                port=endpoint.port if endpoint is not None else None,
                endpoint=endpoint,
                internal=uses[0],
                external=uses[1],
                short_circuit=uses[2],
            )
        )
    return tuple(seen)


def _rows(
    slices: Sequence[EndpointSlice],
    port: PortSpec,
    service_port: ServicePort,
    node: str,
    winners: Mapping[str, Candidate],
) -> Iterator[_Row]:
    family, key = service_port.family, (port.name, port.protocol)
    counted: dict[str, str] = {}  # endpoint → the slice whose copy counts
    pending: list[_Row] = []
    for item in slices:
        if item.family is not family:
            continue
        for member in item.endpoints:
            alone, problems = candidates_of((replace(item, endpoints=(member,)),), family, node)
            found = alone.get(key, ())
            if not found:
                reason = Reason.HEADLESS_SLICE if not item.proxied else Reason.NO_SUCH_PORT
                use = Use(reason=reason)
                if problems:
                    use = Use(reason=Reason.REFUSED, detail=refusal(member.address, family))
                pending.append(_Row(item, member, None, use))
            for candidate in found:
                text = candidate.endpoint.text
                if text not in counted and candidate == winners[text]:
                    counted[text] = item.name.name
                    pending.append(_Row(item, member, candidate, None))
                else:
                    pending.append(_Row(item, member, candidate, Use(reason=Reason.DUPLICATE)))
    for row in pending:
        if row.candidate is not None and row.why is not None:
            where = counted[row.candidate.endpoint.text]
            yield replace(row, why=Use(reason=Reason.DUPLICATE, detail=f"in slice {where}"))
        else:
            yield row


class _Judge:
    """What holds for all endpoints of one Service port."""

    def __init__(self, candidates: Sequence[Candidate], place: Place) -> None:
        self.place = place
        self.others = elsewhere(candidates, place)
        self.hints = hints_in_force([c for c in self.others if c.ready], place)

    def use(self, row: _Row, route: Route, *, exists: bool) -> Use:
        """Whether and why the endpoint of `row` gets what takes `route`."""
        if row.candidate is None or row.why is not None:
            assert row.why is not None
            return row.why
        if not exists:
            return Use(reason=Reason.NO_SUCH_TRAFFIC)
        used = row.candidate.endpoint in route.endpoints
        return self._local(row, used) if route.local_only else self._cluster(row, used)

    def _local(self, row: _Row, used: bool) -> Use:
        candidate = row.candidate
        assert candidate is not None
        if used:
            return Use(reason=Reason.LOCAL if candidate.ready else Reason.LOCAL_DRAINING)
        if not candidate.endpoint.is_local:
            return Use(reason=Reason.OTHER_NODE, detail=row.member.node_name)
        return Use(reason=Reason.TERMINATING if candidate.draining else Reason.NOT_READY)

    def _cluster(self, row: _Row, used: bool) -> Use:
        candidate = row.candidate
        assert candidate is not None
        if not candidate.ready:
            if used:
                return Use(reason=Reason.DRAINING)
            return Use(reason=Reason.TERMINATING if candidate.draining else Reason.NOT_READY)
        if candidate not in self.others:
            return Use(reason=Reason.OWN_DNS)
        match self.hints:
            case Hints.NONE:
                return Use(reason=Reason.READY)
            case Hints.SAME_ZONE:
                others = f"{', '.join(candidate.hint_zones)}; this node is in {self.place.zone}"
                return Use(reason=Reason.HINTED_ZONE) if used else Use(reason=Reason.OTHER_ZONE, detail=others)
            case Hints.SAME_NODE:
                others = ", ".join(candidate.hint_nodes)
                return Use(reason=Reason.HINTED_NODE) if used else Use(reason=Reason.OTHER_HINTED_NODE, detail=others)


def explain_hints(candidates: Sequence[Candidate], place: Place) -> str:
    """What the topology hints of a Service port's endpoints come to at `place`; "" when no ready endpoint bears any."""
    ready = [c for c in elsewhere(candidates, place) if c.ready]
    match hints_in_force(ready, place):
        case Hints.SAME_NODE:
            return "followed: endpoints hinted for this node only"
        case Hints.SAME_ZONE:
            return f"followed: endpoints hinted for zone {place.zone} only"
        case Hints.NONE:
            pass
    if not any(c.hint_zones or c.hint_nodes for c in ready):
        return ""
    by_zone = any(c.hint_zones for c in ready)
    bare = [c.endpoint.text for c in ready if not (c.hint_zones if by_zone else c.hint_nodes)]
    if bare:
        more = f" and {len(bare) - 1} more" if len(bare) > 1 else ""
        return f"ignored: {bare[0]}{more} bears none, and half-written hints would starve somebody"
    if not by_zone:
        return "ignored: no endpoint is hinted for this node"
    if not place.zone:
        return "ignored: this node bears no label topology.kubernetes.io/zone"
    return f"ignored: no endpoint is hinted for zone {place.zone}"
