"""Resets for TCP connections that no socket of this worker has the numbers of: those that the kernel carries (kernel_streams.py).

In: the two ends as the packet has them, and the number that its receiver waits for. Out: one segment from a raw socket, which needs
CAP_NET_RAW; what cannot be sent is not sent, for the peer is told by its next packet as well. What must not happen here: reading. The
socket is bound to an address that nobody has, because the kernel gives a raw socket a copy of whatever comes to its own.
"""

from __future__ import annotations

import socket
import struct

from kproxy.relay.kernel_maps import TCP, Ends
from kproxy.relay.udp_sockets import IP_TRANSPARENT, IPV6_TRANSPARENT

_IP_PKTINFO = 8
_NOBODY = {4: "192.0.2.1", 16: "2001:db8::1"}  # for documentation (RFC 5737, RFC 3849)
_HEADER = struct.Struct("!HHIIBBHHH")
_RST, _ACK, _ALL = 4, 16, 0xFFFFFFFF


class Resets:
    """A raw socket of either family, made when it is first needed."""

    def __init__(self) -> None:
        self._socks: dict[int, socket.socket] = {}

    def send(self, packet: Ends, number: int) -> None:
        """To `packet.destination`, as from `packet.source`."""
        self._send(packet, segment(packet, number, _RST))

    def ask(self, packet: Ends, number: int, acknowledged: int) -> None:
        """The same, whether the other one is still there: a number that it has had before makes it answer (RFC 9293, 3.8.4)."""
        self._send(packet, segment(packet, number & _ALL, _ACK, acknowledged & _ALL))

    def _send(self, packet: Ends, octets: bytes) -> None:
        size = len(packet.source)
        try:
            sock = self._socks.get(size) or self._socks.setdefault(size, _made(size))
            if size == 4:
                told = socket.IPPROTO_IP, _IP_PKTINFO, struct.pack("=I4s4x", 0, packet.source)
                to: tuple[object, ...] = (socket.inet_ntop(socket.AF_INET, packet.destination), 0)
            else:
                told = socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, struct.pack("=16sI", packet.source, 0)
                to = (socket.inet_ntop(socket.AF_INET6, packet.destination), 0, 0, 0)
            sock.sendmsg([octets], [told], socket.MSG_DONTWAIT, to)
        except OSError:
            return

    def close(self) -> None:
        """Ends it."""
        for sock in self._socks.values():
            sock.close()
        self._socks.clear()


def segment(packet: Ends, number: int, flags: int, acknowledged: int = 0) -> bytes:
    """One without data (RFC 9293, 3.1), checksum included."""
    parts = (packet.source_port, packet.destination_port, number, acknowledged, 5 << 4, flags, 0)
    pseudo = packet.source + packet.destination + struct.pack("!HH", TCP, _HEADER.size)
    octets = pseudo + _HEADER.pack(*parts, 0, 0)
    total = sum(struct.unpack(f"!{len(octets) // 2}H", octets))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return _HEADER.pack(*parts, total ^ 0xFFFF, 0)


def _made(size: int) -> socket.socket:
    six = size == 16
    sock = socket.socket(socket.AF_INET6 if six else socket.AF_INET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, TCP)
    try:
        if six:
            sock.setsockopt(socket.IPPROTO_IPV6, IPV6_TRANSPARENT, 1)
        else:
            sock.setsockopt(socket.IPPROTO_IP, IP_TRANSPARENT, 1)
        sock.bind((_NOBODY[size], 0))
    except OSError:
        sock.close()
        raise
    return sock
