"""The life of a connection that the kernel has opened (relay/kernel_opening.py, kernel_ending.py), with real packets: octets, ends, rows.

What a worker does for it besides is in test_kernel_opened_care.py.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time

import pytest

from kproxy.relay import kernel_maps as layout
from kproxy.relay.connection import address_text
from kproxy.relay.counts import BEGAN, OPEN, RECEIVED, SENT
from kproxy.relay.targets import End, Flow
from tests.packet.kernel_ground import summing
from tests.packet.opening_ground import Opening, opened_pair, opening
from tests.packet.streaming import filtering, losing, stream_both_ways, talk
from tests.packet.tcp_ground import (
    NAME,
    PORT,
    Client,
    Ground,
    heard,
    heard_all,
    reset,
    scene,
    sent,
    until,
)

_COLUMNS = (BEGAN, OPEN, SENT, RECEIVED)


def _rows(made: Opening, end: End | None = None) -> list[int]:
    """Connections that began, those that are open, octets there and back, up to now."""
    made.relay.sweep()
    return [made.relay.row(column, end) for column in _COLUMNS]


async def _over(made: Opening) -> None:
    """Until nothing is open."""
    await until(lambda: not made.care.open and not made.relay.relay.open, 5)


def _flow(made: Opening) -> Flow:
    (flow,) = made.care.flows(os.getpid(), 0.0)
    return flow


# --- octets ---------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sums", ["nobody", "peers", "the node"])
def test_no_octet_is_lost_or_changed(either: Ground, sums: str) -> None:
    async def play() -> None:
        async with opened_pair(either) as (made, client, server):
            await stream_both_ways(client, server, 1, 8_000_000)
            assert made.care.open == 1 and not made.relay.relay.open
            assert min(_rows(made)[2:]) >= 8_000_000, "the kernel counts what is sent again, too"

    with summing(sums, either):
        scene(play)


@pytest.mark.parametrize("sums", ["nobody", "peers", "the node"])
def test_lost_packets_are_sent_again_by_whoever_sent_them(either: Ground, sums: str) -> None:
    async def play() -> None:
        async with opened_pair(either) as (made, client, server):
            with losing(either):
                await stream_both_ways(client, server, 2, 2_000_000)
            await talk(client, server)
            assert made.care.open == 1
            client.close()
            server.close()
            await _over(made)

    with summing(sums, either):
        scene(play)


def test_urgent_octets_are_urgent_on_the_other_side(either: Ground) -> None:
    async def play() -> None:
        async with opened_pair(either) as (_, client, server):
            for here, there in ((client, server), (server, client)):
                there.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 0)
                here.send(b"plain")
                assert await heard(there) == b"plain"
                here.send(b"and!", socket.MSG_OOB)
                assert await heard(there) == b"and"
                assert there.recv(1, socket.MSG_OOB) == b"!"
            await talk(client, server)

    scene(play)


# --- ends -----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", ["client", "server"])
def test_the_end_of_one_direction_leaves_the_other_open(either: Ground, first: str) -> None:
    async def play() -> None:
        async with opened_pair(either) as (made, client, server):
            end = made.pods[0].end
            before, before_end = _rows(made), _rows(made, end)
            here, there = (client, server) if first == "client" else (server, client)
            await sent(here, b"last words")
            here.shutdown(socket.SHUT_WR)
            assert await heard_all(there) == b"last words"
            for words in (b"still", b"here"):
                await sent(there, words)
                assert await heard(here) == words
                assert _flow(made).state == "half-closed"
                assert _rows(made)[1] == 1
            there.shutdown(socket.SHUT_WR)
            assert await heard(here) == b""
            await _over(made)
            octets = [10, 9] if first == "client" else [9, 10]
            for _ in range(3):  # told once
                assert _rows(made) == [before[0], 0, before[2] + octets[0], before[3] + octets[1]]
                assert _rows(made, end) == [before_end[0], 0, before_end[2] + octets[0], before_end[3] + octets[1]]
            assert not [*made.relay.relay.flows(10)]

    scene(play)


def test_both_ends_may_meet_on_their_way(either: Ground) -> None:
    async def play() -> None:
        async with opened_pair(either) as (made, client, server):
            await talk(client, server)
            before = _rows(made)
            with filtering(either, "prerouting", "tcp flags & fin == fin drop", either.clients, either.pods):
                client.shutdown(socket.SHUT_WR)
                server.shutdown(socket.SHUT_WR)
                await until(lambda: _flow(made).state == "half-closed")
                await asyncio.sleep(1)
                assert made.care.open == 1, "neither has heard of the other's end, although both have said it again"
            assert await heard(server) == await heard(client) == b""
            await _over(made)
            assert _rows(made) == [before[0], 0, *before[2:]]

    scene(play)


@pytest.mark.parametrize("first", ["client", "server"])
def test_an_end_may_overtake_what_is_lost(either: Ground, first: str) -> None:
    """What is sent again then is no step back for who looks how far they are."""

    async def play() -> None:
        async with opened_pair(either) as (made, client, server):
            await talk(client, server)
            here, there = (client, server) if first == "client" else (server, client)
            with filtering(
                either,
                "prerouting",
                "tcp flags & (psh | fin) == psh drop",
                either.pods if here is client else either.clients,
            ):
                await sent(here, b"late")
                here.shutdown(socket.SHUT_WR)
                await until(lambda: _flow(made).state == "half-closed")
            assert await heard_all(there) == b"late"
            there.shutdown(socket.SHUT_WR)
            assert await heard(here) == b""
            await _over(made)

    scene(play)


async def _echo(made: Opening, times: int, first: str) -> None:
    """One connection after the other that asks twice; who ends first."""
    for number in range(times):
        client = await Client.connected(made.relay.ground)
        with client as here, await made.pods[0].accepted() as there:
            await talk(here, there, number)
            one, other = (here, there) if first == "client" else (there, here)
            one.close()
            assert await heard(other) == b""


@pytest.mark.parametrize("first", ["client", "server"])
def test_many_that_end_soon_are_all_counted_and_none_is_left(either: Ground, first: str) -> None:
    async def play() -> None:
        async with opening(either) as made:
            await made.often()
            made.stop()
            await asyncio.sleep(0)
            await _over(made)
            end = made.pods[0].end
            before, before_end, opened = _rows(made), _rows(made, end), made.relay.counts.opened
            await _echo(made, 300, first)
            await _over(made)
            there = sum(len(b"question %d" % number) for number in range(300))
            back = sum(3 * len(b"answer %d " % number) for number in range(300))
            for rows, were in ((_rows(made), before), (_rows(made, end), before_end)):
                assert rows == [were[0] + 300, 0, were[2] + there, were[3] + back]
            assert made.relay.counts.opened - opened > 250
            assert made.relay.chooser.open_to(end) == 0

    scene(play)


def test_many_at_once_are_open_and_then_none(either: Ground) -> None:
    async def play() -> None:
        async with opening(either) as made:
            await made.often()
            made.stop()
            await asyncio.sleep(0)
            await _over(made)
            before = _rows(made)
            clients, servers = [], []
            for _ in range(60):
                clients.append((await Client.connected(either)).sock)
                servers.append(await made.pods[0].accepted())
            assert _rows(made)[:2] == [before[0] + 60, 60]
            assert made.relay.chooser.open_to(made.pods[0].end) == 60
            for sock in clients + servers:
                sock.close()
            await _over(made)
            assert _rows(made) == [before[0] + 60, 0, *before[2:]]
            assert made.relay.chooser.open_to(made.pods[0].end) == 0

    scene(play)


@pytest.mark.parametrize("first", ["client", "server"])
def test_a_reset_is_passed_on(either: Ground, first: str) -> None:
    async def play() -> None:
        async with opened_pair(either) as (made, client, server):
            await talk(client, server)
            before = _rows(made)
            here, there = (client, server) if first == "client" else (server, client)
            reset(here)
            with pytest.raises(ConnectionResetError):
                await heard(there)
            await _over(made)
            assert _rows(made) == [before[0], 0, *before[2:]]
            states = [made.openings.opened.flows.state(place) for place in range(layout.HANDED, layout.PER_SLOT)]
            assert states.count(layout.VACANT) == made.openings.opened.room and not states.count(layout.FORWARD)

    scene(play)


# --- for people -----------------------------------------------------------------------------------------------------------------------


def test_what_is_open_is_told_as_the_peers_know_it(either: Ground) -> None:
    async def play() -> None:
        async with opened_pair(either) as (made, client, server):
            began = time.time()
            await talk(client, server)
            (flow,) = made.relay.relay.flows(10)
            assert abs(flow.began - began) < 5
            (same,) = made.care.flows(flow.worker, flow.began - _flow(made).began)
            assert same == flow
            assert (flow.worker, flow.protocol, flow.service, flow.in_kernel) == (os.getpid(), "TCP", NAME, True)
            assert flow.client == address_text(client.getsockname()[:2])
            assert flow.virtual == address_text(client.getpeername()[:2]) == address_text((either.family.asked, PORT))
            assert flow.source == address_text(server.getpeername()[:2])
            assert flow.endpoint == address_text(server.getsockname()[:2])
            assert (flow.sent, flow.received) == (len("question 0"), 3 * len("answer 0 "))
            assert flow.state == "open"
            client.shutdown(socket.SHUT_WR)
            assert await heard(server) == b""
            assert made.relay.relay.flows(10)[0].state == "half-closed"

    scene(play)


def test_no_more_are_told_than_are_wanted(either: Ground) -> None:
    async def play() -> None:
        async with opened_pair(either) as (made, *_):
            one, other = await made.pair()
            with one, other:
                assert [len(made.relay.relay.flows(limit)) for limit in (0, 1, 2, 3)] == [0, 1, 2, 2]

    scene(play)


# --- again ----------------------------------------------------------------------------------------------------------------------------


async def _unheard(made: Opening) -> socket.socket | None:
    """A client whose acknowledgement was lost until the endpoint had answered once more; None if it came the whole way."""
    ground, pod, flows = made.relay.ground, made.pods[0], made.openings.opened.flows
    with filtering(ground, "postrouting", "tcp flags & (syn | ack) == ack drop", ground.clients):
        client = await Client.connected(ground)
        place = next((one.place for one in made.openings.opened.open()), None)
        if place is not None:
            assert pod.nobody
            await until(lambda: flows.passed(place).packets[1] >= 2)
            assert pod.nobody
            return client.sock
    client.sock.close()
    (await pod.accepted()).close()
    return None


def test_an_answer_to_a_syn_that_comes_again_reaches_the_client_again(either: Ground) -> None:
    """Its acknowledgement was lost: the endpoint accepts nobody before the client has said it once more."""

    async def play() -> None:
        async with opened_pair(either) as (made, *first):
            for sock in first:
                sock.close()
            await _over(made)
            before = _rows(made)
            while (client := await _unheard(made)) is None:
                before[0] += 1
            with client as here, await made.pods[0].accepted() as there:
                await talk(here, there)
                assert _rows(made)[:2] == [before[0] + 1, 1]
            await _over(made)
            assert _rows(made)[:2] == [before[0] + 1, 0]

    scene(play)


def test_a_client_that_begins_anew_from_the_same_port_comes_the_whole_way(either: Ground) -> None:
    """It died without a word. Its old connection is over; what its endpoint still says of it is answered by a reset."""

    async def play() -> None:
        async with opened_pair(either) as (made, client, server):
            await talk(client, server)
            before, accepted = _rows(made), made.relay.counts.accepted
            name = client.getsockname()
            with filtering(either, "postrouting", "tcp flags & rst == rst drop", either.clients):
                reset(client)
                await asyncio.sleep(0.05)
            assert made.care.open == 1, "nobody knows it yet"
            with either.clients.entered():
                again = socket.socket(either.family.kind, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            with again:
                again.bind(name)
                async with asyncio.timeout(5):
                    await asyncio.get_running_loop().sock_connect(again, (either.family.asked, PORT))
                with await made.pods[0].accepted() as there:
                    await talk(again, there)
                    assert made.care.open == 0 and made.relay.relay.open == 1
                    assert made.relay.counts.accepted == accepted + 1
                    assert _rows(made)[:2] == [before[0] + 1, 1]
                    server.send(b"are you there?")
                    with pytest.raises(ConnectionResetError):
                        await heard(server)
                    await talk(again, there)

    scene(play)
