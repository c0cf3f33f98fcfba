"""Those who are not served, and those who send too much: what they get, and who is told of them.

In: queries of strangers, numbers of dropped queries. Out: refusals, never longer than the query and never many (a forged address must not
become a weapon); one line in the log for each address, bounded; and notices for the controller. What must not happen here: waiting, or
memory that grows with addresses.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping
from time import monotonic

from kproxy.dns import wire
from kproxy.dns.wire import Query, Rcode
from kproxy.telemetry.logs import fields

log = logging.getLogger("kproxy.dns.clients")

REFUSALS_PER_S = 100  # of a worker, for all strangers together; beyond it silence
TOLD = 100  # addresses that the log has named
AGAIN_S = 60.0  # before one that sends too much is named again


class Strangers:
    """Of one worker. notice: told of a source that sends too much, and how many of its queries were not answered."""

    def __init__(self, counters: Counter[str]) -> None:
        self.notice: Callable[[str, int], None] = lambda source, dropped: None
        self.name: Callable[[str], str] = lambda source: ""
        self._counters = counters
        self._told: set[str] = set()
        self._left = float(REFUSALS_PER_S)
        self._since = monotonic()
        self._limited: Counter[str] = Counter()
        self._limited_told: dict[str, float] = {}

    def refusal(self, data: bytes, address: str) -> bytes | None:
        """REFUSED for somebody who is not served, or None for silence. At most as long as the query."""
        self._counters["refused_clients"] += 1
        if address not in self._told and len(self._told) < TOLD:
            self._told.add(address)
            log.warning(
                "A query from outside of the allowed networks is refused (dns.allowedNetworks says who is served)",
                extra=fields(client=address),
            )
        now = monotonic()
        self._left = min(float(REFUSALS_PER_S), self._left + (now - self._since) * REFUSALS_PER_S)
        self._since = now
        if self._left < 1:
            return None
        query = wire.parse_query(data)
        if not isinstance(query, Query):
            return None
        reply = wire.build(query, rcode=Rcode.REFUSED, authoritative=False)
        if len(reply) > len(data):
            return None
        self._left -= 1
        return reply

    def limited(self, dropped: Mapping[str, int]) -> None:
        """These queries, by source, were not answered because their sources sent more than their share."""
        now = monotonic()
        for source, count in dropped.items():
            self._limited[source] += count
            told = self._limited_told.get(source)
            if told is not None and now - told < AGAIN_S:
                continue
            if len(self._limited_told) >= TOLD:
                self._limited_told.clear()
                self._limited.clear()
            self._limited_told[source] = now
            total = self._limited.pop(source, count)
            log.warning(
                "A client sends more queries than its share while there are too many: others go first",
                extra=fields(client=source, pod=self.name(source), dropped=total),
            )
            self.notice(source, total)
