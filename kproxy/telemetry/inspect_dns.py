"""The DNS pages of the state socket (dnspage.py names them): what `kproxy dig` and `kproxy dns observe` ask.

In: requests of root on this node. Out: JSON; and, for observers, one JSON object a line for as long as they read. Questions of people go to
one worker each and are bounded in number; an observer who reads too slowly is told how many lines it missed. What must not happen here:
waiting without end, or a byte of a name that a terminal would obey (records are escaped where they are made).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

import msgspec
from aiohttp import web

from kproxy.dns.channel import Observed
from kproxy.dns.records import Seen
from kproxy.telemetry.dnspage import ResolverPage, ToldPage, page_bytes

QUESTIONS = 16  # of people, at once
ALIVE_S = 5.0  # an empty line this often tells an observer that it is still looking
_MOST_NAME = 255  # octets


@dataclass(frozen=True, slots=True, kw_only=True)
class DnsPages:
    """Where the pages take their content from. ask: (name in wire form, type, client's address, whether its list may be walked)."""

    resolver: Callable[[str], ResolverPage]
    ask: Callable[[bytes, int, str, bool], Awaitable[ToldPage]]
    observe: Callable[[], AsyncIterator[Observed]]


def add_routes(application: web.Application, pages: DnsPages) -> None:
    """Adds the pages to those of the state socket."""
    turns = asyncio.Semaphore(QUESTIONS)

    async def resolver(request: web.Request) -> web.Response:
        return _json(page_bytes(pages.resolver(request.query.get("pod", ""))))

    async def ask(request: web.Request) -> web.Response:
        try:
            name, number = bytes.fromhex(request.query["name"]), int(request.query["type"])
        except (KeyError, ValueError):
            return web.Response(status=400, text="name (hex) and type (number) are needed\n")
        if not 0 < len(name) <= _MOST_NAME or not 0 <= number < 65536:
            return web.Response(status=400, text="no such name or type\n")
        async with turns:
            told = await pages.ask(name, number, request.query.get("client", ""), request.query.get("walk") == "1")
        return _json(page_bytes(told))

    async def observe(request: web.Request) -> web.StreamResponse:
        return await _stream(request, pages)

    for path, answer in (("/dns/resolver", resolver), ("/dns/ask", ask), ("/dns/observe", observe)):
        application.router.add_get(path, answer)


def _json(body: bytes) -> web.Response:
    return web.Response(body=body, content_type="application/json")


async def _stream(request: web.Request, pages: DnsPages) -> web.StreamResponse:
    """Records as they come, filtered by the query's `pod` and `rcode`, until the reader hangs up."""
    pod, rcode = request.query.get("pod", ""), request.query.get("rcode", "")
    response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
    source = pages.observe()
    coming: asyncio.Future[Observed] | None = None
    try:
        coming = asyncio.ensure_future(anext(source))
        await asyncio.sleep(0)
        if coming.done() and coming.exception() is not None:
            return web.Response(status=503, text=f"{coming.exception()}\n")
        await response.prepare(request)
        while True:
            done, _ = await asyncio.wait({coming}, timeout=ALIVE_S)
            if not done:
                await response.write(b"\n")
                continue
            observed = coming.result()
            coming = asyncio.ensure_future(anext(source))
            lines = [
                msgspec.json.encode(one)
                for one in observed.records
                if (not pod or one.pod == pod) and (one.rcode == rcode if rcode else not _is_probe(one))
            ]
            if observed.left_out:
                lines.append(b'{"left_out":%d}' % observed.left_out)
            if lines:
                await response.write(b"\n".join([*lines, b""]))
    except (ConnectionError, StopAsyncIteration):
        return response
    finally:
        if coming is not None:
            coming.cancel()
            await asyncio.wait({coming})
        await _end(source)


def _is_probe(one: Seen) -> bool:
    """The controller asks ten times a second, without a question, whether its workers are there; nobody else does."""
    return one.rcode == "NOTIMP" and one.qtype == "TYPE0" and one.name == "."


async def _end(source: AsyncIterator[Observed]) -> None:
    close = getattr(source, "aclose", None)
    if close is not None:
        await close()
