"""What a worker says to a query that is not remembered: the chain's outcome, upstream's word, a walk's end, and what EDNS adds.

In: the bytes of a query, who sent it and how. Out: replies, at once or after waiting. What must not happen here: sockets (server, datagrams
and streams have them), decisions about names (chain and what it calls), and an exception that leaves: a fault of ours is counted, told
once, and answered SERVFAIL. Were it to end the process, one packet a second would keep every worker of a node down.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import replace
from time import perf_counter
from typing import Any

from kproxy.dns import chain, cookies, search, upstream, wire
from kproxy.dns.answer import Dropped, Forward, Outcome, Transfer
from kproxy.dns.cache_walked import WalkedReplies
from kproxy.dns.clients import Client
from kproxy.dns.failing import Failing
from kproxy.dns.finishing import next_of
from kproxy.dns.forward import Forwarders
from kproxy.dns.search import Walk
from kproxy.dns.tally import Place, Tally
from kproxy.dns.walking import Walker
from kproxy.dns.wire import Query, Rcode, Transport, Type

log = logging.getLogger("kproxy.dns.server")

LEAST_TTL_S = 2  # of a forwarded reply that is used again within its second
WAITING = 20_000  # queries that may wait for somebody else at once, UDP and TCP together

Pending = Forward | Walk
Spawn = Callable[[Coroutine[Any, Any, None]], object]


class Responder:
    """Of one worker. `served` is replaced as a whole. cookie_secrets: see cookies.py; none, and clients get no server cookie."""

    def __init__(self, served: chain.Served, counters: Counter[str], tally: Tally, spawn: Spawn) -> None:
        self.served = served
        self.counters = counters
        self.tally = tally
        self.cookie_secrets: tuple[bytes, ...] = ()
        self.failing = Failing()
        self.failing.follow(served.blocks)
        self.less = asyncio.Event()  # somebody waits no longer
        self.waiting = 0
        self._spawn = spawn
        self._faults: set[str] = set()
        self._places: dict[tuple[int, int], Place] = {}
        self.upstreams = Forwarders(served.settings, counters, spawn)
        self.walker = Walker(self.upstreams, counters, spawn, served.settings.forward_deadline_s)
        self.walked = WalkedReplies()

    def use(self, served: chain.Served) -> None:
        """Answers from `served` from now on. Raises ValueError, changing nothing. Queries under way end as they began."""
        if self.served.settings != served.settings:
            self.upstreams.use(served.settings)
            self.walker = Walker(self.upstreams, self.counters, self._spawn, served.settings.forward_deadline_s)
            self._places.clear()
        self.failing.follow(served.blocks)
        self.served = served

    def respond(
        self,
        data: bytes,
        transport: Transport,
        client: Client,
        turn: int,
        port: int,
        source_port: int = 0,
        sock: socket.socket | None = None,
    ) -> Outcome | Pending | Transfer | None:
        """What the chain says; SERVFAIL when it fails. sock: the one that the query came by, where some block wants to know its address."""
        try:
            address = sock.getsockname()[0] if sock is not None and self.served.addressed else ""
            outcome = chain.respond(
                self.served, data, transport, client, turn, port=port, address=address, source_port=source_port
            )
        except Exception as error:  # see the module's text
            self.fault(error, data)
            return Outcome(wire.bare(data, Rcode.SERVFAIL), rcode=Rcode.SERVFAIL)
        if isinstance(outcome, Dropped):
            self.counters[outcome.event % self.place(outcome.block, port).server] += 1
            outcome = None
        if outcome is None:
            self.counters["dropped"] += 1
        elif isinstance(outcome, Outcome) and outcome.query is None and data[4:6] == b"\0\0":
            return self._cookie_alone(data, client) or outcome
        return outcome

    def fault(self, error: Exception, data: bytes) -> None:
        """Counts a fault of ours and tells each kind once."""
        self.counters["faults"] += 1
        kind = f"{type(error).__name__}: {error}"[:200]
        if kind not in self._faults and len(self._faults) < 20:
            self._faults.add(kind)
            log.error(
                "a query made this server fail; it was answered SERVFAIL. Query: %s", data[:512].hex(), exc_info=error
            )

    def at_once(self, pending: Pending, transport: Transport, turn: int) -> Outcome | None:
        """The reply that needs no waiting: remembered, nobody to ask, or too much under way. None: `later`."""
        try:
            return self._at_once(pending, transport, turn)
        except Exception as error:  # as in respond: an upstream's packet must not end the worker either
            self.fault(error, pending.query.question)
            return self._failed(pending, transport)

    def _at_once(self, pending: Pending, transport: Transport, turn: int) -> Outcome | None:
        if isinstance(pending, Walk):
            outcome = self.walker.at_once(pending, transport)
            if outcome is not None:
                return outcome
        elif (echo := self.upstreams.echo(pending)) is not None:
            return Outcome(upstream.finish(pending, echo, transport), b"", pending.query, block=pending.block)
        else:
            known = self.upstreams.remembered(pending)
            if known is not None:
                reply = upstream.finish(pending, known[0], transport, ttl=known[1], turn=turn)
                if pending.then is not None:
                    return self._after(next_of(pending, reply), transport, turn)
                addresses = sum(item.rtype == pending.qtype for item in known[0].answer)
                turns = addresses if pending.qtype in (Type.A, Type.AAAA) and addresses > 1 else 1
                return Outcome(
                    reply,
                    b"",
                    pending.query,
                    reply[3] & 15,
                    turns,
                    block=pending.block,
                    personal=pending.personal,
                    events=pending.events,
                    single=pending.single,
                )
            if not pending.prefix and not self.upstreams.has_upstream(pending):
                size = wire.limit(pending.query, transport)
                reply = wire.build(pending.query, rcode=Rcode.REFUSED, authoritative=False, size=size)
                reply = reply if pending.after is None else pending.after(reply, transport)
                return Outcome(reply, b"", pending.query, Rcode.REFUSED, block=pending.block)
        if self.waiting >= WAITING:
            self.counters["forward_overload"] += 1
            return self._failed(pending, transport)
        return None

    def _after(self, said: Outcome | Forward, transport: Transport, turn: int) -> Outcome | None:
        """What comes of a reply that only led to the next question (`Forward.then`)."""
        return said if isinstance(said, Outcome) else self._at_once(said, transport, turn)

    def _failed(self, pending: Pending, transport: Transport) -> Outcome:
        if isinstance(pending, Walk):
            size = wire.limit(pending.query, transport)
            reply = wire.build(pending.query, rcode=Rcode.SERVFAIL, authoritative=False, size=size, extended_error=22)
        else:
            reply = upstream.finish(pending, None, transport)
        return Outcome(reply, b"", pending.query, Rcode.SERVFAIL)

    async def later(self, pending: Pending, transport: Transport, client: Client) -> Outcome:
        """The reply to `client`, whoever has to be asked for it. Never raises but for cancellation."""
        self.waiting += 1
        try:
            if isinstance(pending, Walk):
                return await self.walker.run(pending, transport, client)
            while True:
                found = await self.upstreams.resolve(pending, transport, client)
                if found is None:
                    self.failing.failed(pending.block, pending.query, "no upstream has answered")
                reply = upstream.finish(pending, found, transport)
                if pending.then is None:
                    return Outcome(
                        reply,
                        b"",
                        pending.query,
                        reply[3] & 15,
                        block=pending.block,
                        personal=pending.personal,
                        events=pending.events,
                        single=pending.single,
                    )
                said = next_of(pending, reply)
                if isinstance(said, Outcome):
                    return said
                pending = said  # the chain bounds how often
        except Exception as error:  # as in respond
            self.fault(error, pending.query.question)
            return self._failed(pending, transport)
        finally:
            self.waiting -= 1
            self.less.set()

    def ask_as(self, client: Client, data: bytes, walk: bool, said: Callable[[bytes, float], None]) -> None:
        """Answers a person's question as that client's over TCP, without the caches, and without its search list unless `walk`.

        said: told the reply, empty for silence, and the seconds it took; at once or later.
        """
        began = perf_counter()
        client = client if walk else replace(client, lists=())
        pending = self.respond(data, Transport.TCP, client, 0, self.served.settings.port)
        if not isinstance(pending, Forward | Walk):
            said(pending.reply if isinstance(pending, Outcome) and client.allowed else b"", perf_counter() - began)
            return

        async def later(asked: Pending) -> None:
            outcome = self.at_once(asked, Transport.TCP, 0) or await self.later(asked, Transport.TCP, client)
            said(outcome.reply, perf_counter() - began)

        self._spawn(later(pending))

    def dressed(self, reply: bytes, query: Query | None, client: Client, transport: Transport) -> bytes:
        """The reply with the EDNS options that this client's query asks for: a cookie, and over TCP how long it may stay."""
        edns = query.edns if query is not None else None
        if edns is None or not (edns.cookie or edns.keepalive):
            return reply
        options = b""
        if edns.cookie:
            options += self._cookie(edns.cookie, client)[0]
        if (
            edns.keepalive and transport is Transport.TCP
        ):  # over UDP it has no meaning and is ignored: RFC 7828 section 3.2
            options += wire.option(wire.KEEPALIVE, struct.pack("!H", int(self.served.settings.tcp_idle_s * 10)))
        return wire.with_options(reply, options)

    def _cookie(self, cookie: bytes, client: Client) -> tuple[bytes, bool]:
        if not self.cookie_secrets:
            return b"", False
        whole, good = cookies.reply_cookie(cookie, client.packed, _now(), self.cookie_secrets)
        self.counters["cookies_good" if good else "cookies_new" if len(cookie) == 8 else "cookies_bad"] += 1
        return wire.option(wire.COOKIE, whole), good

    def _cookie_alone(self, data: bytes, client: Client) -> Outcome | None:
        """A query without question that wants a cookie (RFC 7873 section 5.4), the one place where a bad one is said to be bad."""
        edns = wire.cookie_request(data)
        if edns is None or not self.cookie_secrets:
            return None
        option, good = self._cookie(edns.cookie, client)
        rcode = Rcode.NOERROR if good or len(edns.cookie) == cookies.CLIENT else Rcode.BADCOOKIE
        query = Query(data[:2], data[2] << 8 | data[3], b"", b"", 0, 1, b"", edns, False)
        reply = wire.build(query, rcode=rcode, authoritative=False)
        return Outcome(wire.with_options(reply[:4] + b"\0\0" + reply[6:], option), rcode=rcode)

    def place(self, block: int, port: int) -> Place:
        """CoreDNS's labels for a block and the port that was asked."""
        place = self._places.get((block, port))
        if place is None:
            blocks = self.served.blocks
            zone = blocks[block].zones[0] if 0 <= block < len(blocks) else "dropped"
            zone = zone if zone.endswith(".") else f"{zone}."
            place = self._places[(block, port)] = Place(f"dns://:{port}", zone)
        return place

    def kind(
        self,
        outcome: Outcome,
        reply: bytes,
        asked: int,
        proto: str,
        port: int,
        how: str,
        *,
        quick: bool,
        qtype: int = 0,
    ) -> list[int]:
        """Where uses of this reply are counted. how: `zone`, `forward`, `walk`."""
        query = outcome.query
        plugin = outcome.plugin or ("forward" if how != "zone" else "kubernetes" if reply[2] & 4 else "")
        also: tuple[str, ...] = ()
        if outcome.saved:
            server = self.place(outcome.block, port).server
            also = (*("walks_saved",) * outcome.saved, f'coredns_autopath_success_total{{server="{server}"}}')
        if quick and how == "forward":
            denied = outcome.rcode == Rcode.NXDOMAIN
            also = ("forward_cache_requests", "forward_cache_denial_hits" if denied else "forward_cache_hits")
        if outcome.events:
            server = self.place(outcome.block, port).server
            also = (*also, *(event % server for event in outcome.events))
        return self.tally.kind(
            self.place(outcome.block, port),
            proto=proto,
            qtype=query.qtype if query is not None else qtype,
            rcode=outcome.rcode,
            plugin=plugin,
            dnssec_ok=query is not None and query.edns is not None and query.edns.dnssec_ok,
            asked=asked,
            said=len(reply),
            quick=quick,
            also=also,
        )

    def again(self, reply: bytes, asked: int, port: int, how: str, saved: int) -> list[int]:
        """Where uses of a reply are counted of which only the bytes are known.

        Its block is not: a configuration with several blocks has the label of the first one on these.
        """
        at = wire.HEADER
        while at < len(reply) and 0 < reply[at] < 64:
            at += reply[at] + 1
        outcome = Outcome(reply, rcode=reply[3] & 15, saved=saved)
        qtype = int.from_bytes(reply[at + 1 : at + 3], "big")
        return self.kind(outcome, reply, asked, "udp", port, how, quick=True, qtype=qtype)


def _now() -> int:
    return int(time.time())  # noqa: TID251 - cookies carry Unix time


def may_be_dated(outcome: Outcome) -> bool:
    """Whether a reply that ages may be used again within its second."""
    whole = outcome.rcode in (Rcode.NOERROR, Rcode.NXDOMAIN) and not outcome.reply[2] & 2
    return whole and search.least_ttl(outcome.reply) >= LEAST_TTL_S
