"""Families of relay workers on one node, clients that keep connections through them, and endpoints that behave or do not.

clients ─── veth ─── node (rules, families of workers, each with its ports and its controller's end) ─── veth ─── pods

Workers are real processes in the node's namespace. The controller's end is in the test's event loop: a socket file knows no namespace.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import struct
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from kproxy.relay.publisher import RelayPublisher
from kproxy.relay.targets import INSIDE, Key, Table, Target
from tests.packet.udp_ground import FOUR, Ground, grounded
from tests.support.capturing import capture
from tests.support.netns import Namespace, run

PORT, ENDS = 80, 8080
NAME = "ns1/web:http"
FIRST, SECOND = (10270, 10271), (10272, 10273)
LIMIT_S = 40.0  # for what takes a fraction of a second where nobody else works
RESET = struct.pack("ii", 1, 0)


def table(*pods: int, affinity_s: int = 0) -> Table:
    """The Service, and one behind it for each of `pods`."""
    ends = tuple((FOUR.pods[pod], ENDS) for pod in pods)
    target = Target(name=NAME, family="IPv4", protocol="TCP", endpoints=ends, affinity_s=affinity_s)
    return Table({Key(INSIDE, "IPv4", "TCP", FOUR.asked, PORT): target})


def lead(node: Namespace, port: int) -> None:
    """Rules bring new connections to `port` from here on; one transaction, as the backend does it."""
    rule = f"meta l4proto {{ tcp, udp }} meta mark set mark or 0x2000 tproxy to 127.0.0.1:{port} accept"
    lines = f"flush chain ip capture relay\nadd rule ip capture relay {rule}\nadd rule ip capture relay drop\n"
    run(node, "nft", "-f", "-", text=lines)


async def until(holds: Callable[[], bool], what: str) -> None:
    """Waits for a condition, not for a time."""
    try:
        async with asyncio.timeout(LIMIT_S):
            while not holds():
                await asyncio.sleep(0.01)
    except TimeoutError:
        raise AssertionError(what) from None


@dataclass
class Family:
    """Workers with one pair of ports, and their controller."""

    node: Namespace
    path: Path
    ports: tuple[int, int]
    words: tuple[str, ...] = ()  # more arguments of the workers
    workers: list[subprocess.Popen[str]] = field(default_factory=list)
    publisher: RelayPublisher | None = None

    @property
    def _command(self) -> list[str]:
        words = ["--channel", str(self.path), "--ports", f"{self.ports[0]},{self.ports[1]}"]
        return [*words, "--parent", str(os.getpid()), *self.words]

    def start_worker(self, fault: str = "") -> subprocess.Popen[str]:
        """fault: Python that runs first, in the worker."""
        how = ["-m", "kproxy.relay.worker"]
        if fault:
            how = ["-c", f"{fault}\nimport sys, kproxy.relay.worker as it\nsys.exit(it.main(sys.argv[1:]))"]
        with self.node.entered():
            command = [sys.executable, *how, *self._command]
            self.workers.append(subprocess.Popen(command, stderr=subprocess.PIPE, text=True))
        return self.workers[-1]

    @contextlib.contextmanager
    def supervised(self, workers: int) -> Iterator[subprocess.Popen[bytes]]:
        """A supervisor that looks ten times as often, over so many workers."""
        words = self._command
        words[words.index("--parent") : words.index("--parent") + 2] = []
        argv = [sys.executable, "-m", "kproxy.relay.worker", *words]
        listed = [{"name": "controller", "argv": [sys.executable, "-c", "import time; time.sleep(600)"]}]
        listed += [{"name": f"relay worker {number}", "argv": argv} for number in range(workers)]
        patch = "import kproxy.relay.stillness as s, kproxy.supervisor as one; one.LOOK_S = s.LOOK_S = 0.1"
        code = f"import sys; {patch}; sys.exit(one.main([{json.dumps(listed)!r}]))"
        with self.node.entered():
            process = subprocess.Popen([sys.executable, "-c", code])
        try:
            yield process
        finally:
            process.terminate()
            process.wait(timeout=30)

    async def start_controller(self, wanted: Table, workers: int, remembered: Path | None = None) -> RelayPublisher:
        """A new one; returns when `workers` workers hold the table."""
        made = self.publisher = RelayPublisher(self.path, remembered=remembered)
        await made.start()
        await until(lambda: len(made.pids()) == workers, "workers connect")
        await made.publish(wanted)
        return made

    async def stop_controller(self) -> None:
        if self.publisher is not None:
            await self.publisher.close()
            self.publisher = None

    async def ended(self, worker: subprocess.Popen[str]) -> int:
        """Its exit code, once it ended by itself."""
        await until(lambda: worker.poll() is not None, "the worker ends")
        return int(worker.returncode)

    def close(self) -> None:
        for worker in self.workers:
            if worker.poll() is None:
                worker.kill()
            words = worker.communicate(timeout=10)[1]
            assert "Traceback" not in words, words


class Node(Ground):
    """The ground, and what runs on it."""

    @contextlib.asynccontextmanager
    async def relays(
        self, path: Path, ports: tuple[int, int], wanted: Table, *words: str, workers: int = 2
    ) -> AsyncIterator[Family]:
        """A family whose workers hold `wanted`."""
        made = Family(self.node, path, ports, words)
        try:
            for _ in range(workers):
                made.start_worker()
            await made.start_controller(wanted, workers)
            yield made
        finally:
            await made.stop_controller()
            made.close()

    async def connected(self, address: str = FOUR.asked) -> Client:
        """A client's new connection, once an endpoint has named itself on it."""
        with self.clients.entered():
            sock = socket.socket()
        sock.setblocking(False)
        try:
            async with asyncio.timeout(LIMIT_S):
                await asyncio.get_running_loop().sock_connect(sock, (address, PORT))
                client = Client(sock)
                client.pod = int(await client.read(1))
        except BaseException:
            sock.close()
            raise
        return client

    @contextlib.asynccontextmanager
    async def pod(
        self, number: int, serve: Callable[[socket.socket], Awaitable[None]] | None = None
    ) -> AsyncIterator[None]:
        """An endpoint; by default it says its number and then whatever it is told."""
        with self.pods.entered():
            ear = socket.create_server((FOUR.pods[number], ENDS), backlog=512)
        ear.setblocking(False)
        running = asyncio.get_running_loop()
        open_now: set[socket.socket] = set()

        async def one(sock: socket.socket) -> None:
            with contextlib.suppress(OSError):
                await (serve(sock) if serve is not None else _echo(sock, number))
            open_now.discard(sock)
            sock.close()

        async def listen(tasks: asyncio.TaskGroup) -> None:
            while True:
                sock, _ = await running.sock_accept(ear)
                sock.setblocking(False)
                open_now.add(sock)
                tasks.create_task(one(sock))

        async def keep() -> None:
            async with asyncio.TaskGroup() as tasks:
                await listen(tasks)

        keeping = asyncio.ensure_future(keep())
        try:
            yield
        finally:
            keeping.cancel()
            await asyncio.gather(keeping, return_exceptions=True)
            ear.close()
            for sock in open_now:
                sock.close()


async def _echo(sock: socket.socket, number: int) -> None:
    running = asyncio.get_running_loop()
    await running.sock_sendall(sock, b"%d" % number)
    while data := await running.sock_recv(sock, 65536):
        await running.sock_sendall(sock, data)


class Client:
    """A client's end of a connection."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.pod = -1

    async def read(self, size: int) -> bytes:
        """Exactly so much, unless the other side ends."""
        got = b""
        async with asyncio.timeout(LIMIT_S):
            while len(got) < size and (data := await asyncio.get_running_loop().sock_recv(self.sock, size - len(got))):
                got += data
        return got

    async def works(self) -> bool:
        """Whether words come back. A reset or an end is False; silence is an error."""
        try:
            await asyncio.get_running_loop().sock_sendall(self.sock, b"are you there?")
            return await self.read(14) == b"are you there?"
        except ConnectionError:
            return False

    def close(self) -> None:
        self.sock.close()


@contextlib.contextmanager
def closing(clients: list[Client]) -> Iterator[list[Client]]:
    try:
        yield clients
    finally:
        for client in clients:
            client.close()


@contextlib.contextmanager
def node() -> Iterator[Node]:
    """The namespaces, with rules that lead to FIRST."""
    with grounded(FOUR, captured=False) as ground:
        capture(ground.node, FIRST[0], [FOUR.asked])
        yield Node(ground.node, ground.clients, ground.pods, ground.family)
