"""The text inside API objects: addresses, networks, names. Checked once here, canonical from then on.

In: strings as people and programs wrote them. Out: canonical text, or a reason in words. Nothing raises over bad text. Addresses go
through the C library (0.4 microseconds) and not through `ipaddress` (3 microseconds): a full list brings 50,000 of them.
"""

from __future__ import annotations

import ipaddress
import re
from socket import AF_INET, AF_INET6, inet_ntop, inet_pton

_LABEL = re.compile(r"[a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?\Z")  # RFC 1123 label, as the API checks it
_SUBDOMAIN = re.compile(r"[a-z0-9](?:[-a-z0-9.]{0,251}[a-z0-9])?\Z")
_DNS_NAME = re.compile(r"[A-Za-z0-9_](?:[-A-Za-z0-9_.]{0,252})\Z")
_DECIMAL_QUAD = re.compile(r"\d{1,10}(?:\.\d{1,10}){3}\Z", re.ASCII)


class BadText(ValueError):
    """The text is not what its field needs; the message says why."""


def is_label(text: str) -> bool:
    """An RFC 1123 label of at most 63 octets, lower case: names of Services, namespaces, ports and pod hostnames."""
    return _LABEL.match(text) is not None


def is_subdomain(text: str) -> bool:
    """Labels joined by dots, at most 253 octets: names of all other objects."""
    if _LABEL.match(text) is not None:  # nearly all
        return True
    return _SUBDOMAIN.match(text) is not None and all(_LABEL.match(part) for part in text.split("."))


def is_dns_name(text: str) -> bool:
    """A name that fits into a DNS message, at most 63 octets a label; a final dot and underscores are allowed, case is kept."""
    if _DNS_NAME.match(text) is None:
        return False
    return all(0 < len(part) <= 63 for part in text.removesuffix(".").split("."))


def shown(value: object) -> str:
    """`value` for a message: one line, no control characters, at most 60 characters of it."""
    text = value if isinstance(value, str) else repr(value)
    return ascii(text if len(text) <= 60 else text[:57] + "...")


def canonical_address(text: str) -> str:
    """`text` as canonical address; raises BadText.

    IPv4 octets with leading zeros are decimal, as the API server and kube-proxy read them (the C library would refuse them). IPv4
    written as IPv6 (`::ffff:10.0.0.1`) is refused: the API forbids it, and which family it belongs to depends on who reads it.
    """
    try:
        if ":" not in text:
            return inet_ntop(AF_INET, inet_pton(AF_INET, text))
        packed = inet_pton(AF_INET6, text)
    except (OSError, ValueError):  # ValueError: embedded NUL, lone surrogates
        return _with_leading_zeros(text)
    if packed[:12] == b"\0" * 10 + b"\xff\xff":
        raise BadText(f"{shown(text)} is an IPv4 address in IPv6 clothes")
    if packed[:12] == b"\0" * 12:  # the C library prints these as ::1.2.3.4
        return str(ipaddress.IPv6Address(packed))
    return inet_ntop(AF_INET6, packed)


def _with_leading_zeros(text: str) -> str:
    if len(text) <= 60 and _DECIMAL_QUAD.match(text):
        octets = [int(part) for part in text.split(".")]
        if max(octets) <= 255:
            return ".".join(str(octet) for octet in octets)
    raise BadText(f"{shown(text)} is not an IP address")


def canonical_network(text: str) -> str:
    """`text` as canonical network with the host bits cleared; surrounding blanks are tolerated as upstream does. Raises BadText."""
    bare = text.strip()
    address, slash, length = bare.partition("/")
    try:
        if not slash or not re.fullmatch(r"\d{1,3}", length, re.ASCII):
            raise BadText("")
        return str(ipaddress.ip_network((canonical_address(address), int(length)), strict=False))
    except ValueError:
        raise BadText(f"{shown(text)} is not a network (address/prefix length)") from None
