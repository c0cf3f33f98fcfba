"""Keeps one kind in step with the API server, for ever: list, watch, and again after every way in which a watch can end.

    list ─▶ Replaced ─▶ watch ─▶ Applied, Removed … ─┬─ the server's time is up ─────────▶ watch from the last version
                                                      ├─ silence ─────────────────────────▶ the same, it may be dead
                                                      ├─ error, invalid line ─────────────▶ wait, watch from the last version
                                                      └─ 410, version forgotten ──────────▶ list; the old state serves until it is complete

In: an `Api` and a `Resource`. Out: events, by calling `emit`. `Replaced` is the whole kind at once: what a relist does not hold is gone,
so no deletion is ever missed, and it is the explicit word "synced". Nothing is emitted for unchanged objects beyond that; `fold` finds
them equal.

Lists. A streaming list (`sendInitialEvents`) is consistent and costs the server no etcd read. A server that does not offer it says 400 or
422 and gets a list in pages of 500 from then on. The first paged list takes any version the server has at hand (resourceVersion=0, as
client-go does, lest a thousand nodes that start at once all ask etcd); later ones are at least as new as what has been seen, so that state
never moves back in time, unless the server says that it cannot be (an etcd restored from a backup).

The first list of a process that says how far an earlier life has seen (`since`, seen.py) is one whole answer from the server's cache, at
least that new: kube-apiserver 1.36 makes 10,000 Services and as many slices in 0.09 s that way (0.10 s of processor time), and in 0.28 s
(0.35 s) as a stream, event by event. One that is refused, or larger than WHOLE_OCTETS, is followed by the others.

Waiting. Between failures: 0.2 s doubling to 30 s, of which a random part between half and the whole is waited (full jitter would make more
than 40 attempts in ten minutes). `Retry-After` is honoured on top. The sequence starts anew when a stream has brought something new
or lived for a while.

Time, sleep and randomness are arguments. What must not happen here: an exception for anything the server does, or a loop without a wait.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from kproxy.errors import SourceError
from kproxy.model.events import Applied, Event, Removed, Replaced
from kproxy.model.names import NamespacedName
from kproxy.model.objects import Decoded, EndpointSlice, Kind, ObjectKey
from kproxy.watch.client import Api
from kproxy.watch.decode import (
    Bookmark,
    Change,
    Malformed,
    RawPage,
    Refusal,
    WatchWord,
    decode_all,
    decode_line,
    split_page,
)

log = logging.getLogger("kproxy.watch")

PAGE_ITEMS = 500
WHOLE_OCTETS = 64 << 20  # of a list in one answer: it is in memory beside what is made of it
FIRST_WAIT_S = 0.2
LONGEST_WAIT_S = 30.0
LEAST_PART = 0.5
SHORTEST_STREAM_S = 300.0  # what the server is asked to end a watch after, jittered up to the double, so that nodes do not come together
LIVELY_S = 5.0  # a stream that lived this long was a success; one that ended sooner is followed by a wait
LIST_STREAM_S = 60.0  # a streaming list that has not ended by then never will: the server ignores what it was asked for
PATIENCE = 3  # the same failure in a row from the same version on, before a new list is taken instead
FRUITLESS_LISTS = 2  # streaming lists that may fail for unclear reasons before pages are asked for
MAX_OBJECTS = 2_000_000  # of one kind
_KUBERNETES = ObjectKey(Kind.ENDPOINT_SLICE, NamespacedName("default", "kubernetes"))
Emit = Callable[[Event], None]
Clock = Callable[[], float]
Sleep = Callable[[float], Awaitable[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Resource:
    """What to list and watch."""

    kind: Kind
    path: str
    params: Mapping[str, str] = field(default_factory=dict)
    labels: frozenset[str] = frozenset()  # keys of the labels to keep


@dataclass(frozen=True, slots=True, kw_only=True)
class Demands:
    """What DNS has to know beyond what every node watches.

    all_pods: those of every node (`pods verified`). imports: ServiceImports (`multicluster`). service_labels, namespace_labels: label keys
    that selectors ask for.
    """

    all_pods: bool = False
    imports: bool = False
    service_labels: frozenset[str] = frozenset()
    namespace_labels: frozenset[str] = frozenset()


# As CoreDNS: the address of a pod that has ended may be another's by now.
_ALIVE = "status.phase!=Succeeded,status.phase!=Failed,status.phase!=Unknown"


def RESOURCES(node_name: str, demands: Demands = Demands()) -> tuple[Resource, ...]:
    """Everything kproxy watches on node `node_name`.

    Without kube-proxy's label selectors: they are `proxied` in the model, because DNS answers for headless Services too.
    """
    pods = _ALIVE if demands.all_pods else f"spec.nodeName={node_name}"
    imports = (Resource(kind=Kind.SERVICE_IMPORT, path="/apis/multicluster.x-k8s.io/v1alpha1/serviceimports"),)
    return (
        Resource(kind=Kind.SERVICE, path="/api/v1/services", labels=demands.service_labels),
        Resource(kind=Kind.ENDPOINT_SLICE, path="/apis/discovery.k8s.io/v1/endpointslices"),
        Resource(kind=Kind.NODE, path="/api/v1/nodes", params={"fieldSelector": f"metadata.name={node_name}"}),
        Resource(kind=Kind.NAMESPACE, path="/api/v1/namespaces", labels=demands.namespace_labels),
        Resource(kind=Kind.POD, path="/api/v1/pods", params={"fieldSelector": pods}),
        *(imports if demands.imports else ()),
    )


@dataclass(slots=True)
class WatchStats:
    """What one reflector has seen; plain numbers that the metrics and status pages read."""

    kind: Kind
    synced: bool = False  # a complete list was delivered at least once
    lists: int = 0
    relists: int = 0  # lists but the first
    streams: int = 0
    events: int = 0
    bookmarks: int = 0
    errors: int = 0
    malformed: int = 0
    waits_s: float = 0.0  # the back-off in force, 0 when all is well
    last_heard_s: float = float(
        "-inf"
    )  # on the reflector's clock: the last event, bookmark, list or agreement to a watch
    last_error: str = ""
    version: str = ""  # resourceVersion


class _Expired(Exception):
    """The server has forgotten the version asked for: a list is needed."""


class _Reflector:
    """One kind's state. The infinite loop is `reflect`; everything in here ends."""

    def __init__(
        self, api: Api, resource: Resource, emit: Emit, now: Clock, random: Clock, stats: WatchStats, since: str | None
    ) -> None:
        self.api = api
        self.resource = resource
        self.emit = emit
        self.now = now
        self.random = random
        self.stats = stats
        self.version = ""  # "": a list is needed
        self.newest = since or "0"  # what a list has to be at least as new as; "" demands the newest
        self.whole = since is not None  # the next list is asked for in one answer
        self.streaming_lists = True
        self.failures = 0
        self.doubts = 0  # failures in a row that may be the version's fault
        self.started = 0.0  # of the present stream
        self.said = ""  # the last line logged about an error

    async def step(self) -> None:
        """One list if needed, one watch. Raises SourceError or _Expired."""
        if not self.version and (self.whole or not self.streaming_lists):
            await self.list_pages()
        await self.watch()

    async def list_pages(self) -> None:
        """The whole kind, page by page or in one answer; delivered at once when complete."""
        found: list[Decoded] = []
        pages = {"limit": str(PAGE_ITEMS)}
        params = dict(self.resource.params) | ({} if self.whole else pages)
        if self.newest:
            params |= {"resourceVersion": self.newest}
            if self.newest != "0":
                params |= {"resourceVersionMatch": "NotOlderThan"}
        while True:
            page = split_page(self.resource.kind, await self._page(params))
            if isinstance(page, Malformed):
                self.stats.malformed += 1
                raise self._error(page.reason)
            for start in range(0, len(page.items), PAGE_ITEMS):
                portion = page.items[start : start + PAGE_ITEMS]
                found.extend(decode_all(self.resource.kind, portion, self.resource.labels))
                await asyncio.sleep(0)  # 10,000 are a sixth of a second, in which others have to do
            if len(found) > MAX_OBJECTS:
                raise SourceError(
                    f"API server {self.api.server}: {self.resource.path}: more than {MAX_OBJECTS} objects"
                )
            if not page.continue_token:
                break
            params = dict(self.resource.params) | pages | {"continue": page.continue_token}
        self.whole = False
        self.replace(tuple(found), page)

    async def _page(self, params: Mapping[str, str]) -> bytes:
        try:
            return await self.api.get(self.resource.path, params, WHOLE_OCTETS if self.whole else 0)
        except SourceError as error:
            # 410: this page's snapshot is compacted away. 504: the version seen is not reached yet, or never will be.
            if error.status in (410, 504):
                self.newest = ""
            raise

    def replace(self, found: tuple[Decoded, ...], page: RawPage | Bookmark) -> None:
        """Delivers a complete list. Failures stay counted: a server that lists well and watches badly must not be listed in a loop."""
        self.stats.lists += 1
        self.stats.relists += 1 if self.stats.synced else 0
        self.emit(Replaced(self.resource.kind, found))
        for decoded in found:
            self.look_for_servers(decoded)
        self.stats.synced = True
        self.stats.last_heard_s = self.now()
        self.stats.waits_s = 0.0
        self.stats.version = self.version = self.newest = page.resource_version

    def heard(self, version: str) -> None:
        """The server has told everything up to `version`."""
        self.stats.last_heard_s = self.now()
        progress = version not in ("", self.version)
        if progress:
            self.version = self.newest = self.stats.version = version
        if progress or self.now() - self.started >= LIVELY_S:
            self.stats.waits_s = 0.0
            self.failures = self.doubts = 0
            if self.said:
                log.info("%s: watching again", self.resource.kind.value)
                self.said = ""

    async def watch(self) -> None:
        """One watch stream; before it, when there is no version yet, a streaming list in the same stream."""
        listing: dict[ObjectKey, Decoded] | None = None if self.version else {}
        self.started = self.now()
        self.stats.streams += 1
        async with aclosing(self.api.stream(self.resource.path, self._watch_params(listing is not None))) as lines:
            async for line in lines:
                if not line:  # the server agrees to watch from this version on
                    self.stats.last_heard_s = self.now()
                    continue
                listing = self.take(decode_line(self.resource.kind, line, self.resource.labels), listing)
                if listing is not None and self.now() - self.started > LIST_STREAM_S:
                    break
        if listing is not None:
            self.streaming_lists = False
            raise self._error("a streaming list did not come to its end")
        if self.now() - self.started < LIVELY_S:
            raise self._error("the watch ended as soon as it began")

    def take(self, word: WatchWord, listing: dict[ObjectKey, Decoded] | None) -> dict[ObjectKey, Decoded] | None:
        """Acts on one word of the stream. `listing` gathers a streaming list; None afterwards and when there is none."""
        match word:
            case Change(event=event, resource_version=version):
                self.stats.events += 1
                if listing is not None:
                    self.collect(listing, event)
                    return listing
                self.emit(event)
                if isinstance(event, Applied):
                    self.look_for_servers(event.object)
                self.heard(version)
            case Bookmark():
                self.stats.bookmarks += 1
                if listing is None:
                    self.heard(word.resource_version)
                elif word.list_end:
                    self.replace(tuple(listing.values()), word)
                    return None
            case Refusal():
                self.refused(word)
            case Malformed():
                self.malformed(word)
        return listing

    def collect(self, listing: dict[ObjectKey, Decoded], event: Applied | Removed) -> None:
        """Gathers the initial events of a streaming list."""
        if isinstance(event, Removed):
            listing.pop(event.key, None)
            return
        listing[event.object.key] = event.object
        if len(listing) > MAX_OBJECTS:
            raise self._error(f"more than {MAX_OBJECTS} objects")

    def _watch_params(self, listing: bool) -> dict[str, str]:
        limit_s = str(int(SHORTEST_STREAM_S * (1 + self.random())))
        params = dict(self.resource.params) | {"watch": "1", "allowWatchBookmarks": "true", "timeoutSeconds": limit_s}
        if listing:
            return params | {"sendInitialEvents": "true", "resourceVersionMatch": "NotOlderThan"}
        return params | {"resourceVersion": self.version}

    def _error(self, why: str, **facts: Any) -> SourceError:
        return SourceError(f"API server {self.api.server}: {self.resource.path}: {why}", **facts)

    def refused(self, word: Refusal) -> None:
        """An ERROR event: the stream is over."""
        why = f"the watch ended with {word.code} {word.reason} {word.message}".rstrip()
        raise self._error(why, status=word.code, retry_after_s=word.retry_after_s)

    def malformed(self, word: Malformed) -> None:
        """An invalid line: the stream cannot be trusted any more."""
        self.stats.malformed += 1
        self.doubt()
        raise self._error(f"{word.reason}; the stream is opened anew")

    def doubt(self) -> None:
        """The same trouble from the same version again and again: then the version is what is wrong with it."""
        self.doubts += 1
        if self.doubts >= PATIENCE and self.version:
            self.doubts = 0
            raise _Expired

    def look_for_servers(self, decoded: Decoded) -> None:
        """Keeps the API server's own addresses, from the slice that it writes about itself."""
        if decoded.key == _KUBERNETES and isinstance(decoded.object, EndpointSlice):
            ports = [port.port for port in decoded.object.ports]
            ready = [endpoint.address for endpoint in decoded.object.endpoints if endpoint.ready]
            if ports and ready:
                self.api.remember(ready, ports[0])

    def expired(self) -> float:
        """After 410: a list. At once the first time; a server that forgets every version at once is not stormed."""
        log.info(
            "%s: listing anew, version %s is of no use any more", self.resource.kind.value, self.version or "(none)"
        )
        self.version = ""
        self.failures += 1
        return self._wait() if self.failures > 1 else 0.0

    def failed(self, error: SourceError) -> float:
        """After an error: how long to wait, in seconds. A 410 is not one: versions are forgotten in the course of things."""
        if error.status == 410:
            return self.expired()
        self.stats.errors += 1
        self.stats.last_error = str(error)
        listing = not self.version and self.streaming_lists and not self.whole
        if self.whole and (error.status is not None or self.failures + 1 >= FRUITLESS_LISTS):
            self.whole = False  # it was refused; who is not reached at all is asked for the same once more
        if listing and error.status in (400, 405, 422, 500):
            # Not offered here: ask for pages at once. 500 is what kube-apiserver 1.36 says over an etcd before 3.4.25.
            self.streaming_lists = False
            return 0.0
        self.failures += 1
        if listing and self.failures >= FRUITLESS_LISTS:
            self.streaming_lists = False
        if (
            error.status == 504
        ):  # also what a server says that has not reached this version, and never will after a restored backup
            try:
                self.doubt()
            except _Expired:
                return self.expired()
        wait = max(self._wait(), error.retry_after_s or 0.0)
        self.stats.waits_s = wait
        if self.stats.last_error != self.said:
            self.said = self.stats.last_error
            log.warning("%s: %s (next attempt in %.1f s)", self.resource.kind.value, self.said, wait)
        else:
            log.info("%s: attempt %d failed alike (next in %.1f s)", self.resource.kind.value, self.failures, wait)
        return wait

    def _wait(self) -> float:
        most = min(FIRST_WAIT_S * 2.0 ** min(self.failures - 1, 20), LONGEST_WAIT_S)
        return float(most * (LEAST_PART + (1 - LEAST_PART) * self.random()))


async def reflect(
    api: Api,
    resource: Resource,
    emit: Emit,
    *,
    now: Clock,
    sleep: Sleep,
    random: Clock,
    stats: WatchStats,
    since: str | None = None,
) -> None:
    """Runs for ever. `now` in monotonic seconds, `random` in [0, 1); only cancellation and programming errors end it.

    since: the version up to which an earlier life has seen this kind, "0" for one that has seen nothing; None begins with a streaming list.
    """
    state = _Reflector(api, resource, emit, now, random, stats, since)
    while True:
        wait = 0.0
        try:
            await state.step()
        except _Expired:
            wait = state.expired()
        except SourceError as error:
            wait = state.failed(error)
        if wait:
            await sleep(wait)
