"""What one row of the behaviour table is made of: who sends what where, and what must become of it.

    Row     id, title, steps, needs
     Step   the cluster's objects and the node from now on, and the flows tried then
      Flow  a source, a destination, a protocol → Expect, in the modes it holds for

Sources are a kind of place and an address, because netfilter sees a packet of a process on the node (OUTPUT) otherwise than one that
arrives (PREROUTING). `twin_row` makes the IPv6 row of an IPv4 row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum

from kproxy.model.desired import NodeSettings
from kproxy.model.events import AddressesChanged
from kproxy.model.names import Protocol
from kproxy.model.snapshot import Snapshot, fold
from tests.support import addressing as plan
from tests.support.addressing import six, twin
from tests.support.builders import Built, node, replaced


class Place(Enum):
    """Where a packet starts."""

    POD = "pod"  # a pod on this node, endpoint pods included: arrives over its veth
    HOST = "host"  # a process on this node: never arrives, leaves by OUTPUT
    OUTSIDE = "outside"  # arrives on the uplink


@dataclass(frozen=True)
class Source:
    """Who sends: a place and the source address before any translation."""

    place: Place
    address: str


P = Source(Place.POD, plan.POD)
P2 = Source(Place.POD, plan.POD_2)
H = Source(Place.HOST, plan.NODE_IP)
L = Source(Place.HOST, plan.LOOPBACK)
X = Source(Place.OUTSIDE, plan.OUTSIDE)
XB = Source(Place.OUTSIDE, plan.BLOCKED)


def pod(address: str) -> Source:
    """A pod on this node with this address; for an endpoint's own address: that endpoint as client."""
    return Source(Place.POD, address)


def host(address: str) -> Source:
    """A process on this node that sends from `address`."""
    return Source(Place.HOST, address)


class Outcome(Enum):
    """What becomes of a packet."""

    REACH = "reach"  # it arrives at one of `endpoints`
    REJECT = "reject"  # at once: ICMP port unreachable (TCP: connection refused)
    DROP = "drop"  # no answer; the client times out
    PASS = "pass"  # untouched: addressed as it was sent, no opinion of the proxy


class Seen(Enum):
    """Whose address an endpoint sees as its client's."""

    KEEP = "keep"  # the client's own
    SNAT = "snat"  # one of this node's
    EITHER = "either"


@dataclass(frozen=True)
class Expect:
    """The outcome; for REACH each `ip:port` that must be reached over many tries, and no other, with the client it sees.

    Several endpoints always have equal shares.
    """

    outcome: Outcome
    endpoints: Mapping[str, Seen] = field(default_factory=dict)

    def __and__(self, other: Expect) -> Expect:
        """Both sets: `keep("a:80") & snat("b:80")`."""
        return Expect(Outcome.REACH, {**self.endpoints, **other.endpoints})


REJECT, DROP, PASS = Expect(Outcome.REJECT), Expect(Outcome.DROP), Expect(Outcome.PASS)


def keep(*endpoints: str) -> Expect:
    """Reached, source kept."""
    return Expect(Outcome.REACH, dict.fromkeys(endpoints, Seen.KEEP))


def snat(*endpoints: str) -> Expect:
    """Reached, masqueraded."""
    return Expect(Outcome.REACH, dict.fromkeys(endpoints, Seen.SNAT))


def either(*endpoints: str) -> Expect:
    """Reached, whatever source is seen."""
    return Expect(Outcome.REACH, dict.fromkeys(endpoints, Seen.EITHER))


IPT, NFT = "ipt", "nft"
ALL_MODES = frozenset({IPT, NFT})
USERSPACE = "userspace"  # tries the flows of IPT; what it does otherwise: tests/packet/userspace_differences.py


@dataclass(frozen=True)
class Flow:
    """One kind of connection to try.

    connections: how many an executor makes at least, when it says more than the executor's own number.
    sticky: flows of a row with the same non-empty group must all land on one endpoint of the set (session affinity).
    wait_s: time to let pass before. socket: a client socket kept open under this name through all steps (UDP), so that the kernel sees
    one flow. established: the packet belongs to the connection opened by the flow with the same `socket` earlier; nat is not asked again.
    input_drop: the policy of filter INPUT is DROP meanwhile, and the packet must still arrive at its socket.
    """

    source: Source
    to: tuple[str, int]
    expect: Expect
    protocol: Protocol = Protocol.TCP
    modes: frozenset[str] = ALL_MODES
    connections: int = 0
    sticky: str = ""
    wait_s: float = 0.0
    socket: str = ""
    established: bool = False
    input_drop: bool = False
    label: str = ""

    def __str__(self) -> str:
        to = f"[{self.to[0]}]:{self.to[1]}" if ":" in self.to[0] else f"{self.to[0]}:{self.to[1]}"
        return f"{self.label or self.source.place.value} {self.source.address} -> {to}/{self.protocol.lower}"


class Need(Enum):
    """What an executor must be able to do beyond sending fresh packets; it leaves a row out only for one of these, and says so."""

    AFFINITY = "affinity"  # remembers clients from one connection to the next
    TIME = "time"  # lets time pass
    CONNTRACK = "conntrack"  # flows that outlive a change of rules, and their clean-up
    SCTP = "sctp"
    CRAFTED_ROUTE = "crafted-route"  # packets that no ordinary host would send here
    FILES_ONLY = "files-only"  # objects that a validating API server refuses or corrects: load them from files
    MANY = "many"  # more than 50 pods or clients: costly in namespaces


POD_INTERFACE = "clients"  # the node's interface by which P and P2 come in, for the detectors that ask for it

SETTINGS = NodeSettings(name=plan.NODE, cluster_cidrs=(plan.CLUSTER_CIDR, six(plan.CLUSTER_CIDR)))
_LOCAL = (plan.NODE_IP, plan.NODE_IP_2, plan.LOOPBACK)
LOCAL_ADDRESSES = frozenset((*_LOCAL, *(six(a) for a in _LOCAL)))
TESTNODE = node()


@dataclass(frozen=True)
class Step:
    """The whole cluster as it is from this step on, and what is then tried. Between steps only the differences are applied."""

    objects: tuple[Built, ...]
    flows: tuple[Flow, ...] = ()
    node: Built = TESTNODE
    local_addresses: frozenset[str] = LOCAL_ADDRESSES
    label: str = ""

    def snapshot(self) -> Snapshot:
        """The step's objects as a snapshot, as if listed for the first time."""
        return fold(Snapshot(), [*replaced((*self.objects, self.node)), AddressesChanged(self.local_addresses)])


@dataclass(frozen=True)
class Row:
    """One row of the table; `id` is that of the reference, with "-v6" for its IPv6 twin."""

    id: str
    title: str
    steps: tuple[Step, ...]
    settings: NodeSettings = SETTINGS
    needs: frozenset[Need] = frozenset()
    ipv4_only: bool = False  # has no meaning in IPv6, or brings its own IPv6 flows


def flow(
    source: Source, to: str, number: int, expect: Expect, protocol: str = "TCP", *, mode: str = "", **rest: object
) -> Flow:
    """A Flow; mode: "ipt" or "nft" when it holds for one only."""
    modes = frozenset({mode}) if mode else ALL_MODES
    return Flow(source, (to, number), expect, Protocol(protocol), modes, **rest)  # type: ignore[arg-type]


def row(
    id: str,
    title: str,
    objects: Sequence[Built],
    *flows: Flow,
    settings: NodeSettings = SETTINGS,
    needs: Sequence[Need] = (),
    ipv4_only: bool = False,
    node: Built = TESTNODE,
    local_addresses: frozenset[str] = LOCAL_ADDRESSES,
) -> Row:
    """A row of one step."""
    step = Step(tuple(objects), flows, node=node, local_addresses=local_addresses)
    return Row(id, title, (step,), settings, _needs(needs, flows), ipv4_only)


def scenario(
    id: str,
    title: str,
    *steps: Step,
    settings: NodeSettings = SETTINGS,
    needs: Sequence[Need] = (),
    ipv4_only: bool = False,
) -> Row:
    """A row of several steps."""
    every = [f for step in steps for f in step.flows]
    return Row(id, title, steps, settings, _needs(needs, every), ipv4_only)


def step(
    objects: Sequence[Built], *flows: Flow, label: str = "", node: Built = TESTNODE, extra_addresses: Sequence[str] = ()
) -> Step:
    """One step; extra_addresses are held by the node besides its usual ones."""
    return Step(tuple(objects), flows, node, LOCAL_ADDRESSES | frozenset(extra_addresses), label)


def _needs(needs: Sequence[Need], flows: Sequence[Flow]) -> frozenset[Need]:
    found = set(needs)
    if any(f.protocol is Protocol.SCTP for f in flows):
        found.add(Need.SCTP)
    if any(f.sticky for f in flows):
        found.add(Need.AFFINITY)
    if any(f.wait_s for f in flows):
        found.add(Need.TIME)
    if any(f.socket for f in flows):
        found.add(Need.CONNTRACK)
    return frozenset(found)


def twin_row(original: Row) -> Row | None:
    """The same row in IPv6; None where it has none. Flows to or from loopback are left out: IPv6 has no route_localnet."""
    if original.ipv4_only:
        return None
    steps = tuple(
        replace(
            s,
            objects=twin(s.objects),
            flows=tuple(twin(f) for f in s.flows if plan.LOOPBACK not in (f.to[0], f.source.address)),
            local_addresses=s.local_addresses | twin(s.local_addresses),
        )
        for s in original.steps
    )
    if not any(s.flows for s in steps):
        return None
    settings = replace(
        original.settings,
        node_port_addresses=twin(original.settings.node_port_addresses),
        dns_addresses=twin(original.settings.dns_addresses),
    )
    return replace(original, id=f"{original.id}-v6", steps=steps, settings=settings)
