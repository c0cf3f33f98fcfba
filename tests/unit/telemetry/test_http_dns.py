"""The pages that a Corefile asks for: answered where it says, also when it says something else, whatever cannot be bound."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable

import aiohttp
import pytest
from aiohttp import web

from kproxy.dns.blocks import Pages
from kproxy.telemetry import http_dns
from kproxy.telemetry.http_dns import CorefilePages

HOST = "127.0.0.23"


async def _metrics(_: web.Request) -> web.Response:
    return web.Response(body=b"a 1\n")


async def _get(port: int, path: str) -> tuple[int, str] | None:
    try:
        async with aiohttp.ClientSession() as session, session.get(f"http://{HOST}:{port}{path}") as answer:
            return answer.status, await answer.text()
    except aiohttp.ClientConnectionError:
        return None


async def _until(ask: Callable[[], Awaitable[object]], wanted: object) -> None:
    async with asyncio.timeout(10):
        while await ask() != wanted:
            await asyncio.sleep(0.02)


def test_pages_follow_the_corefile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_dns, "LOOK_S", 0.05)
    pages = Pages(health=f"{HOST}:5481", ready=f"{HOST}:5482", prometheus=(f"{HOST}:5483",))
    missing, failed = ["kubernetes"], []

    async def run() -> None:
        nonlocal pages
        with socket.create_server((HOST, 5484)):  # somebody else's
            served = CorefilePages(lambda: pages, lambda: missing, {"/metrics": _metrics}, failed.append)
            task = asyncio.create_task(served.keep())
            await _until(lambda: _get(5481, "/health"), (200, "OK"))
            await _until(lambda: _get(5482, "/ready"), (503, "kubernetes"))
            missing.clear()
            assert await _get(5482, "/ready") == (200, "OK")
            assert await _get(5483, "/metrics") == (200, "a 1\n")
            assert (await _get(5481, "/other") or (0, ""))[0] == 404
            async with asyncio.timeout(10):
                while not served.health.count:  # measured from inside
                    await asyncio.sleep(0.02)
            pages = Pages(ready=f"{HOST}:5485", ready_continuously=False, health=f"{HOST}:5484")
            await _until(lambda: _get(5485, "/ready"), (200, "OK"))
            await _until(lambda: _get(5481, "/health"), None)
            missing.append("kubernetes")
            assert await _get(5485, "/ready") == (200, "OK"), "monitored until it was ready"
            assert failed and "5484" in failed[0], "told, and nothing ends"
            assert not task.done()
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await asyncio.sleep(0.05)  # connections that were just ended are taken down by the event loop

    asyncio.run(run())
