"""An API server that holds a list of manifests: what upstream programs and kproxy list and watch, and nothing more.

For rows whose objects a validating API server would not store (cluster IPs of many networks at once). Lists are answered whole, filtered by
their field selector; watches tell what a test changes and are silent else; a streaming list is refused, upon which clients list and watch
as before.
"""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Coroutine, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from aiohttp import web

from kproxy.dns.selector import parse

Manifest = dict[str, Any]

KINDS = {
    "/api/v1/services": ("v1", "Service"),
    "/api/v1/namespaces": ("v1", "Namespace"),
    "/api/v1/namespaces/kube-system/configmaps": ("v1", "ConfigMap"),
    "/api/v1/nodes": ("v1", "Node"),
    "/api/v1/pods": ("v1", "Pod"),
    "/apis/discovery.k8s.io/v1/endpointslices": ("discovery.k8s.io/v1", "EndpointSlice"),
    "/apis/multicluster.x-k8s.io/v1alpha1/serviceimports": ("multicluster.x-k8s.io/v1alpha1", "ServiceImport"),
    "/apis/networking.k8s.io/v1/servicecidrs": ("networking.k8s.io/v1", "ServiceCIDR"),
}


class CannedApi:
    """The server's state. Its methods may be called from any thread once it serves."""

    def __init__(self, manifests: Iterable[Manifest]) -> None:
        self.url = ""
        self.version = 1
        self.held: dict[tuple[str, str, str], Manifest] = {}
        self.log: list[tuple[int, str, Manifest]] = []  # version, word, object
        self.loop = asyncio.new_event_loop()
        self.changed = asyncio.Condition()
        self.closing = False
        for manifest in manifests:
            self.held[_key(manifest)] = self._stored(manifest)

    def _stored(self, manifest: Manifest) -> Manifest:
        facts = {"uid": f"u-{'-'.join(_key(manifest))}", "resourceVersion": str(self.version)}
        return {**manifest, "metadata": {**facts, **manifest["metadata"]}}

    def apply(self, *manifests: Manifest) -> None:
        """Creates or replaces objects."""
        self._run(self._change([(manifest, True) for manifest in manifests]))

    def remove(self, *manifests: Manifest) -> None:
        """Deletes objects."""
        self._run(self._change([(manifest, False) for manifest in manifests]))

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self.loop).result(timeout=10)

    async def _change(self, changes: list[tuple[Manifest, bool]]) -> None:
        for manifest, present in changes:
            self.version += 1
            key, stored = _key(manifest), self._stored(manifest)
            word = ("MODIFIED" if key in self.held else "ADDED") if present else "DELETED"
            self.held.pop(key, None)
            if present:
                self.held[key] = stored
            self.log.append((self.version, word, stored))
        await self.wake()

    async def wake(self) -> None:
        """Lets every watch look at the log again."""
        async with self.changed:
            self.changed.notify_all()


def _key(manifest: Manifest) -> tuple[str, str, str]:
    meta = manifest["metadata"]
    return manifest["kind"], meta.get("namespace", ""), meta["name"]


def _selected(manifest: Manifest, selector: str) -> bool:
    for term in filter(None, selector.split(",")):
        path, _, value = term.partition("=")
        found: Any = manifest
        for part in path.removesuffix("!").split("."):
            found = found.get(part, {}) if isinstance(found, dict) else {}
        if (found == value) == path.endswith("!"):
            return False
    return True


def _labelled(manifest: Manifest, selector: str) -> bool:
    wanted = parse(selector)
    return wanted.holds(manifest["metadata"].get("labels") or {})


def _application(api: CannedApi) -> web.Application:
    async def close(_: web.Application) -> None:
        api.closing = True
        await api.wake()

    async def version(_: web.Request) -> web.Response:
        return web.json_response({"major": "1", "minor": "36", "gitVersion": "v1.36.3"})

    async def objects(request: web.Request) -> web.StreamResponse:
        group_version, kind = KINDS[request.path]
        fields, labels = request.query.get("fieldSelector", ""), request.query.get("labelSelector", "")

        def wanted(manifest: Manifest) -> bool:
            return manifest["kind"] == kind and _selected(manifest, fields) and _labelled(manifest, labels)

        if request.query.get("sendInitialEvents"):
            said = "sendInitialEvents is forbidden for watch unless the WatchList feature gate is enabled"
            status = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "Invalid", "code": 422}
            return web.json_response({**status, "message": said}, status=422)
        if request.query.get("watch"):
            stream = web.StreamResponse(headers={"Content-Type": "application/json"})
            await stream.prepare(request)
            at = len([v for v, _, _ in api.log if v <= int(request.query.get("resourceVersion") or api.version)])
            while not api.closing:
                for _, word, manifest in api.log[at:]:
                    if wanted(manifest):
                        await stream.write(json.dumps({"type": word, "object": manifest}).encode() + b"\n")
                at = len(api.log)
                async with api.changed:
                    await api.changed.wait_for(lambda seen=at: api.closing or len(api.log) > seen)
            return stream
        items = [m for m in api.held.values() if wanted(m)]
        meta = {"resourceVersion": str(api.version)}
        return web.json_response({"kind": f"{kind}List", "apiVersion": group_version, "metadata": meta, "items": items})

    application = web.Application()
    application.on_shutdown.append(close)
    application.router.add_get("/version", version)
    for path in KINDS:
        application.router.add_get(path, objects)
    return application


@contextmanager
def changing_api(manifests: Iterable[Manifest]) -> Iterator[CannedApi]:
    """Serves the manifests on loopback of the caller's network namespace while the block runs; the caller may change them."""
    listening = socket.create_server(("127.0.0.1", 0))
    api = CannedApi(manifests)
    loop = api.loop
    thread = threading.Thread(target=loop.run_forever, name="canned API", daemon=True)
    thread.start()

    async def start() -> web.AppRunner:
        runner = web.AppRunner(_application(api), shutdown_timeout=1)
        await runner.setup()
        await web.SockSite(runner, listening).start()
        return runner

    runner = asyncio.run_coroutine_threadsafe(start(), loop).result(timeout=10)
    api.url = f"http://127.0.0.1:{listening.getsockname()[1]}"
    try:
        yield api
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(timeout=10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(timeout=10)
        loop.close()


@contextmanager
def canned_api(manifests: Iterable[Manifest]) -> Iterator[str]:
    """As `changing_api`, for those who change nothing; gives the URL."""
    with changing_api(manifests) as api:
        yield api.url
