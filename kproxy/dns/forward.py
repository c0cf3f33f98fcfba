"""Asks the node's resolvers what the zone does not know.

In: a `Question`. Out: the `Reply` of the first upstream with something to say, or None. What must not happen here: building or judging
messages (`upstream` does, pure), and waiting without an end: one question has a deadline over all its attempts, there is a bound on
questions under way and on those waiting for them, and equal questions are one.

Each UDP attempt has a socket of its own, connected (the kernel then drops other senders) and closed afterwards, so that port and ID are
new every time (RFC 5452). A reply that is not ours is ignored until the attempt ends, since stopping at the first wrong one is what a
forger wants; after several of them the question goes by TCP. Order: the upstream that answered last, then the others as configured, twice.
"""

from __future__ import annotations

import asyncio
import secrets
import socket
import struct
import time
from collections import Counter

from kproxy.dns import upstream
from kproxy.dns.resolvconf import Upstream, Upstreams
from kproxy.dns.settings import DnsSettings
from kproxy.dns.upstream import Question, Reply
from kproxy.dns.wire import Rcode

ROUNDS = 2
FORGERIES = 10  # replies that are not ours, in one attempt, before TCP is used instead
WAITING_PER_QUESTION = 1000  # clients that may wait for one question; further ones get SERVFAIL at once

_FINAL = frozenset({Rcode.NOERROR, Rcode.NXDOMAIN})


class Forwarder:
    """One per worker. `counters` is shared with the server and only ever grows."""

    def __init__(self, settings: DnsSettings, counters: Counter[str]) -> None:
        """Raises ValueError when a configured upstream cannot be read."""
        own = frozenset(Upstream(address, settings.port) for address in (*settings.listen, *settings.own_addresses))
        self.upstreams = Upstreams(settings.upstreams, settings.resolv_conf, own)
        self._settings = settings
        self._counters = counters
        self._asking: dict[Question, _Asking] = {}
        self._known: dict[Question, tuple[Reply, float, float]] = {}
        self._preferred: Upstream | None = None
        self._plain: set[Upstream] = set()  # those that choke on EDNS

    def has_upstream(self) -> bool:
        """Whether there is anybody to ask; without, clients are refused at once."""
        return bool(self.upstreams.refresh(time.monotonic()))

    def remembered(self, question: Question) -> tuple[Reply, int] | None:
        """A reply that is still fresh, and its age in seconds."""
        known = self._known.get(question)
        if known is None:
            return None
        reply, since, until = known
        now = time.monotonic()
        if now >= until:
            del self._known[question]
            return None
        self._counters["forward_cache_hits"] += 1
        return reply, int(now - since)

    async def resolve(self, question: Question) -> Reply | None:
        """The upstreams' reply; None when nobody answered within the deadline, or too much is under way already."""
        asking = self._asking.get(question)
        if asking is not None:
            if asking.waiting >= WAITING_PER_QUESTION:
                self._counters["forward_overload"] += 1
                return None
            asking.waiting += 1
            self._counters["forward_joined"] += 1
            return await asyncio.shield(asking.reply)
        if len(self._asking) >= self._settings.forward_in_flight:
            self._counters["forward_overload"] += 1
            return None
        asking = self._asking[question] = _Asking(asyncio.get_running_loop().create_future())
        reply: Reply | None = None
        try:
            reply = await self._ask_all(question)
        finally:
            del self._asking[question]
            asking.reply.set_result(reply)
        if reply is not None and reply.rcode in _FINAL and not reply.truncated:
            self._remember(question, reply)
        return reply

    def _remember(self, question: Question, reply: Reply) -> None:
        ttl = min(reply.ttl, self._settings.forward_cache_ttl_s)
        if ttl <= 0 or not self._settings.forward_cache_entries:
            return
        if len(self._known) >= self._settings.forward_cache_entries:
            self._known.clear()  # as in `cache`: refilling costs each name one question, evicting costs every flood a search
        now = time.monotonic()
        self._known[question] = (reply, now, now + ttl)

    async def _ask_all(self, question: Question) -> Reply | None:
        """Asks one upstream after the other until one has an answer or the deadline has come."""
        self._counters["forward_questions"] += 1
        now = time.monotonic()
        deadline = now + self._settings.forward_deadline_s
        servers = list(self.upstreams.refresh(now))
        if self._preferred in servers:
            servers.sort(key=lambda server: server != self._preferred)
        failure: Reply | None = None
        for server in servers * ROUNDS:
            left = deadline - time.monotonic()
            if left <= 0:
                break
            reply = await self._ask_one(server, question, left)
            if reply is not None and reply.rcode in _FINAL:
                self._preferred = server
                return reply
            self._counters["forward_failures"] += 1
            failure = reply or failure
        return failure

    async def _ask_one(self, server: Upstream, question: Question, left_s: float) -> Reply | None:
        """One attempt at one upstream: UDP, and TCP where UDP was cut or under attack. None: silence or an error."""
        timeout = min(left_s, self._settings.forward_attempt_s)
        reply = await self._by_udp(server, question, timeout)
        if reply is not None and reply.rcode in (Rcode.FORMERR, Rcode.NOTIMP) and server not in self._plain:
            self._plain.add(server)
            reply = await self._by_udp(server, question, timeout)
        if reply is not None and reply.truncated:
            self._counters["forward_tcp"] += 1
            return await self._by_tcp(server, question, timeout) or reply
        return reply

    async def _by_udp(self, server: Upstream, question: Question, timeout_s: float) -> Reply | None:
        loop = asyncio.get_running_loop()
        ready: asyncio.Future[Reply | None] = loop.create_future()
        message_id = secrets.randbits(16)
        forged = 0

        def readable() -> None:
            nonlocal forged
            while not ready.done():
                try:
                    data = sock.recv(65535)
                except BlockingIOError:
                    return
                except OSError:  # ICMP: nobody listens there; the next upstream at once
                    ready.set_result(None)
                    return
                reply = upstream.read(question, message_id, data)
                if reply is not None:
                    ready.set_result(reply)
                    return
                forged += 1
                self._counters["forward_mismatched"] += 1
                if forged >= FORGERIES:
                    ready.set_result(Reply(Rcode.SERVFAIL, truncated=True))

        try:
            sock = socket.socket(_family(server), socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        except OSError:
            return None
        try:
            sock.connect((server.address, server.port))
            sock.send(upstream.ask(question, message_id, edns=server not in self._plain))
            loop.add_reader(sock.fileno(), readable)
            async with asyncio.timeout(timeout_s):
                return await ready
        except (OSError, TimeoutError):
            return None
        finally:
            loop.remove_reader(sock.fileno())
            sock.close()

    async def _by_tcp(self, server: Upstream, question: Question, timeout_s: float) -> Reply | None:
        message_id = secrets.randbits(16)
        query = upstream.ask(question, message_id, edns=server not in self._plain)
        writer = None
        try:
            async with asyncio.timeout(timeout_s):
                reader, writer = await asyncio.open_connection(server.address, server.port)
                writer.write(struct.pack("!H", len(query)) + query)
                size = struct.unpack("!H", await reader.readexactly(2))[0]
                return upstream.read(question, message_id, await reader.readexactly(size))
        except (OSError, TimeoutError, EOFError):
            return None
        finally:
            if writer is not None:
                writer.transport.abort()


class _Asking:
    """A question under way and how many clients wait for it."""

    __slots__ = ("reply", "waiting")

    def __init__(self, reply: asyncio.Future[Reply | None]) -> None:
        self.reply = reply
        self.waiting = 0


def _family(server: Upstream) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in server.address else socket.AF_INET
