"""What a worker does for connections that the kernel has opened (relay/kernel_care.py), with real packets: silence, drains, its own end.

And what they outlive: other addresses of links, ports that are used again at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from kproxy.relay import kernel_maps as layout
from kproxy.relay import kernel_openings
from kproxy.relay.counts import BEGAN, FAILED, OPEN
from kproxy.relay.kernel_frame import WAY_NS
from tests.packet.opening_ground import Opening, opened_pair, opening
from tests.packet.streaming import filtering, talk
from tests.packet.tcp_ground import (
    FOUR,
    NAME,
    PORT,
    SIX,
    Client,
    Ground,
    Pod,
    grounded,
    heard,
    refused,
    scene,
    target,
    until,
)
from tests.support.netns import Namespace, ip, run, sysctl

_MINUTE, _MORE = 61, 16  # seconds after which who is silent is asked, and asked again


@pytest.fixture(scope="module", params=[FOUR, SIX], ids=["IPv4", "IPv6"])
def either(request: pytest.FixtureRequest) -> Iterator[Ground]:
    with grounded(request.param) as made:
        for space in (made.clients, made.pods):
            sysctl(space, ipv4__tcp_invalid_ratelimit=0)  # who is asked twice in half a second answers twice
        yield made


async def _reset(*socks: socket.socket) -> None:
    for sock in socks:
        with pytest.raises(ConnectionResetError):
            await heard(sock)


# --- endpoints that leave -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gone", ["endpoint", "Service"])
def test_a_connection_outlives_its_endpoint_in_the_table(either: Ground, gone: str) -> None:
    async def play() -> None:
        async with opened_pair(either) as (made, client, server):
            with Pod(either, 1) as other:
                made.relay.use(*([target(either.family, other.end)] if gone == "endpoint" else []))
                for _ in range(5):
                    made.relay.sweep(30)
                    made.relay.later = 0.0
                    await talk(client, server)
                (flow,) = made.relay.relay.flows(10)
                assert flow.state == "open" and flow.service == NAME
                assert made.relay.row(OPEN) == made.relay.row(OPEN, made.pods[0].end) == 1
                if gone == "endpoint":
                    (await Client.connected(either)).sock.close()
                    (await other.accepted()).close()
                else:
                    assert await refused(either)
                client.close()
                server.close()
                await until(lambda: not made.care.open and not made.relay.relay.open)
                made.relay.sweep()
                assert made.relay.row(OPEN) == made.relay.row(OPEN, made.pods[0].end) == 0

    scene(play)


@pytest.mark.parametrize("gone", ["endpoint", "Service"])
def test_when_the_drain_is_over_both_peers_are_reset(either: Ground, gone: str) -> None:
    async def play() -> None:
        async with opened_pair(either, drain_s=30.0) as (made, client, server):
            with Pod(either, 1) as other:
                made.relay.sweep(60)
                assert made.relay.relay.flows(1)[0].state == "open", "it is in the table"
                made.relay.use(*([target(either.family, other.end, drain_s=30.0)] if gone == "endpoint" else []))
                made.relay.sweep()
                assert made.relay.relay.flows(1)[0].state == "draining"
                made.relay.sweep(29)
                await talk(client, server)
                made.relay.sweep(2)
                await _reset(client, server)
                assert made.care.open == 0
                made.relay.sweep()
                assert made.relay.row(OPEN) == made.relay.row(OPEN, made.pods[0].end) == 0
                assert made.relay.chooser.open_to(made.pods[0].end) == 0

    scene(play)


def test_an_endpoint_that_comes_back_does_not_drain_any_more(either: Ground) -> None:
    async def play() -> None:
        async with opened_pair(either, drain_s=30.0) as (made, client, server):
            with Pod(either, 1) as other:
                made.relay.use(target(either.family, other.end, drain_s=30.0))
                made.relay.sweep()
                made.relay.use(target(either.family, made.pods[0].end, other.end, drain_s=30.0))
                made.relay.sweep(20)
                assert made.relay.relay.flows(1)[0].state == "open"
                made.relay.use(target(either.family, other.end, drain_s=30.0))
                made.relay.sweep()
                made.relay.sweep(20)
                assert made.relay.relay.flows(1)[0].state == "draining"
                await talk(client, server)

    scene(play)


# --- silence --------------------------------------------------------------------------------------------------------------------------


def _packets(made: Opening) -> tuple[int, int]:
    (one,) = made.openings.opened.open()
    return made.openings.opened.flows.passed(one.place).packets


def _made_an_hour_ago(made: Opening) -> None:
    (one,) = made.openings.opened.open()
    at = one.place * layout.PAIR + layout.BEGAN_AT
    struct.pack_into("=Q", made.openings.opened.flows.memory, at, one.began - 3600 * 1_000_000_000)


def test_who_is_silent_and_there_stays_open(either: Ground) -> None:
    async def play() -> None:
        async with opened_pair(either) as (made, client, server):
            await talk(client, server)
            _made_an_hour_ago(made)
            for number in range(12):
                before = _packets(made)
                made.relay.sweep(_MINUTE)
                await until(lambda before=before: min(_packets(made)[0] - before[0], _packets(made)[1] - before[1]) > 0)  # type: ignore[misc]
                made.relay.later = 0.0
                made.relay.sweep()
                before = _packets(made)
                await asyncio.sleep(0.02)
                made.relay.sweep()
                assert _packets(made) == before, "nobody is asked who has just answered"
                if number in (4, 11):
                    await talk(client, server, number)
            assert made.care.open == 1

    scene(play)


@pytest.mark.parametrize("dead", ["client", "server"])
def test_who_says_nothing_any_more_is_gone(either: Ground, dead: str) -> None:
    async def play() -> None:
        async with opened_pair(either) as (made, client, server):
            await talk(client, server)
            space, alive = (either.clients, server) if dead == "client" else (either.pods, client)
            with filtering(either, "prerouting", "drop", space):
                made.relay.sweep(_MINUTE)
                for _ in range(4):
                    made.relay.sweep(_MORE)
                assert made.care.open == 1, "asked five times"
                made.relay.sweep(_MORE)
                assert made.care.open == 0
                await _reset(alive)
                made.relay.sweep()
                assert made.relay.row(OPEN) == 0

    scene(play)


async def _unanswered(made: Opening) -> None:
    """A client asks an endpoint that is silent, and is no more. Nothing else is open."""
    ground = made.relay.ground
    with filtering(ground, "prerouting", "tcp flags & (syn | ack) == syn drop", ground.pods):
        async with asyncio.timeout(10):
            while not made.care.open:
                with ground.clients.entered():
                    sock = socket.socket(ground.family.kind, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
                with sock:
                    sock.bind((ground.family.clients[0], 0))
                    sock.connect_ex((ground.family.asked, PORT))
                    await asyncio.sleep(0.005)


def test_a_question_that_nobody_answers_is_forgotten(either: Ground) -> None:
    async def play() -> None:
        async with opening(either) as made:
            await made.often()
            await until(lambda: not made.care.open)
            await _unanswered(made)
            assert made.relay.relay.flows(10)[-1].state == "connecting"
            made.relay.sweep(9)
            assert made.care.open == 1
            made.relay.sweep(2)
            assert made.care.open == 0 and not [*made.openings.opened.open()]

    scene(play)


def test_a_ring_stays_while_a_question_of_it_is_open(either: Ground) -> None:
    """The client is not seen any more, and its last SYN had no answer: the worker has to know whose place that is."""

    async def play() -> None:
        async with opening(either) as made:
            await made.often()
            await until(lambda: not made.care.open)
            made.relay.sweep()
            (repeat,) = made.openings.repeats
            await _unanswered(made)
            made.relay.sweep(repeat.used + 10.001 - made.relay.now())
            made.relay.sweep(2)
            assert not [*made.openings.opened.open()]
            made.relay.sweep(2)
            assert not made.openings.repeats and not made.openings.by_ring

    scene(play)


def test_an_endpoint_s_place_in_a_ring_stays_while_a_question_to_it_is_open(either: Ground) -> None:
    async def play() -> None:
        async with opening(either) as made:
            await made.often()
            await until(lambda: not made.care.open)
            await _unanswered(made)
            began = [one.began for one in made.openings.opened.open()]
            with contextlib.suppress(TimeoutError):  # another one, that is answered: the endpoint owes nothing
                async with asyncio.timeout(3):
                    while made.openings.opened.counted(next(iter(made.openings.by_ring)), 0).asked:
                        await made.ask()
                        await asyncio.sleep(0.01)
            await until(lambda: [one.began for one in made.openings.opened.open()] == began)
            with Pod(either, 1) as other:
                made.relay.use(target(either.family, other.end))
                made.relay.sweep()
                made.relay.sweep(12)
                assert not [*made.openings.opened.open()]

    scene(play)


# --- the worker's own end -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", [lambda made: made.relay.relay.use_kernel(None), lambda made: made.relay.relay.close()])
def test_who_opens_no_more_resets_both(either: Ground, end: Callable[[Opening], None]) -> None:
    async def play() -> None:
        async with opened_pair(either) as (made, client, server):
            await talk(client, server)
            end(made)
            await _reset(client, server)
            assert made.relay.relay.opened == made.relay.relay.in_kernel == 0 and not made.relay.relay.flows(10)

    scene(play)


@contextlib.contextmanager
def _storm(ground: Ground, pod: Pod) -> Iterator[None]:
    """Connections that come and go as fast as they can, whoever opens them."""
    over = threading.Event()

    def clients() -> None:
        while not over.is_set():
            with ground.clients.entered():
                sock = socket.socket(ground.family.kind, socket.SOCK_STREAM)
            with sock, contextlib.suppress(OSError):
                sock.settimeout(0.2)
                sock.bind((ground.family.clients[0], 0))
                sock.connect((ground.family.asked, PORT))

    def endpoint() -> None:
        while not over.is_set():
            with contextlib.suppress(BlockingIOError):
                pod.ear.accept()[0].close()

    threads = [threading.Thread(target=one) for one in (clients, endpoint)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join()


def test_who_opens_no_more_leaves_nothing_while_clients_come(either: Ground) -> None:
    async def play() -> None:
        for _ in range(4):
            async with opening(either) as made:
                await made.often()
                made.stop()
                await asyncio.sleep(0)
                with _storm(either, made.pods[0]):
                    await asyncio.sleep(0.1)
                    made.relay.relay.use_kernel(None)
                    await asyncio.sleep(0.02)

    scene(play)


def test_who_stops_opening_leaves_what_is_open(either: Ground) -> None:
    async def play() -> None:
        async with opened_pair(either) as (made, client, server):
            await talk(client, server)
            accepted = made.relay.counts.accepted
            made.relay.relay.stop_opening()
            for number in range(20):
                with await Client.connected(either) as here, await made.pods[0].accepted() as there:
                    await talk(here, there, number)
            assert made.relay.counts.accepted == accepted + 20, "all of them come the whole way"
            made.relay.sweep()
            await talk(client, server)
            assert made.relay.relay.opened == 1
            client.close()
            server.close()
            await until(lambda: not made.care.open)

    scene(play)


# --- what they outlive ----------------------------------------------------------------------------------------------------------------


def _moved(ground: Ground, space: Namespace, link: str, number: int) -> None:
    """A link has another address, and the node has to ask for it."""
    ip(space, f"link set eth0 address 02:00:00:00:00:{number:02x}")
    run(ground.node, "ip", "neigh", "flush", "dev", link)


@pytest.mark.parametrize("whose", ["client", "server"])
def test_who_has_another_address_on_its_link_is_found_again(either: Ground, whose: str) -> None:
    async def play() -> None:
        async with opened_pair(either) as (made, client, server):
            space, link = (either.clients, "near") if whose == "client" else (either.pods, "pods")
            for number in range(3):
                until_ns = time.monotonic_ns() + 3 * WAY_NS
                while time.monotonic_ns() < until_ns:
                    await talk(client, server, number)
                    await asyncio.sleep(0.005)
                _moved(either, space, link, 16 + number)
            await talk(client, server)
            assert made.care.open == 1

    scene(play)


@pytest.mark.parametrize("ports, pause_s", [(1, 0.0), (2, 0.003)], ids=["at once", "after a moment"])
def test_a_port_may_be_used_again_while_the_endpoint_remembers_it(
    either: Ground, ports: int, pause_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Endpoints end first, so they keep what was for a minute. The client's clock has gone on since (RFC 6191), if only by a moment."""
    monkeypatch.setattr(kernel_openings, "_PORTS", ports)
    monkeypatch.setattr(layout, "OPENERS", ports)

    async def play() -> None:
        async with opening(either) as made:
            await made.often()
            made.relay.sweep()
            assert made.openings.opened.room == ports
            (ring,) = made.openings.by_ring
            opened, began = made.relay.counts.opened, made.relay.row(BEGAN)
            slowest = 0.0
            for _ in range(300):
                start = time.monotonic()
                assert await made.ask() == made.pods[0].end[0]
                slowest = max(slowest, time.monotonic() - start)
                assert not made.openings.opened.counted(ring, 0).asked, "the endpoint has not taken a SYN"
                await asyncio.sleep(pause_s)
            await until(lambda: not made.care.open and not made.relay.relay.open)
            made.relay.sweep()
            assert slowest < 0.9, "a SYN that is not taken is said again after a second"
            assert made.relay.row(FAILED) == 0
            assert made.relay.row(BEGAN) - began == 300
            assert made.relay.counts.opened - opened > (270 if pause_s else 20)

    scene(play)
