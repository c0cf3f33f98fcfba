"""One query in, one reply out: the whole of what this server says about its own zones, as a pure function.

In: a zone, the bytes of a query, and whether they came by UDP or TCP. Out: the reply's bytes; or a `Forward`, when somebody else has to be
asked; or None for silence. It never raises, whatever the bytes. What must not happen here: sockets, time, caching.

Which negative answer is given matters more to clients than anything else here: NXDOMAIN only when neither the name nor anything below it
exists, NODATA otherwise, always with the zone's SOA and AA. Before the objects are listed it is SERVFAIL, never NXDOMAIN, and nothing of
the zone is ever forwarded.

Names in answers: owners are the question itself; the zone part of SRV targets and of the SOA keeps the question's case, service and
namespace come out in lower case (both as CoreDNS does).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from kproxy.dns import names, wire
from kproxy.dns.apexes import Apex, Tree
from kproxy.dns.lookup import Place, PlaceKind, find_apex, locate, owners_of
from kproxy.dns.nameservers import name_servers, own_addresses
from kproxy.dns.srv import addresses_of, pairs_of, srv
from kproxy.dns.wire import OWNER, Query, Rcode, Transport, Type
from kproxy.dns.zone import RecordKind, ServiceRecords, Zone

VERSION = b"\x051.1.0"  # of the DNS-Based Service Discovery specification, as a TXT string
VERSION_TTL = 28800  # seconds; the specification's own example and CoreDNS's value
CHAIN = 10  # CNAMEs followed inside the zone
NOT_READY = 14  # extended error, RFC 8914

# Types that ask for no record of a name: transfers belong to `transfer`, the others are parts of messages.
NOT_QUESTIONS = frozenset({Type.AXFR, Type.IXFR, Type.TKEY, Type.TSIG, Type.OPT})

_SVC = b"\x03svc"
_LOCALHOST, _INVALID, _ONION, _LOCAL = b"\x09localhost\0", b"\x07invalid\0", b"\x05onion\0", b"\x05local\0"


@dataclass(frozen=True, slots=True)
class Outcome:
    """A finished reply.

    owner: of the one Service it is made from the key, or `names.steady` of it; b"" when it depends on more than that (or on an absence).
    turns: how many orders of its addresses there are to go round; clients that take the first one spread over all. block: the server
    block that answered, -1 for none. personal: equal queries of clients with another `view` may have another reply. saved: how many queries
    of its own walk along the search list the client need not make because of this reply. events: CoreDNS's counters that each use of this
    reply adds to, with `%s` for the label `server`. plugin: the directive that made it; "": the zone, or nobody. single: it is for this one
    client and must not be remembered even for those of the same view.
    """

    reply: bytes
    owner: bytes = b""
    query: Query | None = None
    rcode: int = 0
    turns: int = 1
    block: int = 0
    personal: bool = False
    saved: int = 0
    events: tuple[str, ...] = ()
    plugin: str = ""
    single: bool = False


@dataclass(frozen=True, slots=True)
class Dropped:
    """Silence that a directive wants. event: as in Outcome."""

    block: int
    event: str


@dataclass(frozen=True, slots=True)
class Forward:
    """The reply needs `name` and `qtype` asked somewhere else. prefix: CNAME records that lead from the question to `name`; they make the
    difference between a name that was not ours (empty) and a Service's external name, whose target the whole server has to resolve.

    block, first: whose `forward` directives, and which of them to begin with. options: EDNS options that `rewrite edns0` sends upstream.
    after: makes the client's message from the one that was made for `query`, which then is not the client's own (`rewrite`, `minimal` …).
    then: the reply, made whole and gone through `after`, decides what comes next (`rewrite cname`); its outcome is the client's.
    personal, single, events: as for an Outcome.
    """

    query: Query
    name: bytes  # lower-case wire form
    qtype: int
    prefix: tuple[bytes, ...] = ()
    block: int = 0
    first: int = 0
    options: bytes = b""
    after: Callable[[bytes, Transport], bytes] | None = None
    then: Callable[[bytes], Outcome | Forward] | None = None
    personal: bool = False
    events: tuple[str, ...] = ()
    single: bool = False


@dataclass(frozen=True, slots=True)
class Missed:
    """This zone has nothing to say: the name is not in it, or missing in it where `fallthrough` passes it on."""

    reason: str = ""


MISSED = Missed()


@dataclass(frozen=True, slots=True)
class Transfer:
    """A whole zone: the messages of the reply, for TCP only, made while they are sent. The sender waits for the client between two."""

    query: Query
    messages: Iterable[bytes]


@dataclass(frozen=True, slots=True)
class _Found:
    """Records of a name that exists; `answer` empty means NODATA."""

    answer: Sequence[bytes] = ()
    additional: Sequence[bytes] = ()
    owner: bytes = b""


def answer(zone: Zone, query: bytes, transport: Transport, turn: int = 0) -> bytes | Forward | None:
    """The reply to the bytes of a query; see the module's text. turn: several addresses begin with this one of them (modulo)."""
    outcome = respond(zone, query, transport, turn)
    return outcome.reply if isinstance(outcome, Outcome) else outcome


def respond(zone: Zone, data: bytes, transport: Transport, turn: int = 0) -> Outcome | Forward | None:
    """As `answer`, with what the worker's cache must know beside the bytes."""
    query = wire.parse_query(data)
    if query is None:
        return None
    if isinstance(query, bytes):
        return Outcome(query, rcode=query[3] & 15)
    size = wire.limit(query, transport)
    if query.qclass != 1 or query.qtype in NOT_QUESTIONS:
        return refusal(query, size)
    outcome = answer_query(zone, query, transport, turn)
    if isinstance(outcome, Missed):
        return special_name(zone, query, size) or Forward(query, query.lowered, query.qtype)
    return outcome


def answer_query(zone: Zone, query: Query, transport: Transport, turn: int = 0) -> Outcome | Forward | Missed:
    """What the zone alone says to a query of class IN that is no transfer.

    Forward, always with a prefix: a Service's external name, whose target lies outside of the zone; the caller resolves it by the whole
    server and puts the CNAMEs in front. Missed: the next directive's turn.
    """
    found = find_apex(zone, query.lowered)
    if found is None:
        return MISSED
    apex, start = found
    size = wire.limit(query, transport)
    place = locate(zone, apex, query.lowered, start)
    if place.kind is PlaceKind.MISSING and apex.through and apex.passes(query.lowered):
        return MISSED
    if place.kind in (PlaceKind.MISSING, PlaceKind.UNKNOWN):
        rcode = Rcode.NXDOMAIN if place.kind is PlaceKind.MISSING else Rcode.SERVFAIL
        return _negative(zone, query, size, start, rcode)
    records = _records(zone, apex, start, place, query)
    if isinstance(records, Forward):
        return records
    if not records.answer:
        return _negative(zone, query, size, start, Rcode.NOERROR)
    found_records, turns = records.answer, 1
    if query.qtype in (Type.A, Type.AAAA) and records.owner:
        turns = len(found_records)
        found_records = wire.rotated(found_records, turn)
    reply = wire.build(query, answer=found_records, additional=records.additional, size=size)
    return Outcome(reply, records.owner, query, turns=turns)


def refusal(query: Query, size: int) -> Outcome:
    """REFUSED: nobody here answers for this."""
    reply = wire.build(query, rcode=Rcode.REFUSED, authoritative=False, size=size)
    return Outcome(reply, b"", query, Rcode.REFUSED)


def _negative(zone: Zone, query: Query, size: int, start: int, rcode: Rcode) -> Outcome:
    reply = wire.build(
        query,
        rcode=rcode,
        authority=(soa(zone, start),),
        size=size,
        extended_error=NOT_READY if rcode is Rcode.SERVFAIL else None,
    )
    return Outcome(reply, b"", query, rcode)


def soa(zone: Zone, start: int) -> bytes:
    """The SOA of the apex that begins at `start` in the question; its names are pointers there, so they have the question's case."""
    here = wire.pointer(wire.HEADER + start)
    ttl = zone.settings.ttl
    times = b"".join(v.to_bytes(4, "big") for v in (zone.serial, 7200, 1800, 86400, ttl))
    return wire.record(here, Type.SOA, min(ttl, 300), b"\x02ns\x03dns" + here + b"\x0ahostmaster" + here + times)


def special_name(zone: Zone, query: Query, size: int) -> Outcome | None:
    """The few names that never leave this server although no zone has them (RFC 6761, 7686, 6762), and ANY; None for every other."""
    lowered, qtype = query.lowered, query.qtype
    if names.is_below(lowered, _LOCALHOST):
        loopback = {Type.A: b"\x7f\0\0\1", Type.AAAA: b"\0" * 15 + b"\1"}.get(Type(qtype)) if qtype in (1, 28) else None
        records = (wire.record(OWNER, qtype, zone.settings.ttl, loopback),) if loopback else ()
        return Outcome(wire.build(query, answer=records, size=size), b"", query)
    for suffix in (_INVALID, _ONION, _LOCAL):
        if names.is_below(lowered, suffix) and not (suffix is _LOCAL and zone.settings.forward_dot_local):
            start = len(lowered) - len(suffix)
            return _negative(zone, query, size, start, Rcode.NXDOMAIN)
    if qtype == Type.ANY:  # RFC 8482: never everything, least of all for somebody else's spoofed address
        hinfo = wire.record(OWNER, Type.HINFO, zone.settings.ttl, b"\x07RFC8482\0")
        return Outcome(wire.build(query, authoritative=False, answer=(hinfo,), size=size), b"", query)
    return None


def _records(zone: Zone, apex: Apex, start: int, place: Place, query: Query) -> _Found | Forward:
    """The records of an existing name for the type asked."""
    ttl, qtype = zone.settings.ttl, query.qtype
    match place.kind:
        case PlaceKind.APEX:
            return _apex(zone, apex, start, query)
        case PlaceKind.VERSION if qtype == Type.TXT:
            return _Found((wire.record(OWNER, Type.TXT, VERSION_TTL, VERSION),))
        case PlaceKind.SERVER:
            return _Found(addresses_of(OWNER, qtype, ttl, own_addresses(zone)))
        case PlaceKind.POD:
            return _Found(addresses_of(OWNER, qtype, ttl, (place.address,)))
        case PlaceKind.ADDRESS if qtype == Type.PTR:
            suffix = _SVC + names.encode(zone.settings.zone).lower()
            targets = [owner + suffix for owner in owners_of(zone, place.address)]
            return _Found([wire.record(OWNER, Type.PTR, ttl, t) for t in targets if len(t) <= names.MAX_NAME])
        case PlaceKind.ADDRESS if start == 0:
            return _apex(zone, apex, start, query)
        case PlaceKind.SERVICE | PlaceKind.PORT | PlaceKind.ENDPOINT:
            service = place.service
            assert service is not None
            if service.kind is RecordKind.EXTERNAL:
                return _external(zone, query, service)
            if qtype == Type.SRV:
                groups = place.groups if place.kind is PlaceKind.ENDPOINT else None
                suffix = _SVC + query.name[start:]  # the zone in the question's case
                return _Found(*srv(query, pairs_of(service, place.port, groups), suffix, ttl), service.key)
            steady = place.kind is PlaceKind.SERVICE and service.kind is RecordKind.CLUSTER
            owner = names.steady(service.key) if steady else service.key
            return _Found(addresses_of(OWNER, qtype, ttl, _hosts(place, service)), owner=owner)
    return _Found()


def _hosts(place: Place, service: ServiceRecords) -> Sequence[bytes]:
    """The addresses of a Service, of one of its ports (the Service's own: CoreDNS's quirk 1), or of an endpoint."""
    if place.kind is PlaceKind.ENDPOINT:
        return [member.address for group in place.groups for member in group.members]
    if service.kind is RecordKind.CLUSTER:
        return service.addresses
    groups = service.groups
    if place.port is not None:
        groups = tuple(g for g in groups if any((p.name, p.protocol) == place.port for p in g.ports))
    return [member.address for group in groups for member in group.members]


def _external(zone: Zone, query: Query, service: ServiceRecords) -> _Found | Forward:
    """A CNAME, and for A and AAAA the records of where it leads: inside the zone at once, outside by way of upstream."""
    ttl, qtype = zone.settings.ttl, query.qtype
    owner, chain = OWNER, []
    for _ in range(CHAIN):
        chain.append(wire.record(owner, Type.CNAME, ttl, service.target))
        if qtype == Type.CNAME:
            return _Found(chain, owner=service.key)
        if qtype not in (Type.A, Type.AAAA):
            return _Found()
        owner = service.target
        target = owner.lower()
        found = find_apex(zone, target)
        if found is None:
            return Forward(query, target, qtype, tuple(chain))
        apex, start = found
        place = locate(zone, apex, target, start)
        if place.kind is PlaceKind.MISSING and apex.passes(target):
            return Forward(query, target, qtype, tuple(chain))
        if place.service is not None and place.service.kind is RecordKind.EXTERNAL:
            service = place.service
            continue
        # A name inside the zone without such an address: NODATA without the CNAME (CoreDNS's quirk 12, which clients have met for years).
        records = _inner(zone, place, owner, qtype)
        return _Found([*chain, *records]) if records else _Found()
    return _Found()


def _inner(zone: Zone, place: Place, owner: bytes, qtype: int) -> list[bytes]:
    ttl = zone.settings.ttl
    if place.kind is PlaceKind.SERVER:
        return addresses_of(owner, qtype, ttl, own_addresses(zone))
    if place.kind is PlaceKind.POD:
        return addresses_of(owner, qtype, ttl, (place.address,))
    if place.service is not None:
        return addresses_of(owner, qtype, ttl, _hosts(place, place.service))
    return []


def _apex(zone: Zone, apex: Apex, start: int, query: Query) -> _Found:
    if query.qtype == Type.SOA:
        return _Found((soa(zone, start),))
    if query.qtype != Type.NS:
        return _Found()
    ttl = zone.settings.ttl
    here = query.name[start:] if apex.tree is Tree.FORWARD else names.encode(zone.settings.zone).lower()
    answer, additional = [], []
    for labels, addresses in name_servers(zone):
        target = labels + here
        answer.append(wire.record(OWNER, Type.NS, ttl, target))
        for address in addresses:
            additional.append(wire.record(target, Type.A if len(address) == 4 else Type.AAAA, ttl, address))
    return _Found(answer, additional)
