"""The search list, walked here instead of by the client: one query for each family instead of one for each candidate.

    pod asks       www.example.net.shop.svc.cluster.local A       (the first name of its list: only that one is intercepted)
    candidates     www.example.net + each entry of that pod's own list, then www.example.net itself
    reply          www.example.net.shop.svc.cluster.local CNAME www.example.net, and the records of that name

In: a query, the search lists of whoever asks (`resolver` makes them), and `ask`, which answers any name as this server would if nothing
were walked.
Out: the ordinary outcome, a finished reply, or a `Walk` where somebody else has to be asked first; `walking` asks and comes back with the
replies. What must not happen here: time, sockets, and a decision that depends on the type asked. A name is taken when it has addresses of
either family (or records of the type asked), so that A and AAAA stop at the same candidate: resolvers give up on a name whose families
disagree (coredns #3765, #7179).

A candidate that exists without any of these records is passed over, as glibc and Go do, and taken in the end when nothing else is there.
An upstream's NXDOMAIN for one family of a name that has the other is believed to be an error of that upstream. When there is nothing at
all the first question is answered NXDOMAIN as it is: what the client then asks by itself are the same names, out of memory.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from types import MappingProxyType

from kproxy.dns import names, upstream, wire
from kproxy.dns.answer import Forward, Outcome
from kproxy.dns.clients import Client, SearchList
from kproxy.dns.upstream import Malformed, Record
from kproxy.dns.wire import OWNER, Query, Rcode, Transport, Type

OUTSIDE = 8  # names that others are asked for in one walk: a packet must not cost upstream sixty. The client goes on by itself
ALWAYS_LAST = 255  # an ndots that no name reaches: the name itself comes last, as with CoreDNS's static lists

_FAMILIES = (int(Type.A), int(Type.AAAA))
_TELLING = frozenset({Type.A, Type.AAAA, Type.CNAME})
_SPOKEN = frozenset({Rcode.NOERROR, Rcode.NXDOMAIN})
_SVC = b"\x03svc"

# Answers a question (name, type) as this server does when nothing is walked.
Ask = Callable[[bytes, int], Outcome | Forward | None]
Replies = Mapping[
    tuple[int, int], bytes
]  # (number of the step, type) → a whole reply to that name, with its header and question
Wildcards = Mapping[bytes, frozenset[bytes]]
_NO_WILDCARDS: Wildcards = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Step:
    """One candidate. asked: what is known without asking anybody, or what has to be asked, by type; the type of the question comes first.

    suffix: of the search list, when the candidate lies outside of this server's zones; a wildcard below it would take every name.
    """

    name: bytes
    asked: tuple[tuple[int, Outcome | Forward], ...]
    suffix: bytes = b""


@dataclass(frozen=True, slots=True)
class Walk:
    """A walk that cannot be decided from memory. key: equal keys are the same walk, whatever the type asked.

    first: the outcome without a walk, which is what the client gets when nothing is found. after: as in `Forward`.
    """

    query: Query
    key: bytes
    steps: tuple[Step, ...]
    first: Outcome | Forward
    after: Callable[[bytes, Transport], bytes] | None = None


@dataclass(frozen=True, slots=True)
class Found:
    """The walk's end: the candidate taken, None when there is none. failed: some candidate could not be asked."""

    index: int | None
    failed: bool = False


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the decision waits for: the types of one step's name, or whether its suffix has a wildcard."""

    index: int
    types: tuple[int, ...] = ()
    suffix: bytes = b""


@dataclass(frozen=True, slots=True)
class Seen:
    """A reply in the few words that a decision needs. count: records of the type asked. data: the values of its addresses and aliases."""

    rcode: int
    positive: bool
    count: int = 0
    data: frozenset[bytes] = frozenset()


def head_of(heads: Container[bytes], lowered: bytes) -> int:
    """Where in a name the first suffix of some search list begins; -1 when it lies below none."""
    at = 0
    while at < len(lowered) - 1:
        if lowered[at:] in heads:
            return at
        at += lowered[at] + 1
    return -1


def intercept(
    query: Query, client: Client, first: Outcome | Forward, ask: Ask, transport: Transport
) -> Outcome | Forward | Walk:
    """`autopath @kubernetes`: walks the list of whoever asks where the name lies below its head, and returns `first` everywhere else.

    first: what is said without a walk. ask: the same for any other name and type, as whole replies (those for TCP).
    """
    if not client.heads:
        return first
    for listed in client.lists:
        at = len(query.lowered) - len(listed.suffixes[0])
        if at >= 0 and names.is_below(query.lowered, listed.suffixes[0]):
            return walk(query, at, listed, first, ask, transport)
    return personal(first) if head_of(client.heads, query.lowered) >= 0 else first


def walk(
    query: Query, start: int, listed: SearchList, first: Outcome | Forward, ask: Ask, transport: Transport
) -> Outcome | Forward | Walk:
    """What becomes of a query whose name lies below the head of `listed`, which begins at `start` in it.

    first: what is said without a walk. ask must give whole replies, as for TCP. A reply that depends on the list is marked `personal`.
    """
    if query.qclass != 1 or (isinstance(first, Outcome) and _ends_at_once(first)):
        return first
    if start == 0:
        return personal(first)
    steps = _steps(query, start, listed, first, ask)
    walked = Walk(query, query.lowered + b"".join(listed.suffixes), steps, first)
    decided = decide(walked, {})
    if isinstance(decided, Wanted):
        return walked
    return finish(walked, decided, {}, transport)


def about(query: Query, name: bytes, qtype: int) -> Query:
    """The same query for another name and type: what an `Ask` answers."""
    question = name + qtype.to_bytes(2, "big") + query.qclass.to_bytes(2, "big")
    return replace(query, name=name, lowered=name.lower(), qtype=qtype, question=question)


def personal(first: Outcome | Forward) -> Outcome | Forward:
    """The outcome for a client without a list, where others have one: it must not be remembered for them."""
    return replace(first, personal=True) if isinstance(first, Outcome) and not _ends_at_once(first) else first


def _ends_at_once(first: Outcome) -> bool:
    """Whether the first candidate is the one: it has records; or it cannot be answered, and then nothing else must be."""
    return first.rcode not in _SPOKEN or first.reply[6:8] != b"\0\0"


def _steps(query: Query, start: int, listed: SearchList, first: Outcome | Forward, ask: Ask) -> tuple[Step, ...]:
    base = query.name[:start]
    steps = [Step(query.name, _asked(query.name, query.qtype, first, ask))]
    rest = listed.suffixes[1:]
    if len(names.starts(base)) <= listed.ndots and b"\0" not in rest:  # as many dots as labels, less one
        rest = (*rest, b"\0")
    outside_names = 0
    for suffix in rest:
        if outside_names == OUTSIDE:
            break
        name = base + suffix
        own = ask(name, query.qtype) if len(name) <= names.MAX_NAME else None
        if own is None:
            continue
        asked = _asked(name, query.qtype, own, ask)
        outside = isinstance(own, Forward) and not own.prefix and suffix != b"\0"
        outside_names += isinstance(own, Forward)
        steps.append(Step(name, asked, suffix if outside else b""))
        if isinstance(own, Outcome) and own.rcode in _SPOKEN and any(_is_taken(one, kind) for kind, one in asked):
            break  # nothing behind it is of any interest
    return tuple(steps)


def _asked(name: bytes, qtype: int, own: Outcome | Forward, ask: Ask) -> tuple[tuple[int, Outcome | Forward], ...]:
    """The outcomes of one name: of the type asked, and where that leaves it open whether it exists, of the two families."""
    if isinstance(own, Outcome) and (own.rcode != Rcode.NOERROR or _has(own.reply, qtype)):
        return ((qtype, own),)
    others = ((kind, ask(name, kind)) for kind in _FAMILIES if kind != qtype)
    return ((qtype, own), *((kind, other) for kind, other in others if other is not None))


def _is_taken(one: Outcome | Forward, kind: int) -> bool:
    return isinstance(one, Outcome) and one.rcode == Rcode.NOERROR and _has(one.reply, kind)


def _has(reply: bytes, kind: int) -> bool:
    """Whether a reply of ours has a record of that type in its answer."""
    return reply[6:8] != b"\0\0" and read_seen(reply, kind).positive


@lru_cache(maxsize=1024)  # a walk is decided anew with every reply that comes, and looks at all of them each time
def read_seen(reply: bytes, kind: int) -> Seen:
    """What a reply to a question of type `kind` says. Never raises; what cannot be read counts as a failure."""
    try:
        answer = _sections(reply)[0]
    except Malformed:
        return Seen(Rcode.SERVFAIL, False)
    data = frozenset(item.rdata.lower() for item in answer if item.rtype in _TELLING)
    count = sum(item.rtype == kind or kind == Type.ANY for item in answer)
    return Seen(reply[3] & 15, count > 0, count, data)


def _sections(reply: bytes) -> list[list[Record]]:
    """Answer, authority and additional records of a whole reply, the OPT record left out. Raises Malformed."""
    counts = [reply[at] << 8 | reply[at + 1] for at in (6, 8, 10)]
    at = wire.HEADER
    if reply[4:6] != b"\0\0":
        at = upstream.read_name(reply, at)[1] + 4
    sections = []
    for count in counts:
        records, at = upstream.read_section(reply, at, count)
        sections.append([item for item in records if item.rtype != Type.OPT])
    return sections


def decide(walk: Walk, replies: Replies, wildcards: Wildcards = _NO_WILDCARDS, verdict: bytes = b"") -> Found | Wanted:
    """The candidate taken, or what must be known before one can be.

    wildcards: by suffix, the data that a name has there which nobody can have made; empty for a suffix that keeps to its names. verdict:
    the candidate that was taken for the other family a moment ago; of those that others are asked for, it stands without a comparison.
    """
    empty: int | None = None
    failed = False
    verdict = verdict if any(step.name.lower() == verdict for step in walk.steps) else b""
    for index, step in enumerate(walk.steps):
        asks = isinstance(step.asked[0][1], Forward)
        if asks and verdict and step.name.lower() != verdict:
            continue
        seen = {kind: _seen(one, replies.get((index, kind)), kind) for kind, one in step.asked}
        missing = tuple(kind for kind, one in seen.items() if one is None)
        if seen[walk.query.qtype] is None:
            return Wanted(index, (walk.query.qtype,) if verdict else missing)
        if asks and verdict:
            return Found(index)
        known = [one for one in seen.values() if one is not None]
        if any(one.positive for one in known):
            if not step.suffix or index == 0:
                return Found(index)
            if step.suffix not in wildcards:
                return Wanted(index, suffix=step.suffix)
            if not any(one.data & wildcards[step.suffix] for one in known):
                return Found(index)
            continue
        if missing:
            return Wanted(index, missing)
        if any(one.rcode not in _SPOKEN for one in known):
            failed = True
        elif empty is None and asks and any(o.rcode == Rcode.NOERROR for o in known):
            empty = index
    return Found(empty, failed)


def _seen(one: Outcome | Forward, reply: bytes | None, kind: int) -> Seen | None:
    if isinstance(one, Outcome):
        return read_seen(one.reply, kind)
    if reply is None:
        return None
    seen = read_seen(reply, kind)
    # The name of a Service exists, wherever its CNAME leads.
    return replace(seen, positive=True) if one.prefix else seen


def finish(walk: Walk, found: Found, replies: Replies, transport: Transport) -> Outcome:
    """The client's reply. Only replies that `decide` waited for are needed."""
    query, index = walk.query, found.index
    size = wire.limit(query, transport)
    if index is None and found.failed:
        # 22: no reachable authority (RFC 8914), as where there is no walk
        reply = wire.build(query, rcode=Rcode.SERVFAIL, authoritative=False, size=size, extended_error=22)
        return Outcome(reply, b"", query, Rcode.SERVFAIL, personal=True)
    if index is None and isinstance(walk.first, Outcome):
        return replace(walk.first, personal=True)
    index = index or 0
    one = walk.steps[index].asked[0][1]
    whole = one.reply if isinstance(one, Outcome) else replies[(index, query.qtype)]
    reply = _renamed(query, walk.steps[index].name, whole, size, exists=found.index is not None)
    return Outcome(reply, b"", query, reply[3] & 15, personal=True, saved=index)


def _renamed(query: Query, name: bytes, whole: bytes, size: int, *, exists: bool) -> bytes:
    """The reply about `name` as the reply to `query`: a CNAME in front leads from one to the other, unless there is no record to lead to.

    An upstream that denies one family of a name that has the other is corrected: the name exists.
    """
    answer, authority, additional = _sections(whole)
    other = name.lower() != query.lowered
    at = wire.HEADER + len(query.question)
    seen = {query.lowered: OWNER}
    records: list[bytes] = []
    if other and answer:
        records.append(wire.record(OWNER, Type.CNAME, answer[0].ttl, name))
        at += len(records[0])
        seen[name.lower()] = wire.pointer(at - len(name))
    sections = []
    for section in (answer, authority, additional):
        rendered, at = upstream.render(section, at, seen)
        sections.append(rendered)
    flags = whole[2] << 8 | whole[3]
    rcode = flags & 15
    return wire.build(
        query,
        rcode=Rcode.NOERROR if exists and rcode == Rcode.NXDOMAIN else rcode,
        authoritative=bool(flags & 0x0400),
        authentic=bool(flags & 0x0020) and not other,
        answer=[*records, *sections[0]],
        authority=sections[1],
        additional=sections[2],
        size=size,
        truncated=bool(flags & 0x0200),
    )


def least_ttl(reply: bytes) -> int:
    """For how many seconds a finished reply is true: the shortest TTL of its answer, or else of its authority; 0 without either."""
    try:
        answer, authority, _ = _sections(reply)
    except Malformed:
        return 0
    return min((item.ttl for item in answer or authority), default=0)


def keys_of(walk: Walk) -> frozenset[bytes]:
    """The Services whose coming or going may change where this walk ends: two labels in front of any `svc` in a candidate."""
    found = set()
    for step in walk.steps:
        lowered = step.name.lower()
        offsets = names.starts(lowered)
        for number, at in enumerate(offsets):
            if number >= 2 and lowered.startswith(_SVC, at):
                found.add(lowered[offsets[number - 2] : at])
    return frozenset(found)
