"""What upstream said, for as long as it may be said again: one cache for each `cache` directive, with CoreDNS's rules. Pure.

In: questions, believed replies, and the time, in monotonic seconds. Out: `Entry` values that say how fresh they are; whoever asks decides
what to do with an old one. What must not happen here: clocks, sockets, and growth: each half (answers, denials) is bounded in entries and
octets, and the least recently used goes first, at the same cost however full it is.

What is kept: whole answers; denials that come with an SOA (RFC 2308); failures, for a few seconds, so that a broken name does not cost
everybody a walk through all upstreams (RFC 9520). What is not: replies that were cut, other codes, types that are questions about a server
(ANY, AXFR), a CNAME that leads nowhere without an SOA. Every record of an entry has one TTL, the shortest of them between the bounds of the
directive, and it falls: so CoreDNS does it.

`Made` replies are the hot half: finished bytes by the raw bytes of their queries, as in `cache`, but those of forwarded names grow older.
What stands in `now` is right for the present second, found by one look-up and emptied when the second is over; a new second's bytes come
from the pieces between the TTLs, which costs a join.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass, replace

from kproxy.dns import names, upstream
from kproxy.dns.blocks import Cache
from kproxy.dns.upstream import Malformed, Question, Reply
from kproxy.dns.wire import Rcode

OCTETS = 6 << 20  # of one half, as `_weight` counts them
MADE, MADE_OCTETS = 8192, 4 << 20
TURNS = 8  # orders kept of a reply with several addresses
UNANSWERED_S = 1.0  # nobody answering is remembered for RFC 9520's least time: the next client may have better luck

_META = range(128, 256)  # question types that no record has: RFC 6895 section 3.1


class Entry:
    """One remembered reply. ttl, since, until: seconds; stale_until: the end of its life as an expired answer.

    failed_until: a refresh failed, and is not tried again before. current: no newer reply has taken its place.
    """

    __slots__ = (
        "current",
        "failed_until",
        "hits",
        "last_hit",
        "reply",
        "since",
        "stale_until",
        "ttl",
        "until",
        "weight",
    )

    def __init__(self, reply: Reply, ttl: float, now: float, stale_s: float) -> None:
        self.reply = reply
        self.ttl = ttl
        self.since = now
        self.until = now + ttl
        self.stale_until = self.until + stale_s
        self.failed_until = 0.0
        self.hits = 0
        self.last_hit = now
        self.current = True
        self.weight = _weight(reply)

    def left(self, now: float) -> int:
        """The TTL to tell, seconds: begun ones count, so that it reaches 0 only when the entry is no longer fresh."""
        return max(0, math.ceil(self.until - now))

    @property
    def failure(self) -> bool:
        """Upstream's SERVFAIL, or its silence."""
        return self.reply.rcode == Rcode.SERVFAIL


class _Half:
    """Entries in the order of their last use, bounded twice."""

    __slots__ = ("_capacity", "_octets", "entries", "evictions")

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._octets = 0
        self.entries: OrderedDict[Question, Entry] = OrderedDict()
        self.evictions = 0

    def take(self, question: Question) -> Entry | None:
        gone = self.entries.pop(question, None)
        if gone is not None:
            gone.current = False
            self._octets -= gone.weight
        return gone

    def put(self, question: Question, entry: Entry) -> None:
        self.take(question)
        if self._capacity <= 0:
            return
        self.entries[question] = entry
        self._octets += entry.weight
        while len(self.entries) > self._capacity or self._octets > OCTETS:
            _, gone = self.entries.popitem(last=False)
            gone.current = False
            self._octets -= gone.weight
            self.evictions += 1


class ReplyCache:
    """The two halves of one `cache` directive."""

    def __init__(self, directive: Cache) -> None:
        """Raises ValueError for a zone that is no name."""
        self.directive = directive
        self.answers = _Half(directive.success_entries)
        self.denials = _Half(directive.denial_entries)
        self._zones = _suffixes(directive.zones)
        self._no_answers = _suffixes(directive.disable_success or ())
        self._no_denials = _suffixes(directive.disable_denial or ())

    def get(self, question: Question, now: float) -> Entry | None:
        """What is known, fresh or expired but not yet useless; None for nothing."""
        for half in (self.denials, self.answers):
            entry = half.entries.get(question)
            if entry is None:
                continue
            if now >= entry.stale_until:
                half.take(question)
                continue
            half.entries.move_to_end(question)
            return entry
        return None

    def stale_answer(self, question: Question, now: float) -> Entry | None:
        """An expired positive answer that `prefer_positive` puts before a denial."""
        entry = self.answers.entries.get(question)
        return entry if entry is not None and now < entry.stale_until else None

    def store(self, question: Question, reply: Reply, now: float) -> Entry | None:
        """Remembers a reply; None when it may not be, or not in this name's zone.

        Expired answers outlive a failure: it only says when they are to be refreshed next.
        """
        if not self._concerns(question) or reply.truncated:
            return None
        if reply.rcode == Rcode.SERVFAIL:
            return self.failed(question, reply, now, self.directive.servfail_s)
        ttl = self.ttl_of(question, reply)
        if ttl is None:
            return None
        entry = Entry(reply, ttl, now, self.directive.stale_s)
        if _is_denial(question, reply):
            if _within(question.name, self._no_denials):
                return None
            if not self.directive.prefer_positive:
                self.answers.take(question)
            self.denials.put(question, entry)
        else:
            if _within(question.name, self._no_answers):
                return None
            self.denials.take(question)
            self.answers.put(question, entry)
        return entry

    def ttl_of(self, question: Question, reply: Reply) -> int | None:
        """Seconds to remember a reply for, between the directive's bounds; None: not at all."""
        directive = self.directive
        if reply.rcode not in (Rcode.NOERROR, Rcode.NXDOMAIN) or question.qtype in _META:
            return None
        if _is_denial(question, reply):
            if not reply.has_soa:
                return None
            return max(directive.denial_min_ttl_s, min(reply.ttl, directive.denial_ttl_s))
        return max(directive.success_min_ttl_s, min(reply.ttl, directive.success_ttl_s))

    def failed(self, question: Question, reply: Reply, now: float, seconds: float) -> Entry | None:
        """Remembers a failure for `seconds`, beside an expired answer if there is one."""
        known = self.get(question, now)
        if known is not None and not known.failure:
            known.failed_until = now + max(seconds, self.directive.stale_recheck_s)
            return known
        if seconds <= 0 or not self._concerns(question) or _within(question.name, self._no_denials):
            return None
        entry = Entry(
            replace(reply, extended_error=reply.extended_error or upstream.REMEMBERED_FAILURE), seconds, now, 0.0
        )
        self.denials.put(question, entry)
        return entry

    def wants_refresh(self, entry: Entry, now: float) -> bool:
        """Counts a use; whether `prefetch` asks for the name again before it expires."""
        directive = self.directive
        if not directive.prefetch_amount or entry.failure:
            return False
        entry.hits = entry.hits + 1 if now - entry.last_hit < directive.prefetch_within_s else 1
        entry.last_hit = now
        if entry.hits < directive.prefetch_amount or now < entry.failed_until:
            return False
        return (entry.until - now) * 100 < directive.prefetch_percent * entry.ttl

    def counts_uses(self, entry: Entry) -> bool:
        """Whether each use has still to be seen by `wants_refresh`."""
        return entry.hits < self.directive.prefetch_amount

    def _concerns(self, question: Question) -> bool:
        return not self._zones or _within(question.name, self._zones)

    @property
    def evictions(self) -> int:
        """Entries that had to go for others."""
        return self.answers.evictions + self.denials.evictions


def _suffixes(zones: tuple[str, ...]) -> tuple[bytes, ...]:
    return tuple(names.encode(zone).lower() for zone in zones)


def _within(name: bytes, suffixes: tuple[bytes, ...]) -> bool:
    return any(names.is_below(name, suffix) for suffix in suffixes)


def _is_denial(question: Question, reply: Reply) -> bool:
    return reply.rcode == Rcode.NXDOMAIN or not any(item.rtype == question.qtype for item in reply.answer)


def _weight(reply: Reply) -> int:
    """Octets of memory, about: what CPython takes for an entry with two names, and for each record."""
    records = (*reply.answer, *reply.authority)
    return 600 + sum(250 + len(item.owner) + len(item.rdata) for item in records)


@dataclass(slots=True)
class _Made:
    """The orders of one finished reply, each cut at its TTLs; how many there will be; which is next."""

    entry: Entry
    orders: list[tuple[bytes, ...]]
    wanted: int
    next: int = 0
    weight: int = 0


class MadeReplies:
    """Finished replies by the raw bytes of their queries behind the ID. The server reads `now` directly, after `begin`."""

    def __init__(self, *, entries: int = MADE, octets: int = MADE_OCTETS) -> None:
        self.now: dict[bytes, bytes] = {}
        self._entries, self._limit = entries, octets
        self._second = -1
        self._made: dict[bytes, _Made] = {}
        self._octets = 0

    def begin(self, now: float) -> None:
        """To be called before `now` is read: what another second's bytes were is thrown out."""
        second = int(now)
        if second != self._second:
            self._second = second
            self.now.clear()

    def again(self, key: bytes, now: float) -> bytes | None:
        """The reply to a query that was answered before, with the TTL of the present second; None when it has to be made anew."""
        made = self._made.get(key)
        if made is None:
            return None
        entry = made.entry
        if now >= entry.until or not entry.current:
            self._drop(key)
            return None
        turns = len(made.orders)
        if turns < made.wanted:
            return None
        made.next = (made.next + 1) % turns
        reply = entry.left(now).to_bytes(4, "big").join(made.orders[made.next])
        if turns == 1:
            self.tell(key, reply, entry)
        return reply

    def tell(self, key: bytes, reply: bytes, entry: Entry) -> None:
        """`reply` (behind the ID) is right for the rest of this second, unless its entry ends within it or wants its uses counted."""
        if entry.until >= self._second + 1 and len(self.now) < self._entries:
            self.now[key] = reply

    def turn_to_make(self, key: bytes) -> int:
        """Which address the next order of this query's reply begins with."""
        made = self._made.get(key)
        return 0 if made is None else len(made.orders)

    def store(self, key: bytes, reply: bytes, entry: Entry, addresses: int) -> None:
        """Keeps a reply (with its ID) that has one TTL for all records. addresses: how many there are, each may come first."""
        try:
            pieces = upstream.split_at_ttls(reply)
        except Malformed:
            return
        made = self._made.get(key)
        if made is None or made.entry is not entry:
            self._drop(key)
            if len(self._made) >= self._entries or self._octets > self._limit:
                self.clear()
            made = self._made[key] = _Made(entry, [], max(1, min(addresses, TURNS)), weight=len(key))
            self._octets += made.weight
        if len(made.orders) < made.wanted:
            made.orders.append(pieces)
            made.weight += len(reply)
            self._octets += len(reply)

    def _drop(self, key: bytes) -> None:
        gone = self._made.pop(key, None)
        if gone is not None:
            self._octets -= gone.weight

    def clear(self) -> None:
        """Throws out everything: names may have become the cluster's own, or other directives apply."""
        self.now.clear()
        self._made.clear()
        self._octets = 0
