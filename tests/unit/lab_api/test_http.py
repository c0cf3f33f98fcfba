"""The surface, over a Unix socket: lists in pages, watches and their ends, tables, bad weather. No test waits for a clock."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from kproxy.lab.api import kinds
from kproxy.lab.api.http import Surface
from kproxy.lab.api.weather import Weather
from tests.unit.lab_api.conftest import World

SERVICES = "/api/v1/namespaces/default/services"
MAPS = "/api/v1/namespaces/default/configmaps"
LIMIT_S = 10


class Client:
    """HTTP to the server under test."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self.session = session

    async def call(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
        """Code and decoded body."""
        data = None if body is None else json.dumps(body)
        sent = {"Content-Type": "application/json", **{k.replace("_", "-"): v for k, v in headers.items()}}
        async with self.session.request(method, "http://api" + path, data=data, headers=sent) as answer:
            return answer.status, json.loads(await answer.text())

    async def lines(self, path: str) -> AsyncIterator[dict[str, Any]]:
        """The events of a watch."""
        async with self.session.get("http://api" + path) as answer:
            async for line in answer.content:
                yield json.loads(line)


@asynccontextmanager
async def serving(world: World, folder: Path) -> AsyncIterator[Client]:
    surface = Surface(world.cluster, Weather())
    runner = web.AppRunner(surface.application(), handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    path = str(folder / "api.sock")
    await web.UnixSite(runner, path).start()
    async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(path)) as session:
        try:
            yield Client(session)
        finally:
            surface.stopping.set()
            world.cluster.store.wake_all()
            await session.close()
            await runner.cleanup()


Play = Callable[[Callable[[Client], Awaitable[None]]], None]


@pytest.fixture
def play(empty: World, tmp_path: Path) -> Play:
    """Run a scene against a server of its own."""

    def run(scene: Callable[[Client], Awaitable[None]]) -> None:
        async def whole() -> None:
            async with serving(empty, tmp_path) as client:
                await asyncio.wait_for(scene(client), LIMIT_S)

        asyncio.run(whole())

    return run


def test_pages_show_the_state_of_the_first_page(empty: World, play: Play) -> None:
    for name in "abcde":
        empty.create(kinds.CONFIG_MAPS, name)

    async def scene(client: Client) -> None:
        _, first = await client.call("GET", MAPS + "?limit=2")
        assert first["metadata"]["remainingItemCount"] == 3
        empty.create(kinds.CONFIG_MAPS, "bb")
        empty.delete(kinds.CONFIG_MAPS, "d")
        names = [item["metadata"]["name"] for item in first["items"]]
        token = first["metadata"]["continue"]
        while token:
            _, page = await client.call("GET", f"{MAPS}?limit=2&continue={token}")
            assert page["metadata"]["resourceVersion"] == first["metadata"]["resourceVersion"]
            names += [item["metadata"]["name"] for item in page["items"]]
            token = page["metadata"].get("continue", "")
        assert names == list("abcde")

    play(scene)


def test_a_forgotten_page_is_expired_and_goes_on_inconsistently(empty: World, play: Play) -> None:
    for name in "abc":
        empty.create(kinds.CONFIG_MAPS, name)

    async def scene(client: Client) -> None:
        _, first = await client.call("GET", MAPS + "?limit=1")
        empty.create(kinds.CONFIG_MAPS, "aa")
        empty.cluster.store.compact()
        code, status = await client.call("GET", f"{MAPS}?limit=5&continue={first['metadata']['continue']}")
        assert (code, status["reason"]) == (410, "Expired")
        _, rest = await client.call("GET", f"{MAPS}?limit=5&continue={status['metadata']['continue']}")
        assert [item["metadata"]["name"] for item in rest["items"]] == ["aa", "b", "c"]

    play(scene)


def test_exact_and_future_versions(empty: World, play: Play) -> None:
    old = empty.create(kinds.CONFIG_MAPS, "a")["metadata"]["resourceVersion"]
    empty.create(kinds.CONFIG_MAPS, "b")

    async def scene(client: Client) -> None:
        _, exact = await client.call("GET", f"{MAPS}?resourceVersion={old}&resourceVersionMatch=Exact")
        assert [item["metadata"]["name"] for item in exact["items"]] == ["a"]
        _, newest = await client.call("GET", f"{MAPS}?resourceVersion={old}&resourceVersionMatch=NotOlderThan")
        assert len(newest["items"]) == 2
        code, status = await client.call("GET", f"{MAPS}?resourceVersion=999999")
        assert (code, status["details"]["causes"][0]["reason"]) == (504, "ResourceVersionTooLarge")
        code, _ = await client.call("GET", f"{MAPS}?resourceVersionMatch=Exact")
        assert code == 422

    play(scene)


def test_a_watch_from_a_version_sees_every_change_after_it(empty: World, play: Play) -> None:
    since = empty.create(kinds.CONFIG_MAPS, "a")["metadata"]["resourceVersion"]

    async def scene(client: Client) -> None:
        empty.change(kinds.CONFIG_MAPS, "a", lambda o: o.update(data={"x": "1"}))
        events = client.lines(f"{MAPS}?watch=1&resourceVersion={since}")
        assert [(await anext(events))["type"]] == ["MODIFIED"]
        empty.delete(kinds.CONFIG_MAPS, "a")
        last = await anext(events)
        assert last["type"] == "DELETED"
        assert int(last["object"]["metadata"]["resourceVersion"]) == empty.cluster.store.revision

    play(scene)


def test_a_streaming_list_ends_with_an_annotated_bookmark(empty: World, play: Play) -> None:
    empty.create(kinds.CONFIG_MAPS, "a")

    async def scene(client: Client) -> None:
        query = "watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true"
        events = client.lines(f"{MAPS}?{query}")
        assert (await anext(events))["type"] == "ADDED"
        mark = await anext(events)
        assert mark["type"] == "BOOKMARK"
        assert mark["object"]["metadata"]["annotations"] == {"k8s.io/initial-events-end": "true"}
        assert mark["object"]["metadata"]["resourceVersion"] == str(empty.cluster.store.revision)
        code, _ = await client.call("GET", f"{MAPS}?watch=1&sendInitialEvents=true")
        assert code == 422

    play(scene)


def test_a_selected_watch_adds_and_deletes_as_objects_come_and_go(empty: World, play: Play) -> None:
    since = empty.create(kinds.CONFIG_MAPS, "a")["metadata"]["resourceVersion"]

    async def scene(client: Client) -> None:
        for labels in ({"x": "1"}, {"x": "1", "y": "2"}, {"x": "2"}, {}):
            empty.change(kinds.CONFIG_MAPS, "a", lambda o, labels=labels: o["metadata"].update(labels=labels))
        events = client.lines(f"{MAPS}?watch=1&labelSelector=x%3D1&resourceVersion={since}")
        assert [(await anext(events))["type"] for _ in range(3)] == ["ADDED", "MODIFIED", "DELETED"]

    play(scene)


def test_an_old_watch_is_expired_by_an_event(empty: World, play: Play) -> None:
    since = empty.create(kinds.CONFIG_MAPS, "a")["metadata"]["resourceVersion"]
    empty.create(kinds.CONFIG_MAPS, "b")
    empty.cluster.store.compact()

    async def scene(client: Client) -> None:
        events = [event async for event in client.lines(f"{MAPS}?watch=1&resourceVersion={since}")]
        assert [(e["type"], e["object"]["code"], e["object"]["reason"]) for e in events] == [("ERROR", 410, "Expired")]

    play(scene)


def test_a_watch_from_an_earlier_run_is_expired(empty: World, play: Play) -> None:
    async def scene(client: Client) -> None:
        events = [event async for event in client.lines(f"{MAPS}?watch=1&resourceVersion=99999999")]
        assert [event["object"]["code"] for event in events] == [410]

    play(scene)


def test_tables_in_lists_and_watches(empty: World, play: Play) -> None:
    empty.service("s")
    accept = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json"

    async def scene(client: Client) -> None:
        _, shown = await client.call("GET", SERVICES, Accept=accept)
        assert [c["name"] for c in shown["columnDefinitions"]][:3] == ["Name", "Type", "Cluster-IP"]
        assert shown["rows"][1]["object"]["kind"] == "PartialObjectMetadata"
        _, wide = await client.call("GET", SERVICES + "/s?includeObject=Object", Accept=accept)
        assert wide["rows"][0]["object"]["kind"] == "Service"
        _, discovery = await client.call(
            "GET", "/apis", Accept="application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"
        )
        assert discovery["kind"] == "APIGroupDiscoveryList"

    play(scene)


def test_refusals_are_statuses(empty: World, play: Play) -> None:
    async def scene(client: Client) -> None:
        for method, path, code, reason in (
            ("GET", "/api/v1/nowhere", 404, "NotFound"),
            ("GET", "/apis/none/v1", 404, "NotFound"),
            ("GET", SERVICES + "/none", 404, "NotFound"),
            ("PUT", SERVICES, 405, "MethodNotAllowed"),
            ("GET", SERVICES + "?resourceVersion=x", 400, "BadRequest"),
            ("GET", SERVICES + "?limit=x", 400, "BadRequest"),
            ("GET", SERVICES + "?continue=x", 400, "BadRequest"),
            ("GET", SERVICES + "?labelSelector=a+b", 400, "BadRequest"),
            ("GET", SERVICES + "?watch=1&resourceVersion=x", 500, None),
            ("POST", SERVICES, 400, "BadRequest"),
        ):
            found, status = await client.call(method, path, {} if method == "PUT" else [] if method == "POST" else None)
            assert (found, status["kind"], status.get("reason")) == (code, "Status", reason), path
        found, status = await client.call("POST", SERVICES, {}, Content_Type="text/weird")
        assert found == 415
        found, status = await client.call("GET", SERVICES, Accept="application/vnd.kubernetes.protobuf")
        assert found == 406

    play(scene)


@pytest.mark.parametrize(
    ("body", "media_type", "code"),
    [
        (b"[" * 200_000, "application/json", 400),
        (b'{"a":' * 900 + b"1" + b"}" * 900, "application/json", 422),
        (b"a: &x [1]\nb: *x", "application/yaml", 400),
        (b"a: [1", "application/yaml", 400),
        (b"\xff\xfe", "application/yaml", 400),
        (b"\xff\xfe", "application/json", 400),
        (b"", "application/json", 400),
        (b"k8s\x00\xff\xff", "application/vnd.kubernetes.protobuf", 400),
        (b"nonsense", "application/vnd.kubernetes.protobuf", 400),
        (b"metadata: {name: dated, annotations: {at: 2026-01-01}}", "application/yaml", 201),
    ],
)
def test_bodies_that_are_none(play: Play, body: bytes, media_type: str, code: int) -> None:
    async def scene(client: Client) -> None:
        async with client.session.post("http://api" + MAPS, data=body, headers={"Content-Type": media_type}) as answer:
            assert answer.status == code, await answer.text()
            assert json.loads(await answer.text())["kind"] in ("Status", "ConfigMap")

    play(scene)


# weather


async def forecast(client: Client, **rule: Any) -> None:
    code, _ = await client.call("POST", "/kproxy.lab/weather", {"rules": [rule]})
    assert code == 200


def test_weather_answers_with_codes_as_often_as_told(empty: World, play: Play) -> None:
    async def scene(client: Client) -> None:
        await forecast(client, action="status", code=429, retryAfter=2, path="/api/v1/", times=2)
        for expected in (429, 429, 200):
            async with client.session.get("http://api" + SERVICES) as answer:
                assert answer.status == expected
                assert answer.headers.get("Retry-After") == ("2" if expected == 429 else None)
        await forecast(client, action="status", code=410, path="/api/v1/", watch=True)
        assert (await client.call("GET", SERVICES))[0] == 200
        code, status = await client.call("GET", SERVICES + "?watch=1")
        assert (code, status["reason"]) == (410, "Expired")

    play(scene)


def test_weather_cuts_an_event_in_half(empty: World, play: Play) -> None:
    empty.service("a")
    empty.service("b")

    async def scene(client: Client) -> None:
        await forecast(client, action="cut", after=1, path=SERVICES)
        received = b""
        with pytest.raises(aiohttp.ClientError):
            async with client.session.get("http://api" + SERVICES + "?watch=1") as answer:
                async for chunk in answer.content.iter_any():
                    received += chunk
        whole, half = received.split(b"\n")
        assert json.loads(whole)["type"] == "ADDED"
        assert half
        with pytest.raises(json.JSONDecodeError):
            json.loads(half)

    play(scene)


def test_weather_splits_events_into_bytes(empty: World, play: Play) -> None:
    async def scene(client: Client) -> None:
        await forecast(client, action="split", path=SERVICES)
        events = client.lines(SERVICES + "?watch=1")
        assert (await anext(events))["object"]["metadata"]["name"] == "kubernetes"

    play(scene)


def test_weather_stalls_without_closing(empty: World, play: Play) -> None:
    async def scene(client: Client) -> None:
        await forecast(client, action="stall", after=1, path=SERVICES)
        stalled, healthy = client.lines(SERVICES + "?watch=1"), client.lines(SERVICES + "?watch=1")
        await anext(stalled)
        await anext(healthy)
        empty.service("unseen")
        assert (await anext(healthy))["object"]["metadata"]["name"] == "unseen"
        with pytest.raises(TimeoutError):  # neither an event nor an end, although the other watch has it
            await asyncio.wait_for(anext(stalled), 0.05)

    play(scene)


def test_weather_drops_connections(empty: World, play: Play) -> None:
    async def scene(client: Client) -> None:
        # Twice: aiohttp tries a GET again by itself when a kept-alive connection ends under it.
        await forecast(client, action="drop", path=SERVICES, times=2)
        with pytest.raises(aiohttp.ClientError):
            await client.call("GET", SERVICES)
        assert (await client.call("GET", SERVICES))[0] == 200

    play(scene)


def test_weather_refuses_rules_it_does_not_know(play: Play) -> None:
    async def scene(client: Client) -> None:
        for rules in ({"rules": [{"action": "hail"}]}, {"rules": 7}, [], {"rules": [{"action": "cut", "path": "("}]}):
            code, _ = await client.call("POST", "/kproxy.lab/weather", rules)
            assert code == 400

    play(scene)


def test_events_of_the_new_group_are_core_events(play: Play) -> None:
    """What kproxy's recorder and client-go's write is what `kubectl describe` reads."""

    async def scene(client: Client) -> None:
        new = "/apis/events.k8s.io/v1/namespaces/default/events"
        event = {
            "apiVersion": "events.k8s.io/v1",
            "kind": "Event",
            "metadata": {"name": "node-1.abc", "namespace": "default"},
            "eventTime": "2026-01-01T00:00:00.000000Z",
            "reportingController": "kproxy",
            "reportingInstance": "kproxy-node-1",
            "action": "StartKubeProxy",
            "reason": "Starting",
            "regarding": {"kind": "Node", "name": "node-1", "apiVersion": "v1"},
            "note": "hello",
            "type": "Normal",
        }
        code, _ = await client.call("POST", new, event)
        assert code == 201
        series = {"series": {"count": 2, "lastObservedTime": "2026-01-01T00:00:01.000000Z"}}
        code, _ = await client.call("PATCH", f"{new}/node-1.abc", series, Content_Type="application/merge-patch+json")
        assert code == 200
        code, found = await client.call("GET", "/api/v1/namespaces/default/events/node-1.abc")
        assert code == 200
        assert (found["involvedObject"]["name"], found["message"], found["series"]["count"]) == ("node-1", "hello", 2)
        assert (await client.call("PATCH", f"{new}/gone", series, Content_Type="application/merge-patch+json"))[
            0
        ] == 404
        assert (await client.call("POST", new, ["no object"]))[0] == 400

    play(scene)
