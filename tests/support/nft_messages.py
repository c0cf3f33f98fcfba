"""nf_tables' answers, made by hand from linux/netfilter/nf_tables.h: what the kernel would tell of sets and their elements."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable
from ipaddress import ip_network

from kproxy.backends.userspace.names import TABLE
from kproxy.backends.userspace.rules import SetKind
from kproxy.backends.userspace.ruleset import Element

_NEW_ELEMENTS = 10 << 8 | 12
_PROTOCOLS = {"tcp": 6, "udp": 17}


def attribute(kind: int, data: bytes) -> bytes:
    """One attribute, padded."""
    return struct.pack("=HH", 4 + len(data), kind) + data + bytes(-len(data) % 4)


def message(kind: int, body: bytes, flags: int = 2) -> bytes:
    """One message of family IPv4."""
    return struct.pack("=IHHII", 20 + len(body), kind, flags, 1, 0) + struct.pack("=BBH", 2, 0, 0) + body


def done(error: int = 0) -> bytes:
    """The end of a dump."""
    return struct.pack("=IHHIIi", 20, 3, 2, 1, 0, -error)


def elements(kind: SetKind, found: Iterable[tuple[str, Element]]) -> bytes:
    """A datagram of a dump that holds these elements."""
    listed = b"".join(attribute(1, _element(kind, key, element)) for key, element in found)
    body = attribute(1, TABLE.encode() + b"\0") + attribute(2, b"some\0") + attribute(3, listed)
    return message(_NEW_ELEMENTS, body)


def _element(kind: SetKind, key: str, element: Element) -> bytes:
    start, end = key_range(kind, key)
    data = attribute(1, attribute(1, start))
    if element.verdict:
        word, _, chain = element.verdict.partition(" ")
        code = {"goto": -4, "jump": -3, "drop": 0}[word]
        verdict = attribute(1, struct.pack(">i", code)) + (attribute(2, chain.encode() + b"\0") if chain else b"")
        data += attribute(2, attribute(2, verdict))
    if element.comment:
        text = element.comment.encode() + b"\0"
        data += attribute(6, bytes((0, len(text))) + text)
    if kind.interval:
        data += attribute(10, attribute(1, end))
    return data


def key_range(kind: SetKind, key: str) -> tuple[bytes, bytes]:
    """The first and the last key, as bytes, of what is spelled so."""
    start = end = b""
    for name, part in zip(kind.key, key.split(" . "), strict=True):
        if name == "inet_proto":
            low = high = bytes((_PROTOCOLS[part], 0, 0, 0))
        elif name == "inet_service":
            low = high = struct.pack(">HH", int(part), 0)
        elif "/" in part:
            network = ip_network(part)
            low, high = network.network_address.packed, network.broadcast_address.packed
        else:
            low = high = socket.inet_pton(socket.AF_INET6 if ":" in part else socket.AF_INET, part)
        start, end = start + low, end + high
    return start, end
