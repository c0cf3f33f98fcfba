"""The state socket of a controller, in its run directory: what `kproxy status`, `explain`, `trace`, `render` and `diff` ask.

    GET /statusz             StatusPage as JSON
    GET /snapshot            the objects and settings that rules follow from, line by line (statepage.py)
    GET /wanted?family=IPv4  the rules as they were compiled last, as input of the mode's own tool
    GET /dns/…               resolver, ask, observe (inspect_dns.py), where DNS is served
    GET /relay/…             flows (inspect_relay.py), where connections are relayed

Only root may connect (mode 0600): the pages tell every Service of the cluster. What is sent are values that are replaced and never changed,
so they go out in pieces of about a millisecond with the loop's other work in between, and no lock is taken. At most two long answers
go out at a time and each ends after 60 s, so a reader that stops reading holds little for long. What must not happen here: changing
anything.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from aiohttp import web

from kproxy.model.names import Family
from kproxy.telemetry.logs import fields
from kproxy.telemetry.statepage import StatusPage, sockets, status_bytes

if TYPE_CHECKING:  # what neither DNS nor mode userspace is for need not be imported
    from kproxy.telemetry.inspect_dns import DnsPages
    from kproxy.telemetry.inspect_relay import RelayPages

log = logging.getLogger("kproxy.state")

LONG_ANSWERS = 2
LONGEST_ANSWER_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class StatePages:
    """Where the pages take their content from, each asked once a request. wanted: None before the first compilation."""

    status: Callable[[], StatusPage]
    snapshot: Callable[[], Iterable[bytes]]
    wanted: Callable[[Family], Iterable[bytes] | None]
    dns: DnsPages | None = None  # where DNS is served
    relay: RelayPages | None = None  # in mode userspace


async def serve_state(pages: StatePages, path: Path) -> None:
    """Serves the pages at `path` for ever. A run directory that takes no socket costs the command line its view, nothing else."""
    runner = web.AppRunner(_application(pages), access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    try:
        await web.SockSite(runner, _listen(path)).start()
    except OSError as error:
        log.warning("No state socket: kproxy status will not work", extra=fields(path=path, error=error))
        await runner.cleanup()
        return
    try:
        await asyncio.Event().wait()
    finally:
        path.unlink(missing_ok=True)
        await runner.cleanup()


def _listen(path: Path) -> socket.socket:
    """A bound socket that only this user may connect to. What earlier processes left behind is cleared away."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for old in sockets(path.parent):
        if old == path or not _answers(old):
            old.unlink(missing_ok=True)
    found = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        found.bind(str(path))
        path.chmod(0o600)  # before anybody can connect: nothing listens yet
    except OSError:
        found.close()
        raise
    return found


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except OSError:  # busy, or not ours to judge
            return True
    return True


def _application(pages: StatePages) -> web.Application:
    turns = asyncio.Semaphore(LONG_ANSWERS)

    async def statusz(_: web.Request) -> web.Response:
        return web.Response(body=status_bytes(pages.status()), content_type="application/json")

    async def snapshot(request: web.Request) -> web.StreamResponse:
        return await _send(request, turns, pages.snapshot())

    async def wanted(request: web.Request) -> web.StreamResponse:
        word = request.query.get("family", "")
        if word not in [family.value for family in Family]:
            return web.Response(status=400, text="family must be IPv4 or IPv6\n")
        rules = pages.wanted(Family(word))
        if rules is None:
            return web.Response(status=503, text="no rules have been compiled yet\n")
        return await _send(request, turns, rules)

    application = web.Application()
    for path, answer in (("/statusz", statusz), ("/snapshot", snapshot), ("/wanted", wanted)):
        application.router.add_get(path, answer)
    if pages.dns is not None:
        from kproxy.telemetry import inspect_dns

        inspect_dns.add_routes(application, pages.dns)
    if pages.relay is not None:
        from kproxy.telemetry import inspect_relay

        inspect_relay.add_routes(application, pages.relay)
    return application


async def _send(request: web.Request, turns: asyncio.Semaphore, pieces: Iterable[bytes]) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "text/plain; charset=utf-8"})
    try:
        async with asyncio.timeout(LONGEST_ANSWER_S), turns:
            await response.prepare(request)
            for piece in pieces:
                await response.write(piece)
                await asyncio.sleep(0)  # `write` waits only for a reader that is slow
            await response.write_eof()
    except (TimeoutError, ConnectionError):
        if request.transport is not None:
            request.transport.abort()  # or the answer would be ended in good order, and pass for all there is
    return response
