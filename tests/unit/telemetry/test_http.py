"""The status pages over real HTTP on loopback."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import pytest

from kproxy.sync.status import SyncStatus
from kproxy.telemetry.http import Health, Pages, serve
from kproxy.telemetry.metrics import exposition
from kproxy.telemetry.state import status_of

PATHS = ("/healthz", "/livez", "/readyz", "/statusz", "/metrics", "/proxyMode")
WELL = Health(data_path=True, node_eligible=True, ready=True)


def _pages(health: Health) -> Pages:
    def status() -> dict[str, object]:
        return status_of(
            SyncStatus(services=3),
            node_name="node-1",
            mode="iptables",
            evidence="seen",
            server="http://a",
            watches=("w",),
            dns={},
        )

    def metrics() -> bytes:
        return exposition(
            SyncStatus(services=3, syncs=7), (), now=0.0, dns_counters={"queries": 5}, dns_workers=2, flows={}
        )

    return Pages(health=lambda: health, status=status, metrics=metrics, mode="iptables")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@asynccontextmanager
async def _served(health: Health) -> AsyncIterator[tuple[aiohttp.ClientSession, str]]:
    port = _free_port()
    async with asyncio.TaskGroup() as tasks, aiohttp.ClientSession() as session:
        serving = tasks.create_task(serve(_pages(health), f"127.0.0.1:{port}", PATHS))
        async with asyncio.timeout(10):
            while True:
                try:
                    await session.get(f"http://127.0.0.1:{port}/proxyMode")
                    break
                except aiohttp.ClientConnectionError:
                    await asyncio.sleep(0.01)
        yield session, f"http://127.0.0.1:{port}"
        serving.cancel()


@pytest.mark.parametrize(
    ("health", "codes"),
    [
        (WELL, {"/healthz": 200, "/livez": 200, "/readyz": 200}),
        (Health(data_path=True, node_eligible=False, ready=True), {"/healthz": 503, "/livez": 200, "/readyz": 200}),
        (Health(data_path=False, node_eligible=True, ready=True), {"/healthz": 503, "/livez": 503, "/readyz": 200}),
        (Health(data_path=True, node_eligible=True, ready=False, waiting_for="x"), {"/healthz": 200, "/livez": 200, "/readyz": 503}),
    ],
    ids=["well", "the node leaves", "a change waits", "not yet synced"],
)  # fmt: skip
def test_codes(health: Health, codes: dict[str, int]) -> None:
    async def scenario() -> None:
        async with _served(health) as (session, url):
            for path, code in codes.items():
                async with session.get(url + path) as answer:
                    assert (path, answer.status) == (path, code)
                    if path != "/readyz":
                        assert answer.headers["X-Content-Type-Options"] == "nosniff"
                        assert {"lastUpdated", "currentTime", "healthy"} <= (await answer.json()).keys()

    asyncio.run(scenario())


def test_pages_for_people_and_programs() -> None:
    async def scenario() -> None:
        async with _served(WELL) as (session, url):
            assert await (await session.get(url + "/proxyMode")).text() == "iptables"
            assert "services: 3" in await (await session.get(url + "/statusz")).text()
            assert json.loads(await (await session.get(url + "/statusz?o=json")).text())["services"] == 3
            metrics = await (await session.get(url + "/metrics")).text()
            assert "kproxy_syncs_total 7.0" in metrics
            assert "kproxy_dns_queries_total 5.0" in metrics

    asyncio.run(scenario())
