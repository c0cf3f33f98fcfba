"""Finished replies by the raw bytes of their queries: what makes a hot answer one dictionary look-up.

In: a query's bytes behind the ID (flags, counts, question, the OPT record as sent) and the reply made for them. Out: the reply's bytes
behind the ID. Equal bytes are an equal query, so nothing of it need be parsed again, and spelling, RD, CD, EDNS size and DO are right by
construction. What must not happen here: forwarded answers (they age; `forward` keeps its own), or replies that may differ for equal bytes.

The zone is authoritative and never stale, so a change must throw out what it touches before the next query: positive replies made from one
Service go with that Service, everything else (NXDOMAIN, NODATA, the SOA's serial, PTR, NS, chains) goes at every change.

Bounded twice: entries and octets. A full half is emptied as a whole, which costs each name one slow answer; evicting one by one would cost
every flood a search.
"""

from __future__ import annotations

from collections.abc import Iterable

from kproxy.dns.answer import Outcome
from kproxy.dns.wire import Rcode

_LASTING = frozenset({Rcode.NOERROR, Rcode.NXDOMAIN})


class AnswerCache:
    """The two halves: `lasting` by Service, `fleeting` for all else. The server reads both dictionaries directly.

    entries, octets: bounds of each half.
    """

    def __init__(self, *, entries: int = 32768, octets: int = 8 << 20) -> None:
        self.entries = entries
        self.octets = octets
        self.lasting: dict[bytes, bytes] = {}
        self.fleeting: dict[bytes, bytes] = {}
        self._by_owner: dict[bytes, list[bytes]] = {}
        self._lasting_octets = 0
        self._fleeting_octets = 0

    def store(self, data: bytes, outcome: Outcome) -> None:
        """Remembers the reply to the UDP query `data`, unless equal bytes will hardly come again.

        Left out: mixed case (0x20 clients choose it anew each time), EDNS options (cookies), refusals and SERVFAIL.
        """
        query = outcome.query
        if query is None or not query.whole or outcome.rcode not in _LASTING or query.name != query.lowered:
            return
        if query.edns is not None and query.edns.options:
            return
        key, value = data[2:], outcome.reply[2:]
        size = len(key) + len(value)
        if outcome.owner:
            if len(self.lasting) >= self.entries or self._lasting_octets + size > self.octets:
                self._empty_lasting()
            self.lasting[key] = value
            self._lasting_octets += size
            self._by_owner.setdefault(outcome.owner, []).append(key)
        else:
            if len(self.fleeting) >= self.entries or self._fleeting_octets + size > self.octets:
                self._empty_fleeting()
            self.fleeting[key] = value
            self._fleeting_octets += size

    def forget(self, owners: Iterable[bytes]) -> None:
        """Throws out what a change of these Services touches: their own replies and everything fleeting."""
        self._empty_fleeting()
        for owner in owners:
            for key in self._by_owner.pop(owner, ()):
                value = self.lasting.pop(key, None)
                if value is not None:
                    self._lasting_octets -= len(key) + len(value)

    def clear(self) -> None:
        """Throws out everything: another zone, other settings, other namespaces."""
        self._empty_fleeting()
        self._empty_lasting()

    def _empty_lasting(self) -> None:
        self.lasting.clear()
        self._by_owner.clear()
        self._lasting_octets = 0

    def _empty_fleeting(self) -> None:
        self.fleeting.clear()
        self._fleeting_octets = 0
