"""TCP connections that the kernel carries (relay/kernel_streams.py), with real packets: handed over in the middle of whatever they do."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator

import pytest

from kproxy.relay.kernel_flows import KernelFlows
from kproxy.relay.kernel_maps import FORWARD, FROM_CLIENT, HANDED, OVER
from kproxy.relay.kernel_numbers import info_of
from kproxy.relay.kernel_reset import Resets
from kproxy.relay.kernel_streams import FRESH_S, Handed, KernelStreams
from tests.packet.kernel_ground import kernel, without_offload
from tests.packet.streaming import losing, stream_both_ways, talk
from tests.packet.tcp_ground import (
    ENDS,
    PORT,
    Client,
    Ground,
    Pod,
    Relay,
    heard,
    heard_all,
    relaying,
    reset,
    scene,
    sent,
    silence,
    speak,
    target,
    until,
)


def _streams(relay: Relay) -> KernelStreams:
    assert relay.relay.kernel is not None
    return relay.relay.kernel.streams


@contextlib.asynccontextmanager
async def _pair(
    ground: Ground, **rest: object
) -> AsyncIterator[tuple[Relay, KernelFlows, socket.socket, socket.socket]]:
    """A client and its endpoint's side, through a relay that hands over what talks."""
    with (
        kernel(ground) as flows,
        Pod(ground) as pod,
        relaying(ground, target(ground.family, pod.end, **rest)) as relay,
    ):
        relay.relay.use_kernel(flows)
        try:
            client = await Client.connected(ground)
            with client as here, await pod.accepted() as there:
                yield relay, flows, here, there
        finally:
            relay.relay.close()
            relay.relay.use_kernel(None)


async def _handed(relay: Relay, client: socket.socket, server: socket.socket) -> None:
    """Talks until the kernel carries it."""
    async with asyncio.timeout(10):
        number = 0
        while not _streams(relay).forwarded:
            await talk(client, server, number)
            number += 1
            await asyncio.sleep(0.002)


async def _silent(*socks: socket.socket) -> None:
    """Until everything is acknowledged that was sent."""
    await until(lambda: not any(info_of(sock).unacknowledged for sock in socks))


async def _over(relay: Relay) -> None:
    """Until the relay has seen that it is."""
    async with asyncio.timeout(10):
        while relay.relay.open:
            relay.sweep()
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("offload", [True, False], ids=["offload", "software checksums"])
def test_no_octet_is_lost_or_changed_whenever_it_is_handed_over(either: Ground, seed: int, offload: bool) -> None:
    async def play() -> None:
        async with _pair(either) as (relay, _, client, server):
            size = 8_000_000
            await stream_both_ways(client, server, seed, size)
            await _handed(relay, client, server)
            await stream_both_ways(client, server, seed, size)

    with contextlib.nullcontext() if offload else without_offload(either.clients, either.pods):
        scene(play)


def test_what_is_carried_comes_by_no_socket_and_is_counted(either: Ground) -> None:
    async def play() -> None:
        async with _pair(either) as (relay, flows, client, server):
            await _handed(relay, client, server)
            (handed,) = _streams(relay)._forwarded
            await talk(client, server)  # the relay's sockets hear what they still wait for
            connection = handed.connection
            before = connection.client.octets, connection.server.octets
            flow_before = relay.relay.flows(1)[0]
            for number in range(100):
                await talk(client, server, number)
            assert (connection.client.octets, connection.server.octets) == before
            assert min(flows.passed(handed.place).packets) >= 100
            relay.sweep()
            (flow,) = relay.relay.flows(1)
            assert flow.sent - flow_before.sent >= sum(len(b"question %d" % number) for number in range(100))
            assert flow.received - flow_before.received >= sum(3 * len(b"answer %d " % number) for number in range(100))
            assert flow.state == "open" and flow.in_kernel

    scene(play)


@pytest.mark.parametrize("offload", [True, False], ids=["offload", "software checksums"])
def test_the_relay_s_own_sockets_hear_what_they_wait_for(either: Ground, offload: bool) -> None:
    """Else they would send it again, and after a quarter of an hour give the connection up."""

    async def play() -> None:
        async with _pair(either) as (relay, flows, client, server):
            await _handed(relay, client, server)
            (handed,) = _streams(relay)._forwarded
            connection = handed.connection
            await talk(client, server)
            await until(lambda: not info_of(connection.client.sock).unacknowledged)
            await until(lambda: not info_of(connection.server.sock).unacknowledged)
            await talk(client, server)
            await until(lambda: all(flows.settled(handed.place)))

    with contextlib.nullcontext() if offload else without_offload(either.clients, either.pods):
        scene(play)


@pytest.mark.parametrize("first", ["client", "server"])
def test_what_came_a_moment_before_goes_on_by_the_sockets(either: Ground, first: str) -> None:
    async def play() -> None:
        async with _pair(either) as (relay, _, client, server):
            await talk(client, server)
            streams = _streams(relay)
            (connection,) = relay.relay._fresh
            streams.observe(connection, relay.now())
            (handed,) = streams._observed
            while streams._times(handed) < 5:
                await talk(client, server)
            here, there = (client, server) if first == "client" else (server, client)
            here.send(b"before")  # is in the relay's socket, and nobody has read it
            del streams._observed[handed]
            assert streams._hand_over(handed)
            here.send(b", after")  # is there first
            found = b""
            while len(found) < 13:
                found += await heard(there)
            assert found == b"before, after"
            await talk(client, server)

    scene(play)


@pytest.mark.parametrize("first", ["client", "server"])
def test_the_end_of_one_direction_leaves_the_other_open(either: Ground, first: str) -> None:
    async def play() -> None:
        async with _pair(either) as (relay, flows, client, server):
            await _handed(relay, client, server)
            here, there = (client, server) if first == "client" else (server, client)
            await sent(here, b"last words")
            here.shutdown(socket.SHUT_WR)
            assert await heard_all(there) == b"last words"
            assert relay.relay.flows(1)[0].state == "half-closed"
            for words in (b"still", b"here"):
                await sent(there, words)
                assert await heard(here) == words
            there.shutdown(socket.SHUT_WR)
            assert await heard(here) == b""
            await _over(relay)
            assert flows.free == HANDED

    scene(play)


@pytest.mark.parametrize("first", ["client", "server"])
def test_a_reset_is_passed_on(either: Ground, first: str) -> None:
    async def play() -> None:
        async with _pair(either) as (relay, flows, client, server):
            await _handed(relay, client, server)
            await talk(client, server)
            here, there = (client, server) if first == "client" else (server, client)
            reset(here)
            with pytest.raises(ConnectionResetError):
                await heard(there)
            relay.sweep()
            assert relay.relay.open == 0 and flows.free == HANDED

    scene(play)


def test_who_decides_that_it_is_enough_resets_both(either: Ground) -> None:
    async def play() -> None:
        async with _pair(either) as (relay, _, client, server):
            await _handed(relay, client, server)
            await talk(client, server)
            await _silent(client, server)
            relay.relay.close()
            for sock in (client, server):
                with pytest.raises(ConnectionResetError):
                    await heard(sock)

    scene(play)


def test_a_proxy_header_moves_the_octets_behind_it(either: Ground) -> None:
    async def play() -> None:
        async with _pair(either, proxy_protocol=2) as (relay, _, client, server):
            await sent(client, b"x")
            header = await heard(server)
            if not header.endswith(b"x"):
                assert await heard(server) == b"x"
            await _handed(relay, client, server)
            await talk(client, server)

    scene(play)


def test_lost_packets_are_sent_again_by_whoever_sent_them(either: Ground) -> None:
    async def play() -> None:
        async with _pair(either) as (relay, _, client, server):
            with losing(either):
                await _handed(relay, client, server)
                await stream_both_ways(client, server, 1, 2_000_000)

    scene(play)


def test_a_client_that_begins_anew_from_the_same_port_is_a_new_connection(either: Ground) -> None:
    async def play() -> None:
        async with _pair(either) as (relay, _flows, client, server):
            await _handed(relay, client, server)
            name = client.getsockname()
            reset(client)
            with pytest.raises(ConnectionResetError):
                await heard(server)
            with Pod(either, 1) as other:
                relay.use(target(either.family, other.end))
                with either.clients.entered():
                    again = socket.socket(either.family.kind, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
                with again:
                    again.bind(name)
                    async with asyncio.timeout(5):
                        await asyncio.get_running_loop().sock_connect(again, (either.family.asked, PORT))
                    with await other.accepted() as there:
                        await talk(again, there)

    scene(play)


def test_who_says_nothing_any_more_is_gone(either: Ground) -> None:
    """Both are asked after a minute: who is there answers; when the endpoint's host has vanished, the client is told so."""

    async def play() -> None:
        async with _pair(either) as (relay, flows, client, server):
            await _handed(relay, client, server)
            await talk(client, server)
            (handed,) = _streams(relay)._forwarded
            await _silent(client, server)
            seen = flows.passed(handed.place).seen
            relay.sweep(61)
            await until(
                lambda: all(now > then for now, then in zip(flows.passed(handed.place).seen, seen, strict=True))
            )
            relay.later = 0.0
            relay.sweep()
            await talk(client, server)
            silence(either, (either.family.pods[0], ENDS))
            try:
                for _ in range(7):
                    relay.sweep(61)
                assert relay.relay.open == 0
                with pytest.raises(ConnectionResetError):
                    await heard(client)
            finally:
                speak(either)

    scene(play)


def _forged(ground: Ground, handed: Handed, number: int) -> None:
    """A reset that says it is the client's, and comes by the link of the endpoints."""
    with ground.pods.entered():
        resets = Resets()
        resets.send(handed.ways[0].arriving, number & 0xFFFFFFFF)
        resets.close()


def test_what_comes_by_another_link_is_not_the_flow_s(either: Ground) -> None:
    """A pod that calls itself the client, and even knows the number that the endpoint waits for."""

    async def play() -> None:
        async with _pair(either) as (relay, flows, client, server):
            await _handed(relay, client, server)
            await talk(client, server)
            (handed,) = _streams(relay)._forwarded
            before = flows.passed(handed.place).packets
            number = flows.reached(handed.place, FROM_CLIENT) - handed.ways[0].shift.sequence
            _forged(either, handed, number)
            await talk(client, server, 1)
            assert relay.relay.open == 1 and flows.state(handed.place) == FORWARD
            assert flows.passed(handed.place).packets[0] > before[0]

    scene(play)


def test_nothing_is_handed_over_while_two_links_claim_to_be_the_client(either: Ground) -> None:
    async def play() -> None:
        async with _pair(either) as (relay, flows, client, server):
            await talk(client, server)
            streams = _streams(relay)
            (connection,) = relay.relay._fresh
            streams.observe(connection, relay.now())
            (handed,) = streams._observed
            await talk(client, server)
            _forged(either, handed, 1)
            await until(lambda: flows.state(handed.place) == OVER)
            await talk(client, server)
            await until(lambda: connection.handed is not handed)
            await _handed(relay, client, server)  # the next time, nobody disturbs

    scene(play)


def test_one_that_begins_to_talk_late_is_handed_over_as_well(either: Ground) -> None:
    async def play() -> None:
        async with _pair(either) as (relay, _, client, server):
            await talk(client, server)
            relay.sweep()
            relay.sweep(FRESH_S + 1)
            assert not relay.relay._fresh and not _streams(relay)._observed
            async with asyncio.timeout(10):
                while not _streams(relay).forwarded:
                    await talk(client, server)
                    relay.sweep()
                    await asyncio.sleep(0.01)
            await talk(client, server)

    scene(play)
