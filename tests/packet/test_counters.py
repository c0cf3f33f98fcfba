"""Counters of our rules, from real packets through the real kernel, both variants: connections of Services, packets dropped as INVALID."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Iterator

import pytest

from kproxy.backends.iptables.apply import IptablesBackend
from kproxy.backends.iptables.counters import KernelCounters
from kproxy.backends.iptables.ruleset import Ruleset
from kproxy.backends.iptables.tally import Tally
from kproxy.backends.iptables.tool_runs import run_tool
from kproxy.backends.iptables.variant import Variant
from kproxy.model.desired import DesiredState
from kproxy.model.names import Family, NamespacedName, Protocol, ServicePortName
from tests.packet.node import desired
from tests.support.builders import Built, ep, port, slice_, svc
from tests.support.one_node import OneNode, endpoint_address

WEB, OTHER = "10.100.0.1", "10.100.0.2"
TARGET = 8080
NAMES = {name: ServicePortName(NamespacedName("ns1", name), "p80", Protocol.TCP) for name in ("web", "other")}


class _Node:
    """A node with a backend, and the counters of its kernel, whose age does not matter here."""

    def __init__(self, bed: OneNode, variant: Variant) -> None:
        self.bed = bed
        with bed.node.entered():
            self.tally = Tally(run_tool)
            self.backend = IptablesBackend(variant=variant, runner=self.tally.run)
            self.counters = KernelCounters(self.backend.tools, run_tool, lambda: self.backend.wanted, services=True)
        self.applied: Ruleset | None = None

    def sync(self, state: DesiredState) -> None:
        with self.bed.node.entered():
            wanted = self.backend.compile(state)
            asyncio.run(self.backend.apply(self.backend.plan(self.applied, wanted)))
        self.applied = wanted
        self.tally.settle()

    def read(self) -> dict[str, tuple[int, int]]:
        self.counters.expire()
        self.counters._turn = asyncio.Lock()
        with self.bed.node.entered():
            asyncio.run(self.counters.refresh())
        services = self.counters.services
        return {name: services[Family.IPV4, key] for name, key in NAMES.items() if (Family.IPV4, key) in services}


@pytest.fixture(params=list(Variant), ids=lambda variant: variant.value)
def node(request: pytest.FixtureRequest) -> Iterator[_Node]:
    with OneNode() as bed, bed.answers():
        yield _Node(bed, request.param)


def _service(name: str, address: str, *endpoints: int) -> tuple[Built, Built]:
    members = [ep(endpoint_address(n)) for n in endpoints]
    return (
        svc(address, name=name, ports=[port(80, target=TARGET)]),
        slice_(*members, of=name, ports=[("p80", TARGET, "TCP")]),
    )


def _connect(bed: OneNode, address: str, count: int) -> None:
    with bed.pods.entered():
        for _ in range(count):
            with socket.socket() as client:
                client.settimeout(0.2)
                client.connect_ex((address, 80))


def test_connections_of_each_service_are_counted_and_counts_only_grow(node: _Node) -> None:
    two = (*_service("web", WEB, 1, 2), *_service("other", OTHER, 3))
    node.sync(desired(*two))
    assert node.tally.last[Family.IPV4, "nat"] > 10
    assert node.read() == {"web": (0, 0), "other": (0, 0)}
    _connect(node.bed, WEB, 7)
    found = node.read()
    assert found["web"][0] == 7
    assert found["web"][1] == 7 * 60  # a SYN is 60 bytes here
    assert found["other"] == (0, 0)
    # One endpoint goes, one comes: chains are written anew and the kernel's counters with them, ours go on.
    node.sync(desired(*_service("web", WEB, 2, 4), *_service("other", OTHER, 3)))
    assert node.read()["web"][0] == 7
    _connect(node.bed, WEB, 5)
    _connect(node.bed, OTHER, 2)
    found = node.read()
    assert (found["web"][0], found["other"][0]) == (12, 2)
    node.sync(desired(*_service("other", OTHER, 3)))
    assert node.read().keys() == {"other"}


def _nonsense(bed: OneNode, count: int) -> None:
    """TCP segments without any flag, from a pod to an endpoint through the node: conntrack calls them INVALID."""
    segment = struct.pack("!HHIIBBHHH", 40000, TARGET, 1, 0, 5 << 4, 0, 1024, 0, 0)
    with bed.pods.entered(), socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP) as raw:
        for _ in range(count):
            raw.sendto(segment, (endpoint_address(1), 0))


def test_packets_dropped_as_invalid_are_counted(node: _Node) -> None:
    node.sync(desired(*_service("web", WEB, 1)))
    node.read()
    assert node.counters.dropped == 0
    _nonsense(node.bed, 9)
    node.read()
    assert node.counters.dropped == 9


def test_a_look_a_moment_ago_is_good_enough(node: _Node) -> None:
    node.sync(desired(*_service("web", WEB, 1)))
    node.read()
    _connect(node.bed, WEB, 3)
    with node.bed.node.entered():
        asyncio.run(node.counters.refresh())
    assert node.counters.services[Family.IPV4, NAMES["web"]] == (0, 0)
