"""The pages that a Corefile asks for: `health`, `ready` and `prometheus`, where CoreDNS's probes and scrapers look.

| directive (default) | path | answer |
| health :8080 | /health | 200 `OK`, also for the whole `lameduck` after the signal to end |
| ready :8181 | /ready | 200 `OK`; 503 and the names of what is not ready, as CoreDNS names it |
| prometheus localhost:9153 | /metrics | what /metrics has everywhere |

In: what is wanted, asked again and again, for a Corefile may change it. Without a Corefile there is none of this. A page that cannot be
bound is told and tried again; it never ends anything. What must not happen here: deciding what is ready.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import monotonic

from aiohttp import web

from kproxy.dns.blocks import Pages
from kproxy.telemetry.histogram import Histogram
from kproxy.telemetry.http import Routes, serve

LOOK_S = 1.0
HEALTH_S = (0.00025, 0.0025, 0.025, 0.25, 2.5)
_PLAIN = {"Content-Type": "text/plain; charset=utf-8"}


class CorefilePages:
    """health: how long its own page takes, measured from inside once a second as CoreDNS does; failures: how often it did not answer."""

    def __init__(
        self,
        wanted: Callable[[], Pages],
        not_ready: Callable[[], list[str]],
        metrics: Routes,
        failed: Callable[[str], None],
    ) -> None:
        """not_ready: CoreDNS's names of what is not. metrics: routes with /metrics. failed: told of an address that cannot be bound."""
        self.health = Histogram(HEALTH_S)
        self.failures = 0
        self._wanted, self._not_ready, self._metrics, self._failed = wanted, not_ready, metrics, failed
        self._was_ready = False

    async def keep(self) -> None:
        """Serves what is wanted, for ever."""
        running: dict[tuple[str, str], asyncio.Task[None]] = {}
        try:
            while True:
                wanted = self._addresses()
                for place in running.keys() - wanted.keys():
                    running.pop(place).cancel()
                for place in wanted.keys() - running.keys():
                    work = serve(wanted[place], place[1], failed=self._failed)
                    running[place] = asyncio.create_task(work)
                await asyncio.sleep(LOOK_S)
                if self._wanted().health:
                    await self._probe(self._wanted().health)
        finally:
            for task in running.values():
                task.cancel()

    def _addresses(self) -> dict[tuple[str, str], Routes]:
        pages = self._wanted()
        found: dict[tuple[str, str], Routes] = {}
        if pages.health:
            found["health", pages.health] = {"/health": self._health}
        if pages.ready:
            found["ready", pages.ready] = {"/ready": self._ready}
        for address in pages.prometheus:
            found["prometheus", address.replace("localhost:", "127.0.0.1:")] = self._metrics
        return found

    async def _health(self, _: web.Request) -> web.Response:
        return web.Response(body=b"OK", headers=_PLAIN)

    async def _ready(self, _: web.Request) -> web.Response:
        missing = self._not_ready()
        if self._was_ready and not self._wanted().ready_continuously:
            missing = []
        self._was_ready = self._was_ready or not missing
        if missing:
            return web.Response(body=",".join(missing).encode(), status=503, headers=_PLAIN)
        return web.Response(body=b"OK", headers=_PLAIN)

    async def _probe(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        began = monotonic()
        try:
            async with asyncio.timeout(1.0):
                inside = host.strip("[]") if host not in ("", "0.0.0.0", "[::]") else "127.0.0.1"
                reader, writer = await asyncio.open_connection(inside, int(port))
                try:
                    writer.write(b"GET /health HTTP/1.0\r\n\r\n")
                    answered = (await reader.read(64)).startswith(b"HTTP/1.")
                finally:
                    writer.transport.abort()
        except (OSError, TimeoutError, ValueError):
            answered = False
        if answered:
            self.health.observe(monotonic() - began)
        else:
            self.failures += 1
