"""`table_of`: from the wanted state to what relay workers are told. Pure.

    cluster IP              INSIDE  → `internal`       (rules bring everything to a cluster IP in there)
    other virtual IPs and   INSIDE  → `short_circuit`
    node port (address "")  OUTSIDE → `external`

Routes without endpoint are left out: rules refuse or drop what goes there. So is SCTP. Where two ServicePorts claim an address and port,
cluster IPs go first and then names, as rules and `model.conflicts` have it. Routes of a ServicePort that lead to the same endpoints share
one Target, and a Target that equals the one before *is* the one before, so that what changed is found by identity.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
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
_Made = Mapping[ServicePortName, tuple[Bound, ...]]


@dataclass(frozen=True, slots=True)
class MadeTable(Table):
    """A Table that knows what it was made of, so that the next one costs what has changed.

    contested: some destination is claimed twice, and who has it depends on all others.
    """

    options: RelayOptions = field(default=_NOTHING, compare=False, repr=False)
    states: tuple[Mapping[ServicePortName, ServicePort], ...] = field(default=(), compare=False, repr=False)
    made: tuple[_Made, ...] = field(default=(), compare=False, repr=False)
    contested: bool = field(default=False, compare=False, repr=False)


def table_of(desired: DesiredState, options: RelayOptions = _NOTHING, before: Table | None = None) -> Table:
    """What is relayed. options: for Services that say nothing themselves; its `targets` are those of `before` when nothing changed.

    10,000 Services: 140 ms, and 6 ms after a change of one.
    """
    old = before if isinstance(before, MadeTable) and before.options == options else None
    states = tuple(desired.of(family).service_ports for family in Family)
    if old is not None and all(map(is_, old.states, states)):
        return old
    known: Mapping[Key, Target] = before.targets if before is not None else {}
    made, gone, new = [], list[Bound](), list[Bound]()
    for number, ports in enumerate(states):
        was, were = (old.states[number], old.made[number]) if old is not None else ({}, {})
        changed = [port for name, port in ports.items() if was.get(name) is not port and name.protocol in RELAYED]
        now = dict(were)
        for name in were.keys() - ports.keys():
            gone += now.pop(name)
        for port in changed:
            gone += now.pop(port.name, ())
            new += (bound := tuple(_targets(port, options, known)))
            now[port.name] = bound
        made.append(now)
    targets = _renewed(known, gone, new) if old is not None and not old.contested else None
    contested = False
    if targets is None:
        targets, contested = _gathered(states, made, known)
    return MadeTable(targets, options, states, tuple(made), contested)


def _renewed(known: Mapping[Key, Target], gone: list[Bound], new: list[Bound]) -> Mapping[Key, Target] | None:
    """`known` without what is gone and with what is new; None when two claim one destination now."""
    coming = dict(new)
    if len(coming) < len(new):
        return None
    leaving = dict(gone)
    if leaving.keys() == coming.keys() and all(known[key] is target for key, target in coming.items()):
        return known
    found = {key: target for key, target in known.items() if key not in leaving} if leaving else dict(known)
    kept = len(found)
    found.update(coming)
    return found if len(found) == kept + len(coming) else None


def _gathered(
    states: Iterable[Mapping[ServicePortName, ServicePort]], made: Iterable[_Made], known: Mapping[Key, Target]
) -> tuple[Mapping[Key, Target], bool]:
    """All targets, of the first that claims each: cluster IPs, then in the order of names. And whether anything was claimed twice."""
    first: dict[Key, Target] = {}  # at cluster IPs
    second: dict[Key, Target] = {}
    claims = 0
    for ports, bounds in zip(states, made, strict=True):
        for name, port in ports.items():
            own = port.virtual_ips[0].address
            for key, target in bounds.get(name, ()):
                claims += 1
                (first if key.address == own else second).setdefault(key, target)
    found = {**second, **first}
    same = len(found) == len(known) and all(known.get(key) is one for key, one in found.items())
    return known if same else found, len(found) < claims


def _targets(port: ServicePort, options: RelayOptions, known: Mapping[Key, Target]) -> Iterator[Bound]:
    """Every key of the ServicePort with what stands behind it, the cluster IP's first."""
    keys = [*_keys(port)]
    shared: dict[tuple[Endpoint, ...], Target] = {}
    for key, route in keys:  # all of them before the first is told: any may be the one that had this Target before
        made = shared.get(route.endpoints) or _target(port, route, options)
        was = known.get(key)
        shared[route.endpoints] = was if was is not None and was == made else made
    for key, route in keys:
        yield key, shared[route.endpoints]


def _keys(port: ServicePort) -> Iterator[tuple[Key, Route]]:
    family, protocol = port.family.value, port.name.protocol.value
    for virtual_ip in port.virtual_ips:
        if virtual_ip.kind is VirtualIPKind.CLUSTER:
            if port.internal.endpoints:
                yield Key(INSIDE, family, protocol, virtual_ip.address, port.port), port.internal
            continue
        for entry, route in _ways(port):
            yield Key(entry, family, protocol, virtual_ip.address, port.port), route
    if port.node_port is not None:
        for entry, route in _ways(port):
            yield Key(entry, family, protocol, "", port.node_port), route


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
