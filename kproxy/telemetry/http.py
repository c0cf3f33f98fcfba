"""The status pages of a controller: health for load balancers and kubelets, state for people.

| server (default address)  | paths |
| health, 0.0.0.0:10256     | /healthz /livez /readyz /statusz |
| metrics, 127.0.0.1:10249  | /metrics /proxyMode /healthz /statusz |

Bodies and codes of /healthz and /livez are kube-proxy's; /readyz is ours: 200 only after the first complete sync of rules and zone.
Liveness never depends on the API server: a node whose API is away still routes, and must not be restarted for it. What must not happen
here: changing anything. A port that is taken is reported and tried again; it never stops the data plane.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from aiohttp import web

from kproxy.telemetry.logs import fields

log = logging.getLogger("kproxy.http")

_RETRY_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """What the health pages say. `last_updated` is Unix seconds of the last successful sync, 0 when there was none."""

    data_path: bool
    node_eligible: bool
    ready: bool
    waiting_for: str = ""
    last_updated: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Pages:
    """Where the pages take their content from, each asked at every request."""

    health: Callable[[], Health]
    status: Callable[[], dict[str, Any]]
    metrics: Callable[[], bytes]
    mode: str


def _stamp(unix: float) -> str:
    return datetime.fromtimestamp(unix, UTC).strftime("%Y-%m-%d %H:%M:%S.%f +0000 UTC")


def _health_answer(health: Health, *, ok: bool, eligible: bool | None) -> web.Response:
    now = time.time()
    body: dict[str, Any] = {
        # While healthy the time is "now": load balancers compare it with their own clock.
        "lastUpdated": _stamp(now if health.data_path else health.last_updated),
        "currentTime": _stamp(now),
        "healthy": health.data_path,
    }
    if eligible is not None:
        body["nodeEligible"] = eligible
    return web.json_response(body, status=200 if ok else 503, headers={"X-Content-Type-Options": "nosniff"})


def _routes(pages: Pages) -> dict[str, Callable[[web.Request], Any]]:
    async def healthz(_: web.Request) -> web.Response:
        health = pages.health()
        return _health_answer(health, ok=health.data_path and health.node_eligible, eligible=health.node_eligible)

    async def livez(_: web.Request) -> web.Response:
        health = pages.health()
        return _health_answer(health, ok=health.data_path, eligible=None)

    async def readyz(_: web.Request) -> web.Response:
        health = pages.health()
        return web.Response(
            text="ok\n" if health.ready else f"waiting for {health.waiting_for}\n", status=200 if health.ready else 503
        )

    async def statusz(request: web.Request) -> web.Response:
        status = pages.status()
        if "json" in request.headers.get("Accept", "") or request.query.get("o") == "json":
            return web.json_response(status)
        return web.Response(text=_status_text(status))

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(body=pages.metrics(), headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"})

    async def proxy_mode(_: web.Request) -> web.Response:
        return web.Response(text=pages.mode)

    return {
        "/healthz": healthz,
        "/livez": livez,
        "/readyz": readyz,
        "/statusz": statusz,
        "/metrics": metrics,
        "/proxyMode": proxy_mode,
    }


def _status_text(status: dict[str, Any]) -> str:
    lines: list[str] = []
    for key, value in status.items():
        if isinstance(value, list):
            lines.append(f"{key}: {len(value)}")
            lines.extend(f"  {item}" for item in value)
        else:
            lines.append(f"{key}: {value}")
    return "\n".join(lines) + "\n"


async def serve(pages: Pages, address: str, paths: tuple[str, ...]) -> None:
    """Serves `paths` at `address` (`host:port`) for ever; a taken port is tried again every 5 s."""
    host, _, port = address.rpartition(":")
    application = web.Application()
    routes = _routes(pages)
    for path in paths:
        application.router.add_get(path, routes[path])
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    try:
        while True:
            try:
                await web.TCPSite(runner, host.strip("[]"), int(port), reuse_address=True, reuse_port=True).start()
                break
            except OSError as error:
                log.warning("Cannot listen", extra=fields(address=address, error=error, retry_s=_RETRY_S))
                await asyncio.sleep(_RETRY_S)
        await asyncio.Event().wait()
    finally:
        await runner.cleanup()
