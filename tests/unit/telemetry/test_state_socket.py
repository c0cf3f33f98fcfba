"""The state socket: what a controller tells its command line, over a real Unix socket, asked by the client that people use."""

from __future__ import annotations

import asyncio
import socket
import stat
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from kproxy.backends.iptables.compile import compile_ruleset
from kproxy.backends.iptables.ruleset import Ruleset, parse
from kproxy.backends.iptables.settings import IptablesSettings
from kproxy.cli.daemon import Daemon, find
from kproxy.errors import KproxyError, UnsupportedError
from kproxy.model.desired import NodeSettings
from kproxy.model.names import Family
from kproxy.model.objects import Kind, Problem
from kproxy.model.resolve import resolve
from kproxy.model.snapshot import Snapshot
from kproxy.sync.drift import DriftStatus
from kproxy.sync.status import SyncStatus
from kproxy.telemetry.http import Health
from kproxy.telemetry.inspect import StatePages, serve_state
from kproxy.telemetry.plane_iptables import rendered
from kproxy.telemetry.statepage import (
    CHUNK_LINES,
    FORMAT,
    Header,
    StatusPage,
    drift_page,
    furthest_behind,
    health_page,
    snapshot_chunks,
    snapshot_of_bytes,
    socket_path,
    sync_page,
    watch_page,
)
from kproxy.watch.manifests import load, snapshot_of
from kproxy.watch.reflector import WatchStats

CLUSTER = Path(__file__).resolve().parents[2] / "golden" / "scenarios" / "load-balancer-local" / "cluster.yaml"
SETTINGS = NodeSettings(name="node-1", cluster_cidrs=("10.244.0.0/16",))
NOW = 1000.0


def _page(*, writer: bool = True, node: str = "node-1") -> StatusPage:
    status = SyncStatus(writer=writer, syncs=3, services=2, problems=(Problem("Service", "a/b", "odd \x1b[31m"),))
    stats = WatchStats(Kind.SERVICE, synced=True, last_heard_s=NOW - 2)
    return StatusPage(
        version="1", pid=42, node=node, mode="iptables", variant="nft", evidence=["seen"], writer=writer, api_server="https://a",
        uptime_s=5.0, health=health_page(Health(data_path=True, node_eligible=True, ready=True)),
        sync=sync_page(status, NOW - 1, NOW), watches=[watch_page(stats, NOW), watch_page(WatchStats(Kind.NODE), NOW)],
        services=2, endpoint_slices=2, service_ports=2, rules=9, drift=drift_page(DriftStatus(), NOW), dns_enabled=True,
        dns_workers=2, dns_addresses=["10.96.0.10"], problems=list(status.problems),
    )  # fmt: skip


def _header(addresses: list[str]) -> Header:
    return Header(
        format=FORMAT, version="1", settings=SETTINGS, iptables=IptablesSettings(), local_addresses=addresses, variant="nft",
        writer=True, heard_s=0.5, synced_s=1.0,
    )  # fmt: skip


def _snapshot() -> Snapshot:
    return replace(snapshot_of(load([CLUSTER])), local_addresses=frozenset({"192.168.200.21", "127.0.0.1"}))


def _wanted() -> Ruleset:
    return compile_ruleset(resolve(_snapshot(), SETTINGS), IptablesSettings())


def _pages(*, writer: bool = True, node: str = "node-1", wanted: Ruleset | None = None) -> StatePages:
    snapshot = _snapshot()
    return StatePages(
        status=lambda: _page(writer=writer, node=node),
        snapshot=lambda: snapshot_chunks(_header(sorted(snapshot.local_addresses)), snapshot, [Problem("Service", "a/b", "odd")]),
        wanted=lambda family: rendered(wanted.of(family)) if wanted is not None else None,
    )  # fmt: skip


@asynccontextmanager
async def _serving(*served: tuple[StatePages, Path]) -> AsyncIterator[None]:
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(serve_state(pages, path)) for pages, path in served]
        async with asyncio.timeout(10):
            while not all(path.exists() for _, path in served):
                await asyncio.sleep(0.005)
        await asyncio.sleep(0.02)
        yield
        for task in tasks:
            task.cancel()


def test_all_pages_arrive_as_they_were_and_only_root_may_ask(tmp_path: Path) -> None:
    path, wanted = socket_path(tmp_path, "1-2"), _wanted()

    async def scenario() -> None:
        async with _serving((_pages(wanted=wanted), path)):
            daemon, page = await asyncio.to_thread(find, str(tmp_path))
            assert (page, daemon.path) == (_page(), path)
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            known = await asyncio.to_thread(daemon.snapshot)
            snapshot = _snapshot()
            assert replace(known.snapshot, namespaces={}, problems={}) == replace(snapshot, namespaces={}, problems={})
            assert known.header == _header(sorted(snapshot.local_addresses))
            assert known.problems == (Problem("Service", "a/b", "odd"),)
            for family in Family:
                text = await asyncio.to_thread(daemon.wanted, family.value)
                assert parse(text, family).tables == wanted.of(family).tables
            with pytest.raises(KproxyError, match="refuses /wanted"):
                await asyncio.to_thread(daemon.get, "/wanted?family=IPv5")
        assert not path.exists(), "nothing is left behind"

    asyncio.run(scenario())


def test_of_two_instances_the_writer_is_asked_and_a_dead_ones_socket_goes(tmp_path: Path) -> None:
    dead = socket_path(tmp_path, "0-0")
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(dead))
    old, new = socket_path(tmp_path, "1-1"), socket_path(tmp_path, "2-2")

    async def scenario() -> None:
        async with _serving((_pages(writer=False, node="stands-by"), old), (_pages(node="writes"), new)):
            assert not dead.exists()
            _, page = await asyncio.to_thread(find, str(tmp_path))
            assert page.node == "writes"
        async with _serving((_pages(writer=False, node="stands-by"), old)):
            _, page = await asyncio.to_thread(find, str(tmp_path))
            assert page.node == "stands-by"

    asyncio.run(scenario())


def test_nobody_there_is_said_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="no kproxy runs here") as caught:
        find(str(tmp_path))
    assert "kproxy run" in str(caught.value)
    assert caught.value.exit_code == 3


def test_rules_that_were_never_compiled_are_refused_with_a_reason(tmp_path: Path) -> None:
    path = socket_path(tmp_path, "1-2")

    async def scenario() -> None:
        async with _serving((_pages(), path)):
            with pytest.raises(KproxyError, match="no rules have been compiled yet"):
                await asyncio.to_thread(Daemon(path).wanted, "IPv4")

    asyncio.run(scenario())


def test_a_directory_that_takes_no_socket_costs_the_view_and_nothing_else(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    in_the_way = tmp_path / "file"
    in_the_way.write_text("")
    asyncio.run(asyncio.wait_for(serve_state(_pages(), socket_path(in_the_way, "1-2")), 5))
    assert "No state socket" in caplog.text


def test_other_work_goes_on_between_the_pieces_of_a_long_answer(tmp_path: Path) -> None:
    """Turns of the loop are counted, not timed: each piece of an answer leaves room for at least one."""
    turns = 0
    path = socket_path(tmp_path, "1-2")

    def pieces() -> Iterator[bytes]:
        before = turns
        for number in range(50):
            assert turns >= before + number, "the loop had its turn after every piece"
            yield b"x" * 1000

    async def count() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    async def scenario() -> None:
        async with _serving((replace(_pages(), snapshot=pieces), path)), asyncio.TaskGroup() as group:
            counting = group.create_task(count())
            body = await asyncio.to_thread(Daemon(path).get, "/snapshot")
            counting.cancel()
            assert len(body) == 50_000

    asyncio.run(scenario())


def test_pieces_are_bounded() -> None:
    problems = [Problem("Service", f"a/s{number}", "odd") for number in range(3 * CHUNK_LINES + 1)]
    pieces = list(snapshot_chunks(_header([]), Snapshot(), problems))
    assert max(piece.count(b"\n") for piece in pieces) == CHUNK_LINES
    assert snapshot_of_bytes(b"".join(pieces)).problems == tuple(problems)


def test_what_was_cut_off_is_not_taken_for_all_there_is() -> None:
    whole = b"".join(snapshot_chunks(_header([]), _snapshot(), ()))
    lines = whole.splitlines(keepends=True)
    for bad in (b"".join(lines[:-1]), b"".join(lines[:-2] + lines[-1:]), whole[:-5], b"", b"nonsense\nEnd 0\n"):
        with pytest.raises(KproxyError):
            snapshot_of_bytes(bad)
    other = whole.replace(b'"format":%d' % FORMAT, b'"format":99', 1)
    with pytest.raises(KproxyError, match="another version"):
        snapshot_of_bytes(other)


def test_a_reader_that_stops_reading_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kproxy.telemetry.inspect.LONGEST_ANSWER_S", 0.2)
    path = socket_path(tmp_path, "1-2")

    def endless() -> Iterator[bytes]:
        while True:
            yield b"x" * 65_536

    async def scenario() -> None:
        async with _serving((replace(_pages(), snapshot=endless), path)):
            idlers = [socket.socket(socket.AF_UNIX) for _ in range(3)]
            for idler in idlers:
                idler.connect(str(path))
                idler.sendall(b"GET /snapshot HTTP/1.1\r\nHost: x\r\n\r\n")
            await asyncio.sleep(0.5)
            page = await asyncio.to_thread(Daemon(path).status)
            assert page.node == "node-1", "short answers do not wait for long ones"
            with pytest.raises(KproxyError, match="cut off"):
                await asyncio.to_thread(Daemon(path).get, "/snapshot")
            for idler in idlers:
                idler.close()

    asyncio.run(scenario())


def test_a_daemon_that_hangs_is_said_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kproxy.cli.daemon.ANSWER_S", 0.2)
    path = socket_path(tmp_path, "1-2")
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(path))
        silent.listen()
        with pytest.raises(UnsupportedError, match="does not answer"):
            find(str(tmp_path))


def test_the_age_of_what_is_known_is_that_of_the_oldest_watch() -> None:
    fresh, old = WatchStats(Kind.SERVICE, last_heard_s=9.0), WatchStats(Kind.NODE, last_heard_s=4.0)
    assert furthest_behind([fresh, old], 10.0) == 6.0
    assert furthest_behind([fresh, WatchStats(Kind.NODE)], 10.0) is None
    assert watch_page(WatchStats(Kind.NODE), 10.0).age_s is None


def test_fault_17_ages_do_not_follow_a_clock_that_is_set() -> None:
    """The page knows monotonic times only: a wall clock an hour ahead makes no sync look old."""
    page = sync_page(SyncStatus(last_success=time.time() + 3600, last_queued=time.time() - 3600), NOW - 1.5, NOW)
    assert page.age_s == 1.5
