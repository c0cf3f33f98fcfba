"""One worker's service: its sockets, what it answers from, and how both change while queries come.

In: settings, zones, who is served. Out: replies on every address that the settings name. What must not happen here: deciding what a reply
says (`responding` and the chain behind it do), and losing a query: sockets whose address stays are kept through every change, new ones are
bound before old ones go, and those that go leave their SO_REUSEPORT group first and are read empty then.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from time import monotonic, perf_counter
from typing import Any

from kproxy.dns import chain
from kproxy.dns.answer import Forward, Outcome, Transfer
from kproxy.dns.blocks import ServerBlock
from kproxy.dns.cache import comes_again
from kproxy.dns.clients import Client, Clients, PodView, served_networks
from kproxy.dns.datagrams import Caches, Datagrams, Hot
from kproxy.dns.denial import denying
from kproxy.dns.files import at_first
from kproxy.dns.observing import Observing
from kproxy.dns.refusing import Strangers
from kproxy.dns.responding import Pending, Responder, Spawn, may_be_dated
from kproxy.dns.savings import Savings
from kproxy.dns.search import Walk
from kproxy.dns.settings import DnsSettings
from kproxy.dns.sockets import bound, leave_group, link_addresses
from kproxy.dns.streams import Answer, Connection, Streams
from kproxy.dns.tally import Tally
from kproxy.dns.wire import Rcode, Transport
from kproxy.dns.zone import Zone

log = logging.getLogger("kproxy.dns.server")

LAST_PATIENCE_S = 0.05  # with a TCP client's next query, once this process is to end

Place = tuple[str, int]  # address and port


class Server:
    """Answers on all configured addresses. `spawn` starts a task in the worker's task group."""

    def __init__(self, settings: DnsSettings, zones: Sequence[Zone], counters: Counter[str], spawn: Spawn) -> None:
        """Raises ValueError for settings that cannot be compiled."""
        self.settings = settings
        self.zones = tuple(zones)
        self.counters = counters
        self.tally = Tally(counters)
        self.hot = Hot(counters)
        files = at_first(chain.default_blocks(settings), {})
        self.responder = Responder(chain.serve(settings, self.zones, files), counters, self.tally, spawn)
        self.streams = Streams(settings, self, counters, spawn)
        self.strangers = Strangers(counters)
        self.observing = Observing(self._watch)
        self.savings = Savings()
        self._networks = served_networks(settings.allowed_networks, (*settings.listen, *settings.own_addresses), ())
        self._pods: tuple[PodView, ...] = ()
        self._spawn = spawn
        self._datagrams: dict[Place, Datagrams] = {}
        self._listeners: dict[Place, tuple[socket.socket, int]] = {}
        self._caches: dict[int, Caches] = {}
        self._denying: tuple[Zone | None, ...] = ()  # of each block, the zone that alone denies names there
        self._second: asyncio.TimerHandle | None = None
        self._files: Mapping[str, str] = files
        self._know()

    def places(self) -> tuple[Place, ...]:
        """Where this server listens, or is going to."""
        return tuple(listeners(self.settings, self.blocks))

    async def start(self) -> None:
        """Binds every address. Raises OSError when one cannot be bound."""
        self._bind(listeners(self.settings, self.blocks))
        self.responder.upstreams.start()

    def _bind(self, wanted: Mapping[Place, int]) -> None:
        """Brings the sockets to `wanted` (place → port as blocks call it): new ones first, then old ones go."""
        made: list[Datagrams] = []
        for (address, port), name in wanted.items():
            if (address, port) in self._datagrams:
                continue
            sock = bound(socket.SOCK_DGRAM, address, port)
            try:
                stream = bound(socket.SOCK_STREAM, address, port)
            except OSError:
                sock.close()
                raise
            caches = self._caches.setdefault(name, Caches())
            datagrams = Datagrams(sock, name, self.hot, caches, self._slowly, self._watched, self.strangers.limited)
            self._datagrams[(address, port)] = datagrams
            self._listeners[(address, port)] = (stream, name)
            self.streams.listen(stream, name)
            made.append(datagrams)
        for place in [place for place in self._datagrams if place not in wanted]:
            self._unbind(place)
        for datagrams in made:
            datagrams.watch(self.observing.active)
            datagrams.start()

    def _unbind(self, place: Place) -> None:
        datagrams = self._datagrams.pop(place)
        stream, name = self._listeners.pop(place)
        leave_group(datagrams.sock)
        self.streams.unlisten(stream, name)
        datagrams.finish()
        # Replies that are being waited for still go out on it; whoever asked has given up after that.
        asyncio.get_running_loop().call_later(self.settings.forward_deadline_s, datagrams.close)

    def answer_from(
        self,
        settings: DnsSettings,
        zones: Sequence[Zone],
        changed: Iterable[bytes] | None,
        files: Mapping[str, str] | None = None,
    ) -> None:
        """Answers from these zones from now on, under these settings, at the addresses they name.

        changed: keys of the Services that differ; None when anything may. Raises ValueError for settings that cannot be compiled, OSError
        for an address that cannot be bound; everything is as before then.
        """
        if files is not None:
            self._files = files
        if settings != self.settings:
            self._files = at_first(chain.default_blocks(settings), self._files)
        served = chain.serve(settings, zones, self._files, self.responder.served)
        if settings != self.settings or files is not None:
            changed = None
            if self._datagrams:
                self._bind(listeners(settings, served.blocks))
        self.zones = tuple(zones)
        self.responder.use(served)
        if settings != self.settings:
            self.settings = settings
            self.streams.bounds = settings
            self.streams.idle_s = settings.tcp_idle_s
            self._know()
        self.observing.follow(served)
        if changed is None:
            self.responder.walked.clear()
        else:
            changed = list(changed)
            self.responder.walked.forget(changed)
        self._denying = denying(served.blocks, chain.kubernetes_of(settings), self.zones)
        for caches in self._caches.values():
            caches.dated.clear()
            caches.aging.clear()
            caches.denials.clear()
            for cache in (caches.common, caches.personal):
                if changed is None:
                    cache.clear()
                else:
                    cache.forget(changed)

    @property
    def blocks(self) -> tuple[ServerBlock, ...]:
        """The server blocks in force."""
        return self.responder.served.blocks

    def take_files(self, files: Mapping[str, str]) -> None:
        """The texts of the files that directives name, by path."""
        try:
            self.answer_from(self.settings, self.zones, None, files)
        except (OSError, ValueError) as error:  # a line that cannot be read: what was read before stays
            log.warning("%s", error)

    def know(self, networks: Sequence[str], pods: Sequence[PodView], cookie_secrets: Sequence[bytes]) -> None:
        """Who is served, whose pods are on this node, and what cookies are made with. Raises ValueError for what is no network."""
        self.responder.cookie_secrets = tuple(cookie_secrets)
        if tuple(networks) == self._networks and tuple(pods) == self._pods:
            return
        before = self._networks, self._pods
        self._networks, self._pods = tuple(networks), tuple(pods)
        try:
            self._know()
        except ValueError:
            self._networks, self._pods = before
            raise

    def _know(self) -> None:
        clients = Clients(self._networks, self._pods, chain.places_of(self.settings))
        heads = clients.heads != self.hot.clients.heads
        self.hot.clients = clients
        self.savings.keep(pod.name for pod in self._pods)
        self.responder.walked.clear()
        for caches in self._caches.values():
            caches.personal.clear()
            caches.dated.clear()
            caches.aging.clear()
            caches.denials.clear()
            if heads:  # what was everybody's may depend on who asks now
                caches.common.clear()

    def counted(self) -> dict[str, int]:
        """All counters, up to date."""
        hot = self.hot
        self.savings.settle()
        self.tally.settle(max(0.0, hot.quick_s - hot.slow_s))
        hot.quick_s = hot.slow_s = 0.0
        return {**self.counters, **self.savings.counters()}

    async def stop(self, grace_s: float = 2.0) -> None:
        """Answers what has arrived, takes no more, and gives what is under way `grace_s` seconds."""
        datagrams = list(self._datagrams.values())
        for one in datagrams:
            leave_group(one.sock)
        for stream, name in self._listeners.values():
            self.streams.unlisten(stream, name)
        for one in datagrams:
            one.finish()
        self.streams.hurry(LAST_PATIENCE_S)
        await asyncio.sleep(0.01)  # what was accepted a moment ago gets to its first query
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                while self.responder.waiting or self.streams.connections:
                    self.responder.less.clear()
                    self.streams.less.clear()
                    waits = [asyncio.ensure_future(event.wait()) for event in (self.responder.less, self.streams.less)]
                    try:
                        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
                    finally:
                        for wait in waits:
                            wait.cancel()
        self.streams.abort()
        for one in datagrams:
            one.close()
        if self._second is not None:
            self._second.cancel()

    def _slowly(self, at: Datagrams, data: bytes, peer: Any, keep: bool) -> None:
        """One query over UDP that is not remembered."""
        began = perf_counter()
        client = self.hot.clients.find(peer[0])
        if not client.allowed:
            refusal = self.strangers.refusal(data, client.address)
            if refusal is not None:
                at.send(refusal, peer)
            return
        if not peer[1] or (peer[1] == at.port and (peer[0], peer[1]) in self._datagrams):
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
            if outcome is None:
                self._spawn(self._later(at, data, peer, client, pending, began))
                return
        elif isinstance(pending, Outcome):
            outcome = pending
        else:
            return
        if keep:
            self._keep(at, data, outcome, client, pending, now)
        self._reply(at, data, peer, client, outcome, how, began)
        self.hot.slow_s += perf_counter() - began

    def _keep(
        self, at: Datagrams, data: bytes, outcome: Outcome, client: Client, pending: Outcome | Pending, now: float
    ) -> None:
        if isinstance(pending, Walk):
            self.responder.walked.store(client, data, pending, outcome, now)
            return
        how = "forward" if isinstance(pending, Forward) else "zone"
        counts = self.responder.kind(outcome, outcome.reply, len(data), "udp", at.port, how, quick=True)
        zone = self._denying[outcome.block] if 0 <= outcome.block < len(self._denying) else None
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

    def _reply_aged(
        self, at: Datagrams, data: bytes, peer: Any, client: Client, aged: tuple[bytes, list[int], bool], began: float
    ) -> None:
        reply, counts, lasts = aged
        at.send(data[:2] + reply, peer)
        counts[at.family] += 1
        if lasts:
            at.caches.dated.keep((client.view, data[2:]), (reply, counts))
            self._end_second()
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
        self.hot.slow_s += perf_counter() - began

    def _end_second(self) -> None:
        if self._second is None:
            self._second = asyncio.get_running_loop().call_later(1.0, self._next_second)

    def _next_second(self) -> None:
        self._second = None
        for caches in self._caches.values():
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

    def _watch(self, on: bool) -> None:
        for datagrams in self._datagrams.values():
            datagrams.watch(on)

    def _watched(self, reply: bytes, data: bytes, peer: Any, began: float) -> None:
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


def listeners(settings: DnsSettings, blocks: Sequence[ServerBlock]) -> dict[Place, int]:
    """Where to listen: address and port, and the port as the blocks call it. `bind` may name a link: its addresses."""
    found: dict[Place, int] = {}
    for block in blocks:
        port = settings.port if block.port == 53 else block.port  # a node whose port 53 is somebody else's has another
        for word in block.bind or settings.listen:
            addresses = (word,) if ":" in word or word.replace(".", "").isdigit() else link_addresses(word)
            for address in addresses:
                found.setdefault((address, port), block.port)
    return found
