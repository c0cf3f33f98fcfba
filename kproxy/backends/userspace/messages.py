"""What the kernel tells of our tables by netlink, as values; and the questions. Pure: bytes in, bytes out.

Why not `nft list`: as text it is another in every version, and as JSON it is slow to read; the kernel's own answer is the same since 4.10
(linux/netfilter/nf_tables.h). Keys and verdicts come out in the very spelling that compile.py writes, so that observed and wanted
elements compare as they are. Bytes that make no sense raise ValueError; the kernel's own errors OSError.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from functools import wraps
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, summarize_address_range
from typing import NamedTuple, ParamSpec

from kproxy.backends.userspace.names import TABLE
from kproxy.backends.userspace.rules import Hook, SetKind
from kproxy.backends.userspace.ruleset import Element
from kproxy.model.names import Family

_NFPROTO = {Family.IPV4: 2, Family.IPV6: 10}
_SUBSYSTEM = 10 << 8
_NEW_CHAIN, _GET_CHAIN = _SUBSYSTEM | 3, _SUBSYSTEM | 4
_NEW_RULE, _GET_RULE = _SUBSYSTEM | 6, _SUBSYSTEM | 7
_NEW_SET, _GET_SET = _SUBSYSTEM | 9, _SUBSYSTEM | 10
_NEW_ELEMENTS, _GET_ELEMENTS = _SUBSYSTEM | 12, _SUBSYSTEM | 13
_NEW_GENERATION, _GET_GENERATION = _SUBSYSTEM | 15, _SUBSYSTEM | 16
_REQUEST, _DUMP, _INTERRUPTED = 0x1, 0x300, 0x10
_ERROR, _DONE = 2, 3
_HEADER = struct.Struct("=IHHII")
_BODY = _HEADER.size + 4  # behind struct nfgenmsg
_TWO = struct.Struct("=HH")
_SIGNED = struct.Struct("=i")
_NUMBER = struct.Struct(">I")
_SIGNED_BIG = struct.Struct(">i")
_KIND_MASK = 0x3FFF

# enum nft_set_flags and the types of `nft` (include/datatype.h), six bits for each part of a concatenation
_INTERVAL, _MAP = 0x4, 0x8
_TYPES = {7: "ipv4_addr", 8: "ipv6_addr", 12: "inet_proto", 13: "inet_service"}
_PROTOCOLS = {6: "tcp", 17: "udp"}
_VERDICT_TYPE = 0xFFFFFF00
_DROP_CODE, _JUMP_CODE, _GOTO_CODE = 0, -3, -4
_COMMENT = 0  # NFTNL_UDATA_SET_ELEM_COMMENT, whose data begins with its length in an octet


_P = ParamSpec("_P")


def _sensible(read: Callable[_P, bool]) -> Callable[_P, bool]:
    """What is missing or too short is a ValueError."""

    @wraps(read)
    def reading(*args: _P.args, **kwargs: _P.kwargs) -> bool:
        try:
            return read(*args, **kwargs)
        except (LookupError, struct.error) as error:
            raise ValueError(f"nf_tables: a message without sense: {error!r}") from error

    return reading


class InterruptedDumpError(ValueError):
    """The tables moved while they were read; ask again."""


class Rules(NamedTuple):
    """One message of a dump of rules: the chain, and the expressions as the kernel has them, without handle and counters' history."""

    chain: str
    expressions: bytes


def generation_request() -> bytes:
    """Asks which generation nf_tables is in: a number that grows with everything that anybody commits in this network namespace."""
    return _request(_GET_GENERATION, _REQUEST, 0)


def chains_request(family: Family) -> bytes:
    """Asks for all chains of `family`, everybody's."""
    return _request(_GET_CHAIN, _REQUEST | _DUMP, _NFPROTO[family])


def sets_request(family: Family, table: str = TABLE) -> bytes:
    """Asks for all sets of a table. The kernel's own error, ENOENT, when there is no such table."""
    return _request(_GET_SET, _REQUEST | _DUMP, _NFPROTO[family], _string(1, table))


def rules_request(family: Family) -> bytes:
    """Asks for all rules of our table."""
    return _request(_GET_RULE, _REQUEST | _DUMP, _NFPROTO[family], _string(1, TABLE))


def elements_request(family: Family, name: str) -> bytes:
    """Asks for all elements of one of our sets or maps."""
    return _request(_GET_ELEMENTS, _REQUEST | _DUMP, _NFPROTO[family], _string(1, TABLE) + _string(2, name))


def _request(kind: int, flags: int, family: int, attributes: bytes = b"") -> bytes:
    head = _HEADER.pack(_BODY + len(attributes), kind, flags, 1, 0)
    return head + struct.pack("=BBH", family, 0, 0) + attributes


def _string(kind: int, text: str) -> bytes:
    data = text.encode() + b"\0"
    return _TWO.pack(4 + len(data), kind) + data + bytes(-len(data) % 4)


# Answers


def read_generation(datagram: bytes) -> int:
    """The generation that the kernel told."""
    for kind, body in _messages(datagram):
        found = dict(_attributes(body)) if kind == _NEW_GENERATION else {}
        if len(found.get(1, b"")) == 4:
            return int(_NUMBER.unpack(found[1])[0])
    raise ValueError("no generation in the answer")


@_sensible
def read_chains(datagram: bytes, chains: dict[str, Hook | None]) -> bool:
    """Adds our chains of one datagram of a dump; whether the dump is at its end. hook: by its number in the kernel."""
    for kind, body in _messages(datagram):
        if kind == _DONE:
            return True
        found = dict(_attributes(body)) if kind == _NEW_CHAIN else {}
        if _text(found.get(1, b"")) != TABLE:
            continue
        hook = None
        if 4 in found:
            where = dict(_attributes(found[4]))
            number, priority = _NUMBER.unpack(where[1])[0], _SIGNED_BIG.unpack(where[2])[0]
            hook = Hook(_text(found.get(7, b"")), _HOOK_NAMES.get(number, str(number)), priority)
        chains[_text(found[3])] = hook
    return False


_HOOK_NAMES = dict(enumerate(("prerouting", "input", "forward", "output", "postrouting")))


@_sensible
def read_sets(datagram: bytes, kinds: dict[str, SetKind]) -> bool:
    """Adds the sets of our table in one datagram of a dump, anonymous ones left out; whether the dump is at its end."""
    for kind, body in _messages(datagram):
        if kind == _DONE:
            return True
        found = dict(_attributes(body)) if kind == _NEW_SET else {}
        if _text(found.get(1, b"")) != TABLE:
            continue
        flags = _NUMBER.unpack(found[3])[0] if 3 in found else 0
        if flags & 0x1:  # anonymous: part of a rule
            continue
        verdicts = bool(flags & _MAP) and _NUMBER.unpack(found.get(6, bytes(4)))[0] == _VERDICT_TYPE
        key = _key_types(_NUMBER.unpack(found[4])[0])
        kinds[_text(found[2])] = SetKind(key, interval=bool(flags & _INTERVAL), verdicts=verdicts)
    return False


def count_sets(datagram: bytes, sizes: list[int]) -> bool:
    """Adds a number for each set in one datagram of a dump, whoever's it is; whether the dump is at its end."""
    for kind, body in _messages(datagram):
        if kind == _DONE:
            return True
        if kind == _NEW_SET:
            sizes.append(len(body))
    return False


def _key_types(number: int) -> tuple[str, ...]:
    parts = []
    while number:
        parts.append(_TYPES.get(number & 0x3F, str(number & 0x3F)))
        number >>= 6
    return tuple(reversed(parts))


@_sensible
def read_rules(datagram: bytes, rules: list[Rules]) -> bool:
    """Adds the rules of our table in one datagram of a dump, in their order; whether the dump is at its end."""
    for kind, body in _messages(datagram):
        if kind == _DONE:
            return True
        found = dict(_attributes(body)) if kind == _NEW_RULE else {}
        if _text(found.get(1, b"")) == TABLE:
            rules.append(Rules(_text(found[2]), found.get(4, b"")))
    return False


@_sensible
def read_elements(datagram: bytes, kind: SetKind, elements: dict[str, Element]) -> bool:
    """Adds the elements of a set of this kind in one datagram of a dump; whether the dump is at its end."""
    for message, body in _messages(datagram):
        if message == _DONE:
            return True
        if message != _NEW_ELEMENTS:
            continue
        for attribute, data in _attributes(body):
            if attribute == 3:
                for _, element in _attributes(data):
                    key, value = _element(element, kind)
                    elements[key] = value
    return False


def count_elements(datagram: bytes, sizes: list[int]) -> bool:
    """Adds how many elements one datagram of a dump has; whether the dump is at its end."""
    for message, body in _messages(datagram):
        if message == _DONE:
            return True
        if message == _NEW_ELEMENTS:
            sizes += [sum(1 for _ in _attributes(data)) for attribute, data in _attributes(body) if attribute == 3]
    return False


def _element(data: bytes, kind: SetKind) -> tuple[str, Element]:
    found = dict(_attributes(data))
    start = _value(found[1])
    end = _value(found[10]) if 10 in found else start
    verdict = _verdict(dict(_attributes(found[2]))) if 2 in found else ""
    comment = _comment(found[6]) if 6 in found else ""
    return key_text(start, end, kind), Element(verdict, comment)


def _value(data: bytes) -> bytes:
    return dict(_attributes(data))[1]


def _verdict(found: dict[int, bytes]) -> str:
    if 2 not in found:
        raise ValueError("an element without a verdict")
    inner = dict(_attributes(found[2]))
    code = _SIGNED_BIG.unpack(inner[1])[0]
    words = {_GOTO_CODE: "goto", _JUMP_CODE: "jump"}
    if code in words:
        return f"{words[code]} {_text(inner[2])}"
    return "drop" if code == _DROP_CODE else f"verdict {code}"


def _comment(data: bytes) -> str:
    at = 0
    while at + 2 <= len(data):
        kind, size = data[at], data[at + 1]
        if kind == _COMMENT:
            return _text(data[at + 2 : at + 2 + size])
        at += 2 + size
    return ""


def key_text(start: bytes, end: bytes, kind: SetKind) -> str:
    """A key, or the range from one to the other, as compile.py spells it."""
    parts, at = [], 0
    for name in kind.key:
        size = 16 if name == "ipv6_addr" else 4
        low, high = start[at : at + size], end[at : at + size]
        at += size
        if name == "inet_proto":
            parts.append(_PROTOCOLS.get(low[0], str(low[0])))
        elif name == "inet_service":
            parts.append(str(low[0] << 8 | low[1]))
        elif kind.interval and at == len(start):
            parts.append(_network(low, high))
        else:
            parts.append(f"{low[0]}.{low[1]}.{low[2]}.{low[3]}" if size == 4 else str(IPv6Address(low)))
    return " . ".join(parts)


def _network(low: bytes, high: bytes) -> str:
    found: list[IPv4Network] | list[IPv6Network]
    if len(low) == 4:
        found = list(summarize_address_range(IPv4Address(low), IPv4Address(high)))
    else:
        found = list(summarize_address_range(IPv6Address(low), IPv6Address(high)))
    return ",".join(map(str, found))


def _text(data: bytes) -> str:
    return data.partition(b"\0")[0].decode(errors="replace")


def _messages(datagram: bytes) -> Iterator[tuple[int, bytes]]:
    start, limit = 0, len(datagram)
    while start + _HEADER.size <= limit:
        size, kind, flags, _, _ = _HEADER.unpack_from(datagram, start)
        if size < _HEADER.size or start + size > limit:
            raise ValueError(f"a message of {size} bytes in {limit - start}")
        if kind in (_ERROR, _DONE) and size >= _HEADER.size + 4:
            number = -_SIGNED.unpack_from(datagram, start + _HEADER.size)[0]
            if number:
                raise OSError(number, "nf_tables")
        if flags & _INTERRUPTED:
            raise InterruptedDumpError("the tables moved meanwhile")
        yield kind, datagram[start + _BODY : start + size]
        start += (size + 3) & ~3


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    start, end = 0, len(data)
    while start + 4 <= end:
        size, kind = _TWO.unpack_from(data, start)
        if size < 4 or start + size > end:
            raise ValueError(f"an attribute of {size} bytes in {end - start}")
        yield kind & _KIND_MASK, data[start + 4 : start + size]
        start += (size + 3) & ~3
