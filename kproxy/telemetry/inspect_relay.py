"""The relay's pages of the state socket (relaypage.py names them): what `kproxy observe --flows` and `kproxy explain` ask.

In: requests of root on this node. Out: JSON. The workers are asked for a bounded number of flows, one request at a time, because
whoever looks costs them time that is their clients'. What must not happen here: changing a flow, or waiting without end.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

from aiohttp import web

from kproxy.explain.flows import Names
from kproxy.model.snapshot import Snapshot
from kproxy.relay.targets import End, Flow
from kproxy.relay.totals import Sums
from kproxy.telemetry.relaypage import (
    PROTOCOLS,
    SORTS,
    FlowsHead,
    Wanted,
    flow_lines,
    page_of,
    service_bytes,
    service_page,
)

MOST_FLOWS = 20_000  # asked of the workers at once
ANSWER_S = 10.0
_LONGEST_WORD = 520  # two names of 253 octets, and what stands between
_NAMED_AT_ONCE = 500  # about 1 ms


@dataclass(frozen=True, slots=True, kw_only=True)
class RelayPages:
    """Where the pages take their content from. flows: at most so many open flows of all workers.

    open: how many there are, as last told, and so are the counters; ejected: endpoints that are left out, and for how many seconds more.
    """

    flows: Callable[[int], Awaitable[Sequence[Flow]]]
    open: Callable[[], int]
    snapshot: Callable[[], Snapshot]
    counters: Callable[[], Sums] = Sums
    ejected: Callable[[], Mapping[End, float]] = dict


def add_routes(application: web.Application, pages: RelayPages) -> None:
    """Adds the pages to those of the state socket."""
    turn = asyncio.Semaphore(1)

    async def flows(request: web.Request) -> web.StreamResponse:
        try:
            wanted = wanted_of(request.query.get)
        except ValueError as error:
            return web.Response(status=400, text=f"{error}\n")
        try:
            async with asyncio.timeout(ANSWER_S), turn:
                found = await pages.flows(MOST_FLOWS)
        except OSError:  # a TimeoutError is one
            return web.Response(status=503, text="no answer from the relay workers; ask again\n")
        return await _send(request, pages, found, wanted)

    async def service(request: web.Request) -> web.Response:
        name = request.query.get("name", "")
        if not name or len(name) > _LONGEST_WORD:
            return web.Response(status=400, text="name (namespace/name) is needed\n")
        page = service_page(name, pages.counters(), pages.ejected())
        return web.Response(body=service_bytes(page), content_type="application/json")

    application.router.add_get("/relay/flows", flows)
    application.router.add_get("/relay/service", service)


def wanted_of(query: Callable[[str, str], str]) -> Wanted:
    """What a request asks for. Raises ValueError with the words of the answer."""
    words = {name: query(name, "") for name in ("service", "pod", "endpoint")}
    protocol, sort, limit = query("protocol", ""), query("sort", SORTS[0]), query("limit", "0")
    if any(len(word) > _LONGEST_WORD for word in words.values()):
        raise ValueError("no name is that long")
    if protocol not in ("", *PROTOCOLS) or sort not in SORTS:
        raise ValueError(f"protocol must be one of {', '.join(PROTOCOLS)}, sort one of {', '.join(SORTS)}")
    if not (limit.isascii() and limit.isdigit() and len(limit) < 8):
        raise ValueError("limit must be a number")
    return Wanted(**words, protocol=protocol, sort=sort, limit=int(limit))


async def _send(request: web.Request, pages: RelayPages, flows: Sequence[Flow], wanted: Wanted) -> web.StreamResponse:
    names, named = Names(pages.snapshot()), []
    now = time.time()  # noqa: TID251 - for people
    for start in range(0, len(flows), _NAMED_AT_ONCE):
        named += [page_of(flow, names, now) for flow in flows[start : start + _NAMED_AT_ONCE]]
        await asyncio.sleep(0)
    shown, matching = wanted.of(named)
    opened = max(pages.open(), len(flows))
    head = FlowsHead(mode="userspace", open=opened, told=len(flows), matching=matching, shown=len(shown))
    response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
    try:
        async with asyncio.timeout(ANSWER_S):
            await response.prepare(request)
            for piece in flow_lines(head, shown):
                await response.write(piece)
                await asyncio.sleep(0)
            await response.write_eof()
    except (TimeoutError, ConnectionError):
        if request.transport is not None:
            request.transport.abort()  # or the answer would be ended in good order, and pass for all there is
    return response
