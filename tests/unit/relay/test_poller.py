"""The relay's loop: asyncio's part and the relays' share one epoll, and neither waits for the other."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Callable, Coroutine
from select import EPOLLIN

import pytest

from kproxy.relay.poller import Poller, poller, run

_MANY = 200_000  # events: some tenths of a second


def _play(scene: Callable[[Poller], Coroutine[None, None, None]]) -> None:
    async def within() -> None:
        async with asyncio.timeout(10):
            await scene(poller())

    run(within())


def test_what_a_handler_asks_of_asyncio_is_done_although_nothing_else_happens() -> None:
    async def scene(found: Poller) -> None:
        here, there = socket.socketpair()
        done: asyncio.Future[bytes] = found.loop.create_future()
        found.add(here.fileno(), EPOLLIN, lambda _: done.set_result(here.recv(16)))
        late: list[int] = []
        found.loop.call_later(5, late.append, 1)
        there.send(b"now")
        assert await done == b"now"
        await asyncio.sleep(0)
        assert not late
        found.bury(here.fileno(), here)
        there.close()

    _play(scene)


def test_handlers_that_always_have_something_hold_no_timer_up() -> None:
    async def scene(found: Poller) -> None:
        here, there = socket.socketpair()
        seen = [0]

        def ready(_: int) -> None:
            seen[0] += 1
            if seen[0] == _MANY:
                found.drop(here.fileno())

        there.send(b"never read")
        found.add(here.fileno(), EPOLLIN, ready)
        await asyncio.sleep(0.001)
        assert 0 < seen[0] < _MANY
        found.drop(here.fileno())
        here.close()
        there.close()

    _play(scene)


def test_what_is_asked_for_again_and_again_holds_nobody_up() -> None:
    async def scene(found: Poller) -> None:
        times = [0]

        def work() -> None:
            times[0] += 1
            if times[0] < _MANY:
                found.again(work)

        here, there = socket.socketpair()

        def echo(_: int) -> None:
            here.send(here.recv(64))

        found.add(here.fileno(), EPOLLIN, echo)
        found.again(work)
        reader, writer = await asyncio.open_connection(sock=there)
        writer.write(b"question")
        assert await reader.readexactly(8) == b"question"
        assert 0 < times[0] < _MANY
        found.leave()
        writer.close()
        await writer.wait_closed()
        here.close()

    _play(scene)


def test_signals_and_a_handler_that_fails(caplog: pytest.LogCaptureFixture) -> None:
    """The signal comes between; the handler is not called again, and its descriptor stays open."""

    async def scene(found: Poller) -> None:
        heard = asyncio.Event()
        found.loop.add_signal_handler(signal.SIGUSR1, heard.set)
        here, there = socket.socketpair()

        def fails(_: int) -> None:
            signal.raise_signal(signal.SIGUSR1)
            raise ValueError("ours")

        found.add(here.fileno(), EPOLLIN, fails)
        there.send(b"once")
        await heard.wait()
        assert found.failures == 1 and here.recv(16) == b"once"
        found.loop.remove_signal_handler(signal.SIGUSR1)
        here.close()
        there.close()

    _play(scene)
    assert "ours" in caplog.text
