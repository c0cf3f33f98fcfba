"""The node of udp_ground with the TCP relay in this process: clients' connections, and endpoints that do what a test says.

The relay runs in the test's event loop, so a test sees what is open, and says what time it is where time matters.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
import time
from collections.abc import Iterator

from kproxy.relay import poller
from kproxy.relay.chooser import Chooser
from kproxy.relay.counts import Counts
from kproxy.relay.limits import Limits
from kproxy.relay.listening import BACKLOG, listeners
from kproxy.relay.targets import End, Key, Table, Target
from kproxy.relay.tcp import TcpRelay
from tests.packet.udp_ground import FOUR, PORT, SIX, Family, Ground, grounded, scene, until
from tests.support.netns import run

__all__ = ["ENDS", "FOUR", "NAME", "PORT", "SIX", "Family", "Ground", "Relay", "grounded", "scene", "until"]

PORTS = (10270, 10271)
ENDS = 8080
NAME = "ns1/web:http"
_RESET = struct.pack("ii", 1, 0)


def target(family: Family, *ends: End, **rest: object) -> Target:
    """A route to these endpoints."""
    return Target(name=NAME, family=family.name, protocol="TCP", endpoints=ends, **rest)  # type: ignore[arg-type]


class Relay:
    """The relay of one worker with one Service, and the time it is told."""

    def __init__(self, ground: Ground, served: Target, limits: Limits) -> None:
        self.ground, self.later = ground, 0.0
        self.counts, self.poller = Counts(), poller.poller()
        self.chooser = Chooser(random.Random(1).random)
        self.relay = TcpRelay(self.poller, self.chooser, self.counts, limits, self.now)
        self.use(served)
        with ground.node.entered():
            for one in listeners(PORTS):
                if one.protocol == "TCP" and one.family == ground.family.name:
                    one.sock.listen(BACKLOG)
                    self.relay.listen(one.sock, one.family, one.entry)
                else:
                    one.sock.close()

    def now(self) -> float:
        return time.monotonic() + self.later

    def use(self, *served: Target) -> None:
        """The Service has this route from now on, or is gone."""
        key = Key("inside", self.ground.family.name, "TCP", self.ground.family.asked, PORT)
        table = Table({key: served[0]} if served else {})
        self.chooser.use(table)
        self.relay.use(table)

    def sweep(self, later: float = 0.0) -> None:
        """As after `later` more seconds."""
        self.later += later
        self.relay.sweep(self.now())

    def row(self, column: int, end: End | None = None) -> int:
        """A counter of the Service, or of one of its endpoints."""
        return (self.counts.service(NAME) if end is None else self.counts.endpoint(NAME, end))[column]


@contextlib.contextmanager
def relaying(ground: Ground, served: Target, *, faults: int = 0, **limits: float) -> Iterator[Relay]:
    """A relay that serves one route; in the end nothing is open, and no handler failed but for `faults`."""
    made = Relay(ground, served, Limits(**limits))  # type: ignore[arg-type]
    try:
        with ground.node.entered():  # a relay makes its sockets where it is
            yield made
    finally:
        made.relay.close_listeners()
        made.relay.close()
        made.poller.leave()
    assert made.poller.failures == faults
    assert made.relay.open == 0 and made.relay.buffers.waiting == 0


class Client:
    """A client's connection to the Service, which the kernel has accepted and nobody else may have, yet."""

    def __init__(self, ground: Ground, sock: socket.socket) -> None:
        self.ground, self.sock = ground, sock

    @classmethod
    async def connected(cls, ground: Ground, address: str = "") -> Client:
        with ground.clients.entered():
            sock = socket.socket(ground.family.kind, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            sock.bind((address or ground.family.clients[0], 0))
            async with asyncio.timeout(10):
                await asyncio.get_running_loop().sock_connect(sock, (ground.family.asked, PORT))
        except BaseException:
            sock.close()
            raise
        return cls(ground, sock)

    def __enter__(self) -> socket.socket:
        return self.sock

    def __exit__(self, *_: object) -> None:
        self.sock.close()


class Pod:
    """An endpoint that listens, and gives its connections to the test."""

    def __init__(self, ground: Ground, number: int = 0) -> None:
        self.end: End = ground.family.pods[number], ENDS
        with ground.pods.entered():
            self.ear = socket.create_server(self.end, family=ground.family.kind, backlog=512)
        self.ear.setblocking(False)

    async def accepted(self) -> socket.socket:
        async with asyncio.timeout(10):
            sock, _ = await asyncio.get_running_loop().sock_accept(self.ear)
        sock.setblocking(False)
        return sock

    @property
    def nobody(self) -> bool:
        """Whether no connection waits to be accepted."""
        try:
            self.ear.accept()[0].close()
        except BlockingIOError:
            return True
        return False

    def __enter__(self) -> Pod:
        return self

    def __exit__(self, *_: object) -> None:
        self.ear.close()


async def sent(sock: socket.socket, words: bytes) -> None:
    async with asyncio.timeout(20):
        await asyncio.get_running_loop().sock_sendall(sock, words)


async def heard(sock: socket.socket, size: int = 1 << 16) -> bytes:
    """The next that comes; ConnectionResetError."""
    async with asyncio.timeout(10):
        return await asyncio.get_running_loop().sock_recv(sock, size)


async def refused(ground: Ground) -> bool:
    """Whether a new client is reset, at once or when it listens."""
    try:
        with await Client.connected(ground) as client:
            await heard(client)
    except ConnectionResetError:
        return True
    return False


async def heard_all(sock: socket.socket) -> bytes:
    """Everything up to the end."""
    got = []
    while words := await heard(sock, 1 << 20):
        got.append(words)
    return b"".join(got)


def reset(sock: socket.socket) -> None:
    """Ends a connection by RST."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    sock.close()


def silence(ground: Ground, end: End) -> None:
    """The endpoint answers nothing, from now on: what comes to it is dropped."""
    family = "ip6" if ":" in end[0] else "ip"
    words = (
        f"add table {family} silent",
        f"add chain {family} silent drops {{ type filter hook prerouting priority 0; }}",
        f"add rule {family} silent drops {family} daddr {end[0]} drop",
    )
    run(ground.pods, "nft", "-f", "-", text="\n".join(words) + "\n")


def speak(ground: Ground) -> None:
    """No endpoint is silent any more."""
    run(ground.pods, "nft", "flush", "ruleset")
