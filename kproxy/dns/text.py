"""Replies as people read them: one line per record, in the way of zone files.

In: a finished reply of ours (or an upstream's). Out: text. Pure, and off the hot path: commands and logs use it, workers do not.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from kproxy.dns import names, upstream, wire
from kproxy.dns.upstream import Record
from kproxy.dns.wire import Rcode, Type

TYPES = {kind.name: int(kind) for kind in Type} | {
    "NAPTR": 35,
    "DS": 43,
    "DNSKEY": 48,
    "SVCB": 64,
    "HTTPS": 65,
    "CAA": 257,
}
_NAMES = {number: name for name, number in TYPES.items()}


@dataclass(frozen=True, slots=True)
class Shown:
    """A reply in words. rcode: also NODATA, for NOERROR without an answer."""

    rcode: str
    truncated: bool
    answer: tuple[str, ...]
    authority: tuple[str, ...]
    additional: tuple[str, ...]


def show(reply: bytes) -> Shown:
    """The reply in words. Raises ValueError when it cannot be read."""
    if len(reply) < wire.HEADER:
        raise ValueError("shorter than a header")
    flags, questions, *counts = struct.unpack_from("!HHHHH", reply, 2)
    at, sections = wire.HEADER, []
    for _ in range(questions):
        _, at = upstream.read_name(reply, at)
        at += 4
    for count in counts:
        records, at = upstream.read_section(reply, at, count)
        sections.append(tuple(line(record) for record in records if record.rtype != Type.OPT))
    code = flags & 15
    rcode = Rcode(code).name if code in Rcode.__members__.values() else f"RCODE{code}"
    if rcode == "NOERROR" and not sections[0]:
        rcode = "NODATA"
    return Shown(rcode, bool(flags & 0x0200), *sections)


def type_number(text: str) -> int | None:
    """`A`, `srv`, `TYPE65`; None for anything else."""
    upper = text.upper()
    if upper.startswith("TYPE") and upper[4:].isdigit() and int(upper[4:]) < 65536:
        return int(upper[4:])
    return TYPES.get(upper)


def line(record: Record) -> str:
    """`owner ttl type data`."""
    kind = _NAMES.get(record.rtype, f"TYPE{record.rtype}")
    return f"{names.decode(record.owner)} {record.ttl} {kind} {_data(record)}"


def _data(record: Record) -> str:
    data = record.rdata
    match record.rtype:
        case Type.A | Type.AAAA:
            return names.unpack(data)
        case Type.CNAME | Type.PTR | Type.NS:
            return names.decode(data)
        case Type.SRV:
            return "{} {} {} {}".format(*struct.unpack_from("!HHH", data), names.decode(data[6:]))
        case Type.SOA:
            first, at = upstream.read_name(data, 0)
            second, at = upstream.read_name(data, at)
            return " ".join(
                [names.decode(first), names.decode(second), *map(str, struct.unpack_from("!IIIII", data, at))]
            )
        case Type.TXT | Type.HINFO:
            return " ".join(f'"{part}"' for part in _strings(data))
    return f"\\# {len(data)} {data.hex()}"  # RFC 3597 section 5


def _strings(data: bytes) -> list[str]:
    found, at = [], 0
    while at < len(data):
        size = data[at]
        found.append(data[at + 1 : at + 1 + size].decode("ascii", errors="backslashreplace"))
        at += 1 + size
    return found
