"""The three kinds of sockets of the UDP relay, and what the kernel tells with a datagram.

    listening     where rules (tproxy) bring the first datagram of a client, with the destination that it had
    to_client     bound to that destination, connected to the client: the kernel finds it before the listener for whatever follows, and
                  what is sent by it comes from the address that was asked
    to_endpoint   connected to an endpoint, from this node's address or, transparently, from the client's own

In: addresses as the kernel gives and takes them. Out: non-blocking sockets, the caller's to close. Raises OSError. What must not happen
here: a wait, or a choice. IP_TRANSPARENT asks for CAP_NET_ADMIN or CAP_NET_RAW, ports below 1024 for CAP_NET_BIND_SERVICE.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable

Address = tuple[str, int] | tuple[str, int, int, int]  # as recvmsg tells and connect takes it

IP_TRANSPARENT, IP_RECVORIGDSTADDR = 19, 20
IPV6_TRANSPARENT, IPV6_RECVORIGDSTADDR = 75, 74
_IP_RECVERR, _IPV6_RECVERR = 11, 25
_IP_MTU_DISCOVER, _IPV6_MTU_DISCOVER = 10, 23
_PMTUDISC_DONT = 0  # of both families
_SO_BINDTODEVICE = 25
_SO_RCVBUFFORCE = 33
_ERRORS = 64
_LISTENER_OCTETS = 4 << 20  # first datagrams come in bursts: after a new table, every client of a Service at once
_ERROR = struct.Struct("=4xBBB")  # sock_extended_err: origin, type, code
# Port unreachable: whoever says so is where the datagram came to. A message has 576 octets (icmp_send) or 1280 (icmp6_send), of which so
# many are the datagram's; some machines quote none.
_QUOTED = {(2, 3, 3): 520, (3, 1, 4): 1184}
_ORIGINAL_4 = struct.Struct("!xxH4s")  # sockaddr_in
_ORIGINAL_6 = struct.Struct("!xxH4x16s")  # sockaddr_in6
# At loopback, because that can be reached from every address on every node; the port of discard, which nobody sends from.
NOBODY: dict[str, Address] = {"IPv4": ("127.0.0.1", 9), "IPv6": ("::1", 9, 0, 0)}
CONTROL_OCTETS = 128  # room for either


def listening(family: str, port: int) -> socket.socket:
    """The listener of one family (IPv4, IPv6) at `port` of loopback, one of as many as there are workers (SO_REUSEPORT).

    Being transparent it is where tproxy may bring datagrams to; that it is bound to loopback keeps everybody else out.
    """
    sock = _transparent(family)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == "IPv6":
            sock.setsockopt(socket.IPPROTO_IPV6, IPV6_RECVORIGDSTADDR, 1)
        else:
            sock.setsockopt(socket.IPPROTO_IP, IP_RECVORIGDSTADDR, 1)
        try:
            sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _LISTENER_OCTETS)
        except PermissionError:  # in a user namespace: what net.core.rmem_max allows
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _LISTENER_OCTETS)
        sock.bind(("::1" if family == "IPv6" else "127.0.0.1", port))
    except OSError:
        sock.close()
        raise
    return sock


def to_client(asked: Address, client: Address) -> socket.socket:
    """A socket with the address that `client` wrote to. EADDRINUSE: somebody else listens on that port of every address.

    Until it is connected, to nobody at first, it is bound to the interface lo, so that neither rules nor the kernel find it for datagrams
    that come by others: those go to the listener. What a program of this node sends in that moment may come to it (whoever reads it looks
    at the sender for a while), or, when it is connected between rules and delivery, to nobody.
    SO_REUSEADDR, because every client of an address has such a socket; no SO_REUSEPORT, whose groups are for listeners.
    """
    sock = _transparent("IPv6" if ":" in client[0] else "IPv4")
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, _SO_BINDTODEVICE, b"lo")
        divide(sock)
        sock.bind(asked)
        sock.connect(NOBODY["IPv6" if ":" in client[0] else "IPv4"])
        sock.setsockopt(socket.SOL_SOCKET, _SO_BINDTODEVICE, b"")
        sock.connect(client)
    except OSError:
        sock.close()
        raise
    return sock


def to_endpoint(end: tuple[str, int], source: Address | None) -> socket.socket:
    """A socket connected to `end`; from `source`, a client's address and port, where one is given.

    Where the port is taken (another session of that client's socket has it), another port of the same address has to do, as with
    conntrack: two sockets with the same four values could not tell their answers apart. Transparent in any case: by that rules know
    what the relay sends, and never bring it back to the relay (an endpoint may be a Service's address).
    """
    six = ":" in end[0]
    sock = _transparent("IPv6" if six else "IPv4")
    try:
        # Every ICMP error, "host unreachable" too; without this only "port unreachable" is told (__udp4_lib_err, `harderr`).
        sock.setsockopt(*((socket.IPPROTO_IPV6, _IPV6_RECVERR, 1) if six else (socket.IPPROTO_IP, _IP_RECVERR, 1)))
        if source is not None:
            try:
                sock.bind(source)
            except OSError:
                sock.bind((source[0], 0, *source[2:]))
        sock.connect(end)
    except OSError:
        sock.close()
        raise
    return sock


def divide(sock: socket.socket) -> None:
    """Whoever is on the way may divide what is sent (IPv4), and it is divided here once somebody has said what fits.

    Nothing holds what an endpoint said once it was sent: without "do not fragment" it need not be sent again. And a message about what
    fits, which anybody may forge, is no error of the socket's (EMSGSIZE at the next read: __udp4_lib_err, `harderr`) that ends a session.
    """
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_MTU_DISCOVER, _PMTUDISC_DONT)
    else:
        sock.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _PMTUDISC_DONT)


def clear_errors(sock: socket.socket) -> None:
    """Takes away the details of errors that were told already: as long as they are there, epoll reports the socket."""
    for _ in range(_ERRORS):
        try:
            sock.recvmsg(0, 0, socket.MSG_ERRQUEUE)
        except OSError:  # no more
            return


def refused(sock: socket.socket) -> bytes | None:
    """The last datagram that nobody took, as the ICMP message about it quotes it; None where that is not the whole of it."""
    found = None
    for _ in range(_ERRORS):
        try:
            words, control, _, _ = sock.recvmsg(2048, CONTROL_OCTETS, socket.MSG_ERRQUEUE)
        except OSError:  # no more
            break
        for _, _, data in control:
            if len(data) >= _ERROR.size and (quoted := _QUOTED.get(_ERROR.unpack_from(data))):
                found = words if 0 < len(words) < quoted else None
    return found


def original_destination(control: Iterable[tuple[int, int, bytes]]) -> tuple[str, int] | None:
    """Where a datagram was going before rules brought it here; None when the kernel does not say."""
    for level, kind, data in control:
        if level == socket.IPPROTO_IP and kind == IP_RECVORIGDSTADDR and len(data) >= _ORIGINAL_4.size:
            port, packed = _ORIGINAL_4.unpack_from(data)
            return socket.inet_ntop(socket.AF_INET, packed), port
        if level == socket.IPPROTO_IPV6 and kind == IPV6_RECVORIGDSTADDR and len(data) >= _ORIGINAL_6.size:
            port, packed = _ORIGINAL_6.unpack_from(data)
            return socket.inet_ntop(socket.AF_INET6, packed), port
    return None


def _transparent(family: str) -> socket.socket:
    six = family == "IPv6"
    sock = socket.socket(socket.AF_INET6 if six else socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    try:
        if six:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.setsockopt(socket.IPPROTO_IPV6, IPV6_TRANSPARENT, 1)
        else:
            sock.setsockopt(socket.IPPROTO_IP, IP_TRANSPARENT, 1)
    except OSError:
        sock.close()
        raise
    return sock
