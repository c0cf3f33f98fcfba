"""Walks along search lists that need somebody asked: puts the questions of a `search.Walk` and comes back with the client's reply.

In: a walk, and the forwarder. Out: its outcome; at once when everything is remembered, else after at most the time that one question may
take. Kept here, bounded and for seconds: which candidate a name ended at (so that A and AAAA agree even where nothing may be remembered),
and which suffixes have a wildcard. A wildcard below a host's suffix would take every outside name, `www.example.net.corp.example` instead
of `www.example.net`; it is found by asking for a name that nobody can have made, told once, and passed over. A client that means it gets
it all the same: where nothing else is found it walks the list by itself.

What must not happen here: deciding (search.py does, pure), or building replies.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any, Protocol

from kproxy.dns import names, search, upstream
from kproxy.dns.answer import Forward, Outcome
from kproxy.dns.clients import ANYBODY, Client
from kproxy.dns.search import Found, Replies, Walk, Wanted
from kproxy.dns.upstream import Reply
from kproxy.dns.wire import Rcode, Transport, Type

log = logging.getLogger("kproxy.dns.walking")

VERDICT_S = 2.0  # the two families of one look-up come within milliseconds of each other
WILDCARD_S = 300.0  # zones do not change their habits often
UNKNOWN_S = 10.0  # a suffix that could not be asked about is taken for a plain one this long
VERDICTS = 10_000
SUFFIXES = 1000

Spawn = Callable[[Coroutine[Any, Any, None]], object]


class Upstream(Protocol):
    """Whoever asks other servers and remembers what they said."""

    def remembered(self, forward: Forward) -> tuple[Reply, int] | None:
        """A reply that is still good, and the seconds for which it is."""

    async def resolve(self, forward: Forward, transport: Transport, client: Client) -> Reply | None:
        """The reply; None when nobody gave one. client: whose share of the room this takes."""


class Walker:
    """The walks of one worker. deadline_s: for one walk, all its questions together; then SERVFAIL."""

    def __init__(self, asked: Upstream, counters: Counter[str], spawn: Spawn, deadline_s: float) -> None:
        self._asked = asked
        self._counters = counters
        self._spawn = spawn
        self._deadline_s = deadline_s
        self._verdicts: dict[bytes, tuple[bytes, float]] = {}
        self._wildcards: dict[bytes, frozenset[bytes]] = {}
        self._until: dict[bytes, float] = {}
        self._probing: dict[bytes, asyncio.Event] = {}
        self._told: set[bytes] = set()

    def at_once(self, walk: Walk, transport: Transport) -> Outcome | None:
        """The outcome when nobody has to be asked; None otherwise."""
        replies: dict[tuple[int, int], bytes] = {}
        while True:
            decided = self._decide(walk, replies)
            if isinstance(decided, Found):
                self._counters["walks_recalled"] += 1
                return self._finish(walk, decided, replies, transport)
            if not self._recall(walk, decided, replies):
                return None

    async def run(self, walk: Walk, transport: Transport, client: Client = ANYBODY) -> Outcome:
        """The outcome, whatever has to be asked for it."""
        self._counters["walks_asked"] += 1
        replies: dict[tuple[int, int], bytes] = {}
        under_way: set[tuple[int, int]] = set()
        arrived = asyncio.Event()
        decided: Found | Wanted = Found(None, failed=True)
        try:
            async with asyncio.timeout(self._deadline_s):
                while isinstance(decided := self._decide(walk, replies), Wanted):
                    arrived.clear()
                    if decided.suffix:
                        await self._probe(walk, decided, client)
                    elif not self._recall(walk, decided, replies):
                        for key in {(decided.index, kind) for kind in decided.types} - under_way:
                            under_way.add(key)
                            self._spawn(self._ask(walk, key, replies, arrived, client))
                        # The first of both families may settle it: a name with an address need not wait for the other.
                        await arrived.wait()
        except TimeoutError:
            decided = Found(None, failed=True)
        assert isinstance(decided, Found)
        return self._finish(walk, decided, replies, transport)

    def _decide(self, walk: Walk, replies: Replies) -> Found | Wanted:
        now = time.monotonic()
        name, until = self._verdicts.get(walk.key, (b"", 0.0))
        for step in walk.steps:
            if step.suffix and self._until.get(step.suffix, 0.0) <= now:
                self._wildcards.pop(step.suffix, None)
        return search.decide(walk, replies, self._wildcards, name if now < until else b"")

    def _finish(self, walk: Walk, found: Found, replies: Replies, transport: Transport) -> Outcome:
        if found.index is not None:
            if len(self._verdicts) >= VERDICTS:
                self._verdicts.clear()
            self._verdicts[walk.key] = (walk.steps[found.index].name.lower(), time.monotonic() + VERDICT_S)
        outcome = search.finish(walk, found, replies, transport)
        return replace(outcome, reply=walk.after(outcome.reply, transport)) if walk.after is not None else outcome

    def _recall(self, walk: Walk, wanted: Wanted, replies: dict[tuple[int, int], bytes]) -> bool:
        """Takes what is remembered; whether there was anything."""
        found = False
        for kind in wanted.types:
            forward = _forward(walk, wanted.index, kind)
            known = self._asked.remembered(forward)
            if known is not None:
                reply, ttl = known
                turn = self._counters["walks_recalled"]
                replies[(wanted.index, kind)] = upstream.finish(forward, reply, Transport.TCP, ttl=ttl, turn=turn)
                found = True
        return found

    async def _ask(
        self,
        walk: Walk,
        key: tuple[int, int],
        replies: dict[tuple[int, int], bytes],
        arrived: asyncio.Event,
        client: Client,
    ) -> None:
        forward = _forward(walk, *key)
        try:
            reply = await self._asked.resolve(forward, Transport.UDP, client)
            replies[key] = upstream.finish(forward, reply, Transport.TCP)
        except (
            Exception
        ):  # an upstream's packet must not end the worker: the client is told SERVFAIL, the cause is logged
            self._counters["faults"] += 1
            log.exception("an upstream's reply made this server fail")
            replies[key] = upstream.finish(forward, None, Transport.TCP)
        finally:
            arrived.set()

    async def _probe(self, walk: Walk, wanted: Wanted, client: Client) -> None:
        """Finds out what a name has below a suffix that cannot have been made on purpose. One probe at a time for each suffix."""
        suffix = wanted.suffix
        under_way = self._probing.get(suffix)
        if under_way is not None:
            await under_way.wait()
            return
        self._probing[suffix] = asyncio.Event()
        try:
            data, known = await self._wild(_forward(walk, wanted.index, walk.query.qtype), suffix, client)
        finally:
            self._probing.pop(suffix).set()
        if len(self._wildcards) >= SUFFIXES:
            self._wildcards.clear()
            self._until.clear()
        self._wildcards[suffix] = data
        self._until[suffix] = time.monotonic() + (WILDCARD_S if known else UNKNOWN_S)
        if data and suffix not in self._told and len(self._told) < SUFFIXES:
            self._told.add(suffix)
            log.warning(
                "the search suffix %s answers every name below it (a wildcard record): names are not taken from it",
                names.decode(suffix),
            )

    async def _wild(self, forward: Forward, suffix: bytes, client: Client) -> tuple[frozenset[bytes], bool]:
        """The data of a name nobody made, of both families, and whether anybody could tell."""
        name = names.label(b"kproxy-" + secrets.token_hex(8).encode()) + suffix
        if len(name) > names.MAX_NAME:
            return frozenset(), True
        self._counters["walk_probes"] += 1
        data: frozenset[bytes] = frozenset()
        known = True
        for kind in (int(Type.A), int(Type.AAAA)):
            query = search.about(forward.query, name, kind)
            question = replace(forward, query=query, name=query.lowered, qtype=kind)
            reply = await self._asked.resolve(question, Transport.UDP, client)
            whole = upstream.finish(question, reply, Transport.TCP)
            seen = search.read_seen(whole, kind)
            known = known and seen.rcode in (Rcode.NOERROR, Rcode.NXDOMAIN)
            data |= seen.data if seen.positive else frozenset()
            if seen.rcode == Rcode.NXDOMAIN:
                break
        return data, known


def _forward(walk: Walk, index: int, kind: int) -> Forward:
    one = dict(walk.steps[index].asked)[kind]
    assert isinstance(one, Forward)
    return one
