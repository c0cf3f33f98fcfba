"""Sockets for DNS addresses: bound beside siblings, and taken out of service without losing what has arrived.

In: addresses and ports. Effects: sockets. One socket per address and transport, so that a reply comes from the address that was asked;
SO_REUSEPORT, so that workers (and the next version's) share them; IP_FREEBIND, so that they may be bound before the node holds the
address. What must not happen here: reading or writing a packet.
"""

from __future__ import annotations

import errno
import fcntl
import socket
import struct
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

SOCKET_BUFFER = 4 << 20

_IP_FREEBIND = 15
_IPV6_FREEBIND = 78
_SO_RCVBUFFORCE = 33
_SO_DETACH_REUSEPORT_BPF = 68
_SIOCGIFADDR = 0x8915


def bound(kind: socket.SocketKind, address: str, port: int) -> socket.socket:
    """A bound, non-blocking socket. Raises OSError naming the address."""
    six = ":" in address
    sock = socket.socket(socket.AF_INET6 if six else socket.AF_INET, kind | socket.SOCK_NONBLOCK)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if six:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_FREEBIND, 1)
        else:
            sock.setsockopt(socket.IPPROTO_IP, _IP_FREEBIND, 1)
        if kind == socket.SOCK_DGRAM:
            _enlarge(sock)
        sock.bind((address, port))
    except OSError as error:
        sock.close()
        remedy = _REMEDIES.get(error.errno or 0, "").format(port=port)
        raise OSError(error.errno, f"cannot listen on {address} port {port}: {error.strerror}{remedy}") from error
    return sock


_REMEDIES = {
    errno.EADDRINUSE: " (see `ss -lntup 'sport = :{port}'`; stop it, or choose other addresses)",
    errno.EACCES: " (ports below 1024 need root or CAP_NET_BIND_SERVICE)",
}


def leave_group(sock: socket.socket) -> None:
    """Makes the kernel give a UDP socket's share of new packets to its siblings; what is in its queue stays there to be read.

    A connected socket takes packets of its peer alone, and SO_REUSEPORT passes it over when it chooses (Linux 5.x: `reuseport_select_sock`
    skips TCP_ESTABLISHED). The peer is the socket's own address, from which nothing comes that would be answered. Closing the socket
    without this loses what came in between the last read and the close.
    """
    with suppress(OSError):  # a program that chooses sockets by number (spreading.py) would not pass it over
        sock.setsockopt(socket.SOL_SOCKET, _SO_DETACH_REUSEPORT_BPF, 0)
    with suppress(OSError):  # an address that the node does not hold cannot be reached: nothing comes there either
        sock.connect(sock.getsockname())


def is_taken(address: str, port: int) -> bool:
    """Whether some process has a UDP socket on this very address, without disturbing it: a trial bind would refuse a sibling's real one."""
    found = group_of(address, port)
    return found.members + found.left > 0


@dataclass(frozen=True, slots=True)
class Group:
    """The UDP sockets on one address and port: those that are open to everybody, and those that left (`leave_group`) or never were."""

    members: int = 0
    left: int = 0


def group_of(address: str, port: int) -> Group:
    """As the kernel lists them now."""
    packed = socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address)
    # The kernel prints each 32-bit word of an address as a host-order (little endian) number.
    text = "".join(packed[i : i + 4][:: -1 if sys.byteorder == "little" else 1].hex() for i in range(0, len(packed), 4))
    wanted = f"{text}:{port:04x}".upper()
    try:
        with Path("/proc/self/net/udp6" if ":" in address else "/proc/self/net/udp").open() as lines:
            peers = [words[2] for words in map(str.split, lines) if words[1] == wanted]
    except OSError:
        return Group()
    left = sum(not peer.endswith(":0000") for peer in peers)
    return Group(len(peers) - left, left)


def link_addresses(name: str) -> tuple[str, ...]:
    """The addresses of a network link (of IPv4 the first one): `bind` in a Corefile may name links. None when there is no such link."""
    found = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock, suppress(OSError):
        answer = fcntl.ioctl(sock, _SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
        found.append(socket.inet_ntop(socket.AF_INET, answer[20:24]))
    with suppress(OSError), Path("/proc/self/net/if_inet6").open() as lines:
        for line in lines:
            packed, _, _, scope, _, link = line.split()
            if link == name and scope != "20":  # link-local ones cannot be bound without saying where
                found.append(socket.inet_ntop(socket.AF_INET6, bytes.fromhex(packed)))
    return tuple(found)


def _enlarge(sock: socket.socket) -> None:
    """A burst of queries waits in the kernel instead of being lost. FORCE passes net.core.rmem_max and needs NET_ADMIN."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, SOCKET_BUFFER)
    except OSError:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SOCKET_BUFFER)
