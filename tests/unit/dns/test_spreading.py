"""Real sockets of one group: which of them the kernel gives a client's queries to, with the program and without."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import pytest

from kproxy.dns.sockets import Group, bound, group_of, leave_group
from kproxy.dns.spreading import Spreading
from tests.support.dns_messages import message, question

NAMES = [f"service-{number}.default.svc.cluster.local." for number in range(64)]
QUERIES = [message(question(name, kind)) for name in NAMES for kind in (1, 28)]
ADDRESSES = pytest.mark.parametrize("address", ["127.0.0.1", "::1"], ids=["4", "6"])


@contextmanager
def group(address: str, size: int) -> Iterator[list[socket.socket]]:
    """So many sockets on one address and port."""
    with ExitStack() as stack:
        first = stack.enter_context(bound(socket.SOCK_DGRAM, address, 0))
        port = first.getsockname()[1]
        yield [first, *(stack.enter_context(bound(socket.SOCK_DGRAM, address, port)) for _ in range(size - 1))]


def taken(sockets: list[socket.socket], queries: list[bytes], clients: int = 1) -> list[list[bytes]]:
    """What each socket gets of the queries."""
    open_ones = [sock for sock in sockets if sock.fileno() >= 0]
    server = open_ones[0].getsockname()
    for _ in range(clients):
        with socket.socket(open_ones[0].family, socket.SOCK_DGRAM) as client:
            for query in queries:
                client.sendto(query, server[:2])
    found = []
    for sock in open_ones:
        found.append([])
        while True:
            try:
                found[-1].append(sock.recv(4096))
            except BlockingIOError:
                break
    return found


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.01)


@ADDRESSES
def test_one_client_has_all_workers_while_there_is_need_and_each_name_has_one(address: str) -> None:
    async def scenario() -> None:
        with group(address, 3) as sockets:
            assert sorted(map(len, taken(sockets, QUERIES))) == [0, 0, len(QUERIES)]
            spreading = Spreading(sockets[1], calm_s=0.2)
            spreading.needed()
            shares = taken(sockets, QUERIES)
            assert min(map(len, shares)) > len(QUERIES) / 6, "near a third each"
            assert sum(map(len, shares)) == len(QUERIES)
            assert taken(sockets, QUERIES) == shares
            names = [{query[12:-4] for query in share} for share in shares]
            assert sum(map(len, names)) == len(NAMES), "A and AAAA of a name are one worker's"
            assert sum(map(len, taken(sockets, [query[:31] for query in QUERIES]))) == len(QUERIES), (
                "short ones come, too"
            )
            await until(lambda: sorted(map(len, taken(sockets, QUERIES))) == [0, 0, len(QUERIES)])

    asyncio.run(scenario())


@ADDRESSES
def test_nothing_comes_to_who_has_left_or_is_gone(address: str) -> None:
    async def scenario() -> None:
        with group(address, 3) as sockets:
            spreading = Spreading(sockets[0], again_s=0.0)
            port = sockets[0].getsockname()[1]
            assert group_of(address, port) == Group(3, 0)
            spreading.needed()
            sockets[2].close()
            shares = taken(sockets, QUERIES, clients=8)
            assert all(shares) and sum(map(len, shares)) == 8 * len(QUERIES), (
                "a number that is nobody's is chosen as ever"
            )
            leave_group(sockets[1])
            assert group_of(address, port) == Group(1, 1)
            spreading.needed()
            assert list(map(len, taken(sockets, QUERIES, clients=8))) == [8 * len(QUERIES), 0]

    asyncio.run(scenario())


def test_who_comes_in_the_place_of_one_that_died_finds_nothing_left_of_it() -> None:
    async def scenario() -> None:
        with group("127.0.0.1", 2) as sockets:
            Spreading(sockets[0]).needed()
            assert all(taken(sockets, QUERIES))
            Spreading(sockets[1])
            assert sorted(map(len, taken(sockets, QUERIES))) == [0, len(QUERIES)]

    asyncio.run(scenario())


def test_one_that_ends_puts_nothing_on_its_group_any_more() -> None:
    async def scenario() -> None:
        with group("127.0.0.1", 2) as sockets:
            spreading = Spreading(sockets[0], again_s=0.0)
            spreading.needed()
            spreading.end()
            leave_group(sockets[0])
            spreading.needed()
            assert list(map(len, taken(sockets, QUERIES))) == [0, len(QUERIES)]
            sockets[0].close()
            alone = Spreading(sockets[1], again_s=0.0)
            alone.needed()
            assert list(map(len, taken(sockets, QUERIES))) == [len(QUERIES)]

    asyncio.run(scenario())
