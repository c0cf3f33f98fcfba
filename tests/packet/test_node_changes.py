"""Fault 23: the node's addresses and its Node object change under a running kproxy; packets follow, nothing ends, in both variants.

Addresses are told by the kernel (the real watch of watch/addresses.py), the Node by events, as its reflector would.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest

from kproxy.backends.iptables.variant import Variant
from kproxy.model.desired import DetectMode
from kproxy.model.names import Protocol
from tests.packet.living import Living
from tests.support.addressing import CLUSTER_IP, LOOPBACK, NODE, NODE_IP, NODE_IP_2, six
from tests.support.bed import Bed
from tests.support.builders import applied, ep, node, port, slice_, svc
from tests.support.flows import SETTINGS, L, P, Place, Source, X, flow, row, snat
from tests.support.netns import ip
from tests.support.probing import Answered, probe

_E = "10.180.0.1"
_OBJECTS = (
    svc(ports=[port(node=3001)]),
    slice_(ep(_E)),
    svc(six(CLUSTER_IP), name="six", ports=[port(node=3006)]),
    slice_(ep(six(_E)), of="six", family="IPv6"),
)
NEW, NEW_6 = "192.168.0.77", six("192.168.0.77")
_X6 = Source(Place.OUTSIDE, six(X.address))
_FLOWS = [
    flow(source, to, number, snat(f"{_E}:80"))
    for source, to, number in ((X, NODE_IP, 3001), (X, NODE_IP_2, 3001), (X, NEW, 3001), (_X6, NEW_6, 3006))
]


@pytest.fixture(scope="module")
def bed() -> Iterator[Bed]:
    made = Bed((row("F23", "a node whose addresses change", _OBJECTS, *_FLOWS, settings=SETTINGS),))
    yield made
    made.close()


@pytest.fixture(params=list(Variant), ids=lambda variant: variant.value)
def variant(request: pytest.FixtureRequest) -> Variant:
    return Variant(request.param)


@contextmanager
def living(bed: Bed, variant: Variant, *entries: str, **settings: object) -> Iterator[Living]:
    chosen = replace(SETTINGS, node_port_addresses=entries, **settings)  # type: ignore[arg-type]
    with Living(bed.node, variant, settings=chosen, addresses=True) as made:
        made.hear(*_OBJECTS)
        yield made
    # The next one starts on the same node with other settings.
    with bed.node.entered():
        asyncio.run(made.backend.cleanup())


def answers(bed: Bed, to: str, number: int = 3001, source: Source | None = None) -> bool:
    """Whether the endpoint answers there."""
    source = source or (_X6 if ":" in to else X)
    endpoint = f"[{six(_E)}]:80" if ":" in to else f"{_E}:80"
    with bed.at(source):
        return any(
            isinstance(a, Answered) and a.by == endpoint
            for a in probe(Protocol.TCP, source.address, (to, number), 1, 1.0)
        )


@contextmanager
def held(bed: Bed, *addresses: str) -> Iterator[None]:
    """The node has these addresses on loopback meanwhile."""
    lines = [f"{a}/{128 if ':' in a else 32} dev lo" for a in addresses]
    ip(bed.node, *(f"addr add {line}{' nodad' if ':' in line else ''}" for line in lines))
    try:
        yield
    finally:
        ip(bed.node, *(f"addr del {line}" for line in lines))


@pytest.mark.parametrize(
    "entries", [(), ("all",), ("192.168.0.0/24", "fd00:192:168::/64")], ids=["all", "word", "networks"]
)
def test_fault_23_node_ports_follow_the_nodes_addresses(bed: Bed, variant: Variant, entries: tuple[str, ...]) -> None:
    with living(bed, variant, *entries) as kproxy:
        assert answers(bed, NODE_IP) and not answers(bed, NEW)
        with held(bed, NEW, NEW_6):
            kproxy.until(lambda: answers(bed, NEW))
            kproxy.until(lambda: answers(bed, NEW_6, 3006))
        kproxy.until(lambda: not answers(bed, NEW))
        kproxy.until(lambda: not answers(bed, NEW_6, 3006))
        assert answers(bed, NODE_IP)
        assert answers(bed, NODE_IP_2) == (entries in ((), ("all",)))


def test_fault_23_an_interface_that_flaps_costs_its_address_and_gives_it_back(bed: Bed, variant: Variant) -> None:
    with living(bed, variant, "192.168.0.0/24") as kproxy:
        for _ in range(2):
            ip(bed.node, "link add flap type veth peer name palf", f"addr add {NEW}/32 dev flap", "link set flap up")
            kproxy.until(lambda: answers(bed, NEW))
            ip(bed.node, "link set flap down", "link set flap up", "link del flap")
            kproxy.until(lambda: not answers(bed, NEW))
        assert answers(bed, NODE_IP)
        kproxy.until(kproxy.whole)


def test_fault_23_primary_is_the_address_that_the_node_object_says_now(bed: Bed, variant: Variant) -> None:
    with living(bed, variant, "primary") as kproxy:
        assert answers(bed, NODE_IP) and not answers(bed, NODE_IP_2)
        kproxy.emit(*applied(node(addresses=[NODE_IP_2, six(NODE_IP_2)])))
        kproxy.until(lambda: answers(bed, NODE_IP_2))
        assert not answers(bed, NODE_IP)


def test_localhost_alone_answers_on_loopback_and_nowhere_else(bed: Bed, variant: Variant) -> None:
    with living(bed, variant, "localhost") as kproxy:
        assert answers(bed, LOOPBACK, source=L) and not answers(bed, NODE_IP)
        with held(bed, NEW):
            kproxy.until(lambda: NEW in kproxy.loop.snapshot.local_addresses and kproxy.settled())
            assert not answers(bed, NEW)


def test_pod_networks_of_the_node_change_in_place(bed: Bed, variant: Variant) -> None:
    """detectLocalMode NodeCIDR: whose packets to a cluster IP keep their source. kube-proxy ends itself instead."""

    def kept() -> bool:
        with bed.at(P):
            seen = probe(Protocol.TCP, P.address, (CLUSTER_IP, 80), 1, 1.0)
        assert all(isinstance(each, Answered) and each.by == f"{_E}:80" for each in seen), seen
        return all(isinstance(each, Answered) and each.client == P.address for each in seen)

    with living(bed, variant, detect_mode=DetectMode.NODE_CIDR, cluster_cidrs=()) as kproxy:
        assert kept()
        kproxy.emit(*applied(node(pod_cidrs=["10.77.0.0/24", "fd00:77::/64"])))
        kproxy.until(lambda: not kept())
        kproxy.emit(*applied(node(pod_cidrs=[])))
        kproxy.until(lambda: kept())
        kproxy.emit(*applied(node()))
        kproxy.until(lambda: kproxy.settled() and kept())


def test_a_node_object_that_goes_and_comes_costs_no_rule(bed: Bed, variant: Variant) -> None:
    with living(bed, variant) as kproxy:
        before = kproxy.backend.wanted
        kproxy.emit(*applied(node(zone="b")))
        kproxy.until(lambda: kproxy.loop.snapshot.node(NODE).zone == "b" and kproxy.settled())  # type: ignore[union-attr]
        assert kproxy.backend.wanted == before
        assert answers(bed, NODE_IP)
