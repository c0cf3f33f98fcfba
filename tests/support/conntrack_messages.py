"""Flows as the kernel dumps them, written independently of the reader under test; and requests that make such flows in a kernel."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from functools import cache
from ipaddress import ip_address
from socket import AF_INET6, inet_aton, inet_pton

End = tuple[str, int]
UDP, TCP = 17, 6
NEW, GET, DELETE = 0x100, 0x101, 0x102
NLMSG_ERROR, NLMSG_DONE = 2, 3
REQUEST, CREATE, ACK = 0x1, 0x400, 0x4
_LASTING = 1 << 1 | 1 << 2 | 1 << 3  # SEEN_REPLY, ASSURED, CONFIRMED


def attribute(kind: int, value: bytes, *, nested: bool = False) -> bytes:
    """One attribute with its padding."""
    head = struct.pack("=HH", 4 + len(value), kind | (0x8000 if nested else 0))
    return head + value + b"\0" * (-len(value) % 4)


def tuple_(kind: int, source: End, destination: End, protocol: int, zone: int | None = None) -> bytes:
    """CTA_TUPLE_ORIG (1) or CTA_TUPLE_REPLY (2)."""
    first = 3 if ":" in source[0] else 1
    ip = attribute(first, ip_address(source[0]).packed) + attribute(first + 1, ip_address(destination[0]).packed)
    ports = struct.pack(">H", source[1]), struct.pack(">H", destination[1])
    proto = attribute(1, bytes([protocol])) + attribute(2, ports[0]) + attribute(3, ports[1])
    inner = attribute(1, ip, nested=True) + attribute(2, proto, nested=True)
    if zone is not None:
        inner += attribute(3, struct.pack(">H", zone))
    return attribute(kind, inner, nested=True)


def message(kind: int, flags: int, sequence: int, body: bytes, family: int = 2) -> bytes:
    """An nfnetlink message."""
    return struct.pack("=IHHII", 20 + len(body), kind, flags, sequence, 0) + bytes([family, 0, 0, 0]) + body


def flow(client: End, to: End, by: End, *, protocol: int = UDP, number: int = 7, zone: int | None = None) -> bytes:
    """A dumped flow: `client` sent to `to`, `by` answers."""
    body = tuple_(1, client, to, protocol, zone) + tuple_(2, by, client, protocol, zone)
    body += attribute(3, struct.pack(">I", 0x19E)) + attribute(7, struct.pack(">I", 30))
    body += attribute(12, struct.pack(">I", number)) + attribute(11, struct.pack(">I", 1))
    return message(NEW, 2, 1, body, 10 if ":" in to[0] else 2)


def done(error: int = 0) -> bytes:
    """The end of a dump."""
    return struct.pack("=IHHIIi", 20, NLMSG_DONE, 2, 1, 0, -error)


def answer(sequence: int, error: int = 0) -> bytes:
    """An acknowledgement, or a failure."""
    return struct.pack("=IHHIIi", 36, NLMSG_ERROR, 0, sequence, 0, -error) + struct.pack("=IHHII", 0, DELETE, 0, 0, 0)


def creations(flows: Iterable[tuple[End, End, End]], *, protocol: int = UDP, at_once: int = 400) -> Iterable[bytes]:
    """Datagrams that make the kernel track these flows; the last message of each asks for an acknowledgement (sequence 9)."""
    parts: list[bytes] = []
    for client, to, by in flows:
        parts.append(_creation(client, to, by, protocol))
        if len(parts) == at_once:
            yield _sealed(parts)
            parts = []
    if parts:
        yield _sealed(parts)


_SOMEBODY = {4: ("10.254.253.252", 54321), 16: ("fd00:254::fdfc", 54321)}


@cache
def _mould(to: End, by: End, protocol: int) -> list[bytes]:
    """The message for a client yet to be named, cut where its address and port stand."""
    client = _SOMEBODY[16 if ":" in to[0] else 4]
    body = tuple_(1, client, to, protocol) + tuple_(2, by, client, protocol)
    body += attribute(3, struct.pack(">I", _LASTING)) + attribute(7, struct.pack(">I", 600))
    whole = message(NEW, REQUEST | CREATE, 8, body, 10 if ":" in to[0] else 2)
    address, port = ip_address(client[0]).packed, struct.pack(">H", client[1])
    parts = [piece for part in whole.split(address) for piece in part.split(port)]
    assert len(parts) == 5, "address and port of the client, twice each"
    return parts


def _creation(client: End, to: End, by: End, protocol: int) -> bytes:
    """Most of a message is the same for all clients of one Service: a quarter of a million are made in a second."""
    address = (
        (inet_pton(AF_INET6, client[0]) if ":" in client[0] else inet_aton(client[0])),
        struct.pack(">H", client[1]),
    )
    head, after_address, between, after_port, tail = _mould(to, by, protocol)
    return b"".join((head, address[0], after_address, address[1], between, address[0], after_port, address[1], tail))


def _sealed(parts: list[bytes]) -> bytes:
    head = struct.unpack_from("=IHHII", parts[-1])
    return b"".join(parts[:-1]) + struct.pack("=IHHII", *head[:2], head[2] | ACK, 9, 0) + parts[-1][16:]
