"""States of the zones as frames: everything, or what leads from one state to the next.

In: zones and their numbers. Out: frames (channel.py), each of them a few milliseconds of a worker's time, so that queries are answered
between two. What must not happen here: sending, or knowing who gets them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from kproxy.dns.channel import Begin, Change, End, Part, frame
from kproxy.dns.settings import DnsSettings
from kproxy.dns.sharing import in_pieces, leaders, without_shared
from kproxy.dns.zone import ServiceRecords, Zone, ZoneDelta, difference, rest_of

PART = 1000  # Services and endpoints together in one frame


def changed(old: Sequence[Zone], base: int, zones: Sequence[Zone], number: int) -> Iterator[bytes]:
    """What leads from one state to the next, in pieces of bounded size; nothing where that is not known, or everything anew is less."""
    deltas = [delta for delta in map(difference, old, zones) if delta is not None]
    if len(deltas) != len(zones) or not _is_less_than_half(deltas, zones):
        return
    *first, last = in_pieces(without_shared(deltas, leaders([zone.settings for zone in zones])), PART)
    for part in first:
        yield frame(Change(base, base, part))
    yield frame(Change(base, number, last))


def whole(zones: Sequence[Zone], settings: DnsSettings | None, number: int) -> Iterator[bytes]:
    """Everything, frame by frame, each of a few milliseconds."""
    yield frame(Begin(tuple(zone.settings for zone in zones), settings))
    led = leaders([zone.settings for zone in zones])
    for index, zone in enumerate(zones):
        if led[index] != index:
            continue  # its Services are another zone's
        part: list[ServiceRecords] = []
        weight = 0
        for records in zone.services.values():
            part.append(records)
            weight += records.weight
            if weight >= PART:
                yield frame(Part(tuple(part), index))
                part, weight = [], 0
        yield frame(Part(tuple(part), index))
    yield frame(End(number, tuple(map(rest_of, zones))))


def _is_less_than_half(deltas: Sequence[ZoneDelta], zones: Sequence[Zone]) -> bool:
    """Everything anew is dearer than a change, and empties all caches: a worker that lags behind must not be given it, and lag more."""
    changed = sum(len(delta.changed) + len(delta.removed) for delta in deltas)
    return changed <= max(PART // 2, sum(len(zone.services) for zone in zones) // 2)
