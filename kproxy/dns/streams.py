"""DNS over TCP: many connections, each bounded in time and memory, none of them in UDP's way (RFC 7766, 7828).

In: connections. Out: replies as they are ready, in any order. What must not happen here: deciding an answer (`Answering` does), or a
client's pace becoming ours:
* a connection that has sent no whole query for `idle_s` is closed, however many single octets came meanwhile;
* one that does not take its replies is closed after WRITE_S, and nothing further is read from it until then;
* at the bound of connections the one that has been idle longest, of the source that has most, makes room for the new one, so that nobody
  can keep others out by holding connections open;
* after a few queries of one connection everything else gets its turn.

Plain non-blocking sockets on the event loop's readiness: 10,000 idle connections would weigh 2 KiB each as asyncio's streams.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections import Counter, deque
from collections.abc import Coroutine, Iterable
from contextlib import suppress
from time import monotonic
from typing import Any, Protocol

WRITE_S = 5.0
PENDING_OCTETS = 128 << 10  # of replies that a client has not taken, before its next query is read
TURN = 16  # queries of one connection before all others get their turn
ACCEPTS = 64  # connections per readable event of a listener
SWEEP_S = 0.25
BACKLOG = 1024


class Bounds(Protocol):
    """Of all connections of a worker; `DnsSettings` has them."""

    @property
    def tcp_connections(self) -> int:
        """Open at once."""

    @property
    def tcp_connections_per_source(self) -> int:
        """Of one address."""

    @property
    def tcp_in_flight(self) -> int:
        """Queries of one connection that wait for somebody else."""

    @property
    def tcp_idle_s(self) -> float:
        """Seconds."""


Answer = bytes | Coroutine[Any, Any, bytes] | Iterable[bytes] | None


class Answering(Protocol):
    """Who answers."""

    def answer_stream(self, data: bytes, connection: Connection) -> Answer:
        """A reply, one that has to be waited for, a whole series (a zone transfer), or None for silence."""


class Streams:
    """All listeners and connections of a worker. `spawn` starts a task."""

    def __init__(self, bounds: Bounds, answering: Answering, counters: Counter[str], spawn: Any) -> None:
        self.bounds = bounds
        self.answering = answering
        self.counters = counters
        self.spawn = spawn
        self.idle_s = bounds.tcp_idle_s
        self.connections: dict[Connection, None] = {}  # in the order in which they were last of use
        self._sources: Counter[str] = Counter()
        self._sweeping: asyncio.TimerHandle | None = None
        self._accept_again: asyncio.TimerHandle | None = None
        self.less = asyncio.Event()  # a connection has ended

    def listen(self, sock: socket.socket, port: int) -> None:
        """Takes connections from a bound socket. Raises OSError when it cannot listen."""
        sock.listen(BACKLOG)
        asyncio.get_running_loop().add_reader(sock.fileno(), self._accept, sock, port)

    def unlisten(self, sock: socket.socket, port: int) -> None:
        """Takes what has been accepted by the kernel, then no more."""
        asyncio.get_running_loop().remove_reader(sock.fileno())
        while self._accept(sock, port) == ACCEPTS:
            pass
        sock.close()

    def hurry(self, idle_s: float) -> None:
        """The end is near: idle connections are closed, the others after what they have sent. Bounded by `idle_s`."""
        self.idle_s = idle_s
        until = monotonic() + idle_s
        for connection in self.connections:
            connection.deadline = min(connection.deadline, until)
        self._sweep()

    def abort(self) -> None:
        """Closes every connection."""
        for connection in list(self.connections):
            connection.end()
        if self._sweeping is not None:
            self._sweeping.cancel()

    def _accept(self, sock: socket.socket, port: int) -> int:
        taken = 0
        while taken < ACCEPTS:
            try:
                accepted, peer = sock.accept()
            except BlockingIOError:
                break
            except OSError:  # out of descriptors, or gone already: those that are open go on, the others wait
                self.counters["tcp_refused"] += 1
                self._pause(sock, port)
                break
            taken += 1
            self._admit(accepted, peer, port)
        if self._sweeping is None and self.connections:
            self._sweep()
        return taken

    def _pause(self, sock: socket.socket, port: int) -> None:
        """Without descriptors a listener stays readable: it is looked at again in a moment, not at once."""
        loop = asyncio.get_running_loop()

        def again() -> None:
            if sock.fileno() >= 0:
                loop.add_reader(sock.fileno(), self._accept, sock, port)

        if sock.fileno() >= 0:
            loop.remove_reader(sock.fileno())
            loop.call_later(0.1, again)

    def _admit(self, sock: socket.socket, peer: Any, port: int) -> None:
        bounds, source = self.bounds, peer[0]
        if self._sources[source] >= bounds.tcp_connections_per_source:
            self._refuse(sock)
            return
        if len(self.connections) >= bounds.tcp_connections and not self._make_room():
            self._refuse(sock)
            return
        sock.setblocking(False)
        with suppress(OSError):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._sources[source] += 1
        self.counters["tcp_connections"] += 1
        connection = Connection(self, sock, peer, port)
        self.connections[connection] = None
        connection.start()

    def _refuse(self, sock: socket.socket) -> None:
        self.counters["tcp_refused"] += 1
        with suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sock.close()

    def _make_room(self) -> bool:
        greediest = self._sources.most_common(1)[0][0]
        for connection in self.connections:
            if connection.peer[0] == greediest and not connection.waiting:
                self.counters["tcp_evicted"] += 1
                connection.end()
                return True
        return False

    def gone(self, connection: Connection) -> None:
        """A connection has ended."""
        self.connections.pop(connection, None)
        source = connection.peer[0]
        self._sources[source] -= 1
        if self._sources[source] <= 0:
            del self._sources[source]
        self.less.set()

    def _sweep(self) -> None:
        if self._sweeping is not None:
            self._sweeping.cancel()
        now = monotonic()
        for connection in [one for one in self.connections if one.deadline <= now]:
            connection.expire(now)
        wait = SWEEP_S if self.idle_s > SWEEP_S else self.idle_s / 2
        self._sweeping = asyncio.get_running_loop().call_later(wait, self._sweep) if self.connections else None


class Connection:
    """One client. waiting: queries of it that somebody else has been asked for."""

    __slots__ = (
        "_buffer",
        "_closing",
        "_out",
        "_out_octets",
        "_resume",
        "_series_turn",
        "_streams",
        "deadline",
        "peer",
        "port",
        "sock",
        "waiting",
    )

    def __init__(self, streams: Streams, sock: socket.socket, peer: Any, port: int) -> None:
        self._streams = streams
        self.sock = sock
        self.peer = peer
        self.port = port
        self.waiting = 0
        self.deadline = monotonic() + streams.idle_s
        self._buffer = b""
        self._out: deque[bytes] | None = None  # replies the kernel has not taken
        self._out_octets = 0
        self._series_turn: asyncio.Lock | None = None
        self._closing = False  # the client has sent all it will; or we take no more
        self._resume: asyncio.Handle | None = None

    def start(self) -> None:
        """Begins to read."""
        asyncio.get_running_loop().add_reader(self.sock.fileno(), self._readable)

    def _readable(self) -> None:
        try:
            data = self.sock.recv(65536)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self.end()
            return
        if not data:
            self._no_more()
            return
        self._buffer += data
        self._work()

    def _no_more(self) -> None:
        self._closing = True
        self._stop_reading()
        self._end_if_done()

    def _stop_reading(self) -> None:
        asyncio.get_running_loop().remove_reader(self.sock.fileno())

    def _blocked(self) -> bool:
        return self._out_octets > PENDING_OCTETS or self.waiting >= self._streams.bounds.tcp_in_flight

    def _work(self) -> None:
        """Answers what is whole in the buffer, a few queries at a time."""
        self._resume = None
        streams, at, done = self._streams, 0, 0
        while len(self._buffer) >= at + 2 and not self._blocked() and self.sock.fileno() >= 0:
            if done >= TURN:
                self._resume = asyncio.get_running_loop().call_soon(self._work)
                break
            size = self._buffer[at] << 8 | self._buffer[at + 1]
            if not size:
                self._buffer = b""
                self._no_more()
                return
            if len(self._buffer) < at + 2 + size:
                break
            data = self._buffer[at + 2 : at + 2 + size]
            at += 2 + size
            done += 1
            streams.counters["queries_tcp"] += 1
            self._take(data)
        self._buffer = self._buffer[at:]
        if self.sock.fileno() < 0:
            return
        if done:
            self.touch()
        loop = asyncio.get_running_loop()
        if self._blocked() or self._resume is not None:  # what it sends meanwhile waits in the kernel
            loop.remove_reader(self.sock.fileno())
        elif not self._closing:
            loop.add_reader(self.sock.fileno(), self._readable)

    def touch(self) -> None:
        """The connection was of use: its time begins anew, and it is the last to make room."""
        streams = self._streams
        self.deadline = monotonic() + streams.idle_s
        if streams.connections.pop(self, 1) is None:
            streams.connections[self] = None

    def _take(self, data: bytes) -> None:
        answer = self._streams.answering.answer_stream(data, self)
        if isinstance(answer, bytes):
            self.send(answer)
        elif isinstance(answer, Coroutine):
            self.waiting += 1
            self._streams.spawn(self._later(answer))
        elif answer is not None:
            self.waiting += 1
            self._streams.spawn(self._series(answer))

    async def _later(self, answer: Coroutine[Any, Any, bytes]) -> None:
        try:
            self.send(await answer)
        finally:
            self._less()

    async def _series(self, messages: Iterable[bytes]) -> None:
        if self._series_turn is None:
            self._series_turn = asyncio.Lock()
        try:
            async with (
                self._series_turn
            ):  # one after the other: hundreds that wait for a client that does not read cost nothing
                for message in messages:
                    # Looked at again and again: no event for what happens once in a transfer. A client that left takes nothing more.
                    while self._out_octets > PENDING_OCTETS and self.sock.fileno() >= 0:  # noqa: ASYNC110
                        await asyncio.sleep(0.01)
                    if self.sock.fileno() < 0:
                        return
                    self.send(message)
                    await asyncio.sleep(0)
        finally:
            self._less()

    def _less(self) -> None:
        self.waiting -= 1
        if self.sock.fileno() < 0:
            return
        self.touch()
        if self._resume is None and self._buffer:
            self._resume = asyncio.get_running_loop().call_soon(self._work)
        elif self._resume is None and not self._closing and not self._blocked():
            asyncio.get_running_loop().add_reader(self.sock.fileno(), self._readable)
        self._end_if_done()

    def send(self, reply: bytes) -> None:
        """Sends a message, now or when the client can take it."""
        if self.sock.fileno() < 0:
            return
        message = struct.pack("!H", len(reply)) + reply
        if self._out is None:
            try:
                sent = self.sock.send(message)
            except (BlockingIOError, InterruptedError):
                sent = 0
            except OSError:
                self.end()
                return
            if sent == len(message):
                return
            message = message[sent:]
            self._out = deque()
            self.deadline = monotonic() + WRITE_S
            asyncio.get_running_loop().add_writer(self.sock.fileno(), self._writable)
        self._out.append(message)
        self._out_octets += len(message)

    def _writable(self) -> None:
        assert self._out is not None
        try:
            while self._out:
                sent = self.sock.send(self._out[0])
                self._out_octets -= sent
                if sent < len(self._out[0]):
                    self._out[0] = self._out[0][sent:]
                    return
                self._out.popleft()
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self.end()
            return
        asyncio.get_running_loop().remove_writer(self.sock.fileno())
        self._out = None
        self.touch()
        if self._resume is None:
            self._work()
        self._end_if_done()

    def _end_if_done(self) -> None:
        if self._closing and not self.waiting and not self._out and self._resume is None and self.sock.fileno() >= 0:
            self.end()

    def expire(self, now: float) -> None:
        """The time is over: closed, unless replies are still being waited for."""
        if self.waiting and self._out is None:
            self.deadline = now + self._streams.idle_s
            return
        self.end()

    def end(self) -> None:
        """Closes the socket; what the client has not been sent by now it will not get."""
        if self.sock.fileno() < 0:
            return
        loop = asyncio.get_running_loop()
        loop.remove_reader(self.sock.fileno())
        loop.remove_writer(self.sock.fileno())
        if self._resume is not None:
            self._resume.cancel()
        self.sock.close()
        self._streams.gone(self)
