"""Mode userspace under what the world does to it: real workers, the backend's rules and the sync loop; events go in, packets are watched.

clients ─── veth ─── node (rules, relay workers) ─── veth ─── pods
"""

from __future__ import annotations

import asyncio
import contextlib
import resource
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from kproxy.model.events import AddressesChanged
from kproxy.model.resolve import resolve
from kproxy.sync.loop import SyncLoop
from kproxy.sync.pacer import Pacer
from tests.packet.udp_ground import FOUR, PORT, SIX, Family, Ground, Pod, asked, grounded, scene, until
from tests.support.addressing import twin
from tests.support.builders import Built, ep, port, replaced, slice_, svc
from tests.support.flows import LOCAL_ADDRESSES, SETTINGS, TESTNODE, step
from tests.support.relaying import Relaying

_PODS, _ENDS, _WEB = FOUR.pods, 8053, 8080
_SERVICE = svc(FOUR.asked, ports=[port(PORT, "dns", "UDP"), port(80, "web")])
_FILES = 400
_EVERY_S = 0.005
_ONE_SECOND = 200  # numbers of `_Asker`


@pytest.fixture(params=[FOUR, SIX], ids=lambda family: family.name)
def ground(request: pytest.FixtureRequest) -> Iterator[Ground]:
    with grounded(request.param, captured=False) as made:
        yield made


def _said(family: Family, *pods: int) -> tuple[Built, ...]:
    """What the API says: the Service, with these pods behind it."""
    ports = [("dns", _ENDS, "UDP"), ("web", _WEB, "TCP")]
    objects = (_SERVICE, slice_(*(ep(_PODS[pod]) for pod in pods), ports=ports))
    return twin(objects) if family is SIX else objects


class _Controller:
    """The sync loop over the backend, where that lives."""

    def __init__(self, relaying: Relaying, family: Family) -> None:
        self._relaying, self._family = relaying, family
        self._loop = SyncLoop(relaying.backend, lambda _: SETTINGS, Pacer(min_period_s=1.0), self._nothing)
        relaying.call(self._start())

    async def _start(self) -> None:
        self._tasks = [asyncio.ensure_future(work) for work in (self._loop.keep_snapshot(), self._loop.keep_rules())]

    async def _nothing(self, _: object) -> None:
        pass

    async def _emit(self, objects: tuple[Built, ...]) -> None:
        for event in (*replaced((*objects, TESTNODE)), AddressesChanged(LOCAL_ADDRESSES)):
            self._loop.emit(event)

    async def _stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def now(self, *pods: int) -> None:
        """The API says so from now on."""
        self._relaying.call(self._emit(_said(self._family, *pods)))

    def now_nothing(self) -> None:
        """The Service is deleted."""
        self._relaying.call(self._emit(()))

    async def synced(self) -> None:
        """Waits until all that was said is in the kernel."""
        await until(lambda: self._loop.status.syncs > 0)

    def stop(self) -> None:
        self._relaying.call(self._stop())


@contextlib.contextmanager
def _controlled(ground: Ground, folder: Path) -> Iterator[_Controller]:
    with Relaying(ground.node, folder) as relaying:
        controller = _Controller(relaying, ground.family)
        try:
            yield controller
        finally:
            controller.stop()


class _Asker:
    """A client that sends a number every 5 ms from one port, whatever happens. refused: ICMP errors; answered: numbers that came back."""

    def __init__(self, ground: Ground) -> None:
        self.sock = ground.client()
        address, number = self.sock.getsockname()[:2]
        self.name = f"[{address}]:{number}" if ":" in address else f"{address}:{number}"
        self.sent = self.refused = 0
        self.answered: dict[int, int] = {}  # number → pod

    async def keep(self) -> None:
        while True:
            self.sent += 1
            for act in (lambda: self.sock.send(b"%d" % self.sent), self._hear):
                try:
                    act()
                except ConnectionRefusedError:  # tells of one before
                    self.refused += 1
            await asyncio.sleep(_EVERY_S)

    def _hear(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                pod, number = map(int, self.sock.recv(100).split())
                self.answered[number] = pod


@contextlib.asynccontextmanager
async def _asking(ground: Ground) -> AsyncIterator[_Asker]:
    asker = _Asker(ground)
    task = asyncio.ensure_future(asker.keep())
    try:
        yield asker
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        asker.sock.close()


def test_fault_25_a_replaced_udp_endpoint_costs_a_second_at_most(ground: Ground, tmp_path: Path) -> None:
    """Constant traffic from one port; the endpoint falls silent as the API names another: few numbers stay without an answer."""

    async def play(controller: _Controller) -> None:
        with Pod(ground, 0) as old, Pod(ground, 1):
            controller.now(0)
            await controller.synced()
            async with _asking(ground) as asker:
                await until(lambda: 0 in asker.answered.values())
                await until(lambda: len(asker.answered) > 20)
                old.answers = False
                last = asker.sent
                controller.now(1)
                await until(lambda: 1 in asker.answered.values())
                goes_on = asker.sent + 20
                await until(lambda: goes_on in asker.answered)
                lost = [number for number in range(last, goes_on) if number not in asker.answered]
                assert len(lost) < _ONE_SECOND
                assert {asker.answered[number] for number in range(max(lost, default=last) + 1, goes_on)} == {1}

    with _controlled(ground, tmp_path) as controller:
        scene(lambda: play(controller))


def test_fault_24_a_sender_from_one_port_follows_zero_endpoints_and_back(ground: Ground, tmp_path: Path) -> None:
    """Without an endpoint it is refused, although its session was open; with one again its datagrams arrive; so with a Service deleted."""

    async def play(controller: _Controller) -> None:
        with Pod(ground, 0):
            controller.now(0)
            async with _asking(ground) as asker:
                for gone, refused in ((controller.now, 5), (controller.now_nothing, 0)):
                    await until(lambda: len(asker.answered) > 20)
                    asker.refused = 0
                    gone()
                    await until(lambda: asker.sent - max(asker.answered) > 20)  # nobody answers any more
                    assert asker.refused >= refused
                    asker.answered.clear()
                    controller.now(0)
                await until(lambda: len(asker.answered) > 20)

    with _controlled(ground, tmp_path) as controller:
        scene(lambda: play(controller))


def test_a_worker_that_is_killed_costs_its_own_sessions_a_moment(ground: Ground, tmp_path: Path) -> None:
    """Sixteen clients on two workers: those of the dead one are served by the other within a second, and nobody else loses a datagram."""

    async def play(relaying: Relaying) -> None:
        with Pod(ground, 0):
            async with contextlib.AsyncExitStack() as rest:
                askers = [await rest.enter_async_context(_asking(ground)) for _ in range(16)]
                await until(lambda: all(len(asker.answered) > 30 for asker in askers))
                flows = {flow.client: flow.worker for flow in relaying.call(relaying.publisher.flows(100))}
                victim = relaying.workers.pop(0)
                mine = [asker for asker in askers if flows[asker.name] == victim.pid]
                others = [asker for asker in askers if asker not in mine]
                assert mine and others, "SO_REUSEPORT spreads sixteen clients over two workers"
                before = [asker.sent for asker in askers]
                victim.kill()
                victim.communicate()
                await until(lambda: all(asker.sent > old + 30 for asker, old in zip(askers, before, strict=True)))
                goes_on = [asker.sent for asker in askers]
                await until(lambda: all(now in asker.answered for asker, now in zip(askers, goes_on, strict=True)))
                lost = [
                    sum(number not in asker.answered for number in range(old, now))
                    for asker, old, now in zip(askers, before, goes_on, strict=True)
                ]
                assert not any(lost[askers.index(asker)] for asker in others)
                assert all(lost[askers.index(asker)] < _ONE_SECOND for asker in mine)

    with Relaying(ground.node, tmp_path) as relaying:
        relaying.bring(resolve(step(_said(ground.family, 0)).snapshot(), SETTINGS))
        scene(lambda: play(relaying))


# 19: descriptors


@contextlib.contextmanager
def _limited(ground: Ground, folder: Path) -> Iterator[Relaying]:
    """One worker that may have _FILES descriptors; without CAP_SYS_RESOURCE it cannot help itself to more."""
    prefix = ["setpriv", "--bounding-set=-sys_resource", "prlimit", f"--nofile={_FILES}:{_FILES}"]
    with Relaying(ground.node, folder, workers=1, prefix=prefix) as relaying:
        relaying.bring(resolve(step(_said(ground.family, 0)).snapshot(), SETTINGS))
        yield relaying


class _Web:
    """A TCP endpoint that sends back what comes."""

    def __init__(self, ground: Ground) -> None:
        with ground.pods.entered():
            ear = socket.create_server((ground.family.pods[0], _WEB), family=ground.family.kind, backlog=1024)
        ear.setblocking(False)
        self._loop = asyncio.get_running_loop()
        self._socks = [ear]
        self._loop.add_reader(ear, self._accept, ear)

    def _accept(self, ear: socket.socket) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                sock, _ = ear.accept()
                sock.setblocking(False)
                self._socks.append(sock)
                self._loop.add_reader(sock, self._echo, sock)

    def _echo(self, sock: socket.socket) -> None:
        try:
            data = sock.recv(100)
        except ConnectionError:
            data = b""
        if data:
            sock.send(data)
        else:
            self._loop.remove_reader(sock)
            self._socks.remove(sock)
            sock.close()

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        for sock in self._socks:
            self._loop.remove_reader(sock)
            sock.close()


class _Caller:
    """A client's TCP connection."""

    def __init__(self, ground: Ground) -> None:
        with ground.clients.entered():
            self.sock = socket.socket(ground.family.kind, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        self._to = (ground.family.asked, 80)

    async def works(self) -> bool:
        """Whether octets come back; False when it is refused or reset. Silence is a failure of the test."""
        running = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(30):
                if self._to is not None:
                    await running.sock_connect(self.sock, self._to)
                    self._to = None
                await running.sock_sendall(self.sock, b"?")
                return await running.sock_recv(self.sock, 10) == b"?"
        except (ConnectionError, BrokenPipeError):
            return False


async def _fill(ground: Ground, rest: contextlib.ExitStack, refused: int) -> list[_Caller]:
    """Opens connections until so many in a row were refused; those that are open."""
    found: list[_Caller] = []
    in_a_row = 0
    while in_a_row < refused:
        caller = _Caller(ground)
        rest.callback(caller.sock.close)
        if await caller.works():
            found.append(caller)
            in_a_row = 0
        else:
            in_a_row += 1
        assert len(found) < _FILES
    return found


def _descriptors(pid: int) -> list[int]:
    return [int(path.name) for path in Path(f"/proc/{pid}/fd").iterdir()]


async def _all_work(callers: list[_Caller]) -> bool:
    return all(await asyncio.gather(*(caller.works() for caller in callers)))


async def _udp_works(ground: Ground, early: socket.socket) -> None:
    """An open session, and new clients one after the other: not one datagram is lost."""
    for number in range(5):
        assert await asked(early, b"open %d" % number) == b"0 open %d" % number
        with ground.client() as client:
            assert await asked(client, b"new %d" % number) == b"0 new %d" % number


def test_fault_19_descriptors_run_out_for_new_connections_alone(ground: Ground, tmp_path: Path) -> None:
    """A worker takes on what 95 % of its descriptors are enough for: more connections are reset at once, the open ones and UDP go on.

    So they do when somebody takes descriptors away from it and there are none left at all. Afterwards all is as before.
    """

    async def play(relaying: Relaying) -> None:
        pid = relaying.workers[0].pid
        with _Web(ground), Pod(ground, 0), ground.client() as early, contextlib.ExitStack() as rest:
            assert await asked(early) == b"0 ?"
            callers = await _fill(ground, rest, refused=5)
            assert len(callers) > 50 and len(_descriptors(pid)) <= 0.95 * _FILES
            await _udp_works(ground, early)
            assert await _all_work(callers)

            # None left at all: no number above those in use, and sessions take what ten connections leave.
            used = _descriptors(pid)
            limit = max(used) + 1
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (limit, _FILES))
            for caller in callers[:10]:
                caller.sock.close()
            callers = callers[10:]
            await until(lambda: len(_descriptors(pid)) <= len(used) - 20)
            for _ in range(5):
                await asked(rest.enter_context(ground.client()))
            more = await _fill(ground, rest, refused=5)
            assert len(more) < 10 and len(_descriptors(pid)) >= limit - 2
            await _udp_works(ground, early)
            assert await _all_work([*callers, *more])

            resource.prlimit(pid, resource.RLIMIT_NOFILE, (_FILES, _FILES))
            last = _Caller(ground)
            rest.callback(last.sock.close)
            assert await last.works()
            await _udp_works(ground, early)
            sums = relaying.publisher.counters
            await until(lambda: sums().worker.get("shed", 0) >= 10)

    with _limited(ground, tmp_path) as relaying:
        scene(lambda: play(relaying))
