"""One question to one upstream, and what it says: sockets, and nothing decided about whom to ask.

In: a `Link` (an upstream and what is known of its manners), a question, how long to wait. Out: a believed reply, or None for silence and
errors. What must not happen here: waiting beyond the time given, or a message passed on that `upstream.read` has not believed.

By UDP each query has a socket of its own, connected (the kernel drops other senders), closed afterwards: port and ID are new every time
(RFC 5452), and so is the case of the name's letters. A reply that is not ours is ignored, since stopping at the first wrong one is what a
forger wants; after FORGERIES of them, after a reply in another case, or with TC, the question goes by TCP. An upstream whose TCP replies
change the case as well is asked in lower case from then on. One that chokes on EDNS is asked without.

By TCP and TLS connections are kept (`forward_stream`).
"""

from __future__ import annotations

import asyncio
import secrets
import socket
from collections import Counter
from dataclasses import dataclass, field

from kproxy.dns import upstream
from kproxy.dns.blocks import Forward
from kproxy.dns.forward_stream import Streams
from kproxy.dns.resolvconf import Upstream
from kproxy.dns.upstream import Question, Reply
from kproxy.dns.wire import Rcode

FORGERIES = 10  # replies that are not ours, in one attempt, before TCP is used instead

_IP_MTU_DISCOVER, _IPV6_MTU_DISCOVER, _PMTUDISC_OMIT = 10, 23, 5
_CHOKED = frozenset({Rcode.FORMERR, Rcode.NOTIMP, Rcode.BADVERS})
_BY_TCP = Reply(Rcode.SERVFAIL, truncated=True)  # what UDP says when it cannot be trusted here


@dataclass(slots=True, eq=False)
class Link:
    """An upstream, its open connections, and its manners. edns: it understands EDNS. cased: it repeats the case of letters."""

    upstream: Upstream
    streams: Streams
    edns: bool = True
    cased: bool = True
    fails: int = 0  # probes that failed in a row
    suspect: bool = False  # the last attempt failed
    loops: bool = False  # leads back to this server
    probing: bool = False
    label: str = field(init=False)

    def __post_init__(self) -> None:
        self.label = self.upstream.label


class Exchange:
    """Asks on behalf of one `forward` directive. `counters` is the worker's."""

    def __init__(self, directive: Forward, counters: Counter[str], *, mixed_case: bool = True) -> None:
        self._directive = directive
        self._counters = counters
        self._mixed_case = mixed_case

    async def ask(
        self, link: Link, question: Question, timeout_s: float, *, by_tcp: bool = False, recursion: bool = True
    ) -> Reply | None:
        """One attempt, with a second one where the upstream's manners were learned from the first."""
        reply = await self._once(link, question, timeout_s, by_tcp, recursion)
        if reply is not None and reply.rcode in _CHOKED and link.edns and not reply.truncated:
            plain = await self._once(link, question, timeout_s, by_tcp, recursion, edns=False)
            if plain is not None and plain.rcode not in _CHOKED:
                link.edns = False
            return plain or reply
        return reply

    async def _once(
        self, link: Link, question: Question, timeout_s: float, by_tcp: bool, recursion: bool, edns: bool = True
    ) -> Reply | None:
        edns = edns and link.edns
        if by_tcp or link.upstream.tls or self._directive.force_tcp:
            return await self._by_stream(link, question, timeout_s, edns, recursion)
        reply = await self._by_udp(link, question, timeout_s, edns, recursion)
        if reply is None or not (reply.truncated or reply.mangled):
            return reply
        self._counters["forward_tcp"] += 1
        whole = await self._by_stream(link, question, timeout_s, edns, recursion)
        if reply.mangled:
            link.cased = False
            if whole is None:  # no TCP there; the ID and the port are what is left
                whole = await self._by_udp(link, question, timeout_s, edns, recursion)
        # Where TCP is blocked, what came before the cut is better than nothing for clients that take it.
        return whole or (reply if reply.answer and not reply.mangled else None)

    async def _by_udp(
        self, link: Link, question: Question, timeout_s: float, edns: bool, recursion: bool
    ) -> Reply | None:
        loop = asyncio.get_running_loop()
        ready: asyncio.Future[Reply | None] = loop.create_future()
        message_id = secrets.randbits(16)
        spelling = self._spelling(link, question)
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
                reply = upstream.read(question, message_id, data, spelling=spelling)
                if reply is not None:
                    ready.set_result(reply)
                    return
                forged += 1
                self._counters["forward_mismatched"] += 1
                if forged >= FORGERIES:
                    ready.set_result(_BY_TCP)

        try:
            sock = _datagram_socket(link.upstream, self._directive.source_address)
        except OSError:
            return None
        try:
            sock.connect((link.upstream.address, link.upstream.port))
            sock.send(upstream.ask(question, message_id, spelling=spelling, edns=edns, recursion=recursion))
            loop.add_reader(sock.fileno(), readable)
            async with asyncio.timeout(timeout_s):
                return await ready
        except (OSError, TimeoutError):
            return None
        finally:
            loop.remove_reader(sock.fileno())
            sock.close()

    async def _by_stream(
        self, link: Link, question: Question, timeout_s: float, edns: bool, recursion: bool
    ) -> Reply | None:
        spelling = self._spelling(link, question)
        reply = await link.streams.ask(question, timeout_s, spelling=spelling, edns=edns, recursion=recursion)
        if reply is not None and reply.mangled:
            link.cased = False  # nobody forges a connection: it is the upstream's habit
            reply = await link.streams.ask(question, timeout_s, spelling=b"", edns=edns, recursion=recursion)
        if reply is not None and reply.truncated:
            return Reply(Rcode.SERVFAIL, extended_error=upstream.FAILED)  # there is nothing to go to from here
        return reply

    def _spelling(self, link: Link, question: Question) -> bytes:
        """The name with its letters in random cases; lower case for an upstream that does not repeat them."""
        if not self._mixed_case or not link.cased:
            return question.name
        return upstream.spelled(question.name, secrets.randbits(len(question.name)))


def _datagram_socket(server: Upstream, source: str) -> socket.socket:
    """A UDP socket that forged "fragmentation needed" messages cannot make send fragments (RFC 9715 section 3.1)."""
    six = ":" in server.address
    sock = socket.socket(socket.AF_INET6 if six else socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    try:
        if six:
            sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_MTU_DISCOVER, _PMTUDISC_OMIT)
        else:
            sock.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _PMTUDISC_OMIT)
        if source:
            sock.bind((source, 0))
    except OSError:
        sock.close()
        raise
    return sock
