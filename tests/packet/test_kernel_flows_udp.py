"""UDP sessions that the kernel carries (relay/kernel_datagrams.py): the same datagrams, counted the same, and no longer than it is right.

The relay is in this process, the program on the node's links; `passed` says what went by the program.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest

from kproxy.relay.counts import BEGAN, FAILED, LOST, OPEN, RECEIVED, RECEIVED_DATAGRAMS, SENT, SENT_DATAGRAMS
from kproxy.relay.kernel_datagrams import IDLE_S
from kproxy.relay.kernel_flows import KernelFlows
from kproxy.relay.kernel_maps import HANDED, LINK_AT, PAIR
from kproxy.relay.targets import Table
from kproxy.relay.udp_session import Session
from tests.packet.kernel_ground import kernel, without_offload
from tests.packet.udp_ground import ENDS, PORT, Ground, Pod, Relay, asked, heard, relaying, scene, until
from tests.support.netns import Namespace, ip, link

_LONG_NS = 600 * 1_000_000_000


@pytest.fixture
def ground(udp: Ground) -> Ground:
    return udp


class Carried:
    """A relay whose sessions the kernel may carry."""

    def __init__(self, worker: Relay, flows: KernelFlows) -> None:
        self.worker, self.flows = worker, flows

    @property
    def session(self) -> Session:
        """The only one."""
        (found,) = self.worker.relay._sessions.values()
        return found

    def passed(self) -> tuple[int, int]:
        """Datagrams of either side that went by the program, of the only session."""
        handed = self.session.handed
        return self.flows.passed(handed.place).packets if handed is not None else (0, 0)

    async def lasts(self, client: socket.socket) -> int:
        """Asks until the kernel carries the session; how often."""
        for number in range(2000):
            await asked(client)
            await asyncio.sleep(0.002)
            if number % 50 == 49:  # one that was carried before is looked at by the sweep
                self.worker.sweep()
            if self.passed() > (0, 0) and self.passed()[1]:
                return number + 1
        raise AssertionError("the kernel does not carry it")


@contextlib.contextmanager
def carrying(ground: Ground, *pods: int, **rest: object) -> Iterator[Carried]:
    with kernel(ground) as flows, relaying(ground, ground.target(*pods, **rest)) as worker:
        flows.vouch(time.monotonic_ns() + _LONG_NS)
        worker.relay.use_kernel(flows)
        yield Carried(worker, flows)


@pytest.mark.parametrize("offload", [True, False], ids=["offload", "software checksums"])
def test_the_same_datagrams_and_none_is_forgotten_in_the_counts(ground: Ground, offload: bool) -> None:
    async def play() -> None:
        with contextlib.ExitStack() as held:
            if not offload:
                held.enter_context(without_offload(ground.clients, ground.pods))
            made = held.enter_context(carrying(ground, 0))
            pod, client = held.enter_context(Pod(ground, 0)), held.enter_context(ground.client())
            before = await made.lasts(client)
            sizes = [*range(0, 1400, 7), 1400, *range(9)]
            for size in sizes:
                words = os.urandom(size)
                assert await asked(client, words) == b"0 " + words
            assert made.passed() >= (len(sizes), len(sizes)), "these came by the sockets"
            assert len({peer for _, peer in pod.heard}) == 1 and pod.heard[0][1][0] == ground.family.node
            (flow,) = made.worker.relay.flows(10)
            octets = before + sum(sizes)
            assert (flow.sent, flow.received) == (octets, octets + 2 * (before + len(sizes)))
            made.worker.sweep()
            row = made.worker.counts.service("ns1/dns:dns")
            count = before + len(sizes)
            assert [row[column] for column in (SENT, RECEIVED, SENT_DATAGRAMS, RECEIVED_DATAGRAMS)] == [
                octets, octets + 2 * count, count, count
            ]  # fmt: skip
            assert (row[BEGAN], row[OPEN], row[LOST], row[FAILED]) == (1, 1, 0, 0)
            assert made.worker.counts.handed == 1

    scene(play)


def test_questions_take_no_place(ground: Ground) -> None:
    async def play() -> None:
        with carrying(ground, 0) as made, Pod(ground, 0), contextlib.ExitStack() as held:
            for _ in range(30):
                client = held.enter_context(ground.client())
                for _ in range(10):
                    await asked(client)
            made.worker.sweep(1)
            assert made.flows.free == HANDED and made.worker.counts.handed == 0

    scene(play)


def test_what_is_divided_goes_by_the_sockets_meanwhile(ground: Ground) -> None:
    async def play() -> None:
        with carrying(ground, 0) as made, Pod(ground, 0), ground.client() as client:
            before = await made.lasts(client)
            sizes = (10, 9000, 20, ground.family.largest - 2, 1400, 2000) * 5
            for size in sizes:
                words = os.urandom(size)
                assert await asked(client, words) == b"0 " + words
            assert made.passed() < (made.session.sent_datagrams + len(sizes),) * 2
            made.worker.sweep()
            assert made.worker.row(SENT) == before + sum(sizes)
            assert made.worker.row(RECEIVED_DATAGRAMS) == before + len(sizes)

    scene(play)


def test_an_endpoint_sees_its_client(ground: Ground) -> None:
    """Where the source address is preserved."""

    async def play() -> None:
        local = ((ground.family.pods[0], ENDS),)
        own = carrying(ground, 0, preserve_source=True, local=local)
        with own as made, Pod(ground, 0) as pod, ground.client() as client:
            await made.lasts(client)
            for _ in range(20):
                assert await asked(client) == b"0 ?"
            assert {peer[:2] for _, peer in pod.heard} == {client.getsockname()[:2]}

    scene(play)


def test_an_endpoint_that_is_gone_gets_nothing_more(ground: Ground) -> None:
    async def play() -> None:
        with carrying(ground, 0) as made, Pod(ground, 0) as one, Pod(ground, 1), ground.client() as client:
            before = await made.lasts(client)
            for _ in range(50):
                await asked(client)
            made.worker.relay.use(Table({ground.key(): ground.target(1)}))
            assert made.flows.free == HANDED
            count = len(one.heard)
            for _ in range(5):
                assert await asked(client) == b"1 ?"
            assert len(one.heard) == count == before + 50
            assert made.worker.row(SENT_DATAGRAMS) >= before + 50 and made.worker.row(OPEN) == 1
            assert made.worker.counts.endpoint("ns1/dns:dns", (ground.family.pods[0], ENDS))[SENT_DATAGRAMS] == count
            await made.lasts(client)  # and is carried to the other
            made.worker.relay.use(Table({}))
            assert made.flows.free == HANDED and made.worker.relay.open == 0
            client.send(b"!")
            await until(lambda: made.worker.counts.unknown == 1)

    scene(play)


@pytest.mark.parametrize("long", [False, True], ids=["short", "long"])
def test_an_endpoint_that_refuses_is_heard(ground: Ground, long: bool) -> None:
    """Its ICMP error finds the worker's socket, and quotes the datagram; another endpoint gets that. One too long to be quoted is lost."""

    async def play() -> None:
        with carrying(ground, 0, 1) as made, Pod(ground, 0) as one, Pod(ground, 1) as two, ground.client() as client:
            await made.lasts(client)
            dying = one if one.heard else two
            asyncio.get_running_loop().remove_reader(dying.sock)
            dying.sock.close()
            number = b"1 " if dying is one else b"0 "
            words = os.urandom(1400 if long else 500)
            client.send(words)
            if long:
                await until(lambda: made.worker.row(FAILED) == 1)
            else:
                assert await heard(client) == number + words
            assert made.flows.free == HANDED
            assert await asked(client, b"anybody?") == number + b"anybody?"
            assert made.worker.row(FAILED) == 1
            assert made.worker.relay.open == 1 and made.worker.row(OPEN) == 1
            dying.sock = socket.socket()  # for the end of the test
            asyncio.get_running_loop().add_reader(dying.sock, lambda: None)

    scene(play)


def test_a_session_lives_as_long_as_it_speaks(ground: Ground) -> None:
    """By the program alone; and no longer than others then."""

    async def play() -> None:
        with carrying(ground, 0) as made, Pod(ground, 0), ground.client() as client:
            await made.lasts(client)
            for _ in range(5):
                count = made.passed()
                await asked(client)
                assert made.passed() > count
                made.worker.sweep(IDLE_S - 1)
            session = made.session
            made.worker.sweep(IDLE_S + 1)
            assert made.flows.free == HANDED, "one that is silent needs no place"
            assert made.worker.relay.open == 1
            await made.lasts(client)
            assert made.session is session
            made.worker.sweep()
            made.worker.sweep(IDLE_S + 1)
            made.worker.sweep(118 - IDLE_S)
            assert made.worker.relay.open == 1
            made.worker.sweep(2)
            assert made.worker.relay.open == 0
            await made.lasts(client)  # the same port again: another session

    scene(play)


def test_a_session_comes_the_whole_way_now_and_then(ground: Ground) -> None:
    """Through the node's rules: one that forbids it takes hold, of what is carried too."""

    async def play() -> None:
        with carrying(ground, 0) as made, Pod(ground, 0), ground.client() as client:
            await made.lasts(client)
            taken = 0
            for _ in range(10):
                await asked(client)
                made.worker.sweep(IDLE_S - 1)
                taken += made.session.handed is None
            assert taken, "it passes them by for ever"
            await made.lasts(client)
            assert made.worker.counts.handed == 2 and made.worker.relay.open == 1

    scene(play)


def test_without_a_lease_everything_goes_by_the_sockets(ground: Ground) -> None:
    async def play() -> None:
        with carrying(ground, 0) as made, Pod(ground, 0), ground.client() as client:
            await made.lasts(client)
            made.flows.vouch(time.monotonic_ns())
            count, sent = made.passed(), made.session.sent_datagrams
            for _ in range(10):
                assert await asked(client) == b"0 ?"
            assert made.passed() == count and made.session.sent_datagrams == sent + 10
            made.flows.vouch(time.monotonic_ns() + _LONG_NS)
            for _ in range(10):
                assert await asked(client) == b"0 ?"
            assert made.passed() == (count[0] + 10, count[1] + 10)
            made.worker.relay.use_kernel(None)
            assert made.flows.free == HANDED
            assert await asked(client) == b"0 ?" and made.session.sent_datagrams == sent + count[0] + 21

    scene(play)


def test_no_more_sessions_than_there_are_places(ground: Ground) -> None:
    async def play() -> None:
        with carrying(ground, 0) as made, Pod(ground, 0), ground.client() as client, ground.client() as other:
            places = [made.flows.take() for _ in range(HANDED - 1)]
            await made.lasts(client)
            for _ in range(100):
                assert await asked(other) == b"0 ?"
            made.worker.sweep(1)
            assert made.worker.counts.handed == 1 and made.flows.free == 0
            for place in places:
                assert place is not None
                made.flows.give_back(place)
            for _ in range(20):
                await asked(other)
            made.worker.sweep(1)
            assert made.flows.free == HANDED - 2

    scene(play)


def test_a_client_behind_a_link_without_the_program(ground: Ground) -> None:
    """As another node's: its datagrams go by the worker, the answers of a pod here need not."""

    async def play() -> None:
        with carrying(ground, 0) as made, Pod(ground, 0) as pod, Namespace.new() as behind:
            link(ground.node, "late", behind, ["10.77.0.1/24", "fd00:77::1/112"], ["10.77.0.9/24", "fd00:77::9/112"])
            ip(behind, "route add default via 10.77.0.1", "route add default via fd00:77::1")
            there = replace(ground, clients=behind)
            with there.client("10.77.0.9" if ground.family.name == "IPv4" else "fd00:77::9") as client:
                for _ in range(100):
                    assert await asked(client) == b"0 ?"
                    await asyncio.sleep(0.002)
                assert made.passed()[0] == 0 < made.passed()[1]
                assert len({peer for _, peer in pod.heard}) == 1
                made.worker.sweep(1)
                assert made.worker.row(SENT_DATAGRAMS) == made.worker.row(RECEIVED_DATAGRAMS) == 100

    scene(play)


def test_another_link_cannot_speak_for_a_client(ground: Ground) -> None:
    """Rules that look where a packet comes from do not see what is carried."""

    async def play() -> None:
        with contextlib.ExitStack() as held:
            other = held.enter_context(Namespace.new())
            link(ground.node, "other", other, ["10.78.0.1/24", "fd00:78::1/112"], ["10.78.0.9/24", "fd00:78::9/112"])
            ip(other, "route add default via 10.78.0.1", "route add default via fd00:78::1")
            made, pod = held.enter_context(carrying(ground, 0)), held.enter_context(Pod(ground, 0))
            client = held.enter_context(ground.client())
            await made.lasts(client)
            address, number = client.getsockname()[:2]
            ip(other, f"addr add {address} dev lo {'nodad' if ground.family.name == 'IPv6' else ''}")
            with other.entered():
                liar = held.enter_context(socket.socket(ground.family.kind, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK))
            liar.bind((address, number))
            liar.connect((ground.family.asked, PORT))
            count, sent = made.passed(), made.session.sent_datagrams
            for _ in range(5):
                liar.send(b"it is me")
            # rp_filter is off here: the socket gets it, as it would without the kernel's flows.
            for _ in range(5):
                assert await heard(client) == b"0 it is me"
            assert made.session.sent_datagrams == sent + 5 and made.passed()[0] == count[0]
            assert await asked(client) == b"0 ?" and made.passed()[0] == count[0] + 1
            assert len({peer for _, peer in pod.heard}) == 1

    scene(play)


def test_an_endpoint_on_the_node_itself(ground: Ground) -> None:
    """No link leads there: its client's datagrams go by the worker as they came, and are counted once."""

    async def play() -> None:
        own = ground.target(0)
        own = replace(own, endpoints=((ground.family.node, ENDS),))
        with kernel(ground) as flows, relaying(ground, own) as worker, ground.client() as client:
            flows.vouch(time.monotonic_ns() + _LONG_NS)
            worker.relay.use_kernel(flows)
            with Pod(ground, 7, ground.node, ground.family.node):
                for _ in range(200):
                    assert await asked(client) == b"7 ?"
                    await asyncio.sleep(0.001)
            worker.sweep(1)
            assert worker.row(SENT_DATAGRAMS) == worker.row(RECEIVED_DATAGRAMS) == 200
            assert worker.row(SENT) == 200 and worker.row(LOST) == 0

    scene(play)


def test_a_session_that_two_links_speak_for_is_not_carried(ground: Ground) -> None:
    async def play() -> None:
        with carrying(ground, 0) as made, Pod(ground, 0), ground.client() as client:
            while made.worker.relay.open == 0 or made.session.handed is None:
                await asked(client)
            handed = made.session.handed
            assert handed is not None and not handed.forwards
            await asked(client)
            first, second = made.flows.links(handed.place)
            assert first and second and first != second
            # As if the first one had come by another link.
            struct.pack_into("=I", made.flows._pairs, handed.place * PAIR + LINK_AT, first + 1000)
            for _ in range(100):
                assert await asked(client) == b"0 ?"
                await asyncio.sleep(0.002)
            assert made.session.handed is None and made.session.alien and made.flows.free == HANDED
            made.worker.sweep(1)
            assert made.flows.free == HANDED

    scene(play)
