"""The pages over real HTTP on loopback: codes, headers and bodies, as kube-proxy 1.36 gives them where it has them."""

from __future__ import annotations

import asyncio
import json
import re
import socket
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest

from kproxy.errors import UnsupportedError
from kproxy.sync.status import SyncStatus
from kproxy.telemetry import http, metrics_dns
from kproxy.telemetry.health import Health, health_json
from kproxy.telemetry.http import Pages, Routes, health_routes, metrics_only, metrics_routes, serve
from kproxy.telemetry.metrics import families, text_of
from kproxy.telemetry.metrics_dns import DnsFacts
from kproxy.telemetry.state import status_of

WELL = Health(data_path=True, node_eligible=True, ready=True, last_updated=1.5)
STAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?Z")


def _pages(health: Health = WELL, **more: Any) -> Pages:
    async def metrics() -> bytes:
        status = SyncStatus(services=3, syncs=7)
        told = metrics_dns.families({"queries": 5}, DnsFacts(workers=2))
        return text_of([*families(status, (), now=0.0, flows={}), *told])

    return Pages(
        health=lambda: health,
        status=lambda: status_of(
            SyncStatus(services=3),
            node_name="node-1",
            mode="iptables",
            evidence="seen",
            server="http://a",
            watches=("w",),
            dns={},
        ),
        page=lambda: b'{"format":1}',
        metrics=metrics,
        slis=lambda: b"kubernetes_healthcheck 1\n",
        configz=lambda: {"kubeproxy.config.k8s.io": {"mode": "iptables"}},
        flagz=lambda: {"v": "2", "config": "/c"},
        mode="iptables",
        **more,
    )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@asynccontextmanager
async def _served(routes: Routes) -> AsyncIterator[tuple[aiohttp.ClientSession, str]]:
    port = _free_port()
    async with asyncio.TaskGroup() as tasks, aiohttp.ClientSession() as session:
        serving = tasks.create_task(serve(routes, f"127.0.0.1:{port}"))
        async with asyncio.timeout(10):
            while True:
                try:
                    await (await session.get(f"http://127.0.0.1:{port}/nothing")).read()
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
    ids=["Z01 well", "Z03 the node leaves", "Z02 a change waits", "not yet synced"],
)  # fmt: skip
def test_codes_and_how_often_they_were_given(health: Health, codes: dict[str, int]) -> None:
    answers: Counter[tuple[str, int]] = Counter()

    async def scenario() -> None:
        async with _served(health_routes(_pages(health, answers=answers))) as (session, url):
            for path, code in codes.items():
                async with session.get(url + path) as answer:
                    assert (path, answer.status) == (path, code)
                    assert answer.headers["X-Content-Type-Options"] == "nosniff"
                    if path != "/readyz":
                        assert answer.headers["Content-Type"] == "application/json"
                        body = await answer.json()
                        assert body["healthy"] is health.data_path
                        assert ("nodeEligible" in body) is (path == "/healthz")
            async with session.get(f"{url}/statusz") as answer:  # names of Services are nobody's business on this port
                assert answer.status == 404

    asyncio.run(scenario())
    assert answers == {(path[1:], code): 1 for path, code in codes.items()}


def test_the_body_of_health_is_kube_proxys() -> None:
    now = 1_795_257_831_193_900_000
    body = json.loads(health_json(WELL, ok=True, now_ns=now, eligible=True))
    family = {"lastUpdated": "1970-01-01T00:00:01.5Z", "healthy": True}
    assert body == {
        "lastUpdated": "2026-11-21T10:43:51.1939Z",
        "currentTime": "2026-11-21T10:43:51.1939Z",
        "nodeEligible": True,
        "healthy": True,
        "status": {"IPv4": family, "IPv6": family},
    }
    assert list(body) == ["lastUpdated", "currentTime", "nodeEligible", "healthy", "status"]


def test_what_is_not_well_says_when_it_was_and_before_the_first_sync_nothing() -> None:
    late = Health(data_path=False, node_eligible=True, ready=True, last_updated=1.0)
    assert (
        json.loads(health_json(late, ok=False, now_ns=10**19, eligible=False))["lastUpdated"] == "1970-01-01T00:00:01Z"
    )
    new = Health(data_path=True, node_eligible=False, ready=False)
    body = json.loads(health_json(new, ok=False, now_ns=10**18, eligible=True))
    assert (body["lastUpdated"], "status" in body) == ("0001-01-01T00:00:00Z", False)


def test_pages_for_people_and_programs() -> None:
    async def scenario() -> None:
        async with _served(metrics_routes(_pages(started=100.0))) as (session, url):

            async def text(path: str, **headers: str) -> str:
                async with session.get(url + path, headers=headers) as answer:
                    assert answer.status == 200, path
                    return await answer.text()

            assert await text("/proxyMode") == "iptables"
            assert await text("/healthz") == await text("/livez") == await text("/readyz") == "ok"
            assert "services: 3" in await text("/statusz")
            assert json.loads(await text("/statusz?o=json"))["services"] == 3
            assert json.loads(await text("/statusz", Accept="application/json"))["services"] == 3
            assert json.loads(await text("/statusz?o=v1")) == {"format": 1}
            versioned = await text("/statusz", Accept="application/json;v=v1alpha1;g=config.k8s.io;as=Statusz")
            assert json.loads(versioned)["kind"] == "Statusz"
            assert json.loads(versioned)["startTime"] == "1970-01-01T00:01:40Z"
            assert json.loads(await text("/configz")) == {"kubeproxy.config.k8s.io": {"mode": "iptables"}}
            assert (await text("/flagz")).endswith("\nconfig=/c\nv=2\n")
            assert "kubernetes_healthcheck" in await text("/metrics/slis")
            metrics = await text("/metrics")
            assert "kproxy_syncs_total 7.0" in metrics
            assert "kproxy_dns_queries_total 5.0" in metrics
            async with session.get(f"{url}/debug/pprof/heap") as answer:
                assert (answer.status, "no pprof" in await answer.text()) == (404, True)

    asyncio.run(scenario())


def test_addresses_of_dns_show_metrics_and_nothing_else() -> None:
    async def scenario() -> None:
        async with _served(metrics_only(_pages())) as (session, url):
            codes = {path: (await session.get(url + path)).status for path in ("/metrics", "/statusz", "/configz")}
            assert codes == {"/metrics": 200, "/statusz": 404, "/configz": 404}

    asyncio.run(scenario())


def test_a_port_that_is_taken_is_told_once_and_kept_trying(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "_LAST_WORDS_S", 0.0)
    monkeypatch.setattr(http, "_RETRY_S", 0.01)

    async def scenario() -> list[str]:
        told: list[str] = []
        with socket.create_server(("127.0.0.1", 0)) as taken:
            address = f"127.0.0.1:{taken.getsockname()[1]}"
            serving = asyncio.ensure_future(serve(health_routes(_pages()), address, failed=told.append))
            async with asyncio.timeout(10):
                while not told:
                    await asyncio.sleep(0.01)
            await asyncio.sleep(0.1)  # several tries
            assert not serving.done()
            serving.cancel()
            await asyncio.gather(serving, return_exceptions=True)
            with pytest.raises(UnsupportedError, match="bindAddressHardFail"):
                await serve(health_routes(_pages()), address, failed=told.append, hard_fail=True)
        return told

    told = asyncio.run(scenario())
    assert len(told) == 2
    assert all("cannot listen on 127.0.0.1:" in line for line in told)
