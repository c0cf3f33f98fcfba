"""Zones as Corefiles write them: names and networks, with scheme and port, into names.

In: a word such as `dns://example.org:5353` or `10.96.0.0/12`. Out: names in lower case without the dot at the end (`.` for the root), as
`blocks` keeps them. A network is the reverse zones that cover it to the bit: 10.96.0.0/12 is sixteen of them, 192.168.1.0/25 is 128. Pure.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from kproxy.dns import names
from kproxy.dns.corefile.place import Mistake, Token, shown

SCHEMES = ("tls", "dns", "quic", "grpc", "https3", "https", "unix")
DNS_PORT = 53


@dataclass(frozen=True, slots=True)
class Address:
    """An address of a server block. port: -1 when it says none."""

    scheme: str
    zones: tuple[str, ...]
    port: int


def split_scheme(text: str) -> tuple[str, str]:
    """The scheme (`dns` when there is none that CoreDNS knows) and what is behind it."""
    for scheme in SCHEMES:
        if text.startswith(f"{scheme}://"):
            return scheme, text[len(scheme) + 3 :]
    return "dns", text


def read_address(text: str) -> Address:
    """Scheme, zones and port. Raises ValueError, saying why."""
    scheme, rest = split_scheme(text)
    port = -1
    front, colon, back = rest.rpartition(":")
    if colon and not back:
        raise ValueError("a port is missing behind the last colon")
    if colon and _is_number(back):
        port, rest = int(back), front
    if len(rest.encode()) > 255:
        raise ValueError("the zone is longer than 255 characters")
    if not is_domain_name(rest):
        raise ValueError(
            "this is no domain name: labels of 1 to 63 characters with dots between them, or . for all names"
        )
    network = _network(rest)
    if network is None:
        return Address(scheme, (normal(rest),), port)
    if rest.startswith(":") or (rest.startswith("0") and ":" in rest):
        raise ValueError("a network that begins with zeros is not taken for one")
    return Address(scheme, reverse_zones(network), port)


def normal(name: str) -> str:
    """In lower case, without the dot at the end; the root is `.`."""
    lower = name.lower()
    if lower.endswith(".") and not lower.endswith("\\."):
        lower = lower[:-1]
    return lower or "."


def zones(words: Iterable[Token], else_block: Sequence[str] = ()) -> tuple[str, ...]:
    """The zones of a directive's arguments, else the block's. Raises Mistake for one that CoreDNS would leave out without a word."""
    found: list[str] = []
    for word in words:
        try:
            found.extend(read_address(word.text).zones)
            _check(found[-1])
        except ValueError as error:
            raise Mistake(word, f"{shown(word.text)}: {error}") from None
    return tuple(found) or tuple(else_block)


def _check(zone: str) -> None:
    names.encode(zone)


def is_reverse(zone: str) -> bool:
    """Whether a zone lies where addresses' names do."""
    return zone.endswith((".in-addr.arpa", ".ip6.arpa")) or zone in ("in-addr.arpa", "ip6.arpa")


def reverse_zones(network: ipaddress.IPv4Network | ipaddress.IPv6Network) -> tuple[str, ...]:
    """The reverse zones that together are `network`, to the bit; at most 128 (IPv4) or 8 (IPv6)."""
    step = 8 if network.version == 4 else 4
    whole = -(-network.prefixlen // step) * step
    return tuple(_reverse_zone(part, step) for part in network.subnets(new_prefix=whole))


def _reverse_zone(network: ipaddress.IPv4Network | ipaddress.IPv6Network, step: int) -> str:
    labels = network.network_address.reverse_pointer.split(".")
    unneeded = (network.max_prefixlen - network.prefixlen) // step
    return ".".join(labels[unneeded:])


def _network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network | None:
    """A network with a prefix length, as Go reads it: host bits may be set, no zeros in front, no netmask in dots."""
    address, slash, length = text.partition("/")
    if (
        not slash
        or not _is_number(length)
        or length[0] in "+-"
        or (len(length) > 1 and length[0] == "0")
        or "%" in address
    ):
        return None
    try:
        return ipaddress.ip_network(text, strict=False)
    except ValueError:
        return None


def _is_number(text: str) -> bool:
    digits = text[1:] if text[:1] in ("+", "-") else text
    return digits.isascii() and digits.isdigit() and len(digits) < 19


def is_domain_name(text: str) -> bool:
    """Whether miekg/dns takes `text` for a name: label lengths, no empty ones, escapes that end. Any other octet is allowed."""
    if not text:
        return False
    data = text.encode()
    if not text.endswith(".") or _escaped_end(data):
        data += b"."
    size, begin, at, dot, escape = 0, 0, 0, False, False
    while at < len(data):
        byte = data[at]
        if byte == 0x5C:
            escape = not escape
            step = 3 if data[at + 1 : at + 4].isdigit() and len(data[at + 1 : at + 4]) == 3 else 1
            at, begin, dot = at + step, begin + step, False
        elif byte == 0x2E:
            escape = False
            if (at == 0 and len(data) > 1) or dot or at - begin >= 64:
                return False
            size += 1 + at - begin
            if size > 256:
                return False
            dot, begin = True, at + 1
        else:
            escape = dot = False
        at += 1
    return not escape


def _escaped_end(data: bytes) -> bool:
    """Whether the last dot is escaped: an odd number of backslashes before it."""
    head = data[:-1]
    return (len(head) - len(head.rstrip(b"\\"))) % 2 == 1
