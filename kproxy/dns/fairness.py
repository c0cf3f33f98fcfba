"""Who takes more than their share of an overloaded socket, and how much of it they get all the same.

In: source addresses of packets, as they are read while there are more than can be answered. Out: whether a source is *heavy*: it sends
more than twice of what the others send on the average. What must not happen here: clocks, any cost while there is no overload (nobody calls
this then), or a memory of addresses that grows.

Queries of a heavy source wait behind all others (overload.py), in a line of bounded length; beyond it they are dropped. Of those dropped
every SLIP-th is answered with nothing but TC instead, so that a client which means it well comes by TCP, where a connection's pace is the
server's (what response rate limiting calls slip). An only source is heavy as well: waiting behind nobody costs it nothing, and the next one
to come does not have to wait until it is known who is who.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

WINDOW = 1024  # packets after which shares are looked at again: 5 to 30 ms of overload
SOURCES = 4096  # told apart within a window: a forger's addresses must not cost memory
LEAST = 64  # packets in a window below which nobody is heavy, whatever the share
SLIP = 8


class Shares:
    """Of one socket."""

    def __init__(self) -> None:
        self.heavy: frozenset[str] = frozenset()
        self.alone = (
            False  # one source was all there was to see: none of its queries has to be dropped for the sake of others
        )
        self.sieved: frozenset[str] = frozenset()  # of whose packets the kernel lets only a part through
        self.share = 1.0  # which part
        self.dropped: Counter[str] = Counter()  # by source, since `take` was called last
        self._counts: Counter[str] = Counter()
        self._seen = 0

    def arrived(self, sources: Sequence[str]) -> None:
        """Counts packets, a batch at a time, so that `heavy` and `alone` hold for them and those after them."""
        counts = self._counts
        self._seen += len(sources)
        if len(counts) + len(sources) > SOURCES:  # a forger's addresses; who is counted already goes on being counted
            sources = [source for source in sources if source in counts]
        counts.update(sources)
        if self._seen >= WINDOW:
            self._judge()

    def _judge(self) -> None:
        # What was sent, not what passed: else a flood that is held back would make its neighbour the one that sends most.
        counts = {s: n / self.share if s in self.sieved else n for s, n in self._counts.items()}
        seen, others = self._seen - self._counts.total() + sum(counts.values()), max(1, len(counts) - 1)
        heavy = {s for s, n in counts.items() if n > LEAST and n * others > 2 * (seen - n)}
        # Who was heavy stays so while half of that is still too much: no hopping in and out at the border.
        still = {
            s for s in self.heavy & counts.keys() if counts[s] > LEAST // 2 and counts[s] * others > seen - counts[s]
        }
        self.alone = len(counts) == 1
        self.heavy = frozenset(heavy | still)
        self._counts.clear()
        self._seen = 0

    def drop(self, source: str) -> bool:
        """Counts a query that is not answered; whether it should have a TC instead of silence."""
        if len(self.dropped) < SOURCES or source in self.dropped:
            self.dropped[source] += 1
        return self.dropped[source] % SLIP == 1

    def take(self) -> dict[str, int]:
        """Queries dropped since the last time, by source."""
        found = dict(self.dropped)
        self.dropped.clear()
        return found

    def calm(self) -> None:
        """The overload is over."""
        self.heavy, self.alone = frozenset(), False
        self._counts.clear()
        self._seen = 0
