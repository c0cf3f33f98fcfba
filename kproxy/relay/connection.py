"""One TCP connection that has its endpoint: two sides, whose it is, and what is counted of it.

In: two connected sockets. Out: rows of `Counts`, a word to the chooser when it is over, and a `Flow` for people. What must not happen here:
reading or writing (stream.py). Ten thousand of these are idle on a busy node, so they have slots, hold no text that the kernel can be asked
for (addresses), and no references that only the garbage collector could undo once they are closed.
"""

from __future__ import annotations

from _socket import socket as Socket
from typing import TYPE_CHECKING

from kproxy.relay.counts import BEGAN, OPEN, RECEIVED, SENT, Row
from kproxy.relay.stream import READING, READING_AND_WRITING, Buffers, Side
from kproxy.relay.targets import End, Target

if TYPE_CHECKING:
    from kproxy.relay.tcp import TcpRelay


class Connection:
    """Open from its making until `end` or `abort`."""

    __slots__ = (
        "began", "buffers", "client", "counted", "drain_at", "end_row", "endpoint", "number", "relay", "retries",
        "server", "service_row", "target",
    )  # fmt: skip

    def __init__(
        self, relay: TcpRelay, target: Target, endpoint: End, client: tuple[Socket, int], server: tuple[Socket, int]
    ) -> None:
        """client, server: the sockets and their descriptors."""
        self.relay, self.target, self.endpoint = relay, target, endpoint
        self.buffers: Buffers = relay.buffers
        self.number = 0
        self.began = 0.0  # on the monotonic clock, when it was accepted
        self.retries = 0
        self.drain_at = 0.0  # 0: not; else when it is reset
        self.counted = (0, 0)  # octets sent and received that the rows have already
        self.client = Side(self, *client)
        self.server = Side(self, *server)
        self.client.other, self.server.other = self.server, self.client
        self.service_row: Row = relay.counts.service(target.name)
        self.end_row: Row = relay.counts.endpoint(target.name, endpoint)
        for row in (self.service_row, self.end_row):
            row[BEGAN] += 1
            row[OPEN] += 1

    @property
    def open(self) -> bool:
        """Not ended, not aborted."""
        return self.client.other is not None

    def start(self) -> None:
        """Lets octets flow. Clients have mostly spoken by now: asking saves a turn of the poller."""
        client, server, poller = self.client, self.server, self.relay.poller
        poller.put(server.fd, READING, server.ready)
        poller.put(client.fd, READING, client.ready)

    def wait_for_room(self, side: Side) -> None:
        """Epoll tells from now on as well when `side` can be written to again."""
        self.relay.poller.put(side.fd, READING_AND_WRITING, side.ready)

    def soon(self, side: Side) -> None:
        """`side` is read in the next turn, whether or not epoll has something to tell."""
        self.relay.poller.again(side.again)

    def bury(self, side: Side) -> None:
        """The socket of this side is closed when this turn is over."""
        self.relay.poller.bury(side.fd, side.sock)

    def count(self) -> None:
        """Brings the rows up to now."""
        sent, received = self.client.octets, self.server.octets
        before = self.counted
        if (sent, received) != before:
            self.counted = sent, received
            for row in (self.service_row, self.end_row):
                row[SENT] += sent - before[0]
                row[RECEIVED] += received - before[1]

    def end(self) -> None:
        """Both directions have ended in order."""
        self._close(reset=False)

    def abort(self) -> None:
        """One side was reset, or somebody has decided that it is enough: both are."""
        self._close(reset=True)

    def _close(self, *, reset: bool) -> None:
        if not self.open:
            return
        self.count()
        self.service_row[OPEN] -= 1
        self.end_row[OPEN] -= 1
        self.client.close(reset=reset)
        self.server.close(reset=reset)
        self.relay.closed(self)
