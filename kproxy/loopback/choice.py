"""Which endpoint a new connection goes to. Pure: time and chance are arguments.

In: a Listener, the client's address, the moment. Out: endpoints in the order in which to try them: with affinity the one that this client
had before, if it is still there and the time since its last new connection is shorter than the Service's; then the others, shuffled.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence

from kproxy.loopback.listeners import End, Listener

_REMEMBERED = 1024  # client addresses of one listener; nearly everybody is 127.0.0.1 or ::1
Shuffle = Callable[[Sequence[End]], list[End]]


class Choice:
    """The affinity of one listener, and its order of endpoints."""

    def __init__(self, shuffle: Shuffle) -> None:
        self._shuffle = shuffle
        self._had: OrderedDict[str, tuple[End, float]] = OrderedDict()

    def order(self, listener: Listener, client: str, now: float) -> list[End]:
        """The endpoints, the one to try first in front."""
        found = self._shuffle(listener.endpoints)
        had = self._had.get(client)
        if listener.affinity_s and had is not None and now - had[1] < listener.affinity_s and had[0] in found:
            found.remove(had[0])
            found.insert(0, had[0])
        return found

    def took(self, listener: Listener, client: str, endpoint: End, now: float) -> None:
        """The client is connected with `endpoint` now."""
        if not listener.affinity_s:
            return
        self._had[client] = endpoint, now
        self._had.move_to_end(client)
        if len(self._had) > _REMEMBERED:
            self._had.popitem(last=False)
