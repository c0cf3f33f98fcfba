"""`hosts`: addresses by name and names by address, from lines as in /etc/hosts.

In: the directive and the content of its file. Out: a table, and of it the reply to one question, or None for the next directive's turn.
What must not happen here: reading the file (`hostsfile` does). Lines that cannot be read are passed over, as every reader of /etc/hosts
does.

A name that is missing is SERVFAIL unless `fallthrough` passes it on (there is no SOA to say NXDOMAIN with), one that has only the other
family is NODATA without SOA, and a reverse name that is missing always goes on: all as CoreDNS does. A leftmost label `*` stands for any
one label.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from itertools import islice

from kproxy.dns import names
from kproxy.dns.blocks import Hosts
from kproxy.dns.finishing import FAILURE, Message
from kproxy.dns.upstream import Record
from kproxy.dns.wire import Query, Type

MAX_LINES = 100_000  # of one file
MAX_ANSWERS = 1000  # addresses of one name, names of one address; more do not fit into a message
OWNER = b"\0hosts"  # what the answer cache files replies under that have an order to turn; no Service has such a key

_REVERSE = {b"\x07in-addr\x04arpa\0": 4, b"\x03ip6\x04arpa\0": 16}


class HostTable:
    """The table of one block's `hosts`."""

    def __init__(self, directive: Hosts, text: str, zones: tuple[str, ...]) -> None:
        """text: the file's content. zones: the block's, for a directive that names none. Raises ValueError for a bad zone."""
        self._zones = names.zones(directive.zones or zones)
        self._through = None if directive.fallthrough is None else names.zones(directive.fallthrough)
        self._through_types = directive.fallthrough_unsupported
        self._ttl = directive.ttl
        self._reverse = not directive.no_reverse
        self._addresses: dict[bytes, tuple[list[bytes], list[bytes]]] = {}
        self._names: dict[bytes, dict[bytes, None]] = {}  # an ordered set: blocklists give one address 100,000 names
        packed: dict[str, bytes] = {}
        for line in text.splitlines()[:MAX_LINES]:
            words = line.partition("#")[0].split()
            if len(words) > 1:
                self._add(words[0], words[1:], packed)
        for inline in directive.lines:
            self._add(inline.address, inline.names, packed)

    def _add(self, address: str, written: Iterable[str], known: dict[str, bytes]) -> None:
        """known: addresses read before, b"" for what is none."""
        packed = known.get(address)
        if packed is None:
            packed = known[address] = _packed(address)
        if not packed:
            return
        for text in written:
            name = _plain(text) or _name(text)
            if not name or not names.is_below_any(name, self._zones):
                continue
            found = self._addresses.setdefault(name, ([], []))[0 if len(packed) == 4 else 1]
            if len(found) < MAX_ANSWERS and packed not in found:
                found.append(packed)
            if self._reverse and not name.startswith(b"\x01*"):
                self._names.setdefault(packed, {})[name] = None

    def __len__(self) -> int:
        """Entries, as CoreDNS counts them for `coredns_hosts_entries`: addresses by name and names by address."""
        return sum(len(four) + len(six) for four, six in self._addresses.values()) + sum(map(len, self._names.values()))

    def respond(self, query: Query) -> Message | None:
        """What the table says; None: the next directive's turn."""
        lowered, qtype = query.lowered, query.qtype
        if qtype == Type.PTR:
            targets = tuple(islice(self._names.get(_address_of(lowered), ()), MAX_ANSWERS))
            return self._answer(query, qtype, targets) if targets else None
        if not names.is_below_any(lowered, self._zones):
            return None
        four, six = self._find(lowered)
        packed = four if qtype == Type.A else six if qtype == Type.AAAA else []
        passes = self._through is not None and names.is_below_any(lowered, self._through)
        if qtype not in (Type.A, Type.AAAA) and self._through_types and passes:
            return None
        if not four and not six:
            return None if passes else FAILURE
        return self._answer(query, qtype, packed)

    def _answer(self, query: Query, qtype: int, data: Iterable[bytes]) -> Message:
        return Message(answer=tuple(Record(query.name, qtype, self._ttl, item) for item in data))

    def _find(self, lowered: bytes) -> tuple[list[bytes], list[bytes]]:
        """Addresses of both families: of the name, and for a family without any of its wildcard."""
        four, six = self._addresses.get(lowered, _NONE)
        if (not four or not six) and lowered[0]:
            wild4, wild6 = self._addresses.get(b"\x01*" + lowered[lowered[0] + 1 :], _NONE)
            four, six = four or wild4, six or wild6
        return four, six


_NONE: tuple[list[bytes], list[bytes]] = ([], [])


def _plain(text: str) -> bytes:
    """The name, when nothing in it is escaped or too long; b"" otherwise. Four times as fast as `names.encode`."""
    data = text.lower().encode(errors="replace")
    if len(data) > 253 or b"\\" in data:
        return b""
    labels = data.removesuffix(b".").split(b".")
    if not all(0 < len(label) < 64 for label in labels):
        return b""
    return b"".join([bytes((len(label),)) + label for label in labels]) + b"\0"


def _name(text: str) -> bytes:
    try:
        return names.encode(text).lower()
    except ValueError:
        return b""


def _packed(address: str) -> bytes:
    """Its octets, an IPv4 address in IPv6's clothes as itself; b"" for what is no address."""
    try:
        packed = names.pack(address.partition("%")[0])
    except ValueError:
        return b""
    mapped = ipaddress.IPv6Address(packed).ipv4_mapped if len(packed) == 16 else None
    return packed if mapped is None else mapped.packed


def _address_of(lowered: bytes) -> bytes:
    """The packed address that a reverse name stands for; b"" for every other name."""
    for suffix, size in _REVERSE.items():
        if lowered.endswith(suffix):
            labels = names.split(lowered)[:-2]
            digits = names.octets_of_reverse(labels) if size == 4 else names.nibbles_of_reverse(labels)
            if digits is None or len(digits) != (4 if size == 4 else 32):
                return b""
            if size == 4:
                return bytes(digits)
            return bytes(high << 4 | low for high, low in zip(digits[::2], digits[1::2], strict=True))
    return b""
