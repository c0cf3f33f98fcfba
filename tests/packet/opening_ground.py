"""A relay whose kernel may open connections itself (relay/kernel_openings.py), and endpoints that answer: the ground of two test files."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import AsyncIterator, Coroutine, Iterator

from kproxy.ebpf import calls
from kproxy.relay.kernel_care import OpenedCare
from kproxy.relay.kernel_openings import OFTEN, KernelOpenings
from tests.packet.kernel_ground import kernel_with_rings
from tests.packet.tcp_ground import Client, Ground, Pod, Relay, heard, relaying, sent, target, until


class Opening:
    """A relay whose kernel may open connections, and endpoints that answer what they are asked."""

    def __init__(self, relay: Relay, pods: list[Pod], code: int) -> None:
        self.relay, self.pods, self.code = relay, pods, code
        self.tasks: set[asyncio.Task[None]] = set()

    @property
    def openings(self) -> KernelOpenings:
        assert self.relay.relay.kernel is not None
        found = self.relay.relay.kernel.openings
        assert found is not None
        return found

    @property
    def care(self) -> OpenedCare:
        assert self.relay.relay.kernel is not None
        found = self.relay.relay.kernel.care
        assert found is not None
        return found

    @contextlib.contextmanager
    def program_on(self, name: str) -> Iterator[None]:
        """The program stands on this link of the node as well."""
        with self.relay.ground.node.entered():
            made = calls.attach(self.code, socket.if_nametoindex(name), calls.TCX_INGRESS)
        try:
            yield
        finally:
            os.close(made)

    async def serve(self, pod: Pod) -> None:
        """Answers each connection's question with its own address, and ends it."""
        while True:
            sock, _ = await asyncio.get_running_loop().sock_accept(pod.ear)
            self._start(self._answer(sock, pod))

    async def _answer(self, sock: socket.socket, pod: Pod) -> None:
        with sock as there, contextlib.suppress(ConnectionError):
            if await heard(there):
                await sent(there, pod.end[0].encode())

    def stop(self) -> None:
        """Endpoints accept nothing by themselves any more."""
        for task in [*self.tasks]:
            task.cancel()

    async def pair(self) -> tuple[socket.socket, socket.socket]:
        """A client's connection that the kernel has opened, and its endpoint's side; of a relay with one endpoint, after `often`."""
        self.stop()
        await asyncio.sleep(0)
        for _ in range(20):
            before = self.care.open
            client = await Client.connected(self.relay.ground)
            there = await self.pods[0].accepted()
            if self.care.open > before:
                return client.sock, there
            client.sock.close()
            there.close()
        raise AssertionError("the kernel has opened none of them")

    def _start(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.ensure_future(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def ask(self, address: str = "") -> str:
        """One connection, one question; who answered."""
        with await Client.connected(self.relay.ground, address) as here:
            await sent(here, b"who?")
            answer = await heard(here)
            assert not await heard(here)
            return answer.decode()

    async def often(self) -> None:
        """Until the kernel opens connections."""
        async with asyncio.timeout(10):
            while not self.relay.counts.opened:
                for _ in range(2 * OFTEN):
                    await self.ask()
                await asyncio.sleep(0.3)
                self.relay.sweep()


@contextlib.asynccontextmanager
async def opening(ground: Ground, pods: int = 1, *, most: int = 1000, **rest: object) -> AsyncIterator[Opening]:
    """most: connections that may be open. rest: of the Target. In the end nothing is open."""
    with contextlib.ExitStack() as held:
        given = held.enter_context(kernel_with_rings(ground))
        given.flows.vouch(time.monotonic_ns() + 600 * 1_000_000_000)
        ears = [held.enter_context(Pod(ground, number)) for number in range(pods)]
        route = target(ground.family, *(pod.end for pod in ears), **rest)
        relay = held.enter_context(relaying(ground, route, connections=most))
        relay.relay.use_kernel(given.flows, given.opened)
        made = Opening(relay, ears, given.code)
        for pod in ears:
            made._start(made.serve(pod))
        try:
            yield made
        finally:
            for task in [*made.tasks]:
                task.cancel()
            await asyncio.gather(*made.tasks, return_exceptions=True)
            relay.relay.close()
            relay.relay.use_kernel(None)


async def whole_way(made: Opening, count: int, address: str = "") -> int:
    """Asks so often; how many of them came by the worker."""
    before = made.relay.counts.accepted
    for _ in range(count):
        await made.ask(address)
    return made.relay.counts.accepted - before


@contextlib.asynccontextmanager
async def opened_pair(ground: Ground, **rest: object) -> AsyncIterator[tuple[Opening, socket.socket, socket.socket]]:
    """A connection that the kernel has opened: the client's socket and the endpoint's. Nothing else is open."""
    async with opening(ground, **rest) as made:  # type: ignore[arg-type]
        await made.often()
        client, server = await made.pair()
        with client as here, server as there:
            await until(lambda: made.care.open == 1 and not made.relay.relay.open)
            yield made, here, there
