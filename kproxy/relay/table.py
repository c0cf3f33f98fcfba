"""`table_of`: from the wanted state to what relay workers are told. Pure.

    cluster IP              INSIDE  → `internal`       (rules bring everything to a cluster IP in there)
    other virtual IPs and   INSIDE  → `short_circuit`
    node port (address "")  OUTSIDE → `external`

Routes without endpoint are left out: rules refuse or drop what goes there. So is SCTP. Where two ServicePorts claim an address and port,
cluster IPs go first and then names, as rules and `model.conflicts` have it. Routes of a ServicePort that lead to the same endpoints share
one Target, and a Target that equals the one before *is* the one before, so that what changed is found by identity.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from operator import is_
from typing import TypeVar

from kproxy.model.desired import DesiredState, Endpoint, Route, ServicePort, VirtualIPKind
from kproxy.model.names import Family, Protocol, ServicePortName
from kproxy.model.objects import RelayOptions
from kproxy.relay.targets import INSIDE, OUTSIDE, RANDOM_TWO_CHOICES, End, Key, Table, Target

RELAYED = (Protocol.TCP, Protocol.UDP)
_NOTHING = RelayOptions()
T = TypeVar("T")


Bound = tuple[Key, Target]


@dataclass(frozen=True, slots=True)
class MadeTable(Table):
    """A Table that knows what it was made of, so that the next one costs what has changed."""

    options: RelayOptions = field(default=_NOTHING, compare=False, repr=False)
    states: tuple[Mapping[ServicePortName, ServicePort], ...] = field(default=(), compare=False, repr=False)
    made: Mapping[tuple[Family, ServicePortName], tuple[Bound, ...]] = field(
        default_factory=dict, compare=False, repr=False
    )


def table_of(desired: DesiredState, options: RelayOptions = _NOTHING, before: Table | None = None) -> Table:
    """What is relayed. options: for Services that say nothing themselves; its `targets` are those of `before` when nothing changed."""
    old = before if isinstance(before, MadeTable) and before.options == options else None
    states = tuple(desired.of(family).service_ports for family in Family)
    if old is not None and all(map(is_, old.states, states)):
        return old
    known: Mapping[Key, Target] = before.targets if before is not None else {}
    made: dict[tuple[Family, ServicePortName], tuple[Bound, ...]] = {}
    first: dict[Key, Target] = {}  # at cluster IPs
    second: dict[Key, Target] = {}
    for number, (family, ports) in enumerate(zip(Family, states, strict=True)):
        was = old.states[number] if old is not None else {}
        for name, port in ports.items():
            if name.protocol not in RELAYED:
                continue
            if old is not None and was.get(name) is port:
                bound = old.made[family, name]
            else:
                bound = tuple(_targets(port, options, known))
            made[family, name] = bound
            own = port.virtual_ips[0].address
            for key, target in bound:
                (first if key.address == own else second).setdefault(key, target)
    found = {**second, **first}
    same = len(found) == len(known) and all(known.get(key) is one for key, one in found.items())
    return MadeTable(known if same else found, options, states, made)


def _targets(port: ServicePort, options: RelayOptions, known: Mapping[Key, Target]) -> Iterator[Bound]:
    """Every key of the ServicePort with what stands behind it, the cluster IP's first."""
    family, protocol = port.family.value, port.name.protocol.value
    shared: dict[tuple[Endpoint, ...], Target] = {}

    def target(route: Route, key: Key) -> Target:
        had = shared.get(route.endpoints)
        if had is None:
            made, was = _target(port, route, options), known.get(key)
            had = shared[route.endpoints] = was if was is not None and was == made else made
        return had

    for virtual_ip in port.virtual_ips:
        if virtual_ip.kind is VirtualIPKind.CLUSTER:
            if port.internal.endpoints:
                key = Key(INSIDE, family, protocol, virtual_ip.address, port.port)
                yield key, target(port.internal, key)
            continue
        for entry, route in _ways(port):
            key = Key(entry, family, protocol, virtual_ip.address, port.port)
            yield key, target(route, key)
    if port.node_port is not None:
        for entry, route in _ways(port):
            key = Key(entry, family, protocol, "", port.node_port)
            yield key, target(route, key)


def _ways(port: ServicePort) -> Iterator[tuple[str, Route]]:
    if port.short_circuit.endpoints:
        yield INSIDE, port.short_circuit
    if port.external.endpoints:
        yield OUTSIDE, port.external


def _target(port: ServicePort, route: Route, options: RelayOptions) -> Target:
    own = port.relay or _NOTHING
    tcp = port.name.protocol is Protocol.TCP
    header = _first(own.proxy_protocol, options.proxy_protocol, 0)
    return Target(
        name=str(port.name),
        family=port.family.value,
        protocol=port.name.protocol.value,
        endpoints=_ends(route.endpoints),
        local=_ends(tuple(e for e in route.endpoints if e.is_local)),
        keeps=_ends(port.serving),
        affinity_s=port.affinity.timeout_s if port.affinity is not None else 0,
        balancing=own.balancing or options.balancing or RANDOM_TWO_CHOICES,
        preserve_source=_first(own.preserve_source, options.preserve_source, False),
        proxy_protocol=header if tcp else 0,
        drain_s=_first(own.drain_s, options.drain_s, 0.0),
    )


def _first(own: T | None, general: T | None, otherwise: T) -> T:
    if own is not None:
        return own
    return general if general is not None else otherwise


def _ends(endpoints: tuple[Endpoint, ...]) -> tuple[End, ...]:
    return tuple((e.address, e.port) for e in endpoints)
