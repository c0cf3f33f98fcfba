"""Answers from an address whose port somebody else holds on every address of this node.

A program that listens on 0.0.0.0:53 without SO_REUSEADDR keeps us from binding 10.96.0.10:53 (EADDRINUSE), though nobody can reach it
there: rules bring what goes to that address to the relay's listener, whoever listens elsewhere. So the datagrams of such clients go on
coming to the listener, and answers leave by a raw socket, which takes no port: the header of UDP is written here, the kernel adds that of
IP, fragments, and for IPv6 the checksum (RFC 8200 8.1; IPv4 does without, RFC 768).

In: the address that was asked and the client's. Out: a function that sends to it. Raises OSError where CAP_NET_RAW is missing. What must
not happen here: reading; the socket is bound to an address that nobody has, because the kernel gives a raw socket a copy of whatever
comes to its own.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable

from kproxy.relay.udp_sockets import IP_TRANSPARENT, IPV6_TRANSPARENT, Address, divide

_IP_PKTINFO = 8
_IPV6_CHECKSUM = 7
_NOBODY = {"IPv4": "192.0.2.1", "IPv6": "2001:db8::1"}  # for documentation (RFC 5737, RFC 3849)
_HEADER = struct.Struct("!4H")  # source port, destination port, octets with this, checksum
_CHECKSUM_AT = 6
_INFO_4 = struct.Struct("=I4s4x")  # in_pktinfo: interface, source
_INFO_6 = struct.Struct("=16sI")  # in6_pktinfo: source, interface


class Answerer:
    """One raw socket of a family (IPv4, IPv6), for all addresses that need it."""

    def __init__(self, family: str) -> None:
        six = self._six = family == "IPv6"
        kind = socket.SOCK_RAW | socket.SOCK_NONBLOCK
        self._sock = socket.socket(socket.AF_INET6 if six else socket.AF_INET, kind, socket.IPPROTO_UDP)
        try:
            if six:
                self._sock.setsockopt(socket.IPPROTO_IPV6, IPV6_TRANSPARENT, 1)
                self._sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_CHECKSUM, _CHECKSUM_AT)
            else:
                self._sock.setsockopt(socket.IPPROTO_IP, IP_TRANSPARENT, 1)
            divide(self._sock)
            self._sock.bind((_NOBODY[family], 0))
        except OSError:
            self._sock.close()
            raise

    def towards(self, client: Address, asked: Address) -> Callable[[memoryview], int]:
        """Sends to `client` as from `asked`."""
        if self._six:
            packed = _INFO_6.pack(socket.inet_pton(socket.AF_INET6, asked[0]), 0)
            control = [(socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, packed)]
        else:
            control = [(socket.IPPROTO_IP, _IP_PKTINFO, _INFO_4.pack(0, socket.inet_pton(socket.AF_INET, asked[0])))]
        to = (client[0], 0, *client[2:])  # a raw socket has no ports
        ports, sendmsg = (asked[1], client[1]), self._sock.sendmsg

        def send(view: memoryview) -> int:
            return sendmsg((_HEADER.pack(*ports, len(view) + _HEADER.size, 0), view), control, 0, to)

        return send

    def close(self) -> None:
        """Ends it."""
        self._sock.close()
