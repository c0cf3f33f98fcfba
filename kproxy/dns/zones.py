"""One zone for each different `kubernetes` directive, made from one snapshot, sharing what is equal.

In: settings (with a Corefile's blocks or without) and the snapshot. Out: the zones, in the order in which the directives stand. What must
not happen here: deciding what exists (`compile`), or which block a query belongs to (`chain`).

Directives that differ only in zones, TTL, pod records, fallthrough or namespaces have equal records: those are compiled once, and the zones
hold the same dictionaries.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from kproxy.dns.apexes import apexes
from kproxy.dns.compile import compile_zone, exposed, needed
from kproxy.dns.directives import share_records, zone_settings
from kproxy.dns.settings import DnsSettings
from kproxy.dns.zone import Zone
from kproxy.model.snapshot import Snapshot


def sharing(zone: Zone, settings: DnsSettings, namespaces: frozenset[bytes], *, synced: bool) -> Zone:
    """A zone with the records of `zone`, under other settings with which it shares them."""
    return replace(zone, settings=settings, apexes=apexes(settings), namespaces=namespaces, synced=synced)


def compile_zones(
    snapshot: Snapshot, settings: DnsSettings, previous: Sequence[Zone] = (), *, serial: int
) -> tuple[Zone, ...]:
    """All zones of `settings`; each of `previous` that does not change is returned itself. serial: Unix time, as for `compile_zone`.

    Raises ValueError for malformed settings, never for objects.
    """
    olds = {zone.settings: zone for zone in previous}
    zones: list[Zone] = []
    for flat in zone_settings(settings):
        old = olds.get(flat)
        leader = next((zone for zone in zones if share_records(zone.settings, flat)), None)
        if leader is None:
            zones.append(compile_zone(snapshot, flat, old, serial=serial))
            continue
        namespaces = exposed(snapshot, flat)
        made = sharing(leader, flat, namespaces, synced=needed(flat) <= snapshot.synced)
        same = old is not None and old.services is made.services and old == made
        zones.append(old if same and old is not None else made)
    return tuple(zones)
