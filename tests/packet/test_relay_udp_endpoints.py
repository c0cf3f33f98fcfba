"""The UDP relay with real datagrams: endpoints that refuse, die, go and come, what they see of clients, and descriptors that run out."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import socket
from dataclasses import replace

import pytest

from kproxy.relay.counts import FAILED, GAVE_UP, LOST, OPEN, RETRIES
from kproxy.relay.targets import Table
from tests.packet.udp_ground import (
    ENDS,
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
from tests.support.netns import Namespace, ip, link, run, sysctl


@pytest.fixture
def ground(udp: Ground) -> Ground:
    return udp


def test_an_endpoint_that_refuses_is_not_the_last_one(ground: Ground) -> None:
    """The datagram that met nobody (ICMP port unreachable) is sent again to another endpoint; the client notices nothing."""

    async def play() -> None:
        with relaying(ground, ground.target(0, 1, 2)) as worker, Pod(ground, 2) as pod, contextlib.ExitStack() as rest:
            for number in range(10):
                client = rest.enter_context(ground.client())
                assert await asked(client, b"%d" % number) == b"2 %d" % number
            assert sorted(data for data, _ in pod.heard) == sorted(b"%d" % number for number in range(10))
            assert worker.row(FAILED) >= 3 and worker.row(RETRIES) == worker.row(FAILED)
            assert {end for _, end, *_ in worker.chooser.ejected(worker.now())} == {*ground.family.pods[:2]}
            assert sum(flow.retries for flow in worker.relay.flows(10)) == worker.row(RETRIES)
            worker.later += 5
            with Pod(ground, 0):  # it is back, and one datagram after that time finds out
                for _ in range(10):
                    await asked(rest.enter_context(ground.client()))
            assert {end for _, end, *_ in worker.chooser.ejected(worker.now())} == {ground.family.pods[1]}

    scene(play)


def test_an_endpoint_that_dies_under_a_session(ground: Ground) -> None:
    """The session had answers for long; its endpoint closes; the very next datagram is answered by another one."""

    async def play() -> None:
        with relaying(ground, ground.target(0, 1)) as worker, contextlib.ExitStack() as rest:
            one, two = (rest.enter_context(Pod(ground, number)) for number in (0, 1))
            client = rest.enter_context(ground.client())
            first = (await asked(client))[:1]
            worker.sweep(5)
            assert (await asked(client))[:1] == first
            dying = one if first == b"0" else two
            asyncio.get_running_loop().remove_reader(dying.sock)
            dying.sock.close()
            answer = await asked(client, b"still there?")
            assert answer == (b"1" if first == b"0" else b"0") + b" still there?"
            assert worker.relay.open == 1 and worker.row(OPEN) == 1
            dying.sock = socket.socket()  # for the end of the test
            asyncio.get_running_loop().add_reader(dying.sock, lambda: None)

    scene(play)


def test_an_unreachable_host_is_an_error_too(ground: Ground) -> None:
    """A router on the way says so (ICMP host unreachable), which sockets keep to themselves unless they are asked to tell."""

    async def play() -> None:
        flag, nowhere = ("-6", "fd00:99::9") if ground.family is SIX else ("-4", "10.99.0.9")
        sysctl(ground.pods, ipv4__ip_forward=1, ipv6__conf__all__forwarding=1)
        run(ground.node, "ip", flag, "route", "add", nowhere, "via", ground.family.pods[0])
        run(ground.pods, "ip", flag, "route", "add", "unreachable", nowhere)
        ends = ((nowhere, ENDS), (ground.family.pods[0], ENDS))
        target = replace(ground.target(0), endpoints=ends, balancing="RoundRobin")
        with relaying(ground, target) as worker, Pod(ground, 0), contextlib.ExitStack() as rest:
            for _ in range(4):
                assert await asked(rest.enter_context(ground.client())) == b"0 ?"
            assert worker.row(FAILED) >= 1

    scene(play)


def test_a_way_that_is_narrower_than_it_seemed(ground: Ground) -> None:
    """Its router says what fits (ICMP: fragmentation needed, packet too big); the datagram is sent again in parts, and none is lost."""

    async def play() -> None:
        with Namespace.new() as far:
            six = ground.family is SIX
            there = "fd00:98::9" if six else "10.98.0.9"
            for space in (ground.pods, far):
                sysctl(space, ipv4__ip_forward=1, ipv6__conf__all__forwarding=1, ipv6__conf__default__accept_dad=0)
            link(ground.pods, "narrow", far, ["10.98.0.1/24", "fd00:98::1/112"], ["10.98.0.9/24", "fd00:98::9/112"])
            ip(ground.pods, "link set narrow mtu 1280")
            ip(far, "link set eth0 mtu 1280", "route add default via 10.98.0.1", "route add default via fd00:98::1")
            run(ground.node, "ip", "-6" if six else "-4", "route", "add", there, "via", ground.family.pods[0])
            target = replace(ground.target(0), endpoints=((there, ENDS),))
            with (
                relaying(ground, target) as worker,
                Pod(ground, 0, space=far, address=there),
                ground.client() as client,
            ):
                for words in (b"x" * 1400, b"y" * 1300, b"z" * 9000):
                    assert await asked(client, words) == b"0 " + words
                assert worker.row(FAILED) == worker.row(LOST) == 0

    scene(play)


@pytest.mark.parametrize("lasting", [False, True], ids=["a question", "a session with a socket of its own"])
def test_a_way_to_the_client_that_is_narrower_than_it_seemed(ground: Ground, lasting: bool) -> None:
    """IPv4's router divides the answer. IPv6's says what fits and throws it away, as behind rules that translate; the session goes on."""

    async def play() -> None:
        with Namespace.new() as far:
            six = ground.family is SIX
            here, there = ("fd00:97::9", "fd00:97::/112") if six else ("10.97.0.9", "10.97.0.0/24")
            for space in (ground.clients, far):
                sysctl(space, ipv4__ip_forward=1, ipv6__conf__all__forwarding=1, ipv6__conf__default__accept_dad=0)
            link(ground.clients, "narrow", far, ["10.97.0.1/24", "fd00:97::1/112"], ["10.97.0.9/24", "fd00:97::9/112"])
            ip(ground.clients, "link set narrow mtu 1280")
            ip(far, "link set eth0 mtu 1280", "route add default via 10.97.0.1", "route add default via fd00:97::1")
            run(ground.node, "ip", "-6" if six else "-4", "route", "add", there, "via", ground.family.clients[0])
            sysctl(ground.clients, ipv4__icmp_ratelimit=0, ipv6__icmp__ratelimit=0)
            clients = replace(ground, clients=far)
            with (
                relaying(ground, ground.target(0)) as worker,
                Pod(ground, 0) as pod,
                clients.client(here) as client,
            ):
                for _ in range(20 if lasting else 0):
                    await asked(client)
                assert own_sockets(ground) == lasting
                pod.answers = False
                client.send(b"tell me")
                await until(lambda: pod.heard[-1:] != [] and pod.heard[-1][0] == b"tell me")
                peer = pod.heard[-1][1]

                async def comes(words: bytes) -> bool:
                    pod.sock.sendto(words, peer)
                    try:
                        return await heard(client, 0.2) == words
                    except TimeoutError:
                        return False

                assert await comes(b"x" * 1400) is not six
                assert await comes(b"y" * 1400) or await comes(b"y" * 1400)
                pod.answers = True
                assert await asked(client, b"again") == b"0 again"
                assert worker.relay.open == 1 and worker.row(LOST) == 0

    scene(play)


def test_an_endpoint_without_a_route_is_passed_over(ground: Ground) -> None:
    async def play() -> None:
        ends = ((ground.family.nowhere, ENDS), (ground.family.pods[0], ENDS))
        target = replace(ground.target(0), endpoints=ends, balancing="RoundRobin")
        flag = "-6" if ground.family is SIX else "-4"
        run(ground.node, "ip", flag, "route", "add", "unreachable", ground.family.nowhere)
        with relaying(ground, target) as worker, Pod(ground, 0), contextlib.ExitStack() as rest:
            for _ in range(4):
                assert await asked(rest.enter_context(ground.client())) == b"0 ?"
            assert worker.row(FAILED) >= 1

    scene(play)


def test_when_all_refuse_the_next_datagram_tries_again(ground: Ground) -> None:
    async def play() -> None:
        with relaying(ground, ground.target(0, 1)) as worker, ground.client() as client:
            client.send(b"?")
            await until(lambda: worker.row(FAILED) == 2)
            assert worker.relay.open == 1 and worker.row(OPEN) == 0
            assert [flow.state for flow in worker.relay.flows(10)] == ["connecting"]
            with Pod(ground, 0):
                assert await asked(client, b"now") == b"0 now"

    scene(play)


def test_one_datagram_goes_to_so_many_endpoints(ground: Ground) -> None:
    """Of a dozen that refuse eight are asked; the next datagram asks again."""

    async def play() -> None:
        ends = tuple((ground.family.pods[0], 9000 + number) for number in range(12))
        with relaying(ground, replace(ground.target(0), endpoints=ends)) as worker, ground.client() as client:
            for number in range(1, 4):
                client.send(b"?")
                await until(lambda: worker.row(GAVE_UP) == number)  # noqa: B023 - called before the next one
                assert worker.row(FAILED) == 8 * number and worker.row(OPEN) == 0

    scene(play)


def test_endpoints_that_go_and_services_that_are_deleted(ground: Ground) -> None:
    """A client that goes on sending from one port is served by the new endpoint with its next datagram; none is lost in between."""

    async def play() -> None:
        with (
            relaying(ground, ground.target(0)) as worker,
            Pod(ground, 0) as old,
            Pod(ground, 1) as new,
            ground.client() as client,
        ):
            assert await asked(client) == b"0 ?"
            drains = ground.target(1, keeps=((ground.family.pods[0], ENDS),))
            worker.relay.use(Table({ground.key(): drains}))
            assert await asked(client) == b"0 ?", "a session stays with an endpoint that still serves"
            client.send(b"in the queue")  # nobody has read it yet
            worker.relay.use(Table({ground.key(): ground.target(1)}))
            assert await heard(client) == b"1 in the queue"
            assert worker.relay.open == 1 and worker.row(OPEN) == 1
            assert len(old.heard) == 2 and len(new.heard) == 1
            worker.relay.use(Table())
            assert worker.relay.open == worker.row(OPEN) == 0
            client.send(b"?")
            await until(lambda: worker.counts.unknown == 1)

    scene(play)


def test_affinity_holds_for_datagrams(ground: Ground) -> None:
    async def play() -> None:
        target = ground.target(0, 1, 2, affinity_s=60)
        with relaying(ground, target) as worker, Pod(ground, 0), Pod(ground, 1), Pod(ground, 2):
            landed = set()
            for _ in range(12):
                with ground.client() as client:
                    landed.add((await asked(client))[:1])
            assert len(landed) == 1
            assert [ground.family.clients[0] in entry for entry in worker.chooser.news()][:1] == [True]

    scene(play)


def test_local_endpoints_see_the_clients_own_address_where_wanted(ground: Ground) -> None:
    """Address and port; the second session of one client socket with an endpoint has another port; others see the node."""

    async def play() -> None:
        local = ((ground.family.pods[0], ENDS),)
        target = ground.target(0, preserve_source=True, local=local)
        elsewhere = ground.target(1, preserve_source=True, local=())
        table = Table({ground.key(): target, ground.key(ground.second): target})
        with relaying(ground, target) as worker, Pod(ground, 0) as pod, Pod(ground, 1) as other:
            worker.relay.use(table)
            with ground.client() as client:
                me = client.getsockname()[:2]
                for _ in range(3):
                    assert await asked(client) == b"0 ?"
                assert {peer[:2] for _, peer in pod.heard} == {me}
                assert worker.relay.flows(1)[0].source == worker.relay.flows(1)[0].client
                client.connect((ground.second, PORT))  # the same socket asks another address of the same endpoint
                assert await asked(client, b"!") == b"0 !"
                assert pod.heard[-1][1][0] == me[0] and pod.heard[-1][1][1] != me[1]
                worker.relay.use(Table({ground.key(ground.second): elsewhere}))
                assert await asked(client) == b"1 ?"
                assert other.heard[-1][1][0] == ground.family.node

    scene(play)


def test_an_endpoint_that_asks_its_own_service_sees_the_node(ground: Ground) -> None:
    async def play() -> None:
        own = ground.family.pods[0]
        target = ground.target(0, preserve_source=True, local=((own, ENDS),))
        with relaying(ground, target), Pod(ground, 0) as pod:
            with ground.pods.entered():
                client = socket.socket(ground.family.kind, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
            with client:
                client.bind((own, 0))
                client.connect((ground.family.asked, PORT))
                assert await asked(client) == b"0 ?"
                assert pod.heard[0][1][0] == ground.family.node

    scene(play)


def test_a_client_that_is_gone_takes_its_session_with_it(ground: Ground) -> None:
    """Its host says so when an answer comes (ICMP port unreachable)."""

    async def play() -> None:
        with relaying(ground, ground.target(0)) as worker, Pod(ground, 0) as pod:
            pod.answers = False
            with ground.client() as client:
                for number in range(20):  # enough for a socket of its own, which is what can be told
                    client.send(b"?")
                    await until(lambda: len(pod.heard) > number)  # noqa: B023 - called before the next one
            pod.sock.sendto(b"late", pod.heard[0][1])
            await until(lambda: worker.relay.open == 0)

    scene(play)


def test_without_descriptors_the_oldest_sessions_make_room(ground: Ground) -> None:
    """Nobody notices but those who said nothing for longest, and they are served again when they speak. No datagram is lost."""

    async def play() -> None:
        with relaying(ground, ground.target(0)) as worker, Pod(ground, 0), contextlib.ExitStack() as rest:
            worker.relay.use(Table(dict.fromkeys((ground.key(), ground.key(ground.second)), ground.target(0))))
            clients = [rest.enter_context(ground.client()) for _ in range(12)]
            another = rest.enter_context(ground.client())
            for client in clients[:4]:
                assert await asked(client) == b"0 ?"
                worker.sweep(1)
            before = resource.getrlimit(resource.RLIMIT_NOFILE)
            with contextlib.closing(socket.socket()) as next_one:
                resource.setrlimit(resource.RLIMIT_NOFILE, (next_one.fileno() + 1, before[1]))
            try:
                for number, client in enumerate(clients[3:]):
                    assert await asked(client, b"%d" % number) == b"0 %d" % number
                another.connect((ground.second, PORT))
                assert await asked(another) == b"0 ?"
                assert worker.counts.evicted >= 7 and worker.relay.open <= 6
                assert worker.counts.shed == worker.row(LOST) == 0
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, before)
            for client in clients:
                assert await asked(client, b"again") == b"0 again"
            assert worker.relay.open >= 12

    scene(play)


def test_without_ports_the_oldest_sessions_make_room(ground: Ground) -> None:
    """A session has a port of this node to itself; when none is left (EAGAIN), nobody but the oldest notices."""

    async def play() -> None:
        with relaying(ground, ground.target(0)) as worker, Pod(ground, 0), contextlib.ExitStack() as rest:
            sysctl(ground.node, ipv4__ip_local_port_range="40000 40005")
            for number in range(12):
                client = rest.enter_context(ground.client())
                assert await asked(client, b"%d" % number) == b"0 %d" % number
            assert worker.relay.open <= 6 and worker.counts.evicted >= 6
            assert worker.row(LOST) == worker.row(FAILED) == 0

    scene(play)
