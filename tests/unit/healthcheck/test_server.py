"""Health check node ports over real sockets on loopback: they open, follow the counts, move, close, and survive a port that is taken."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import aiohttp
import pytest

from kproxy.backends.base import ApplyReport
from kproxy.errors import ApplyError
from kproxy.healthcheck import server
from kproxy.healthcheck.server import HealthChecks
from kproxy.model.desired import DesiredState, FamilyState, NodePortAddresses, Route, ServicePort
from kproxy.model.names import Family, NamespacedName, Protocol, ServicePortName
from kproxy.model.snapshot import Snapshot
from kproxy.sync.loop import SyncOutcome

WEB = NamespacedName("shop", "web")
LOOPBACK = NodePortAddresses(everywhere=False, addresses=("127.0.0.1",))


def _outcome(port: int | None, ready: int = 0, error: ApplyError | None = None) -> SyncOutcome:
    made = ServicePort(
        name=ServicePortName(WEB, "a", Protocol.TCP),
        family=Family.IPV4,
        port=80,
        virtual_ips=(),
        node_port=None,
        internal=Route(),
        external=Route(),
        short_circuit=Route(),
        reachable=(),
        health_check_node_port=port,
        local_ready=ready,
    )
    state = FamilyState(family=Family.IPV4, service_ports={made.name: made}, node_port_addresses=LOOPBACK)
    return SyncOutcome(
        started=0.0, ended=0.0, snapshot=Snapshot(), before=DesiredState(), after=DesiredState(ipv4=state), full=False,
        report=ApplyReport(), error=error,
    )  # fmt: skip


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@asynccontextmanager
async def _running(checks: HealthChecks) -> AsyncIterator[aiohttp.ClientSession]:
    async with asyncio.timeout(20), asyncio.TaskGroup() as tasks, aiohttp.ClientSession() as session:
        keeping = tasks.create_task(checks.keep())
        yield session
        keeping.cancel()


async def _until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.005)


def test_it_opens_follows_the_count_and_the_health_of_the_proxy_moves_and_closes() -> None:
    async def scenario() -> None:
        healthy = True
        checks = HealthChecks(lambda: healthy, lambda *_: None)
        async with _running(checks) as session:
            first, second = _free_port(), _free_port()
            checks.observe(_outcome(first, ready=2))
            await _until(lambda: checks.listening == 1)

            async def ask(port: int, path: str = "/any/path?x=1") -> tuple[int, str]:
                async with session.get(f"http://127.0.0.1:{port}{path}") as answer:
                    return answer.status, answer.headers["X-Load-Balancing-Endpoint-Weight"]

            assert await ask(first) == (200, "2")
            checks.observe(_outcome(first, ready=0))  # no wait: the count holds at once
            assert await ask(first, "/") == (503, "0")
            checks.observe(_outcome(first, ready=1))
            healthy = False
            assert await ask(first) == (503, "1")
            healthy = True
            checks.observe(_outcome(second, ready=3, error=ApplyError("no", retryable=True)))  # nothing was written
            assert await ask(first) == (200, "1")
            checks.observe(_outcome(second, ready=3))
            await _until(lambda: _refused(first))
            assert await ask(second) == (200, "3")
            checks.observe(_outcome(None))
            await _until(lambda: checks.listening == 0)
            assert _refused(second)

    asyncio.run(scenario())


def test_a_port_that_is_taken_is_told_once_and_taken_when_it_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "_RETRY_S", 0.02)

    async def scenario() -> None:
        told: list[tuple[NamespacedName, str]] = []
        checks = HealthChecks(lambda: True, lambda service, why: told.append((service, why)))
        async with _running(checks) as session:
            with socket.create_server(("127.0.0.1", 0)) as taken:
                port = taken.getsockname()[1]
                checks.observe(_outcome(port, ready=1))
                await _until(lambda: bool(told))
                await asyncio.sleep(0.1)  # several tries
                assert told == [(WEB, f"on port {port} (IPv4): Address already in use")]
            await _until(lambda: checks.listening == 1)
            async with session.get(f"http://127.0.0.1:{port}/") as answer:
                assert answer.status == 200

    asyncio.run(scenario())


def _refused(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0
