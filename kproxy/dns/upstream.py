"""What is said to and believed from upstream resolvers, as pure functions; `forward` moves the bytes.

In: a question of ours and the bytes that came back. Out: a `Reply` cut down to what answers the question, then the client's message
built from it anew. What must not happen here: sockets, time, and passing a foreign byte on that has not been read: a client gets records
this file has parsed, in a message of our own making.

Believed is a reply that has our ID and repeats our question byte for byte, the case of its letters included (0x20: each query spells its
name differently, which a forger would have to guess as well); of its records, only those on the CNAME chain from the question and the SOA
(with DNSSEC, its proof) of a negative answer. Anything else could be somebody else's data (RFC 5452, bailiwick).
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

from kproxy.dns import names, wire
from kproxy.dns.answer import Forward
from kproxy.dns.wire import OWNER, Rcode, Transport, Type

CHAIN = 16  # CNAMEs believed in one reply
RECORDS = 1500  # read of one section: 64 KiB of them would take 25 ms, of a worker that has nobody else to answer
JUMPS = 10_000  # along compression pointers in one section: chains of them in 64 KiB would take seconds
MAX_TTL = 2**31 - 1  # larger values mean 0: RFC 2181 section 8

NOBODY, FAILED, STALE, STALE_ABSENCE, REMEMBERED_FAILURE = 22, 23, 3, 19, 13  # extended errors, RFC 8914

_FRAME = struct.Struct("!HHIH")
_RRSIG, _NSEC, _NSEC3 = 46, 47, 50
# Where names stand in rdata that may come compressed (RFC 1035, and senders that compress SRV all the same): octets before, names, after.
_NAMES_IN = {
    2: (0, 1, 0), 5: (0, 1, 0), 6: (0, 2, 20), 7: (0, 1, 0), 8: (0, 1, 0), 9: (0, 1, 0), 12: (0, 1, 0), 14: (0, 2, 0),
    15: (2, 1, 0), 17: (0, 2, 0), 18: (2, 1, 0), 21: (2, 1, 0), 33: (6, 1, 0), 36: (2, 1, 0), 39: (0, 1, 0),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked upstream: equal questions in flight are one, and one entry of the cache."""

    name: bytes  # lower-case wire form
    qtype: int
    dnssec_ok: bool = False
    checking_disabled: bool = False
    options: bytes = b""  # EDNS options to send

    def wire(self, spelled: bytes = b"") -> bytes:
        """Name, type and class IN. spelled: the name with other cases of its letters."""
        return (spelled or self.name) + struct.pack("!HH", self.qtype, 1)


@dataclass(frozen=True, slots=True)
class Record:
    """A record with nothing compressed in it."""

    owner: bytes
    rtype: int
    ttl: int
    rdata: bytes


@dataclass(frozen=True, slots=True)
class Reply:
    """What is believed of an upstream's message.

    ttl: seconds it may be remembered, by its own records. extended_error: RFC 8914, the upstream's or ours. mangled: it would be our reply
    but for the case of the question's letters; nothing else of it has been read.
    """

    rcode: int
    truncated: bool = False
    authentic: bool = False
    answer: tuple[Record, ...] = ()
    authority: tuple[Record, ...] = ()
    ttl: int = 0
    extended_error: int | None = None
    mangled: bool = False

    @property
    def has_soa(self) -> bool:
        """An SOA says how long the absence may be remembered; without one it may not (RFC 2308 section 5)."""
        return any(item.rtype == Type.SOA for item in self.authority)


class Malformed(ValueError):
    """The message cannot be read. `read` never raises it."""


def question_of(forward: Forward) -> Question:
    """What has to be asked for this client."""
    query = forward.query
    do = query.edns is not None and query.edns.dnssec_ok
    return Question(forward.name, forward.qtype, do, query.checking_disabled, forward.options)


def spelled(name: bytes, bits: int) -> bytes:
    """`name` (lower case) with its letters in upper case where `bits` has ones: 0x20, as many bits as the name has letters."""
    out = bytearray(name)
    for at, byte in enumerate(name):
        if 0x61 <= byte <= 0x7A:
            if bits & 1:
                out[at] = byte - 0x20
            bits >>= 1
    return bytes(out)


def ask(
    question: Question, message_id: int, *, spelling: bytes = b"", edns: bool = True, recursion: bool = True
) -> bytes:
    """The query to send. message_id: random, new for every attempt. spelling: the name as `spelled` made it."""
    flags = (0x0100 if recursion else 0) | (0x0010 if question.checking_disabled else 0)
    head = struct.pack("!HHHHHH", message_id, flags, 1, 0, 0, 1 if edns else 0)
    do = 0x8000 if question.dnssec_ok else 0
    opt = struct.pack("!BHHIH", 0, Type.OPT, wire.MAX_UDP, do, len(question.options)) + question.options
    return head + question.wire(spelling) + (opt if edns else b"")


def read(question: Question, message_id: int, data: bytes, *, spelling: bytes = b"") -> Reply | None:
    """What is believed of `data`; None when it is no reply to this query at all and the right one may still come.

    A reply that is ours but cannot be read is SERVFAIL: the next upstream is asked.
    """
    if len(data) < wire.HEADER:
        return None
    ident, flags, questions, answers, authorities, additionals = struct.unpack_from("!HHHHHH", data)
    rcode = flags & 15
    if ident != message_id or not flags & 0x8000 or flags & 0x7800:
        return None
    if questions == 0 and rcode in (Rcode.FORMERR, Rcode.NOTIMP):
        return Reply(rcode)  # old servers that choke on EDNS repeat nothing
    asked = question.wire(spelling)
    end = wire.HEADER + len(asked)
    said = data[wire.HEADER : end]
    if questions != 1 or (said != asked and (said.lower() != asked.lower() or said[-4:] != asked[-4:])):
        return None
    if said != asked:
        return Reply(Rcode.SERVFAIL, mangled=True)
    data = data[: wire.HEADER] + question.wire() + data[end:]  # compressed names shall not come out spelled as ours was
    truncated = bool(flags & 0x0200)
    try:
        answer, at = read_section(data, end, answers)
        authority, at = read_section(data, at, authorities)
    except Malformed:
        return Reply(rcode, truncated=True) if truncated else Reply(Rcode.SERVFAIL, extended_error=FAILED)
    chain = _chain(question, answer)
    proof = () if any(r.rtype == question.qtype for r in chain) else _proof(authority, question.dnssec_ok)
    extended_rcode, extended_error = _opt(data, at, additionals)
    rcode |= extended_rcode << 4
    return Reply(rcode, truncated, bool(flags & 0x0020), chain, proof, _ttl(chain, proof), extended_error)


def finish(
    forward: Forward, reply: Reply | None, transport: Transport, *, ttl: int | None = None, turn: int = 0
) -> bytes:
    """The client's message.

    reply: None when nobody answered. ttl: what every record of the reply has left, seconds; None: as its own records say. turn: several
    addresses begin with this one of them (modulo), so that a remembered reply does not send everybody to the same.
    """
    if forward.after is None:
        return _finish(forward, reply, transport if forward.then is None else Transport.TCP, ttl, turn)
    return forward.after(
        _finish(forward, reply, Transport.TCP, ttl, turn), transport
    )  # made whole: it is taken apart again


def _finish(forward: Forward, reply: Reply | None, transport: Transport, ttl: int | None, turn: int) -> bytes:
    query = forward.query
    size = wire.limit(query, transport)
    if reply is None:
        # 22: no reachable authority (RFC 8914). AA and a lone CNAME would look like an answer; SERVFAIL makes clients retry.
        return wire.build(query, rcode=Rcode.SERVFAIL, authoritative=False, size=size, extended_error=NOBODY)
    rcode = reply.rcode if reply.rcode < 16 else Rcode.SERVFAIL  # BADVERS and the like concern us, not the client
    if forward.prefix and rcode == Rcode.NXDOMAIN:
        rcode = Rcode.NOERROR  # the question's name exists, its CNAME's target does not: CoreDNS says the same
    elif forward.prefix and rcode != Rcode.NOERROR:
        return wire.build(query, rcode=Rcode.SERVFAIL, authoritative=False, size=size, extended_error=FAILED)
    at = wire.HEADER + len(query.question)
    seen = {query.lowered: OWNER}
    if forward.prefix:
        at += sum(map(len, forward.prefix))
        seen[forward.name] = wire.pointer(at - len(forward.name))
    answer, at = render(_turned(reply.answer, forward.qtype, turn), at, seen, ttl)
    authority, _ = render(reply.authority, at, seen, ttl)
    return wire.build(
        query,
        rcode=rcode,
        authoritative=False,
        authentic=reply.authentic and query.wants_ad and not forward.prefix,
        answer=[*forward.prefix, *answer],
        authority=() if forward.prefix else authority,
        size=size,
        truncated=reply.truncated,
        extended_error=reply.extended_error,
    )


def split_at_ttl(reply: bytes, *, mixed: bool = False) -> tuple[tuple[bytes, ...], int] | None:
    """A finished reply without its ID, cut at the TTLs of its records, and that TTL: `ttl.join(pieces)` is the same reply with another one.

    None where there is none, or more than one; mixed: the least of several. reply: of our own making.
    """
    questions, *counts = struct.unpack_from("!HHHH", reply, 4)
    at, begun = wire.HEADER, 2
    for _ in range(questions):
        at = read_name(reply, at)[1] + 4
    pieces: list[bytes] = []
    ttls: set[int] = set()
    for _ in range(sum(counts)):
        at = read_name(reply, at)[1]
        rtype, _, ttl, length = struct.unpack_from("!HHIH", reply, at)
        if rtype != Type.OPT:
            pieces.append(reply[begun : at + 4])
            begun = at + 8
            ttls.add(ttl)
        at += 10 + length
    return ((*pieces, reply[begun:]), min(ttls)) if len(ttls) == 1 or (mixed and ttls) else None


def _turned(records: tuple[Record, ...], qtype: int, turn: int) -> Sequence[Record]:
    addresses = [item for item in records if item.rtype == qtype]
    if not turn or len(addresses) < 2 or qtype not in (Type.A, Type.AAAA):
        return records
    at = turn % len(addresses)
    aliases = [item for item in records if item.rtype == Type.CNAME]
    others = [item for item in records if item.rtype not in (qtype, Type.CNAME)]
    return [*aliases, *addresses[at:], *addresses[:at], *others]


def render(
    records: Sequence[Record], at: int, seen: dict[bytes, bytes], ttl: int | None = None
) -> tuple[list[bytes], int]:
    """Finished records from offset `at` on. `seen`: names that can be pointed at, by their lower-case form; grows."""
    out = []
    for item in records:
        owner = seen.get(item.owner.lower())
        if owner is None:
            owner = item.owner
            if at < 0x4000:
                seen[item.owner.lower()] = wire.pointer(at)
        finished = wire.record(owner, item.rtype, item.ttl if ttl is None else ttl, item.rdata)
        at += len(finished)
        if item.rtype == Type.CNAME and at - len(item.rdata) < 0x4000:
            seen.setdefault(item.rdata.lower(), wire.pointer(at - len(item.rdata)))
        out.append(finished)
    return out, at


def read_section(data: bytes, at: int, count: int) -> tuple[list[Record], int]:
    """`count` records from `at` on (those of class IN), and where the message goes on. Raises Malformed."""
    if count > RECORDS:
        raise Malformed
    out = []
    jumps = [JUMPS]
    for _ in range(count):
        owner, at = read_name(data, at, jumps)
        if at + 10 > len(data):
            raise Malformed
        rtype, rclass, ttl, length = _FRAME.unpack_from(data, at)
        at += 10
        if at + length > len(data):
            raise Malformed
        if rclass == 1:
            out.append(Record(owner, rtype, ttl if ttl <= MAX_TTL else 0, _rdata(data, at, length, rtype, jumps)))
        at += length
    return out, at


def _opt(data: bytes, at: int, count: int) -> tuple[int, int | None]:
    """The upper bits of the rcode and the extended error out of the OPT record among `count` records; nothing if they cannot be read, since
    what answers the question stands before them."""
    jumps = [JUMPS]
    for _ in range(min(count, RECORDS)):
        try:
            _, at = read_name(data, at, jumps)
        except Malformed:
            break
        if at + 10 > len(data):
            break
        rtype, _, upper, _, _, length = struct.unpack_from("!HHBBHH", data, at)
        at += 10 + length
        if rtype == Type.OPT and at <= len(data):
            return upper, _extended_error(data[at - length : at])
    return 0, None


def _extended_error(options: bytes) -> int | None:
    at = 0
    while at + 6 <= len(options):
        code, length = struct.unpack_from("!HH", options, at)
        if code == 15 and length >= 2:
            return int.from_bytes(options[at + 4 : at + 6], "big")
        at += 4 + length
    return None


def _rdata(data: bytes, at: int, length: int, rtype: int, jumps: list[int]) -> bytes:
    """The rdata without compression; its shape is checked for the types whose names are followed or expanded."""
    shape = _NAMES_IN.get(rtype)
    end = at + length
    if shape is None:
        if (rtype == Type.A and length != 4) or (rtype == Type.AAAA and length != 16):
            raise Malformed
        return data[at:end]
    before, count, after = shape
    out = data[at : at + before]
    at += before
    for _ in range(count):
        name, at = read_name(data, at, jumps)
        out += name
    if at + after != end:
        raise Malformed
    return out + data[at:end]


def read_name(data: bytes, at: int, jumps: list[int] | None = None) -> tuple[bytes, int]:
    """The name at `at`, expanded, and where the message goes on; pointers lead backwards only: no loops. Raises Malformed.

    jumps: how many pointers may yet be followed, for all names that are given the same list.
    """
    out, after, lowest = bytearray(), -1, at
    while True:
        if at >= len(data):
            raise Malformed
        length = data[at]
        if length >= 0xC0:
            if at + 2 > len(data):
                raise Malformed
            target = (length & 0x3F) << 8 | data[at + 1]
            if after < 0:
                after = at + 2
            if target >= lowest:
                raise Malformed
            if jumps is not None:
                jumps[0] -= 1
                if jumps[0] < 0:
                    raise Malformed
            at = lowest = target
            continue
        if length > 63 or at + 1 + length > len(data):
            raise Malformed
        out += data[at : at + 1 + length]
        at += 1 + length
        if len(out) > names.MAX_NAME:
            raise Malformed
        if length == 0:
            return bytes(out), after if after >= 0 else at


def _chain(question: Question, records: list[Record]) -> tuple[Record, ...]:
    """The records that answer the question: along CNAMEs from its name, then of its type; signatures with them when asked for."""
    aliases: dict[bytes, Record] = {}
    for item in records:
        if item.rtype == Type.CNAME:
            aliases.setdefault(item.owner.lower(), item)
    on_path, name = [question.name], question.name
    out: list[Record] = []
    while question.qtype != Type.CNAME and name in aliases and len(on_path) <= CHAIN:
        out.append(aliases[name])
        name = aliases[name].rdata.lower()
        if name in on_path:
            break
        on_path.append(name)
    out += [item for item in records if item.owner.lower() == name and item.rtype == question.qtype]
    if question.dnssec_ok:
        out += [item for item in records if item.rtype == _RRSIG and item.owner.lower() in on_path]
    return tuple(dict.fromkeys(out))


def _proof(records: list[Record], dnssec_ok: bool) -> tuple[Record, ...]:
    wanted = {Type.SOA, _RRSIG, _NSEC, _NSEC3} if dnssec_ok else {Type.SOA}
    return tuple(item for item in records if item.rtype in wanted)[:16]


def _ttl(answer: tuple[Record, ...], authority: tuple[Record, ...]) -> int:
    """The shortest TTL; of a negative answer the SOA's, no longer than its minimum (RFC 2308 section 5). 0 without either."""
    ttls = [item.ttl for item in answer]
    for item in authority:
        ttls.append(min(item.ttl, int.from_bytes(item.rdata[-4:], "big")) if item.rtype == Type.SOA else item.ttl)
    return min(ttls, default=0)
