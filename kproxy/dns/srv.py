"""Records made of a Service's addresses and ports: A, AAAA, and SRV with the addresses of its targets.

In: packed addresses, or (target, port, address) triples. Out: finished records. What must not happen here: deciding which of them exist.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from kproxy.dns import names, wire
from kproxy.dns.wire import OWNER, Query, Type
from kproxy.dns.zone import Group, RecordKind, ServiceRecords

Pair = tuple[
    bytes, int, bytes
]  # target's labels in front of a suffix, port number, packed address; or b"" and a whole name
Wanted = tuple[bytes, bytes] | None  # name and protocol of the only port wanted


def addresses_of(owner: bytes, qtype: int, ttl: int, packed: Iterable[bytes]) -> list[bytes]:
    """A or AAAA records, one per different address; nothing for other types."""
    size = 4 if qtype == Type.A else 16 if qtype == Type.AAAA else 0
    return [wire.record(owner, qtype, ttl, address) for address in dict.fromkeys(packed) if len(address) == size]


def srv(query: Query, pairs: Sequence[Pair], suffix: bytes, ttl: int) -> tuple[list[bytes], list[bytes]]:
    """SRV records and their targets' addresses, for a reply whose first record is an SRV of ours.

    Targets are not compressed (RFC 2782), the additional owners point at them. Weight: 100 divided by the number of pairs, at least 1,
    counted before equal records are merged.
    """
    weight = weight_of(pairs)
    at = wire.HEADER + len(query.question)
    answer: dict[tuple[bytes, int], bytes] = {}
    offsets: dict[bytes, int] = {}
    additional: dict[tuple[bytes, bytes], bytes] = {}
    for relative, number, address in pairs:
        target = relative + suffix
        if len(target) > names.MAX_NAME:
            continue
        if (relative, number) not in answer:
            item = wire.record(OWNER, Type.SRV, ttl, srv_data(weight, number, target))
            answer[(relative, number)] = item
            offsets.setdefault(relative, at + len(item) - len(target))
            at += len(item)
        if (relative, address) not in additional:
            offset = offsets[relative]
            owner = wire.pointer(offset) if offset < 0x4000 else target
            kind = Type.A if len(address) == 4 else Type.AAAA
            additional[(relative, address)] = wire.record(owner, kind, ttl, address)
    return list(answer.values()), list(additional.values())


def weight_of(pairs: Sequence[object]) -> int:
    """CoreDNS's weight of each of so many records."""
    return max(1, 100 // len(pairs)) if pairs else 0


def srv_data(weight: int, port: int, target: bytes) -> bytes:
    """The data of an SRV record of priority 0."""
    return b"\0\0" + weight.to_bytes(2, "big") + port.to_bytes(2, "big") + target


def pairs_of(service: ServiceRecords, wanted: Wanted = None, groups: Sequence[Group] | None = None) -> list[Pair]:
    """What SRV records a Service has, before merging. groups: only these of its endpoints, instead of the Service itself."""
    if groups is None and service.kind is RecordKind.CLUSTER:
        return [
            (service.key, port.number, address)
            for address in service.addresses
            for port in service.ports
            if wanted is None or wanted == (port.name, port.protocol)
        ]
    return [
        (group.name_of(member, service.key), port.number, member.address)
        for group in (service.groups if groups is None else groups)
        for member in group.members
        for port in group.ports
        if wanted is None or wanted == (port.name, port.protocol)
    ]
