"""Connections that the kernel opens itself (relay/kernel_openings.py), with real packets: which, to whom, and when no more."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

import pytest

from kproxy.relay import kernel_openings
from kproxy.relay.counts import BEGAN
from kproxy.relay.kernel_openings import FRESH_S, HOLD_S, OFTEN
from kproxy.relay.targets import LEAST_CONNECTIONS, RANDOM_TWO_CHOICES, ROUND_ROBIN
from tests.packet.kernel_ground import without_offload
from tests.packet.opening_ground import opening, whole_way
from tests.packet.tcp_ground import (
    ENDS,
    FOUR,
    Client,
    Ground,
    Pod,
    grounded,
    heard,
    refused,
    reset,
    scene,
    sent,
    target,
    until,
)
from tests.support.netns import Namespace, ip, link, run, sysctl


@pytest.fixture(scope="module")
def ground() -> Iterator[Ground]:
    with grounded(FOUR) as made:
        yield made


@pytest.mark.parametrize("offload", [True, False], ids=["offload", "software checksums"])
def test_connections_of_who_comes_often_are_opened_by_the_kernel(either: Ground, offload: bool) -> None:
    async def play() -> None:
        async with opening(either) as made:
            await made.often()
            assert 3 <= await whole_way(made, 200) < 20, "one in 64 goes the whole way"
            before = made.relay.row(BEGAN)
            await asyncio.sleep(0.1)
            made.relay.sweep()
            assert made.relay.row(BEGAN) >= before + 180 and made.relay.row(BEGAN, made.pods[0].end) >= 180

    with contextlib.ExitStack() as held:
        if not offload:
            held.enter_context(without_offload(either.clients, either.pods))
        scene(play)


def test_an_endpoint_that_says_nothing_once_it_is_watched_is_known_as_well(either: Ground) -> None:
    """It has accepted, and its client resets: that is all that the worker sees. Later it is known by which link it would speak."""

    async def play() -> None:
        async with opening(either, 3) as made:
            made.stop()
            for pause_s in (0.0, kernel_openings._AGAIN_S):
                await asyncio.sleep(pause_s)
                for _ in range(60):
                    if pause_s:
                        made.openings.renew(None)  # so that it comes the whole way
                    accepted = made.relay.counts.accepted
                    client = await Client.connected(either)
                    await until(lambda before=accepted: made.relay.counts.accepted > before or made.care.open)  # type: ignore[misc]
                    reset(client.sock)
                    await until(lambda: not made.relay.relay.open and not made.care.open)
            (repeat,) = made.openings.repeats
            assert {slot.end for slot in repeat.slots if slot} == {pod.end for pod in made.pods}
            assert repeat.missed == 0 and not repeat.away and made.care.open == 0

    scene(play)


def test_who_comes_seldom_comes_the_whole_way(ground: Ground) -> None:
    async def play() -> None:
        async with opening(ground) as made:
            for _ in range(4):
                assert await whole_way(made, OFTEN - 1) == OFTEN - 1
                made.relay.sweep()  # a second is over
            assert not made.openings.repeats and not made.openings.by_ring

    scene(play)


@pytest.mark.parametrize("balancing", [RANDOM_TWO_CHOICES, ROUND_ROBIN, LEAST_CONNECTIONS])
def test_every_endpoint_gets_its_part(ground: Ground, balancing: str) -> None:
    async def play() -> None:
        async with opening(ground, 3, balancing=balancing) as made:
            await made.often()
            before = made.relay.counts.accepted
            found = Counter([await made.ask() for _ in range(300)])
            assert made.relay.counts.accepted - before < 60
            assert sorted(found) == sorted(pod.end[0] for pod in made.pods)
            assert min(found.values()) > 60, found

    scene(play)


def test_what_is_open_by_rings_counts_with_the_balancing(ground: Ground) -> None:
    async def play() -> None:
        async with opening(ground) as made:
            await made.often()
            client, there = await made.pair()
            with client, there:
                await until(lambda: made.relay.chooser.open_to(made.pods[0].end) == 1)
            await until(lambda: made.relay.chooser.open_to(made.pods[0].end) == 0)

    scene(play)


def test_what_works_by_rings_works(ground: Ground) -> None:
    """Failures count towards an ejection when they come in a row."""

    async def play() -> None:
        async with opening(ground) as made:
            await made.often()
            chooser, (end,) = made.relay.chooser, made.openings.repeats[0].target.endpoints
            whole = 1
            while whole:
                chooser.failed(made.openings.repeats[0].target, end, made.relay.now())
                chooser.failed(made.openings.repeats[0].target, end, made.relay.now())
                whole = await whole_way(made, 5)
            await asyncio.sleep(0.1)
            chooser.failed(made.openings.repeats[0].target, end, made.relay.now())
            assert not chooser.ejected(made.relay.now())

    scene(play)


def test_a_service_that_is_gone_is_gone_at_once(ground: Ground) -> None:
    async def play() -> None:
        async with opening(ground) as made:
            await made.often()
            made.relay.use()
            assert await refused(ground)
            assert made.relay.counts.unknown == 1

    scene(play)


def test_a_policy_of_the_node_takes_hold_within_a_second(either: Ground) -> None:
    family, source = ("ip", either.family.clients[0]) if either.family is FOUR else ("ip6", either.family.clients[0])
    rules = (
        f"add table {family} plugin",
        f"add chain {family} plugin into {{ type filter hook input priority 0; }}",
        f"add rule {family} plugin into {family} saddr {source} tcp flags & (syn|ack) == syn drop",
    )

    async def play() -> None:
        async with opening(either) as made:
            await made.often()
            run(either.node, "nft", "-f", "-", text="\n".join(rules) + "\n")
            try:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(HOLD_S + 0.5):
                        while True:
                            await made.ask()
                opened = made.openings.by_ring.copy()
                began = made.relay.relay.opened
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(1.5):
                        await made.ask()
                assert opened and made.relay.relay.opened == began == 0
            finally:
                run(either.node, "nft", "delete", "table", family, "plugin")
            assert await made.ask() == made.pods[0].end[0]

    scene(play)


def test_what_began_before_rules_changed_says_nothing_of_them(ground: Ground) -> None:
    async def play() -> None:
        async with opening(ground) as made:
            await made.often()
            made.openings.renew(None)
            accepted = made.relay.counts.accepted
            with await Client.connected(ground) as here:
                await until(lambda: made.relay.counts.accepted > accepted)
                made.openings.renew({made.openings.repeats[0].target.name})  # its rules are others from now on
                await sent(here, b"who?")
                assert await heard(here) and not await heard(here)
            await until(lambda: not made.relay.relay.open)
            assert await whole_way(made, 1) == 1
            assert await whole_way(made, 100) < 20

    scene(play)


def test_a_worker_whose_lease_is_over_has_nothing_opened(ground: Ground) -> None:
    async def play() -> None:
        async with opening(ground) as made:
            await made.often()
            made.openings.opened.flows.vouch(time.monotonic_ns())
            assert await whole_way(made, 40) == 40

    scene(play)


def test_a_worker_that_does_not_verify_has_nothing_opened(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    async def play() -> None:
        async with opening(ground) as made:
            await made.often()
            monkeypatch.setattr(kernel_openings, "_WATCHED", 0)
            await asyncio.sleep(HOLD_S + 0.1)
            assert await whole_way(made, 40) == 40

    scene(play)


def test_nobody_else_may_speak_for_a_client(either: Ground) -> None:
    asked, address = either.family.asked, either.family.clients[0]
    bits, net = (24, "192.168.7") if either.family is FOUR else (112, "fd00:192:7:")

    async def play() -> None:
        async with opening(either) as made, asyncio.timeout(30):
            await made.often()
            opened = sum(slot.counted.opened for one in made.openings.repeats for slot in one.slots if slot)
            with Namespace.new() as other:
                name = f"{net}.1" if either.family is FOUR else f"{net}:1"
                mine = f"{net}.2" if either.family is FOUR else f"{net}:2"
                link(either.node, "liar", other, [f"{name}/{bits}"], [f"{mine}/{bits}"])
                host = 32 if either.family is FOUR else 128
                ip(
                    other,
                    f"addr add {address}/{host} dev lo{' nodad' if host == 128 else ''}",
                    f"route add {asked}/{host} via {name} src {address}",
                )
                # The program stands on the links that there were; this one is such as well.
                with made.program_on("liar"), other.entered():
                    for _ in range(20):
                        with socket.socket(either.family.kind, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as sock:
                            sock.bind((address, 0))
                            sock.connect_ex((asked, 53))
                            await asyncio.sleep(0.005)
            assert not made.care.open
            made.openings.look(made.relay.now(), 1000)
            assert opened == sum(slot.counted.opened for one in made.openings.repeats for slot in one.slots if slot)

    scene(play)


@pytest.mark.parametrize("setting", [{"ipv4__tcp_timestamps": 0}, {"ipv4__tcp_ecn": 1}, {"ipv4__tcp_sack": 0}])
def test_a_client_that_speaks_otherwise_comes_the_whole_way(setting: dict[str, int]) -> None:
    async def play() -> None:
        with grounded(FOUR) as ground:
            async with opening(ground) as made:
                await made.often()
                sysctl(ground.clients, **setting)
                assert await whole_way(made, 40) == 40

    scene(play)


def test_a_client_stays_with_its_endpoint_where_the_service_has_affinity(either: Ground) -> None:
    async def play() -> None:
        async with opening(either, 3, affinity_s=600) as made:
            await made.often()
            before = made.relay.counts.accepted
            assert len({await made.ask() for _ in range(100)}) == 1
            assert made.relay.counts.accepted - before < 20

    scene(play)


@pytest.mark.parametrize("rest", [{"proxy_protocol": 1}, {"preserve_source": True}])
def test_what_a_worker_has_to_add_it_adds_to_every_connection(ground: Ground, rest: dict[str, int]) -> None:
    async def play() -> None:
        async with opening(ground, **rest) as made:
            assert await whole_way(made, 100) == 100
            assert not made.openings.repeats

    scene(play)


def test_an_endpoint_that_was_not_verified_of_late_is_in_no_ring(ground: Ground) -> None:
    async def play() -> None:
        async with opening(ground, 2) as made:
            await made.often()
            (repeat,) = made.openings.repeats
            made.relay.later += FRESH_S + 1
            made.openings._choose(repeat, made.relay.now())
            assert await whole_way(made, 2) == 2, "nobody was verified"
            await made.often()
            assert await whole_way(made, 100) < 20

    scene(play)


def test_of_two_workers_one_has_the_ring_of_a_client(ground: Ground) -> None:
    async def play() -> None:
        async with opening(ground) as made:
            await made.often()
            (repeat,) = made.openings.repeats
            assert repeat.ring is not None
            assert not made.openings.opened.lead(repeat.ring + 1, repeat.key)

    scene(play)


def test_an_endpoint_of_the_node_itself_is_reached_the_whole_way(ground: Ground) -> None:
    async def play() -> None:
        async with opening(ground) as made:
            end = (ground.family.node, ENDS)
            with ground.node.entered():
                ear = socket.create_server(end, family=ground.family.kind)
            ear.setblocking(False)
            pod = Pod.__new__(Pod)
            pod.end, pod.ear = end, ear
            with ear:
                made._start(made.serve(pod))
                made.relay.use(target(ground.family, end))
                assert await whole_way(made, 100) == 100
                assert not made.openings.by_ring

    scene(play)


def test_the_nodes_own_connections_have_no_ring(ground: Ground) -> None:
    async def play() -> None:
        async with opening(ground) as made:
            own = replace(ground, clients=ground.node, family=replace(ground.family, clients=(ground.family.node, "")))
            made.relay.ground = own
            assert await whole_way(made, 100) == 100
            assert made.openings.repeats and not made.openings.by_ring

    scene(play)


def test_no_more_are_opened_than_may_be_open(ground: Ground) -> None:
    async def play() -> None:
        async with opening(ground, most=8) as made:
            await made.often()
            made.stop()
            held = []
            for _ in range(8):
                held.append(await Client.connected(ground))
                await asyncio.sleep(0.01)
            try:
                await asyncio.sleep(0.12)
                assert made.relay.relay.opened > 0 and made.relay.relay.open + made.relay.relay.opened == 8
                assert await refused(ground) and made.relay.counts.shed == 1
            finally:
                for client in held:
                    client.sock.close()

    scene(play)


def test_who_does_not_come_any_more_has_no_ring(ground: Ground) -> None:
    async def play() -> None:
        async with opening(ground) as made:
            await made.often()
            assert made.openings.by_ring
            made.relay.sweep(later=30)
            assert not made.openings.by_ring and not made.openings.repeats
            await made.often()

    scene(play)
