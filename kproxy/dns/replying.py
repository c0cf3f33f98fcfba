"""Replies to single queries, over UDP and over TCP: found, sent, counted, remembered and shown.

In: a query that the hot loop did not find (datagrams.py) or one that came over TCP (streams.py). Out: replies. What must not happen here:
deciding what a reply says (responding.py and the chain behind it), or binding sockets (server.py).
"""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import replace
from time import monotonic, monotonic_ns, perf_counter
from typing import Any

from kproxy.dns.answer import Forward, Outcome, Transfer
from kproxy.dns.cache import comes_again
from kproxy.dns.clients import Client
from kproxy.dns.datagrams import Datagrams
from kproxy.dns.kernel_maps import ORDERS
from kproxy.dns.observing import Observing
from kproxy.dns.refusing import Strangers
from kproxy.dns.remembered import Caches, Hot
from kproxy.dns.responding import Pending, Responder, Spawn, may_be_dated
from kproxy.dns.room import Pace
from kproxy.dns.savings import Savings
from kproxy.dns.search import Walk
from kproxy.dns.streams import Answer, Connection
from kproxy.dns.tally import Tally
from kproxy.dns.wire import Rcode, Transport
from kproxy.dns.zone import Zone

WALKS_PER_SECOND = (
    200  # of names that were not asked for lately, for each client: 1 ms of CPU each, and up to sixteen questions
)


class Replying:
    """Of one worker. caches: by port as blocks call it. denying: of each block, the zone that alone denies names there.

    places: addresses and ports that are ours, from which no query can come.
    """

    def __init__(self, responder: Responder, hot: Hot, observing: Observing, spawn: Spawn) -> None:
        self.responder = responder
        self.hot = hot
        self.observing = observing
        self.counters: Counter[str] = hot.counters
        self.tally: Tally = responder.tally
        self.savings = Savings()
        self.strangers = Strangers(hot.counters)
        self.caches: dict[int, Caches] = {}
        self.places: dict[tuple[str, int], Datagrams] = {}
        self.denying: tuple[Zone | None, ...] = ()
        self._spawn = spawn
        self._walks = Pace(WALKS_PER_SECOND)
        self._second: asyncio.TimerHandle | None = None

    def end(self) -> None:
        """Nothing is to happen any more."""
        if self._second is not None:
            self._second.cancel()

    def slowly(self, at: Datagrams, data: bytes, peer: Any, keep: bool) -> None:
        """One query over UDP that is not remembered."""
        began = perf_counter()
        client = self.hot.clients.find(peer[0])
        if not client.allowed:
            refusal = self.strangers.refusal(data, client.address)
            if refusal is not None:
                at.send(refusal, peer)
            return
        if not peer[1] or (peer[1] == at.port and (peer[0], peer[1]) in self.places):
            self.counters["dropped"] += 1  # a reply would go nowhere, or to ourselves
            return
        key, now = data[2:], monotonic()
        walked = self.responder.walked.get(client, key, now)
        if walked is not None:
            self._reply_walked(at, data, peer, client, walked, began)
            return
        caches = at.caches
        aged = caches.aging.get((client.view, key), now)
        if aged is not None:
            self._reply_aged(at, data, peer, client, aged, began)
            return
        turn = caches.common.turn_to_make(key) or caches.personal.turn_to_make((client.view, key))
        pending = self.responder.respond(data, Transport.UDP, client, turn, at.port, peer[1], at.sock)
        how = "zone"
        if isinstance(pending, Forward | Walk):
            how = "walk" if isinstance(pending, Walk) else "forward"
            place = (client.view, key)
            turn = caches.aging.turn_to_make(place, now) or caches.dated.turn_to_make(place)
            outcome = self.responder.at_once(pending, Transport.UDP, turn)
            if outcome is None and isinstance(pending, Walk):
                outcome = self._left_to_client(pending, client, now)
                how, keep = ("walk", keep) if outcome is None else ("zone", False)
            if outcome is None:
                self._spawn(self._later(at, data, peer, client, pending, began))
                return
        elif isinstance(pending, Outcome):
            outcome = pending
        else:
            return
        # Names that upstream knows, and those of Services, are no flood of names, and what is kept of them is bounded. A client that asks
        # for more than its share must not cost a whole answer each time: it would never come below it again.
        if keep or how == "forward" or outcome.owner:
            self._keep(at, data, outcome, client, pending, now)
        self._reply(at, data, peer, client, outcome, how, began)
        if at.kernel is not None and outcome.owner and 1 < outcome.turns <= ORDERS:
            self._make_orders(at, data, peer, client, outcome.turns, now)
        self.hot.slow_s += perf_counter() - began

    def _make_orders(self, at: Datagrams, data: bytes, peer: Any, client: Client, turns: int, now: float) -> None:
        """The other orders of a reply that was just made: once all are there, the kernel has them, and nobody waits for a worker again."""
        key = data[2:]
        for _ in range(turns - 1):
            turn = at.caches.common.turn_to_make(key) or at.caches.personal.turn_to_make((client.view, key))
            made = self.responder.respond(data, Transport.UDP, client, turn, at.port, peer[1], at.sock)
            if not isinstance(made, Outcome) or made.turns != turns:
                return
            self._keep(at, data, made, client, made, now)

    def _left_to_client(self, walk: Walk, client: Client, now: float) -> Outcome | None:
        """The reply without a walk, after which the client goes on to its next candidate, for one that asks for too many names."""
        if not isinstance(walk.first, Outcome) or self._walks.take(client.address, now):
            return None
        self.counters["walks_left_to_clients"] += 1
        return (
            walk.first if walk.after is None else replace(walk.first, reply=walk.after(walk.first.reply, Transport.UDP))
        )

    def _keep(
        self, at: Datagrams, data: bytes, outcome: Outcome, client: Client, pending: Outcome | Pending, now: float
    ) -> None:
        if isinstance(pending, Walk):
            self.responder.walked.store(client, data, pending, outcome, now)
            return
        if outcome.single:
            return
        how = "forward" if isinstance(pending, Forward) else "zone"
        counts = self.responder.kind(outcome, outcome.reply, len(data), "udp", at.port, how, quick=True)
        zone = self.denying[outcome.block] if 0 <= outcome.block < len(self.denying) else None
        if how == "zone" and zone is not None and outcome.rcode == Rcode.NXDOMAIN:
            at.caches.denials.learn(data, client, outcome, zone, counts)
        if how == "zone" and not outcome.personal:
            at.caches.common.store(data, outcome, counts)
        elif client.view < 0:
            return
        elif how == "zone":
            at.caches.personal.store(data, outcome, counts, key=(client.view, data[2:]))
        elif may_be_dated(outcome) and comes_again(outcome):
            key = (client.view, data[2:])
            ages = isinstance(pending, Forward) and self.responder.upstreams.ages(pending)
            if not ages or not at.caches.aging.store(key, outcome.reply, counts, outcome.turns, now):
                at.caches.dated.store(data, outcome, counts, key=key)
                self._end_second()
        if outcome.owner:  # there are as many of these as Services; of all other names most are asked once
            at.offer(data[2:], client)

    def _reply_aged(
        self, at: Datagrams, data: bytes, peer: Any, client: Client, aged: tuple[bytes, list[int], bool], began: float
    ) -> None:
        reply, counts, lasts = aged
        at.send(data[:2] + reply, peer)
        counts[at.family] += 1
        if lasts:
            at.caches.dated.keep((client.view, data[2:]), (reply, counts))
            self._end_second()
            at.offer(data[2:], client)
        if self.observing.active:
            took = perf_counter() - began
            self.observing.answered(data, data[:2] + reply, peer, client, took, "cache", "udp")
        else:
            self.hot.slow_s += perf_counter() - began

    def _reply_walked(
        self, at: Datagrams, data: bytes, peer: Any, client: Client, walked: tuple[bytes, int, bool], began: float
    ) -> None:
        reply, saved, lasts = data[:2] + walked[0], walked[1], walked[2]
        at.send(reply, peer)
        kind = self.responder.again(reply, len(data), at.port, "walk", saved)
        counts = self.savings.line(client.name, saved, kind) if saved else kind
        counts[at.family] += 1
        if self.observing.active:
            took = perf_counter() - began
            self.observing.answered(data, reply, peer, client, took, "walk", "udp", saved=saved)
            return
        if lasts:  # the hot loop has it for the rest of the second
            at.caches.dated.keep((client.address, data[2:]), (walked[0], counts))
            self._end_second()
            at.offer(data[2:], client)
        self.hot.slow_s += perf_counter() - began

    def _end_second(self) -> None:
        if self._second is None:
            for caches in self.caches.values():
                caches.second_over = monotonic_ns() + 1_000_000_000
            self._second = asyncio.get_running_loop().call_later(1.0, self._next_second)

    def _next_second(self) -> None:
        self._second = None
        for caches in self.caches.values():
            caches.dated.clear()

    async def _later(
        self, at: Datagrams, data: bytes, peer: Any, client: Client, pending: Pending, began: float
    ) -> None:
        outcome = await self.responder.later(pending, Transport.UDP, client)
        how = "walk" if isinstance(pending, Walk) else "forward"
        try:
            if isinstance(pending, Walk):
                self.responder.walked.store(client, data, pending, outcome, monotonic())
            self._reply(at, data, peer, client, outcome, how, began)
        except Exception as error:  # out of a task it would end the worker, and with it everybody's answers
            self.responder.fault(error, data)
        at.glance()

    def _reply(
        self, at: Datagrams, data: bytes, peer: Any, client: Client, outcome: Outcome, how: str, began: float
    ) -> None:
        """Sends and counts a reply over UDP."""
        reply = self.responder.dressed(outcome.reply, outcome.query, client, Transport.UDP)
        at.send(reply, peer)
        self.responder.kind(outcome, reply, len(data), "udp", at.port, how, quick=False)[at.family] += 1
        if outcome.saved:
            self.savings.add(client.name, outcome.saved)
        took = perf_counter() - began
        self.tally.took(self.responder.place(outcome.block, at.port), took)
        if self.observing.active:
            self.observing.answered(
                data, reply, peer, client, took, how, "udp", block=outcome.block, saved=outcome.saved
            )

    def watched(self, reply: bytes, data: bytes, peer: Any, began: float) -> None:
        client = self.hot.clients.find(peer[0])
        self.observing.answered(data, data[:2] + reply, peer, client, perf_counter() - began, "cache", "udp")

    def answer_stream(self, data: bytes, connection: Connection) -> Answer:
        """The reply to a query over TCP; see `streams.Answering`."""
        began = perf_counter()
        client = self.hot.clients.find(connection.peer[0])
        if not client.allowed:
            connection.end()
            self.counters["refused_clients"] += 1
            return None
        turn = self.counters["queries_tcp"]
        pending = self.responder.respond(
            data, Transport.TCP, client, turn, connection.port, connection.peer[1], connection.sock
        )
        if isinstance(pending, Transfer):
            return pending.messages
        if pending is None:
            return None
        if isinstance(pending, Outcome):
            return self._stream_reply(data, connection, client, pending, "zone", began)
        outcome = self.responder.at_once(pending, Transport.TCP, turn)
        how = "walk" if isinstance(pending, Walk) else "forward"
        if outcome is not None:
            return self._stream_reply(data, connection, client, outcome, how, began)
        return self._stream_later(data, connection, client, pending, how, began)

    async def _stream_later(
        self, data: bytes, connection: Connection, client: Client, pending: Pending, how: str, began: float
    ) -> bytes:
        outcome = await self.responder.later(pending, Transport.TCP, client)
        return self._stream_reply(data, connection, client, outcome, how, began)

    def _stream_reply(
        self, data: bytes, connection: Connection, client: Client, outcome: Outcome, how: str, began: float
    ) -> bytes:
        reply = self.responder.dressed(outcome.reply, outcome.query, client, Transport.TCP)
        family = 1 if ":" in connection.peer[0] else 0
        self.responder.kind(outcome, reply, len(data), "tcp", connection.port, how, quick=False)[family] += 1
        if outcome.saved:
            self.savings.add(client.name, outcome.saved)
        took = perf_counter() - began
        self.tally.took(self.responder.place(outcome.block, connection.port), took)
        if self.observing.active:
            self.observing.answered(
                data, reply, connection.peer, client, took, how, "tcp", block=outcome.block, saved=outcome.saved
            )
        return reply
