"""A watch whose packets vanish: nobody says goodbye, and the kernel has to notice."""

from __future__ import annotations

import asyncio
import time

import pytest

from kproxy.backends.iptables.variant import Variant
from kproxy.config.config import ClientSettings
from kproxy.model.events import Applied, Event
from kproxy.model.objects import Kind
from kproxy.watch import client
from kproxy.watch.client import Api
from kproxy.watch.reflector import RESOURCES, WatchStats, reflect
from tests.packet.node import Node
from tests.support.netns import ip
from tests.support.scripted_api import ScriptedApi, added, listed, service, stream


def test_fault_03_a_half_open_watch_is_found_by_the_kernel_and_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    assert client.DEAD_AFTER_S <= 60, "what is waited for at most, for real"
    monkeypatch.setattr(client, "KEEPALIVE_IDLE_S", 1)
    monkeypatch.setattr(client, "KEEPALIVE_INTERVAL_S", 1)
    monkeypatch.setattr(client, "DEAD_AFTER_S", 2)
    node = Node(Variant.NFT)
    ip(node.space, "link set lo up")
    events: list[Event] = []
    stats = WatchStats(Kind.SERVICE)

    def vanish(port: int) -> None:
        for side in ("--sport", "--dport"):
            node.tool("iptables", "-A", "INPUT", "-p", "tcp", side, str(port), "-j", "DROP")

    async def until(count: int) -> None:
        async with asyncio.timeout(30):
            while len(events) < count:
                await asyncio.sleep(0.01)

    async def scenario() -> None:
        script = [stream(listed("5", service("web", "1"))), stream(added(service("new", "6")))]
        async with ScriptedApi(script) as server:
            api = Api(ClientSettings(master=server.url), {"HOME": "/nonexistent"})
            work = reflect(
                api, RESOURCES("n")[0], events.append, now=time.monotonic, sleep=asyncio.sleep, random=lambda: 0.5, stats=stats
            )  # fmt: skip
            task = asyncio.ensure_future(work)
            try:
                await until(1)
                transport = server.requests[0].transport
                assert transport is not None
                vanish(transport.get_extra_info("peername")[1])
                heard = stats.last_heard_s
                await asyncio.sleep(1)
                assert stats.last_heard_s == heard, "its age is seen while nothing else is"
                await until(2)
                assert server.asked(1)["resourceVersion"] == "5"
            finally:
                task.cancel()
                await asyncio.wait([task])
                await api.close()

    try:
        with node.space.entered():
            asyncio.run(scenario())
    finally:
        node.space.close()
    assert isinstance(events[1], Applied)
    assert (stats.relists, stats.errors) == (0, 1)
    assert "broke the connection" in stats.last_error
