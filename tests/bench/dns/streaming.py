"""An API server that can change endpoints a thousand times a second: lists once, then streams. `python -m tests.bench.dns.streaming`.

    --services N --headless N        what it holds: cluster.manifests, and further headless Services with two endpoints each
    POST /churn?rate=R&seconds=S     changes one endpoint of one Service, R times a second, round the clock of S seconds
    POST /canary?address=A           the headless Service `canary` has this endpoint now

kube-apiserver takes 1 to 2 ms of processor time for each write, a core and a half for a thousand a second: on two cores nothing would be
left to measure. Programs see what they see from the real one when it is busy: a list, and a watch that never ends. It says the port that
it listens on as its first line.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from aiohttp import web

from tests.bench.dns import cluster
from tests.support.one_node import endpoint_address
from tests.support.prefilled import endpoint_slice, service, service_name

Manifest = dict[str, Any]
KINDS = {
    "/api/v1/services": ("v1", "Service"),
    "/api/v1/namespaces": ("v1", "Namespace"),
    "/api/v1/nodes": ("v1", "Node"),
    "/api/v1/pods": ("v1", "Pod"),
    "/apis/discovery.k8s.io/v1/endpointslices": ("discovery.k8s.io/v1", "EndpointSlice"),
    "/apis/networking.k8s.io/v1/servicecidrs": ("networking.k8s.io/v1", "ServiceCIDR"),
}
SLICES = "/apis/discovery.k8s.io/v1/endpointslices"
CANARY = "canary"
_TICK_S = 0.01


def headless_name(number: int) -> str:
    """The name of a headless Service."""
    return f"set-{number:05}"


def held(services: int, headless: int) -> Iterator[Manifest]:
    """Everything at the start."""
    yield from cluster.manifests(services)
    for name in (CANARY, *map(headless_name, range(headless))):
        made = service(name, "None")
        yield {**made, "spec": {**made["spec"], "clusterIPs": ["None"]}}
        yield endpoint_slice(name, [endpoint_address(40_000), endpoint_address(40_001)])


class Streaming:
    """The server."""

    def __init__(self, services: int, headless: int) -> None:
        self.version = 1
        self.names = [*map(service_name, range(services)), *map(headless_name, range(headless))]
        self._held = [self._stamped(manifest, n) for n, manifest in enumerate(held(services, headless))]
        self._streams: set[web.StreamResponse] = set()
        self._churn: asyncio.Task[None] | None = None
        self._random = random.Random(11)
        self.written = 0

    def _stamped(self, manifest: Manifest, number: int) -> Manifest:
        self.version += 1
        return {
            **manifest,
            "metadata": {"uid": f"u{number}", "resourceVersion": str(self.version), **manifest["metadata"]},
        }

    def application(self) -> web.Application:
        """What to serve."""
        made = web.Application()
        made.router.add_get("/version", self._version)
        for path in KINDS:
            made.router.add_get(path, self._objects)
        made.router.add_post("/churn", self._churn_on)
        made.router.add_get("/churn", self._churn_told)
        made.router.add_post("/canary", self._canary)
        return made

    async def _version(self, _: web.Request) -> web.Response:
        return web.json_response({"major": "1", "minor": "36", "gitVersion": "v1.36.3"})

    async def _objects(self, request: web.Request) -> web.StreamResponse:
        group_version, kind = KINDS[request.path]
        if request.query.get("sendInitialEvents"):
            said = "sendInitialEvents is forbidden for watch unless the WatchList feature gate is enabled"
            status = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "Invalid", "code": 422}
            return web.json_response({**status, "message": said}, status=422)
        if request.query.get("watch"):
            return await self._watch(request)
        meta = {"resourceVersion": str(self.version)}
        items = [manifest for manifest in self._held if manifest["kind"] == kind]
        return web.json_response({"kind": f"{kind}List", "apiVersion": group_version, "metadata": meta, "items": items})

    async def _watch(self, request: web.Request) -> web.StreamResponse:
        stream = web.StreamResponse(headers={"Content-Type": "application/json"})
        await stream.prepare(request)
        if request.path == SLICES:
            self._streams.add(stream)
        try:
            await asyncio.Event().wait()
        finally:
            self._streams.discard(stream)
        return stream

    async def _send(self, manifests: list[Manifest]) -> None:
        lines = []
        for manifest in manifests:
            self.version += 1
            changed = self._stamped(manifest, self.version)
            lines.append(json.dumps({"type": "MODIFIED", "object": changed}, separators=(",", ":")) + "\n")
        text = "".join(lines).encode()
        for stream in tuple(self._streams):
            with suppress(ConnectionError):
                await stream.write(text)

    async def _churn_on(self, request: web.Request) -> web.Response:
        rate, seconds = float(request.query["rate"]), float(request.query["seconds"])
        self._churn = asyncio.create_task(self._change(rate, seconds))
        return web.json_response({"streams": len(self._streams)})

    async def _churn_told(self, _: web.Request) -> web.Response:
        return web.json_response({"written": self.written})

    async def _change(self, rate: float, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        self.written = 0
        while (now := loop.time()) < began + seconds:
            due = int((now - began) * rate) - self.written
            if due > 0:
                await self._send([self._one() for _ in range(due)])
                self.written += due
            await asyncio.sleep(_TICK_S)

    def _one(self) -> Manifest:
        kept, changed = self._random.randrange(40_000), self._random.randrange(40_000)
        return endpoint_slice(self._random.choice(self.names), [endpoint_address(kept), endpoint_address(changed)])

    async def _canary(self, request: web.Request) -> web.Response:
        await self._send([endpoint_slice(CANARY, [request.query["address"]])])
        return web.json_response({})


async def _serve(services: int, headless: int, address: str) -> None:
    runner = web.AppRunner(Streaming(services, headless).application())
    await runner.setup()
    site = web.TCPSite(runner, address, 0)
    await site.start()
    print(runner.addresses[0][1], flush=True)
    await asyncio.Event().wait()


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--services", type=int, required=True)
    parser.add_argument("--headless", type=int, required=True)
    parser.add_argument("--address", default="127.0.0.1")
    given = parser.parse_args()
    asyncio.run(_serve(given.services, given.headless, given.address))


if __name__ == "__main__":
    main()
