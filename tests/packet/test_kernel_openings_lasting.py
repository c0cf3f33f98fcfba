"""Who opens a client's connections while processes end and come: real workers without capabilities, the controller's part, and a client
that asks again and again.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kproxy.ebpf import calls
from kproxy.model.resolve import resolve
from kproxy.relay import kernel_maps as layout
from kproxy.relay import kernel_rings as rings
from kproxy.relay.kernel_feed import LEASE_S
from kproxy.relay.kernel_openings import HOLD_S
from tests.packet.udp_ground import FOUR, PORT, SIX, Family, Ground, grounded
from tests.support.addressing import twin
from tests.support.builders import Built, ep, port, slice_, svc
from tests.support.flows import SETTINGS, step
from tests.support.relaying import Relaying

_ENDS = 8053
_LIMIT_S = 30.0


@pytest.fixture(params=[FOUR, SIX], ids=lambda family: family.name)
def ground(request: pytest.FixtureRequest) -> Iterator[Ground]:
    with grounded(request.param, captured=False) as made, _answering(made):
        yield made


@contextlib.contextmanager
def _answering(ground: Ground) -> Iterator[None]:
    """A pod that answers each connection once, and ends it; one that says `stay` it keeps, and sends back what comes."""
    with ground.pods.entered():
        ear = socket.create_server((ground.family.pods[0], _ENDS), family=ground.family.kind, backlog=128)
    over = threading.Event()
    ear.settimeout(0.1)
    kept: list[threading.Thread] = []

    def serve(sock: socket.socket) -> None:
        with sock, contextlib.suppress(OSError):
            sock.settimeout(_LIMIT_S)
            while words := sock.recv(1000):
                sock.sendall(words)
                if not words.startswith(b"stay"):
                    return

    def accept() -> None:
        while not over.is_set():
            with contextlib.suppress(TimeoutError):
                kept.append(threading.Thread(target=serve, args=(ear.accept()[0],)))
                kept[-1].start()

    thread = threading.Thread(target=accept)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        ear.close()
        for one in kept:
            one.join()


def _said(family: Family) -> tuple[Built, ...]:
    objects = svc(FOUR.asked, ports=[port(PORT, "web")]), slice_(ep(FOUR.pods[0]), ports=[("web", _ENDS, "TCP")])
    return twin(objects) if family is SIX else objects


@contextlib.contextmanager
def _relaying(ground: Ground, folder: Path, workers: int = 1) -> Iterator[Relaying]:
    folder.mkdir(exist_ok=True)
    with Relaying(ground.node, folder, workers=workers) as made:
        made.bring(resolve(step(_said(ground.family)).snapshot(), SETTINGS))
        yield made


class Rings:
    """The maps of one controller, which it need not survive."""

    def __init__(self, relaying: Relaying) -> None:
        assert relaying.kernel is not None
        kernel = relaying.kernel
        relaying.wait(lambda: kernel.maps is not None and kernel.links > 0, "the program is on no link")
        assert kernel.maps is not None
        self._descriptors = [os.dup(one) for one in (kernel.maps.repeats, kernel.maps.rings, kernel.maps.flows)]
        self._repeats = calls.Map(self._descriptors[0], layout.KEY, rings.NUMBER)
        self._rings = calls.Map(self._descriptors[1], 4, rings.RING)
        self._flows = calls.Map(self._descriptors[2], layout.KEY, layout.VALUE)

    def numbers(self) -> list[int]:
        """Of the rings that clients go by."""
        return [struct.unpack("=I", value)[0] for _, value in self._repeats.entries()]

    def opened(self) -> int:
        """Connections, by all rings that there are."""
        found = (self._rings.get(struct.pack("=I", number)) for number in self.numbers())
        return sum(struct.unpack_from("=Q", one, rings.ENDS_AT + rings.OPENED_AT)[0] for one in found if one)

    def flows(self) -> int:
        """Entries."""
        return len([*self._flows.entries()])

    def __enter__(self) -> Rings:
        return self

    def __exit__(self, *_: object) -> None:
        for descriptor in self._descriptors:
            os.close(descriptor)


class Client:
    """Asks, a connection for each question."""

    def __init__(self, ground: Ground) -> None:
        self._ground = ground

    def connected(self) -> socket.socket:
        with self._ground.clients.entered():
            sock = socket.socket(self._ground.family.kind, socket.SOCK_STREAM)
        sock.settimeout(5)
        try:
            sock.connect((self._ground.family.asked, PORT))
        except BaseException:
            sock.close()
            raise
        return sock

    def asks(self) -> None:
        """Raises OSError where nobody answers."""
        with self.connected() as sock:
            sock.sendall(b"once")
            assert sock.recv(100) == b"once" and sock.recv(100) == b""

    def until(self, holds: Callable[[], bool], what: str, wait_s: float = _LIMIT_S) -> None:
        """Asks until it holds; each question is answered."""
        deadline = time.monotonic() + wait_s
        while not holds():
            assert time.monotonic() < deadline, what
            for _ in range(20):
                self.asks()
                time.sleep(0.002)

    def goes_by(self, found: Rings) -> bool:
        """Whether connections are opened by these rings now."""
        before = found.opened()
        for _ in range(10):
            self.asks()
        return found.opened() >= before + 5


def _kill(relaying: Relaying, number: int = 0) -> None:
    worker = relaying.workers.pop(number)
    worker.kill()
    worker.communicate(timeout=_LIMIT_S)


def test_a_worker_that_is_killed_takes_its_rings_and_their_connections_along(ground: Ground, tmp_path: Path) -> None:
    client = Client(ground)
    with _relaying(ground, tmp_path) as relaying, Rings(relaying) as found:
        client.until(lambda: client.goes_by(found), "no ring")
        with client.connected() as stays:
            stays.sendall(b"stay")
            assert stays.recv(100) == b"stay" and found.flows() >= 2
            _kill(relaying)
            with pytest.raises(ConnectionResetError):
                stays.recv(100)
            relaying.wait(lambda: not found.numbers() and not found.flows(), "its rings are still there")
            relaying.start_workers()
            assert relaying.applied.table is not None
            relaying.call(relaying.publisher.publish(relaying.applied.table))
        client.until(lambda: client.goes_by(found), "no ring of the new worker's")


def test_no_connection_that_begins_by_a_ring_is_lost_with_its_worker(ground: Ground, tmp_path: Path) -> None:
    """Until it is known that the worker has gone they begin; then they have time for their request."""
    client = Client(ground)
    with _relaying(ground, tmp_path, workers=2) as relaying, Rings(relaying) as found:
        for _ in range(3):
            client.until(lambda: client.goes_by(found), "no ring")
            (number,) = found.numbers()
            opened = found.opened()
            with contextlib.ExitStack() as held:
                begun = [held.enter_context(client.connected()) for _ in range(8)]
                by_ring = found.opened() - opened
                assert by_ring > 0
                pid = next(flow.worker for flow in relaying.call(relaying.publisher.flows(100)) if flow.in_kernel)
                os.kill(pid, signal.SIGKILL)
                time.sleep(0.3)  # the controller knows
                lost = 0
                for sock in begun:
                    try:
                        sock.sendall(b"once")
                        assert sock.recv(100) == b"once" and sock.recv(100) == b""
                    except OSError:
                        lost += 1
                assert lost <= len(begun) - by_ring, (
                    "what came the whole way was in the worker's hands, and nothing else"
                )
            _kill(relaying, next(n for n, worker in enumerate(relaying.workers) if worker.pid == pid))
            relaying.wait(lambda number=number: number not in found.numbers(), "its ring is still there")  # type: ignore[misc]
            relaying.start_workers()
            assert relaying.applied.table is not None
            relaying.call(relaying.publisher.publish(relaying.applied.table))


def test_a_worker_that_hangs_has_nothing_opened(ground: Ground, tmp_path: Path) -> None:
    client = Client(ground)
    with _relaying(ground, tmp_path) as relaying, Rings(relaying) as found:
        client.until(lambda: client.goes_by(found), "no ring")
        pid = relaying.workers[0].pid
        os.kill(pid, signal.SIGSTOP)
        try:
            time.sleep(max(HOLD_S, LEASE_S) + 0.2)
            before = found.opened()
            answers = []
            asking = threading.Thread(target=lambda: answers.append(client.asks()))
            asking.start()
            time.sleep(0.5)
            assert found.opened() == before and not answers, "it waits for the worker"
        finally:
            os.kill(pid, signal.SIGCONT)
        asking.join(_LIMIT_S)
        assert answers
        client.until(lambda: client.goes_by(found), "no ring again")


def test_of_two_workers_one_has_the_ring_of_a_client(ground: Ground, tmp_path: Path) -> None:
    client = Client(ground)
    with _relaying(ground, tmp_path, workers=2) as relaying, Rings(relaying) as found:
        client.until(lambda: client.goes_by(found), "no ring")
        for _ in range(200):
            client.asks()
        assert len(found.numbers()) == 1
        (number,) = found.numbers()
        _kill(relaying)
        client.until(lambda: client.goes_by(found), "no ring of the other worker's", 40)
        assert len(found.numbers()) == 1 and number // rings.PER_WORKER in (0, 1)


def test_rings_and_connections_outlive_the_controller_and_go_over_to_the_next(ground: Ground, tmp_path: Path) -> None:
    client = Client(ground)
    with _relaying(ground, tmp_path) as relaying, Rings(relaying) as found:
        client.until(lambda: client.goes_by(found), "no ring")
        with client.connected() as stays:
            relaying.call(relaying._close_publisher())
            deadline = time.monotonic() + HOLD_S + LEASE_S
            while time.monotonic() < deadline:
                assert client.goes_by(found)
            relaying.restart_controller()
            with Rings(relaying) as later:
                # What is open is carried to its end by the old maps; they open nothing more from the moment that there are others.
                relaying.wait(lambda: not _opens(client, found), "the old rings go on")
                stays.sendall(b"stay")
                assert stays.recv(100) == b"stay"
                assert not later.numbers()
        with Rings(relaying) as later:
            client.until(lambda: client.goes_by(later), "no ring of the new controller's")


def _opens(client: Client, found: Rings) -> bool:
    before = found.opened()
    for _ in range(20):
        client.asks()
    return found.opened() != before


def test_an_upgrade_leaves_new_connections_to_the_new_worker(ground: Ground, tmp_path: Path) -> None:
    """The old one has been told to leave: what it has goes on, and its rings open nothing more."""
    client = Client(ground)
    with _relaying(ground, tmp_path) as relaying, Rings(relaying) as found:
        client.until(lambda: client.goes_by(found), "no ring")
        with client.connected() as stays:
            os.kill(relaying.workers[0].pid, signal.SIGUSR2)
            relaying.wait(lambda: not _opens(client, found), "its rings go on")
            stays.sendall(b"stay")
            assert stays.recv(100) == b"stay"
            os.kill(relaying.workers[0].pid, signal.SIGTERM)
            time.sleep(1.5)
            assert relaying.workers[0].poll() is None, "it waits for the connection that is open"
            stays.sendall(b"stay")
            assert stays.recv(100) == b"stay"
        relaying.wait(lambda: relaying.workers[0].poll() is not None, "nothing is open, and it has not ended")
        relaying.workers[0].communicate(timeout=_LIMIT_S)
        relaying.workers.clear()
        relaying.count = 0
