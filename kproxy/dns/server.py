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

from kproxy.dns import chain
from kproxy.dns.blocks import ServerBlock
from kproxy.dns.clients import Clients, PodView, served_networks
from kproxy.dns.datagrams import Datagrams
from kproxy.dns.denial import denying
from kproxy.dns.files import at_first
from kproxy.dns.kernel_answers import KernelAnswers
from kproxy.dns.observing import Observing
from kproxy.dns.remembered import Caches, Hot
from kproxy.dns.replying import Replying
from kproxy.dns.responding import Responder, Spawn
from kproxy.dns.settings import DnsSettings
from kproxy.dns.sockets import bound, leave_group, link_addresses
from kproxy.dns.streams import Streams
from kproxy.dns.tally import Tally
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
        self.observing = Observing(self._watch)
        self.replying = Replying(self.responder, self.hot, self.observing, spawn)
        self.strangers, self.savings = self.replying.strangers, self.replying.savings
        self.streams = Streams(settings, self.replying, counters, spawn)
        self._networks = served_networks(settings.allowed_networks, (*settings.listen, *settings.own_addresses), ())
        self._pods: tuple[PodView, ...] = ()
        self._datagrams: dict[Place, Datagrams] = self.replying.places
        self._listeners: dict[Place, tuple[socket.socket, int]] = {}
        self._caches: dict[int, Caches] = self.replying.caches
        self._files: Mapping[str, str] = files
        self._kernel: KernelAnswers | None = None
        self._know()

    def places(self) -> tuple[Place, ...]:
        """Where this server listens, or is going to."""
        return tuple(listeners(self.settings, self.blocks))

    async def start(self) -> None:
        """Binds every address. Raises OSError when one cannot be bound."""
        self.observing.follow(self.responder.served)
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
            replying = self.replying
            datagrams = Datagrams(
                sock, name, self.hot, caches, replying.slowly, replying.watched, self.strangers.limited
            )
            self._datagrams[(address, port)] = datagrams
            self._share(address, port, datagrams)
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
        if self._kernel is not None:
            self._kernel.answers_no_more(_packed(place[0]), place[1])
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
        self.replying.denying = denying(served.blocks, chain.kubernetes_of(settings), self.zones)
        for name, caches in self._caches.items():
            caches.dated.clear()
            caches.aging.clear()
            caches.denials.clear()
            if changed is None:
                caches.common.clear()
                caches.personal.clear()
            else:
                thrown = caches.common.forget(changed), caches.personal.forget(changed)
                if self._kernel is not None:
                    self._kernel.forget(name, caches, *thrown)
        if changed is None and self._kernel is not None:
            self._kernel.forget_all()

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
        self.responder.upstreams.know(cookie_secrets)
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
        if self._kernel is not None:
            self._kernel.forget_all()

    def use_kernel(self, kernel: KernelAnswers | None) -> None:
        """Has the kernel answer what it can from now on; None: nothing any more."""
        if self._kernel is not None:
            self._kernel.collect()
        self._kernel = kernel
        for (address, port), datagrams in self._datagrams.items():
            self._share(address, port, datagrams)
        if kernel is not None:
            kernel.pause(self.observing.active)

    def _share(self, address: str, port: int, datagrams: Datagrams) -> None:
        datagrams.kernel = self._kernel
        if self._kernel is not None:
            self._kernel.answers_at(_packed(address), port, datagrams.port, datagrams.family)

    def counted(self) -> dict[str, int]:
        """All counters, up to date."""
        hot = self.hot
        if self._kernel is not None:
            self._kernel.collect()
        self.savings.settle()
        self.tally.settle(max(0.0, hot.quick_s - hot.slow_s))
        hot.quick_s = hot.slow_s = 0.0
        return {**self.counters, **self.savings.counters()}

    async def stop(self, grace_s: float = 2.0) -> None:
        """Answers what has arrived, takes no more, and gives what is under way `grace_s` seconds."""
        datagrams = list(self._datagrams.values())
        self.counted()
        if self._kernel is not None:
            self._kernel.end()
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
        self.replying.end()

    def _watch(self, on: bool) -> None:
        if self._kernel is not None:
            self._kernel.pause(on)
        for datagrams in self._datagrams.values():
            datagrams.watch(on)
        for caches in self._caches.values():  # the hot loop's copies of replies do not know how they came about
            caches.dated.clear()


def listeners(settings: DnsSettings, blocks: Sequence[ServerBlock]) -> dict[Place, int]:
    """Where to listen: address and port, and the port as the blocks call it. `bind` may name a link: its addresses."""
    found: dict[Place, int] = {}
    for block in blocks:
        port = settings.port if block.port == 53 else block.port  # a node whose port 53 is somebody else's has another
        without = {address for word in block.bind_except for address in _addresses(word)}
        for word in block.bind or settings.listen:
            for address in _addresses(word):
                if address not in without:
                    found.setdefault((address, port), block.port)
    return found


def _packed(address: str) -> bytes:
    return socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address)


def _addresses(word: str) -> Iterable[str]:
    return (word,) if ":" in word or word.replace(".", "").isdigit() else link_addresses(word)
