"""`errors`: which failures are told one by one, and which are counted and told as one.

In: messages with the time at which they came. Out: lines with their level. What must not happen here: writing them, or looking at a clock.

As CoreDNS does it: the first `consolidate` whose pattern fits takes a message. Its period begins with the first message and ends with one
line about how many there were; with `show_first` the first one is told at once, and alone nothing more is said about it.
"""

from __future__ import annotations

from dataclasses import dataclass

from kproxy.dns.blocks import Consolidate, Errors
from kproxy.dns.patterns import Pattern


@dataclass(frozen=True, slots=True)
class Line:
    """level: warning, error, info or debug."""

    level: str
    text: str


class _Counting:
    def __init__(self, directive: Consolidate) -> None:
        self.directive = directive
        self.pattern = Pattern(directive.pattern)
        self.count = 0
        self.until = 0.0


class Consolidation:
    """The failures of one block."""

    def __init__(self, directive: Errors) -> None:
        """Raises ValueError for a pattern that cannot be compiled."""
        self._counting = [_Counting(one) for one in directive.consolidate]

    def take(self, text: str, now: float) -> Line | None:
        """A message that came at `now` (seconds of any clock): the line to write at once, if any."""
        for counting in self._counting:
            if counting.pattern.find(text) is not None:
                counting.count += 1
                if counting.count == 1:
                    counting.until = now + counting.directive.period_s
                    if counting.directive.show_first:
                        return Line(counting.directive.level, text)
                return None
        return Line("error", text)

    def next_at(self) -> float | None:
        """When `due` has something to say next; None: nothing is being counted."""
        return min((counting.until for counting in self._counting if counting.count), default=None)

    def due(self, now: float) -> list[Line]:
        """The lines about what was counted in periods that have ended."""
        lines = []
        for counting in self._counting:
            if counting.count and now >= counting.until:
                directive = counting.directive
                if counting.count > 1 or not directive.show_first:
                    text = f"{counting.count} errors like '{directive.pattern}' occurred in last {_span(directive.period_s)}"
                    lines.append(Line(directive.level, text))
                counting.count = 0
        return lines


def _span(seconds: float) -> str:
    """As Go prints a duration."""
    if seconds < 1:
        return f"{seconds * 1000:g}ms"
    whole, rest = divmod(seconds, 60)
    hours, minutes = divmod(int(whole), 60)
    return (f"{hours}h" if hours else "") + (f"{minutes}m" if hours or minutes else "") + f"{rest:g}s"
