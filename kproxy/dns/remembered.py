"""What the hot loop (datagrams.py) looks into: the replies remembered for one port, and what all sockets of a worker share.

In: caches that replying.py fills and server.py empties. What must not happen here: a look-up of its own for each kind; the loop reads the
dictionaries themselves, which are therefore never replaced, only emptied.
"""

from __future__ import annotations

from collections import Counter

from kproxy.dns.batches import Batch
from kproxy.dns.cache import AnswerCache, Entry
from kproxy.dns.cache_forward import AgingReplies
from kproxy.dns.clients import Client, Clients
from kproxy.dns.denial import Denials


class Caches:
    """What is remembered for one port: for everybody, for clients of one view, and for this second alone (replies that age).

    quick: of each kind the way to it, in the order of how many come and of what a look costs.
    """

    def __init__(self) -> None:
        self.common = AnswerCache()
        self.personal = AnswerCache()
        self.dated = AnswerCache(entries=8192, octets=4 << 20)
        self.aging = AgingReplies()  # what the dated ones of the next second are made from
        self.denials = Denials()
        self.second_over = 0  # nanoseconds of CLOCK_MONOTONIC: until then what is `dated` is right
        common, dated = self.common, self.dated
        self.quick = (common.lasting.get, common.fleeting.get, dated.fleeting.get, common.rounds, self._seldom)

    def find(self, key: bytes, client: Client) -> Entry | None:
        """What is remembered for a client. key: the query's bytes behind the ID."""
        own = (client.view, key)
        return self.common.get(key) or self._seldom(key, client, own)

    def _seldom(self, key: bytes, client: Client, own: tuple[int, bytes]) -> Entry | None:
        """What is left: names that are denied whatever they are, and what is remembered for some clients alone."""
        found = self.denials.find(key, client) or self.personal.get(own) or self.dated.get(own)
        return found or self.dated.get((client.address, key))


class Hot:
    """What all sockets of a worker share and read anew for every batch."""

    def __init__(self, counters: Counter[str]) -> None:
        self.counters = counters
        self.clients = Clients()
        self.quick_s = 0.0  # time that batches took
        self.slow_s = 0.0  # of it, in `slowly`
        self._batches: dict[int, Batch] = {}

    def batch(self, family: int) -> Batch:
        """The room for packets of IPv4 (0) or IPv6 (1)."""
        if family not in self._batches:
            self._batches[family] = Batch(six=bool(family))
        return self._batches[family]
