"""The TCP relay of one worker: accepts, looks the destination up, has an endpoint connected, and lets the octets flow.

In: listening sockets, transparent ones, whose accepted sockets have the address that the client asked for as their own; a Table; a Chooser.
Out: octets, counters, and what is open for people. What must not happen here: a choice (chooser), waiting, work without a bound.
"""

from __future__ import annotations

import errno
import os
import socket
import time
from _socket import socket as Socket
from collections import deque
from collections.abc import Callable, Iterator
from itertools import chain, islice
from select import EPOLLIN
from typing import Protocol

from kproxy.relay.connecting import CONNECTED, Connecting, reach
from kproxy.relay.connection import Connection
from kproxy.relay.counts import Counts
from kproxy.relay.kernel_flows import KernelFlows
from kproxy.relay.kernel_opened import OpenedFlows
from kproxy.relay.kernel_openings import Ahead
from kproxy.relay.kernel_repeats import Watched
from kproxy.relay.kernel_side import KernelSide
from kproxy.relay.kernel_streams import FRESH_S, Handed
from kproxy.relay.limits import Limits
from kproxy.relay.poller import Poller
from kproxy.relay.proxy_header import proxy_header
from kproxy.relay.stream import Buffers, abort
from kproxy.relay.targets import End, Flow, Table, Target

_BATCH = 64  # connections that one listener may bring in one turn
_SWEPT = 2000  # connections that one sweep looks at: half a millisecond, or two where endpoints may drain
_KEPT_ALIVE = 500
_FULL = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_PAUSE_S = 0.05


class Choice(Ahead, Protocol):
    """What is asked of the chooser here besides: the endpoint to try first, and the others if that does not accept."""

    def first(self, target: Target) -> End | None: ...
    def after(self, target: Target, first: End) -> Iterator[End]: ...


class Listener:
    """One listening socket."""

    __slots__ = ("domain", "entry", "family", "relay", "sock")

    def __init__(self, relay: TcpRelay, sock: socket.socket, family: str, entry: str) -> None:
        self.relay, self.family, self.entry, self.sock = relay, family, entry, sock
        self.domain = socket.AF_INET6 if family == "IPv6" else socket.AF_INET

    def ready(self, _events: int) -> None:
        """Epoll's word: somebody wants to be accepted."""
        accept = self.sock._accept  # type: ignore[attr-defined]  # without the wrapping of socket.accept
        accepted = self.relay.accepted
        for _ in range(_BATCH):
            try:
                fd, peer = accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in _FULL:
                    self.relay.shed_one(self)
                return  # or the client is gone already, which Linux tells here
            sock = Socket(self.domain, socket.SOCK_STREAM, 0, fd)
            sock.setblocking(False)
            try:
                accepted(self, sock, fd, peer)
            except Exception:  # a fault of ours: it costs this client, not the listener
                self.relay.poller.tell("a connection could not be begun")
                abort(sock)
                self.relay.poller.bury(fd, sock)


class TcpRelay:
    """All TCP connections of one worker. open: how many there are, those included that have no endpoint yet."""

    def __init__(
        self, poller: Poller, chooser: Choice, counts: Counts, limits: Limits, now: Callable[[], float]
    ) -> None:
        """now: monotonic seconds."""
        self.poller, self.chooser, self.counts, self.limits, self.now = poller, chooser, counts, limits, now
        self.buffers = Buffers()
        self.open = 0
        self._listeners: list[Listener] = []
        self._table = Table()
        self._connecting: dict[Connecting, None] = {}  # all three in the order in which they came
        self._fresh: dict[Connection, None] = {}  # too young for keep-alive
        self._settled: dict[Connection, None] = {}
        self._draining: dict[Connection, None] = {}
        self._swept: Iterator[Connection] = iter(())
        self._silent: deque[tuple[float, Connecting]] = deque()  # in the order of time
        self._ticking = False
        self.kernel: KernelSide | None = None
        self._number = 0
        self._spare = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)

    def listen(self, sock: socket.socket, family: str, entry: str) -> None:
        """Accepts from `sock`, which listens and does not block, until `close_listeners`. family: IPv4, IPv6; entry: INSIDE, OUTSIDE."""
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # inherited by what is accepted
        listener = Listener(self, sock, family, entry)
        self._listeners.append(listener)
        self.poller.add(sock.fileno(), EPOLLIN, listener.ready)

    def use(self, table: Table) -> None:
        """The destinations from now on. Connections to endpoints that are gone begin to drain, within the next sweeps."""
        self._table = table
        if self.kernel is not None:
            self.kernel.use(lambda entry, old, asked: self._find(entry, old.family, asked[0], asked[1]))

    def use_kernel(self, flows: KernelFlows | None, opened: OpenedFlows | None = None) -> None:
        """Connections that talk are carried by the kernel from now on; None: by this worker, and those that it carried end.

        opened: it opens such as come again and again as well.
        """
        if self.kernel is not None:
            self.kernel.close()
            self.kernel = None
        if flows is not None:
            parts = self.poller, self.chooser, self.counts, self.now
            self.kernel = KernelSide(flows, opened, parts, self._fresh, lambda: self.limits.connections - self.open)

    def leave_kernel(self) -> bool:
        """It opens no more connections, because other maps are to be taken; whether nothing is carried by these any more."""
        self.stop_opening()
        return not self.in_kernel

    def stop_opening(self) -> None:
        """The kernel opens no more connections for this worker; those that it has opened go on."""
        if self.kernel is not None:
            self.kernel.stop()

    @property
    def in_kernel(self) -> int:
        """Connections that the kernel carries."""
        return self.kernel.carried if self.kernel is not None else 0

    @property
    def opened(self) -> int:
        """Those of them that it has opened itself, which `open` does not count."""
        return self.kernel.opened_now if self.kernel is not None else 0

    def take_back(self, connection: Connection, handed: Handed | Watched) -> None:
        """For `connection`, which ends: the kernel forgets it."""
        connection.handed = None
        if self.kernel is not None:
            self.kernel.take_back(handed)

    def seen_ended(self, connection: Connection) -> bool:
        """For `connection`: whether the kernel has seen one of its peers end."""
        return self.kernel is not None and self.kernel.seen_ended(connection.handed)

    def accepted(self, listener: Listener, sock: Socket, fd: int, peer: End) -> None:
        """A client is there."""
        counts = self.counts
        counts.accepted += 1
        try:
            asked = sock.getsockname()
        except OSError:
            sock.close()
            return
        target = self._find(listener.entry, listener.family, asked[0], asked[1])
        if target is None or self._is_full:
            if target is None:
                counts.unknown += 1
            else:
                counts.shed += 1
            abort(sock)
            sock.close()
            return
        self._number += 1
        self._lead(target, listener.entry, (sock, fd), peer, asked)

    @property
    def _is_full(self) -> bool:
        kernel = self.kernel
        return self.open + (kernel.opened if kernel is not None else 0) >= self.limits.connections

    def _lead(self, target: Target, entry: str, client: tuple[Socket, int], peer: End, asked: End) -> None:
        """To an endpoint. Nearly always the first one accepts at once; the making of a Connecting and its order is then spared."""
        now, number, chooser = self.now(), self._number, self.chooser
        end = chooser.first(target)
        if end is not None:
            sock, result = reach(target, peer[0], end)
            if sock is not None and result in CONNECTED:
                chooser.began(target, end)
                server = sock, sock.fileno()
                connection = Connection(self, target, entry, client, end, server, number, now, 0)
                self.open += 1
                self._fresh[connection] = None
                self.begin(connection, peer, asked, now)
                return
        order = chooser.order(target, peer[0], now) if end is None else chooser.after(target, end)
        connecting = Connecting(self, target, entry, client, peer, asked, number, now, order)
        self.open += 1
        try:
            if end is None or not connecting.tried(end, sock, result, now):
                connecting.advance(now)
        except Exception:
            if not connecting.done:
                connecting.cancel()
            raise
        if not connecting.done:
            self._connecting[connecting] = None
            self._wait(connecting, now)

    def begin(self, connection: Connection, peer: End, asked: End, now: float) -> None:
        """It has its endpoint: that one works, the client may belong to it, and octets flow."""
        target, end = connection.target, connection.endpoint
        try:
            self.chooser.worked(target, end, now)
            if target.affinity_s:
                self.chooser.took(target, peer[0], end, now)
            if target.proxy_protocol:
                connection.server.sock.send(proxy_header(target.proxy_protocol, peer[:2], asked[:2]))
            if self.kernel is not None:
                self.kernel.came(connection, peer, asked, now)
            connection.start()
        except OSError:  # it was reset meanwhile
            connection.abort()
        except Exception:
            connection.abort()
            raise

    def _find(self, entry: str, family: str, address: str, port: int) -> Target | None:
        """As Table.find, without the price of making a Key: plain tuples are equal to it."""
        targets = self._table.targets
        found = targets.get((entry, family, "TCP", address, port))  # type: ignore[call-overload]
        return found or targets.get((entry, family, "TCP", "", port))  # type: ignore[call-overload,no-any-return]

    def connected(self, connecting: Connecting, connection: Connection) -> None:
        """For `connecting`: it has its endpoint."""
        if self._connecting:
            self._connecting.pop(connecting, None)
        self._fresh[connection] = None

    def gave_up(self, connecting: Connecting) -> None:
        """For `connecting`: it gets none."""
        self._connecting.pop(connecting, None)
        self.open -= 1

    def closed(self, connection: Connection) -> None:
        """For `connection`: it is over."""
        self.open -= 1
        if self._fresh.pop(connection, self) is self:
            self._settled.pop(connection, None)
        if connection.drain_at:
            self._draining.pop(connection, None)
        self.chooser.ended(connection.target, connection.endpoint)

    def _wait(self, connecting: Connecting, now: float) -> None:
        """Looks after it when it should have an endpoint."""
        self._silent.append((now + self.limits.hedge_after_s, connecting))
        if not self._ticking:
            self._ticking = True
            self.poller.loop.call_later(self.limits.hedge_after_s, self._tick)

    def _tick(self) -> None:
        now, silent, after_s = self.now(), self._silent, self.limits.hedge_after_s
        while silent and silent[0][0] <= now:
            connecting = silent.popleft()[1]
            try:
                if not connecting.done:
                    connecting.silent(now)
            except Exception:  # no room for one more descriptor in the epoll, say: the others behind it wait as well
                self.poller.tell("a connection could not be begun elsewhere")
                if not connecting.done:
                    connecting.cancel()
            if not connecting.done:
                silent.append((now + after_s, connecting))
        self._ticking = bool(silent)
        if silent:
            self.poller.loop.call_later(max(0.001, silent[0][0] - now), self._tick)

    def shed_one(self, listener: Listener) -> None:
        """There is no descriptor left for who waits first: the one that is kept for this serves to reset the connection."""
        try:
            if self._spare >= 0:
                os.close(self._spare)
                self._spare = -1  # that number may be somebody else's from here on
            try:
                fd, _ = listener.sock._accept()  # type: ignore[attr-defined]
            except BlockingIOError:
                pass  # nobody waits: Linux looks for a descriptor before it looks for a connection
            else:
                self.counts.shed += 1
                found = Socket(listener.domain, socket.SOCK_STREAM, 0, fd)
                abort(found)
                found.close()
            self._spare = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:  # of the whole machine, then: it is not worth asking again at once
            self.poller.change(listener.sock.fileno(), 0)
            self.poller.loop.call_later(_PAUSE_S, self._resume, listener)

    def _resume(self, listener: Listener) -> None:
        if listener in self._listeners:
            self.poller.change(listener.sock.fileno(), EPOLLIN)

    def flows(self, limit: int) -> list[Flow]:
        """What is open, at most `limit`; those that wait for an endpoint first, then the oldest."""
        return [*self.each_flow(limit)]

    def each_flow(self, limit: int) -> Iterator[Flow]:
        """As `flows`, one after the other; between two of them connections may come and go. 6 µs each."""
        worker, wall = os.getpid(), time.time() - self.now()  # noqa: TID251 - for people
        everything: Iterator[Connecting | Connection] = chain(self._connecting, self._settled, self._fresh)
        mine = [*islice(everything, max(0, limit))]
        for one in mine:
            if one.open:
                yield one.flow(worker, wall)
        if self.kernel is not None:
            yield from islice(self.kernel.flows(worker, wall), max(0, limit - len(mine)))

    def close_listeners(self) -> None:
        """Accepts no more; connections go on."""
        for listener in self._listeners:
            self.poller.drop(listener.sock.fileno())
            listener.sock.close()
        self._listeners.clear()

    def sweep(self, now: float) -> None:
        """To be called about once a second: counts what open connections carried, keep-alive, drains. A bounded part of them each time."""
        for connection in [*islice(self._fresh, _KEPT_ALIVE)]:
            if connection.began + FRESH_S > now:
                break
            connection.keep_alive()
            del self._fresh[connection]
            self._settled[connection] = None
        part = [*islice(self._swept, _SWEPT)]
        if not part:
            self._swept = iter([*self._settled, *self._fresh])
            part = [*islice(self._swept, _SWEPT)]
        for connection in part:
            if connection.open:
                if connection.count() and self.kernel is not None:
                    self.kernel.streams.moved(connection, now)
                if connection.target.drain_s:  # as it was when the connection began
                    self._look_after(connection, now)
        for connection in [one for one in self._draining if one.drain_at <= now]:
            connection.abort()
        if self.kernel is not None:
            self.kernel.sweep(now)

    def _look_after(self, connection: Connection, now: float) -> None:
        """Whether its endpoint is gone, and its time with it."""
        old = connection.target
        try:
            asked = connection.client.sock.getsockname()
        except OSError:
            return
        target = self._find(connection.entry, old.family, asked[0], asked[1])
        drain_s = old.drain_s if target is None else target.drain_s
        gone = target is None or connection.endpoint not in target.endpoints
        if not gone or not drain_s:
            if connection.drain_at:
                connection.drain_at = 0.0
                self._draining.pop(connection, None)
        elif not connection.drain_at:
            connection.drain_at = now + drain_s
            self._draining[connection] = None

    def close(self) -> None:
        """Resets every connection."""
        for connecting in [*self._connecting]:
            connecting.cancel()
        for connection in [*self._settled, *self._fresh]:
            connection.abort()
        self.use_kernel(None)
        if self._spare >= 0:
            os.close(self._spare)
            self._spare = -1
