"""Whether the kernel's table of open flows is full: a node whose table is full drops every new connection, and nothing else says so. Pure.

In: what the kernel answers to two short questions (nfnetlink_conntrack.h: CT_GET_STATS_CPU and CT_GET_STATS), and how things stood before.
Out: `Fullness`, one frozen value for metrics, events and people.

Full is: a packet was dropped for want of room since the last look, or as many entries as the limit allows are taken. It ends when a tenth
of the table is free again and nothing was dropped for `CALM_S`; a table that fills and empties is one event, not a hundred.

The limit (`net.netfilter.nf_conntrack_max`) is one for all network namespaces of a machine, entries are counted in each by itself (seen on
6.18); an eviction is the kernel making room by ending a flow that was never answered.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace

CALM_S = 60.0
_FREE_AGAIN = 0.9
_GET_STATS_PER_CPU, _GET_STATS = 0x104, 0x105
_REQUEST, _DUMP = 0x1, 0x300
_ERROR, _DONE = 2, 3
_FAILED_INSERT, _DROPPED, _EVICTED = 9, 10, 11  # CTA_STATS_INSERT_FAILED, _DROP, _EARLY_DROP
_ENTRIES, _LIMIT = 1, 2  # CTA_STATS_GLOBAL_ENTRIES, _MAX_ENTRIES
_HEADER = struct.Struct("=IHHII")
_BODY = _HEADER.size + 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Fullness:
    """The table at one moment. Counters are the kernel's, of this network namespace since it exists; they may wrap at 2**32.

    limit: 0 is none. full_since: monotonic seconds, None while there is room. calm_since: the last moment at which something was dropped.
    """

    entries: int = 0
    limit: int = 0
    dropped: int = 0  # packets of new flows that found no room
    evicted: int = 0  # flows ended to make room
    insert_failed: int = 0  # new flows that met another of the same tuple
    full_since: float | None = None
    calm_since: float = 0.0

    @property
    def is_full(self) -> bool:
        """Whether new connections are being dropped, or about to be."""
        return self.full_since is not None

    @property
    def text(self) -> str:
        """For people, without a word on what to do."""
        return f"{self.entries} of {self.limit or 'unlimited'} entries, {self.dropped} packets dropped"


def questions() -> tuple[bytes, bytes]:
    """The two requests: counters of every processor (a dump), and the size of the table."""
    per_cpu = _HEADER.pack(_BODY, _GET_STATS_PER_CPU, _REQUEST | _DUMP, 1, 0) + bytes(4)
    return per_cpu, _HEADER.pack(_BODY, _GET_STATS, _REQUEST, 2, 0) + bytes(4)


def read(datagram: bytes, found: Fullness) -> tuple[Fullness, bool]:
    """`found` with what this answer adds, and whether its question is answered. ValueError: nonsense, or an error of the kernel's."""
    done = False
    for kind, body in _messages(datagram):
        if kind == _ERROR:
            raise ValueError("the kernel does not tell its counters")
        values = _values(body) if kind in (_GET_STATS_PER_CPU, _GET_STATS) else {}
        done = done or kind in (_DONE, _GET_STATS)
        if kind == _GET_STATS_PER_CPU:
            found = replace(
                found,
                dropped=found.dropped + values.get(_DROPPED, 0),
                evicted=found.evicted + values.get(_EVICTED, 0),
                insert_failed=found.insert_failed + values.get(_FAILED_INSERT, 0),
            )
        elif kind == _GET_STATS:
            found = replace(found, entries=values.get(_ENTRIES, 0), limit=values.get(_LIMIT, 0))
    return found, done


def judge(now: Fullness, before: Fullness | None, *, at: float) -> Fullness:
    """`now` with the verdict; `at`: monotonic seconds. Without a `before`, old drops say nothing about the present."""
    dropping = before is not None and now.dropped != before.dropped
    brimful = bool(now.limit) and now.entries >= now.limit
    calm_since = at if dropping or brimful or before is None else before.calm_since
    full_since = before.full_since if before is not None else None
    if dropping or brimful:
        full_since = at if full_since is None else full_since
    elif full_since is not None and now.entries <= _FREE_AGAIN * now.limit and at - calm_since >= CALM_S:
        full_since = None
    return replace(now, full_since=full_since, calm_since=calm_since)


def _messages(datagram: bytes) -> Iterator[tuple[int, bytes]]:
    start = 0
    while start + _HEADER.size <= len(datagram):
        size, kind, *_ = _HEADER.unpack_from(datagram, start)
        if size < _HEADER.size or start + size > len(datagram):
            raise ValueError(f"a message of {size} bytes in {len(datagram) - start}")
        yield kind, datagram[start + _BODY : start + size]
        start += (size + 3) & ~3


def _values(body: bytes) -> dict[int, int]:
    found: dict[int, int] = {}
    start = 0
    while start + 4 <= len(body):
        size, kind = struct.unpack_from("=HH", body, start)
        if size < 4 or start + size > len(body):
            raise ValueError(f"an attribute of {size} bytes in {len(body) - start}")
        if size == 8:
            found[kind & 0x3FFF] = int.from_bytes(body[start + 4 : start + 8], "big")
        start += (size + 3) & ~3
    return found
