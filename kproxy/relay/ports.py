"""A pair of ports for the relay workers of one supervisor, taken so that no other instance on the node can take it.

In: the first and the last port to look at. Out: two ports, and two sockets that hold them: bound to loopback, never listening, so that no
connection ends there; whoever keeps them open keeps the pair, also while no worker lives. Workers bind beside them with SO_REUSEPORT.
"""

from __future__ import annotations

import socket

from kproxy.errors import UnsupportedError
from kproxy.relay.listening import NO_FAMILY

Pair = tuple[int, int]
_PLACES = (
    (socket.AF_INET, socket.SOCK_DGRAM, "127.0.0.1"),
    (socket.AF_INET6, socket.SOCK_STREAM, "::1"),
    (socket.AF_INET6, socket.SOCK_DGRAM, "::1"),
)


def reserve(first: int, last: int) -> tuple[Pair, tuple[socket.socket, socket.socket]]:
    """The first free pair of first, first + 2, … Raises UnsupportedError when none is left."""
    for port in range(first, last, 2):
        held: list[socket.socket] = []
        try:
            held.extend(_held(one) for one in (port, port + 1))
        except OSError:
            for sock in held:
                sock.close()
            continue
        return (port, port + 1), (held[0], held[1])
    raise UnsupportedError(f"all ports of 127.0.0.1 from {first} to {last} are taken; userspace.ports names others")


def _held(port: int) -> socket.socket:
    """Binds. Raises OSError when anybody has the port, in whatever family or protocol.

    It is bound without SO_REUSEPORT, so that of two instances that look at the same moment one fails, and shared afterwards (the kernel
    compares the sockets' present flags: inet_csk_bind_conflict; seen on 6.18).
    """
    for family, kind, address in _PLACES:
        _probe(family, kind, address, port)
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        sock.bind(("127.0.0.1", port))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    except OSError:
        sock.close()
        raise
    return sock


def _probe(family: int, kind: int, address: str, port: int) -> None:
    try:
        with socket.socket(family, kind) as sock:
            sock.bind((address, port))
    except OSError as error:
        if error.errno not in NO_FAMILY:  # without IPv6 nobody has it
            raise
