"""Domain names in wire form: bytes, each label behind its length, a zero byte at the end.

Why bytes: a question arrives in wire form, its lower-case spelling is `wire.lower()` (length bytes are below 64, so no length is ever
mistaken for a letter), and a suffix of it is a key of the zone's dictionaries without any parsing. Text exists only at the edges: settings,
API objects, people. All comparison is by ASCII lower case (RFC 4343); other bytes stay what they are.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

MAX_NAME = 255  # octets of a name in wire form, RFC 1035 section 2.3.4
MAX_LABEL = 63

_PLAIN = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_/*")
_HEX = b"0123456789abcdef"
_OCTETS = {str(number): number for number in range(256)}  # no leading zeros, as `ipaddress` has it


def label(data: bytes) -> bytes:
    """`data` behind its length. Raises ValueError when it is empty or longer than 63 octets."""
    if not 0 < len(data) <= MAX_LABEL:
        raise ValueError(f"label of {len(data)} octets: 1 to 63 are allowed")
    return bytes((len(data),)) + data


def encode(text: str) -> bytes:
    """A name from its written form, with or without the dot at the end; `\\.` and `\\DDD` as in zone files.

    Raises ValueError when a label is empty or longer than 63 octets, or the name longer than 255.
    """
    if text in (".", ""):
        return b"\0"
    out, part, at = bytearray(), bytearray(), 0
    data = text.encode()
    while at < len(data):
        byte = data[at]
        if byte == 0x2E:  # a dot
            out += label(bytes(part))
            part.clear()
        elif byte == 0x5C:  # a backslash
            digits = data[at + 1 : at + 4]
            if len(digits) == 3 and digits.isdigit() and int(digits) < 256:
                part.append(int(digits))
                at += 3
            elif at + 1 < len(data):
                part.append(data[at + 1])
                at += 1
            else:
                raise ValueError(f"{text!r} ends in a backslash")
        else:
            part.append(byte)
        at += 1
    if part:
        out += label(bytes(part))
    out.append(0)
    if len(out) > MAX_NAME:
        raise ValueError(f"{text[:40]!r}… is longer than 255 octets")
    return bytes(out)


def decode(wire: bytes) -> str:
    """The written form of a name or of some labels of it, with the dot at the end when the zero byte is there."""
    out, at = [], 0
    while at < len(wire) and wire[at]:
        size = wire[at]
        out.append(
            "".join(
                chr(byte) if byte in _PLAIN else "\\." if byte == 0x2E else f"\\{byte:03d}"
                for byte in wire[at + 1 : at + 1 + size]
            )
        )
        at += size + 1
    return ".".join(out) + ("." if at < len(wire) else "") or "."


def split(wire: bytes) -> list[bytes]:
    """The labels of a name, left to right, without their lengths."""
    labels, at = [], 0
    while at < len(wire) and wire[at]:
        size = wire[at]
        labels.append(wire[at + 1 : at + 1 + size])
        at += size + 1
    return labels


def starts(wire: bytes) -> list[int]:
    """Where each label of a name begins (its length byte), left to right, the root's zero byte not counted."""
    offsets, at = [], 0
    while at < len(wire) and wire[at]:
        offsets.append(at)
        at += wire[at] + 1
    return offsets


def is_below(wire: bytes, suffix: bytes) -> bool:
    """Whether lower-case `wire` is `suffix` or lies below it, at a label boundary."""
    start = len(wire) - len(suffix)
    return start >= 0 and wire[start:] == suffix and (suffix == b"\0" or start in starts(wire))


def pack(address: str) -> bytes:
    """4 or 16 octets of an IP address. Raises ValueError for anything else."""
    try:  # a fifth of what `ipaddress` takes: a zone has 30,000 of them
        one, two, three, four = address.split(".")
        return bytes((_OCTETS[one], _OCTETS[two], _OCTETS[three], _OCTETS[four]))
    except (KeyError, ValueError):
        return ipaddress.ip_address(address).packed


def unpack(packed: bytes) -> str:
    """The canonical text of 4 or 16 octets."""
    return str(ipaddress.ip_address(packed))


def dashed(address: str) -> bytes:
    """The label of an endpoint without hostname: dots or colons as dashes. `fd00::` is `fd00--0`: no label ends in a dash."""
    if ":" not in address:
        return address.replace(".", "-").encode()
    text = address.replace(".", "-").replace(":", "-")
    return (text + "0" if text.endswith("-") else text).encode()


def from_dashed(name: bytes) -> bytes | None:
    """The address a pod name stands for: three dashes and no `--` mean IPv4, anything else is read as IPv6. None: neither."""
    try:
        text = name.decode("ascii")
    except UnicodeDecodeError:
        return None
    if text.count("-") == 3 and "--" not in text:
        octets = text.split("-")
        if all(o.isdigit() and len(o) <= 3 and (o == "0" or o[0] != "0") and int(o) < 256 for o in octets):
            return bytes(int(o) for o in octets)
        return None
    if len(text) > 45 or not set(text) <= set("0123456789abcdef-"):
        return None
    try:
        return ipaddress.IPv6Address(text.replace("-", ":")).packed
    except ValueError:
        return None


def reverse(packed: bytes) -> bytes:
    """The name below in-addr.arpa or ip6.arpa that stands for an address."""
    if len(packed) == 4:
        return b"".join(label(str(octet).encode()) for octet in reversed(packed)) + b"\x07in-addr\x04arpa\0"
    nibbles = b"".join(bytes((1, _HEX[o & 15], 1, _HEX[o >> 4])) for o in reversed(packed))
    return nibbles + b"\x03ip6\x04arpa\0"


def octets_of_reverse(labels: list[bytes]) -> list[int] | None:
    """What the labels before `in-addr.arpa` say, most significant first; None when they are no such name."""
    if len(labels) > 4:
        return None
    octets = []
    for text in reversed(labels):
        if not text.isdigit() or len(text) > 3 or (text[0] == 0x30 and len(text) > 1) or int(text) > 255:
            return None
        octets.append(int(text))
    return octets


def nibbles_of_reverse(labels: list[bytes]) -> list[int] | None:
    """What the labels before `ip6.arpa` say, most significant first; None when they are no such name."""
    if len(labels) > 32:
        return None
    nibbles = []
    for text in reversed(labels):
        if len(text) != 1 or text[0] not in _HEX:
            return None
        nibbles.append(int(text, 16))
    return nibbles


def reverse_zones(network: str) -> list[bytes]:
    """The reverse zones that together are a network: one when its length is a multiple of 8 (IPv6: 4), up to 128 (8) otherwise.

    Raises ValueError when `network` is none.
    """
    net = ipaddress.ip_network(network, strict=False)
    step = 8 if net.version == 4 else 4
    aligned = -(-net.prefixlen // step) * step
    zones = []
    for part in net.subnets(new_prefix=aligned) if aligned != net.prefixlen else [net]:
        name = reverse(part.network_address.packed)
        skip = (part.max_prefixlen - part.prefixlen) // step
        offsets = starts(name)
        zones.append(name[offsets[skip] :])
    return zones


def zones(texts: Iterable[str]) -> tuple[bytes, ...]:
    """Zones in lower-case wire form, from names and networks such as 10.96.0.0/16. Raises ValueError."""
    found: list[bytes] = []
    for text in texts:
        found += reverse_zones(text) if "/" in text else [encode(text).lower()]
    return tuple(dict.fromkeys(found))


def is_below_any(wire: bytes, suffixes: Iterable[bytes]) -> bool:
    """Whether lower-case `wire` is one of `suffixes` or lies below one."""
    return any(is_below(wire, suffix) for suffix in suffixes)


def steady(key: bytes) -> bytes:
    """The owner of replies of a Service, by its key, in which no endpoint has a part; the key itself owns all others. No name ends so."""
    return key + b"\0"
