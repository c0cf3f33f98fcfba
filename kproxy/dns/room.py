"""Room and time that many share, so that one who wants all of it leaves some to the others. Pure.

In: who wants a place, and who gives one back. Out: whether there is one. What must not happen here: waiting; and memory for anybody who has
no place.

A pod that asks for a thousand names whose servers are silent fills whatever is bounded: first come, first served would give it everything,
and others nothing until a deadline has passed. Here everybody may have up to four times what is still free (dynamic thresholds, Choudhury
and Hahne 1998): alone that is four fifths of the room, with two greedy ones four ninths each, and there is always something left for the
next one who comes. No queue: whoever finds no place is told at once, and asks again or elsewhere.
"""

from __future__ import annotations

from collections.abc import Hashable

GREED = 4


class Room:
    """`room` places; 0: as many as anybody likes."""

    __slots__ = ("_held", "room", "taken")

    def __init__(self, room: int) -> None:
        self.room = room
        self.taken = 0
        self._held: dict[Hashable, int] = {}

    def take(self, who: Hashable) -> bool:
        """A place for `who`, to be given back; or False."""
        own = self._held.get(who, 0)
        free = self.room - self.taken
        if self.room and (free <= 0 or own > GREED * free):
            return False
        self._held[who] = own + 1
        self.taken += 1
        return True

    def give(self, who: Hashable) -> None:
        """Gives one place back."""
        self.taken -= 1
        if self._held[who] == 1:
            del self._held[who]
        else:
            self._held[who] -= 1

    def held_by(self, who: Hashable) -> int:
        """How many places `who` has."""
        return self._held.get(who, 0)


class Pace:
    """So many a second for each, and as many at once. Of `whos` at most; one more, and all begin anew."""

    __slots__ = ("_left", "rate", "whos")

    def __init__(self, rate: float, whos: int = 4096) -> None:
        self.rate = rate
        self.whos = whos
        self._left: dict[Hashable, tuple[float, float]] = {}

    def take(self, who: Hashable, now: float) -> bool:
        """Whether `who` may have one more. now: monotonic seconds."""
        left, then = self._left.get(who, (self.rate, now))
        left = min(self.rate, left + (now - then) * self.rate)
        if len(self._left) >= self.whos and who not in self._left:
            self._left.clear()
        self._left[who] = (left - 1.0 if left >= 1.0 else left, now)
        return left >= 1.0
