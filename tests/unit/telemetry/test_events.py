"""Events against a writer that remembers: shape, series, limits, and a server that refuses or does not answer."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest

from kproxy.errors import SourceError
from kproxy.model.names import NamespacedName
from kproxy.model.objects import Problem
from kproxy.sync.drift import DriftFound
from kproxy.telemetry import events, notices
from kproxy.telemetry.events import About, Note, Recorder


class _Server:
    """Takes what is written. `fail` is raised for a request when it gives something."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.seen: list[tuple[str, str, dict[str, Any]]] = []
        self.fail: Callable[[str], SourceError | None] = lambda _: None
        self.slept: list[float] = []

    async def write(self, method: str, path: str, body: bytes, content_type: str) -> bytes:
        self.seen.append((method, path, json.loads(body)))
        assert content_type == {"POST": "application/json", "PATCH": "application/merge-patch+json"}[method]
        if error := self.fail(method):
            raise error
        return b"{}"

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)

    def recorder(self, **more: Any) -> Recorder:
        return Recorder(
            self.write,
            instance="kproxy-host",
            unix_ns=lambda: int(self.now * 1e9),
            monotonic=lambda: self.now,
            sleep=self.sleep,
            **more,
        )


def _write(recorder: Recorder, *notes: Note) -> None:
    """Records the notes and lets the recorder work until its queue is empty."""

    async def scenario() -> None:
        for note in notes:
            recorder.record(note)
        keeping = asyncio.ensure_future(recorder.keep())
        async with asyncio.timeout(10):
            while recorder._queue or recorder._filled.is_set():
                await asyncio.sleep(0)
            for _ in range(50):
                await asyncio.sleep(0)
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)

    recorder._filled = asyncio.Event()
    asyncio.run(scenario())


def _note(name: str = "web", text: str = "no") -> Note:
    return Note(about=About(kind="Service", name=name, namespace="shop"), reason="Why", action="Try", text=text)


def test_an_event_has_kube_proxys_shape_and_the_kubelets_name_of_the_node() -> None:
    server = _Server()
    _write(server.recorder(), notices.starting("node-1"))
    ((method, path, body),) = server.seen
    assert (method, path) == ("POST", "/apis/events.k8s.io/v1/namespaces/default/events")
    assert body == {
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": {"name": f"node-1.{1000 * 10**9:x}", "namespace": "default"},
        "eventTime": "1970-01-01T00:16:40.000000Z",
        "reportingController": "kproxy",
        "reportingInstance": "kproxy-host",
        "action": "StartKubeProxy",
        "reason": "Starting",
        "regarding": {"kind": "Node", "name": "node-1", "apiVersion": "v1", "uid": "node-1"},
        "note": "",
        "type": "Normal",
    }


def test_the_same_again_lengthens_a_series_that_is_written_rarely() -> None:
    server = _Server()
    recorder = server.recorder()
    _write(recorder, *[_note()] * 50)
    assert [method for method, _, _ in server.seen] == ["POST", "PATCH"]
    assert server.seen[1][1].startswith("/apis/events.k8s.io/v1/namespaces/shop/events/web.")
    assert server.seen[1][2]["series"]["count"] == 2
    server.now += events.SERIES_WRITTEN_S + 1
    _write(recorder, _note())
    assert [body["series"]["count"] for method, _, body in server.seen if method == "PATCH"] == [2, 51]
    server.now += events.SERIES_ENDS_S + 1
    _write(recorder, _note())
    assert server.seen[-1][0] == "POST"  # a new one
    assert recorder.outcomes == {"written": 2, "repeated": 50}


def test_a_series_that_was_collected_is_written_again() -> None:
    server = _Server()
    server.fail = lambda method: SourceError("gone", status=404) if method == "PATCH" else None
    _write(server.recorder(), _note(), _note())
    assert [method for method, _, _ in server.seen] == ["POST", "PATCH", "POST"]
    assert server.seen[2][2]["series"]["count"] == 2


def test_no_more_than_a_burst_and_then_one_each_ten_seconds() -> None:
    server = _Server()
    recorder = server.recorder()
    _write(recorder, *[_note(f"web-{n}") for n in range(100)])
    assert len(server.seen) == int(events.BURST)
    assert recorder.outcomes["dropped"] == 75
    server.now += events.REFILL_S
    _write(recorder, _note("later"), _note("too-soon"))
    assert len(server.seen) == int(events.BURST) + 1


def test_a_full_queue_drops_and_nothing_waits() -> None:
    recorder = _Server().recorder()
    for number in range(events.MAX_QUEUE + 50):
        recorder.record(_note(f"web-{number}"))
    assert recorder.outcomes == {"dropped": 50}


def test_403_is_believed_for_half_an_hour_and_said_once(caplog: pytest.LogCaptureFixture) -> None:
    server = _Server()
    server.fail = lambda _: SourceError("forbidden", status=403)
    recorder = server.recorder()
    _write(recorder, *[_note(f"web-{n}") for n in range(5)])
    assert len(server.seen) == 1
    assert [record.getMessage() for record in caplog.records] == ["Events are not written"]
    server.now += events.FORBIDDEN_S + 1
    server.fail = lambda _: None
    _write(recorder, _note())
    assert (len(server.seen), recorder.outcomes["written"]) == (2, 1)


def test_a_server_that_does_not_answer_is_tried_a_few_times() -> None:
    server = _Server()
    server.fail = lambda _: SourceError("nobody there")
    recorder = server.recorder()
    _write(recorder, _note())
    assert len(server.seen) == events.TRIES
    assert server.slept == [10.0, 20.0, 40.0, 60.0, 60.0]
    assert recorder.outcomes == {"dropped": 1}


def test_a_missing_namespace_costs_its_event_only(caplog: pytest.LogCaptureFixture) -> None:
    server = _Server()
    server.fail = lambda _: SourceError("no namespace", status=404)
    recorder = server.recorder()
    _write(recorder, _note("a"), _note("b"))
    assert (len(server.seen), server.slept) == (2, [])
    assert len(caplog.records) == 1


def test_switched_off_it_takes_nothing() -> None:
    server = _Server()
    _write(server.recorder(enabled=False), _note())
    assert server.seen == []


def test_hostile_words_and_long_names_fit_the_api() -> None:
    server = _Server()
    _write(server.recorder(), _note("a" * 253, text="\x1b[31m\n" + "é" * 2000))
    body = server.seen[0][2]
    assert len(body["note"].encode()) <= 1024
    assert body["note"].isprintable()
    assert len(body["metadata"]["name"]) <= 253


def test_which_problems_their_owners_hear_of() -> None:
    refused = Problem("Service", "shop/web", "spec.externalIPs: 192.0.2.1 refused: it is this node's")
    kernel = Problem("Service", "shop/web:http", "IPv4: left out, the kernel refused its rules: x")
    other = Problem("Service", "shop/web", "spec.ports: twice")
    found = list(notices.of_problems("node-1", (), (refused, kernel, other)))
    assert {(n.reason, n.about.name, n.about.namespace) for n in found} == {
        ("ExternalIPRefused", "web", "shop"),
        ("RulesRefused", "web", "shop"),
    }
    assert list(notices.of_problems("node-1", (refused,), (refused,))) == []


def test_what_nodes_and_services_hear_of() -> None:
    check = notices.check_failed("node-1", NamespacedName("shop", "web"), "on port 30999 (IPv4): in use")
    assert (check.reason, check.action) == ("FailedToStartServiceHealthcheck", "Listen")
    assert check.text == 'node node-1 failed to start healthcheck "shop/web" on port 30999 (IPv4): in use'
    mended = notices.drift("node-1", DriftFound(differences=2, shown=("nat: a", "nat: b")))
    assert (mended.reason, mended.text) == ("RulesRestored", "2 differences from what was written: nat: a; nat: b")
    contested = notices.drift("node-1", DriftFound(differences=2, shown=(), contested=True, first_contested=True))
    assert contested.reason == "RulesContested"
    assert [n.reason for n in notices.variants("node-1", ("both",))] == ["IptablesVariants"]
    assert notices.sync_failed("node-1", "the lock").reason == "SyncFailed"


@pytest.mark.parametrize(
    ("pod", "kind", "name", "namespace"),
    [("shop/web-0", "Pod", "web-0", "shop"), ("", "Node", "n1", "")],
    ids=["pod", "somebody"],
)
def test_who_asks_too_much_is_told_about_the_pod_where_it_is_one(
    pod: str, kind: str, name: str, namespace: str
) -> None:
    note = notices.queries_limited("n1", "10.0.0.5", pod, 77)
    assert (note.about.kind, note.about.name, note.about.namespace) == (kind, name, namespace)
    assert note.reason == "DNSQueriesLimited" and "10.0.0.5" in note.text and "77" in note.text
