"""What the relay does with connections to one ServicePort, in words: by which listener they come, who is chosen, what the endpoint sees.

In: a ServicePort, the Table of the relay's workers, configuration, what the workers say of endpoints at the moment. Out: a `RelaySeen`.
What must not happen here: a choice (relay/chooser.py makes it) or a decision about a Service. Every sentence is about a field of the
Targets that the workers have.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from kproxy.config.config import UserspaceConfig
from kproxy.explain.flows import end_text
from kproxy.model.desired import ServicePort, VirtualIPKind
from kproxy.relay.ejection import FAILURES, FIRST_S, LONGEST_S
from kproxy.relay.targets import INSIDE, LEAST_CONNECTIONS, OUTSIDE, ROUND_ROBIN, End, Key, Table, Target

RELAYED = frozenset({"TCP", "UDP"})
NODE_SEEN = "the endpoint sees this node as its client"


@dataclass(frozen=True, slots=True, kw_only=True)
class RelayFacts:
    """What bears on every Service. ports: of the listeners, None while nobody listens. ejected: endpoint → seconds until it is tried again.

    counted, counted_by_end: what workers counted (relay/counts.py has the words), by Service port, and by Service port and `ip:port`.
    """

    config: UserspaceConfig
    ports: tuple[int, int] | None = None
    ejected: Mapping[End, float] = field(default_factory=dict)
    counted: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    counted_by_end: Mapping[str, Mapping[str, Mapping[str, int]]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class WaySeen:
    """One way of connections to a ServicePort. to: its address, or `node port`. senders: whose they are. port: of the listener, or None."""

    to: str
    senders: str
    entry: str
    port: int | None
    endpoints: tuple[End, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RelaySeen:
    """Everything. why_not: why nothing is relayed, "" when it is. choice, retries, source: sentences. differs: from the kernel modes."""

    why_not: str = ""
    ways: tuple[WaySeen, ...] = ()
    choice: tuple[str, ...] = ()
    retries: tuple[str, ...] = ()
    source: tuple[str, ...] = ()
    ejected: tuple[tuple[str, float], ...] = ()  # ip:port of its endpoints that are left out, and seconds
    differs: tuple[str, ...] = ()
    source_in_short: str = ""
    counted: Mapping[str, int] = field(default_factory=dict)
    counted_by_end: Mapping[str, Mapping[str, int]] = field(default_factory=dict)


def explain_relay(port: ServicePort, table: Table, facts: RelayFacts) -> RelaySeen:
    """What happens to connections to `port`."""
    if port.name.protocol.value not in RELAYED:
        return RelaySeen(
            why_not=f"{port.name.protocol.value} is not relayed in mode userspace: nothing answers, use a kernel mode"
        )
    found = tuple(_ways(port, table))
    targets = [target for _, target in found]
    if not targets:
        return RelaySeen(why_not="no route of it has an endpoint: rules refuse or drop what comes")
    target = targets[0]  # ways differ in their endpoints and in nothing else
    endpoints = dict.fromkeys(end for each in targets for end in each.endpoints)
    return RelaySeen(
        ways=tuple(_with_port(way, facts) for way, _ in found),
        choice=tuple(_choice(target)),
        retries=tuple(_retries(target, len(endpoints), facts)),
        source=tuple(_source(target, {end for each in targets for end in each.local})),
        ejected=tuple((end_text(*end), facts.ejected[end]) for end in endpoints if end in facts.ejected),
        differs=tuple(_differs(target)),
        counted=facts.counted.get(str(port.name), {}),
        counted_by_end=facts.counted_by_end.get(str(port.name), {}),
        source_in_short="endpoints of this node see the client, others this node"
        if target.preserve_source
        else NODE_SEEN,
    )


def _ways(port: ServicePort, table: Table) -> Iterator[tuple[WaySeen, Target]]:
    family, protocol = port.family.value, port.name.protocol.value
    destinations = [(v.address, port.port, v.kind is VirtualIPKind.CLUSTER) for v in port.virtual_ips]
    if port.node_port is not None:
        destinations.append(("", port.node_port, False))
    for address, number, is_cluster in destinations:
        to = end_text(address, number) if address else f"node port {number}"
        for entry, senders in (
            ((INSIDE, "everybody"),) if is_cluster else ((INSIDE, "pods and this node"), (OUTSIDE, "others"))
        ):
            target = table.targets.get(Key(entry, family, protocol, address, number))
            if target is not None and target.name == str(port.name):
                yield WaySeen(to=to, senders=senders, entry=entry, port=None, endpoints=target.endpoints), target


def _with_port(way: WaySeen, facts: RelayFacts) -> WaySeen:
    port = None if facts.ports is None else facts.ports[way.entry == OUTSIDE]
    return WaySeen(to=way.to, senders=way.senders, entry=way.entry, port=port, endpoints=way.endpoints)


def balancing_text(target: Target) -> str:
    """How an endpoint is chosen where affinity does not say."""
    match target.balancing:
        case x if x == ROUND_ROBIN:
            return "RoundRobin: endpoints take turns, each worker from a place of its own"
        case x if x == LEAST_CONNECTIONS:
            return "LeastConnections: the endpoint with the fewest open connections of the worker that accepted"
        case _:
            return "RandomTwoChoices: of two endpoints taken by chance the one with fewer open connections of the worker that accepted"


def _choice(target: Target) -> Iterator[str]:
    if target.affinity_s:
        yield (
            f"session affinity: a client's address belongs to one endpoint by a hash that all nodes agree on, is remembered for "
            f"{target.affinity_s} s after its last new connection, and moves only when that endpoint goes or fails"
        )
    elif len(target.endpoints) == 1:
        yield "one endpoint: nothing is chosen"
    else:
        yield balancing_text(target)
    yield (
        f"an endpoint that fails {FAILURES} times in a row is left out for {FIRST_S:.0f} s, twice as long each time up to "
        f"{LONGEST_S:.0f} s, then tried with one connection; never all of them"
    )


def _retries(target: Target, endpoints: int, facts: RelayFacts) -> Iterator[str]:
    if target.protocol == "UDP":
        yield "an endpoint that answers with an ICMP error loses the session to another, which gets the last unanswered datagram"
        yield "a session ends after 30 s of silence, 120 s once both sides have spoken for 2 s"
        return
    config = facts.config
    if endpoints > 1:
        yield (
            f"refused or unreachable: the next endpoint at once; no answer after {config.hedge_after_s:g} s: another is tried beside it, "
            "and the first to accept wins"
        )
    yield f"no endpoint accepts within {config.connect_timeout_s:g} s: the client's connection is reset"
    if target.drain_s:
        yield f"connections to an endpoint that is gone may go on for {target.drain_s:g} s, then they are reset"
    else:
        yield "connections to an endpoint that is gone go on until one side ends them"


def _source(target: Target, local: set[End]) -> Iterator[str]:
    if target.preserve_source:
        shown = ", ".join(end_text(*end) for end in sorted(local)[:5])
        more = f" and {len(local) - 5} more" if len(local) > 5 else ""
        yield (
            f"endpoints on this node see the client's own address: {shown}{more}"
            if local
            else "no endpoint is on this node"
        )
        others = "endpoints on other nodes see this node's, because their replies would not come back through it"
        yield f"{others}; so does a pod that reaches itself, and whoever is asked from loopback"
    else:
        yield f"{NODE_SEEN} (preserveSourceAddress is off)"
    if target.proxy_protocol:
        yield f"the client's address and port are told in a PROXY protocol header, version {target.proxy_protocol}, before anything else"


def source_of(target: Target, client: str, end: End) -> str:
    """What becomes of `client`'s address on its way to `end`, and why."""
    header = f"; it is told the client's by PROXY protocol v{target.proxy_protocol}" if target.proxy_protocol else ""
    if not target.preserve_source:
        return f"source becomes this node's (preserveSourceAddress is off){header}"
    if end not in target.local:
        return f"source becomes this node's (the endpoint is on another node){header}"
    if client == end[0]:
        return f"source becomes this node's (the endpoint talks to itself){header}"
    if client == "::1" or client.startswith(("127.", "fe80:")):
        return f"source becomes this node's ({client} means something else to the endpoint){header}"
    return f"source kept (preserveSourceAddress, and the endpoint is on this node){header}"


def _differs(target: Target) -> Iterator[str]:
    """What a kernel mode would do otherwise for this Service."""
    if not target.preserve_source:
        yield (
            "the kernel keeps the client's address for pods and with externalTrafficPolicy Local; here network policies, logs and "
            "ACLs of the endpoint see this node, unless kproxy.io/preserve-source-address is set"
        )
    if target.protocol == "TCP":
        yield "clients are accepted before an endpoint is: where the kernel would pass on a refusal, they see a connection that is reset"
        yield "an endpoint that does not answer costs a client nothing but time: the kernel sends it there until readiness changes"
    else:
        yield "which endpoint a session has is known to the relay and not to conntrack, whose tools show the client's side alone"
    if target.affinity_s:
        yield "affinity agrees between nodes and remembers 100,000 clients; the kernel's rules remember 100 for each endpoint"
    yield "while no relay worker runs, new connections wait for one (a SYN is sent again after 1 s); kernel rules need nobody"
