"""The UDP relay with real datagrams: whose answers go where, what becomes of clients, and how many sessions there are."""

from __future__ import annotations

import contextlib
import gc
import random
import select
import socket
import time
from pathlib import Path

import pytest

from kproxy.relay import udp_speakers
from kproxy.relay.counts import BEGAN, LOST, OPEN, RECEIVED, RECEIVED_DATAGRAMS, SENT, SENT_DATAGRAMS
from kproxy.relay.targets import Table
from kproxy.relay.udp_session import Session
from kproxy.relay.udp_sockets import Address
from tests.packet.udp_ground import (
    ENDS,
    NAME,
    PORT,
    SIX,
    Ground,
    Pod,
    asked,
    heard,
    own_sockets,
    relaying,
    scene,
    until,
)
from tests.support.netns import run


@pytest.fixture
def ground(udp: Ground) -> Ground:
    return udp


def test_answers_come_from_the_address_that_was_asked(ground: Ground) -> None:
    """The client's socket is connected to it; the endpoint sees the node; one session serves all datagrams, and they are counted."""

    async def play() -> None:
        with relaying(ground, ground.target(0)) as worker, Pod(ground, 0) as pod, ground.client() as client:
            for words in (b"one", b"", b"three"):
                assert await asked(client, words) == b"0 " + words
            assert {peer[0] for _, peer in pod.heard} == {ground.family.node}
            assert worker.relay.open == 1 and worker.row(BEGAN) == 1
            worker.sweep()
            columns = (SENT, RECEIVED, SENT_DATAGRAMS, RECEIVED_DATAGRAMS, OPEN)
            endpoint = worker.counts.endpoint(NAME, (ground.family.pods[0], ENDS))
            assert [worker.row(c) for c in columns] == [endpoint[c] for c in columns] == [8, 14, 3, 3, 1]
            assert worker.chooser.open_to((ground.family.pods[0], ENDS), "UDP") == 1
            (flow,) = worker.relay.flows(10)
            assert (flow.service, flow.sent, flow.received, flow.state) == (NAME, 8, 14, "open")
            assert ground.family.clients[0] in flow.client and flow.virtual.endswith(":53")
            assert ground.family.pods[0] in flow.endpoint and ground.family.node in flow.source
            worker.sweep(31)
            assert worker.chooser.open_to((ground.family.pods[0], ENDS), "UDP") == 0
            assert abs(flow.began - time.time()) < 60

    scene(play)


def test_this_nodes_own_processes_are_served(ground: Ground) -> None:
    async def play() -> None:
        with relaying(ground, ground.target(0)), Pod(ground, 0):
            with ground.node.entered():
                own = socket.socket(ground.family.kind, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
            with own as client:
                client.connect((ground.family.asked, PORT))
                assert await asked(client) == b"0 ?"
                assert await asked(client, b"again") == b"0 again"

    scene(play)


def test_node_ports_on_loopback(ground: Ground) -> None:
    """From there no other address can be reached (EINVAL), and a relay's own sockets must not try."""

    async def play() -> None:
        here = "::1" if ground.family is SIX else "127.0.0.1"
        with relaying(ground, ground.target(0)) as worker, Pod(ground, 0):
            worker.relay.use(Table({ground.key(here): ground.target(0)}))
            client = socket.socket(ground.family.kind, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
            with client:
                client.connect((here, PORT))
                for number in range(20):
                    assert await asked(client, b"%d" % number) == b"0 %d" % number

    scene(play)


def test_a_node_without_a_default_route(ground: Ground) -> None:
    async def play() -> None:
        run(ground.node, "ip", "-6" if ground.family is SIX else "-4", "route", "del", "default")
        with relaying(ground, ground.target(0)), Pod(ground, 0), ground.client() as client:
            for number in range(20):
                assert await asked(client, b"%d" % number) == b"0 %d" % number

    scene(play)


def test_the_largest_datagrams_pass(ground: Ground) -> None:
    """65,535 octets with their headers, both ways, and not one octet is another."""

    async def play() -> None:
        words = random.Random(7).randbytes(ground.family.largest)
        with relaying(ground, ground.target(0)), Pod(ground, 0) as pod, ground.client() as client:
            pod.number = b""
            for _ in range(5):  # by the listener, then by a socket of its own
                for size in (1, 2047, 2048, ground.family.largest):
                    assert await asked(client, words[:size]) == words[:size]

    scene(play)


def test_a_port_that_somebody_else_holds_on_every_address(ground: Ground) -> None:
    """A server of the node itself on 0.0.0.0:53: the Service answers, whatever the size; so does that server where it is reached."""

    async def play() -> None:
        words = random.Random(8).randbytes(ground.family.largest)
        with ground.node.entered():
            stranger = socket.socket(ground.family.kind, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        with stranger, relaying(ground, ground.target(0)) as worker, Pod(ground, 0) as pod, ground.client() as client:
            stranger.bind(("", PORT))
            pod.number = b""
            for size in (0, 1, 1400, 2048, ground.family.largest, *range(20)):
                assert await asked(client, words[:size]) == words[:size]
            with ground.client(ground.family.clients[1]) as another:
                assert await asked(another, b"mine") == b"mine"
            assert worker.relay.open == 2
            client.connect((ground.family.node, PORT))
            client.send(b"direct")
            await until(lambda: bool(select.select([stranger], [], [], 0)[0]))
            assert stranger.recv(100) == b"direct"

    scene(play)


def test_a_worker_that_is_to_end_waits_for_streams_alone(ground: Ground) -> None:
    async def play() -> None:
        with relaying(ground, ground.target(0)) as worker, Pod(ground, 0), contextlib.ExitStack() as rest:
            once, stream = (rest.enter_context(ground.client()) for _ in range(2))
            await asked(stream)
            worker.sweep(3)
            await asked(stream)
            await asked(once)
            worker.sweep(3)
            assert worker.relay.open == 2
            worker.relay.drain()
            worker.sweep()
            assert worker.relay.open == 1
            assert await asked(stream) == b"0 ?"

    scene(play)


def test_every_client_gets_its_own_answers(ground: Ground) -> None:
    """A hundred clients at once, several datagrams each before any session exists: one session each, and no answer goes astray."""

    async def play() -> None:
        with (
            relaying(ground, ground.target(0, 1)) as worker,
            Pod(ground, 0),
            Pod(ground, 1),
            contextlib.ExitStack() as rest,
        ):
            clients = [rest.enter_context(ground.client(ground.family.clients[n % 2])) for n in range(100)]
            for turn in range(5):
                for number, client in enumerate(clients):
                    client.send(b"%d %d" % (number, turn))
            for number, client in enumerate(clients):
                answers = [await heard(client) for _ in range(5)]
                assert {answer[2:] for answer in answers} == {b"%d %d" % (number, turn) for turn in range(5)}
                assert len({answer[:1] for answer in answers}) == 1, "one session has one endpoint"
            assert worker.relay.open == worker.row(BEGAN) == 100
            assert worker.row(LOST) == 0

    scene(play)


def _descriptors() -> int:
    return len([*Path("/proc/self/fd").iterdir()])


def test_what_lasts_gets_a_socket_of_its_own(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    """After two seconds, or sixteen datagrams; so many of an address at the most. The others are served all the same."""

    async def play() -> None:
        monkeypatch.setattr(udp_speakers, "_OWN", 2)
        before = _descriptors()
        with relaying(ground, ground.target(0)) as worker, Pod(ground, 0), contextlib.ExitStack() as rest:
            once, busy, slow, late = (rest.enter_context(ground.client()) for _ in range(4))
            assert await asked(once) == await asked(slow) == b"0 ?"
            for number in range(20):
                assert await asked(busy, b"%d" % number) == b"0 %d" % number
            assert own_sockets(ground) == 1
            worker.sweep(3)
            for client in (busy, slow):
                assert await asked(client) == b"0 ?"
            worker.sweep()
            assert own_sockets(ground) == 2 and worker.relay.open == 3
            assert worker.row(SENT_DATAGRAMS) == 1 + 21 + 2
            for number in range(20):
                assert await asked(late, b"%d" % number) == b"0 %d" % number
            for client in (once, busy, slow):
                assert await asked(client) == b"0 ?"
            assert own_sockets(ground) == 2 and worker.row(BEGAN) == 4
            worker.sweep(3)
            assert await asked(late) == b"0 ?"
            worker.sweep(100)
            assert await asked(late) == b"0 ?"
            worker.sweep(30)  # the others are over: there is room
            assert worker.relay.open == own_sockets(ground) == 1
            worker.sweep(130)
            assert worker.relay.open == own_sockets(ground) == 0
        assert _descriptors() == before

    scene(play)


def test_datagrams_of_others_while_a_socket_is_made_go_to_the_listener(
    ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bound to an address and not yet connected to its client, it would get what anybody sends there, past the rules."""

    async def play() -> None:
        with relaying(ground, ground.target(0)) as worker, Pod(ground, 0), contextlib.ExitStack() as rest:
            first, second = (rest.enter_context(ground.client(address)) for address in ground.family.clients)
            stranger = rest.enter_context(ground.client())
            found: list[object] = []

            class Slow(socket.socket):
                def connect(self, address: Address) -> None:  # type: ignore[override]
                    if self.getsockname()[1] == PORT and address == first.getsockname():
                        monkeypatch.undo()
                        for sender, words in ((stranger, b"let me in"), (second, b"between")):
                            sender.send(words)
                        found.extend(select.select([self], [], [], 0.3)[0])
                    super().connect(address)

                def bind(self, address: Address) -> None:  # type: ignore[override]
                    super().bind(address)
                    if address[1] == PORT:
                        second.send(b"earlier")
                        found.extend(select.select([self], [], [], 0.3)[0])

            assert await asked(second) == b"0 ?"
            monkeypatch.setattr(socket, "socket", Slow)
            for number in range(20):
                assert await asked(first, b"%d" % number) == b"0 %d" % number
            assert {await heard(second), await heard(second)} == {b"0 earlier", b"0 between"}
            assert await heard(stranger) == b"0 let me in"
            assert not found and worker.relay.open == 3 and worker.counts.strayed == 0

    scene(play)


def test_sessions_that_are_over_leave_nothing(ground: Ground) -> None:
    """Not even to the garbage collector, which a worker has come rarely."""

    async def play() -> None:
        with relaying(ground, ground.target(0)) as worker, Pod(ground, 0), contextlib.ExitStack() as rest:
            clients = [rest.enter_context(ground.client()) for _ in range(5)]
            for _ in range(20):
                for client in clients:
                    await asked(client)
            gc.disable()
            rest.callback(gc.enable)
            assert [one.held for one in gc.get_objects() if isinstance(one, Session)] == [None] * 5
            worker.relay.use(Table())
            assert not any(isinstance(one, Session) for one in gc.get_objects())

    scene(play)


def test_idle_sessions_end_as_conntracks_do(ground: Ground) -> None:
    """30 seconds after the last datagram; 120 once both sides have spoken for more than two seconds."""

    async def play() -> None:
        with relaying(ground, ground.target(0)) as worker, Pod(ground, 0) as pod, contextlib.ExitStack() as rest:
            silent, once, stream = (rest.enter_context(ground.client()) for _ in range(3))
            pod.answers = False
            silent.send(b"?")
            await until(lambda: len(pod.heard) == 1)
            pod.answers = True
            await asked(once)
            await asked(stream)
            assert worker.relay.open == 3
            worker.sweep(3)
            await asked(stream)
            worker.sweep(24)
            assert worker.relay.open == 3
            pod.answers = False
            silent.send(b"?")
            await until(lambda: len(pod.heard) == 5)
            pod.answers = True
            worker.sweep(6)  # 33 seconds after the first datagrams
            assert worker.relay.open == 2
            worker.sweep(25)  # 31 after the second one of whom nobody answers
            assert worker.relay.open == 1
            worker.sweep(55)
            assert worker.relay.open == 1
            worker.sweep(20)
            assert worker.relay.open == 0
            assert await asked(once) == await asked(stream) == b"0 ?"
            assert worker.row(BEGAN) == 5 and worker.row(OPEN) == 2

    scene(play)


def test_the_session_that_was_idle_for_longest_makes_room(ground: Ground) -> None:
    async def play() -> None:
        with relaying(ground, ground.target(0), sessions=4) as worker, Pod(ground, 0), contextlib.ExitStack() as rest:
            clients = [rest.enter_context(ground.client()) for _ in range(6)]
            for client in clients[:4]:
                await asked(client)
                worker.sweep(1)
            await asked(clients[0])  # in use: now the second is the oldest
            for client in clients[4:]:
                worker.sweep(1)
                assert await asked(client) == b"0 ?"
            assert worker.relay.open == 4 and worker.counts.evicted == 2
            ports = {clients[n].getsockname()[1] for n in (0, 3, 4, 5)}
            assert {int(flow.client.rpartition(":")[2]) for flow in worker.relay.flows(10)} == ports
            assert await asked(clients[1]) == b"0 ?"

    scene(play)


def test_questions_by_the_dozen_end_no_stream(ground: Ground) -> None:
    """What lasted keeps its place, though it was silent for longer than they."""

    async def play() -> None:
        with relaying(ground, ground.target(0), sessions=4) as worker, Pod(ground, 0) as pod, ground.client() as stream:
            await asked(stream)
            worker.sweep(3)
            await asked(stream)
            source = pod.heard[-1][1]
            for _ in range(8):
                worker.sweep(3)
                with ground.client() as client:
                    assert await asked(client) == b"0 ?"
            assert worker.counts.evicted == 5 and worker.relay.open == 4
            await asked(stream)
            assert pod.heard[-1][1] == source, "it is the same session"

    scene(play)
