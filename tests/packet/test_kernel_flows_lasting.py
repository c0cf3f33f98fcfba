"""What the kernel carries while processes end and come: real workers without capabilities, the controller's part, a client that goes on.

clients ─── veth ─── node (rules, relay workers, the program) ─── veth ─── pods
"""

from __future__ import annotations

import contextlib
import mmap
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kproxy.ebpf import calls
from kproxy.model.resolve import resolve
from kproxy.relay import kernel_maps as layout
from kproxy.relay.kernel_feed import LEASE_S
from tests.packet.udp_ground import FOUR, PORT, SIX, Family, Ground, grounded
from tests.support.addressing import twin
from tests.support.builders import Built, ep, port, slice_, svc
from tests.support.flows import SETTINGS, step
from tests.support.netns import Namespace, ip, link
from tests.support.relaying import Relaying

_ENDS = 8053
_LIMIT_S = 30.0


@pytest.fixture(params=[FOUR, SIX], ids=lambda family: family.name)
def ground(request: pytest.FixtureRequest) -> Iterator[Ground]:
    with grounded(request.param, captured=False) as made, _answering(made):
        yield made


@contextlib.contextmanager
def _answering(ground: Ground) -> Iterator[None]:
    """A pod that sends back what comes."""
    with ground.pods.entered():
        sock = socket.socket(ground.family.kind, socket.SOCK_DGRAM)
    sock.bind((ground.family.pods[0], _ENDS))
    sock.settimeout(0.1)
    over = threading.Event()

    def answer() -> None:
        while not over.is_set():
            with contextlib.suppress(TimeoutError):
                sock.sendto(*sock.recvfrom(65536))

    thread = threading.Thread(target=answer)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        sock.close()


def _said(family: Family) -> tuple[Built, ...]:
    objects = (
        svc(FOUR.asked, ports=[port(PORT, "dns", "UDP")]),
        slice_(ep(FOUR.pods[0]), ports=[("dns", _ENDS, "UDP")]),
    )
    return twin(objects) if family is SIX else objects


@contextlib.contextmanager
def _relaying(ground: Ground, folder: Path, **rest: int) -> Iterator[Relaying]:
    folder.mkdir(exist_ok=True)
    with Relaying(ground.node, folder, **rest) as made:  # type: ignore[arg-type]
        made.bring(resolve(step(_said(ground.family)).snapshot(), SETTINGS))
        yield made


class Carried:
    """The maps of one controller, which it need not survive."""

    def __init__(self, relaying: Relaying) -> None:
        assert relaying.kernel is not None
        kernel = relaying.kernel
        relaying.wait(lambda: kernel.maps is not None and kernel.links > 0, "the program is on no link")
        assert kernel.maps is not None
        self._descriptors = [os.dup(kernel.maps.flows), os.dup(kernel.maps.pairs)]
        self._flows = calls.Map(self._descriptors[0], layout.KEY, layout.VALUE)
        size = layout.PAIRS * layout.PAIR
        self._pairs = mmap.mmap(self._descriptors[1], -(-size // mmap.PAGESIZE) * mmap.PAGESIZE, prot=mmap.PROT_READ)

    def places(self) -> set[int]:
        return {struct.unpack_from("=I", value)[0] for _, value in self._flows.entries()}

    def slots(self) -> set[int]:
        return {place // layout.PER_SLOT for place in self.places()}

    def passed(self) -> int:
        """Datagrams, of both sides of all that is there."""
        at = (place * layout.PAIR + layout.PACKETS_AT for place in self.places())
        return sum(sum(struct.unpack_from("=QQ", self._pairs, one)) for one in at)

    def __enter__(self) -> Carried:
        return self

    def __exit__(self, *_: object) -> None:
        self._pairs.close()
        for descriptor in self._descriptors:
            os.close(descriptor)


class Client:
    """Asks and counts what is not answered."""

    def __init__(self, ground: Ground, address: str = "") -> None:
        self.sock = ground.client(address)
        self.sock.setblocking(True)
        self.sock.settimeout(0.1)

    def asks(self) -> bool:
        words = os.urandom(20)
        try:
            self.sock.send(words)
            while self.sock.recv(100) != words:
                pass
        except (TimeoutError, ConnectionError):
            return False
        return True

    def until(self, holds: Callable[[], bool], what: str, wait_s: float = _LIMIT_S) -> None:
        """Asks, a hundred times a second, until it holds."""
        deadline = time.monotonic() + wait_s
        while not holds():
            assert time.monotonic() < deadline, what
            self.asks()
            time.sleep(0.01)

    def is_carried(self, carried: Carried) -> bool:
        """Whether what is asked now passes without a worker."""
        before = carried.passed()
        return all(self.asks() for _ in range(3)) and carried.passed() >= before + 6

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()


def _kill(relaying: Relaying, pid: int) -> None:
    (worker,) = (one for one in relaying.workers if one.pid == pid)
    relaying.workers.remove(worker)
    worker.send_signal(signal.SIGCONT)
    worker.kill()
    worker.communicate(timeout=_LIMIT_S)


def _servant(relaying: Relaying) -> int:
    """The worker that has the only session."""
    (flow,) = relaying.call(relaying.publisher.flows(10))
    return flow.worker


def test_a_worker_that_is_killed_takes_its_entries_along(ground: Ground, tmp_path: Path) -> None:
    """Another one serves the client, and carries it by entries of its own; a third gets the free slot."""
    with _relaying(ground, tmp_path) as relaying, Carried(relaying) as carried, Client(ground) as client:
        client.until(lambda: client.is_carried(carried), "it is not carried")
        (slot,) = carried.slots()
        relaying.count = 1
        _kill(relaying, _servant(relaying))
        relaying.wait(lambda: not carried.slots() & {slot}, "its entries are still there")
        client.until(client.asks, "nobody answers", 3.0)
        client.until(lambda: client.is_carried(carried), "it is not carried again")
        assert carried.slots().isdisjoint({slot})
        relaying.count = 2
        relaying.start_workers()
        assert relaying.applied.table is not None
        relaying.call(relaying.publisher.publish(relaying.applied.table))
        relaying.wait(lambda: relaying.kernel is not None and slot in relaying.kernel._desk.slots, "its slot is free")


def test_what_a_hanging_worker_had_handed_over_ends_with_its_lease(ground: Ground, tmp_path: Path) -> None:
    with _relaying(ground, tmp_path, workers=1) as relaying, Carried(relaying) as carried, Client(ground) as client:
        client.until(lambda: client.is_carried(carried), "it is not carried")
        pid = relaying.workers[0].pid
        os.kill(pid, signal.SIGSTOP)
        try:
            client.until(lambda: not client.asks(), "the kernel goes on", 2 * LEASE_S)
        finally:
            os.kill(pid, signal.SIGCONT)
        client.until(lambda: client.is_carried(carried), "it is not carried again")


def test_without_its_controller_a_worker_has_the_kernel_go_on(ground: Ground, tmp_path: Path) -> None:
    """Program, links and maps are held by the worker alone. Another controller's it takes when it comes."""
    with _relaying(ground, tmp_path, workers=1) as relaying:
        with Carried(relaying) as carried, Client(ground) as client:
            client.until(lambda: client.is_carried(carried), "it is not carried")
            relaying.call(relaying._close_publisher())
            deadline = time.monotonic() + 2 * LEASE_S
            while time.monotonic() < deadline:
                assert client.is_carried(carried)
                time.sleep(0.01)
        relaying.restart_controller()
        with Carried(relaying) as carried, Client(ground) as client:
            client.until(lambda: client.is_carried(carried), "it is not carried by the new controller's")


def test_an_upgrade_beside_what_is_there(ground: Ground, tmp_path: Path) -> None:
    """Two controllers, two workers, two programs on each link; what one does not know the other does."""
    with contextlib.ExitStack() as held:
        old = held.enter_context(_relaying(ground, tmp_path / "old", workers=1))
        before, client = held.enter_context(Carried(old)), held.enter_context(Client(ground))
        client.until(lambda: client.is_carried(before), "it is not carried")
        new = held.enter_context(_relaying(ground, tmp_path / "new", workers=1))
        after = held.enter_context(Carried(new))
        assert client.is_carried(before) and not after.places()
        for _ in range(30):  # some of them are the new worker's
            one = held.enter_context(Client(ground))
            one.until(lambda one=one: one.is_carried(before) or one.is_carried(after), "it is not carried")  # type: ignore[misc]
        assert after.places() and before.places()
        assert client.is_carried(before)
        _kill(old, old.workers[0].pid)
        client.until(lambda: client.is_carried(after), "the new worker's program does not carry it")
        old.count = 0


def test_a_pod_that_comes_later_and_goes(ground: Ground, tmp_path: Path) -> None:
    with _relaying(ground, tmp_path, workers=1) as relaying, Carried(relaying) as carried:
        assert relaying.kernel is not None
        kernel, count = relaying.kernel, relaying.kernel.links

        def held() -> int:
            """Attachments that the worker has open."""
            folder = Path(f"/proc/{relaying.workers[0].pid}/fd")
            found = 0
            for one in folder.iterdir():
                with contextlib.suppress(OSError):
                    found += "bpf_link" in str(one.readlink())
            return found

        relaying.wait(lambda: held() == count, "the worker has not got all of them")
        with Namespace.new() as late:
            near, far = ["10.79.0.1/24", "fd00:79::1/112"], ["10.79.0.9/24", "fd00:79::9/112"]
            link(ground.node, "late", late, near, far)
            ip(late, "route add default via 10.79.0.1", "route add default via fd00:79::1")
            relaying.wait(lambda: kernel.links == count + 1 == held(), "the program is not on the new link")
            there = Ground(ground.node, late, ground.pods, ground.family)
            with Client(there, "10.79.0.9" if ground.family is FOUR else "fd00:79::9") as client:
                client.until(lambda: client.is_carried(carried), "it is not carried")
            ip(ground.node, "link del late")
        relaying.wait(lambda: kernel.links == count == held(), "the worker keeps what is gone")


_ALONE = """
import asyncio, sys
from kproxy.relay.kernel_links import KernelLinks
kernel = KernelLinks(sys.argv[1])
asyncio.run(asyncio.wait_for(kernel.run(), 20))
print(kernel.links, kernel.why_not)
"""


@pytest.mark.parametrize(
    ("without", "why"),
    [("-bpf,-sys_admin", "map kproxy_flows"), ("-net_admin,-sys_admin", "program kproxy_relay")],
    ids=["CAP_BPF", "CAP_NET_ADMIN"],
)
def test_a_controller_that_may_not(ground: Ground, tmp_path: Path, without: str, why: str) -> None:
    """It says why and does without; nobody listens where workers would ask."""
    path = tmp_path / "relay.sock.kernel"
    command = ["setpriv", f"--bounding-set={without}", sys.executable, "-c", _ALONE, str(path)]
    with ground.node.entered():
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == f"0 {why}: Operation not permitted\n" and not path.exists()
