"""Connections that the kernel opens itself (relay/kernel_openings.py), with real packets: which, to whom, and when no more."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from tests.packet.kernel_ground import without_offload
from tests.packet.opening_ground import opening
from tests.packet.tcp_ground import FOUR, SIX, Ground, grounded, scene


@pytest.fixture(scope="module", params=[FOUR, SIX], ids=["IPv4", "IPv6"])
def either(request: pytest.FixtureRequest) -> Iterator[Ground]:
    with grounded(request.param) as made:
        yield made


@pytest.mark.parametrize("offload", [True, False], ids=["offload", "software checksums"])
def test_connections_of_who_comes_often_are_opened_by_the_kernel(either: Ground, offload: bool) -> None:
    async def play() -> None:
        async with opening(either) as made:
            await made.often()
            accepted = made.relay.counts.accepted
            for _ in range(200):
                assert await made.ask() == made.pods[0].end[0]
            assert made.relay.counts.accepted - accepted < 20, "one in 64 goes the whole way"

    with contextlib.ExitStack() as held:
        if not offload:
            held.enter_context(without_offload(either.clients, either.pods))
        scene(play)
