"""Queries that come at once: each gets the reply it would have had alone, whatever stands beside it in the batch."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace

import pytest

from kproxy.dns.settings import DnsSettings
from tests.support.dns_messages import MALFORMED, message, opt, question
from tests.support.dns_worker import Outside, Workers, records, wait_until
from tests.support.queries import zone_of

SETTINGS = DnsSettings(listen=("127.0.0.1", "::1"), own_addresses=("127.0.0.1",))
NAMES = ("svc1.testns.svc.cluster.local.", "nobody.testns.svc.cluster.local.", "www.example.com.", "cluster.local.")


@pytest.fixture(scope="module")
def workers() -> Iterator[Workers]:
    with Outside() as outside:
        outside.says[("www.example.com.", "A")] = records("www.example.com. A 192.0.2.80")
        settings = replace(SETTINGS, upstreams=(outside.upstream,))
        with Workers(settings) as workers:
            workers.publish(zone_of("U", workers.settings))
            yield workers


def asked() -> list[bytes]:
    """Different queries: remembered or not, denied, forwarded, malformed, with EDNS and without. Their IDs are their places."""
    plain = [message(question(name)) for name in NAMES]
    plain += [message(question(name) + opt(), counts=(1, 0, 0, 1)) for name in NAMES]
    new = [message(question(f"host{number}.example.com.testns.svc.cluster.local.")) for number in range(20)]
    queries = (
        plain + new + [*MALFORMED.values(), message(question(), flags=0x8180)]
    ) * 2  # the last is met with silence: a reply
    return [number.to_bytes(2, "big") + query[2:] for number, query in enumerate(queries)]


@pytest.mark.parametrize("address", SETTINGS.listen)
def test_a_burst_is_answered_as_its_queries_are_alone(workers: Workers, address: str) -> None:
    assert workers.publisher is not None
    publisher, server = workers.publisher, (address, workers.address[1])

    def counted() -> int:
        return publisher.counters().get("queries_udp", 0)

    total = counted()
    with ExitStack() as stack:
        clients = []
        for number in range(7):
            sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM)
            clients.append(stack.enter_context(sock))
            # One asks from a port like the server's, as a resolver does that asks for others.
            sock.bind(("127.0.0.9", server[1]) if number == 3 and ":" not in address else (address, 0))
            sock.settimeout(0.3)
        expected = {query[:2]: reply for query in asked() if (reply := alone(clients[0], query, server))}
        assert 50 < len(expected) < len(asked()), "some are met with silence"
        for _ in range(2):
            os.kill(workers.processes[0].pid, signal.SIGSTOP)  # so that all of it is there at once
            for number, query in enumerate(asked()):
                clients[number % 7].sendto(query, server)
            for short in (b"", b"x", b"ID"):
                clients[0].sendto(short, server)
            os.kill(workers.processes[0].pid, signal.SIGCONT)
            for which, client in enumerate(clients):
                mine = {ident for ident in expected if int.from_bytes(ident, "big") % 7 == which}
                client.settimeout(5)
                seen = {reply[:2]: reply for reply in (client.recv(4096) for _ in mine)}
                assert seen.keys() == mine
                assert all(without_ttl(reply) == without_ttl(expected[ident]) for ident, reply in seen.items())
        total += 3 * len(asked()) + 2 * 3
        wait_until(lambda: counted() >= total, "all are counted")
        assert counted() == total, "once"


def alone(client: socket.socket, query: bytes, server: tuple[str, int]) -> bytes:
    """The reply to a query that nothing stands beside; b"" for silence."""
    client.sendto(query, server)
    try:
        return client.recv(4096)
    except TimeoutError:
        return b""


def without_ttl(reply: bytes) -> bytes:
    """The reply; of forwarded names as much of it as does not age."""
    return reply if b"\x03www\x07example\x03com\0" not in reply else reply[:29]
