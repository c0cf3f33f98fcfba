"""Fixtures of the packet lane."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from kproxy.backends.iptables.variant import Variant
from tests.packet.node import Node
from tests.packet.udp_ground import FOUR, SIX, Ground, grounded


@pytest.fixture(params=list(Variant), ids=lambda variant: variant.value)
def node(request: pytest.FixtureRequest) -> Iterator[Node]:
    """A namespace of its own per test, for each variant."""
    made = Node(request.param)
    yield made
    made.space.close()


@pytest.fixture(params=[FOUR, SIX], ids=lambda family: family.name)
def udp(request: pytest.FixtureRequest) -> Iterator[Ground]:
    """The ground of the UDP relay's tests, for each family."""
    with grounded(request.param) as made:
        yield made


@pytest.fixture(scope="module", params=[FOUR, SIX], ids=["IPv4", "IPv6"])
def either(request: pytest.FixtureRequest) -> Iterator[Ground]:
    """The ground of the TCP relay's tests, for each family; one for all tests of a file."""
    with grounded(request.param) as made:
        yield made
