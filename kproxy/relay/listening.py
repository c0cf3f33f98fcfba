"""The listeners of a relay worker: one for each family, protocol and entry, on loopback, transparent, shared with its siblings.

In: the two ports of this family of processes. Out: non-blocking sockets, the caller's to close. Rules bring connections here with the
destination that they had (tproxy); being bound to loopback they are reached in no other way. What must not happen here: a listener
without SO_REUSEPORT, of which the second worker of a node could have none.
"""

from __future__ import annotations

import errno
import socket
from dataclasses import dataclass

from kproxy.relay import udp_sockets
from kproxy.relay.targets import ENTRIES

LOOPBACK = {"IPv4": "127.0.0.1", "IPv6": "::1"}
BACKLOG = 4096  # the kernel takes net.core.somaxconn if that is less: 4096 by default
NO_FAMILY = {errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL, errno.ENOPROTOOPT}  # this machine has no IPv6


@dataclass(frozen=True, slots=True)
class Listener:
    """A socket, and what arrives there."""

    sock: socket.socket
    protocol: str
    family: str
    entry: str


def listeners(ports: tuple[int, int]) -> list[Listener]:
    """All of them, for the ports of INSIDE and OUTSIDE; without IPv6 where this machine has none. Raises OSError."""
    made: list[Listener] = []
    try:
        for family in LOOPBACK:
            for entry, port in zip(ENTRIES, ports, strict=True):
                try:
                    made.append(Listener(_tcp(family, port), "TCP", family, entry))
                    made.append(Listener(udp_sockets.listening(family, port), "UDP", family, entry))
                except OSError as error:
                    if family == "IPv4" or error.errno not in NO_FAMILY:
                        raise
    except OSError:
        for one in made:
            one.sock.close()
        raise
    return made


def _tcp(family: str, port: int) -> socket.socket:
    """Bound, not listening yet: among sockets of SO_REUSEPORT only those that listen get connections. What is accepted inherits that it is
    transparent and does not wait for more to send (TCP_NODELAY).
    """
    six = family == "IPv6"
    sock = socket.socket(socket.AF_INET6 if six else socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections of a worker before may be in TIME_WAIT
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if six:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.setsockopt(socket.IPPROTO_IPV6, udp_sockets.IPV6_TRANSPARENT, 1)
        else:
            sock.setsockopt(socket.IPPROTO_IP, udp_sockets.IP_TRANSPARENT, 1)
        sock.bind((LOOPBACK[family], port))
    except OSError:
        sock.close()
        raise
    return sock
