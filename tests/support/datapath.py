"""How long a TCP connection takes through the rules of a node: a client, the node, and a server that owns every endpoint's address.

Three network namespaces, the node between the two others. What is timed is connect() alone, one after the other; the server accepts and
closes. The kernel answers by itself, so the server's speed has no part in it.
"""

from __future__ import annotations

import os
import signal
import socket
import statistics
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tests.support.netns import Namespace, ip, link, sysctl

CLIENT, NODE = "10.244.1.2", "10.244.1.1"
SERVER = "10.99.255.2"
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: close at once, without TIME_WAIT


@dataclass(frozen=True)
class Ground:
    """The namespaces. Rules are written in `node`."""

    node: Namespace
    client: Namespace


@contextmanager
def ground(networks: tuple[str, ...], port: int) -> Iterator[Ground]:
    """A node between a client and a server, which answers on `port` of every address in `networks`."""
    with Namespace.new() as node, Namespace.new() as client, Namespace.new() as server:
        link(node, "client", client, [f"{NODE}/24"], [f"{CLIENT}/24"])
        link(node, "server", server, ["10.99.255.1/24"], [f"{SERVER}/24"])
        sysctl(node, ipv4__ip_forward=1)
        ip(client, f"route add default via {NODE}")
        ip(server, "route add default via 10.99.255.1", *(f"route add local {network} dev lo" for network in networks))
        ip(node, *(f"route add {network} via {SERVER}" for network in networks))
        pid = _accepting(server, port)
        try:
            yield Ground(node, client)
        finally:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def _accepting(space: Namespace, port: int) -> int:
    with space.entered():
        listening = socket.create_server(("", port), backlog=4096)
    pid = os.fork()
    if pid:
        listening.close()
        return pid
    while True:
        listening.accept()[0].close()


def connect_us(client: Namespace, address: str, port: int, count: int = 2000) -> tuple[float, float]:
    """Median and 99th percentile of `count` connections, microseconds."""
    taken = []
    with client.entered():
        for _ in range(count + 50):
            with socket.socket() as made:
                made.settimeout(2.0)
                started = time.perf_counter()
                made.connect((address, port))
                taken.append((time.perf_counter() - started) * 1e6)
                made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    warm = sorted(taken[50:])
    return statistics.median(warm), warm[int(len(warm) * 0.99)]
