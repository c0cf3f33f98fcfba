"""The TCP relay with real packets: what a client and an endpoint say, how they end, and how an endpoint is found for a client."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import os
import random
import resource
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from kproxy.relay.counts import BEGAN, FAILED, GAVE_UP, OPEN, RECEIVED, RETRIES, SENT
from kproxy.relay.stream import Buffers
from kproxy.relay.targets import End, Target
from tests.packet.tcp_ground import (
    ENDS,
    FOUR,
    NAME,
    PORT,
    SIX,
    Client,
    Family,
    Ground,
    Pod,
    Relay,
    grounded,
    heard,
    heard_all,
    refused,
    relaying,
    reset,
    scene,
    sent,
    silence,
    speak,
    target,
    until,
)
from tests.support.netns import run


@pytest.fixture(scope="module")
def ground() -> Iterator[Ground]:
    with grounded(FOUR) as made:
        yield made


def _ends(family: Family, *pods: int) -> list[End]:
    return [(family.pods[pod], ENDS) for pod in pods]


@contextlib.asynccontextmanager
async def _pair(ground: Ground, **rest: object) -> AsyncIterator[tuple[Relay, socket.socket, socket.socket]]:
    """A client and its endpoint's side, through the relay."""
    with Pod(ground) as pod, relaying(ground, target(ground.family, pod.end, **rest)) as relay:
        client = await Client.connected(ground)
        with client as here, await pod.accepted() as there:
            yield relay, here, there


def _text(end: tuple[object, ...]) -> str:
    return f"[{end[0]}]:{end[1]}" if ":" in str(end[0]) else f"{end[0]}:{end[1]}"


def test_octets_pass_both_ways_and_are_counted(either: Ground) -> None:
    """The client talks to the address it asked for; the endpoint sees the node's; people see both."""

    async def play() -> None:
        async with _pair(either) as (relay, client, server):
            assert client.getpeername()[:2] == (either.family.asked, PORT)
            await sent(server, b"220 the server speaks first\r\n")
            assert await heard(client) == b"220 the server speaks first\r\n"
            await sent(client, b"question")
            assert await heard(server) == b"question"
            assert server.getpeername()[0] == either.family.node
            relay.sweep()
            end = either.family.pods[0], ENDS
            for row in (relay.counts.service(NAME), relay.counts.endpoint(NAME, end)):
                assert [row[i] for i in (BEGAN, OPEN, SENT, RECEIVED, FAILED)] == [1, 1, 8, 29, 0]
            (flow,) = relay.relay.flows(10)
            assert (flow.client, flow.virtual) == (_text(client.getsockname()), _text(client.getpeername()))
            assert (flow.endpoint, flow.source) == (_text(end), _text(server.getpeername()))
            assert (flow.service, flow.sent, flow.received, flow.state, flow.retries) == (NAME, 8, 29, "open", 0)
            await sent(client, b", again")
            assert await heard(server) == b", again"
            relay.sweep()
            assert relay.row(SENT) == relay.row(SENT, end) == 15
            client.close()
            server.close()
            await until(lambda: not relay.relay.open)
            assert relay.row(OPEN) == 0 and relay.row(SENT, end) == 15
            assert relay.chooser.open_to(end) == 0 and relay.relay.flows(10) == []

    scene(play)


@pytest.mark.parametrize("first", ["client", "server"])
def test_the_end_of_one_direction_leaves_the_other_open(either: Ground, first: str) -> None:
    async def play() -> None:
        async with _pair(either) as (relay, client, server):
            here, there = (client, server) if first == "client" else (server, client)
            await sent(here, b"last words")
            here.shutdown(socket.SHUT_WR)
            assert await heard_all(there) == b"last words"
            assert relay.relay.flows(1)[0].state == "half-closed"
            for words in (b"still", b"here"):
                await sent(there, words)
                assert await heard(here) == words
            there.close()
            assert await heard(here) == b""
            await until(lambda: not relay.relay.open)

    scene(play)


@pytest.mark.parametrize("first", ["client", "server"])
def test_a_reset_is_passed_on_and_what_was_said_before_arrives(either: Ground, first: str) -> None:
    async def play() -> None:
        async with _pair(either) as (relay, client, server):
            here, there = (client, server) if first == "client" else (server, client)
            await sent(here, b"x" * 1000)
            await until(lambda: sum((relay.relay.flows(1)[0].sent, relay.relay.flows(1)[0].received)) == 1000)
            reset(here)
            await until(lambda: not relay.relay.open)
            assert await heard(there) == b"x" * 1000
            with pytest.raises(ConnectionResetError):
                await heard(there)

    scene(play)


def test_an_answer_arrives_although_the_server_did_not_read_the_question(ground: Ground) -> None:
    """A server that answers and closes with unread data resets the connection; the client is still sending then."""

    async def play() -> None:
        async with _pair(ground) as (_, client, server):
            await sent(client, b"q" * 100_000)
            await sent(server, b"413 too much")
            server.close()
            with contextlib.suppress(ConnectionError):
                await sent(client, b"q" * 100_000)
            assert await heard(client) == b"413 too much"

    scene(play)


@pytest.mark.parametrize("first", ["client", "server"])
def test_who_does_not_read_stops_the_sender_and_nothing_is_lost(ground: Ground, first: str) -> None:
    """24 MiB to somebody who does not read: little of it waits in the relay, and all of it arrives, with the end behind it."""
    words = random.Random(1).randbytes(24 << 20)

    async def play() -> None:
        async with _pair(ground) as (relay, client, server):
            here, there = (client, server) if first == "client" else (server, client)

            async def send() -> None:
                await sent(here, words)
                here.shutdown(socket.SHUT_WR)

            def carried() -> int:
                flow = relay.relay.flows(1)[0]
                return flow.sent + flow.received

            sending = asyncio.ensure_future(send())
            await until(lambda: relay.relay.buffers.waiting > 0)
            seen = -1
            while seen != carried():  # until it stands still
                seen = carried()
                await asyncio.sleep(0.1)
            assert not sending.done() and seen < len(words)
            assert 0 < relay.relay.buffers.waiting <= Buffers.LARGE
            got = hashlib.sha256(await heard_all(there)).digest()
            await sending
            assert got == hashlib.sha256(words).digest()
            await sent(there, b"thanks")
            assert await heard(here) == b"thanks"

    scene(play)


@pytest.mark.parametrize("first", ["client", "server"])
def test_a_reset_is_noticed_while_nobody_reads(ground: Ground, first: str) -> None:
    async def play() -> None:
        async with _pair(ground) as (relay, client, server):
            here, there = (client, server) if first == "client" else (server, client)
            sending = asyncio.ensure_future(sent(here, b"x" * (24 << 20)))
            await until(lambda: relay.relay.buffers.waiting > 0)
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
            reset(here)
            await until(lambda: not relay.relay.open)
            with pytest.raises(ConnectionResetError):
                await heard_all(there)

    scene(play)


def test_a_greedy_connection_does_not_hold_others_up(ground: Ground) -> None:
    """While one carries all it can, everybody has a turn after a few reads of it at the most, and others are served."""

    async def play() -> None:
        async with _pair(ground) as (relay, client, server), _pouring(client, server) as stop:
            moved: list[int] = []
            running = asyncio.get_running_loop()

            def look(before: int) -> None:
                """Once in every turn of the loop."""
                now = relay.relay.flows(1)[0].sent
                moved.append(now - before)
                if not stop.is_set():
                    running.call_soon(look, now)

            with Pod(ground, 1) as pod:
                relay.use(target(ground.family, pod.end))
                with await Client.connected(ground) as asker, await pod.accepted() as answerer:
                    look(relay.relay.flows(1)[0].sent)
                    for _ in range(20):
                        await sent(asker, b"?")
                        assert await heard(answerer) == b"?"
                        await sent(answerer, b"!")
                        assert await heard(asker) == b"!"
                    await until(lambda: sum(moved) > 8 * Buffers.LARGE)
                    stop.set()
                    assert max(moved) <= 3 * Buffers.LARGE

    scene(play)


@contextlib.asynccontextmanager
async def _pouring(client: socket.socket, server: socket.socket) -> AsyncIterator[threading.Event]:
    """Threads that send and read as much as they can, until the event is set."""
    stop = threading.Event()
    for sock in (client, server):
        sock.settimeout(10)

    def send() -> None:
        words = bytes(1 << 20)
        while not stop.is_set():
            client.sendall(words)
        client.shutdown(socket.SHUT_WR)

    def read() -> None:
        while server.recv(1 << 20):
            pass

    work = [asyncio.to_thread(one) for one in (send, read)]
    running = asyncio.gather(*work)
    try:
        yield stop
    finally:
        stop.set()
        await running


@pytest.mark.parametrize("ended", [False, True])
def test_urgent_data_does_not_stop_what_follows_it(ground: Ground, ended: bool) -> None:
    """A read ends at the urgent octet, and no further edge comes for what stands behind it: more octets, or these and the end."""

    async def play() -> None:
        async with _pair(ground) as (_, client, server):
            client.send(b"before")
            client.send(b"!", socket.MSG_OOB)
            client.send(b"after")
            if ended:
                client.shutdown(socket.SHUT_WR)
                assert await heard_all(server) == b"beforeafter"
                return
            got = b""
            while len(got) < 11:
                got += await heard(server)
            assert got == b"beforeafter"

    scene(play)


@pytest.mark.parametrize("first", ["client", "server"])
def test_octets_that_come_with_the_end_are_passed_on_before_it(ground: Ground, first: str) -> None:
    """A few, as many as one read takes, and more than that: all that waits when the relay first hears of it."""

    async def play() -> None:
        for size in (1, Buffers.SMALL - 1, Buffers.SMALL, 3 * Buffers.SMALL + 1):
            async with _pair(ground) as (relay, client, server):
                relay.relay.buffers.kept(Buffers.MUCH + 1)  # so that everybody reads little
                here, there = (client, server) if first == "client" else (server, client)
                assert here.send(b"q" * size) == size
                here.shutdown(socket.SHUT_WR)
                assert await heard_all(there) == b"q" * size
                await sent(there, b"still open")
                assert await heard(here) == b"still open"
                relay.relay.buffers.kept(-Buffers.MUCH - 1)

    scene(play)


# --- finding an endpoint ------------------------------------------------------------------------------------------------------------------


def _in_order(relay: Relay, *ends: End, plain: bool = True) -> None:
    """The chooser's order is this one: what is tested is what the relay makes of it. plain: without a look at the client."""
    relay.chooser.first = lambda _: ends[0] if plain else None  # type: ignore[method-assign]
    relay.chooser.after = lambda *_: iter(ends[1:])  # type: ignore[method-assign]
    relay.chooser.order = lambda *_: iter(ends)  # type: ignore[method-assign]


@pytest.mark.parametrize("plain", [True, False])
def test_refused_the_next_endpoint_is_tried_at_once(either: Ground, plain: bool) -> None:
    async def play() -> None:
        refuses, serves = _ends(either.family, 0, 1)
        with Pod(either, 1) as pod, relaying(either, target(either.family, refuses, serves), hedge_after_s=30) as relay:
            _in_order(relay, refuses, serves, plain=plain)
            with await Client.connected(either) as client, await pod.accepted() as server:
                await sent(client, b"?")
                assert await heard(server) == b"?"
                assert relay.relay.flows(1)[0].retries == 1
            assert (relay.row(FAILED), relay.row(FAILED, refuses), relay.row(RETRIES)) == (1, 1, 1)
            assert relay.chooser.open_to(refuses) == 0

    scene(play)


def test_silent_another_endpoint_is_tried_beside_it_and_the_dead_one_is_ejected(either: Ground) -> None:
    async def play() -> None:
        dead, serves = (either.family.nowhere, ENDS), _ends(either.family, 1)[0]
        with Pod(either, 1) as pod, relaying(either, target(either.family, dead, serves), hedge_after_s=0.05) as relay:
            while not relay.chooser.ejected(relay.now()):
                assert relay.row(BEGAN) < 30, "the dead one is ejected some time"
                with await Client.connected(either) as client, await pod.accepted() as server:
                    await sent(server, b"welcome")
                    assert await heard(client) == b"welcome"
            assert relay.row(FAILED, dead) == 3 and relay.row(GAVE_UP) == 0
            (out,) = relay.chooser.ejected(relay.now())
            assert (out.address, out.port) == dead
            failed = relay.row(FAILED)
            for _ in range(10):  # within the second that it is left out
                with await Client.connected(either), await pod.accepted():
                    pass
            assert relay.row(FAILED) <= failed + 1

    scene(play)


def test_who_accepts_late_still_wins_when_nobody_else_does(ground: Ground) -> None:
    async def play() -> None:
        silence(ground, (ground.family.pods[0], ENDS))
        try:
            with Pod(ground) as pod, relaying(ground, target(ground.family, pod.end), hedge_after_s=0.05) as relay:
                with await Client.connected(ground) as client:
                    await sent(client, b"early")
                    await until(lambda: relay.relay.flows(1)[:1] != [])
                    (flow,) = relay.relay.flows(1)
                    assert (flow.state, flow.endpoint, flow.client) == ("connecting", "", _text(client.getsockname()))
                    speak(ground)
                    with await pod.accepted() as server:
                        assert await heard(server) == b"early"
                assert relay.row(RETRIES) == 0
        finally:
            speak(ground)

    scene(play)


def test_who_lost_is_closed_and_the_client_has_one_endpoint(ground: Ground) -> None:
    """Both accept in the end; the one that was not needed hears nothing but the end."""

    async def play() -> None:
        slow, quick = _ends(ground.family, 0, 1)
        silence(ground, slow)
        try:
            served = target(ground.family, slow, quick)
            with Pod(ground) as one, Pod(ground, 1) as two, relaying(ground, served, hedge_after_s=0.05) as relay:
                _in_order(relay, slow, quick)
                with await Client.connected(ground) as client, await two.accepted() as server:
                    await sent(client, b"?")
                    assert await heard(server) == b"?"
                    speak(ground)
                    assert (relay.chooser.open_to(slow), relay.chooser.open_to(quick)) == (0, 1)
                    assert relay.row(FAILED, slow) == 1
                assert one.nobody
        finally:
            speak(ground)

    scene(play)


def test_nobody_accepts_the_client_is_refused(either: Ground) -> None:
    """All refuse: at once. All are silent: when the time for connecting is over."""

    async def play() -> None:
        refuse = _ends(either.family, 0, 1)
        with relaying(either, target(either.family, *refuse)) as relay:
            assert await refused(either)
            assert (relay.row(GAVE_UP), relay.row(FAILED), relay.row(BEGAN)) == (1, 2, 0)
        dead = refuse[0]
        silence(either, dead)
        try:
            with relaying(either, target(either.family, dead), connect_timeout_s=0.3, hedge_after_s=0.05) as relay:
                assert await refused(either)
                assert (relay.row(GAVE_UP), relay.row(FAILED, dead), relay.relay.open) == (1, 1, 0)
        finally:
            speak(either)

    scene(play)


def test_a_client_that_gives_up_needs_no_endpoint(ground: Ground) -> None:
    async def play() -> None:
        dead = ground.family.nowhere, ENDS
        with relaying(ground, target(ground.family, dead), hedge_after_s=0.05) as relay:
            client = await Client.connected(ground)
            await until(lambda: relay.relay.open == 1)
            reset(client.sock)
            await until(lambda: relay.relay.open == 0)
            assert (relay.row(GAVE_UP), relay.row(FAILED), relay.chooser.open_to(dead)) == (0, 0, 0)

    scene(play)


@pytest.mark.parametrize("local", [True, False])
def test_a_local_endpoint_sees_the_client_if_wanted(either: Ground, local: bool) -> None:
    async def play() -> None:
        (end,) = _ends(either.family, 0)
        async with _pair(either, preserve_source=True, local=(end,) if local else ()) as (relay, client, server):
            assert server.getpeername()[0] == (either.family.clients[0] if local else either.family.node)
            await sent(client, b"?")
            assert await heard(server) == b"?"
            await sent(server, b"!" * 100_000)
            got = 0
            while got < 100_000:
                got += len(await heard(client))
            assert relay.relay.flows(1)[0].source == _text(server.getpeername())

    scene(play)


def test_many_connections_of_one_client_address_are_shown_at_once(ground: Ground) -> None:
    """The port is chosen by connect, so one address is not short of ports sooner than the node's own."""

    async def play() -> None:
        (end,) = _ends(ground.family, 0)
        with Pod(ground) as pod, relaying(ground, target(ground.family, end, preserve_source=True, local=(end,))):
            clients = [await Client.connected(ground, ground.family.clients[1]) for _ in range(50)]
            servers = [await pod.accepted() for _ in clients]
            seen = {server.getpeername()[:2] for server in servers}
            assert {address for address, _ in seen} == {ground.family.clients[1]} and len(seen) == 50
            for sock in (*(client.sock for client in clients), *servers):
                sock.close()

    scene(play)


def test_the_endpoint_itself_sees_the_node(ground: Ground) -> None:
    """A pod that comes back to itself would drop packets from its own address."""

    async def play() -> None:
        (end,) = _ends(ground.family, 0)
        with Pod(ground) as pod, relaying(ground, target(ground.family, end, preserve_source=True, local=(end,))):
            with ground.pods.entered():
                client = socket.socket()
            client.setblocking(False)
            client.bind((end[0], 0))
            await asyncio.get_running_loop().sock_connect(client, (ground.family.asked, PORT))
            with client, await pod.accepted() as server:
                assert server.getpeername()[0] == ground.family.node
                await sent(client, b"?")
                assert await heard(server) == b"?"

    scene(play)


@pytest.mark.parametrize("version", [1, 2])
def test_the_endpoint_is_told_of_the_client_first(either: Ground, version: int) -> None:
    async def play() -> None:
        async with _pair(either, proxy_protocol=version) as (_, client, server):
            await sent(client, b"GET /")
            got = b""
            while not got.endswith(b"GET /"):
                got += await heard(server)
            here, asked = client.getsockname(), client.getpeername()
            if version == 1:
                kind = "TCP6" if either.family is SIX else "TCP4"
                assert got == f"PROXY {kind} {here[0]} {asked[0]} {here[1]} {asked[1]}\r\nGET /".encode()
            else:
                packed = [socket.inet_pton(either.family.kind, end[0]) for end in (here, asked)]
                ports = here[1].to_bytes(2, "big") + asked[1].to_bytes(2, "big")
                assert got.startswith(b"\r\n\r\n\0\r\nQUIT\n\x21") and got.endswith(b"".join(packed) + ports + b"GET /")

    scene(play)


# --- bounds, drains, faults ---------------------------------------------------------------------------------------------------------------


def test_one_connection_too_many_is_refused_and_the_others_go_on(ground: Ground) -> None:
    async def play() -> None:
        with Pod(ground) as pod, relaying(ground, target(ground.family, pod.end), connections=3) as relay:
            clients = [(await Client.connected(ground)).sock for _ in range(3)]
            servers = [await pod.accepted() for _ in clients]
            assert await refused(ground)
            assert (relay.counts.shed, relay.relay.open) == (1, 3)
            for number, client in enumerate(clients):
                await sent(client, b"%d" % number)
            assert sorted([await heard(server) for server in servers]) == [b"0", b"1", b"2"]
            for sock in (*clients, *servers):
                sock.close()
            await until(lambda: relay.relay.open == 0)
            with await Client.connected(ground), await pod.accepted():
                assert relay.counts.shed == 1

    scene(play)


def test_without_descriptors_clients_are_refused_and_later_ones_are_served(ground: Ground) -> None:
    """The limit of the process is reached while clients wait: they are reset, counted, and nothing stands still."""

    async def play() -> None:
        with Pod(ground) as pod, relaying(ground, target(ground.family, pod.end)) as relay:
            clients = []
            for _ in range(12):
                with ground.clients.entered():
                    sock = socket.socket()
                sock.settimeout(5)
                sock.connect((ground.family.asked, PORT))  # without the loop: nobody accepts meanwhile
                sock.setblocking(False)
                clients.append(sock)
            before = resource.getrlimit(resource.RLIMIT_NOFILE)
            highest = max(int(one.name) for one in Path("/proc/self/fd").iterdir())
            holes = [os.open("/dev/null", os.O_RDONLY)]
            while holes[-1] < highest:
                holes.append(os.open("/dev/null", os.O_RDONLY))
            resource.setrlimit(resource.RLIMIT_NOFILE, (holes[-1] + 1 + 8, before[1]))
            try:
                await until(lambda: relay.counts.shed + relay.relay.open >= len(clients))
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, before)
                for fd in holes:
                    os.close(fd)
            assert relay.counts.shed > 0 and relay.relay.open > 0
            ended = 0
            for client in clients:
                try:
                    client.recv(1)
                except BlockingIOError:
                    (await pod.accepted()).close()
                except ConnectionResetError:
                    ended += 1
            assert ended == relay.counts.shed
            with await Client.connected(ground) as client, await pod.accepted() as server:
                await sent(client, b"later")
                assert await heard(server) == b"later"
            for client in clients:
                client.close()

    scene(play)


def test_what_the_table_does_not_know_is_refused(ground: Ground) -> None:
    async def play() -> None:
        with Pod(ground) as pod, relaying(ground, target(ground.family, pod.end)) as relay:
            relay.use()
            assert await refused(ground)
            assert relay.counts.unknown == 1 and pod.nobody

    scene(play)


def _changed(family: Family, ends: list[End], drain_s: float) -> Target:
    return target(family, *ends, drain_s=drain_s)


@pytest.mark.parametrize("left", ["another endpoint", "no Service"])
def test_a_connection_to_an_endpoint_that_is_gone_goes_on_for_as_long_as_wanted(ground: Ground, left: str) -> None:
    async def play() -> None:
        one, two = _ends(ground.family, 0, 1)
        for drain_s in (0.0, 5.0):
            async with _pair(ground, drain_s=drain_s) as (relay, client, server):
                relay.use(*([_changed(ground.family, [two], drain_s)] if left == "another endpoint" else []))
                relay.sweep()
                await sent(client, b"still")
                assert await heard(server) == b"still"
                assert relay.relay.flows(1)[0].state == ("draining" if drain_s else "open")
                relay.sweep(later=4.0)
                assert relay.relay.open == 1
                relay.use(_changed(ground.family, [one, two], drain_s))  # it is back
                relay.sweep(later=2.0)
                assert relay.relay.flows(1)[0].state == "open"
                relay.use(*([_changed(ground.family, [two], drain_s)] if left == "another endpoint" else []))
                relay.sweep()
                relay.sweep(later=6.0)
                if drain_s:
                    for sock in (client, server):
                        with pytest.raises(ConnectionResetError):
                            await heard(sock)
                else:
                    await sent(server, b"for ever")
                    assert await heard(client) == b"for ever"

    scene(play)


def _full(*_: object) -> None:
    raise OSError(errno.ENOSPC, "fs.epoll.max_user_watches")


def test_a_fault_of_ours_costs_one_connection(ground: Ground, caplog: pytest.LogCaptureFixture) -> None:
    """In the choice, or when epoll takes no more: the client is refused, the listener goes on. In a connection: both sides are reset."""

    async def play() -> None:
        with Pod(ground) as pod, relaying(ground, target(ground.family, pod.end), faults=3) as relay:
            first, relay.chooser.first = relay.chooser.first, lambda _: [][1]  # type: ignore[method-assign]
            assert await refused(ground)
            relay.chooser.first = lambda _: (ground.family.nowhere, ENDS)  # type: ignore[method-assign]
            add, relay.poller.add = relay.poller.add, _full  # type: ignore[method-assign]
            assert await refused(ground)
            assert relay.relay.open == 0
            relay.chooser.first, relay.poller.add = first, add  # type: ignore[method-assign]
            one, two = await Client.connected(ground), await Client.connected(ground)
            with one as client, await pod.accepted() as server, two as other, await pod.accepted() as third:
                buffers, relay.relay.buffers.view = relay.relay.buffers.view, None  # type: ignore[assignment]
                await sent(client, b"?")
                for sock in (client, server):
                    with pytest.raises(ConnectionResetError):
                        await heard(sock)
                relay.relay.buffers.view = buffers
                await sent(other, b"?")
                assert await heard(third) == b"?"

    scene(play)
    assert caplog.text.count("Traceback") == 3


def test_both_peers_are_looked_after_once_a_connection_is_old(ground: Ground) -> None:
    """`ss` shows the keep-alive timer of both sockets."""

    async def play() -> None:
        async with _pair(ground) as (relay, _, _server):
            relay.sweep(later=5.0)
            assert _timers(ground) == 0
            relay.sweep(later=6.0)
            assert _timers(ground) == 2

    scene(play)


def _timers(ground: Ground) -> int:
    return run(ground.node, "ss", "-Htno").count("timer:(keepalive")
