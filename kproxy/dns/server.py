"""The sockets of one worker: queries in, replies out, nothing decided here.

Hot path (`_drain`): one dictionary look-up on the bytes behind the ID, the ID in front of what was found, one send. Everything else goes
through `respond` once and is remembered. What must not happen here:
* asyncio's DatagramProtocol: it costs five times the CPU of draining the socket on a readable event (28 us a query against 5, measured);
* an OSError ending a batch: a packet from port 0 makes sendto fail with EINVAL, and the others behind it are innocent;
* a packet ending the worker. A fault of ours in the slow path is counted, told once, and answered SERVFAIL: were it to end the process, one
  packet a second would keep every worker of a node down.

One socket per address and transport, so that a reply comes from the address that was asked; SO_REUSEPORT, so that workers (and the next
version's) share them; IP_FREEBIND, so that they may be bound before the node holds the address.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import socket
import struct
import sys
from collections import Counter
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from kproxy.dns import upstream, wire
from kproxy.dns.answer import Forward, Outcome, respond
from kproxy.dns.cache import AnswerCache
from kproxy.dns.forward import Forwarder
from kproxy.dns.settings import DnsSettings
from kproxy.dns.wire import Rcode, Transport
from kproxy.dns.zone import Zone

log = logging.getLogger("kproxy.dns.server")

BATCH = 128  # packets per readable event: under a millisecond, so TCP, forwards and the channel get their turn
RECEIVE = 4096  # octets of a query; longer ones are cut by the kernel and then malformed
SOCKET_BUFFER = 4 << 20
WAITING = 20_000  # forwarded queries that may wait at once, UDP and TCP together
WRITE_TIMEOUT_S = 5.0
LAST_PATIENCE_S = 0.05  # with a TCP client's next query, once this process is to end

_IP_FREEBIND = 15
_IPV6_FREEBIND = 78
_SO_RCVBUFFORCE = 33

Spawn = Callable[[Coroutine[Any, Any, None]], object]


class Server:
    """Answers for one zone on all configured addresses. `spawn` starts a task in the worker's task group."""

    def __init__(
        self, settings: DnsSettings, zone: Zone, forwarder: Forwarder, counters: Counter[str], spawn: Spawn
    ) -> None:
        self.settings = settings
        self.zone = zone
        self.cache = AnswerCache()
        self.counters = counters
        self._forwarder = forwarder
        self._spawn = spawn
        self._datagram: list[socket.socket] = []
        self._listeners: list[asyncio.Server] = []
        self._connections: Counter[str] = Counter()
        self._streams: set[asyncio.StreamWriter] = set()
        self._reading: set[asyncio.Timeout] = set()
        self._patience_s = settings.tcp_idle_s
        self._waiting = 0
        self._faults: set[str] = set()
        self._less = asyncio.Event()  # a forward or a connection has ended

    async def start(self) -> None:
        """Binds every address. Raises OSError when one cannot be bound."""
        loop = asyncio.get_running_loop()
        for address in self.settings.listen:
            sock = bound(socket.SOCK_DGRAM, address, self.settings.port)
            self._datagram.append(sock)
            stream = bound(socket.SOCK_STREAM, address, self.settings.port)
            self._listeners.append(await asyncio.start_server(self._serve, sock=stream, backlog=512, limit=65537))
        for sock in self._datagram:
            loop.add_reader(sock.fileno(), self._drain, sock)

    def replace_zone(self, zone: Zone, changed: list[bytes] | None) -> None:
        """Answers from `zone` from now on. changed: keys of the Services that differ; None when anything may."""
        self.zone = zone
        if changed is None:
            self.cache.clear()
        else:
            self.cache.forget(changed)

    async def stop(self, grace_s: float = 2.0) -> None:
        """Answers what has arrived, takes no more, and gives what is under way `grace_s` seconds."""
        loop = asyncio.get_running_loop()
        for listener in self._listeners:
            listener.close()
        for sock in self._datagram:
            loop.remove_reader(sock.fileno())
            for _ in range(100):  # bounded: a flood must not keep us
                if not self._drain(sock):
                    break
        self._patience_s = LAST_PATIENCE_S
        for reading in self._reading:  # idle connections end now, the others after what they have sent
            reading.reschedule(loop.time() + LAST_PATIENCE_S)
        await asyncio.sleep(0.01)  # connections that were accepted a moment ago get to their first line
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                while self._waiting or self._streams:
                    self._less.clear()
                    await self._less.wait()
        for writer in self._streams:
            writer.transport.abort()
        for sock in self._datagram:
            sock.close()

    def _drain(self, sock: socket.socket) -> bool:
        """Answers up to a batch of queries; whether there may be more."""
        receive, send = sock.recvfrom, sock.sendto
        lasting, fleeting, next_order = self.cache.lasting.get, self.cache.fleeting.get, self.cache.next_order
        slow = errors = served = 0
        try:
            while served < BATCH:
                data, peer = receive(RECEIVE)
                served += 1
                key = data[2:]
                reply = lasting(key) or fleeting(key) or next_order(key)
                if reply is None:
                    slow += 1
                    self._slowly(sock, data, peer)
                    continue
                try:
                    send(data[:2] + reply, peer)
                except OSError:
                    errors += 1
            return True
        except BlockingIOError:
            return False
        except OSError:  # an error of an earlier send, reported here; the next readable event goes on
            errors += 1
            return True
        finally:
            counters = self.counters
            counters["queries_udp"] += served
            counters["cache_hits"] += served - slow
            if errors:
                counters["socket_errors"] += errors

    def _slowly(self, sock: socket.socket, data: bytes, peer: Any) -> None:
        outcome = self._respond(data, Transport.UDP, self.cache.turn_to_make(data[2:]))
        if isinstance(outcome, Forward):
            reply = self._at_once(outcome, Transport.UDP)
            if reply is None:
                self._spawn(self._forward_udp(sock, outcome, peer))
                return
        elif outcome is None:
            return
        else:
            reply = outcome.reply
            self.cache.store(data, outcome)
        self._send(sock, reply, peer)

    def _send(self, sock: socket.socket, reply: bytes, peer: Any) -> None:
        self._count(reply)
        try:
            sock.sendto(reply, peer)
        except OSError:
            self.counters["socket_errors"] += 1

    def _count(self, reply: bytes) -> None:
        self.counters[f"rcode_{reply[3] & 15}"] += 1

    def _respond(self, data: bytes, transport: Transport, turn: int) -> Outcome | Forward | None:
        try:
            outcome = respond(self.zone, data, transport, turn)
        except Exception as error:  # see the module's text
            self._fault(error, data)
            return Outcome(wire.bare(data, Rcode.SERVFAIL), rcode=Rcode.SERVFAIL)
        if outcome is None:
            self.counters["dropped"] += 1
        return outcome

    def _fault(self, error: Exception, data: bytes) -> None:
        self.counters["faults"] += 1
        kind = f"{type(error).__name__}: {error}"[:200]
        if kind not in self._faults and len(self._faults) < 20:
            self._faults.add(kind)
            log.error(
                "a query made this server fail; it was answered SERVFAIL. Query: %s", data[:512].hex(), exc_info=error
            )

    def _at_once(self, forward: Forward, transport: Transport) -> bytes | None:
        """The reply to a forwarded query that needs no waiting: nobody to ask, too much under way, or still remembered."""
        question = upstream.question_of(forward)
        known = self._forwarder.remembered(question)
        if known is not None:
            turn = self.counters["forward_cache_hits"]
            return upstream.finish(forward, known[0], transport, ttl=max(0, known[0].ttl - known[1]), turn=turn)
        if not self._forwarder.has_upstream() and not forward.prefix:
            size = wire.limit(forward.query, transport)
            return wire.build(forward.query, rcode=Rcode.REFUSED, authoritative=False, size=size)
        if self._waiting >= WAITING:
            self.counters["forward_overload"] += 1
            return upstream.finish(forward, None, transport)
        return None

    async def _forwarded(self, forward: Forward, transport: Transport) -> bytes:
        self._waiting += 1
        try:
            reply = await self._forwarder.resolve(upstream.question_of(forward))
            return upstream.finish(forward, reply, transport)
        except Exception as error:  # as in _respond: an upstream's packet must not end the worker either
            self._fault(error, forward.query.question)
            return upstream.finish(forward, None, transport)
        finally:
            self._waiting -= 1
            self._less.set()

    async def _forward_udp(self, sock: socket.socket, forward: Forward, peer: Any) -> None:
        self._send(sock, await self._forwarded(forward, Transport.UDP), peer)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One TCP connection: queries as they come, replies as they are ready (RFC 7766), bounded in number, time and memory."""
        peer = writer.get_extra_info("peername")
        source = peer[0] if peer else ""
        allowed = self._connections[source] < self.settings.tcp_connections_per_source
        if len(self._streams) >= self.settings.tcp_connections or not allowed:
            self.counters["tcp_refused"] += 1
            writer.transport.abort()
            return
        self._connections[source] += 1
        self._streams.add(writer)
        self.counters["tcp_connections"] += 1
        try:
            async with asyncio.TaskGroup() as tasks:
                await self._converse(reader, writer, tasks)
            if not writer.transport.is_closing():
                async with asyncio.timeout(WRITE_TIMEOUT_S):
                    writer.close()
                    await writer.wait_closed()
        except* (OSError, EOFError, TimeoutError):
            pass  # the client's affair
        finally:
            self._streams.discard(writer)
            self._connections[source] -= 1
            if not self._connections[source]:
                del self._connections[source]
            self._less.set()
            writer.transport.abort()

    async def _converse(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, tasks: asyncio.TaskGroup
    ) -> None:
        room = asyncio.Semaphore(self.settings.tcp_in_flight)
        while True:
            try:
                data = await self._read(reader)
            except (EOFError, TimeoutError):
                return
            if not data:
                return
            self.counters["queries_tcp"] += 1
            outcome = self._respond(data, Transport.TCP, self.counters["queries_tcp"])
            if isinstance(outcome, Forward):
                reply = self._at_once(outcome, Transport.TCP)
                if reply is None:
                    await room.acquire()
                    tasks.create_task(self._forward_tcp(outcome, writer, room))
                    continue
            elif outcome is None:
                continue
            else:
                reply = outcome.reply
            await self._write(writer, reply)

    async def _read(self, reader: asyncio.StreamReader) -> bytes:
        """One query. Raises EOFError at the end of the stream, TimeoutError for a client that takes its time."""
        async with asyncio.timeout(self._patience_s) as reading:
            self._reading.add(reading)
            try:
                size = struct.unpack("!H", await reader.readexactly(2))[0]
                return await reader.readexactly(size)
            finally:
                self._reading.discard(reading)

    async def _forward_tcp(self, forward: Forward, writer: asyncio.StreamWriter, room: asyncio.Semaphore) -> None:
        try:
            await self._write(writer, await self._forwarded(forward, Transport.TCP))
        finally:
            room.release()

    async def _write(self, writer: asyncio.StreamWriter, reply: bytes) -> None:
        """Raises TimeoutError for a client that does not read; asyncio's buffer holds 64 KiB before this waits."""
        self._count(reply)
        writer.write(struct.pack("!H", len(reply)) + reply)
        async with asyncio.timeout(WRITE_TIMEOUT_S):
            await writer.drain()


def bound(kind: socket.SocketKind, address: str, port: int) -> socket.socket:
    """A bound, non-blocking socket. Raises OSError naming the address."""
    six = ":" in address
    sock = socket.socket(socket.AF_INET6 if six else socket.AF_INET, kind | socket.SOCK_NONBLOCK)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if six:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_FREEBIND, 1)
        else:
            sock.setsockopt(socket.IPPROTO_IP, _IP_FREEBIND, 1)
        if kind == socket.SOCK_DGRAM:
            _enlarge(sock)
        sock.bind((address, port))
    except OSError as error:
        sock.close()
        remedy = _REMEDIES.get(error.errno or 0, "").format(port=port)
        raise OSError(error.errno, f"cannot listen on {address} port {port}: {error.strerror}{remedy}") from error
    return sock


_REMEDIES = {
    errno.EADDRINUSE: " (see `ss -lntup 'sport = :{port}'`; stop it, or choose other addresses)",
    errno.EACCES: " (ports below 1024 need root or CAP_NET_BIND_SERVICE)",
}


def is_taken(address: str, port: int) -> bool:
    """Whether some process has a UDP socket on this very address, without disturbing it: a trial bind would refuse a sibling's real one."""
    packed = socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address)
    # The kernel prints each 32-bit word of an address as a host-order (little endian) number.
    text = "".join(packed[i : i + 4][:: -1 if sys.byteorder == "little" else 1].hex() for i in range(0, len(packed), 4))
    wanted = f"{text}:{port:04x}".upper()
    try:
        with Path("/proc/self/net/udp6" if ":" in address else "/proc/self/net/udp").open() as lines:
            return any(line.split()[1] == wanted for line in lines)
    except OSError:
        return False


def _enlarge(sock: socket.socket) -> None:
    """A burst of queries waits in the kernel instead of being lost. FORCE passes net.core.rmem_max and needs NET_ADMIN."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, SOCKET_BUFFER)
    except OSError:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SOCKET_BUFFER)
