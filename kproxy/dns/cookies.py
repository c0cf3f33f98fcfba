"""DNS cookies: what lets a server know a client again that a forger elsewhere cannot be (RFC 7873, in the common form of RFC 9018).

In: a client's cookie option, its address, the time, and secrets that all servers share. Out: the option for the reply, and whether the
client proved that it receives at its address. What must not happen here: clocks, randomness, keeping anything.

    option:  client cookie (8)  server cookie (16)
    server:  version 1 (1)  reserved (3)  timestamp (4)  SipHash-2-4(client cookie, version … timestamp, client address) (8)

Every server with the secret takes every other one's cookies, NSD, Knot, Unbound and BIND included. A cookie is good for an hour and
renewed after half of one; secrets are two, the one in use and the one before it or after it, so that they may be changed while cookies
are out (RFC 9018 section 5). A query with a cookie that is not good is answered as one without (RFC 7873 section 5.2.3): requiring
good ones would put a round trip before every first answer, and clients of a cluster cannot be asked for that.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

CLIENT = 8  # octets of the client's half
OPTION = 10  # the option's code
LONGEST_S = 3600
RENEWED_AFTER_S = 1800
AHEAD_S = 300  # how far another server's clock may run before ours
_HALF = 1 << 31

_MASK = 0xFFFF_FFFF_FFFF_FFFF


def reply_cookie(cookie: bytes, address: bytes, now: int, secrets: Sequence[bytes]) -> tuple[bytes, bool]:
    """The whole cookie for the reply, and whether the client's was good.

    cookie: 8 octets, or 16 to 40 with a server's half. address: packed. now: Unix time. secrets: 16 octets each, the first makes cookies;
    without any the client's half comes back alone: no server cookie is no support (RFC 7873 section 5.2).
    """
    client = cookie[:CLIENT]
    if not secrets:
        return client, False
    age = _age(cookie, address, now, secrets)
    if age is not None and age <= RENEWED_AFTER_S and _age(cookie, address, now, secrets[:1]) is not None:
        return cookie, True
    head = struct.pack("!II", 0x0100_0000, now & 0xFFFF_FFFF)
    return client + head + siphash(secrets[0], client + head + address), age is not None


def _age(cookie: bytes, address: bytes, now: int, secrets: Sequence[bytes]) -> int | None:
    """Seconds since a good cookie was made; None for any other."""
    if len(cookie) != CLIENT + 16 or cookie[CLIENT] != 1:
        return None
    made = int.from_bytes(cookie[12:16], "big")
    age = ((now - made + _HALF) & 0xFFFF_FFFF) - _HALF  # serial number arithmetic: the clock's 32 bits end in 2106
    if not -AHEAD_S <= age <= LONGEST_S:
        return None
    found = cookie[16:24]
    known = any(siphash(secret, cookie[:16] + address) == found for secret in secrets)
    return age if known else None


def siphash(key: bytes, message: bytes) -> bytes:
    """SipHash-2-4 of a message under a key of 16 octets: 8 octets as the reference implementation writes them."""
    first, second = int.from_bytes(key[:8], "little"), int.from_bytes(key[8:], "little")
    a, b, c, d = (
        first ^ 0x736F6D6570736575,
        second ^ 0x646F72616E646F6D,
        first ^ 0x6C7967656E657261,
        second ^ 0x7465646279746573,
    )
    whole = len(message) - len(message) % 8
    last = message[whole:].ljust(7, b"\0") + bytes((len(message) & 0xFF,))
    for at in range(0, whole + 8, 8):
        word = int.from_bytes(message[at : at + 8] if at < whole else last, "little")
        d ^= word
        a, b, c, d = _round(*_round(a, b, c, d))
        a ^= word
    c ^= 0xFF
    for _ in range(4):
        a, b, c, d = _round(a, b, c, d)
    return (a ^ b ^ c ^ d).to_bytes(8, "little")


def _round(a: int, b: int, c: int, d: int) -> tuple[int, int, int, int]:
    a = (a + b) & _MASK
    b = ((b << 13 | b >> 51) & _MASK) ^ a
    a = (a << 32 | a >> 32) & _MASK
    c = (c + d) & _MASK
    d = ((d << 16 | d >> 48) & _MASK) ^ c
    a = (a + d) & _MASK
    d = ((d << 21 | d >> 43) & _MASK) ^ a
    c = (c + b) & _MASK
    b = ((b << 17 | b >> 47) & _MASK) ^ c
    c = (c << 32 | c >> 32) & _MASK
    return a, b, c, d
