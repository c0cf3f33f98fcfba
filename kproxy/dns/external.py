"""`k8s_external`: Services by their external and load-balancer addresses, below a zone of its own: `<service>.<namespace>.<zone>`.

In: the directive, compiled once, the zone of the block's `kubernetes`, a query. Out: a finished reply, a `Forward` (a load balancer with a
name instead of an address), or Missed. What must not happen here: sockets, time, caching.

Names below a zone:

    ""                                   SOA, and NS `ns1.<apex>`
    <apex>, ns1.<apex>                   the name server; `apex` is `dns` unless configured
    <ns>                                 an existing namespace: an empty non-terminal
    <svc>.<ns>                           a Service with an external address; with `headless`, also one without cluster IP
    _<port>._<proto>.<svc>.<ns>          its port; SRV
    <label>.<svc>.<ns>                   with `headless`, an endpoint
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from msgspec.structs import replace

from kproxy.dns import names, wire
from kproxy.dns.answer import MISSED, NOT_READY, Forward, Missed, Outcome
from kproxy.dns.blocks import External
from kproxy.dns.directives import is_reverse
from kproxy.dns.nameservers import own_addresses, serving
from kproxy.dns.srv import Wanted, addresses_of, pairs_of, srv, srv_data
from kproxy.dns.wire import OWNER, Query, Rcode, Transport, Type
from kproxy.dns.zone import Group, RecordKind, ServiceRecords, Zone


@dataclass(frozen=True, slots=True)
class ExternalZones:
    """A `k8s_external` directive, ready for use. forward, reverse: its zones, lower-case wire form; apex: one label with its length."""

    forward: tuple[bytes, ...]
    reverse: tuple[bytes, ...]
    apex: bytes
    ttl: int
    headless: bool
    through: tuple[bytes, ...]

    def find(self, lowered: bytes) -> bytes | None:
        """The longest of its zones above a name."""
        found = [zone for zone in (*self.forward, *self.reverse) if names.is_below(lowered, zone)]
        return max(found, key=len, default=None)

    def passes(self, lowered: bytes) -> bool:
        """Whether `fallthrough` holds for a missing name."""
        return any(names.is_below(lowered, suffix) for suffix in self.through)


def compile_external(directive: External, block_zones: Sequence[str]) -> ExternalZones:
    """Makes the directive ready. block_zones: served where it names none. Raises ValueError for a malformed name or network."""
    forward, reverse = [], []
    for text in directive.zones or block_zones:
        if is_reverse(text):
            reverse += names.reverse_zones(text) if "/" in text else [names.encode(text).lower()]
        else:
            forward.append(names.encode(text).lower())
    if not forward:
        raise ValueError("k8s_external: one of its zones has to be a forward zone")
    through = tuple(names.encode(text).lower() for text in directive.fallthrough or ())
    apex = names.label(directive.apex.lower().encode())
    return ExternalZones(tuple(forward), tuple(reverse), apex, directive.ttl, directive.headless, through)


@dataclass(frozen=True, slots=True)
class _Asked:
    """A query and where the zone it lies in begins."""

    served: ExternalZones
    zone: Zone
    query: Query
    size: int
    start: int
    turn: int

    def negative(self, rcode: Rcode) -> Outcome:
        error = NOT_READY if rcode is Rcode.SERVFAIL else None
        soa = self.soa()
        reply = wire.build(self.query, rcode=rcode, authority=(soa,), size=self.size, extended_error=error)
        return Outcome(reply, b"", self.query, rcode)

    def soa(self) -> bytes:
        here = wire.pointer(wire.HEADER + self.start)
        ttl = self.served.ttl
        times = b"".join(v.to_bytes(4, "big") for v in (self.zone.serial, 7200, 1800, 86400, ttl))
        below = self.served.apex + here
        return wire.record(here, Type.SOA, ttl, b"\x03ns1" + below + b"\x0ahostmaster" + below + times)

    def positive(self, answer: Sequence[bytes], additional: Sequence[bytes] = (), owner: bytes = b"") -> Outcome:
        if not answer:
            return self.negative(Rcode.NOERROR)
        turns = len(answer) if owner and self.query.qtype in (Type.A, Type.AAAA) else 1
        turned = wire.rotated(answer, self.turn) if turns > 1 else answer
        reply = wire.build(self.query, answer=turned, additional=additional, size=self.size)
        return Outcome(reply, owner, self.query, turns=turns)


def answer_external(
    served: ExternalZones, zone: Zone, query: Query, transport: Transport, turn: int = 0
) -> Outcome | Forward | Missed:
    """The reply to a query of class IN. zone: of the same block's `kubernetes`."""
    found = served.find(query.lowered)
    if found is None:
        return MISSED
    start = len(query.lowered) - len(found)
    asked = _Asked(served, zone, query, wire.limit(query, transport), start, turn)
    if start == 0:
        return _apex(asked)
    if found in served.reverse:
        outcome: Outcome | Forward | None = _pointer(asked)
    else:
        labels = names.split(query.lowered[:start])
        below = bytes((len(labels[-1]),)) + labels[-1]
        outcome = _name_server(asked, labels) if below == served.apex else _service(asked, labels)
    if outcome is not None:
        return outcome
    if not zone.synced:
        return asked.negative(Rcode.SERVFAIL)
    return MISSED if served.passes(query.lowered) else asked.negative(Rcode.NXDOMAIN)


def _apex(asked: _Asked) -> Outcome:
    if asked.query.qtype == Type.SOA:
        return asked.positive((asked.soa(),))
    if asked.query.qtype != Type.NS:
        return asked.negative(Rcode.NOERROR)
    ttl = asked.served.ttl
    target = b"\x03ns1" + asked.served.apex + asked.query.name[asked.start :]
    glue = [
        record for kind in (Type.A, Type.AAAA) for record in addresses_of(target, kind, ttl, _outside_of(asked.zone))
    ]
    return asked.positive((wire.record(OWNER, Type.NS, ttl, target),), glue)


def _outside_of(zone: Zone) -> list[bytes]:
    """By which addresses this server is reached from outside: its Services' external ones, or its own."""
    return [address for service in serving(zone) for address in service.external] or own_addresses(zone)


def _name_server(asked: _Asked, labels: list[bytes]) -> Outcome | None:
    if len(labels) == 1:
        return asked.negative(Rcode.NOERROR)
    if len(labels) > 2 or labels[0] != b"ns1":
        return asked.negative(Rcode.NXDOMAIN)
    return asked.positive(addresses_of(OWNER, asked.query.qtype, asked.served.ttl, _outside_of(asked.zone)))


def _service(asked: _Asked, labels: list[bytes]) -> Outcome | Forward | None:
    """The reply for a name in front of the zone; None for one that is missing, or that depends on what has not been listed."""
    zone, namespace = asked.zone, labels[-1]
    if not zone.synced or namespace not in zone.namespaces or len(labels) > 4:
        return None
    if len(labels) == 1:
        return asked.negative(Rcode.NOERROR)
    key = bytes((len(labels[-2]),)) + labels[-2] + bytes((len(namespace),)) + namespace
    service = zone.services.get(key)
    if service is None or service.kind is RecordKind.EXTERNAL:
        return None
    if service.external or service.hostnames:
        return _reachable(asked, service, labels[:-2])
    if asked.served.headless:
        return _by_endpoint(asked, service, labels[:-2])
    return None


def _port(labels: list[bytes]) -> Wanted:
    return (labels[0].removeprefix(b"_"), labels[1].removeprefix(b"_")) if len(labels) == 2 else None


def _reachable(asked: _Asked, service: ServiceRecords, labels: list[bytes]) -> Outcome | Forward | None:
    """A Service with external addresses, or with a load balancer that has names only."""
    wanted = _port(labels)
    ports = [port for port in service.ports if wanted is None or wanted == (port.name, port.protocol)]
    if len(labels) == 1:
        protocol = labels[0].removeprefix(b"_")
        between = any(port.protocol == protocol and port.name for port in ports)
        return asked.negative(Rcode.NOERROR) if between else None
    if wanted is not None and (not wanted[0] or not ports):
        return None
    query, ttl = asked.query, asked.served.ttl
    if query.qtype == Type.SRV:
        outside = replace(service, addresses=service.external)
        answer, additional = srv(query, pairs_of(outside, wanted), query.name[asked.start :], ttl)
        if not service.external:
            weight = max(1, 100 // max(1, len(ports) * len(service.hostnames)))
            targets = [(port.number, name) for name in service.hostnames for port in ports]
            answer = [wire.record(OWNER, Type.SRV, ttl, srv_data(weight, *target)) for target in targets]
        return asked.positive(answer, additional, service.key)
    if service.external:
        return asked.positive(addresses_of(OWNER, query.qtype, ttl, service.external), (), service.key)
    name = service.hostnames[0]
    alias = wire.record(OWNER, Type.CNAME, ttl, name)
    if query.qtype in (Type.A, Type.AAAA):
        return Forward(query, name.lower(), query.qtype, (alias,))
    return asked.positive((alias,) if query.qtype == Type.CNAME else (), (), service.key)


def _by_endpoint(asked: _Asked, service: ServiceRecords, labels: list[bytes]) -> Outcome | None:
    """Endpoints: all of a headless Service's, or the one that is named."""
    if len(labels) == 1:
        groups = _named(service, labels[0])
    elif service.kind is RecordKind.HEADLESS:
        groups = service.groups
    else:
        return None
    wanted = _port(labels)
    if wanted is not None:
        groups = tuple(g for g in groups if any((p.name, p.protocol) == wanted for p in g.ports))
    if not groups or (wanted is not None and not wanted[0]):
        return None
    query, ttl = asked.query, asked.served.ttl
    if query.qtype == Type.SRV:
        return asked.positive(
            *srv(query, pairs_of(service, wanted, groups), query.name[asked.start :], ttl), service.key
        )
    packed = [member.address for group in groups for member in group.members]
    return asked.positive(addresses_of(OWNER, query.qtype, ttl, packed), (), service.key)


def _named(service: ServiceRecords, label: bytes) -> tuple[Group, ...]:
    found = []
    for group in service.groups:
        members = tuple(member for member in group.members if member.label == label)
        if members:
            found.append(replace(group, members=members))
    return tuple(found)


def _pointer(asked: _Asked) -> Outcome | None:
    """The reply for an address below one of the reverse zones."""
    zone, query = asked.zone, asked.query
    packed = _address_of(query.lowered)
    owners = zone.owners.get(packed, ()) if packed else ()
    services = [zone.services[key] for key in owners if packed in zone.services[key].external]
    visible = [service for service in services if service.namespace in zone.namespaces]
    if not visible:
        return None
    if query.qtype != Type.PTR:
        return asked.negative(Rcode.NOERROR)
    targets = [service.key + asked.served.forward[0] for service in visible]
    return asked.positive([wire.record(OWNER, Type.PTR, asked.served.ttl, target) for target in targets])


def _address_of(lowered: bytes) -> bytes | None:
    """The packed address that a whole reverse name stands for."""
    labels = names.split(lowered)
    octets = names.octets_of_reverse(labels[:-2])
    if labels[-2] == b"in-addr" and octets is not None:
        return bytes(octets) if len(octets) == 4 else None
    nibbles = names.nibbles_of_reverse(labels[:-2])
    if nibbles is None or len(nibbles) != 32:
        return None
    return bytes(high << 4 | low for high, low in zip(nibbles[::2], nibbles[1::2], strict=True))
