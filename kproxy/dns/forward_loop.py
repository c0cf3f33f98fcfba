"""Finds upstreams that lead back to this server: `loop`, without CoreDNS's exit.

In: `forward` directives at work, and the questions of clients. Out: which upstreams are to be left out, told by a warning and counters.
What must not happen here: anything on a client's word. The name that is asked for is half random, half a keyed hash of it (128 bits
together); nobody without the key can make one, so nobody can make an upstream look as if it led here (CVE-2026-26018 let one end CoreDNS).

The workers of a node have the key of the node's cookies in common, since a question that comes back reaches any of them: whoever receives
one answers it with another hash of it, and by that the one who asked knows. Until the controller has told the key a worker has its own, and
knows only questions that come back to itself.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import Counter
from collections.abc import Sequence

from kproxy.dns import names
from kproxy.dns.cookies import siphash
from kproxy.dns.forward_exchange import Link
from kproxy.dns.forward_pool import Pool
from kproxy.dns.upstream import Question, Record, Reply
from kproxy.dns.wire import Rcode, Type

log = logging.getLogger("kproxy.dns.forward")

PATIENCE_S = 2.0
SOON_S = 3.0
AGAIN_S = 30.0  # between two looks at an upstream that led back here


class LoopCheck:
    """Of one worker."""

    def __init__(self, counters: Counter[str]) -> None:
        self._counters = counters
        self._keys: tuple[bytes, ...] = (secrets.token_bytes(16),)

    def know(self, keys: Sequence[bytes]) -> bool:
        """The keys that the workers of this node share, 16 octets each; whether they are news."""
        if not keys or tuple(keys) == self._keys:
            return False
        self._keys = tuple(keys)
        return True

    def echo(self, question: Question) -> Reply | None:
        """What is said to a question that this node's workers have asked; None for any other."""
        name = question.name
        if question.qtype != Type.HINFO or len(name) < 35 or name[0] != 16 or name[17] != 16:
            return None
        nonce, proof = name[1:17], name[18:34]
        for key in self._keys:
            if secrets.compare_digest(_hash(key, b"?" + nonce), proof):
                return Reply(Rcode.NOERROR, answer=(Record(name, Type.HINFO, 0, _answer(key, nonce)),))
        return None

    async def look(self, pool: Pool) -> None:
        """Checks every upstream of a directive, twice; and those that led back here again and again."""
        key = b""
        while key != self._keys[0]:
            key = self._keys[0]
            await asyncio.gather(*(self._look_at(pool, link) for link in pool.links))
            await asyncio.sleep(
                SOON_S
            )  # by then the other workers know the key as well, should this one have been the first
            await asyncio.gather(*(self._look_at(pool, link) for link in pool.links if not link.loops))
        while any(link.loops for link in pool.links):
            await asyncio.sleep(AGAIN_S)
            await asyncio.gather(*(self._look_at(pool, link) for link in pool.links if link.loops))

    async def _look_at(self, pool: Pool, link: Link) -> None:
        key = self._keys[0]
        nonce = secrets.token_hex(8).encode()
        labels = b"\x10" + nonce + b"\x10" + _hash(key, b"?" + nonce)
        question = Question(labels + names.encode(pool.directive.origin).lower(), Type.HINFO)
        if len(question.name) > names.MAX_NAME:
            return
        reply = await pool.exchange.ask(link, question, PATIENCE_S)
        if reply is None:
            return
        came_back = any(item.rtype == Type.HINFO and item.rdata == _answer(key, nonce) for item in reply.answer)
        if came_back and not link.loops:
            self._counters["forward_loops"] += 1
            self._counters[f"forward_loops|{link.label}"] += 1
            log.warning(
                "upstream %s leads back to this server (does it ask the cluster's DNS?); it is left out", link.upstream
            )
        elif link.loops and not came_back:
            self._counters[f"forward_loops_mended|{link.label}"] += 1
            log.info("upstream %s leads elsewhere now", link.upstream)
        link.loops = came_back


def _hash(key: bytes, data: bytes) -> bytes:
    return siphash(key, b"loop " + data).hex().encode()


def _answer(key: bytes, nonce: bytes) -> bytes:
    """HINFO's two strings."""
    return b"\x06kproxy\x10" + _hash(key, b"!" + nonce)
