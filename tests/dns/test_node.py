"""The cluster's DNS addresses come to this node and leave it, however often that is asked for, and nothing else is touched."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Iterator

import dns.message
import pytest
import uvloop

from kproxy.dns.node import hold, release
from kproxy.dns.settings import DnsSettings
from tests.support.dns_worker import Workers
from tests.support.queries import zone_of

WANTED = ("10.96.0.10", "fd00:96::a")
FOREIGN = "10.99.99.99/32"


def addresses() -> set[str]:
    lines = subprocess.run(["ip", "-o", "addr"], capture_output=True, text=True, check=True).stdout.splitlines()
    return {line.split()[3] for line in lines}


@pytest.fixture(autouse=True)
def foreign() -> Iterator[None]:
    subprocess.run(["ip", "addr", "add", FOREIGN, "dev", "lo"], check=True)
    try:
        yield
    finally:
        asyncio.run(release(WANTED))
        subprocess.run(["ip", "addr", "del", FOREIGN, "dev", "lo"], check=True)


def test_hold_and_release_as_often_as_one_likes() -> None:
    before = addresses()
    for _ in range(2):
        assert asyncio.run(hold(WANTED)) == WANTED
        assert addresses() == before | {"10.96.0.10/32", "fd00:96::a/128"}
    for _ in range(2):
        asyncio.run(release(WANTED))
        assert addresses() == before


def test_without_addresses_what_is_recognisably_ours_goes() -> None:
    before = addresses()
    asyncio.run(hold(WANTED[:1]))
    asyncio.run(release())
    assert addresses() == before


def test_it_works_below_the_controllers_event_loop() -> None:
    async def both() -> tuple[str, ...]:
        held = await hold(WANTED)
        await release(WANTED)
        return held

    assert uvloop.run(both()) == WANTED


def test_a_worker_bound_before_the_address_came_answers_on_it() -> None:
    settings = DnsSettings(listen=("10.96.0.10",), port=53)
    with Workers(settings, port=53) as workers:
        workers.publish(zone_of("E", settings))
        asyncio.run(hold(WANTED))
        query = dns.message.make_query("kubernetes.default.svc.cluster.local.", "A").to_wire()
        reply = workers.udp(query)
        assert reply is not None and dns.message.from_wire(reply).answer[0][0].to_text() == "10.96.0.1"
