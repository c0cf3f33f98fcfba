"""Finished replies by the raw bytes of their queries: what makes a hot answer one dictionary look-up.

In: a query's bytes behind the ID (flags, counts, question, the OPT record as sent) and the reply made for them. Out: the reply's bytes
behind the ID, with the list in which its uses are counted. Equal bytes are an equal query, so nothing of it need be parsed again, and
spelling, RD, CD, EDNS size and DO are right by construction. What must not happen here: replies that may differ for equal keys; where
they depend on who asks the key says for whom, and replies that age are in a cache of their own that is emptied every second.

The zone is authoritative and never stale, so a change must throw out what it touches before the next query: positive replies made from one
Service go with that Service, everything else (NXDOMAIN, NODATA, the SOA's serial, PTR, NS, chains) goes at every change.

Replies with several addresses are kept in as many orders (up to TURNS), made one per query and then gone round: clients that take the first
address, which are most, spread over all endpoints of a headless Service (CoreDNS's `loadbalance`).

Bounded twice: entries and octets. A full half is emptied as a whole, which costs each name one slow answer; evicting one by one would cost
every flood a search.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable

from kproxy.dns.answer import Outcome
from kproxy.dns.wire import Rcode

TURNS = 32

Entry = tuple[bytes, list[int]]  # a reply without its ID; how often it was used over IPv4 and over IPv6
NOT_COUNTED = [0, 0]

_LASTING = frozenset({Rcode.NOERROR, Rcode.NXDOMAIN})


class _Round:
    """The orders of one reply: those made so far, how many there will be, of how many addresses, and which is next."""

    __slots__ = ("addresses", "next", "orders", "wanted")

    def __init__(self, addresses: int) -> None:
        self.orders: list[Entry] = []
        self.wanted = min(addresses, TURNS)
        self.addresses = addresses
        self.next = 0


class AnswerCache:
    """The two halves: `lasting` by Service, `fleeting` for all else; and `rounds` of orders. The hot loop reads all three directly.

    entries, octets: bounds of each half. emptied: how often `lasting` was thrown out as a whole.
    """

    def __init__(self, *, entries: int = 32768, octets: int = 8 << 20) -> None:
        self.entries = entries
        self.emptied = 0
        self.octets = octets
        self.lasting: dict[Hashable, Entry] = {}
        self.fleeting: dict[Hashable, Entry] = {}
        self.rounds: dict[Hashable, _Round] = {}
        self._by_owner: dict[bytes, list[Hashable]] = {}
        self._lasting_octets = 0
        self._fleeting_octets = 0

    def get(self, key: Hashable) -> Entry | None:
        """What is remembered under `key`; of several orders the next one."""
        return self.lasting.get(key) or self.fleeting.get(key) or self.next_order(key)

    def next_order(self, key: Hashable) -> Entry | None:
        """The next order of a reply with several addresses; None until all of its orders are made."""
        known = self.rounds.get(key)
        if known is None or len(known.orders) < known.wanted:
            return None
        known.next = (known.next + 1) % known.wanted
        return known.orders[known.next]

    def orders_of(self, key: Hashable, most: int) -> list[Entry]:
        """Up to so many of the orders of a reply with several addresses, evenly spread; none until all of them are made."""
        known = self.rounds.get(key)
        if known is None or len(known.orders) < known.wanted:
            return []
        count = min(most, known.wanted)
        return [known.orders[number * known.wanted // count] for number in range(count)]

    def turn_to_make(self, key: Hashable) -> int:
        """The address that the next order to be made begins with; evenly spread where there are more addresses than orders."""
        known = self.rounds.get(key)
        return 0 if known is None else len(known.orders) * known.addresses // known.wanted

    def store(
        self, data: bytes, outcome: Outcome, counts: list[int] = NOT_COUNTED, *, key: Hashable | None = None
    ) -> None:
        """Remembers the reply to the UDP query `data`, unless equal bytes will hardly come again.

        Left out: mixed case (0x20 clients choose it anew each time), EDNS options (cookies), refusals and SERVFAIL. key: where the bytes
        alone do not make the reply.
        """
        if not comes_again(outcome):
            return
        found = data[2:] if key is None else key
        self._keep(found, outcome, (outcome.reply[2:], counts))

    def keep(self, key: Hashable, entry: Entry) -> None:
        """Remembers a reply that is no single Service's, in the only order it has."""
        size = _octets(entry)
        if len(self.fleeting) >= self.entries or self._fleeting_octets + size > self.octets:
            self._empty_fleeting()
        self.fleeting[key] = entry
        self._fleeting_octets += size

    def _keep(self, key: Hashable, outcome: Outcome, entry: Entry) -> None:
        if not outcome.owner and outcome.turns == 1:
            self.keep(key, entry)
            return
        size = _octets(entry)
        if len(self.lasting) + len(self.rounds) >= self.entries or self._lasting_octets + size > self.octets:
            self._empty_lasting()
        self._lasting_octets += size
        if outcome.turns > 1:
            orders = self.rounds.setdefault(key, _Round(outcome.turns)).orders
            orders.append(entry)
            if len(orders) > 1:
                return
        else:
            self.lasting[key] = entry
        self._by_owner.setdefault(outcome.owner, []).append(key)

    def forget(self, owners: Iterable[bytes]) -> list[Hashable]:
        """Throws out what a change of these Services touches: everything fleeting, and their own replies, whose keys are returned."""
        self._empty_fleeting()
        thrown: list[Hashable] = []
        for owner in (*owners, b""):
            for key in self._by_owner.pop(owner, ()):
                if key in self.rounds:
                    gone = self.rounds.pop(key).orders
                else:
                    gone = [self.lasting.pop(key)]
                thrown.append(key)
                self._lasting_octets -= sum(map(_octets, gone))
        return thrown

    def clear(self) -> None:
        """Throws out everything: another zone, other settings, other namespaces."""
        self._empty_fleeting()
        self._empty_lasting()

    def _empty_lasting(self) -> None:
        self.emptied += 1
        self.lasting.clear()
        self.rounds.clear()
        self._by_owner.clear()
        self._lasting_octets = 0

    def _empty_fleeting(self) -> None:
        self.fleeting.clear()
        self._fleeting_octets = 0


def comes_again(outcome: Outcome) -> bool:
    """Whether the reply is of a lasting kind and its query's bytes are likely to come again."""
    query = outcome.query
    if query is None or not query.whole or outcome.rcode not in _LASTING or query.name != query.lowered:
        return False
    return query.edns is None or not query.edns.options


def _octets(entry: Entry) -> int:
    """Of key and reply at most: what is repeated of the query in a reply is as long as what is kept of it as a key."""
    return 2 * len(entry[0])
