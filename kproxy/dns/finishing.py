"""What directives do to a reply after it was made: names put back, TTLs kept within bounds, sections left out, addresses sorted.

In: a whole reply of this server's own making, to the question as the directives had left it, and the steps that change it. Out: the
client's reply, with the client's own question. What must not happen here: reading a foreign message (`upstream` does), and choosing the
steps.

A reply is taken apart and put together again only where a directive demands it; nothing of this is on the way of an ordinary answer.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from kproxy.dns import upstream, wire
from kproxy.dns.answer import Forward, Outcome
from kproxy.dns.upstream import Malformed, Record
from kproxy.dns.wire import OWNER, Query, Rcode, Transport, Type

EXTENDED_ERROR = 15  # EDNS option, RFC 8914


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """A reply taken apart. extended_error: code and text; "" for none."""

    rcode: int = 0
    authoritative: bool = True
    authentic: bool = False
    truncated: bool = False
    answer: tuple[Record, ...] = ()
    authority: tuple[Record, ...] = ()
    additional: tuple[Record, ...] = ()
    extended_error: tuple[int, str] | None = None


Step = Callable[[Message], Message]

FAILURE = Message(rcode=Rcode.SERVFAIL, authoritative=False)


@dataclass(frozen=True, slots=True)
class After:
    """Makes the client's reply: `steps`, in order, on a whole reply to what the question had become. Fits `Forward.after`.

    inner: what is to be done to the reply before it can be read as one to that question.
    """

    query: Query
    steps: tuple[Step, ...]
    inner: Callable[[bytes, Transport], bytes] | None = None

    def __call__(self, reply: bytes, transport: Transport) -> bytes:
        """The client's reply; SERVFAIL when the steps cannot be done."""
        if self.inner is not None:
            reply = self.inner(reply, Transport.TCP)
        return compose(self.query, self.change(reply), transport)

    def change(self, reply: bytes) -> Message:
        """The reply after all steps."""
        try:
            message = disassemble(reply)
            for step in self.steps:
                message = step(message)
        except Malformed:
            return FAILURE
        return message


def finished(
    outcome: Outcome | Forward, query: Query, steps: tuple[Step, ...], transport: Transport
) -> Outcome | Forward:
    """The outcome of what the question had become, as that of `query`; a reply that is there already must be a whole one (as for TCP)."""
    if isinstance(outcome, Forward):
        if outcome.then is not None:
            return replace(outcome, then=Later(outcome.then, query, steps, transport))
        return replace(outcome, after=After(query, steps, outcome.after))
    reply = After(query, steps)(outcome.reply, transport)
    return replace(outcome, reply=reply, query=query if outcome.query is not None else None, rcode=reply[3] & 15)


@dataclass(frozen=True, slots=True)
class Later:
    """`finished`, once it is known what comes of `then`. Fits `Forward.then`."""

    then: Callable[[bytes], Outcome | Forward]
    query: Query
    steps: tuple[Step, ...]
    transport: Transport

    def __call__(self, reply: bytes) -> Outcome | Forward:
        """The outcome; maybe another Forward."""
        return finished(self.then(reply), self.query, self.steps, self.transport)


@dataclass(frozen=True, slots=True)
class _Both:
    first: Callable[[bytes], Outcome | Forward]
    second: Callable[[bytes], Outcome | Forward]

    def __call__(self, reply: bytes) -> Outcome | Forward:
        outcome = self.first(reply)
        if isinstance(outcome, Forward):
            return replace(outcome, then=and_then(outcome.then, self.second))
        return self.second(outcome.reply)


def and_then(
    first: Callable[[bytes], Outcome | Forward] | None, second: Callable[[bytes], Outcome | Forward]
) -> Callable[[bytes], Outcome | Forward]:
    """Both, one after the other."""
    return second if first is None else _Both(first, second)


def next_of(pending: Forward, reply: bytes) -> Outcome | Forward:
    """What a reply that only leads to the next question comes to (`Forward.then`); for whom it may be remembered stays."""
    assert pending.then is not None
    said = pending.then(reply)
    said = replace(
        said,
        personal=said.personal or pending.personal,
        single=said.single or pending.single,
        events=pending.events,
    )
    return replace(said, block=pending.block) if isinstance(said, Outcome) else said


def disassemble(reply: bytes) -> Message:
    """A reply of ours, taken apart. Raises Malformed for one that cannot be walked, which ours never are."""
    if len(reply) < wire.HEADER:
        raise Malformed
    flags, questions, *counts = struct.unpack_from("!HHHHH", reply, 2)
    at = wire.HEADER
    for _ in range(questions):
        at = upstream.read_name(reply, at)[1] + 4
    sections: list[tuple[Record, ...]] = []
    for count in counts:
        start = at
        records, at = upstream.read_section(reply, at, count)
        sections.append(tuple(item for item in records if item.rtype != Type.OPT))
    high, error = _options(reply, start, counts[2])
    return Message(
        rcode=flags & 15 | high << 4,
        authoritative=bool(flags & 0x0400),
        authentic=bool(flags & 0x0020),
        truncated=bool(flags & 0x0200),
        answer=sections[0],
        authority=sections[1],
        additional=sections[2],
        extended_error=error,
    )


def _options(reply: bytes, at: int, count: int) -> tuple[int, tuple[int, str] | None]:
    """The high bits of the rcode and the extended error in the OPT record, looked for among `count` records from `at` on."""
    for _ in range(count):
        at = upstream.read_name(reply, at)[1]
        rtype, _, high, _, length = struct.unpack_from("!HHBxHH", reply, at)
        at += 10
        if rtype == Type.OPT:
            end = at + length
            while at + 4 <= end:
                code, size = struct.unpack_from("!HH", reply, at)
                at += 4
                if code == EXTENDED_ERROR and size >= 2:
                    text = reply[at + 2 : at + size].decode("utf-8", "replace")
                    return high, (struct.unpack_from("!H", reply, at)[0], text)
                at += size
            return high, None
        at += length
    return 0, None


def compose(query: Query, message: Message, transport: Transport) -> bytes:
    """A message as the reply to `query`."""
    size = wire.limit(query, transport)
    at = wire.HEADER + len(query.question)
    seen = {query.lowered: OWNER}
    sections = []
    for records in (message.answer, message.authority, message.additional):
        rendered, at = upstream.render(records, at, seen)
        sections.append(rendered)
    error = message.extended_error
    option = b""
    if error is not None and query.edns is not None:
        option = struct.pack("!HHH", EXTENDED_ERROR, 2 + len(text := error[1].encode()[:255]), error[0]) + text
    reply = wire.build(
        query,
        rcode=message.rcode,
        authoritative=message.authoritative,
        authentic=message.authentic and query.wants_ad,
        answer=sections[0],
        authority=sections[1],
        additional=sections[2],
        size=size - len(option),
        truncated=message.truncated,
    )
    return wire.with_options(reply, option) if option else reply


def outcome_of(query: Query, message: Message, transport: Transport, turns: int = 1) -> Outcome:
    """A finished reply from a message."""
    return Outcome(compose(query, message, transport), b"", query, int(message.rcode), turns)


def without_extras(message: Message) -> Message:
    """`minimal`: an answer goes alone; denials, errors and referrals stay what they are."""
    if message.rcode != Rcode.NOERROR or not message.answer:
        return message
    return replace(message, authority=(), additional=())


def following(prefix: Sequence[Record], *, instead_of: Message | None = None) -> Step:
    """Puts the CNAMEs that led to a name in front of that name's answer. They are this server's own, so is the reply (AA).

    A name that does not exist makes an alias without end, a name that cannot be resolved a failure, as for an ExternalName.
    instead_of: the CNAMEs are from this reply, and their target was changed: its authority section stays, and nothing is claimed.
    """

    def step(message: Message) -> Message:
        if message.rcode not in (Rcode.NOERROR, Rcode.NXDOMAIN):
            return replace(FAILURE, extended_error=message.extended_error)
        return replace(
            message,
            rcode=Rcode.NOERROR,
            authentic=False,
            authoritative=instead_of is None,
            answer=(*prefix, *message.answer),
            authority=() if instead_of is None else instead_of.authority,
            additional=(),
        )

    return step


def prefix_records(query: Query, prefix: Sequence[bytes]) -> tuple[Record, ...]:
    """Finished records that stand right behind the question of `query`, as values. Raises Malformed."""
    whole = b"\0" * wire.HEADER + query.question + b"".join(prefix)
    return tuple(upstream.read_section(whole, wire.HEADER + len(query.question), len(prefix))[0])
