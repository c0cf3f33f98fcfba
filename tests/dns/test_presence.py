"""The controller takes the cluster's DNS addresses and gives them back: what cannot be held is tried ever less often, and told once."""

from __future__ import annotations

import asyncio
import json
import logging
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from kproxy.dns.node import release
from kproxy.dns.presence import CHECK_S, LONGEST_S, TRIES, WAIT_S, Presence

FOUR, SIX = "10.96.0.10", "fd00:96::a"
_NO_IPV6 = [Path(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6") for name in ("default", "all")]


def local_addresses() -> frozenset[str]:
    links = json.loads(subprocess.run(["ip", "-j", "addr"], capture_output=True, check=True, timeout=10).stdout)
    return frozenset(each["local"] for link in links for each in link.get("addr_info", ()))


class Enough(Exception):
    """The test has seen what it wants."""


@pytest.fixture
def without_ipv6() -> Iterator[None]:
    for path in _NO_IPV6:
        path.write_text("1")
    try:
        yield
    finally:
        for path in _NO_IPV6:
            path.write_text("0")
        asyncio.run(release((FOUR, SIX)))


def _keep(presence: Presence) -> None:
    async def run() -> None:
        with suppress(Enough):
            await presence.keep(lambda: True, local_addresses)

    asyncio.run(run())


def test_what_the_node_cannot_hold_is_tried_ever_less_often_and_told_once(
    without_ipv6: None, caplog: pytest.LogCaptureFixture
) -> None:
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 10:
            for path in _NO_IPV6:
                path.write_text("0")
        if len(pauses) == 12:
            raise Enough

    with caplog.at_level(logging.INFO, "kproxy.dns"):
        _keep(Presence((FOUR, SIX), sleep))
    assert pauses[:3] == [2 * CHECK_S, 4 * CHECK_S, 8 * CHECK_S]
    assert pauses[9] == LONGEST_S
    assert pauses[10:] == [CHECK_S, CHECK_S], "held at last"
    assert {FOUR, SIX} <= local_addresses()
    refusals = [record for record in caplog.records if "cannot hold" in record.getMessage()]
    answered = [record for record in caplog.records if "is answered" in record.getMessage()]
    assert (len(refusals), len(answered)) == (1, 2), caplog.text


def test_nothing_is_taken_before_somebody_answers() -> None:
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 3:
            raise Enough

    async def run() -> None:
        with suppress(Enough):
            await Presence((FOUR,), sleep).keep(lambda: False, local_addresses)

    asyncio.run(run())
    assert pauses == [WAIT_S] * 3 and FOUR not in local_addresses()


def test_the_address_goes_only_after_the_rules() -> None:
    answers = [False] * TRIES + [False, True]

    async def sync() -> bool:
        assert FOUR in local_addresses(), "untracked queries still need it"
        return answers.pop(0)

    async def sleep(seconds: float) -> None:
        if not answers or len(pauses) == 1:
            raise Enough
        pauses.append(seconds)

    async def no_wait(seconds: float) -> None:
        return None

    pauses: list[float] = []
    _keep(Presence((FOUR,), sleep))
    presence = Presence((FOUR,), no_wait)
    assert not asyncio.run(presence.leave(sync))
    assert FOUR in local_addresses() and len(answers) == 2
    assert asyncio.run(presence.leave(sync))
    assert FOUR not in local_addresses() and not answers
