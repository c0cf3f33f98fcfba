"""Relays TCP connections: two sockets for each, bytes as they come.

What is passed on: back-pressure (who cannot be written to stops the other's reading, so a connection holds some 128 KiB and no more), the
end of one direction (FIN; the other goes on), and the abortion of a connection (RST). A client is not read before its endpoint has
accepted. What must not happen here: a choice (choice.py), a connection more than `limit`: those are reset at once, and the rest is not
touched.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any, cast

from kproxy.loopback.choice import Choice
from kproxy.loopback.listeners import End, Listener

_CONNECT_S = 3.0
_TRIES = 3  # endpoints for one connection
_HIGH = 64 << 10  # bytes waiting for a slow reader before the other side is stopped
_ABORT = struct.pack("ii", 1, 0)  # SO_LINGER: close() sends RST
Spawn = Callable[[Coroutine[Any, Any, None]], object]


def abort(transport: asyncio.Transport) -> None:
    """Ends a connection with a reset."""
    sock = transport.get_extra_info("socket")
    if sock is not None and not transport.is_closing():
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _ABORT)
    transport.abort()


class Half(asyncio.Protocol):
    """One of the two sockets of a connection. other: None until both are there; the endpoint's has it at once and may speak first."""

    def __init__(self, other: Half | None = None) -> None:
        self.transport: asyncio.Transport | None = None
        self.other = other
        self.lost = False
        self.ended = False  # this side sends no more

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = made = cast(asyncio.Transport, transport)  # uvloop's are of no class of asyncio's
        made.set_write_buffer_limits(high=_HIGH)
        sock = made.get_extra_info("socket")
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)

    def data_received(self, data: bytes) -> None:
        if self.other is not None and self.other.transport is not None and not self.other.lost:
            self.other.transport.write(data)

    def eof_received(self) -> bool:
        self.ended = True
        other = self.other
        if other is None or other.transport is None or other.lost:
            return False
        other.transport.write_eof()
        return not other.ended  # both directions have ended: close

    def pause_writing(self) -> None:
        if self.other is not None and self.other.transport is not None and not self.other.lost:
            self.other.transport.pause_reading()

    def resume_writing(self) -> None:
        if self.other is not None and self.other.transport is not None and not self.other.lost:
            self.other.transport.resume_reading()

    def connection_lost(self, error: Exception | None) -> None:
        self.lost = True
        other = self.other
        if other is None or other.transport is None or other.lost:
            return
        if error is not None:
            abort(other.transport)
        else:
            other.transport.close()  # after what is still to be written


class Client(Half):
    """The accepted side: tries endpoints, then lets the bytes flow."""

    def __init__(self, relay: TcpRelay) -> None:
        super().__init__()
        self._relay = relay
        self.endpoint: End | None = None
        self._early: list[bytes] = []  # one read at most

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        made = cast(asyncio.Transport, transport)
        made.pause_reading()
        if not self._relay.admits(self, made):
            abort(made)
            return
        self._relay.spawn(self._connect(made))

    async def _connect(self, transport: asyncio.Transport) -> None:
        relay = self._relay
        client = str(transport.get_extra_info("peername")[0])
        for endpoint in relay.choice.order(relay.listener, client, time.monotonic())[:_TRIES]:
            if self._gave_up():
                return
            there = Half(self)
            try:
                async with asyncio.timeout(_CONNECT_S):
                    await asyncio.get_running_loop().create_connection(lambda half=there: half, *endpoint)  # type: ignore[misc]
            except (OSError, TimeoutError):
                relay.counters["tcp_connect_failed"] += 1
                continue
            if self._gave_up():
                if there.transport is not None:
                    abort(there.transport)
                return
            relay.choice.took(relay.listener, client, endpoint, time.monotonic())
            self.endpoint, self.other = endpoint, there
            self._begin(transport, there)
            return
        abort(transport)

    def _begin(self, transport: asyncio.Transport, there: Half) -> None:
        if there.lost or there.transport is None:
            abort(transport)
            return
        there.transport.writelines(self._early)
        self._early.clear()
        if self.ended:
            there.transport.write_eof()
        else:
            transport.resume_reading()

    def data_received(self, data: bytes) -> None:
        if self.other is not None:
            super().data_received(data)
        elif self.transport is not None:  # uvloop reads once, whatever connection_made said
            self._early.append(data)
            self.transport.pause_reading()

    def eof_received(self) -> bool:
        if self.other is not None:
            return super().eof_received()
        self.ended = True
        return True  # the endpoint hears of it when it is there

    def _gave_up(self) -> bool:
        return self.lost

    def connection_lost(self, error: Exception | None) -> None:
        super().connection_lost(error)
        self._relay.leaves(self)

    def end(self) -> None:
        """Resets both sides."""
        for half in (self, self.other):
            if half is not None and half.transport is not None and not half.lost:
                abort(half.transport)


class TcpRelay:
    """One listening socket and its connections."""

    def __init__(self, listener: Listener, choice: Choice, counters: Counter[str], spawn: Spawn, limit: int) -> None:
        self.listener, self.choice, self.counters, self.spawn = listener, choice, counters, spawn
        self._limit = limit  # of all relays together, counted in `counters`
        self._clients: set[Client] = set()
        self._server: asyncio.Server | None = None

    async def start(self, sock: socket.socket) -> None:
        """Accepts from `sock`, which is bound."""
        self._server = await asyncio.get_running_loop().create_server(lambda: Client(self), sock=sock, backlog=512)

    def admits(self, client: Client, transport: asyncio.Transport) -> bool:
        """Whether there is room, and the connection came to loopback."""
        address = str(transport.get_extra_info("sockname")[0])
        if not is_loopback(address):
            return False
        if self.counters["tcp_connections"] >= self._limit:
            self.counters["tcp_refused"] += 1
            return False
        self._clients.add(client)
        self.counters["tcp_connections"] += 1
        self.counters["tcp_accepted"] += 1
        return True

    def leaves(self, client: Client) -> None:
        """The client's socket is gone."""
        if client in self._clients:
            self._clients.discard(client)
            self.counters["tcp_connections"] -= 1

    def use(self, listener: Listener) -> None:
        """New endpoints; connections to those that are gone end where that is wanted."""
        self.listener = listener
        for client in [*self._clients] if listener.ends_tcp else ():
            if client.endpoint is not None and not listener.may_stay(client.endpoint):
                client.end()

    def stop(self) -> None:
        """Listens no more. Connections stay."""
        if self._server is not None:
            self._server.close()

    def close(self) -> None:
        """Listens no more. Connections stay, unless they are to end with their endpoint."""
        self.stop()
        for client in [*self._clients] if self.listener.ends_tcp else ():
            client.end()


def is_loopback(address: str) -> bool:
    """Whether a socket's own address is 127.0.0.0/8 or ::1."""
    return address.startswith("127.") or address == "::1"
