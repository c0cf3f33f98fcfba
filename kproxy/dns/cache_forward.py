"""What upstream said, for as long as it may be said again: one cache for each `cache` directive, with CoreDNS's rules. Pure.

In: questions, believed replies, and the time, in monotonic seconds. Out: `Entry` values that say how fresh they are; whoever asks decides
what to do with an old one. What must not happen here: clocks, sockets, and growth: each half (answers, denials) is bounded in entries and
octets, and the least recently used goes first, at the same cost however full it is.

What is kept: whole answers; denials that come with an SOA (RFC 2308); failures, for a few seconds, so that a broken name does not cost
everybody a walk through all upstreams (RFC 9520). What is not: replies that were cut, other codes, types that are questions about a server
(ANY, AXFR), a CNAME that leads nowhere without an SOA. Every record of an entry has one TTL, the shortest of them between the bounds of the
directive, and it falls: so CoreDNS does it.

`AgingReplies` are finished bytes by the raw bytes of their queries, as in `cache`; a TTL of the present second costs them a join.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass, replace

from kproxy.dns import names, upstream
from kproxy.dns.blocks import Cache
from kproxy.dns.upstream import Question, Reply
from kproxy.dns.wire import Rcode

OCTETS = 6 << 20  # of one half, as `_weight` counts them
AGING, AGING_OCTETS = 16384, 4 << 20
RENEW_S = 5.0
TURNS = 8  # orders kept of a reply with several addresses
UNANSWERED_S = 1.0  # nobody answering is remembered for RFC 9520's least time: the next client may have better luck

_META = range(128, 256)  # question types that no record has: RFC 6895 section 3.1


class Entry:
    """One remembered reply. ttl, since, until: seconds; stale_until: the end of its life as an expired answer.

    failed_until: a refresh failed, and is not tried again before.
    """

    __slots__ = (
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
        if reply.truncated:
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
        if reply.rcode not in (Rcode.NOERROR, Rcode.NXDOMAIN) or question.qtype in _META or not self.concerns(question):
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
        if seconds <= 0 or not self.concerns(question) or _within(question.name, self._no_denials):
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

    def concerns(self, question: Question) -> bool:
        """Whether the name is below one of the directive's zones."""
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
class _Aging:
    """The orders of one finished reply, each cut at its TTLs; how many there will be; which is next; when it is to be made anew."""

    orders: list[tuple[bytes, ...]]
    counts: list[int]
    wanted: int
    until: float
    renewed: float
    next: int = 0


class AgingReplies:
    """Finished replies by the raw bytes of their queries, whose TTL falls: the pieces between the TTLs, joined by the present one.

    After RENEW_S each is made anew, so that what is remembered behind it is looked at again. Bounded by `entries` and `octets`: when full
    it is emptied as a whole.
    """

    def __init__(self, *, entries: int = AGING, octets: int = AGING_OCTETS) -> None:
        self._entries, self._limit = entries, octets
        self._aging: dict[Hashable, _Aging] = {}
        self._octets = 0

    def get(self, key: Hashable, now: float) -> tuple[bytes, list[int], bool] | None:
        """The reply behind the ID, where its uses are counted, and whether there is but one order of it. now: monotonic seconds."""
        aging = self._aging.get(key)
        if aging is None or now >= aging.renewed or len(aging.orders) < aging.wanted:
            return None
        ttl = math.ceil(aging.until - now)
        if aging.wanted == 1:
            return ttl.to_bytes(4, "big").join(aging.orders[0]), aging.counts, True
        aging.next = (aging.next + 1) % aging.wanted
        return ttl.to_bytes(4, "big").join(aging.orders[aging.next]), aging.counts, False

    def turn_to_make(self, key: Hashable, now: float) -> int:
        """Which address the next order of this reply begins with."""
        aging = self._aging.get(key)
        return 0 if aging is None or now >= aging.renewed else len(aging.orders)

    def store(self, key: Hashable, reply: bytes, counts: list[int], addresses: int, now: float) -> bool:
        """Keeps a reply of ours; False when its records have several TTLs. addresses: how many there are, each may come first."""
        cut = upstream.split_at_ttl(reply)
        if cut is None:
            return False
        pieces, ttl = cut
        aging = self._aging.get(key)
        if aging is None or now >= aging.renewed:
            if len(self._aging) >= self._entries or self._octets > self._limit:
                self.clear()
            wanted = max(1, min(addresses, TURNS))
            self._aging[key] = aging = _Aging([], counts, wanted, now + ttl, now + min(ttl, RENEW_S))
        if len(aging.orders) < aging.wanted:
            aging.orders.append(pieces)
            self._octets += len(reply)
        return True

    def clear(self) -> None:
        """Throws out everything: names may have become the cluster's own, or other directives apply."""
        self._aging.clear()
        self._octets = 0
