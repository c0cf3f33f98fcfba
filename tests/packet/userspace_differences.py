"""What mode userspace does otherwise than the behaviour table's iptables mode, and why: the whole list.

A `Difference` says for which flows it holds and what is seen instead. The executor (userspace_executor.py) asserts both: that a flow here
does what the list says, and that it does not do what the table says. An entry that nothing needs fails a test.

The mode with `preserveSourceAddress` (PRESERVING) differs from itself without in nothing but the addresses that endpoints see.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from ipaddress import ip_address

from kproxy.model.names import Protocol
from tests.support.addressing import NODE
from tests.support.flows import DROP, PASS, REJECT, Expect, Flow, Outcome, Place, Row, Seen, Step


@dataclass(frozen=True)
class Case:
    """One flow, where it stands."""

    row: Row
    step: Step
    flow: Flow
    preserves: bool

    @property
    def id(self) -> str:
        """The row's id, that of its IPv4 original."""
        return self.row.id.removesuffix("-v6")

    def is_local(self, endpoint: str) -> bool:
        """Whether `ip:port` is an endpoint on this node."""
        address = endpoint.rpartition(":")[0].strip("[]")
        slices = self.step.snapshot().slices.values()
        return any(e.address == address and e.node_name == NODE for s in slices for e in s.endpoints)


@dataclass(frozen=True)
class Difference:
    """instead: what is seen in this mode; None where the flow is none of this entry's."""

    name: str
    reason: str
    instead: Callable[[Case], Expect | None]


def _source(case: Case) -> Expect | None:
    """The client that each endpoint sees."""
    expect = case.flow.expect
    if expect.outcome is not Outcome.REACH or case.flow.protocol is Protocol.SCTP:
        return None
    client = case.flow.source.address
    seen = {}
    for endpoint, wanted in expect.endpoints.items():
        own = client == endpoint.rpartition(":")[0].strip("[]")
        shown = case.preserves and case.is_local(endpoint) and not own and not ip_address(client).is_loopback
        seen[endpoint] = wanted if wanted is Seen.EITHER else Seen.KEEP if shown else Seen.SNAT
    return replace(expect, endpoints=seen)


def _sctp(case: Case) -> Expect | None:
    return PASS if case.flow.protocol is Protocol.SCTP else None


def _of_rows(expect: Expect, *ids: str, places: tuple[Place, ...] = tuple(Place)) -> Callable[[Case], Expect | None]:
    def found(case: Case) -> Expect | None:
        return expect if case.id in ids and case.flow.source.place in places else None

    return found


def _own_packets(case: Case) -> Expect | None:
    """The node's own packets to an address outside whose Service has no endpoint."""
    away = case.flow.expect == PASS and case.flow.source.place is Place.HOST
    return REJECT if case.id == "L18" and away else None


DIFFERENCES = (
    Difference(
        "source address",
        "the endpoint's connection is the relay's own: it comes from this node, from whatever source and by whatever policy. With "
        "preserveSourceAddress endpoints on this node see the client's address, also where rules would masquerade it (policy Cluster from "
        "outside); those on other nodes never do, because nobody would lead their replies through this node.",
        _source,
    ),
    Difference(
        "SCTP",
        "not relayed: message boundaries and several addresses of one association have no counterpart in a pair of connections. Its "
        "packets pass untouched, and the ServicePort is told as a Problem.",
        _sctp,
    ),
    Difference(
        "refusal of the node's own packets",
        "refused in the output hook too, as upstream's nftables mode does; in iptables mode its chain hangs below INPUT and FORWARD "
        "alone, and the packet goes where the address really is.",
        _own_packets,
    ),
    Difference(
        "health check node port under a closed firewall",
        "no rule lets it in past somebody else's INPUT policy, as in upstream's nftables mode; it bears the mark of what is relayed, and "
        "the one rule that lets this in past such a policy lets in both.",
        _of_rows(DROP, "N14"),
    ),
)


def difference(case: Case) -> tuple[Difference, Expect] | None:
    """The entry that a flow falls under, and what is seen instead; None: what the table says is seen."""
    for entry in DIFFERENCES:
        expect = entry.instead(case)
        if expect is not None and expect != case.flow.expect:
            return entry, expect
    return None
