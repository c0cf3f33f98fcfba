"""Whole zones for those who may have them: AXFR (RFC 5936), and IXFR (RFC 1995) answered with one SOA or everything.

In: a zone and a query. Out: messages of bounded size, made one by one while somebody sends them; the zone is a value, so what changes
meanwhile does not show. Who may ask is decided by the caller. What must not happen here: sockets, or a list of all records at once.

A forward zone's records are those that CoreDNS transfers: SOA, NS and glue, then for each Service its addresses, SRV records by name and by
port, CNAMEs, and the endpoints of headless Services; at last the SOA again. A reverse zone's are its PTR records.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from kproxy.dns import names, upstream, wire
from kproxy.dns.answer import MISSED, NOT_READY, Missed, Outcome, Transfer, refusal, soa
from kproxy.dns.apexes import Apex, Tree
from kproxy.dns.lookup import owners_of, span
from kproxy.dns.nameservers import name_servers
from kproxy.dns.srv import srv_data
from kproxy.dns.wire import OWNER, Query, Rcode, Transport, Type
from kproxy.dns.zone import Group, RecordKind, ServiceRecords, Zone

MESSAGE = 16_000  # octets of one message; what a pointer can reach, and a moment's work

_SVC = b"\x03svc"


def transfer(zone: Zone, query: Query, data: bytes, transport: Transport) -> Transfer | Outcome | Missed:
    """The zone whose name is asked for; Missed when it is none of ours. data: the whole query, for the serial that IXFR carries."""
    apex = zone.apexes.get(query.lowered)
    if apex is None:
        return MISSED
    size = wire.limit(query, transport)
    mark = soa(zone, 0)
    if not zone.synced or (apex.imports and zone.imports is None):
        reply = wire.build(query, rcode=Rcode.SERVFAIL, authority=(mark,), size=size, extended_error=NOT_READY)
        return Outcome(reply, b"", query, Rcode.SERVFAIL)
    if query.qtype == Type.IXFR and (transport is Transport.UDP or _serial_of(query, data) == zone.serial):
        # Over UDP the one SOA says that there is more to be had over TCP (RFC 1995 section 2).
        return Outcome(wire.build(query, answer=(mark,), size=size), b"", query)
    if transport is Transport.UDP:
        return refusal(query, size)
    return Transfer(query, _messages(query, _records(zone, apex, query, mark)))


def _serial_of(query: Query, data: bytes) -> int | None:
    """The serial that the client has, out of the authority section of an IXFR query."""
    try:
        found, _ = upstream.read_section(data, wire.HEADER + len(query.question), 1)
    except upstream.Malformed:
        return None
    if not found or found[0].rtype != Type.SOA or len(found[0].rdata) < 20:
        return None
    return int.from_bytes(found[0].rdata[-20:-16], "big")


def _messages(query: Query, records: Iterable[bytes]) -> Iterator[bytes]:
    part: list[bytes] = []
    size = 0
    for record in records:
        if size + len(record) > MESSAGE and part:
            yield wire.build(query, answer=part, size=wire.MAX_TCP)
            part, size = [], 0
        part.append(record)
        size += len(record)
    yield wire.build(query, answer=part, size=wire.MAX_TCP)


def _records(zone: Zone, apex: Apex, query: Query, mark: bytes) -> Iterator[bytes]:
    yield mark
    ttl = zone.settings.ttl
    here = query.name if apex.tree is Tree.FORWARD else names.encode(zone.settings.zone).lower()
    for labels, addresses in name_servers(zone):
        yield wire.record(OWNER, Type.NS, ttl, labels + here)
        if apex.tree is Tree.FORWARD and labels.startswith(
            b"\x02ns\x03dns"
        ):  # those of Services come with the Services
            yield from _addresses(labels + OWNER, addresses, ttl)
    if apex.tree is Tree.FORWARD:
        services = (zone.imports if apex.imports else zone.services) or {}
        for service in services.values():
            if service.namespace in zone.namespaces:
                yield from dict.fromkeys(_service(service, query.name, ttl))  # two ports of one number are one SRV
    else:
        yield from _pointers(zone, apex, here)
    yield mark


def _addresses(owner: bytes, packed: Iterable[bytes], ttl: int) -> Iterator[bytes]:
    for address in dict.fromkeys(packed):
        yield wire.record(owner, Type.A if len(address) == 4 else Type.AAAA, ttl, address)


def _service(service: ServiceRecords, here: bytes, ttl: int) -> Iterator[bytes]:
    owner = service.key + _SVC + OWNER
    if service.kind is RecordKind.EXTERNAL:
        yield wire.record(owner, Type.CNAME, ttl, service.target)
    elif service.kind is RecordKind.CLUSTER:
        yield from _addresses(owner, service.addresses, ttl)
        for port in service.ports:
            data = srv_data(100, port.number, service.key + _SVC + here)
            yield wire.record(owner, Type.SRV, ttl, data)
            if port.name:
                yield wire.record(_port_label(port.name, port.protocol) + owner, Type.SRV, ttl, data)
    else:
        yield from _headless(service, owner, here, ttl)


def _port_label(name: bytes, protocol: bytes) -> bytes:
    return bytes((len(name) + 1,)) + b"_" + name + bytes((len(protocol) + 1,)) + b"_" + protocol


def _headless(service: ServiceRecords, owner: bytes, here: bytes, ttl: int) -> Iterator[bytes]:
    members = [(group, member) for group in service.groups for member in group.members]
    yield from _addresses(owner, (member.address for _, member in members), ttl)
    for group, member in members:
        name = group.name_of(member, service.key)
        yield from _addresses(name + _SVC + OWNER, (member.address,), ttl)
        for port in group.ports:
            if port.name:
                data = srv_data(_weight(group, member.address), port.number, name + _SVC + here)
                yield wire.record(_port_label(port.name, port.protocol) + owner, Type.SRV, ttl, data)


def _weight(group: Group, address: bytes) -> int:
    """As CoreDNS: 100 shared by the endpoints of one slice, which is of one family."""
    return max(1, 100 // sum(len(member.address) == len(address) for member in group.members))


def _pointers(zone: Zone, apex: Apex, primary: bytes) -> Iterator[bytes]:
    labels = names.split(apex.name)[:-2]
    digits = names.octets_of_reverse(labels) if apex.tree is Tree.IPV4 else names.nibbles_of_reverse(labels)
    low, high = span(apex.tree, digits or [])
    for address in zone.order.between(low, high):
        name = names.reverse(address)
        owner = name[: len(name) - len(apex.name)] + OWNER
        for target in owners_of(zone, address):
            yield wire.record(owner, Type.PTR, zone.settings.ttl, target + _SVC + primary)
