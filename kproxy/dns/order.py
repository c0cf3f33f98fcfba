"""Addresses in order, of which the next version costs what changed: which of them lie between two others.

In: all addresses once, packed; then those that came and went. Out: those within a range. That is how an empty non-terminal of a reverse
tree is recognised, and what a transfer of a reverse zone sends. A version holds the sorted addresses of the last whole set, and beside them
what has come and gone since; when that is some thousands, all is sorted anew. What must not happen here: names, zones.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from dataclasses import dataclass

# What has come and gone is copied with each change (0.1 ms when there is so much of it) and looked through for each question; sorting
# 40,000 addresses anew takes 20 ms. At a thousand endpoint changes a second, 256 of them meant a third of a worker's time in sorting.
_FEW = 4096

Sorted = tuple[bytes, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Order:
    """four, six: the addresses of the last whole set by family. came, went: since then; `came` may hold some of it again."""

    four: Sorted = ()
    six: Sorted = ()
    came: frozenset[bytes] = frozenset()
    went: frozenset[bytes] = frozenset()

    @staticmethod
    def of(addresses: Iterable[bytes]) -> Order:
        """Of a whole set."""
        ordered = sorted(addresses)
        return Order(
            tuple([address for address in ordered if len(address) == 4]),
            tuple([address for address in ordered if len(address) == 16]),
        )

    def after(self, lost: Iterable[bytes], gained: Iterable[bytes]) -> Order:
        """The next version. lost: addresses that are there; gained: addresses that are not."""
        gone, new = frozenset(lost), frozenset(gained)
        if not gone and not new:
            return self
        # What is lost and stands in the whole set has to be left out of it, whether or not it came again in between.
        changed = Order(self.four, self.six, (self.came - gone) | new, (self.went | gone) - new)
        return changed if len(changed.came) + len(changed.went) <= _FEW else Order.of(changed.every())

    def every(self) -> set[bytes]:
        """All of them, in no order."""
        return {*self.four, *self.six}.difference(self.went).union(self.came)

    def holds(self, low: bytes, high: bytes) -> bool:
        """Whether some address lies between two of one family, both included."""
        if any(low <= address <= high for address in self.came if len(address) == len(low)):
            return True
        ordered = self.four if len(low) == 4 else self.six
        at = bisect_left(ordered, low)
        while at < len(ordered) and ordered[at] <= high:
            if ordered[at] not in self.went:
                return True
            at += 1
        return False

    def between(self, low: bytes, high: bytes) -> list[bytes]:
        """All addresses between two of one family, both included, in order."""
        ordered = self.four if len(low) == 4 else self.six
        found = {address for address in self.came if len(address) == len(low) and low <= address <= high}
        found.update(ordered[bisect_left(ordered, low) : bisect_right(ordered, high)])
        return sorted(found - self.went)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Order) and self.every() == other.every()

    __hash__ = None  # type: ignore[assignment]
