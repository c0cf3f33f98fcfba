"""The TCP relay of one worker: accepts, looks the destination up, has an endpoint connected, and lets the bytes flow.

In: listening sockets, transparent ones, whose accepted sockets have the address that the client asked for as their own; a Table; a Chooser.
Out: bytes, counters, and what is open for people. What must not happen here: a choice (chooser), waiting, work without a bound.
"""

from __future__ import annotations

import socket
from collections.abc import Callable

from kproxy.relay.counts import Counts
from kproxy.relay.limits import Limits
from kproxy.relay.poller import Poller
from kproxy.relay.targets import Flow, Table


class TcpRelay:
    """All TCP connections of one worker."""

    def __init__(
        self, poller: Poller, chooser: object, counts: Counts, limits: Limits, now: Callable[[], float]
    ) -> None:
        """now: monotonic seconds."""
        self.open = 0  # connections, those that have no endpoint yet included
        self._poller, self._chooser, self._counts, self._limits, self._now = poller, chooser, counts, limits, now

    def listen(self, sock: socket.socket, family: str, entry: str) -> None:
        """Accepts from `sock`, which listens and does not block, until `close_listeners`. family: IPv4, IPv6; entry: INSIDE, OUTSIDE."""

    def use(self, table: Table) -> None:
        """The destinations from now on. Connections to endpoints that are gone begin to drain."""

    def flows(self, limit: int) -> list[Flow]:
        """What is open, the oldest first, at most `limit`."""
        return []

    def close_listeners(self) -> None:
        """Accepts no more; connections go on."""

    def sweep(self, now: float) -> None:
        """To be called about once a second: what is not worth doing at once. Bounded."""

    def close(self) -> None:
        """Resets every connection."""
