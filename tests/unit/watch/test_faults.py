"""The API server at its worst, all five reflectors together: away for ten minutes, refusing, forgetful, cut anywhere.

Real HTTP on loopback; waits are virtual, so that ten minutes take a second. The numbers are those of the list of faults that a proxy
has to bear.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
from aiohttp import web

from kproxy.backends.iptables.compile import compile_ruleset
from kproxy.backends.iptables.plan import plan
from kproxy.backends.iptables.settings import IptablesSettings
from kproxy.config.config import ClientSettings
from kproxy.model.desired import NodeSettings
from kproxy.model.events import Event, Removed, Replaced
from kproxy.model.objects import Kind
from kproxy.model.resolve import resolve
from kproxy.model.snapshot import Snapshot, fold
from kproxy.sync.status import SyncStatus
from kproxy.telemetry.metrics import families, text_of
from kproxy.watch import client
from kproxy.watch.client import Api
from kproxy.watch.reflector import RESOURCES, Resource, WatchStats, reflect
from tests.support.scripted_api import (
    Answer,
    ScriptedApi,
    added,
    bookmark,
    deleted,
    line,
    listed,
    service,
    status,
    stream,
)
from tests.support.virtual_time import VirtualTime

SERVICES = RESOURCES("node-1")[0]
WEB = service("web", "1")
GONE = line("ERROR", {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old resource version"})
TEN_MINUTES, FIVE_MINUTES = 600.0, 300.0


@dataclass
class Node:
    """Reflectors at work, and what comes of them."""

    time: VirtualTime = field(default_factory=VirtualTime)
    events: list[Event] = field(default_factory=list)
    stats: list[WatchStats] = field(default_factory=list)

    @property
    def snapshot(self) -> Snapshot:
        return fold(Snapshot(), self.events)

    @property
    def synced(self) -> bool:
        return all(stats.synced for stats in self.stats)

    def exposed(self, name: str, kind: Kind = Kind.SERVICE) -> float:
        """A metric of one watch as Prometheus would read it."""
        told = families(SyncStatus(), self.stats, now=self.time.now(), flows={})
        text = text_of(told).decode()
        return float(text.partition(f'{name}{{kind="{kind.value}"}} ')[2].partition("\n")[0])


@asynccontextmanager
async def watching(url: str, resources: Sequence[Resource] = RESOURCES("node-1")) -> AsyncIterator[Node]:
    """Runs one reflector for each resource."""
    node = Node()
    api = Api(ClientSettings(master=url), {"HOME": "/nonexistent"})
    async with asyncio.timeout(50), asyncio.TaskGroup() as group:
        tasks = []
        for resource in resources:
            node.stats.append(WatchStats(resource.kind))
            work = reflect(
                api, resource, node.events.append, now=node.time.now, sleep=node.time.sleep, random=lambda: 0.5, stats=node.stats[-1]
            )  # fmt: skip
            tasks.append(group.create_task(work))
        try:
            yield node
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            await api.close()


def lists_everything() -> Answer:
    """Answers a streaming list with one Service (of whatever kind it is asked about: nothing), then holds the watch open."""

    async def answer(request: web.Request) -> web.StreamResponse:
        bodies = [WEB] if request.path.endswith("/services") else []
        return await stream(listed("5", *bodies))(request)

    return answer


async def until(holds: object, limit_s: float = 10.0) -> None:
    """Waits, in real time, until `holds()`."""
    assert callable(holds)
    async with asyncio.timeout(limit_s):
        while not holds():
            await asyncio.sleep(0.002)


class Deaf:
    """Something at the API server's port that takes connections and drops them: each is counted."""

    def __init__(self) -> None:
        self.attempts = 0

    async def open(self, port: int) -> asyncio.Server:
        def taken(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self.attempts += 1
            writer.transport.abort()

        return await asyncio.start_server(taken, "127.0.0.1", port)


def test_fault_01_ten_minutes_away_state_stays_attempts_are_few_and_back_off_is_visible() -> None:
    async def scenario() -> None:
        first = ScriptedApi([lists_everything()] * 5)
        async with first:
            port = int(first.url.rpartition(":")[2])
            async with watching(first.url) as node:
                await until(lambda: node.synced)
                before, count = node.snapshot, len(node.events)
                await first.__aexit__()
                deaf = Deaf()
                gate = await deaf.open(port)
                start = node.time.now()
                await node.time.until(start + TEN_MINUTES)
                assert 15 < deaf.attempts <= 40
                assert node.events[count:] == [], "nothing is taken back because nobody answers"
                assert node.snapshot == before
                assert [str(name) for name in before.services] == ["shop/web"]
                prober = max(node.stats, key=lambda stats: stats.waits_s)
                assert prober.waits_s == 22.5
                assert node.exposed("kproxy_watch_backoff_seconds", prober.kind) == 22.5
                assert node.exposed("kproxy_watch_age_seconds") >= TEN_MINUTES
                gate.close()
                async with ScriptedApi([stream(bookmark("9"))] * 5, port=port):
                    await node.time.until(node.time.now() + 60, also=lambda: all(not s.waits_s for s in node.stats))
                    await until(lambda: all(stats.version == "9" for stats in node.stats))
                assert node.events[count:] == [], "and nothing is listed again: the version is still known"

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("refusal", "shortest"),
    [
        (status(500), 0.15),
        (status(503), 0.15),
        (status(429, retry_after="5"), 5.0),
        (status(503, retry_after="7"), 7.0),
    ],
    ids=["500", "503", "429", "503 with Retry-After"],
)
def test_fault_02_five_minutes_of_refusals_are_one_request_a_step_and_no_relist(
    refusal: Answer, shortest: float
) -> None:
    async def scenario() -> None:
        async with ScriptedApi([lists_everything()] * 5, then=refusal) as server, watching(server.url) as node:
            await until(lambda: node.synced)
            server.drop()
            await until(lambda: all(stats.errors for stats in node.stats))
            start, asked, slept = node.time.now(), len(server.requests), len(node.time.slept)
            await node.time.until(start + FIVE_MINUTES)
            later = server.requests[asked:]
            # 0.15 + 0.3 + … + 19.2 + n × 22.5 s: 20 steps in five minutes at most
            for resource in RESOURCES("node-1"):
                mine = [request for request in later if request.path == resource.path]
                assert 10 < len(mine) <= 20
                assert all(request.query.get("resourceVersion") == "5" for request in mine), (
                    "the watch is resumed, not begun anew"
                )
            assert not any("limit" in request.query or "sendInitialEvents" in request.query for request in later)
            assert min(node.time.slept[slept:]) >= shortest
            assert all(stats.relists == 0 for stats in node.stats)

    asyncio.run(scenario())


def test_fault_03_a_watch_that_fell_silent_is_replaced_and_its_age_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "QUIET_S", 0.3)

    async def scenario() -> None:
        script = [stream(listed("5", WEB)), stream(added(service("new", "6")))]
        async with ScriptedApi(script) as server, watching(server.url, [SERVICES]) as node:
            await until(lambda: node.synced)
            node.time.move(50)
            assert node.exposed("kproxy_watch_age_seconds") == 50
            await until(lambda: len(node.events) == 2)
            assert node.exposed("kproxy_watch_age_seconds") == 0
            assert server.asked(1)["resourceVersion"] == "5"
            assert (node.stats[0].relists, node.stats[0].errors) == (0, 0)

    asyncio.run(scenario())


def test_fault_04_after_410_no_rule_of_an_unchanged_object_is_touched_and_no_deletion_is_lost() -> None:
    kept, goes, comes = (
        service("kept", "1", "10.96.0.1"),
        service("goes", "2", "10.96.0.2"),
        service("comes", "8", "10.96.0.3"),
    )

    async def scenario() -> list[Event]:
        # The stream breaks, "goes" is deleted while nobody watches, and the version is forgotten.
        script = [
            stream(listed("5", kept, goes), then="abort"),
            stream(GONE, then="close"),
            stream(listed("9", kept, comes)),
        ]
        async with ScriptedApi(script) as server, watching(server.url, [SERVICES]) as node:
            await until(lambda: node.synced)
            await node.time.until(600, also=lambda: len(node.events) >= 2)
            await until(lambda: len(server.requests) == 3)
            assert node.stats[0].relists == 1
            return node.events

    before, *after = asyncio.run(scenario())
    assert [type(event) for event in after] == [Replaced]
    old, settings = fold(Snapshot(), [before]), NodeSettings(name="node-1")
    new = fold(old, after)
    assert sorted(name.name for name in new.services) == ["comes", "kept"]
    was = resolve(old, settings)
    now = resolve(new, settings, was)
    applied = compile_ruleset(was, IptablesSettings())
    changes = [
        c for batch in plan(applied, compile_ruleset(now, IptablesSettings(), applied)).batches for c in batch.changes
    ]
    written = [rule.text for c in changes for _, rule in (*c.inserted, *c.appended)]
    removed = [rule.text for c in changes for _, rule in c.deleted]
    assert written
    assert all("shop/comes" in text for text in written)
    assert removed
    assert all("shop/goes" in text for text in removed)
    assert not [place for c in changes for place, _ in c.written if place.chain.startswith("KUBE-SVC")]


def test_fault_05_wherever_a_stream_is_cut_the_final_state_is_the_same() -> None:
    text = added(service("c", "6")) + deleted(service("c", "7"))
    big = service("big", "8")
    big["metadata"]["annotations"] = {"big": "x" * (3 << 20)}

    async def scenario() -> Node:
        cut = [stream(text[:at], text[at:], then="close") for at in range(1, len(text))]
        script = [stream(listed("5", WEB), then="close"), *cut, stream(text, then="close"), stream(added(big))]
        async with ScriptedApi(script) as server, watching(server.url, [SERVICES]) as node:
            await node.time.until(1e9, also=lambda: len(server.requests) == len(script))
            await until(lambda: any(name.name == "big" for name in node.snapshot.services))
            assert node.stats[0].malformed == 0
            return node

    node = asyncio.run(scenario())
    assert sorted(name.name for name in node.snapshot.services) == ["big", "web"]
    assert sum(isinstance(event, Removed) for event in node.events) == len(text)
    assert sum(isinstance(event, Replaced) for event in node.events) == 1


@pytest.mark.parametrize(
    "broken", [b"garbage\n", b'{"type":"ADDED","object":{\n', b'{"type":"ADDED"}\n', b"\xff\xfe\n", b"[" * 5000 + b"\n"]
)
def test_fault_06_an_invalid_event_is_logged_once_and_the_stream_opened_anew(
    broken: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        script = [stream(listed("5", WEB), broken), stream(broken), stream(added(service("new", "6")))]
        async with ScriptedApi(script) as server, watching(server.url, [SERVICES]) as node:
            await node.time.until(600, also=lambda: len(node.events) == 2)
            await until(lambda: len(node.events) == 2)
            assert [server.asked(number)["resourceVersion"] for number in (1, 2)] == ["5", "5"]
            assert (node.stats[0].malformed, node.stats[0].relists) == (2, 0)

    asyncio.run(scenario())
    warned = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(warned) == 1, "the same trouble again is not said again"
    assert warned[0].isprintable()


def test_fault_17_a_clock_that_jumps_changes_neither_waits_nor_ages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reflectors and client live by monotonic time; the wall clock may go an hour ahead, and two back, while they wait."""
    wall = time.time
    offset = 0.0
    monkeypatch.setattr(time, "time", lambda: wall() + offset)

    async def scenario() -> None:
        nonlocal offset
        script = [stream(listed("5", WEB), then="abort"), status(500), status(500), stream(added(service("new", "6")))]
        async with ScriptedApi(script) as server, watching(server.url, [SERVICES]) as node:
            await until(lambda: len(server.requests) == 1 and bool(node.stats[0].errors))
            offset = 3600.0
            await node.time.until(1.0, also=lambda: len(server.requests) == 3)
            offset = -3600.0
            await node.time.until(600, also=lambda: len(node.events) == 2)
            await until(lambda: len(node.events) == 2)
            assert node.time.slept[:3] == pytest.approx([0.15, 0.3, 0.6])
            assert node.exposed("kproxy_watch_age_seconds") < 10

    asyncio.run(scenario())


def test_a_port_that_is_free_is_found() -> None:
    """The scripted server takes the port it is told."""

    async def scenario() -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        async with ScriptedApi([], port=port) as server:
            assert server.url == f"http://127.0.0.1:{port}"

    asyncio.run(scenario())
