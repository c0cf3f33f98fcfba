"""Replies at the end of a walk, by who asks and the raw bytes of the query: what makes a hot outside name of a pod two look-ups.

In: the outcome of a `search.Walk`, the client's view, the time in monotonic seconds. Out: the reply behind the ID, with the TTL that it has
left. Bounded in entries and octets; emptied as a whole when full. Pods of one namespace share a view, and an address that changes hands
gets another view with its new owner, so nobody ever sees what was made for another list.

A reply leaves when its TTL is over, or when a Service comes or goes that could have stood earlier in the list: the candidates' keys say
which. All records get the shortest TTL among them, so that a later second's bytes are a join of the pieces between the TTLs. What must not
happen here: clocks, and outcomes that do not depend on upstream alone (`cache` keeps those, and drops them at every change).
"""

from __future__ import annotations

from collections.abc import Iterable

from kproxy.dns import search, upstream
from kproxy.dns.answer import Outcome
from kproxy.dns.clients import UNCACHED, Client
from kproxy.dns.search import Walk
from kproxy.dns.wire import Rcode, Type

ENTRIES, OCTETS = 16384, 8 << 20
TURNS = 8  # orders kept of a reply with several addresses

_Key = tuple[int, bytes]


class _Walked:
    """One reply in its orders, each cut at its TTLs. ttl: seconds, at `since`. weight: octets."""

    __slots__ = ("next", "orders", "saved", "since", "ttl", "wanted", "weight")

    def __init__(self, ttl: int, since: float, saved: int, wanted: int, weight: int) -> None:
        self.orders: list[tuple[bytes, ...]] = []
        self.ttl = ttl
        self.since = since
        self.saved = saved
        self.wanted = wanted
        self.weight = weight
        self.next = 0


class WalkedReplies:
    """Of all views of one worker."""

    def __init__(self, *, entries: int = ENTRIES, octets: int = OCTETS) -> None:
        self._entries = entries
        self._limit = octets
        self._octets = 0
        self._known: dict[_Key, _Walked] = {}
        self._by_service: dict[bytes, set[_Key]] = {}

    def get(self, client: Client, key: bytes, now: float) -> tuple[bytes, int, bool] | None:
        """The reply behind the ID to the query `key` (its bytes behind the ID) of that client, how many queries it saves, and whether there
        is but one order of it.

        None when it has to be made. It is right until the present second is over, counted from `since` of its making.
        """
        known = self._known.get((client.view, key))
        if known is None:
            return None
        left = known.ttl - int(now - known.since)
        if left <= 0:
            self._drop((client.view, key))
            return None
        turns = len(known.orders)
        if turns < known.wanted:
            return None
        if turns > 1:
            known.next = (known.next + 1) % turns
        return left.to_bytes(4, "big").join(known.orders[known.next]), known.saved, turns == 1

    def store(self, client: Client, data: bytes, walk: Walk, outcome: Outcome, now: float) -> None:
        """Remembers the reply to the UDP query `data`, unless equal bytes will hardly come again or may not have an equal reply."""
        query = outcome.query
        if client.view == UNCACHED or query is None or not query.whole or query.name != query.lowered:
            return
        if outcome.rcode not in (Rcode.NOERROR, Rcode.NXDOMAIN) or (query.edns is not None and query.edns.options):
            return
        if outcome.reply[2] & 0x02:  # it was cut: the client comes back over TCP
            return
        cut = upstream.split_at_ttl(outcome.reply, mixed=True)
        if cut is None:
            return
        pieces, ttl = cut
        key = (client.view, data[2:])
        known = self._known.get(key)
        if known is None or known.ttl - int(now - known.since) > ttl or len(known.orders) >= known.wanted:
            self._drop(key)
            if ttl <= 0:
                return
            known = self._admit(key, walk, ttl, now, outcome)
        known.orders.append(pieces)
        known.weight += len(outcome.reply)
        self._octets += len(outcome.reply)

    def _admit(self, key: _Key, walk: Walk, ttl: int, now: float, outcome: Outcome) -> _Walked:
        if len(self._known) >= self._entries or self._octets > self._limit:
            self.clear()
        addresses = (
            search.read_seen(outcome.reply, walk.query.qtype).count if walk.query.qtype in (Type.A, Type.AAAA) else 1
        )
        known = self._known[key] = _Walked(ttl, now, outcome.saved, max(1, min(addresses, TURNS)), len(key[1]))
        self._octets += known.weight
        for service in search.keys_of(walk):
            self._by_service.setdefault(service, set()).add(key)
        return known

    def _drop(self, key: _Key) -> None:
        gone = self._known.pop(key, None)
        if gone is not None:
            self._octets -= gone.weight

    def forget(self, services: Iterable[bytes]) -> None:
        """Throws out what the coming, going or changing of these Services may touch."""
        for service in services:
            for key in self._by_service.pop(service, ()):
                self._drop(key)

    def clear(self) -> None:
        """Throws out everything: other settings, other namespaces, other upstreams."""
        self._known.clear()
        self._by_service.clear()
        self._octets = 0
