"""Messages as bytes: a query checked and taken apart, a reply put together and cut to size.

In: any datagram. Out: a `Query`, a finished refusal, or None for what must not be answered at all (shorter than a header, or itself a
response: answering those makes loops). What must not happen here: knowing names, and raising for any input whatever.

    header: ID, flags, QDCOUNT, ANCOUNT, NSCOUNT, ARCOUNT, two octets each
    flags:  QR opcode(4) AA TC RD · RA Z AD CD rcode(4)

Replies repeat the question byte for byte (0x20 clients compare it) and compress only against it: the owner of nearly every record is the
pointer C00C. Records therefore are finished bytes wherever they stand behind the question.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, IntEnum

HEADER = 12
MAX_UDP = 1232  # what survives every path without fragments: DNS flag day 2020, RFC 9715
MIN_UDP = 512  # RFC 1035; what a client without EDNS can take
MAX_TCP = 65535

OWNER = b"\xc0\x0c"  # pointer to the question's name
CLASS_IN = b"\x00\x01"

COOKIE = 10  # EDNS options: RFC 7873 …
KEEPALIVE = 11  # … and RFC 7828
COOKIE_ROOM = 4 + 24
KEEPALIVE_ROOM = 4 + 2

_QR, _AA, _TC, _RD, _RA, _AD, _CD = 0x8000, 0x0400, 0x0200, 0x0100, 0x0080, 0x0020, 0x0010
_COUNTS = struct.Struct("!HHHH")
_HEAD = struct.Struct("!HHHHHH")
_OPT = struct.Struct("!BHHBBHH")
_OPT_START = struct.pack("!BHH", 0, 41, 1232)  # of our own OPT records: root, type, the size we take


class Transport(Enum):
    """How a query came: it decides how long the reply may be."""

    UDP = "udp"
    TCP = "tcp"


class Rcode(IntEnum):
    """Response codes; BADVERS needs an OPT record to be said."""

    NOERROR = 0
    FORMERR = 1
    SERVFAIL = 2
    NXDOMAIN = 3
    NOTIMP = 4
    REFUSED = 5
    BADVERS = 16
    BADCOOKIE = 23


class Type(IntEnum):
    """Record types this server does something about; every other type is just a number."""

    A = 1
    NS = 2
    CNAME = 5
    SOA = 6
    PTR = 12
    HINFO = 13
    MX = 15
    TXT = 16
    AAAA = 28
    SRV = 33
    OPT = 41
    TKEY = 249
    TSIG = 250
    IXFR = 251
    AXFR = 252
    ANY = 255


@dataclass(frozen=True, slots=True)
class Edns:
    """What the client's OPT record says. options: it carries any, so its bytes are hardly the same twice (cookies).

    cookie: 8 octets, or 16 to 40 with a server's half; b"" without. keepalive: how long a TCP connection may idle was asked.
    """

    udp_size: int
    dnssec_ok: bool
    options: bool
    cookie: bytes = b""
    keepalive: bool = False


@dataclass(frozen=True, slots=True)
class Query:
    """A well-formed query of class IN or another. name: wire form as spelled; lowered: for looking up.

    question: name, type and class as sent. whole: nothing stood behind the records, so equal bytes are an equal query.
    """

    id: bytes
    flags: int
    name: bytes
    lowered: bytes
    qtype: int
    qclass: int
    question: bytes
    edns: Edns | None
    whole: bool

    @property
    def recursion_desired(self) -> bool:
        """RD was set."""
        return bool(self.flags & _RD)

    @property
    def checking_disabled(self) -> bool:
        """CD was set: hand out what DNSSEC would reject."""
        return bool(self.flags & _CD)

    @property
    def wants_ad(self) -> bool:
        """The client understands AD in the reply (RFC 6840 section 5.7)."""
        return bool(self.flags & _AD) or (self.edns is not None and self.edns.dnssec_ok)


class _Malformed(Exception):
    """The message cannot be read; caught in this file."""


def parse_query(data: bytes) -> Query | bytes | None:
    """The query in a message; or the finished reply that refuses it; or None when silence is right."""
    if len(data) < HEADER or data[2] & 0x80:
        return None
    _, flags, questions, answers, authorities, additionals = _HEAD.unpack_from(data)
    if flags & 0x7800:
        return bare(data, Rcode.NOTIMP)
    # The limits on the other counts are miekg/dns's: a query has no use for more, and each costs work.
    if questions != 1 or answers > 1 or authorities > 1 or additionals > 2:
        return bare(data, Rcode.FORMERR)
    try:
        end = _question_end(data)
        name = data[HEADER : end - 4]
        opt, at = None, end
        for section in range(answers + authorities + additionals):
            found, at = _record(data, at)
            if found is not None:
                if opt is not None or section < answers + authorities:
                    return bare(data, Rcode.FORMERR)  # two OPT records, or one out of place: RFC 6891 section 6.1.1
                opt = found
        edns = _edns(opt) if opt is not None else None
    except _Malformed:
        return bare(data, Rcode.FORMERR)
    qtype, qclass = struct.unpack_from("!HH", data, end - 4)
    query = Query(data[:2], flags, name, name.lower(), qtype, qclass, data[HEADER:end], edns, at == len(data))
    if opt is not None and opt[1]:
        return build(query, rcode=Rcode.BADVERS, authoritative=False)
    return query


def cookie_request(data: bytes) -> Edns | None:
    """The OPT record of a query without question that carries a cookie (RFC 7873 section 5.4); None for any other message."""
    if len(data) < HEADER or data[4:HEADER] != b"\0\0\0\0\0\0\0\1":
        return None
    try:
        found, _ = _record(data, HEADER)
        edns = _edns(found) if found is not None and not found[1] else None
    except _Malformed:
        return None
    return edns if edns is not None and edns.cookie else None


def bare(data: bytes, rcode: Rcode) -> bytes:
    """A reply of a header only, to a message whose question may not even be readable."""
    return data[:2] + bytes((0x80 | (data[2] & 0x79), rcode)) + b"\0\0\0\0\0\0\0\0"


def _question_end(data: bytes) -> int:
    """Where the only question ends. A compressed name in a question has nothing to point at, so pointers are malformed."""
    at, size = HEADER, len(data)
    while True:
        if at >= size:
            raise _Malformed
        length = data[at]
        if length == 0:
            break
        if length > 63:
            raise _Malformed
        at += length + 1
    if at + 5 > size or at + 1 - HEADER > 255:
        raise _Malformed
    return at + 5


def _record(data: bytes, at: int) -> tuple[tuple[int, int, int, bytes] | None, int]:
    """The OPT record at `at` as (size, version, flags, options), or None for any other record; and where the next one begins."""
    size, first = len(data), at
    while True:
        if at >= size:
            raise _Malformed
        length = data[at]
        if length >= 0xC0:
            at += 2
            break
        if length > 63:
            raise _Malformed
        at += length + 1
        if length == 0:
            break
    if at + 10 > size:
        raise _Malformed
    kind, klass, _, version, flags, rdlength = struct.unpack_from("!HHBBHH", data, at)
    end = at + 10 + rdlength
    if end > size:
        raise _Malformed
    if kind != Type.OPT:
        return None, end
    if at != first + 1:
        raise _Malformed  # the owner of OPT is the root
    return (klass, version, flags, data[at + 10 : end]), end


def _edns(opt: tuple[int, int, int, bytes]) -> Edns:
    """Checks the options' framing; a cookie of impossible length is malformed (RFC 7873 section 5.2.2), unknown options are ignored."""
    size, _, flags, options = opt
    at = 0
    cookie, keepalive = b"", False
    while at < len(options):
        if at + 4 > len(options):
            raise _Malformed
        code, length = struct.unpack_from("!HH", options, at)
        at += 4 + length
        if at > len(options):
            raise _Malformed
        if code == COOKIE:
            if length != 8 and not 16 <= length <= 40:
                raise _Malformed
            cookie = cookie or options[at - length : at]  # the first one counts: RFC 7873 section 5.2
        elif code == KEEPALIVE:
            keepalive = True
    return Edns(size, bool(flags & 0x8000), bool(options), cookie, keepalive)


def limit(query: Query, transport: Transport) -> int:
    """How long the reply may be, octets. Room for the options that `with_options` puts in later is taken off."""
    edns = query.edns
    if edns is None:
        return MAX_TCP if transport is Transport.TCP else MIN_UDP
    room = (COOKIE_ROOM if edns.cookie else 0) + (KEEPALIVE_ROOM if edns.keepalive else 0)
    return (MAX_TCP if transport is Transport.TCP else min(max(edns.udp_size, MIN_UDP), MAX_UDP)) - room


def record(owner: bytes, rtype: int, ttl: int, rdata: bytes) -> bytes:
    """A finished record of class IN; `owner` is a pointer or a name in wire form."""
    return owner + struct.pack("!HHIH", rtype, 1, ttl, len(rdata)) + rdata


def rotated(records: Sequence[bytes], turn: int) -> Sequence[bytes]:
    """The records beginning with number `turn` (modulo), in the same cyclic order."""
    at = turn % len(records) if records else 0
    return [*records[at:], *records[:at]] if at else records


def pointer(offset: int) -> bytes:
    """A compression pointer to `offset` in the message (below 16384)."""
    return struct.pack("!H", 0xC000 | offset)


def build(
    query: Query,
    *,
    rcode: Rcode | int = Rcode.NOERROR,
    authoritative: bool = True,
    authentic: bool = False,
    answer: Sequence[bytes] = (),
    authority: Sequence[bytes] = (),
    additional: Sequence[bytes] = (),
    size: int = MIN_UDP,
    truncated: bool = False,
    extended_error: int | None = None,
) -> bytes:
    """The reply, at most `size` octets: additional records are dropped first and silently, then authority and answers with TC set.

    size: from `limit`; a question and OPT always fit into 512. extended_error: an RFC 8914 code, sent only to clients with EDNS.
    """
    opt = _opt(query, int(rcode), extended_error)
    room = size - HEADER - len(query.question) - len(opt)
    if sum(map(len, answer)) + sum(map(len, authority)) + sum(map(len, additional)) > room:
        additional = ()
        answer, used, cut = _fitting(answer, room)
        authority, _, cut_too = ((), 0, bool(authority)) if cut else _fitting(authority, room - used)
        truncated = truncated or cut or cut_too
    flags = _QR | _RA | (query.flags & (_RD | _CD)) | (int(rcode) & 15)
    flags |= (_AA if authoritative else 0) | (_TC if truncated else 0) | (_AD if authentic else 0)
    counts = _COUNTS.pack(1, len(answer), len(authority), len(additional) + (1 if opt else 0))
    head = query.id + struct.pack("!H", flags) + counts + query.question
    return b"".join((head, *answer, *authority, *additional, opt))


def with_options(reply: bytes, options: bytes) -> bytes:
    """The reply with further EDNS options in its OPT record, which `build` puts last; the same reply when it has none."""
    at = len(reply) - _OPT.size
    while at >= HEADER:
        at = reply.rfind(_OPT_START, HEADER, at + len(_OPT_START))
        if at < 0:
            break
        if at + _OPT.size + int.from_bytes(reply[at + 9 : at + 11], "big") == len(reply):
            length = len(reply) - at - _OPT.size + len(options)
            return reply[: at + 9] + length.to_bytes(2, "big") + reply[at + 11 :] + options
        at -= 1
    return reply


def option(code: int, value: bytes) -> bytes:
    """One EDNS option."""
    return struct.pack("!HH", code, len(value)) + value


def _fitting(records: Sequence[bytes], room: int) -> tuple[Sequence[bytes], int, bool]:
    used = 0
    for index, item in enumerate(records):
        if used + len(item) > room:
            return records[:index], used, True
        used += len(item)
    return records, used, False


def _opt(query: Query, rcode: int, extended_error: int | None) -> bytes:
    """Our OPT record, or nothing for a client that sent none. No option of the client's is echoed."""
    if query.edns is None:
        return b""
    options = b"" if extended_error is None else struct.pack("!HHH", 15, 2, extended_error)
    do = 0x8000 if query.edns.dnssec_ok else 0
    return _OPT.pack(0, Type.OPT, MAX_UDP, rcode >> 4, 0, do, len(options)) + options
