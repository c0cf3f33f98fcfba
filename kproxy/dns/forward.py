"""Asks other servers what the cluster's zones do not know, and remembers what they said.

In: a `Forward` (the question, and whose `forward` directives are to be used). Out: a `Reply`, or None when nobody answered within the
deadline. What must not happen here: building or judging messages (`upstream` does, pure), and waiting without an end: one question has a
deadline over all its attempts, there is a bound on questions under way and on those waiting for them, of which no client can take
everything (`room`), and equal questions under way are one.

A question is a task of its own: a client that goes away, or is given an expired answer meanwhile, does not end it for the others.

Expired answers (`serve_stale`; without a Corefile on): upstream is asked first, and what has expired is told, with extended error 3, when
it has not answered in time or failed (RFC 8767); or told at once and refreshed behind, as the directive wants. A failure is remembered
too: the next clients have what there is without another walk through all upstreams.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import time
from collections import Counter
from collections.abc import Coroutine, Hashable, Sequence
from typing import Any

from kproxy.dns import upstream
from kproxy.dns.answer import Forward
from kproxy.dns.blocks import ServerBlock
from kproxy.dns.cache_forward import UNANSWERED_S, Entry, ReplyCache
from kproxy.dns.chain import default_blocks
from kproxy.dns.clients import ANYBODY, Client
from kproxy.dns.forward_loop import LoopCheck
from kproxy.dns.forward_pool import Pool, Spawn
from kproxy.dns.resolvconf import Upstream, Upstreams
from kproxy.dns.room import Room
from kproxy.dns.settings import DnsSettings
from kproxy.dns.upstream import Question, Reply
from kproxy.dns.wire import Rcode, Transport

log = logging.getLogger("kproxy.dns.forward")

WAITING = 20_000  # forwarded queries that may wait at once
WAITING_PER_QUESTION = 1000  # of them for one question; further ones get SERVFAIL at once

_FAILURE = Reply(Rcode.SERVFAIL, extended_error=upstream.FAILED)
_SILENCE = Reply(Rcode.SERVFAIL, extended_error=upstream.NOBODY)
_BUSY = Reply(Rcode.SERVFAIL, extended_error=0)
_FINAL = frozenset({Rcode.NOERROR, Rcode.NXDOMAIN})


@dataclasses.dataclass(slots=True, eq=False)
class _Block:
    """One server block's part in this: its directives at work."""

    pools: tuple[Pool, ...]
    cache: ReplyCache | None
    checks_loops: bool


class _Asking:
    """A question under way and how many clients wait for it."""

    __slots__ = ("reply", "waiting")

    def __init__(self, reply: asyncio.Future[Reply | None]) -> None:
        self.reply = reply
        self.waiting = 0


def _nowhere(coroutine: Coroutine[Any, Any, None]) -> object:
    coroutine.close()
    raise RuntimeError("forwarders that were made to check settings ask nobody")


class Forwarders:
    """One per worker. `counters` is shared with the server and only ever grows."""

    def __init__(self, settings: DnsSettings, counters: Counter[str], spawn: Spawn = _nowhere) -> None:
        """spawn: starts a task in the worker's group. Raises ValueError when a directive cannot be used."""
        self._counters = counters
        self._spawn = spawn
        self._asking: dict[Hashable, _Asking] = {}
        self._waiting = Room(WAITING)
        self._loops = LoopCheck(counters)
        self._looking: set[Pool] = set()
        self._started = False
        self._faults: set[str] = set()
        self._blocks: tuple[_Block, ...] = ()
        self._pools: dict[Hashable, Pool] = {}
        self._caches: dict[Hashable, ReplyCache] = {}
        self.use(settings)

    def use(self, settings: DnsSettings) -> None:
        """Other settings. Directives that are the same keep what they know. Raises ValueError, changing nothing."""
        addresses = (*settings.listen, *settings.own_addresses)
        blocks = default_blocks(settings)
        own = frozenset(Upstream(address, port) for address in addresses for port in _ports(settings, blocks))
        pools: dict[Hashable, Pool] = {}
        caches: dict[Hashable, ReplyCache] = {}
        made = []
        for block in blocks:
            found = []
            for number, directive in enumerate(block.forwards):
                key: Hashable = (directive, own, settings.resolv_conf, block.zones, block.port, number)
                pool = self._pools.get(key)
                if pool is None:
                    upstreams = Upstreams(directive.to, own, preferred_files=settings.resolv_conf)
                    pool = Pool(
                        directive, upstreams, self._counters, self._spawn, mixed_case=settings.forward_mixed_case
                    )
                pools[key] = pool
                found.append(pool)
            cache = None
            if block.cache is not None:
                place = (block.cache, block.zones, block.port)
                cache = caches[place] = self._caches.get(place) or ReplyCache(block.cache)
            made.append(_Block(tuple(found), cache, block.loop))
        for key, pool in self._pools.items():
            if key not in pools:
                pool.close()
        self._settings, self._blocks, self._pools, self._caches = settings, tuple(made), pools, caches
        self._room = Room(settings.forward_in_flight)
        if self._started:
            self._look_for_loops(everywhere=True)

    def start(self) -> None:
        """The sockets are open: upstreams that lead back here can be found."""
        self._started = True
        self._look_for_loops(everywhere=True)

    def close(self) -> None:
        """Ends all connections."""
        for pool in self._pools.values():
            pool.close()

    @property
    def waiting(self) -> int:
        """Queries that wait for an upstream."""
        return self._waiting.taken

    def has_upstream(self, forward: Forward) -> bool:
        """Whether there is anybody to ask; without, clients are refused at once."""
        now = time.monotonic()
        return any(pool.refresh(now) for pool in self._concerned(forward))

    def echo(self, forward: Forward) -> Reply | None:
        """What is said to a question of this node's own that has come back, which shows that an upstream leads here; None for others."""
        return self._loops.echo(upstream.question_of(forward))

    def know(self, keys: Sequence[bytes]) -> None:
        """The keys that the workers of this node have in common; see `forward_loop`."""
        if self._loops.know(keys) and self._started:
            self._look_for_loops(everywhere=True)

    def ages(self, forward: Forward) -> bool:
        """Whether a reply may be told again for some seconds with a falling TTL and no look at what is remembered."""
        cache = self._block(forward).cache
        if cache is None or cache.directive.keep_ttl or cache.directive.prefetch_amount:
            return False
        now = time.monotonic()
        entry = cache.get(upstream.question_of(forward), now)
        return not forward.prefix and forward.after is None and entry is not None and now < entry.until

    def remembered(self, forward: Forward) -> tuple[Reply, int] | None:
        """A reply that needs no waiting, and the TTL to tell; None when upstream has to be asked."""
        known = self._known(self._block(forward), forward, upstream.question_of(forward), time.monotonic())
        return None if known is None else known[1:]

    async def resolve(
        self, forward: Forward, transport: Transport = Transport.UDP, client: Client = ANYBODY
    ) -> Reply | None:
        """The reply, its records with the TTLs to tell; None when nobody answered within the deadline.

        transport: how the client came; upstream is asked the same way. client: whose share of the room this takes.
        """
        question = upstream.question_of(forward)
        if not self._waiting.take(client.address):
            self._counters["forward_overload"] += 1
            return _BUSY
        try:
            block = self._block(forward)
            asking = self._ask(block, forward, question, transport is Transport.TCP, client.address)
            if asking is None:
                self._counters["forward_overload"] += 1
                return self._stale(block, question) or _BUSY
            asking.waiting += 1
            reply = None
            try:
                async with asyncio.timeout(self._patience(block, question)):
                    reply = await asyncio.shield(asking.reply)
            except TimeoutError:
                pass
            if reply is None or reply.rcode not in _FINAL:
                return self._stale(block, question) or reply
            return reply
        finally:
            self._waiting.give(client.address)

    def _block(self, forward: Forward) -> _Block:
        return self._blocks[forward.block if forward.block < len(self._blocks) else 0]

    def _concerned(self, forward: Forward) -> list[Pool]:
        return [pool for pool in self._block(forward).pools[forward.first :] if pool.concerns(forward.name)]

    def _known(
        self, block: _Block, forward: Forward, question: Question, now: float
    ) -> tuple[Entry, Reply, int] | None:
        """What may be told without asking: a fresh entry, or an expired one that needs no asking first."""
        cache = block.cache
        if cache is None:
            return None
        self._counters["forward_cache_requests"] += 1
        entry = cache.get(question, now)
        if entry is not None and entry.reply.rcode != Rcode.NOERROR and cache.directive.prefer_positive:
            entry = cache.stale_answer(question, now) or entry
        if entry is None:
            self._counters["forward_cache_misses"] += 1
            return None
        directive = cache.directive
        if now < entry.until:
            denied = entry.failure or entry.reply.rcode == Rcode.NXDOMAIN
            self._counters["forward_cache_denial_hits" if denied else "forward_cache_hits"] += 1
            if cache.wants_refresh(entry, now):
                self._counters["forward_cache_prefetches"] += 1
                self._refresh(block, forward, question)
            return entry, entry.reply, int(entry.ttl) if directive.keep_ttl else entry.left(now)
        if now < entry.failed_until or not directive.stale_verify:
            if now >= entry.failed_until:
                self._refresh(block, forward, question)
            self._counters["forward_cache_stale"] += 1
            return entry, _as_stale(entry.reply), directive.stale_ttl_s
        self._counters["forward_cache_misses"] += 1
        return None

    def _patience(self, block: _Block, question: Question) -> float | None:
        """How long upstream may take while there is something expired to tell, seconds; None: as long as it takes."""
        cache = block.cache
        if cache is None or not cache.directive.stale_verify_timeout_s:
            return None
        entry = cache.get(question, time.monotonic())
        return None if entry is None or entry.failure else cache.directive.stale_verify_timeout_s

    def _stale(self, block: _Block, question: Question) -> Reply | None:
        cache = block.cache
        if cache is None or not cache.directive.stale_s:
            return None
        entry = cache.get(question, time.monotonic())
        if entry is None or entry.failure:
            return None
        self._counters["forward_cache_stale"] += 1
        return with_ttl(_as_stale(entry.reply), cache.directive.stale_ttl_s)

    def _refresh(self, block: _Block, forward: Forward, question: Question) -> None:
        """Asks again without anybody waiting for it; not when much is under way already."""
        if len(self._asking) * 2 < self._room.room:
            self._ask(block, forward, question, by_tcp=False, who="")

    def _ask(self, block: _Block, forward: Forward, question: Question, by_tcp: bool, who: str) -> _Asking | None:
        """The question under way, begun if it is not; None when there is no room for it or for another who waits."""
        key: Hashable = (id(block), forward.first, question)
        asking = self._asking.get(key)
        if asking is not None:
            self._counters["forward_joined"] += 1
            return asking if asking.waiting < WAITING_PER_QUESTION else None
        if not self._room.take(who):
            return None
        asking = self._asking[key] = _Asking(asyncio.get_running_loop().create_future())
        self._spawn(self._find_out(block, forward, question, by_tcp, key, who, self._room))
        return asking

    async def _find_out(
        self, block: _Block, forward: Forward, question: Question, by_tcp: bool, key: Hashable, who: str, room: Room
    ) -> None:
        """The life of one question."""
        self._counters["forward_questions"] += 1
        reply: Reply | None = None
        try:
            reply = await self._go_through(forward, question, by_tcp, who)
            if reply is not None and reply.rcode == Rcode.SERVFAIL and reply.extended_error is None:
                reply = dataclasses.replace(reply, extended_error=upstream.FAILED)
            reply = self._remember(block, question, reply)
        except Exception as error:  # an upstream's packet must not end the worker
            self._fault(error)
            reply = _FAILURE
        finally:
            room.give(who)
            asking = self._asking.pop(key)
            if not asking.reply.done():
                asking.reply.set_result(reply)

    async def _go_through(self, forward: Forward, question: Question, by_tcp: bool, who: str) -> Reply | None:
        """Asks by one `forward` after the other, as far as `next` says."""
        deadline = asyncio.get_running_loop().time() + self._settings.forward_deadline_s
        reply: Reply | None = None
        for pool in self._concerned(forward):
            if not pool.room.take(who):
                self._counters["forward_rejects"] += 1
                return Reply(Rcode.REFUSED)
            try:
                reply = await pool.ask(question, deadline, by_tcp=by_tcp)
            finally:
                pool.room.give(who)
            if pool.changed and self._started:
                self._look_for_loops()
            rcode = Rcode.SERVFAIL if reply is None else reply.rcode
            nodata = pool.directive.next_on_nodata and rcode == Rcode.NOERROR and not (reply and reply.answer)
            if rcode not in pool.next_rcodes and not nodata:
                break
        return reply

    def _remember(self, block: _Block, question: Question, reply: Reply | None) -> Reply | None:
        cache = block.cache
        if cache is None:
            return reply
        now = time.monotonic()
        if reply is None:
            cache.failed(question, _SILENCE, now, min(UNANSWERED_S, cache.directive.servfail_s))
            return None
        ttl = cache.ttl_of(question, reply)
        if ttl is not None:
            reply = with_ttl(reply, ttl)
        cache.store(question, reply, now)
        self._counters["forward_cache_evictions"] = sum(c.evictions for c in self._caches.values())
        self._counters["forward_cache_answers"] = sum(len(c.answers.entries) for c in self._caches.values())
        self._counters["forward_cache_denials"] = sum(len(c.denials.entries) for c in self._caches.values())
        return reply

    def _look_for_loops(self, *, everywhere: bool = False) -> None:
        now = time.monotonic()
        for block in self._blocks:
            for pool in block.pools:
                pool.refresh(now)
                if block.checks_loops and (pool.changed or everywhere) and pool not in self._looking:
                    self._looking.add(pool)
                    self._spawn(self._look(pool))
                pool.changed = False

    async def _look(self, pool: Pool) -> None:
        try:
            await self._loops.look(pool)
        except Exception as error:
            self._fault(error)
        finally:
            self._looking.discard(pool)

    def _fault(self, error: Exception) -> None:
        self._counters["faults"] += 1
        kind = f"{type(error).__name__}: {error}"[:200]
        if kind not in self._faults and len(self._faults) < 20:
            self._faults.add(kind)
            log.error("an upstream's reply made this server fail", exc_info=error)


def with_ttl(reply: Reply, ttl: int) -> Reply:
    """`reply` with one TTL for all its records, seconds."""
    return dataclasses.replace(
        reply,
        answer=tuple(dataclasses.replace(item, ttl=ttl) for item in reply.answer),
        authority=tuple(dataclasses.replace(item, ttl=ttl) for item in reply.authority),
    )


def _as_stale(reply: Reply) -> Reply:
    error = upstream.STALE_ABSENCE if reply.rcode == Rcode.NXDOMAIN else upstream.STALE
    return dataclasses.replace(reply, extended_error=error)


def _ports(settings: DnsSettings, blocks: tuple[ServerBlock, ...]) -> frozenset[int]:
    return frozenset((settings.port, *(block.port for block in blocks)))
