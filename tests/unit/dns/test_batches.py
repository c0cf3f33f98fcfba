"""Packets by the batch, on loopback: who sent what, who gets what, and what happens where it cannot be done."""

from __future__ import annotations

import platform
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from kproxy.dns.batches import BATCH, NOTHING, RECEIVE, STARTS, Batch

OWN = {socket.AF_INET: "127.0.0.1", socket.AF_INET6: "::1"}


class Ground:
    """A server's socket, the batch that reads it, and clients."""

    def __init__(self, family: socket.AddressFamily, stack: ExitStack) -> None:
        self._family, self._stack = family, stack
        self.batch = Batch(six=family == socket.AF_INET6)
        self.server = self.client()
        self.server.setblocking(False)

    def client(self) -> socket.socket:
        sock = self._stack.enter_context(socket.socket(self._family, socket.SOCK_DGRAM))
        sock.settimeout(5)
        sock.bind((OWN[self._family], 0))
        return sock

    def ask(self, client: socket.socket, *queries: bytes) -> None:
        for query in queries:
            client.sendto(query, self.server.getsockname())

    def receive(self) -> int:
        return self.batch.receive(self.server.fileno())

    def reply(self, number: int, text: bytes) -> None:
        start = STARTS[number]
        self.batch.packets[start + 2 : start + 2 + len(text)] = text
        self.batch.lengths[number] = 2 + len(text)


@pytest.fixture(params=list(OWN), ids=["4", "6"])
def ground(request: pytest.FixtureRequest) -> Iterator[Ground]:
    with ExitStack() as stack:
        yield Ground(request.param, stack)


def test_a_batch_says_what_came_from_whom(ground: Ground) -> None:
    one, other = ground.client(), ground.client()
    sent = [(one, b"IDfirst"), (other, b""), (one, b"x"), (other, b"IDlonger than that"), (one, b"z" * (RECEIVE + 9))]
    for client, query in sent:
        ground.ask(client, query)
    assert ground.receive() == len(sent)
    sizes = ground.batch.sizes(len(sent))
    for number, (client, query) in enumerate(sent):
        start, size = STARTS[number], sizes[number]
        assert ground.batch.packets[start : start + size] == query[:RECEIVE], "what is too long is cut"
        assert ground.batch.peer(number) == client.getsockname(), "as recvfrom says it"
    assert ground.batch.ports(len(sent)) == [socket.htons(client.getsockname()[1]) for client, _ in sent]
    assert len(set(ground.batch.senders(len(sent)))) == 1, "one address, whatever the port"
    assert ground.receive() == NOTHING


def test_addresses_are_told_apart() -> None:
    with ExitStack() as stack:
        ground = Ground(socket.AF_INET, stack)
        for address in ("127.0.0.2", "127.1.0.2", "127.0.0.2"):
            client = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            client.bind((address, 0))
            ground.ask(client, b"?")
        assert ground.receive() == 3
        first, second, third = ground.batch.senders(3)
        assert first == third != second


def test_every_reply_goes_to_its_sender(ground: Ground) -> None:
    clients = [ground.client() for _ in range(5)]
    for number, client in enumerate(clients):
        ground.ask(client, bytes((number, number)))
    assert ground.receive() == 5
    for number in (0, 2, 3, 4):
        ground.reply(number, b"reply %d" % number + b"." * number * 300)
    assert ground.batch.send(ground.server.fileno(), 0, 1) == 0
    assert ground.batch.send(ground.server.fileno(), 2, 5) == 0
    ground.reply(1, b"the last")
    assert ground.batch.send(ground.server.fileno(), 1, 2) == 0
    for number, client in enumerate(clients):
        text = b"the last" if number == 1 else b"reply %d" % number + b"." * number * 300
        assert client.recvfrom(4096) == (bytes((number, number)) + text, ground.server.getsockname())


def test_one_that_cannot_be_sent_takes_no_other_with_it(ground: Ground) -> None:
    clients = [ground.client() for _ in range(4)]
    for client in clients:
        ground.ask(client, b"ID")
    assert ground.receive() == 4
    for number in range(4):
        ground.reply(number, b"reply")
    ground.batch.lengths[0] = ground.batch.lengths[2] = 70_000  # more than a datagram holds
    assert ground.batch.send(ground.server.fileno(), 0, 4) == 2
    assert clients[1].recv(100) == clients[3].recv(100) == b"IDreply"


def test_a_reading_is_bounded_and_nothing_is_lost(ground: Ground) -> None:
    client = ground.client()
    for number in range(BATCH + 20):
        ground.ask(client, number.to_bytes(2, "big"))
    seen = []
    for count in (BATCH, 20):
        assert ground.receive() == count
        seen += [int.from_bytes(ground.batch.packets[start : start + 2], "big") for start in STARTS[:count]]
    assert seen == list(range(BATCH + 20))


def test_an_error_is_raised(ground: Ground) -> None:
    with pytest.raises(OSError, match="recvmmsg"):
        ground.batch.receive(-1)


_REFUSED = """
import ctypes, struct, sys
from kproxy.dns.batches import REFUSED, Batch
import socket
number = {"x86_64": 299, "aarch64": 243}[sys.argv[1]]
libc = ctypes.CDLL(None, use_errno=True)
lines = ((0x20, 0, 0, 0), (0x15, 0, 1, number), (0x06, 0, 0, 0x00050000 | int(sys.argv[2])), (0x06, 0, 0, 0x7FFF0000))
code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *line) for line in lines))
program = ctypes.create_string_buffer(struct.pack("@HP", len(lines), ctypes.addressof(code)))
assert libc.prctl(38, 1, 0, 0, 0) == 0 and libc.prctl(22, 2, program, 0, 0) == 0
import asyncio
from collections import Counter
from kproxy.dns.datagrams import Datagrams
from kproxy.dns.remembered import Caches, Hot
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
    server.bind(("127.0.0.1", 0))
    server.setblocking(False)
    client.settimeout(5)
    client.sendto(b"ID", server.getsockname())
    assert Batch(six=False).receive(server.fileno()) == REFUSED
    async def serve():
        slowly = lambda at, data, peer, keep: at.send(data + b" answered", peer)
        datagrams = Datagrams(server, 53, Hot(Counter()), Caches(), slowly, lambda *_: None, lambda _: None)
        datagrams.start()
        print((await asyncio.to_thread(client.recv, 100)).decode())
        datagrams.finish()
    asyncio.run(serve())
"""


@pytest.mark.parametrize("number", [1, 38], ids=["EPERM", "ENOSYS"])
def test_where_the_call_is_refused_packets_are_read_one_by_one(number: int) -> None:
    """A seccomp filter (SECCOMP_RET_ERRNO) stands for a container runtime that does not know the call."""
    words = [sys.executable, "-c", _REFUSED, platform.machine(), str(number)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=30, check=False)
    assert done.stdout == "ID answered\n", done.stderr
