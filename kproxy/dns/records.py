"""One answer as a record, for `kproxy dns observe` and for the lines of the `log` directive.

In: what a worker knows at the moment it sends a reply. Out: a `Seen`, and of it a line in CoreDNS's log format. What must not happen here:
anything while nobody looks (the worker does not call this then), or a byte of a client's name reaching a line unescaped.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import msgspec

from kproxy.dns import names, upstream
from kproxy.dns.tally import RCODES

_FLAGS = (
    (0x8000, "qr"),
    (0x0400, "aa"),
    (0x0200, "tc"),
    (0x0100, "rd"),
    (0x0080, "ra"),
    (0x0040, "z"),
    (0x0020, "ad"),
    (0x0010, "cd"),
)
# As CoreDNS prints them; any other type is TYPE and its number.
TYPE_NAMES = {
    1: "A", 2: "NS", 5: "CNAME", 6: "SOA", 12: "PTR", 13: "HINFO", 15: "MX", 16: "TXT", 28: "AAAA", 33: "SRV", 35: "NAPTR", 43: "DS",
    46: "RRSIG", 47: "NSEC", 48: "DNSKEY", 50: "NSEC3", 64: "SVCB", 65: "HTTPS", 251: "IXFR", 252: "AXFR", 255: "ANY", 257: "CAA",
}  # fmt: skip
_CLASSES = {1: "IN", 3: "CH", 4: "HS", 254: "NONE", 255: "ANY"}
_PLACEHOLDER = re.compile(r"\{(>?[a-z/]+)\}")
COMMON = '{remote}:{port} - {>id} "{type} {class} {name} {proto} {size} {>do} {>bufsize}" {rcode} {>rflags} {rsize} {duration}'


class Seen(msgspec.Struct, frozen=True, array_like=True, tag="seen"):
    """One answer. at: Unix time of the reply. duration: microseconds. how: cache, zone, forward, walk, refused.

    saved: how many queries of the client's own search this reply spares it.
    """

    at: float
    client: str
    port: int
    pod: str
    name: str
    qtype: str
    qclass: str
    rcode: str
    flags: str
    size: int
    asked: int
    duration: int
    how: str
    proto: str
    ident: int = 0
    dnssec_ok: bool = False
    bufsize: int = 512
    saved: int = 0
    denied: bool = False  # there is no such name or record, and an SOA says so


def seen(
    data: bytes,
    reply: bytes,
    *,
    at: float,
    client: str,
    port: int,
    pod: str,
    duration_s: float,
    how: str,
    proto: str,
    saved: int = 0,
) -> Seen:
    """The record of a reply (with its ID) to the query `data`. Never raises: a question that cannot be read is a `.` of type 0."""
    name, qtype, qclass = question(data)
    flags = int.from_bytes(reply[2:4], "big")
    has_opt = len(data) >= 12 and data[11] > 0 and len(reply) > 11 and reply[11] > 0
    opt = data.find(b"\0\0\x29", 12) if has_opt else -1
    bufsize = int.from_bytes(data[opt + 3 : opt + 5], "big") if opt >= 0 else 512
    return Seen(
        at=at,
        client=client,
        port=port,
        pod=pod,
        name=name,
        qtype=TYPE_NAMES.get(qtype, f"TYPE{qtype}"),
        qclass=_CLASSES.get(qclass, f"CLASS{qclass}"),
        rcode=RCODES.get(flags & 15, str(flags & 15)),
        flags=",".join(word for bit, word in _FLAGS if flags & bit),
        size=len(reply),
        asked=len(data),
        duration=int(duration_s * 1e6),
        how=how,
        proto=proto,
        ident=int.from_bytes(data[:2], "big"),
        dnssec_ok=opt >= 0 and len(data) > opt + 7 and bool(data[opt + 7] & 0x80),
        bufsize=65535 if proto == "tcp" else max(bufsize, 512),
        saved=saved,
        denied=_is_denial(reply),
    )


def _is_denial(reply: bytes) -> bool:
    """NXDOMAIN, or NOERROR without an answer, with an SOA first in the authority section."""
    rcode = reply[3] & 15
    if rcode not in (0, 3) or (rcode == 0 and reply[6:8] != b"\0\0") or reply[8:10] == b"\0\0":
        return False
    try:
        at = upstream.read_name(reply, 12)[1] + 4
        for _ in range(int.from_bytes(reply[6:8], "big")):
            at = upstream.read_name(reply, at)[1]
            at += 10 + int.from_bytes(reply[at + 8 : at + 10], "big")
        return reply[upstream.read_name(reply, at)[1] :][:2] == b"\0\6"
    except upstream.Malformed:
        return False


def question(data: bytes) -> tuple[str, int, int]:
    """Name (escaped, for a terminal), type and class of a query's first question."""
    at = 12
    while at < len(data) and 0 < data[at] < 64:
        at += data[at] + 1
    if at + 5 > len(data) or data[at]:
        return ".", 0, 0
    return (
        names.decode(data[12 : at + 1]),
        int.from_bytes(data[at + 1 : at + 3], "big"),
        int.from_bytes(data[at + 3 : at + 5], "big"),
    )


_FIELDS: Mapping[str, Callable[[Seen], str]] = {
    "remote": lambda one: f"[{one.client}]" if ":" in one.client else one.client,
    "port": lambda one: str(one.port),
    ">id": lambda one: str(one.ident),
    "type": lambda one: one.qtype,
    "class": lambda one: one.qclass,
    "name": lambda one: one.name.lower(),
    "proto": lambda one: one.proto,
    "size": lambda one: str(one.asked),
    ">do": lambda one: str(one.dnssec_ok).lower(),
    ">bufsize": lambda one: str(one.bufsize),
    "rcode": lambda one: one.rcode,
    ">rflags": lambda one: one.flags,
    "rsize": lambda one: str(one.size),
    "duration": lambda one: f"{one.duration / 1e6:.9f}s",
    "local": lambda one: "",
    ">opcode": lambda one: "0",
    "/pod": lambda one: one.pod,
}


def line(one: Seen, form: str) -> str:
    """A line in the form of the `log` directive. What is in braces and unknown stays as it is, unknown metadata is `-`: as in CoreDNS."""
    form = form.replace("{combined}", COMMON + ' "{>opcode}"').replace("{common}", COMMON)

    def value(match: re.Match[str]) -> str:
        field = _FIELDS.get(match[1])
        if field is None and not match[1].startswith("/"):
            return match[0]
        return (field(one) if field is not None else "") or "-"

    return _PLACEHOLDER.sub(value, form)


def class_of(one: Seen) -> str:
    """CoreDNS's class of a reply, which `log { class … }` chooses by: success, denial or error."""
    if one.denied:
        return "denial"
    return "success" if one.rcode == "NOERROR" else "error"
