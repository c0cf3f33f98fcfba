"""Node ports on loopback by the worker: a real process in a node's namespace, pods and a neighbour around it, and real packets.

pods ─── veth ─── node (the worker, clients on 127.0.0.0/8 and ::1) ─── veth ─── neighbour, which routes 127.0.0.1 to the node
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import socket
import struct
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from kproxy.backends.iptables.apply import IptablesBackend
from kproxy.backends.iptables.variant import Variant
from kproxy.loopback.channel import TablePublisher, Taken
from kproxy.loopback.listeners import Key, Listener
from kproxy.loopback.server import Server
from kproxy.loopback.table import listeners
from kproxy.model.resolve import resolve
from tests.support.addressing import NODE_IP, twin
from tests.support.builders import Built, ep, port, slice_, svc
from tests.support.flows import SETTINGS, step
from tests.support.netns import Namespace, ip, link, run, sysctl

_POD, _POD_2 = "10.180.0.1", "10.180.0.2"
_PORT, _NODE_PORT = 8080, 30080
_LISTENS = replace(SETTINGS, localhost_listener=True)
_PLACES = [("127.0.0.1", socket.AF_INET), ("127.8.9.10", socket.AF_INET), ("::1", socket.AF_INET6)]
_RESET = struct.pack("ii", 1, 0)


@dataclass
class Ground:
    """The namespaces, and where the worker finds its controller."""

    node: Namespace
    pods: Namespace
    neighbour: Namespace
    path: Path


@pytest.fixture
def ground(tmp_path: Path) -> Iterator[Ground]:
    with Namespace.new() as node, Namespace.new() as pods, Namespace.new() as neighbour:
        sysctl(node, ipv4__ip_forward=1, ipv4__conf__all__rp_filter=0, ipv4__conf__default__rp_filter=0)
        sysctl(node, ipv4__conf__all__route_localnet=0)  # a new namespace takes the machine's
        link(node, "pods", pods, ["10.180.0.254/24", "fd00:10:180::ff/112"], [f"{_POD}/24", "fd00:10:180::1/112"])
        ip(pods, f"addr add {_POD_2}/24 dev eth0")
        link(node, "near", neighbour, [f"{NODE_IP}/24"], ["192.168.0.9/24"])
        sysctl(
            neighbour, ipv4__conf__all__route_localnet=1, ipv4__conf__all__rp_filter=0, ipv4__conf__eth0__rp_filter=0
        )
        ip(
            neighbour,
            "route del local 127.0.0.0/8 dev lo table local",
            "route del local 127.0.0.1 dev lo table local",
            f"route add 127.0.0.1/32 via {NODE_IP}",
        )
        yield Ground(node, pods, neighbour, tmp_path / "loopback.sock")


def _objects(*addresses: str, protocol: str = "TCP", **rest: object) -> list[Built]:
    made = svc(ports=[port(80, "web", protocol, node=_NODE_PORT)], **rest)  # type: ignore[arg-type]
    return [made, slice_(*map(ep, addresses), ports=[("web", _PORT, protocol)])]


def _table(objects: list[Built], six: bool = False, follows_tcp: bool = False) -> dict[Key, Listener]:
    wanted = twin(tuple(objects)) if six else objects
    return listeners(resolve(step(wanted).snapshot(), replace(_LISTENS, follows_tcp=follows_tcp)))


@contextlib.contextmanager
def _worker(ground: Ground) -> Iterator[subprocess.Popen[str]]:
    command = [
        sys.executable,
        "-m",
        "kproxy.loopback.worker",
        "--channel",
        str(ground.path),
        "--parent",
        str(os.getpid()),
    ]
    with ground.node.entered():
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        yield process
        assert process.poll() is None, "the worker must live"
    finally:
        process.terminate()
        words = process.communicate(timeout=10)[1]
        assert "Traceback" not in words, words


@contextlib.asynccontextmanager
async def _controller(ground: Ground, table: dict[Key, Listener]) -> AsyncIterator[tuple[TablePublisher, list[Taken]]]:
    taken: list[Taken] = []
    publisher = TablePublisher(ground.path, taken.append)
    publisher.publish(table)
    keeping = asyncio.ensure_future(publisher.keep())
    try:
        yield publisher, taken
    finally:
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)


def _run(ground: Ground, scene: Callable[[], Awaitable[None]]) -> None:
    with _worker(ground), ground.node.entered():
        asyncio.run(asyncio.wait_for(scene(), 40))


async def _connected(to: tuple[str, int], wait_s: float = 10.0) -> socket.socket:
    """A client's connection, as soon as somebody listens."""
    running = asyncio.get_running_loop()
    deadline = running.time() + wait_s
    while True:
        sock = socket.socket(socket.AF_INET6 if ":" in to[0] else socket.AF_INET)
        sock.setblocking(False)
        try:
            await running.sock_connect(sock, to)
            return sock
        except ConnectionRefusedError:
            sock.close()
            if running.time() > deadline:
                raise
            await asyncio.sleep(0.02)


def _ear(ground: Ground, address: str = "", family: socket.AddressFamily = socket.AF_INET) -> socket.socket:
    with ground.pods.entered():
        made = socket.create_server((address, _PORT), family=family)
    made.setblocking(False)
    return made


async def _accepted(ear: socket.socket) -> socket.socket:
    sock, _ = await asyncio.wait_for(asyncio.get_running_loop().sock_accept(ear), 10)
    sock.setblocking(False)
    return sock


async def _received(sock: socket.socket, size: int = 64) -> bytes:
    return await asyncio.wait_for(asyncio.get_running_loop().sock_recv(sock, size), 10)


@contextlib.contextmanager
def _echo(ground: Ground, family: socket.AddressFamily) -> Iterator[None]:
    """A UDP endpoint that answers with its own name."""
    with ground.pods.entered():
        sock = socket.socket(family, socket.SOCK_DGRAM)
        sock.bind(("", _PORT))
    sock.setblocking(False)
    running = asyncio.get_running_loop()

    def answer() -> None:
        data, peer = sock.recvfrom(2048)
        sock.sendto(b"to " + data, peer)

    running.add_reader(sock, answer)
    try:
        yield
    finally:
        running.remove_reader(sock)
        sock.close()


async def _asked(to: tuple[str, int], words: bytes = b"?", tries: int = 100) -> bytes:
    """What a UDP client with a socket of its own is answered by the address that it wrote to."""
    with socket.socket(socket.AF_INET6 if ":" in to[0] else socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        sock.connect(to)
        for _ in range(tries):
            with contextlib.suppress(ConnectionRefusedError, TimeoutError):
                sock.send(words)
                return await asyncio.wait_for(asyncio.get_running_loop().sock_recv(sock, 2048), 0.2)
            await asyncio.sleep(0.02)
    raise AssertionError("nobody answers")


@pytest.mark.parametrize(("address", "family"), _PLACES)
def test_fault_46_tcp_on_loopback_without_route_localnet(
    ground: Ground, address: str, family: socket.AddressFamily
) -> None:
    """Served in all of 127.0.0.0/8 and on ::1; the sysctl stays as it is, and the end of one direction passes through."""

    async def scene() -> None:
        table = _table(_objects(_POD), six=family == socket.AF_INET6)
        with _ear(ground, family=family) as ear:
            async with _controller(ground, table):
                with await _connected((address, _NODE_PORT)) as client, await _accepted(ear) as server:
                    running = asyncio.get_running_loop()
                    await running.sock_sendall(client, b"question")
                    client.shutdown(socket.SHUT_WR)
                    assert await _received(server) == b"question" and await _received(server) == b""
                    await running.sock_sendall(server, b"answer")
                    assert await _received(client) == b"answer"
                    server.close()
                    assert await _received(client) == b""
        assert run(ground.node, "cat", "/proc/sys/net/ipv4/conf/all/route_localnet") == "0\n"

    _run(ground, scene)


@pytest.mark.parametrize(("address", "family"), _PLACES)
def test_udp_on_loopback(ground: Ground, address: str, family: socket.AddressFamily) -> None:
    """Answers bear the address that was asked, and each client's come to it."""

    async def scene() -> None:
        table = _table(_objects(_POD, protocol="UDP"), six=family == socket.AF_INET6)
        with _echo(ground, family):
            async with _controller(ground, table):
                answers = await asyncio.gather(*(_asked((address, _NODE_PORT), b"%d" % n) for n in range(20)))
        assert answers == [b"to %d" % n for n in range(20)]

    _run(ground, scene)


@pytest.mark.parametrize("first", ["client", "server"])
def test_a_reset_is_passed_on(ground: Ground, first: str) -> None:
    async def scene() -> None:
        with _ear(ground) as ear:
            async with _controller(ground, _table(_objects(_POD))):
                client = await _connected(("127.0.0.1", _NODE_PORT))
                server = await _accepted(ear)
                here, there = (client, server) if first == "client" else (server, client)
                await asyncio.get_running_loop().sock_sendall(here, b"x")
                assert await _received(there) == b"x"
                here.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                here.close()
                with there, pytest.raises(ConnectionResetError):
                    await _received(there)

    _run(ground, scene)


def test_a_slow_reader_stops_the_sender(ground: Ground) -> None:
    """64 MiB towards somebody who does not read: the sender is held up, the worker holds next to nothing, and nothing is lost."""
    amount, chunk = 64 << 20, random.Random(1).randbytes(1 << 20)

    async def scene(pid: int) -> None:
        running = asyncio.get_running_loop()
        with _ear(ground) as ear:
            async with _controller(ground, _table(_objects(_POD))):
                with await _connected(("127.0.0.1", _NODE_PORT)) as client, await _accepted(ear) as server:
                    before = _resident(pid)

                    async def send() -> None:
                        for _ in range(amount >> 20):
                            await running.sock_sendall(client, chunk)
                        client.shutdown(socket.SHUT_WR)

                    sending = asyncio.ensure_future(send())
                    await asyncio.sleep(0.5)
                    assert not sending.done()
                    assert _resident(pid) - before < 8 << 20
                    got = 0
                    while data := await _received(server, 1 << 20):
                        got += len(data)
                    assert got == amount
                    await sending

    with _worker(ground) as process, ground.node.entered():
        asyncio.run(asyncio.wait_for(scene(process.pid), 60))


def _resident(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_a_taken_port_is_told_and_tried_again(ground: Ground) -> None:
    """Other listeners work meanwhile; once the stranger is gone, so does this one."""

    async def scene() -> None:
        stranger = socket.create_server(("127.0.0.1", _NODE_PORT))
        with _ear(ground) as ear, _echo(ground, socket.AF_INET):
            table = _table(_objects(_POD)) | _table(_objects(_POD, protocol="UDP"))
            async with _controller(ground, table) as (publisher, taken):
                assert await _asked(("127.0.0.1", _NODE_PORT)) == b"to ?"
                while not taken:
                    await asyncio.sleep(0.02)
                assert (taken[0].key, taken[0].name) == (("IPv4", "TCP", _NODE_PORT), "ns1/svc1:web")
                assert publisher.taken
                stranger.close()
                (await _connected(("127.0.0.1", _NODE_PORT))).close()
                (await _accepted(ear)).close()
                while publisher.taken:
                    await asyncio.sleep(0.02)

    _run(ground, scene)


def test_affinity_and_endpoints_that_come_and_go(ground: Ground) -> None:
    """One client stays with one endpoint; when that is gone it gets another; without one that it may use it is refused."""

    async def scene() -> None:
        with _ear(ground, _POD) as one, _ear(ground, _POD_2) as two:
            both = _objects(_POD, _POD_2, affinity_s=60)
            async with _controller(ground, _table(both)) as (publisher, _):
                landed = set()
                for _ in range(8):
                    client = await _connected(("127.0.0.1", _NODE_PORT))
                    landed.add(await _who(one, two))
                    client.close()
                (first,) = landed
                other = {one: two, two: one}[first]
                publisher.publish(_table(_objects(_POD if other is one else _POD_2, affinity_s=60)))
                while True:  # until the worker has heard of it
                    client = await _connected(("127.0.0.1", _NODE_PORT))
                    client.close()
                    if await _who(one, two) is other:
                        break
                for objects in (_objects(), _objects(_POD, type="NodePort", external_policy="Local")):
                    publisher.publish(_table(both))
                    (await _connected(("127.0.0.1", _NODE_PORT))).close()
                    publisher.publish(_table(objects))
                    assert not publisher.table
                    await _until_refused()

    _run(ground, scene)


async def _who(*ears: socket.socket) -> socket.socket:
    waiting = {asyncio.ensure_future(_accepted(ear)): ear for ear in ears}
    done, left = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    for task in left:
        task.cancel()
    await asyncio.gather(*left, return_exceptions=True)
    (found,) = done
    found.result().close()
    return waiting[found]


async def _until_refused() -> None:
    async with asyncio.timeout(5):
        with contextlib.suppress(ConnectionRefusedError):
            while True:
                (await _connected(("127.0.0.1", _NODE_PORT), wait_s=0)).close()
                await asyncio.sleep(0.02)


@pytest.mark.parametrize("follows_tcp", [False, True])
def test_connections_outlive_the_controller_and_end_with_their_endpoint_if_wanted(
    ground: Ground, follows_tcp: bool
) -> None:
    """The worker goes on with what it has; a controller that comes back finds it, and says which endpoints are no more."""

    async def scene() -> None:
        running = asyncio.get_running_loop()
        with _ear(ground) as ear:
            async with _controller(ground, _table(_objects(_POD), follows_tcp=follows_tcp)):
                client = await _connected(("127.0.0.1", _NODE_PORT))
                server = await _accepted(ear)
            await running.sock_sendall(client, b"alone")
            assert await _received(server) == b"alone"
            (await _connected(("127.0.0.1", _NODE_PORT))).close()
            (await _accepted(ear)).close()
            async with _controller(ground, _table(_objects(_POD_2), follows_tcp=follows_tcp)):
                if follows_tcp:
                    for end in (client, server):
                        with pytest.raises(ConnectionResetError):
                            await _received(end)
                else:
                    await asyncio.sleep(0.5)
                    await running.sock_sendall(client, b"still")
                    assert await _received(server) == b"still"
            client.close()
            server.close()

    _run(ground, scene)


@pytest.mark.parametrize("follows_tcp", [False, True])
def test_a_worker_that_is_to_end_listens_no_more_and_finishes_what_it_has(ground: Ground, follows_tcp: bool) -> None:
    """Requests that are under way when another instance takes over are answered; who says nothing is cut after three seconds."""

    async def scene(worker: subprocess.Popen[str]) -> None:
        with contextlib.ExitStack() as open_now:
            ear = open_now.enter_context(_ear(ground))
            async with _controller(ground, _table(_objects(_POD), follows_tcp=follows_tcp)):
                client = open_now.enter_context(await _connected(("127.0.0.1", _NODE_PORT)))
                server = open_now.enter_context(await _accepted(ear))
                idle = open_now.enter_context(await _connected(("127.0.0.1", _NODE_PORT)))
                open_now.enter_context(await _accepted(ear))
                worker.terminate()
                await _until_refused()
                running = asyncio.get_running_loop()
                await running.sock_sendall(client, b"?")
                assert await _received(server) == b"?"
                await running.sock_sendall(server, b"answer")
                server.close()
                assert await _received(client) == b"answer" and await _received(client) == b""
                client.close()
                with contextlib.suppress(ConnectionResetError):
                    assert await _received(idle) == b""
                assert await asyncio.to_thread(worker.wait, 10) == 0

    with contextlib.suppress(_Ended), _worker(ground) as worker, ground.node.entered():
        asyncio.run(asyncio.wait_for(scene(worker), 40))
        raise _Ended  # before the worker is asked whether it lives


class _Ended(Exception):
    """The worker has ended, as it was to."""


def test_bounds_hold(ground: Ground) -> None:
    """One connection too many is reset and the others go on; one UDP client too many costs the oldest its session."""

    async def scene() -> None:
        async with asyncio.TaskGroup() as tasks:
            server = Server(tasks.create_task, 4, lambda *_: None, lambda _: None)
            with _ear(ground) as ear, _echo(ground, socket.AF_INET):
                await server.use(_table(_objects(_POD)) | _table(_objects(_POD, protocol="UDP")))
                clients = [await _connected(("127.0.0.1", _NODE_PORT)) for _ in range(5)]
                servers = [await _accepted(ear) for _ in range(4)]
                with pytest.raises(ConnectionResetError):
                    await _received(clients[4])
                await asyncio.get_running_loop().sock_sendall(clients[0], b"x")
                assert (server.counters["tcp_connections"], server.counters["tcp_refused"]) == (4, 1)
                for end in (*clients, *servers):
                    end.close()
                while server.counters["tcp_connections"]:
                    await asyncio.sleep(0.01)
                for _ in range(10):
                    await _asked(("127.0.0.1", _NODE_PORT))
                assert (server.counters["udp_sessions"], server.counters["udp_begun"]) == (4, 10)
                server.close()

    with ground.node.entered():
        asyncio.run(asyncio.wait_for(scene(), 60))


@pytest.mark.parametrize("variant", list(Variant))
@pytest.mark.parametrize("listener", [True, False])
def test_fault_46_a_neighbour_never_reaches_loopback(ground: Ground, variant: Variant, listener: bool) -> None:
    """By a listener: the sysctl stays off. By rules: it is on, and the guard holds. Somebody's own socket on 127.0.0.1 stays private."""
    settings = _LISTENS if listener else SETTINGS
    with ground.node.entered():
        backend = IptablesBackend(variant=variant)
        desired = resolve(step(_objects(_POD)).snapshot(), settings)
        asyncio.run(_write(backend, desired))
        private = socket.create_server(("127.0.0.1", 6443))
    switch = run(ground.node, "cat", "/proc/sys/net/ipv4/conf/all/route_localnet")
    assert switch == ("0\n" if listener else "1\n")
    with private:
        assert not _reaches(ground, 6443)
        if listener:  # as somebody else, or a life with rules before, may have left it
            sysctl(ground.node, ipv4__conf__all__route_localnet=1)
            assert not _reaches(ground, 6443)
        run(ground.node, f"iptables-{variant.value}", "-F", "KUBE-FIREWALL")
        assert _reaches(ground, 6443), "without the guard the way is open: the test can tell"


async def _write(backend: IptablesBackend, desired: object) -> None:
    report = await backend.apply(backend.plan(await backend.observe(), backend.compile(desired)))  # type: ignore[arg-type]
    assert not report.problems


def _reaches(ground: Ground, number: int) -> bool:
    """Whether the node answers a SYN for 127.0.0.1 at all; what the neighbour's own stack makes of the answer is not its merit."""
    with ground.neighbour.entered(), socket.socket() as sock:
        watch = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x800))
        watch.settimeout(0.4)
        sock.setblocking(False)
        sock.bind(("192.168.0.9", 0))
        sock.connect_ex(("127.0.0.1", number))
        with watch, contextlib.suppress(TimeoutError):
            while True:
                packet = watch.recv(128)
                if packet[12:16] == b"\x7f\0\0\1" and packet[9] == 6 and packet[33] == 0x12:
                    return True
    return False
