"""A node with the rules of mode userspace, a pod, the world outside, and no relay: what the listeners are told is what rules brought.

pod (10.0.0.2) ── veth ── node ── veth ── outside (203.0.113.2, .130)
                          └── veth ── sink, where the default route leads: it answers for every destination in that destination's name
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from contextlib import contextmanager

from kproxy.backends.base import ApplyReport
from kproxy.backends.userspace.apply import UserspaceBackend
from kproxy.backends.userspace.ruleset import Ruleset
from kproxy.backends.userspace.settings import UserspaceSettings
from kproxy.model.desired import DesiredState, NodeSettings
from kproxy.model.names import Protocol
from kproxy.model.resolve import resolve
from tests.support.addressing import BLOCKED, EXTERNAL_IP, NODE_IP, NODE_IP_2, OUTSIDE, POD, VIP, VIP_2, six
from tests.support.answering import Answering
from tests.support.builders import Built
from tests.support.dns_worker import wait_until
from tests.support.entrance import PORTS
from tests.support.flows import SETTINGS, Place, Source, step
from tests.support.netns import Namespace, ip, link, run, sysctl
from tests.support.probing import Result, probe

PATIENCE_S = 5.0
SILENCE_S = 0.3
ELSEWHERE = (
    EXTERNAL_IP,
    VIP,
    VIP_2,
    "172.30.0.41",
    "172.30.0.42",
    "172.30.0.10",
)  # where the sink answers in its own name


def _host(address: str) -> str:
    return f"{address}/128" if ":" in address else f"{address}/32"


class Ground:
    """The namespaces and the backend of the node."""

    def __init__(self, settings: UserspaceSettings | None = None) -> None:
        self.spaces = [Namespace.new() for _ in range(4)]
        self.node, self.pod, self.outside, self.elsewhere = self.spaces
        sysctl(
            self.node,
            ipv4__ip_forward=1,
            ipv6__conf__all__forwarding=1,
            ipv4__icmp_ratelimit=0,
            ipv6__icmp__ratelimit=0,
            ipv4__conf__all__route_localnet=0,
        )
        ip(self.node, *(f"addr add {_host(a)} dev lo{' nodad' if ':' in a else ''}" for a in _both(NODE_IP, NODE_IP_2)))
        held = (_both(POD), _both(OUTSIDE, BLOCKED), [])
        for number, (space, addresses) in enumerate(zip(self.spaces[1:], held, strict=True), 1):
            near, far = f"100.64.{number}.1", f"100.64.{number}.2"
            near_6, far_6 = f"fd64:{number}::1", f"fd64:{number}::2"
            link(self.node, f"to-{number}", space, [f"{near}/24", f"{near_6}/64"], [f"{far}/24", f"{far_6}/64"])
            ip(space, f"route add default via {near}", f"route add default via {near_6}")
            ip(space, *(f"addr add {_host(a)} dev lo{' nodad' if ':' in a else ''}" for a in addresses))
            ip(self.node, *(f"route add {_host(a)} via {far_6 if ':' in a else far}" for a in addresses))
        ip(self.node, "route add default via 100.64.3.2", "route add default via fd64:3::2")
        ip(self.elsewhere, *(f"route add local {_host(a)} dev lo" for a in _both(*ELSEWHERE)))
        self.sink = Answering([self.elsewhere, self.pod], {"TCP": [53, 80, 3001], "UDP": [53, 80, 3001]})
        self.told: list[object] = []
        self.ports = PORTS  # what workers would tell
        self._settings = settings
        self.restart()

    def restart(self) -> None:
        """Another life of the controller, which knows nothing."""
        with self.node.entered():
            self.backend = UserspaceBackend(self._settings, publish=self._tell, ports=lambda: self.ports)
        self.applied: Ruleset | None = None

    async def _tell(self, table: object) -> None:
        self.told.append(table)

    def desired(self, *objects: Built, settings: NodeSettings = SETTINGS) -> DesiredState:
        """The wanted state for these objects."""
        return resolve(step(objects).snapshot(), settings)

    def bring(self, *objects: Built, settings: NodeSettings = SETTINGS) -> ApplyReport:
        """Rules for these objects."""
        with self.node.entered():
            self.applied, report = asyncio.run(
                self.backend.bring(self.applied, self.desired(*objects, settings=settings))
            )
        return report

    def observe(self) -> Ruleset:
        """What the kernel holds."""
        with self.node.entered():
            return asyncio.run(self.backend.observe())

    def at(self, source: Source) -> Namespace:
        """Where `source` sends from."""
        return {Place.POD: self.pod, Place.HOST: self.node, Place.OUTSIDE: self.outside}[source.place]

    def ask(
        self, source: Source, to: tuple[str, int], protocol: str = "TCP", *, silent: bool = False, count: int = 1
    ) -> Result:
        """What becomes of a fresh connection; of several, which all fare alike."""
        with self.at(source).entered():
            found = probe(Protocol(protocol), source.address, to, count, SILENCE_S if silent else PATIENCE_S)
        assert len(set(found)) == 1, found
        return found[0]

    @contextmanager
    def connected(self, source: Source, to: tuple[str, int], port: int = 0) -> Iterator[socket.socket]:
        """An open connection, the first words read. port: the client's, if it matters."""
        with self.at(source).entered(), socket.socket(socket.AF_INET6 if ":" in to[0] else socket.AF_INET) as sock:
            sock.settimeout(PATIENCE_S)
            sock.bind((source.address, port))
            sock.connect(to)
            assert sock.recv(256)
            yield sock

    @contextmanager
    def holding(self, address: str) -> Iterator[None]:
        """The node has `address` as well. The kernel makes an IPv6 address its own a moment after it was added."""
        ip(self.node, f"addr add {_host(address)} dev lo{' nodad' if ':' in address else ''}")
        try:
            wait_until(
                lambda: run(self.node, "ip", "route", "get", address).startswith("local "), "the address is held"
            )
            yield
        finally:
            ip(self.node, f"addr del {_host(address)} dev lo")

    def close(self) -> None:
        """Gives everything up."""
        self.sink.close()
        for space in self.spaces:
            space.close()


def _both(*addresses: str) -> list[str]:
    return [*addresses, *map(six, addresses)]
