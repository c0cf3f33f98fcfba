"""Queries byte by byte, for protocol cases: what a client library would refuse to send."""

from __future__ import annotations

import struct

import dns.name

NAME = "svc1.testns.svc.cluster.local."
_LONG = b"\x3f" + b"a" * 63


def question(name: str = NAME, qtype: int = 1, qclass: int = 1) -> bytes:
    """A question section."""
    return dns.name.from_text(name).to_wire() + struct.pack("!HH", qtype, qclass)


def message(
    body: bytes, *, flags: int = 0x0100, counts: tuple[int, int, int, int] = (1, 0, 0, 0), ident: int = 0x1234
) -> bytes:
    """A header in front of `body`."""
    return struct.pack("!HHHHHH", ident, flags, *counts) + body


def opt(size: int = 1232, *, version: int = 0, flags: int = 0, options: bytes = b"") -> bytes:
    """An OPT record."""
    return struct.pack("!BHHBBHH", 0, 41, size, 0, version, flags, len(options)) + options


MALFORMED = {
    "P04-0": message(b"", counts=(0, 0, 0, 0)),
    "P04-2": message(question() * 2, counts=(2, 0, 0, 0)),
    "P04-65535": message(question(), counts=(65535, 0, 0, 0)),
    "P05": message(question() + b"\0\0\1\0\1\0\0\0\0\0\0" * 2, counts=(1, 2, 0, 0)),
    "P06-label-64": message(b"\x40" + b"a" * 64 + b"\0\0\1\0\1"),
    "P06-pointer": message(b"\xc0\x0c\0\1\0\1"),
    "P07": message(_LONG * 4 + b"\0\0\1\0\1"),
    "P08-name": message(b"\x04svc1"),
    "P08-type": message(question()[:-3]),
    "P17": message(question() + opt() + opt(), counts=(1, 0, 0, 2)),
    "P19-7": message(question() + opt(options=b"\0\x0a\0\x07" + b"c" * 7), counts=(1, 0, 0, 1)),
    "P19-41": message(question() + opt(options=b"\0\x0a\0\x29" + b"c" * 41), counts=(1, 0, 0, 1)),
    "options-cut": message(question() + opt(options=b"\0\x0a\0\x09abc"), counts=(1, 0, 0, 1)),
    "opt-in-answer": message(question() + opt(), counts=(1, 1, 0, 0)),
    "opt-below-a-name": message(question() + b"\1x" + opt(), counts=(1, 0, 0, 1)),
    "additional-missing": message(question(), counts=(1, 0, 0, 1)),
    "additional-cut": message(question() + opt()[:-1], counts=(1, 0, 0, 1)),
}
