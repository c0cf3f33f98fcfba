"""Octets between a client and its endpoint, for tests of connections that the kernel carries: words, and streams that are compared."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import random
import socket
from collections.abc import Iterator

from tests.packet.tcp_ground import FOUR, Ground, heard, sent
from tests.support.netns import Namespace, run


async def talk(client: socket.socket, server: socket.socket, number: int = 0) -> None:
    """A question and its answer."""
    question, answer = b"question %d" % number, b"answer %d " % number * 3
    await sent(client, question)
    assert await heard(server) == question
    await sent(server, answer)
    assert await heard(client) == answer


async def stream_both_ways(client: socket.socket, server: socket.socket, seed: int, size: int) -> None:
    """So many octets each way at once; all of them arrive, in their order."""
    found = await asyncio.gather(
        _stream(client, seed, size), _read(server, seed, size), _stream(server, seed + 50, size), _read(client, seed + 51, size)
    )  # fmt: skip
    assert found[0] == found[1] and found[2] == found[3]


async def _stream(sock: socket.socket, seed: int, size: int) -> str:
    """Writes random octets in random portions; what they were."""
    chance, digest = random.Random(seed), hashlib.sha256()
    left = size
    while left:
        words = chance.randbytes(min(left, chance.choice((1, 7, 100, 1448, 4000, 60_000, 300_000))))
        left -= len(words)
        digest.update(words)
        await sent(sock, words)
        if chance.random() < 0.5:
            await asyncio.sleep(chance.random() * 0.01)
    return digest.hexdigest()


async def _read(sock: socket.socket, seed: int, size: int) -> str:
    chance, digest = random.Random(seed), hashlib.sha256()
    while size:
        words = await heard(sock, min(size, chance.choice((1000, 65536, 1 << 20))))
        assert words
        size -= len(words)
        digest.update(words)
        if chance.random() < 0.1:
            await asyncio.sleep(chance.random() * 0.01)
    return digest.hexdigest()


@contextlib.contextmanager
def filtering(ground: Ground, hook: str, rule: str, *spaces: Namespace) -> Iterator[None]:
    """A rule of nft for what comes (`prerouting`) or goes (`postrouting`) in these namespaces."""
    family = "ip" if ground.family is FOUR else "ip6"
    words = f"add table {family} filtering\n"
    words += f"add chain {family} filtering here {{ type filter hook {hook} priority 0; }}\n"
    words += f"add rule {family} filtering here meta l4proto tcp {rule}\n"
    for space in spaces:
        run(space, "nft", "-f", "-", text=words)
    try:
        yield
    finally:
        for space in spaces:
            run(space, "nft", "delete", "table", family, "filtering")


def losing(ground: Ground) -> contextlib.AbstractContextManager[None]:
    """One packet in fifty is lost behind the node, on either side."""
    return filtering(ground, "prerouting", "numgen random mod 50 == 0 drop", ground.clients, ground.pods)
