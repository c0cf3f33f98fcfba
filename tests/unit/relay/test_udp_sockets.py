"""What the kernel tells with a datagram, and what it might tell."""

from __future__ import annotations

import socket
import struct

import pytest

from kproxy.relay.udp_sockets import IP_RECVORIGDSTADDR, IPV6_RECVORIGDSTADDR, original_destination

_FOUR = struct.pack("=H", socket.AF_INET) + struct.pack("!H4s8x", 53, socket.inet_aton("10.96.0.10"))
_SIX = struct.pack("=H", socket.AF_INET6) + struct.pack(
    "!HI16sI", 53, 0, socket.inet_pton(socket.AF_INET6, "fd00::a"), 0
)
_IP, _IPV6 = socket.IPPROTO_IP, socket.IPPROTO_IPV6


@pytest.mark.parametrize(
    ("control", "expected"),
    [
        ([(_IP, IP_RECVORIGDSTADDR, _FOUR)], ("10.96.0.10", 53)),
        ([(_IPV6, IPV6_RECVORIGDSTADDR, _SIX)], ("fd00::a", 53)),
        ([(_IP, 8, b"else"), (_IP, IP_RECVORIGDSTADDR, _FOUR)], ("10.96.0.10", 53)),
        ([], None),
        ([(_IP, IP_RECVORIGDSTADDR, _FOUR[:7])], None),  # cut off: MSG_CTRUNC
        ([(_IPV6, IPV6_RECVORIGDSTADDR, _SIX[:23])], None),
        ([(_IPV6, IP_RECVORIGDSTADDR, _FOUR)], None),
    ],
)
def test_original_destination(control: list[tuple[int, int, bytes]], expected: tuple[str, int] | None) -> None:
    assert original_destination(control) == expected
