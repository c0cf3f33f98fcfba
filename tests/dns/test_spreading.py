"""A client that has one worker by its port is answered by the others, too, while that one has more than it can do in time."""

from __future__ import annotations

import os
import signal
import socket
import time

from kproxy.dns.settings import DnsSettings
from tests.support.dns_messages import message, question
from tests.support.dns_worker import Workers
from tests.support.queries import zone_of

SETTINGS = DnsSettings(reverse_zones=(), fallthrough=(), own_addresses=("127.0.0.1",))
QUERIES = [message(question(f"nobody-{number}.testns.svc.cluster.local.")) for number in range(64)]
MANY = 500  # three full readings of a socket and more; their replies have room in that of the client


def replies(client: socket.socket, wanted: int, patience_s: float) -> int:
    """How many come until all have, or none does for so long."""
    client.settimeout(patience_s)
    for number in range(wanted):
        try:
            client.recv(4096)
        except TimeoutError:
            return number
    return wanted


def test_a_client_has_all_workers_while_its_own_is_behind() -> None:
    with Workers(SETTINGS, count=2) as workers, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        workers.publish(zone_of("U", SETTINGS))
        client.setsockopt(
            socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20
        )  # as much as anybody may have: twice what it has without
        client.connect(workers.address)
        pids = [process.pid for process in workers.processes]
        os.kill(pids[0], signal.SIGSTOP)
        try:
            client.send(QUERIES[0])
            own = pids[1] if replies(client, 1, 1.0) else pids[0]
        finally:
            os.kill(pids[0], signal.SIGCONT)
        assert own == pids[1] or replies(client, 1, 5.0) == 1
        limit, helped = time.monotonic() + 20, 0
        while not helped:  # a machine may take longer for this than siblings help after the last word
            assert time.monotonic() < limit, "only its own worker answers"
            os.kill(own, signal.SIGSTOP)
            for number in range(MANY):
                client.send(QUERIES[number % 8])
            os.kill(own, signal.SIGCONT)
            assert replies(client, MANY, 5.0) == MANY
            os.kill(own, signal.SIGSTOP)
            for query in QUERIES:
                client.send(query)
            helped = replies(client, len(QUERIES), 0.3)
            os.kill(own, signal.SIGCONT)
            assert helped + replies(client, len(QUERIES) - helped, 5.0) == len(QUERIES), "nothing is lost"
        assert len(QUERIES) / 4 < helped < len(QUERIES) * 3 / 4, "some of the names have the other one"
