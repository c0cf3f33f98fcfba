"""A steady load for survival tests: so many connections or queries a second, and what became of each.

    python tests/support/load.py connect ADDRESS PORT --rate 200 --seconds 10
    python tests/support/load.py query SERVER NAME --rate 1000 --seconds 10

Prints one JSON object:
`{"sent": …, "failed": …, "slowest_ms": …, "failures": [seconds after the start, …], "last": …, "reasons": {why: how often}}`.
A connection counts as failed when it is refused, reset or not made within a second (--timeout); it reads one HTTP answer. A query counts
as lost when no answer with its ID comes within a second, or an answer that says failure; nothing is sent twice. Queries leave from 64
source ports, so that the kernel spreads them over all workers of an SO_REUSEPORT group.

Standard library only: it runs in any namespace with the system's Python. Time and count are bounded by the arguments.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import socket
import struct
import time
from collections import Counter
from typing import cast

TIMEOUT_S = 1.0


class Tally:
    """Counts outcomes; times are seconds since `start`."""

    def __init__(self) -> None:
        self.start = time.monotonic()
        self.sent = 0
        self.slowest_s = 0.0
        self.failures: list[float] = []
        self.reasons: Counter[str] = Counter()

    def ended(self, sent_at: float, failure: str) -> None:
        self.slowest_s = max(self.slowest_s, time.monotonic() - sent_at)
        if failure:
            self.failures.append(round(sent_at - self.start, 3))
            self.reasons[failure] += 1

    def print(self) -> None:
        print(
            json.dumps(
                {
                    "sent": self.sent,
                    "failed": len(self.failures),
                    "slowest_ms": round(self.slowest_s * 1000, 1),
                    "failures": sorted(self.failures)[:50],
                    "last": max(self.failures, default=0.0),
                    "reasons": self.reasons,
                }
            )
        )


async def _paced(rate: float, seconds: float, tally: Tally, one: object) -> None:
    """Starts `one()` at a steady rate, whatever becomes of the ones before."""
    assert callable(one)
    async with asyncio.TaskGroup() as tasks:
        for n in range(int(rate * seconds)):
            await asyncio.sleep(max(0.0, tally.start + n / rate - time.monotonic()))
            tally.sent += 1
            tasks.create_task(one())


async def connections(address: str, port: int, rate: float, seconds: float, timeout_s: float = TIMEOUT_S) -> Tally:
    """New TCP connections, each with one HTTP request."""
    tally = Tally()

    async def one() -> None:
        sent_at = time.monotonic()
        try:
            async with asyncio.timeout(timeout_s):
                reader, writer = await asyncio.open_connection(address, port)
                writer.write(b"GET /hostname HTTP/1.0\r\n\r\n")
                failure = "" if (await reader.read(64)).startswith(b"HTTP/1.") else "no HTTP"
                writer.transport.abort()  # RST: no TIME_WAIT piles up at the client
        except (OSError, TimeoutError) as error:
            failure = type(error).__name__
        tally.ended(sent_at, failure)

    await _paced(rate, seconds, tally, one)
    return tally


class Asker(asyncio.DatagramProtocol):
    """One source port; futures by query ID."""

    def __init__(self) -> None:
        self.waiting: dict[int, asyncio.Future[int]] = {}

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: object) -> None:
        future = self.waiting.pop(int.from_bytes(data[:2], "big"), None)
        if future is not None and not future.done():
            future.set_result(data[3] & 15)

    def error_received(self, exc: Exception) -> None:
        """ICMP port unreachable: the queries under way run into their timeout."""


async def queries(server: str, name: str, rate: float, seconds: float) -> Tally:
    """A queries for `name`, each in another mixture of cases: neither the kernel nor a cache has its answer, a server has to be there."""
    tally = Tally()
    loop = asyncio.get_running_loop()
    askers = [(await loop.create_datagram_endpoint(Asker, remote_addr=(server, 53)))[1] for _ in range(64)]

    def question() -> bytes:
        mixed = "".join(random.choice((letter.lower(), letter.upper())) for letter in name.rstrip("."))
        return b"".join(bytes((len(label),)) + label.encode() for label in mixed.split(".")) + b"\0\0\1\0\1"

    async def one() -> None:
        asker = random.choice(askers)
        number = random.choice([n for n in random.sample(range(65536), 8) if n not in asker.waiting])
        future: asyncio.Future[int] = loop.create_future()
        asker.waiting[number] = future
        sent_at = time.monotonic()
        asker.transport.sendto(struct.pack(">HHHHHH", number, 0x0100, 1, 0, 0, 0) + question())
        try:
            async with asyncio.timeout(TIMEOUT_S):
                rcode = await future
            failure = f"rcode {rcode}" if rcode else ""
        except TimeoutError:
            asker.waiting.pop(number, None)
            failure = "no answer"
        tally.ended(sent_at, failure)

    await _paced(rate, seconds, tally, one)
    for asker in askers:
        asker.transport.close()
    return tally


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["connect", "query"])
    parser.add_argument("address")
    parser.add_argument("target", help="port, or name to ask for")
    parser.add_argument("--rate", type=float, default=100.0)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--timeout", type=float, default=TIMEOUT_S, help="for a connection and its answer, seconds")
    options = parser.parse_args()
    socket.inet_pton(socket.AF_INET, options.address)
    if options.what == "connect":
        tally = asyncio.run(
            connections(
                options.address, int(options.target), options.rate, min(options.seconds, 120.0), options.timeout
            )
        )
    else:
        tally = asyncio.run(queries(options.address, options.target, options.rate, min(options.seconds, 120.0)))
    tally.print()


if __name__ == "__main__":
    main()
