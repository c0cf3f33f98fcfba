"""Connections to one upstream, by TCP or TLS: opened when needed, used again, several questions at once on each.

In: questions and how long to wait. Out: believed replies, in whatever order the upstream sends them (RFC 7766); None for silence, errors.
What must not happen here: more than STREAMS connections or DEPTH questions on one of them, and a question lost because the upstream had
closed an idle connection: that one is asked again on a new connection, once.

A connection closes after `expire` without a question, at `max_age`, and when a question's time is over without a word from the other side.
"""

from __future__ import annotations

import asyncio
import secrets
import ssl
import struct
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import cast

from kproxy.dns import upstream
from kproxy.dns.blocks import Forward
from kproxy.dns.resolvconf import Upstream
from kproxy.dns.upstream import Question, Reply

STREAMS = 8
DEPTH = 128


class Streams:
    """The connections to one upstream under one `forward` directive."""

    def __init__(self, server: Upstream, directive: Forward, counters: Counter[str]) -> None:
        self._server = server
        self._directive = directive
        self._counters = counters
        self._streams: list[_Stream] = []
        self._kind = "tcp-tls" if server.tls else "tcp"

    async def ask(
        self, question: Question, timeout_s: float, *, spelling: bytes, edns: bool, recursion: bool = True
    ) -> Reply | None:
        """The reply; None when there was none within `timeout_s`, connecting included."""
        try:
            async with asyncio.timeout(timeout_s):
                for _ in range(2):
                    stream, fresh = self._choose()
                    if stream is None:
                        return None
                    try:
                        return await stream.ask(question, spelling, edns, recursion)
                    except (OSError, ssl.SSLError):
                        if fresh:
                            return None
        except TimeoutError:
            pass
        return None

    def _choose(self) -> tuple[_Stream | None, bool]:
        """A connection, and whether it is new: an idle one, else a new one, else the least busy; None when all are full."""
        loop = asyncio.get_running_loop()
        oldest = loop.time() - self._directive.max_age_s if self._directive.max_age_s else float("-inf")
        usable = [stream for stream in self._streams if not stream.closing and stream.since >= oldest]
        for old in self._streams:
            if old.since < oldest and not old.pending:
                old.close()
        stream = min(usable, key=lambda one: len(one.pending)) if usable else None
        if stream is not None and (not stream.pending or len(usable) >= STREAMS):
            self._counters[f"forward_connection_hits|{self._server.label}|{self._kind}"] += 1
            return (stream, False) if len(stream.pending) < DEPTH else (None, False)
        self._counters[f"forward_connection_misses|{self._server.label}|{self._kind}"] += 1
        stream = _Stream(self._server, self._directive, self._forget, self._is_one_too_many)
        self._streams.append(stream)
        return stream, True

    def _is_one_too_many(self) -> bool:
        idle = sum(not stream.pending for stream in self._streams)
        return 0 < self._directive.max_idle_connections < idle

    def _forget(self, stream: _Stream) -> None:
        if stream in self._streams:
            self._streams.remove(stream)

    def close(self) -> None:
        """Ends every connection; questions on them have no reply."""
        for stream in tuple(self._streams):
            stream.close()


class _Stream(asyncio.Protocol):
    """One connection. pending: questions on their way, by message ID."""

    def __init__(
        self, server: Upstream, directive: Forward, forget: Callable[[_Stream], None], too_many: Callable[[], bool]
    ) -> None:
        loop = asyncio.get_running_loop()
        self.pending: dict[int, tuple[Question, bytes, asyncio.Future[Reply]]] = {}
        self.since = loop.time()
        self.closing = False
        self._server = server
        self._directive = directive
        self._forget = forget
        self._too_many = too_many
        self._connected: asyncio.Future[None] | None = None
        self._transport: asyncio.Transport | None = None
        self._buffer = bytearray()
        self._heard = 0
        self._idle: asyncio.TimerHandle | None = None

    async def ask(self, question: Question, spelling: bytes, edns: bool, recursion: bool) -> Reply:
        """Raises OSError when the connection fails; cancelled from outside when time is over."""
        loop = asyncio.get_running_loop()
        message_id = secrets.randbits(16)
        while message_id in self.pending:
            message_id = secrets.randbits(16)
        ready: asyncio.Future[Reply] = loop.create_future()
        self.pending[message_id] = (question, spelling, ready)
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None
        heard = self._heard
        try:
            await self._connect()
            query = upstream.ask(question, message_id, spelling=spelling, edns=edns, recursion=recursion)
            if self._transport is None or self._transport.is_closing():
                raise ConnectionResetError
            self._transport.write(struct.pack("!H", len(query)) + query)
            return await ready
        except asyncio.CancelledError:
            if heard == self._heard:
                self.closing = True  # not a word: whoever comes next had better connect anew
            raise
        finally:
            self.pending.pop(message_id, None)
            if not self.pending:
                self._rest()

    async def _connect(self) -> None:
        """The first to come connects, the others wait for it. Raises OSError."""
        if self._connected is not None:
            await asyncio.shield(self._connected)
            return
        loop = asyncio.get_running_loop()
        self._connected = loop.create_future()
        self._connected.add_done_callback(_retrieve)
        server, directive = self._server, self._directive
        try:
            await loop.create_connection(
                lambda: self,
                server.address,
                server.port,
                ssl=_context(directive) if server.tls else None,
                server_hostname=(server.servername or directive.tls_servername or None) if server.tls else None,
                local_addr=(directive.source_address, 0) if directive.source_address else None,
            )
        except BaseException as error:
            self.closing = True
            self._forget_me()
            if not self._connected.done():
                self._connected.set_exception(ConnectionError(str(error)))
            if isinstance(error, ValueError):  # a certificate's name that cannot be one
                raise ConnectionError(str(error)) from error
            raise

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """asyncio's call."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by class
        assert self._connected is not None
        if not self._connected.done():
            self._connected.set_result(None)

    def data_received(self, data: bytes) -> None:
        """asyncio's call. A frame is at most 64 KiB, so the buffer is as well."""
        self._heard += 1
        buffer = self._buffer
        buffer += data
        while len(buffer) >= 2:
            size = 2 + (buffer[0] << 8 | buffer[1])
            if len(buffer) < size:
                return
            self._take(bytes(buffer[2:size]))
            del buffer[:size]

    def _take(self, message: bytes) -> None:
        known = self.pending.get(int.from_bytes(message[:2], "big"))
        if known is None:
            return
        question, spelling, ready = known
        reply = upstream.read(question, int.from_bytes(message[:2], "big"), message, spelling=spelling)
        if reply is not None and not ready.done():
            ready.set_result(reply)

    def connection_lost(self, error: Exception | None) -> None:
        """asyncio's call."""
        self.closing = True
        self._forget_me()
        for _, _, ready in self.pending.values():
            if not ready.done():
                ready.set_exception(ConnectionResetError())
                _retrieve(ready)

    def _rest(self) -> None:
        """Nothing is asked: closes now or after a while."""
        if self.closing or self._too_many():
            self.close()
        elif self._idle is None:
            self._idle = asyncio.get_running_loop().call_later(self._directive.expire_s, self.close)

    def close(self) -> None:
        """Ends the connection."""
        self.closing = True
        self._forget_me()
        if self._idle is not None:
            self._idle.cancel()
        if self._transport is not None:
            self._transport.abort()

    def _forget_me(self) -> None:
        self._forget(self)


def _retrieve(future: asyncio.Future[None] | asyncio.Future[Reply]) -> None:
    """Whoever waited may be gone; asyncio complains about errors that nobody has looked at."""
    if future.done() and not future.cancelled():
        future.exception()


_contexts: dict[tuple[object, ...], ssl.SSLContext] = {}


def _context(directive: Forward) -> ssl.SSLContext:
    """The TLS settings of a directive, made anew when one of its files has changed. Raises OSError."""
    files = tuple(filter(None, (directive.tls_ca, directive.tls_cert, directive.tls_key)))
    key = (*files, *(Path(file).stat().st_mtime_ns for file in files))
    context = _contexts.get(key)
    if context is None:
        context = ssl.create_default_context(cafile=directive.tls_ca or None)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if directive.tls_cert:
            context.load_cert_chain(directive.tls_cert, directive.tls_key or None)
        if len(_contexts) > 16:
            _contexts.clear()
        _contexts[key] = context
    return context
