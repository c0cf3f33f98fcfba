"""What an endpoint is told of the client before the first octet of the connection: the PROXY protocol's header, versions 1 and 2. Pure.

Specification: "The PROXY protocol", Willy Tarreau, 2020/03/05, sections 2.1 and 2.2. In: the client's address and port and those that
it asked for. Out: the octets. A header is at most 107 octets (version 1) or 52 (version 2) long, so one `send` on a fresh connection
always takes it whole.
"""

from __future__ import annotations

from functools import lru_cache
from ipaddress import ip_address

from kproxy.relay.targets import End

VERSIONS = (1, 2)
_SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
_PROXY = b"\x21"  # version 2, command PROXY
_STREAM = {4: b"\x11\x00\x0c", 16: b"\x21\x00\x24"}  # TCP over IPv4 or IPv6, and how many octets of addresses follow
_UNKNOWN = b"\x20\x00\x00\x00"  # version 2, command LOCAL, nothing follows


def proxy_header(version: int, client: End, asked: End) -> bytes:
    """The header for a TCP connection from `client` to `asked`, the destination as the client sees it; ValueError: no such version.

    Addresses of two families, or such as cannot be read, are told as unknown, which lets the connection work.
    """
    if version not in VERSIONS:
        raise ValueError(f"there is no version {version} of the PROXY protocol")
    source, destination = _packed(client[0]), _packed(asked[0])
    known = bool(source) and len(source) == len(destination)
    if version == 1:
        if not known:
            return b"PROXY UNKNOWN\r\n"
        family = "TCP4" if len(source) == 4 else "TCP6"
        one, other = client[0].partition("%")[0], asked[0].partition("%")[0]
        return f"PROXY {family} {one} {other} {client[1]} {asked[1]}\r\n".encode("ascii")
    if not known:
        return _SIGNATURE + _UNKNOWN
    ports = client[1].to_bytes(2, "big") + asked[1].to_bytes(2, "big")
    return b"".join((_SIGNATURE, _PROXY, _STREAM[len(source)], source, destination, ports))


@lru_cache(maxsize=4096)
def _packed(address: str) -> bytes:
    """The octets of an address; none if it is no address. A zone (`fe80::1%eth0`) is the node's own affair."""
    try:
        return ip_address(address.partition("%")[0]).packed
    except ValueError:
        return b""
