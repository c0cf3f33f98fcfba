"""Which endpoints are left out for a while because connections to them failed. Pure: the moment is an argument, in seconds of one clock.

`FAILURES` failures in a row put an endpoint out, for 1 s the first time and twice as long each time after, up to `LONGEST_S`. When that
time is over, one connection is sent there (a probe); while its outcome is not known nobody else is, for `PROBE_S` at most. It works: the
endpoint is back. It fails: out again. How often it was out is forgotten `FORGET_S` after it came back for good.

That a Service never loses all its endpoints this way is seen to by who asks: `chooser` ignores ejections where there is nothing else.
Whether an endpoint is out is this worker's own experience: a network that is broken for one is not for all.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from kproxy.relay.targets import End

FAILURES = 3
FIRST_S, LONGEST_S = 1.0, 60.0
PROBE_S = 10.0
FORGET_S = 60.0
UNTRIED_S = 600.0  # an endpoint that nobody has tried for so long is out no more
_MOST = 20_000  # endpoints with a record; above that the others have none, and are not ejected


@dataclass(slots=True)
class _Record:
    in_row: int = 0  # failures since it last worked
    ejected: int = 0  # how often it was put out
    until: float = 0.0  # when out: until then nobody is sent there
    probed: float = float("-inf")  # when the last probe was sent
    changed: float = 0.0


class Ejections:
    """The endpoints of one protocol that fail.

    out: those that are ejected now. Look into it before anything is called: it is empty on a good day.
    """

    def __init__(self) -> None:
        self.out: dict[End, _Record] = {}
        self.count = 0  # ejections since the start
        self.failing: dict[
            End, _Record
        ] = {}  # all that are remembered; `out` is a part of it. Empty: `worked` would do nothing

    def failed(self, end: End, now: float) -> bool:
        """A connection to it failed; whether it is ejected by that."""
        record = self.failing.get(end)
        if record is None:
            if len(self.failing) >= _MOST:
                return False
            record = self.failing[end] = _Record()
        record.in_row += 1
        record.changed = now
        if end in self.out:
            if now < record.until:  # tried because there was nobody else
                return False
        elif record.in_row < FAILURES:
            return False
        record.until = now + min(LONGEST_S, FIRST_S * 2.0 ** min(record.ejected, 30))
        record.ejected += 1
        record.probed = float("-inf")
        self.out[end] = record
        self.count += 1
        return True

    def worked(self, end: End, now: float) -> bool:
        """A connection to it works; whether it is back by that."""
        record = self.failing.get(end)
        if record is None:
            return False
        record.in_row = 0
        back = self.out.pop(end, None) is not None
        if back:
            record.changed = now
        elif now - record.changed > FORGET_S:
            del self.failing[end]
        return back

    def due(self, end: End, now: float) -> bool:
        """Whether the next connection should be its probe. `end` is in `out`."""
        record = self.out[end]
        return now >= record.until and now - record.probed >= PROBE_S

    def probe(self, end: End, now: float) -> None:
        """A connection is on its way there to see. `end` is in `out`."""
        self.out[end].probed = now

    def until(self, end: End) -> float:
        """The moment from which on it is probed. `end` is in `out`."""
        return self.out[end].until

    def times(self, end: End) -> int:
        """How often it was put out of late. `end` is in `out`."""
        return self.out[end].ejected

    def sweep(self, known: Collection[End] | None, now: float) -> None:
        """Forgets endpoints that are not in `known` (None: all are), and those that have been well or untried for long."""
        for end, record in [*self.failing.items()]:
            over = now - record.changed > (FORGET_S if end not in self.out else UNTRIED_S)
            if over or (known is not None and end not in known):
                del self.failing[end]
                self.out.pop(end, None)
