"""One socket under overload, read by hand: who stands in line, and when nobody has to."""

from __future__ import annotations

import asyncio
import socket
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from kproxy.dns.batches import BATCH
from kproxy.dns.datagrams import Datagrams
from kproxy.dns.overload import Overload
from kproxy.dns.remembered import Caches, Hot
from kproxy.dns.sockets import bound

QUERY = b"ID" + bytes(20)


def echo(at: Datagrams, data: bytes, peer: Any, keep: bool) -> None:
    """The dear way to an answer."""
    at.send(data, peer)


@contextmanager
def overloaded() -> Iterator[tuple[Overload, socket.socket]]:
    """The overload of a socket, and a client."""
    with bound(socket.SOCK_DGRAM, "127.0.0.1", 0) as sock, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.connect(sock.getsockname())
        client.settimeout(5.0)
        datagrams = Datagrams(sock, 53, Hot(Counter()), Caches(), echo, lambda *_: None, lambda _: None)
        overload = datagrams._overload
        overload.begin()
        yield overload, client
        overload.end()


def test_nobody_stands_in_line_once_everything_is_worked_off_until_a_reading_comes_back_full() -> None:
    async def scenario() -> None:
        with overloaded() as (overload, client):

            def exchange(number: int) -> None:
                for _ in range(number):
                    client.send(QUERY)
                while overload.drain():
                    pass
                assert [client.recv(100) for _ in range(number)] == [QUERY] * number

            assert overload._behind, "it begins so"
            exchange(BATCH)
            assert not overload._behind
            for number in (1, BATCH - 1, 7):
                exchange(number)
                assert not overload._behind, "read and answered by the batch"
            for _ in range(BATCH + 1):
                client.send(QUERY)
            assert overload.drain()
            assert len([client.recv(100) for _ in range(BATCH + 1)]) == BATCH + 1

    asyncio.run(scenario())


def test_siblings_are_called_while_there_is_a_line() -> None:
    async def scenario() -> None:
        with overloaded() as (overload, client):
            for _ in range(9 * BATCH):
                client.send(QUERY)
            while overload.drain():
                pass
            assert overload._line, "an only source stands in line"
            with bound(socket.SOCK_DGRAM, *client.getpeername()) as sibling:
                overload._adjust()
                for number in range(64):
                    client.send(QUERY[:12] + b"%08d" % number + bytes(20))
                got = 0
                while True:
                    try:
                        got += sibling.recv(100) > b""
                    except BlockingIOError:
                        break
                assert 16 < got < 48, "its part of what differs"

    asyncio.run(scenario())
