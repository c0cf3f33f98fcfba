"""One TCP connection that has its endpoint: two sides, whose it is, and what is counted of it.

In: two connected sockets. Out: rows of `Counts`, a word to the chooser when it is over, and a `Flow` for people. What must not happen here:
reading or writing (stream.py). Ten thousand of these are idle on a busy node, so they have slots, hold no text that the kernel can be asked
for (addresses), and no references that only the garbage collector could undo once they are closed.
"""

from __future__ import annotations

import socket
from _socket import socket as Socket
from collections.abc import Callable
from typing import TYPE_CHECKING

from kproxy.relay.counts import BEGAN, OPEN, RECEIVED, RETRIES, SENT
from kproxy.relay.stream import READING, READING_AND_WRITING, Side
from kproxy.relay.targets import End, Flow, Target

if TYPE_CHECKING:
    from kproxy.relay.kernel_repeats import Watched
    from kproxy.relay.kernel_streams import Handed
    from kproxy.relay.tcp import TcpRelay

# Who is silent for a minute is asked every 15 s; after five of those without an answer the connection is gone.
_KEEP_ALIVE = (
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 60),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 15),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 5),
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
)


class Connection:
    """Open from its making until `end` or `abort`."""

    __slots__ = (
        "began", "buffers", "client", "drain_at", "end_row", "endpoint", "entry", "handed", "number", "received", "relay", "retries",
        "sent", "server", "service_row", "target",
    )  # fmt: skip

    def __init__(
        self,
        relay: TcpRelay,
        target: Target,
        entry: str,
        client: tuple[Socket, int],
        endpoint: End,
        server: tuple[Socket, int],
        number: int,
        began: float,
        retries: int,
    ) -> None:
        """client, server: sockets and their descriptors; server is connected to the endpoint. began: monotonic."""
        self.relay, self.target, self.endpoint, self.entry = relay, target, endpoint, entry
        self.number, self.began, self.retries = number, began, retries
        buffers = self.buffers = relay.buffers
        self.drain_at = 0.0  # 0: not; else when it is reset
        self.handed: Handed | Watched | None = None  # what the kernel knows of it (kernel_streams.py)
        self.sent = self.received = 0  # octets that the rows have already
        near = self.client = Side(self, buffers, *client)
        far = self.server = Side(self, buffers, *server)
        near.other, far.other = far, near
        counts, name = relay.counts, target.name
        total = self.service_row = counts.services.get(name) or counts.service(name)
        of_end = self.end_row = counts.endpoints.get((name, endpoint)) or counts.endpoint(name, endpoint)
        total[BEGAN] += 1
        total[OPEN] += 1
        of_end[BEGAN] += 1
        of_end[OPEN] += 1
        if retries:
            total[RETRIES] += retries

    @property
    def open(self) -> bool:
        """Not ended, not aborted."""
        return self.client.other is not None

    def start(self) -> None:
        """Lets octets flow. (To read the client at once, without epoll's word, was slower by 5 %: often it has not spoken yet.)"""
        client, server, poller = self.client, self.server, self.relay.poller
        try:
            poller.put(server.fd, READING, server.ready)  # an attempt has perhaps been watched
            poller.put(client.fd, READING, client.ready)
        except OSError:  # fs.epoll.max_user_watches, or no memory
            self.relay.counts.shed += 1
            self.abort()

    def wait_for_room(self, side: Side) -> None:
        """Epoll tells from now on as well when `side` can be written to again."""
        self.relay.poller.put(side.fd, READING_AND_WRITING, side.ready)

    def soon(self, side: Side) -> None:
        """`side` is read in the next turn, whether or not epoll has something to tell."""
        self.relay.poller.again(side.again)

    def keep_alive(self) -> None:
        """Has the kernel look whether both peers are still there. Not worth its eight system calls before some seconds have passed."""
        if self.handed is not None and self.handed.forwards:  # its sockets hear nothing
            return
        for side in (self.client, self.server):
            try:
                for option in _KEEP_ALIVE:
                    side.sock.setsockopt(*option)
            except OSError:  # reset meanwhile
                return

    def count(self) -> bool:
        """Brings the rows up to now; whether anything has passed."""
        sent, received = self.client.octets, self.server.octets
        if sent == self.sent and received == self.received:
            return False
        for row in (self.service_row, self.end_row):
            row[SENT] += sent - self.sent
            row[RECEIVED] += received - self.received
        self.sent, self.received = sent, received
        return True

    def flow(self, worker: int, wall: float) -> Flow:
        """For people. wall: the moment when the monotonic clock was 0, in seconds since the epoch."""
        client, server = self.client, self.server
        ended = client.ended or server.ended or self.relay.seen_ended(self)
        state = "draining" if self.drain_at else "half-closed" if ended else "open"
        return Flow(
            worker=worker,
            number=self.number,
            protocol="TCP",
            client=_asked_of_kernel(client.sock.getpeername),
            virtual=_asked_of_kernel(client.sock.getsockname),
            service=self.target.name,
            endpoint=address_text(self.endpoint),
            source=_asked_of_kernel(server.sock.getsockname),
            began=wall + self.began,
            sent=client.octets,
            received=server.octets,
            retries=self.retries,
            state=state,
            in_kernel=self.handed is not None and self.handed.forwards,
        )

    def end(self) -> None:
        """Both directions have ended in order."""
        self._close(reset=False)

    def abort(self) -> None:
        """One side was reset, or somebody has decided that it is enough: both are."""
        self._close(reset=True)

    def _close(self, *, reset: bool) -> None:
        client, server = self.client, self.server
        if client.other is None:
            return
        if self.handed is not None:
            self.relay.take_back(self, self.handed)
        self.count()
        self.service_row[OPEN] -= 1
        self.end_row[OPEN] -= 1
        client.close(reset=reset)
        server.close(reset=reset)
        poller = self.relay.poller
        poller.bury(client.fd, client.sock)
        poller.bury(server.fd, server.sock)
        self.relay.closed(self)


def address_text(end: End) -> str:
    """`ip:port`, IPv6 as `[ip]:port`."""
    return f"[{end[0]}]:{end[1]}" if ":" in end[0] else f"{end[0]}:{end[1]}"


def _asked_of_kernel(name: Callable[[], tuple[str, int]]) -> str:
    try:
        return address_text(name())
    except OSError:  # getpeername of who was reset a moment ago
        return ""
