"""The TCP relay of one worker: accepts, looks the destination up, has an endpoint connected, and lets the octets flow.

In: listening sockets, transparent ones, whose accepted sockets have the address that the client asked for as their own; a Table; a Chooser.
Out: octets, counters, and what is open for people. What must not happen here: a choice (chooser), waiting, work without a bound.
"""

from __future__ import annotations

import errno
import os
import socket
from _socket import socket as Socket
from collections import deque
from collections.abc import Callable, Iterator
from select import EPOLLIN
from typing import Protocol

from kproxy.relay.connecting import Connecting
from kproxy.relay.connection import Connection
from kproxy.relay.counts import Counts
from kproxy.relay.limits import Limits
from kproxy.relay.poller import Poller
from kproxy.relay.stream import Buffers, abort
from kproxy.relay.targets import End, Flow, Table, Target

_BATCH = 64  # connections that one listener may bring in one turn
_FULL = (errno.EMFILE, errno.ENFILE)


class Choice(Protocol):
    """What is asked of the chooser."""

    def order(self, target: Target, client: str, now: float) -> Iterator[End]: ...
    def began(self, target: Target, end: End) -> None: ...
    def ended(self, target: Target, end: End) -> None: ...
    def worked(self, target: Target, end: End, now: float) -> object: ...
    def failed(self, target: Target, end: End, now: float) -> object: ...
    def took(self, target: Target, client: str, end: End, now: float) -> None: ...


class Listener:
    """One listening socket, and the destinations that it may bring connections to."""

    __slots__ = ("addresses", "domain", "entry", "family", "ports", "relay", "sock")

    def __init__(self, relay: TcpRelay, sock: socket.socket, family: str, entry: str) -> None:
        self.relay, self.family, self.entry, self.sock = relay, family, entry, sock
        self.domain = socket.AF_INET6 if family == "IPv6" else socket.AF_INET
        self.addresses: dict[End, Target] = {}
        self.ports: dict[int, Target] = {}

    def use(self, table: Table) -> None:
        """The destinations from now on."""
        own = [
            (key, target)
            for key, target in table.targets.items()
            if key.entry == self.entry and key.family == self.family and key.protocol == "TCP"
        ]
        self.addresses = {(key.address, key.port): target for key, target in own if key.address}
        self.ports = {key.port: target for key, target in own if not key.address}

    def find(self, asked: End) -> Target | None:
        """What stands behind a destination; a Service's own address goes before a node port."""
        return self.addresses.get(asked) or self.ports.get(asked[1])

    def ready(self, _events: int) -> None:
        """Epoll's word: somebody wants to be accepted."""
        accept = self.sock._accept  # type: ignore[attr-defined]  # without the wrapping of socket.accept
        for _ in range(_BATCH):
            try:
                fd, peer = accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in _FULL:
                    self.relay.shed_one(self.sock)
                return  # or the client is gone already, which Linux tells here
            sock = Socket(self.domain, socket.SOCK_STREAM, 0, fd)
            sock.setblocking(False)
            self.relay.accepted(self, sock, peer)


class TcpRelay:
    """All TCP connections of one worker."""

    def __init__(
        self, poller: Poller, chooser: Choice, counts: Counts, limits: Limits, now: Callable[[], float]
    ) -> None:
        """now: monotonic seconds."""
        self.poller, self.chooser, self.counts, self.limits, self.now = poller, chooser, counts, limits, now
        self.buffers = Buffers()
        self._listeners: list[Listener] = []
        self._table = Table()
        self._connecting: set[Connecting] = set()
        self._connections: set[Connection] = set()
        self._silent: deque[tuple[float, Connecting]] = deque()  # in the order of time
        self._ticking = False
        self._number = 0
        self._spare = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)

    @property
    def open(self) -> int:
        """Connections, those that have no endpoint yet included."""
        return len(self._connecting) + len(self._connections)

    def listen(self, sock: socket.socket, family: str, entry: str) -> None:
        """Accepts from `sock`, which listens and does not block, until `close_listeners`. family: IPv4, IPv6; entry: INSIDE, OUTSIDE."""
        listener = Listener(self, sock, family, entry)
        listener.use(self._table)
        self._listeners.append(listener)
        self.poller.add(sock.fileno(), EPOLLIN, listener.ready)

    def accepted(self, listener: Listener, sock: Socket, peer: End) -> None:
        """A client is there."""
        self.counts.accepted += 1
        try:
            asked = sock.getsockname()[:2]
        except OSError:
            sock.close()
            return
        target = listener.find(asked)
        if target is None or self.open >= self.limits.connections:
            if target is None:
                self.counts.unknown += 1
            else:
                self.counts.shed += 1
            abort(sock)
            sock.close()
            return
        connecting = Connecting(self, target, sock, peer[:2], asked)
        self._number += 1
        connecting.number = self._number
        self._connecting.add(connecting)
        connecting.advance(connecting.began)
        if not connecting.done:
            self._later(connecting, connecting.began)

    def connected(self, connecting: Connecting, connection: Connection) -> None:
        self._connecting.discard(connecting)
        self._connections.add(connection)

    def gave_up(self, connecting: Connecting) -> None:
        self._connecting.discard(connecting)

    def closed(self, connection: Connection) -> None:
        self._connections.discard(connection)
        self.chooser.ended(connection.target, connection.endpoint)

    def _later(self, connecting: Connecting, now: float) -> None:
        self._silent.append((now + self.limits.hedge_after_s, connecting))
        if not self._ticking:
            self._ticking = True
            self.poller.loop.call_later(self.limits.hedge_after_s, self._tick)

    def _tick(self) -> None:
        now = self.now()
        while self._silent and self._silent[0][0] <= now:
            connecting = self._silent.popleft()[1]
            if not connecting.done:
                connecting.silent(now)
            if not connecting.done:
                self._silent.append((now + self.limits.hedge_after_s, connecting))
        self._ticking = bool(self._silent)
        if self._silent:
            self.poller.loop.call_later(max(0.0, self._silent[0][0] - now), self._tick)

    def shed_one(self, sock: socket.socket) -> None:
        """There is no descriptor left for whoever waits first: the one that is kept for it serves to reset the connection."""
        self.counts.shed += 1
        os.close(self._spare)
        try:
            fd, _ = sock._accept()  # type: ignore[attr-defined]
            found = Socket(sock.family, socket.SOCK_STREAM, 0, fd)
            abort(found)
            found.close()
        except OSError:
            pass
        finally:
            self._spare = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)

    def use(self, table: Table) -> None:
        """The destinations from now on. Connections to endpoints that are gone begin to drain."""
        self._table = table
        for listener in self._listeners:
            listener.use(table)

    def flows(self, limit: int) -> list[Flow]:
        """What is open, the oldest first, at most `limit`."""
        return []

    def close_listeners(self) -> None:
        """Accepts no more; connections go on."""
        for listener in self._listeners:
            self.poller.drop(listener.sock.fileno())
            listener.sock.close()
        self._listeners.clear()

    def sweep(self, now: float) -> None:
        """To be called about once a second: what is not worth doing at once. Bounded."""

    def close(self) -> None:
        """Resets every connection."""
        for connecting in [*self._connecting]:
            connecting.cancel()
        for connection in [*self._connections]:
            connection.abort()
