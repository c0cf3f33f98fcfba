"""Zones that hold the same Services, on both sides of the channel: sent once, kept once.

In: the zones of all `kubernetes` directives, or what leads to the next ones. Out: which zone another one shares its records with, and zones
that hold the same dictionaries. What must not happen here: compiling; workers use this.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from kproxy.dns.directives import share_records
from kproxy.dns.settings import DnsSettings
from kproxy.dns.zone import Loading, ServiceRecords, Zone, ZoneDelta, with_changes


def leaders(settings: Sequence[DnsSettings]) -> tuple[int, ...]:
    """For each zone the first one that has the same records: its own number, or a smaller one."""
    return tuple(
        next(at for at, other in enumerate(settings[: index + 1]) if at == index or share_records(other, one))
        for index, one in enumerate(settings)
    )


def without_shared(deltas: Sequence[ZoneDelta], led: Sequence[int]) -> tuple[ZoneDelta, ...]:
    """What has to be sent: the Services that changed stand in the first of the zones that share them."""
    return tuple(
        delta if at == leader else replace(delta, changed=(), removed=())
        for at, (delta, leader) in enumerate(zip(deltas, led, strict=True))
    )


def in_pieces(deltas: Sequence[ZoneDelta], weight: int) -> list[tuple[ZoneDelta, ...]]:
    """The same change as several, at least one, of about so many Services and endpoints each; all else is in the first.

    Every Service changes at once in one of them; that all of them do in one moment is nothing that the API promises.
    """
    found = [[replace(delta, changed=()) for delta in deltas]]
    filled = 0
    for at, delta in enumerate(deltas):
        chunk: list[ServiceRecords] = []
        for records in delta.changed:
            if filled >= weight:
                found[-1][at] = replace(found[-1][at], changed=tuple(chunk))
                found.append([ZoneDelta(serial=one.serial, synced=one.synced) for one in deltas])
                chunk, filled = [], 0
            chunk.append(records)
            filled += records.weight
        found[-1][at] = replace(found[-1][at], changed=tuple(chunk))
    return [tuple(piece) for piece in found]


def finish_all(loadings: Sequence[Loading], deltas: Sequence[ZoneDelta], settings: Sequence[DnsSettings]) -> list[Zone]:
    """The zones that were sent as a whole, those that share records with the same ones."""
    zones = [loading.finish(delta) for loading, delta in zip(loadings, deltas, strict=True)]
    return _with_records_of_leaders(zones, leaders(settings))


def change_all(zones: Sequence[Zone], deltas: Sequence[ZoneDelta]) -> list[Zone]:
    """The zones after a change."""
    led = leaders([zone.settings for zone in zones])
    after = [with_changes(*pair) for pair in zip(zones, without_shared(deltas, led), strict=True)]
    return _with_records_of_leaders(after, led)


def _with_records_of_leaders(zones: list[Zone], led: Sequence[int]) -> list[Zone]:
    return [
        zone
        if at == leader
        else replace(
            zone,
            services=zones[leader].services,
            owners=zones[leader].owners,
            order=zones[leader].order,
        )
        for at, (zone, leader) in enumerate(zip(zones, led, strict=True))
    ]
