"""Endpoints of connections that the kernel opens (relay/kernel_openings.py), with packets: they refuse, are silent, go, speak otherwise."""

from __future__ import annotations

import asyncio
import socket
import time
from collections import Counter

import pytest

from kproxy.relay.counts import BEGAN, FAILED, GAVE_UP, OPEN, SENT
from kproxy.relay.kernel_numbers import info_of
from kproxy.relay.kernel_openings import OFTEN
from tests.packet.opening_ground import opening, whole_way
from tests.packet.tcp_ground import FOUR, PORT, Ground, grounded, refused, scene, silence, speak, target
from tests.support.netns import sysctl


def test_an_endpoint_that_refuses_costs_no_connection_and_no_time(either: Ground) -> None:
    async def play() -> None:
        async with opening(either, 2) as made:
            await made.often()
            made.relay.sweep()
            gone = made.pods[0]
            for task in [*made.tasks]:
                task.cancel()
            await asyncio.sleep(0)
            gone.ear.close()
            made._start(made.serve(made.pods[1]))
            slowest = 0.0
            for _ in range(100):
                began = time.monotonic()
                assert await made.ask() == made.pods[1].end[0]
                slowest = max(slowest, time.monotonic() - began)
            assert slowest < 0.9, "a SYN that is lost comes again after a second"
            await asyncio.sleep(0.1)
            (slot,) = (slot for one in made.openings.repeats for slot in one.slots if slot and slot.end == gone.end)
            assert 1 <= slot.counted.failed <= made.relay.row(FAILED, gone.end)

    scene(play)


def test_where_every_endpoint_refuses_the_client_is_refused(either: Ground) -> None:
    async def play() -> None:
        async with opening(either, 2) as made:
            await made.often()
            made.stop()
            await asyncio.sleep(0)
            for pod in made.pods:
                pod.ear.close()
            for _ in range(5):
                assert await refused(either)
            assert made.relay.row(GAVE_UP) == 5

    scene(play)


def test_an_endpoint_that_falls_silent_costs_one_second_once(either: Ground) -> None:
    async def play() -> None:
        async with opening(either, 2) as made:
            await made.often()
            silence(either, made.pods[0].end)
            try:
                late = []
                for _ in range(60):
                    began = time.monotonic()
                    assert await made.ask() == made.pods[1].end[0]
                    late.append(time.monotonic() - began)
            finally:
                speak(either)
            late.sort()
            assert late[-1] < 2.5 and late[-2] < 0.9, late[-5:]

    scene(play)


def test_a_silent_endpoint_is_soon_asked_no_more_also_while_the_worker_is_busy(either: Ground) -> None:
    """Those that come the whole way are accepted by the kernel, and wait for the worker."""

    async def play() -> None:
        async with opening(either, 2) as made:
            await made.often()
            silence(either, made.pods[0].end)
            try:
                first = await _connecting(either, 8)
                time.sleep(0.03)  # the worker, which lives in this loop, does nothing meanwhile
                later = await _connecting(either, 40)
                time.sleep(0.03)
                waiting = [sum(info_of(sock).state != 1 for sock in socks) for socks in (first, later)]
                assert waiting[0] >= 1 and waiting[1] == 0
            finally:
                speak(either)
                for sock in (*first, *later):
                    sock.close()

    scene(play)


async def _connecting(ground: Ground, count: int) -> list[socket.socket]:
    """Clients' sockets on their way to the Service."""
    found = []
    for _ in range(count):
        with ground.clients.entered():
            sock = socket.socket(ground.family.kind, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        sock.bind((ground.family.clients[0], 0))
        sock.connect_ex((ground.family.asked, PORT))
        found.append(sock)
    return found


def test_an_endpoint_that_is_gone_gets_nothing_any_more(either: Ground) -> None:
    async def play() -> None:
        async with opening(either, 2) as made:
            await made.often()
            stays, gone = made.pods
            made.relay.use(target(either.family, stays.end))
            for _ in range(50):
                assert await made.ask() == stays.end[0]
            made.relay.use(target(either.family, stays.end, gone.end))
            found = Counter([await made.ask() for _ in range(300)])
            assert found[gone.end[0]] > 60, "it is there again"
            assert await whole_way(made, 100) < 20

    scene(play)


def test_endpoints_that_follow_each_other_in_a_ring_are_counted_each_for_itself(either: Ground) -> None:
    async def play() -> None:
        async with opening(either, 2) as made:
            asked = []
            for pod in (made.pods[0], made.pods[1], made.pods[0]):
                made.relay.use(target(either.family, pod.end))
                for _ in range(4):
                    asked += [await made.ask() for _ in range(2 * OFTEN)]
                    await asyncio.sleep(0.06)
                made.relay.sweep()
                (slot,) = (slot for one in made.openings.repeats for slot in one.slots if slot and slot.end == pod.end)
                assert slot.counted.opened > 0
            await asyncio.sleep(0.1)
            made.relay.sweep()
            found = Counter(asked)
            assert made.relay.row(BEGAN) == len(asked) and made.relay.row(OPEN) == 0
            for pod in made.pods:
                assert made.relay.row(BEGAN, pod.end) == found[pod.end[0]] > 0
            assert made.relay.row(SENT) == len(asked) * len(b"who?")

    scene(play)


@pytest.mark.parametrize("setting", [{"ipv4__tcp_timestamps": 0}, {"ipv4__tcp_window_scaling": 0}])
def test_an_endpoint_that_speaks_otherwise_is_asked_the_whole_way(setting: dict[str, int]) -> None:
    async def play() -> None:
        with grounded(FOUR) as ground:
            sysctl(ground.pods, **setting)
            async with opening(ground) as made:
                assert await whole_way(made, 100) == 100
                assert not made.openings.by_ring

    scene(play)


def test_an_endpoint_that_begins_to_speak_otherwise_costs_one_connection() -> None:
    async def play() -> None:
        with grounded(FOUR) as own:
            async with opening(own) as made:
                await made.often()
                sysctl(own.pods, ipv4__tcp_timestamps=0)
                began = time.monotonic()
                for _ in range(100):
                    await made.ask()
                assert time.monotonic() - began < 5
                assert any(slot.unfit for one in made.openings.repeats for slot in one.slots if slot)

    scene(play)
