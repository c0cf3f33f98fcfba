"""What the relay's workers know of Services: where a connection was going, and what may answer it. Pure values; they travel as they are.

In: a DesiredState, through `relay.table.table_of`. Out: one `Target` for each route of a ServicePort that has endpoints, and the `Key`s
that lead to it. Destinations without an endpoint never come here: rules refuse or drop their packets. What must not happen here: a
question about a Service. Which of two routes a connection takes is told by the listener that it arrived on (`INSIDE`, `OUTSIDE`), which
rules chose by who sent it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

End = tuple[str, int]  # address, in canonical text, and port of an endpoint

INSIDE = "inside"  # from pods and from this node, and everything to a cluster IP
OUTSIDE = "outside"  # from elsewhere, to any other address of a Service
ENTRIES = (INSIDE, OUTSIDE)

RANDOM_TWO_CHOICES, ROUND_ROBIN, LEAST_CONNECTIONS = "RandomTwoChoices", "RoundRobin", "LeastConnections"
BALANCINGS = (RANDOM_TWO_CHOICES, ROUND_ROBIN, LEAST_CONNECTIONS)


class Key(NamedTuple):
    """A destination as a worker sees it. address: "" for a node port, which answers on whatever address of this node rules let through."""

    entry: str
    family: str  # IPv4, IPv6
    protocol: str  # TCP, UDP
    address: str
    port: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One route of a ServicePort, for one family: every decision about the Service is already taken.

    endpoints: for new connections, sorted, never empty. local: those of them on this node; only their replies are sure to come back by
    this node, so only theirs can see the client's own address. keeps: whose UDP sessions may go on besides (an endpoint that drains).
    """

    name: str  # ns/name:port, for people and counters
    family: str
    protocol: str
    endpoints: tuple[End, ...]
    local: tuple[End, ...] = ()
    keeps: tuple[End, ...] = ()
    affinity_s: int = (
        0  # 0: none; else for how long after its last new connection a client address stays with its endpoint
    )
    balancing: str = RANDOM_TWO_CHOICES
    preserve_source: bool = False  # the endpoints in `local` see the client's address
    proxy_protocol: int = 0  # 0: none; else the version, 1 or 2, of the header that goes to the endpoint first
    drain_s: float = 0.0  # how long connections to an endpoint that is gone may go on; 0: as long as they like

    @property
    def group(self) -> tuple[str, str, str]:
        """What shares affinity: all routes of a ServicePort."""
        return self.family, self.protocol, self.name

    def may_stay(self, endpoint: End) -> bool:
        """Whether a UDP session with `endpoint` goes on."""
        return endpoint in self.endpoints or endpoint in self.keeps


@dataclass(frozen=True, slots=True)
class Table:
    """Everything a worker relays. Destinations with equal routes share one Target, by identity."""

    targets: Mapping[Key, Target] = field(default_factory=dict)

    def find(self, entry: str, family: str, protocol: str, address: str, port: int) -> Target | None:
        """What stands behind a destination; a Service's own address goes before a node port."""
        found = self.targets.get(Key(entry, family, protocol, address, port))
        return found if found is not None else self.targets.get(Key(entry, family, protocol, "", port))


@dataclass(frozen=True, slots=True, kw_only=True)
class Flow:
    """An open TCP connection or UDP session, for people. Seconds since the epoch; octets as the client sees them."""

    worker: int  # process id
    number: int
    protocol: str
    client: str  # ip:port
    virtual: str  # ip:port that the client asked for
    service: str
    endpoint: str  # ip:port; "" while none has accepted
    source: str = ""  # the address the endpoint sees, ip:port
    began: float = 0.0
    sent: int = 0  # octets from the client to the endpoint
    received: int = 0
    retries: int = 0  # endpoints that were tried before
    state: str = "open"  # connecting, open, half-closed, draining
    in_kernel: bool = False  # its packets pass without the worker
