"""Fixtures of the packet lane."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from kproxy.backends.iptables.variant import Variant
from tests.packet.node import Node


@pytest.fixture(params=list(Variant), ids=lambda variant: variant.value)
def node(request: pytest.FixtureRequest) -> Iterator[Node]:
    """A namespace of its own per test, for each variant."""
    made = Node(request.param)
    yield made
    made.space.close()
