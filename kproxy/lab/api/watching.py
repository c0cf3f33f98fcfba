"""Watches: turning the store's log into the stream of events one client asked for.

What comes in: a target, its query, and a `send` that writes bytes to the client. What comes out: lines of JSON, one event each. A watch
without resourceVersion begins with an ADDED event for every object; with `sendInitialEvents` these end in a bookmark that says so
(the streaming list of reflectors since v1.32). A watch that reads too slowly falls off the log and gets an ERROR event with 410.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from kproxy.lab.api.fields import FieldErrors
from kproxy.lab.api.kinds import Resource
from kproxy.lab.api.requests import flag, revision, whole_number
from kproxy.lab.api.selectors import FieldTerm, Selection, selection
from kproxy.lab.api.status import expired, invalid
from kproxy.lab.api.store import Change, Record, Store
from kproxy.lab.api.values import Object, encode

Send = Callable[[bytes], Awaitable[None]]
Render = Callable[[Record], bytes]

BOOKMARK_PERIOD_S = 60.0
DEFAULT_TIMEOUT_S = 1800.0  # the real server picks 1800-3600 s at random


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchRequest:
    """What a client wants to see."""

    resource: Resource
    namespace: str
    selected: Selection
    since: int  # 0: begin with what is there
    initial_events: bool
    bookmarks: bool
    announce_end: bool  # mark the end of the initial events with an annotated bookmark
    timeout_s: float


def parse_watch(resource: Resource, namespace: str, name: str, parameters: Mapping[str, str]) -> WatchRequest:
    """Read a watch's query; ApiError 400 or 422."""
    since = revision(parameters.get("resourceVersion", ""), watch=True)
    bookmarks = flag(parameters, "allowWatchBookmarks")
    streaming = parameters.get("sendInitialEvents")
    errors = FieldErrors()
    if streaming is not None and parameters.get("resourceVersionMatch") != "NotOlderThan":
        errors.forbidden(
            "resourceVersionMatch", "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan"
        )
    if streaming is None and parameters.get("resourceVersionMatch"):
        errors.forbidden(
            "resourceVersionMatch", "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided"
        )
    if errors:
        raise invalid("meta.k8s.io", "ListOptions", "", errors)
    wanted = flag(parameters, "sendInitialEvents")
    selected = selection(resource, parameters)
    if name:
        selected = Selection(selected.labels, (*selected.fields, FieldTerm("metadata.name", name, True)))
    timeout = whole_number(parameters, "timeoutSeconds")
    return WatchRequest(
        resource=resource,
        namespace=namespace,
        selected=selected,
        since=since,
        initial_events=wanted or (since == 0 and streaming is None),
        bookmarks=bookmarks,
        announce_end=wanted and bookmarks,
        timeout_s=float(timeout) if timeout else DEFAULT_TIMEOUT_S,
    )


def select_event(change: Change, request: WatchRequest) -> tuple[str, Record] | None:
    """How a change looks to one watch: an object that begins to be selected is ADDED, one that ceases to be is DELETED."""
    if request.namespace and change.record.key[0] != request.namespace:
        return None
    if request.selected.everything:
        return change.type, change.record
    before = change.previous is not None and request.selected.matches(change.previous.object)
    after = change.type != "DELETED" and request.selected.matches(change.record.object)
    if not before and not after:
        return None
    if before and after:
        return "MODIFIED", change.record
    return ("ADDED" if after else "DELETED"), change.record


def event_line(kind: str, body: bytes) -> bytes:
    """One event of the stream."""
    return b'{"type":"' + kind.encode() + b'","object":' + body + b"}\n"


def bookmark_line(resource: Resource, at: int, *, end_of_initial_events: bool = False) -> bytes:
    """A bookmark: an object with nothing but its resourceVersion."""
    metadata: Object = {"resourceVersion": str(at), "creationTimestamp": None}
    if end_of_initial_events:
        metadata["annotations"] = {"k8s.io/initial-events-end": "true"}
    return event_line(
        "BOOKMARK", encode({"kind": resource.kind, "apiVersion": resource.api_version, "metadata": metadata})
    )


async def stream(store: Store, request: WatchRequest, send: Send, render: Render, stopping: asyncio.Event) -> None:
    """Send events until the client's timeout, the server's end, or the log's end. Raises what `send` raises."""
    log = store.log(request.resource)
    loop = asyncio.get_running_loop()
    deadline = loop.time() + request.timeout_s
    if request.initial_events:
        position, at = log.end, store.revision
        records = store.snapshot(request.resource, request.namespace, at)
        lines = [event_line("ADDED", render(record)) for record in records if request.selected.matches(record.object)]
        if request.announce_end:
            lines.append(bookmark_line(request.resource, at, end_of_initial_events=True))
        await _send_lines(send, lines)
    elif request.since > store.revision or (request.since and request.since < log.compacted):
        # A revision from the future is one of an earlier run of this server: expired as well.
        await send(_expired_line(request.since, log.compacted))
        return
    else:
        position = log.position(request.since) if request.since else log.end
    waker = log.waker()
    try:
        while not stopping.is_set():
            waker.clear()
            changes = log.read(position)
            if changes is None:
                await send(_expired_line(position, log.compacted))
                return
            position += len(changes)
            selected = [event for change in changes if (event := select_event(change, request))]
            await _send_lines(send, [event_line(kind, render(record)) for kind, record in selected])
            if changes:
                continue
            left = deadline - loop.time()
            if left <= 0:
                break
            try:
                await asyncio.wait_for(waker.wait(), min(left, BOOKMARK_PERIOD_S))
            except TimeoutError:
                # Only when every change has been sent: a bookmark promises that.
                if request.bookmarks and position == log.end:
                    await send(bookmark_line(request.resource, store.revision))
        if request.bookmarks and position == log.end and not stopping.is_set():
            # As the real server does shortly before the timeout: the client resumes without a relist.
            await send(bookmark_line(request.resource, store.revision))
    finally:
        log.release(waker)


async def _send_lines(send: Send, lines: list[bytes]) -> None:
    for start in range(0, len(lines), 500):
        await send(b"".join(lines[start : start + 500]))


def _expired_line(asked: int, compacted: int) -> bytes:
    return event_line("ERROR", encode(expired(f"too old resource version: {asked} ({compacted})").status()))
