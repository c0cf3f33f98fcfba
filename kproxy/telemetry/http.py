"""The HTTP servers of a controller: health for load balancers and kubelets, metrics and state for people and programs.

| server (default address)  | paths |
| health, 0.0.0.0:10256     | /healthz /livez as kube-proxy; /readyz ours |
| metrics, 127.0.0.1:10249  | /metrics /metrics/slis /healthz /proxyMode /configz /statusz /flagz as kube-proxy; /livez, /readyz ours |

The first is open to everybody, so it tells no name; the second is on loopback, because metrics and state do.

In: `Pages`, functions that are asked at every request, and health.py's bodies. /readyz is what kube-proxy lacks: 200 only after the first
complete sync of rules and zone. Liveness never depends on the API server: a node whose API is away still routes, and must not be restarted
for it. What must not happen here: changing anything. A port that is taken is told and tried again every 5 s; the data plane goes on, unless
`bindAddressHardFail` asks for the end of the process.
"""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import platform
import socket
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from aiohttp import web

from kproxy import __version__
from kproxy.errors import UnsupportedError
from kproxy.telemetry.health import Health, health_json
from kproxy.telemetry.logs import fields

__all__ = ["Health", "Pages", "Routes", "health_routes", "metrics_routes", "serve"]

log = logging.getLogger("kproxy.http")

_RETRY_S = 5.0
_ANY = {socket.AF_INET: "0.0.0.0", socket.AF_INET6: "::"}
_LAST_WORDS_S = 1.0  # for the Event that says why the process ends
_PLAIN = {"Content-Type": "text/plain; charset=utf-8", "X-Content-Type-Options": "nosniff"}
_JSON = {"Content-Type": "application/json", "X-Content-Type-Options": "nosniff"}
_STATUSZ = "application/json;g=config.k8s.io;v=v1alpha1;as=Statusz"
_WARNING = (
    "Warning: This endpoint is not meant to be machine parseable, has no formatting compatibility guarantees "
    "and is for debugging purposes only."
)
# No pprof: that is Go's profiler, and its tools read Go's format. What answers the same questions is said instead of imitated.
_NO_PPROF = """\
kproxy is a Python program: there is no pprof in it, and go tool pprof could not read what it has.
What answers the same questions:
  /metrics process_*           memory, processor time and open files of the controller
  py-spy record -p PID         a profile of the processor time, from outside and without a restart
  py-spy dump -p PID           where every thread stands
"""

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Routes = Mapping[str, Handler]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pages:
    """Where the pages take their content from, each asked at every request.

    answers: counts (page, code) of health answers; the metrics tell them.
    """

    health: Callable[[], Health]
    status: Callable[[], dict[str, Any]]
    page: Callable[[], bytes]
    metrics: Callable[[], Awaitable[bytes]]
    slis: Callable[[], bytes]
    configz: Callable[[], Mapping[str, Any]]
    flagz: Callable[[], Mapping[str, str]]
    mode: str
    answers: Counter[tuple[str, int]] = field(default_factory=Counter)
    started: float = 0.0  # Unix seconds


def health_routes(pages: Pages) -> Routes:
    """The health server's pages."""

    async def healthz(_: web.Request) -> web.Response:
        health = pages.health()
        return _health_answer(pages, "healthz", health, health.data_path and health.node_eligible, eligible=True)

    async def livez(_: web.Request) -> web.Response:
        health = pages.health()
        return _health_answer(pages, "livez", health, health.data_path, eligible=False)

    async def readyz(_: web.Request) -> web.Response:
        return _ready_answer(pages)

    return {"/healthz": healthz, "/livez": livez, "/readyz": readyz}


def _health_answer(pages: Pages, page: str, health: Health, ok: bool, *, eligible: bool) -> web.Response:
    status = 200 if ok else 503
    pages.answers[page, status] += 1
    body = health_json(health, ok=ok, now_ns=time.time_ns(), eligible=eligible)
    return web.Response(body=body, status=status, headers=_JSON)


def _ready_answer(pages: Pages) -> web.Response:
    health = pages.health()
    status = 200 if health.ready else 503
    pages.answers["readyz", status] += 1
    return web.Response(
        body=b"ok" if health.ready else f"waiting for {health.waiting_for}\n".encode(), status=status, headers=_PLAIN
    )


def metrics_routes(pages: Pages) -> Routes:
    """The metrics server's pages."""
    paths = ("/configz", "/flagz", "/healthz", "/metrics", "/proxyMode", "/readyz")

    async def ping(_: web.Request) -> web.Response:
        return web.Response(body=b"ok", headers=_PLAIN)

    async def readyz(_: web.Request) -> web.Response:
        return _ready_answer(pages)

    async def proxy_mode(_: web.Request) -> web.Response:
        return web.Response(body=pages.mode.encode(), headers=_PLAIN)

    async def configz(_: web.Request) -> web.Response:
        return web.Response(body=json.dumps(pages.configz(), separators=(",", ":")).encode(), headers=_JSON)

    async def flagz(_: web.Request) -> web.Response:
        lines = [f"{name}={value}" for name, value in sorted(pages.flagz().items())]
        text = "\n".join(["", "kproxy flagz", _WARNING, *lines, ""])
        return web.Response(body=text.encode(), headers=_PLAIN)

    async def no_pprof(_: web.Request) -> web.Response:
        return web.Response(body=_NO_PPROF.encode(), status=404, headers=_PLAIN)

    return {
        **metrics_only(pages),
        "/metrics/slis": _slis(pages),
        "/healthz": ping,
        "/livez": ping,
        "/readyz": readyz,
        "/proxyMode": proxy_mode,
        "/configz": configz,
        "/flagz": flagz,
        "/statusz": _statusz(pages, paths),
        "/debug/pprof/{rest:.*}": no_pprof,
    }


def metrics_only(pages: Pages) -> Routes:
    """/metrics alone, for addresses that more than this node can reach."""

    async def metrics(_: web.Request) -> web.Response:
        body = await pages.metrics()
        return web.Response(body=body, headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"})

    return {"/metrics": metrics}


def _slis(pages: Pages) -> Handler:
    async def slis(_: web.Request) -> web.Response:
        return web.Response(
            body=pages.slis(),
            headers={
                "Content-Type": "text/plain; version=0.0.4; charset=utf-8",
                "Process-Start-Time-Unix": str(int(pages.started)),
            },
        )

    return slis


def _statusz(pages: Pages, paths: Sequence[str]) -> Handler:
    """Our state, for people; what has a version does not change its fields.

    | asked for | given |
    | nothing | text |
    | ?o=json, Accept: application/json | the same lines as one JSON object |
    | ?o=v1 | the page of `kproxy status`, structured: sync, watches, drift, health (statepage.py) |
    | Accept: application/json;v=v1alpha1;g=config.k8s.io;as=Statusz | kube-proxy's own |
    """

    async def statusz(request: web.Request) -> web.Response:
        accept = request.headers.get("Accept", "").replace(" ", "")
        if "as=Statusz" in accept and "v=v1alpha1" in accept:
            return web.Response(body=_versioned(pages, paths), headers={"Content-Type": _STATUSZ})
        if request.query.get("o") == "v1":
            return web.Response(body=pages.page(), headers=_JSON)
        if "json" in accept or request.query.get("o") == "json":
            return web.Response(body=json.dumps(pages.status()).encode(), headers=_JSON)
        return web.Response(body=_status_text(pages.status()).encode(), headers=_PLAIN)

    return statusz


def _versioned(pages: Pages, paths: Sequence[str]) -> bytes:
    started = datetime.fromtimestamp(int(pages.started), UTC)
    body = {
        "kind": "Statusz",
        "apiVersion": "config.k8s.io/v1alpha1",
        "metadata": {"name": "kproxy"},
        "startTime": started.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "uptimeSeconds": int(time.time() - pages.started),
        "goVersion": f"{platform.python_implementation()} {platform.python_version()}",
        "binaryVersion": __version__,
        "paths": list(paths),
    }
    return json.dumps(body, separators=(",", ":")).encode() + b"\n"


def _status_text(status: Mapping[str, Any]) -> str:
    lines: list[str] = []
    for key, value in status.items():
        if isinstance(value, list):
            lines.append(f"{key}: {len(value)}")
            lines.extend(f"  {item}" for item in value)
        else:
            lines.append(f"{key}: {value}")
    return "\n".join(lines) + "\n"


def _nothing(_: str) -> None:
    return None


def _bound(host: str, port: int) -> socket.socket:
    """A bound socket. Raises OSError. The unspecified address of either family means both, as in Go: load balancers probe over IPv6, too.

    SO_REUSEPORT: during an upgrade two instances answer on the same port, each for itself.
    """
    everywhere = host in ("0.0.0.0", "::", "")
    families = [socket.AF_INET6 if everywhere or ":" in host else socket.AF_INET]
    if everywhere and host != "::":
        families.append(socket.AF_INET)  # a kernel without IPv6
    problem: OSError | None = None
    for family in families:
        try:
            made = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        except OSError as error:
            problem = error
            continue
        try:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            if family == socket.AF_INET6:
                made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, not everywhere)
            made.bind((_ANY[family] if everywhere else host, port))
            return made
        except OSError as error:
            made.close()
            problem = error
            if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                break
    assert problem is not None
    raise problem


async def serve(
    routes: Routes, address: str, *, hard_fail: bool = False, failed: Callable[[str], None] = _nothing
) -> None:
    """Serves `routes` at `address` (`host:port`) for ever.

    A port that is taken is told to `failed` (each reason once) and tried again every 5 s; with `hard_fail` UnsupportedError is raised
    instead, as `bindAddressHardFail` says.
    """
    host, _, port = address.rpartition(":")
    application = web.Application()
    for path, handler in routes.items():
        application.router.add_route("*", path, handler)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    told = ""
    try:
        while True:
            try:
                await web.SockSite(runner, _bound(host.strip("[]"), int(port))).start()
                break
            except OSError as error:
                why = error.strerror or str(error)
                if why != told:
                    told = why
                    log.warning("Cannot listen", extra=fields(address=address, error=error, retry_s=_RETRY_S))
                    failed(f"cannot listen on {address}: {why}")
                if hard_fail:
                    await asyncio.sleep(_LAST_WORDS_S)
                    raise UnsupportedError(f"cannot listen on {address}: {why} (bindAddressHardFail is set)") from error
                await asyncio.sleep(_RETRY_S)
        await asyncio.Event().wait()
    finally:
        await runner.cleanup()
