"""Brings what is listened on to what is wanted: binds, lets go, tries again.

A port that somebody else has is said once and tried again, more and more rarely up to `_LONGEST_S`; every other listener works meanwhile.
In: listeners by key. Out: relays, and a call for each port that is taken or free again. IPv4 is bound to the interface `lo` with no
address, so that all of 127.0.0.0/8 answers and nothing that arrives by any other interface can; IPv6 to ::1.
"""

from __future__ import annotations

import asyncio
import errno
import random
import socket
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from kproxy.loopback.choice import Choice
from kproxy.loopback.listeners import End, Key, Listener
from kproxy.loopback.tcp import Spawn, TcpRelay
from kproxy.loopback.udp import UdpRelay

_SO_BINDTODEVICE = 25
_FIRST_S, _LONGEST_S = 1.0, 30.0
_LOOK_S = 1.0


def bound(listener: Listener) -> socket.socket:
    """A socket on the listener's port. OSError: somebody else has it, or it may not be had."""
    six = listener.family == "IPv6"
    kind = socket.SOCK_STREAM if listener.protocol == "TCP" else socket.SOCK_DGRAM
    sock = socket.socket(socket.AF_INET6 if six else socket.AF_INET, kind)
    try:
        if kind == socket.SOCK_STREAM:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)  # for the next instance, before this one leaves
        if six:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.bind(("::1", listener.port))
        else:
            sock.bind((_any_of_loopback(sock), listener.port))
    except OSError:
        sock.close()
        raise
    return sock


def _any_of_loopback(sock: socket.socket) -> str:
    """The address to bind to: any, on `lo` alone; before Linux 5.7 that is a privilege, and 127.0.0.1 has to do."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, _SO_BINDTODEVICE, b"lo")
    except PermissionError:
        return "127.0.0.1"
    return "0.0.0.0"


@dataclass(slots=True)
class _Waiting:
    due: float
    pause_s: float = _FIRST_S


class Server:
    """Every listener of this node. limit: of TCP connections, and of UDP sessions.

    on_taken(listener, why), on_free(key): what becomes of ports that somebody else has.
    """

    def __init__(
        self, spawn: Spawn, limit: int, on_taken: Callable[[Listener, str], None], on_free: Callable[[Key], None]
    ) -> None:
        self.counters: Counter[str] = Counter()
        self._spawn, self._limit, self._on_taken, self._on_free = spawn, limit, on_taken, on_free
        self._wanted: dict[Key, Listener] = {}
        self._relays: dict[Key, TcpRelay | UdpRelay] = {}
        self._waiting: dict[Key, _Waiting] = {}

    @property
    def wanted(self) -> Mapping[Key, Listener]:
        """What it was told last."""
        return self._wanted

    @property
    def waiting(self) -> tuple[Listener, ...]:
        """Those whose port somebody else has."""
        return tuple(self._wanted[key] for key in self._waiting)

    async def use(self, wanted: Mapping[Key, Listener]) -> None:
        """Listens on exactly these from now on."""
        before, self._wanted = self._wanted, dict(wanted)
        for key in before.keys() - wanted.keys():
            if self._waiting.pop(key, None) is not None:
                self._on_free(key)
            elif key in self._relays:
                self._relays.pop(key).close()
        for key, listener in wanted.items():
            if key in self._relays:
                if before.get(key) != listener:
                    self._relays[key].use(listener)
            elif key not in self._waiting:
                await self._listen(listener, 0.0)

    async def keep(self) -> None:
        """Tries taken ports again, and ends old UDP sessions; runs for ever."""
        while True:
            await asyncio.sleep(_LOOK_S)
            now = time.monotonic()
            for key, waiting in [*self._waiting.items()]:
                if waiting.due <= now and key in self._wanted:
                    await self._listen(self._wanted[key], waiting.pause_s)
            for relay in [*self._relays.values()]:
                if isinstance(relay, UdpRelay):
                    relay.sweep(now)

    async def _listen(self, listener: Listener, waited_s: float) -> None:
        choice = Choice(_shuffled)
        try:
            sock = bound(listener)
        except OSError as error:
            pause_s = min(max(_FIRST_S, 2 * waited_s), _LONGEST_S)
            self._waiting[listener.key] = _Waiting(time.monotonic() + pause_s, pause_s)
            if not waited_s:
                self._on_taken(listener, errno.errorcode.get(error.errno or 0, str(error)))
            return
        if listener.protocol == "TCP":
            relay = TcpRelay(listener, choice, self.counters, self._spawn, self._limit)
            await relay.start(sock)
            self._relays[listener.key] = relay
        else:
            self._relays[listener.key] = made = UdpRelay(listener, choice, self.counters, self._limit)
            made.start(sock)
        if self._waiting.pop(listener.key, None) is not None:
            self._on_free(listener.key)

    @property
    def busy(self) -> bool:
        """Whether a TCP connection is open."""
        return self.counters["tcp_connections"] > 0

    def close(self) -> None:
        """Lets every port go; connections stay for as long as the process does."""
        for relay in self._relays.values():
            if isinstance(relay, TcpRelay):
                relay.stop()
            else:
                relay.close()
        self._relays.clear()


def _shuffled(endpoints: Sequence[End]) -> list[End]:
    return random.sample(endpoints, len(endpoints))
