"""What differs between two wanted states, in names: for the log line of a sync and for tests. Decides nothing."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from kproxy.model.desired import DesiredState
from kproxy.model.names import Family, ServicePortName
from kproxy.model.snapshot import differing

_NAMED = 3  # names spelled out in `str()`; the rest is counted


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """ServicePorts of one or both families, each list sorted. node: something about the node itself differs."""

    added: tuple[ServicePortName, ...] = ()
    changed: tuple[ServicePortName, ...] = ()
    removed: tuple[ServicePortName, ...] = ()
    node: bool = False

    def __bool__(self) -> bool:
        return bool(self.added or self.changed or self.removed or self.node)

    def __str__(self) -> str:
        parts = [
            _words(sign, names)
            for sign, names in (("+", self.added), ("~", self.changed), ("-", self.removed))
            if names
        ]
        return ", ".join([*parts, "node"] if self.node else parts) or "nothing"


def _words(sign: str, names: tuple[ServicePortName, ...]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return " ".join(f"{sign}{name}" for name in names[:_NAMED]) + more


def summarize(old: DesiredState, new: DesiredState) -> Difference:
    """What leads from `old` to `new`. Costs one sweep of identity tests where `resolve` kept what did not change."""
    added: set[ServicePortName] = set()
    changed: set[ServicePortName] = set()
    removed: set[ServicePortName] = set()
    node = False
    for family in Family:
        before, after = old.of(family), new.of(family)
        if before is after:
            continue
        node = node or (
            (before.local_detector, before.node_port_addresses, before.untracked_dns, before.node_ip)
            != (after.local_detector, after.node_port_addresses, after.untracked_dns, after.node_ip)
        )
        for name in differing(before.service_ports, after.service_ports):
            was, port = before.service_ports.get(name), after.service_ports.get(name)
            if port is None:
                removed.add(name)
            elif was is None:
                added.add(name)
            elif was != port:
                changed.add(name)
    return Difference(added=_sorted(added), changed=_sorted(changed - added), removed=_sorted(removed), node=node)


def _sorted(names: Iterable[ServicePortName]) -> tuple[ServicePortName, ...]:
    return tuple(sorted(names, key=lambda name: name.sort_key))
