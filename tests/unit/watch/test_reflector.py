"""A reflector against a scripted HTTP server on loopback. Waits are virtual: a sleep is written down and returns at once."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pytest
from aiohttp import web

from kproxy.config.config import ClientSettings
from kproxy.model.events import Applied, Event, Removed, Replaced
from kproxy.model.objects import Kind, Service
from kproxy.model.snapshot import Snapshot, fold
from kproxy.watch import client, reflector
from kproxy.watch.client import Api
from kproxy.watch.reflector import RESOURCES, WatchStats, reflect
from tests.support.scripted_api import (
    Answer,
    ScriptedApi,
    added,
    bookmark,
    deleted,
    line,
    listed,
    page,
    service,
    status,
    stream,
)

A, B = service("a", "1"), service("b", "2")
SERVICES = RESOURCES("node-1")[0]
GONE = line("ERROR", {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old resource version"})
NOT_OFFERED = status(
    422, "Invalid", "sendInitialEvents is forbidden for watch unless the WatchList feature gate is enabled"
)


@dataclass
class Seen:
    """What one run of a reflector did."""

    events: list[Event] = field(default_factory=list)
    sleeps: list[float] = field(default_factory=list)
    clock: float = 0.0
    stats: WatchStats = field(default_factory=lambda: WatchStats(Kind.SERVICE))

    def now(self) -> float:
        return self.clock

    async def sleep(self, seconds: float) -> None:
        self.sleeps.append(seconds)
        self.clock += seconds
        await asyncio.sleep(0)

    @property
    def words(self) -> list[str]:
        """The events in short."""
        return [_word(event) for event in self.events]


def _word(event: Event) -> str:
    match event:
        case Replaced():
            return "=" + ",".join(item.key.name.name for item in event.objects)
        case Applied():
            return "+" + event.object.key.name.name
        case Removed():
            return "-" + event.key.name.name
        case _:
            return "?"


def play(
    script: Sequence[Answer], until: Callable[[Seen, ScriptedApi], bool], since: str | None = None
) -> tuple[Seen, ScriptedApi]:
    """Runs a reflector of Services over `script` until the condition holds (five seconds at most)."""
    seen, server = Seen(), ScriptedApi(script)

    async def run() -> None:
        async with server:
            api = Api(ClientSettings(master=server.url), {"HOME": "/nonexistent"})
            work = reflect(
                api,
                SERVICES,
                seen.events.append,
                now=seen.now,
                sleep=seen.sleep,
                random=lambda: 0.5,
                stats=seen.stats,
                since=since,
            )
            task = asyncio.ensure_future(work)
            try:
                async with asyncio.timeout(5):
                    while not until(seen, server):
                        assert not task.done(), task.exception()
                        await asyncio.sleep(0.001)
            finally:
                task.cancel()
                await asyncio.wait([task])
                await api.close()

    asyncio.run(run())
    return seen, server


def until_words(*words: str) -> Callable[[Seen, ScriptedApi], bool]:
    return lambda seen, _: seen.words == list(words)


def until_requests(count: int) -> Callable[[Seen, ScriptedApi], bool]:
    return lambda _, server: len(server.requests) >= count


def test_streaming_list_then_changes_in_the_same_stream() -> None:
    script = [stream(listed("5", A, B), bookmark("6"), deleted(service("a", "7")), added(service("c", "8")))]
    seen, server = play(script, until_words("=a,b", "-a", "+c"))
    asked = server.asked(0)
    assert 300 <= int(asked.pop("timeoutSeconds")) < 600
    assert asked == {
        "watch": "1",
        "allowWatchBookmarks": "true",
        "sendInitialEvents": "true",
        "resourceVersionMatch": "NotOlderThan",
    }
    assert server.requests[0].path == "/api/v1/services"
    stats = seen.stats
    assert (stats.synced, stats.lists, stats.relists, stats.events, stats.bookmarks) == (True, 1, 0, 4, 2)
    assert (stats.version, stats.errors, stats.waits_s, stats.last_heard_s) == ("8", 0, 0.0, 0.0)
    assert seen.sleeps == []


def test_where_streaming_lists_are_not_offered_pages_come_and_arrive_as_one() -> None:
    script = [NOT_OFFERED, page("5", A, more="tok"), page("5", B), stream(added(service("c", "8")))]
    seen, server = play(script, until_words("=a,b", "+c"))
    assert server.asked(1) == {"limit": "500", "resourceVersion": "0"}
    assert server.asked(2) == {"limit": "500", "continue": "tok"}
    assert server.asked(3)["resourceVersion"] == "5"
    assert seen.sleeps == [], "the refusal is an answer, not a failure"


def test_a_restart_asks_for_one_answer_at_least_as_new_as_what_an_earlier_life_saw() -> None:
    seen, server = play([page("812", A, B), stream(added(service("c", "813")))], until_words("=a,b", "+c"), since="800")
    assert server.asked(0) == {"resourceVersion": "800", "resourceVersionMatch": "NotOlderThan"}
    assert server.asked(1)["resourceVersion"] == "812"
    assert (seen.sleeps, seen.stats.lists, seen.stats.errors) == ([], 1, 0)


def test_who_has_seen_nothing_takes_what_the_server_has_at_hand() -> None:
    _, server = play([page("5", A), stream()], until_requests(2), since="0")
    assert server.asked(0) == {"resourceVersion": "0"}
    assert server.asked(1)["resourceVersion"] == "5"


def test_what_comes_after_the_first_list_is_listed_as_ever() -> None:
    script = [page("5", A), stream(GONE, then="close"), stream(listed("9", B))]
    _, server = play(script, until_words("=a", "=b"), since="3")
    assert "sendInitialEvents" in server.asked(2)


@pytest.mark.parametrize("code", [403, 500, 504, 413])
def test_one_answer_that_is_refused_is_followed_by_a_streaming_list(code: int) -> None:
    seen, server = play([status(code), stream(listed("5", A))], until_words("=a"), since="800")
    assert "sendInitialEvents" in server.asked(1), "a version that no server reaches any more is not insisted on"
    assert len(seen.sleeps) == 1


def test_one_answer_that_is_too_large_is_followed_by_a_streaming_list(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reflector, "WHOLE_OCTETS", 100)
    seen, server = play([page("5", A), stream(listed("5", A))], until_words("=a"), since="0")
    assert "sendInitialEvents" in server.asked(1)
    assert "is larger than" in seen.stats.last_error


def test_one_answer_that_never_comes_whole_is_not_asked_for_for_ever() -> None:
    broken = stream(b'{"metadata":{},"items":[', then="abort")
    _, server = play([broken, broken, stream(listed("5", A))], until_words("=a"), since="0")
    assert [dict(server.asked(i)) for i in (0, 1)] == [{"resourceVersion": "0"}] * 2
    assert "sendInitialEvents" in server.asked(2)


def test_before_the_list_is_complete_nothing_is_emitted() -> None:
    script = [stream(added(A), added(B))]
    seen, _ = play(script, lambda seen, _: seen.stats.events == 2)
    assert (seen.words, seen.stats.synced) == ([], False)


@pytest.mark.parametrize("how", ["event", "status"])
def test_fault_04_after_410_one_list_replaces_the_kind_and_the_old_state_serves_until_then(how: str) -> None:
    expired = stream(GONE, then="close") if how == "event" else status(410, "Expired", "too old resource version")
    script = [
        NOT_OFFERED,
        page("5", A, B),
        stream(bookmark("6"), then="abort"),
        expired,
        page("9", B, more="tok"),
        page("9", service("c", "9")),
    ]
    seen, server = play(script, until_words("=a,b", "=b,c"))
    assert server.asked(3)["resourceVersion"] == "6", "resumed from the bookmark"
    assert server.asked(4) == {"limit": "500", "resourceVersion": "6", "resourceVersionMatch": "NotOlderThan"}
    assert (seen.stats.relists, seen.stats.errors) == (1, 2), "the refused streaming list and the broken connection"
    snapshot = fold(Snapshot(), seen.events[:1])
    after = fold(snapshot, seen.events[1:])
    assert sorted(str(name) for name in after.services) == ["shop/b", "shop/c"], "a was deleted while nobody watched"
    (b,) = [name for name in snapshot.services if name.name == "b"]
    assert after.services[b] is snapshot.services[b], "an unchanged object keeps its identity"


def test_a_server_that_always_says_410_is_not_stormed() -> None:
    script = [stream(listed("5", A), GONE, then="close")] * 6
    seen, _ = play(script, until_requests(6))
    assert seen.words[:5] == ["=a"] * 5
    assert seen.sleeps[:4] == pytest.approx([0.3, 0.6, 1.2, 2.4]), "the first list comes at once, the others wait"


def test_a_restored_etcd_moves_back_in_time_once_it_says_so() -> None:
    too_large = status(504, "Timeout", "Too large resource version: 6, current: 3")
    script = [NOT_OFFERED, page("6", A), too_large, too_large, too_large, too_large, page("3", B)]
    _, server = play(script, until_words("=a", "=b"))
    assert [server.asked(i).get("resourceVersion") for i in (2, 3, 4)] == ["6"] * 3
    assert server.asked(5) == {"limit": "500", "resourceVersion": "6", "resourceVersionMatch": "NotOlderThan"}
    assert server.asked(6) == {"limit": "500"}


def test_fault_02_errors_make_one_request_a_step_and_no_list() -> None:
    script = [
        stream(listed("5", A), then="abort"),
        *[status(code) for code in (500, 503, 500, 500, 500, 500, 500, 500, 500, 500)],
    ]
    seen, server = play(script, until_requests(12))
    assert seen.words == ["=a"]
    assert all(server.asked(i)["resourceVersion"] == "5" for i in range(1, 12))
    assert seen.sleeps == pytest.approx([0.15, 0.3, 0.6, 1.2, 2.4, 4.8, 9.6, 19.2, 22.5, 22.5, 22.5])
    assert seen.stats.errors == 11


def test_retries_are_seen_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "kproxy.watch"):
        play(
            [status(500), page("5", A), status(503), status(503), status(503), stream(added(B))],
            until_words("=a", "+b"),
        )
    said = [(record.levelname, record.getMessage()) for record in caplog.records]
    assert [level for level, _ in said] == ["WARNING", "INFO", "INFO", "INFO"]
    assert said[1][1] == "Service: attempt 2 failed alike (next in 0.3 s)"
    assert said[3][1] == "Service: watching again"


def test_fault_02_retry_after_is_honoured() -> None:
    seen, _ = play([status(429, retry_after="7"), status(503, retry_after="99999999")], until_requests(3))
    assert seen.sleeps == [7.0, pytest.approx(0.3)]
    seen, _ = play([status(429, retry_after="99999")], until_requests(2))
    assert seen.sleeps == [300.0], "a server cannot send a node to sleep for a day"


def test_fault_05_an_event_cut_by_a_broken_connection_is_delivered_by_the_next_stream() -> None:
    event = added(service("c", "6"))
    script = [stream(listed("5", A), event[:40], then="abort"), stream(event)]
    _, server = play(script, until_words("=a", "+c"))
    assert server.asked(1)["resourceVersion"] == "5"
    script = [stream(listed("5", A), event[:40], then="close"), stream(event)]
    play(script, until_words("=a", "+c"))


def test_fault_06_an_invalid_line_is_logged_once_and_the_stream_opened_anew(caplog: pytest.LogCaptureFixture) -> None:
    bad = stream(b'{"type":"ADDED","object":{\n', then="stall")
    script = [stream(listed("5", A), b"garbage\n"), bad, bad, stream(listed("9", B))]
    with caplog.at_level(logging.INFO, "kproxy.watch"):
        seen, server = play(script, until_words("=a", "=b"))
    assert seen.stats.malformed == 3
    assert "sendInitialEvents" in server.asked(3), "the third time in a row the version itself is in doubt"
    said = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(said) == len(set(said)) == 2


def test_a_stream_that_ends_at_once_is_followed_by_a_wait() -> None:
    script = [stream(listed("5", A), then="close"), *[stream(bookmark("5"), then="close")] * 4]
    seen, _ = play(script, until_requests(6))
    assert seen.words == ["=a"]
    assert seen.sleeps == pytest.approx([0.15, 0.3, 0.6, 1.2, 2.4])


def test_a_stream_that_lived_is_followed_by_the_next_at_once() -> None:
    async def ends_after_a_while(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(listed("5", A))
        await asyncio.sleep(0.05)
        return response

    def time_passes(seen: Seen, server: ScriptedApi) -> bool:
        seen.clock = 400.0 if seen.stats.synced else 0.0
        return len(server.requests) >= 2

    seen, server = play([ends_after_a_while], time_passes)
    assert server.asked(1)["resourceVersion"] == "5"
    assert seen.sleeps == []


def test_fault_03_silence_is_not_waited_out_and_no_error_either(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "QUIET_S", 0.2)

    def time_passes(seen: Seen, server: ScriptedApi) -> bool:
        seen.clock = 100.0 if seen.stats.synced else 0.0
        return seen.words == ["=a", "+b"]

    seen, server = play([stream(listed("5", A)), stream(added(B))], time_passes)
    assert server.asked(1)["resourceVersion"] == "5"
    assert (seen.stats.errors, seen.sleeps) == (0, [])
    assert seen.stats.last_heard_s == 100.0


def test_a_list_that_stalls_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "ANSWER_S", 0.2)
    seen, _ = play([NOT_OFFERED, stream(b"{"), page("5", A)], until_words("=a"))
    assert "said nothing for too long" in seen.stats.last_error


def test_an_error_event_instead_of_a_streaming_list_means_pages() -> None:
    old_etcd = {"kind": "Status", "code": 500, "reason": "InternalError", "message": "RequestWatchProgress is disabled"}
    seen, server = play([stream(line("ERROR", old_etcd), then="close"), page("5", A)], until_words("=a"))
    assert seen.sleeps == []
    assert "limit" in server.asked(1)


def test_streaming_lists_that_never_end_are_not_waited_for_again() -> None:
    """A server that ignores sendInitialEvents sends ADDED for every object and then only changes."""
    script = [stream(added(A), then="close"), page("5", A)]
    seen, server = play(script, until_words("=a"))
    assert server.asked(1) == {"limit": "500", "resourceVersion": "0"}
    assert "did not come to its end" in seen.stats.last_error


def test_fault_01_ten_minutes_without_server_are_at_most_forty_attempts_of_all_reflectors() -> None:
    async def run() -> tuple[list[WatchStats], float]:
        api = Api(ClientSettings(master="http://127.0.0.1:1"), {"HOME": "/nonexistent"})
        clock = Seen()
        stats = [WatchStats(resource.kind) for resource in RESOURCES("node-1")]
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(
                    reflect(
                        api,
                        resource,
                        clock.events.append,
                        now=clock.now,
                        sleep=clock.sleep,
                        random=lambda: 0.5,
                        stats=stat,
                    )
                )
                for resource, stat in zip(RESOURCES("node-1"), stats, strict=True)
            ]
            while clock.clock < 600:
                await asyncio.sleep(0.001)
            for task in tasks:
                task.cancel()
        await api.close()
        return stats, clock.clock

    stats, _ = asyncio.run(run())
    assert 10 < sum(stat.errors for stat in stats) <= 40
    worst = max(stats, key=lambda stat: stat.errors)
    assert worst.waits_s == 22.5
    assert worst.last_error == (
        "API server http://127.0.0.1:1: cannot be connected to (Connection refused); is it running? "
        "the address comes from --master alone, without credentials; --master or the kubeconfig's server changes it"
    )


def test_resources_are_what_kube_proxy_watches_and_what_dns_needs() -> None:
    assert [(r.kind, r.path, dict(r.params)) for r in RESOURCES("n")] == [
        (Kind.SERVICE, "/api/v1/services", {}),
        (Kind.ENDPOINT_SLICE, "/apis/discovery.k8s.io/v1/endpointslices", {}),
        (Kind.NODE, "/api/v1/nodes", {"fieldSelector": "metadata.name=n"}),
        (Kind.NAMESPACE, "/api/v1/namespaces", {}),
        (Kind.POD, "/api/v1/pods", {"fieldSelector": "spec.nodeName=n"}),
    ]


def test_objects_arrive_decoded() -> None:
    seen, _ = play([stream(listed("5", A))], until_words("=a"))
    (event,) = seen.events
    assert isinstance(event, Replaced)
    assert isinstance(event.objects[0].object, Service)
