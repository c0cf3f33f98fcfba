"""A node with the UDP relay in this process, clients and pods around it, and real datagrams between them.

clients ─── veth ─── node (rules, the relay) ─── veth ─── pods

Rules bring datagrams to a listener in the node's namespace. The relay runs in the test's process, so a test sees what is open and says
what time it is; waiting is for what the kernel does.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass

from kproxy.relay import poller
from kproxy.relay.chooser import Chooser
from kproxy.relay.counts import (
    Counts,
)
from kproxy.relay.limits import Limits
from kproxy.relay.targets import INSIDE, Key, Table, Target
from kproxy.relay.udp import UdpRelay
from kproxy.relay.udp_sockets import Address, listening
from tests.support.capturing import capture
from tests.support.netns import Namespace, ip, link, run, sysctl

_RELAY = 10270
PORT, ENDS = 53, 8053
NAME = "ns1/dns:dns"


@dataclass(frozen=True)
class Family:
    """Addresses of the ground in one family."""

    name: str
    kind: socket.AddressFamily
    asked: str
    node: str
    clients: tuple[str, str]
    pods: tuple[str, str, str]
    nowhere: str  # in the pods' network, where nobody has it
    largest: int  # octets of a datagram


FOUR = Family(
    "IPv4", socket.AF_INET, "10.96.0.10", "10.180.0.254", ("192.168.0.9", "192.168.0.10"),
    ("10.180.0.1", "10.180.0.2", "10.180.0.3"), "10.180.0.99", 65507,
)  # fmt: skip
SIX = Family(
    "IPv6", socket.AF_INET6, "fd00:10:96::a", "fd00:10:180::ff", ("fd00:192::9", "fd00:192::a"),
    ("fd00:10:180::1", "fd00:10:180::2", "fd00:10:180::3"), "fd00:10:180::99", 65527,
)  # fmt: skip


@dataclass
class Ground:
    """The namespaces, and the family that a test is for."""

    node: Namespace
    clients: Namespace
    pods: Namespace
    family: Family

    def client(self, address: str = "", port: int = 0) -> socket.socket:
        """A client's socket, connected to the Service: what comes from another address is not received."""
        with self.clients.entered():
            sock = socket.socket(self.family.kind, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        sock.bind((address or self.family.clients[0], port))
        sock.connect((self.family.asked, PORT))
        return sock

    def target(self, *pods: int, **rest: object) -> Target:
        """A route of the Service to these pods."""
        ends = tuple((self.family.pods[pod], ENDS) for pod in pods)
        return Target(name=NAME, family=self.family.name, protocol="UDP", endpoints=ends, **rest)  # type: ignore[arg-type]

    @property
    def second(self) -> str:
        """Another address of Services."""
        return "10.96.0.11" if self.family is FOUR else "fd00:10:96::b"

    def key(self, address: str = "") -> Key:
        return Key(INSIDE, self.family.name, "UDP", address or self.family.asked, PORT)


@contextlib.contextmanager
def grounded(family: Family, captured: bool = True) -> Iterator[Ground]:
    """The namespaces, for both families; tests are about `family`. captured: with rules that lead to a relay in the test's process."""
    with Namespace.new() as node, Namespace.new() as clients, Namespace.new() as pods:
        sysctl(node, ipv4__ip_forward=1, ipv6__conf__all__forwarding=1)
        sysctl(node, ipv4__conf__all__rp_filter=0, ipv4__conf__default__rp_filter=0)
        for space in (node, clients, pods):  # a link-local address that is being checked for two seconds answers nobody
            sysctl(space, ipv6__conf__default__accept_dad=0, ipv6__conf__all__accept_dad=0)
        link(node, "near", clients, ["192.168.0.1/24", "fd00:192::1/112"], ["192.168.0.9/24", "fd00:192::9/112"])
        ip(clients, "addr add 192.168.0.10/24 dev eth0", "addr add fd00:192::a/112 dev eth0 nodad")
        ip(clients, "route add default via 192.168.0.1", "route add default via fd00:192::1")
        # As a node has one; not by where clients are, who would be sent redirects.
        ip(
            node,
            "link add uplink type veth peer name nobody",
            "link set uplink up",
            "link set nobody up",
            "addr add 203.0.113.1/24 dev uplink",
        )
        ip(node, "route add default dev uplink", "route add ::/0 dev uplink")
        link(node, "pods", pods, ["10.180.0.254/24", "fd00:10:180::ff/112"], [f"{a}/24" for a in FOUR.pods])
        ip(pods, *(f"addr add {address}/112 dev eth0 nodad" for address in SIX.pods))
        ip(pods, "route add default via 10.180.0.254", "route add default via fd00:10:180::ff")
        # As many ICMP errors as there are reasons: the kernel's limit of one a second and peer would be what is tested.
        sysctl(pods, ipv4__icmp_ratelimit=0, ipv6__icmp__ratelimit=0)
        sysctl(node, ipv4__icmp_ratelimit=0, ipv6__icmp__ratelimit=0)
        if captured:
            addresses = [FOUR.asked, SIX.asked, "10.96.0.11", "fd00:10:96::b", "127.0.0.1", "::1"]
            capture(node, _RELAY, addresses, asked=PORT)
        yield Ground(node, clients, pods, family)


class Relay:
    """The relay of one worker, and the time it is told."""

    def __init__(self, ground: Ground, table: Table, sessions: int = 1000) -> None:
        self.later = 0.0
        self.counts = Counts()
        self.poller = poller.poller()
        self.chooser = Chooser(random.Random(1).random)
        self.relay = UdpRelay(self.poller, self.chooser, self.counts, Limits(sessions=sessions), self.now)
        self.relay.use(table)
        with ground.node.entered():
            self.relay.listen(listening(ground.family.name, _RELAY), ground.family.name, INSIDE)

    def now(self) -> float:
        return time.monotonic() + self.later

    def sweep(self, later: float = 0.0) -> None:
        """As after `later` more seconds."""
        self.later += later
        self.relay.sweep(self.now())

    def row(self, column: int) -> int:
        return self.counts.service(NAME)[column]


@contextlib.contextmanager
def relaying(ground: Ground, target: Target, **rest: int) -> Iterator[Relay]:
    made = Relay(ground, Table({ground.key(): target}), **rest)
    try:
        with ground.node.entered():  # a relay makes its sockets where it is
            yield made
    finally:
        made.relay.close()
        made.poller.leave()
    assert made.poller.failures == 0
    assert made.relay.open == 0


class Pod:
    """A UDP endpoint that answers with its number and what it was asked, and remembers who asked."""

    def __init__(self, ground: Ground, number: int, space: Namespace | None = None, address: str = "") -> None:
        with (space or ground.pods).entered():
            self.sock = socket.socket(ground.family.kind, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        self.sock.bind((address or ground.family.pods[number], ENDS))
        self.number, self.answers = b"%d " % number, True
        self.heard: list[tuple[bytes, Address]] = []
        asyncio.get_running_loop().add_reader(self.sock, self._answer)

    def _answer(self) -> None:
        data, peer = self.sock.recvfrom(65536)
        self.heard.append((data, peer))
        if self.answers:
            self.sock.sendto((self.number + data)[:65527], peer)

    def __enter__(self) -> Pod:
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.get_running_loop().remove_reader(self.sock)
        self.sock.close()


async def heard(sock: socket.socket, wait_s: float = 30.0) -> bytes:
    async with asyncio.timeout(wait_s):
        return await asyncio.get_running_loop().sock_recv(sock, 65536)


async def asked(sock: socket.socket, words: bytes = b"?") -> bytes:
    sock.send(words)
    return await heard(sock)


async def until(holds: Callable[[], bool], wait_s: float = 30.0) -> None:
    async with asyncio.timeout(wait_s):
        while not holds():
            await asyncio.sleep(0.002)


def scene(play: Callable[[], Awaitable[None]]) -> None:
    async def within() -> None:
        await asyncio.wait_for(play(), 120)

    poller.run(within())


def own_sockets(ground: Ground) -> int:
    """Sockets of the node with the Service's port that are connected to a client."""
    text = run(ground.node, "cat", "/proc/net/udp" + ("6" if ground.family is SIX else ""))
    ends = [line.split()[1:3] for line in text.splitlines()[1:]]
    return sum(local.endswith(f":{PORT:04X}") and remote[-5:] not in (":0000", ":0009") for local, remote in ends)
