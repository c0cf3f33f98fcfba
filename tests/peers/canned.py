"""An API server that holds one list of manifests and never changes: what upstream programs list and watch, and nothing more.

For rows whose objects a validating API server would not store (cluster IPs of many networks at once). Lists are answered whole, watches
stay open and silent; a streaming list is refused with 400, upon which client-go lists and watches as before.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from aiohttp import web

Manifest = dict[str, Any]

KINDS = {
    "/api/v1/services": ("v1", "Service"),
    "/api/v1/namespaces": ("v1", "Namespace"),
    "/api/v1/nodes": ("v1", "Node"),
    "/api/v1/pods": ("v1", "Pod"),
    "/apis/discovery.k8s.io/v1/endpointslices": ("discovery.k8s.io/v1", "EndpointSlice"),
    "/apis/networking.k8s.io/v1/servicecidrs": ("networking.k8s.io/v1", "ServiceCIDR"),
}


def _application(manifests: Iterable[Manifest]) -> web.Application:
    held = [
        {**m, "metadata": {"uid": f"u{n}", "resourceVersion": "1", **m["metadata"]}} for n, m in enumerate(manifests)
    ]

    closing = asyncio.Event()

    async def close(_: web.Application) -> None:
        closing.set()

    async def version(_: web.Request) -> web.Response:
        return web.json_response({"major": "1", "minor": "36", "gitVersion": "v1.36.3"})

    async def objects(request: web.Request) -> web.StreamResponse:
        group_version, kind = KINDS[request.path]
        if request.query.get("sendInitialEvents"):
            said = "sendInitialEvents is forbidden for watch unless the WatchList feature gate is enabled"
            status = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "Invalid", "code": 422}
            return web.json_response({**status, "message": said}, status=422)
        if request.query.get("watch"):
            stream = web.StreamResponse(headers={"Content-Type": "application/json"})
            await stream.prepare(request)
            await closing.wait()
            return stream
        items = [m for m in held if m["kind"] == kind]
        meta = {"resourceVersion": "1"}
        return web.json_response({"kind": f"{kind}List", "apiVersion": group_version, "metadata": meta, "items": items})

    application = web.Application()
    application.on_shutdown.append(close)
    application.router.add_get("/version", version)
    for path in KINDS:
        application.router.add_get(path, objects)
    return application


@contextmanager
def canned_api(manifests: Iterable[Manifest]) -> Iterator[str]:
    """Serves the manifests on loopback of the caller's network namespace while the block runs; gives the URL."""
    listening = socket.create_server(("127.0.0.1", 0))
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="canned API", daemon=True)
    thread.start()

    async def start() -> web.AppRunner:
        runner = web.AppRunner(_application(manifests), shutdown_timeout=1)
        await runner.setup()
        await web.SockSite(runner, listening).start()
        return runner

    runner = asyncio.run_coroutine_threadsafe(start(), loop).result(timeout=10)
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(timeout=10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(timeout=10)
        loop.close()
