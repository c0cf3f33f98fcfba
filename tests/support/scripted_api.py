"""An API server that answers as a script says: pages, streams cut anywhere, 410, 429, 500, silence. A real HTTP server on loopback.

    async with ScriptedApi([stream(listed(a), added(b), bookmark("9")), status(410)]) as server: …

Each request takes the next answer; when the script is over, requests are held open in silence. What was asked is kept in `requests`.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from aiohttp import web

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


def service(name: str, version: str, ip: str = "10.96.0.7", namespace: str = "shop") -> dict[str, Any]:
    """A small Service as the API would send it."""
    return {
        "metadata": {"name": name, "namespace": namespace, "resourceVersion": version},
        "spec": {"clusterIP": ip, "ports": [{"port": 80}]},
    }


def line(word: str, body: Any) -> bytes:
    """One watch event."""
    return json.dumps({"type": word, "object": body}).encode() + b"\n"


def added(body: Any) -> bytes:
    return line("ADDED", body)


def deleted(body: Any) -> bytes:
    return line("DELETED", body)


def bookmark(version: str, *, list_end: bool = False) -> bytes:
    """A bookmark; `list_end` marks the end of a streaming list."""
    annotations = {"annotations": {"k8s.io/initial-events-end": "true"}} if list_end else {}
    return line("BOOKMARK", {"metadata": {"resourceVersion": version, **annotations}})


def listed(version: str, *bodies: Any) -> bytes:
    """The initial events of a streaming list, with their end."""
    return b"".join(added(body) for body in bodies) + bookmark(version, list_end=True)


def page(version: str, *bodies: Any, more: str = "") -> Answer:
    """A page of a list; `more` is the continue token."""
    text = json.dumps(
        {"kind": "List", "metadata": {"resourceVersion": version, "continue": more}, "items": list(bodies)}
    )

    async def answer(request: web.Request) -> web.StreamResponse:
        return web.Response(text=text, content_type="application/json")

    return answer


def status(code: int, reason: str = "", message: str = "", *, retry_after: str = "") -> Answer:
    """A refusal with a Status body."""
    headers = {"Retry-After": retry_after} if retry_after else {}

    async def answer(request: web.Request) -> web.StreamResponse:
        body = {"kind": "Status", "code": code, "reason": reason, "message": message}
        return web.json_response(body, status=code, headers=headers)

    return answer


def stream(*pieces: bytes, then: str = "stall") -> Answer:
    """A watch that sends `pieces`, each in a chunk of its own; then: `close` in good order, `abort`, or `stall` without a word."""

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        for piece in pieces:
            await response.write(piece)
            await asyncio.sleep(0.0005)  # or the kernel joins the pieces again
        if then == "abort" and request.transport is not None:
            request.transport.abort()
        elif then == "stall":
            await asyncio.sleep(3600)
        return response

    return answer


@dataclass(slots=True)
class ScriptedApi:
    """The server. `url` is valid inside of the context. then: the answer to everything after the script; None: silence."""

    script: Sequence[Answer]
    requests: list[web.Request] = field(default_factory=list)
    url: str = ""
    then: Answer | None = None
    port: int = 0  # 0: any
    _runner: web.AppRunner | None = None

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(request)
        index = len(self.requests) - 1
        answer = self.script[index] if index < len(self.script) else self.then or stream()
        return await answer(request)

    def drop(self) -> None:
        """Breaks every connection that is open."""
        for request in self.requests:
            if request.transport is not None:
                request.transport.abort()

    def asked(self, index: int) -> dict[str, str]:
        """The parameters of a request."""
        return dict(self.requests[index].query)

    async def __aenter__(self) -> Self:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._handle)
        self._runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1, access_log=None)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port, reuse_address=True)
        await site.start()
        self.url = "http://{}:{}".format(*self._runner.addresses[0][:2])
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._runner is not None
        await self._runner.cleanup()  # does nothing the second time
