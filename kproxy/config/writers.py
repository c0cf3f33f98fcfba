"""Writers: one configuration value as files write it; what `readers` reads, the other way round.

In: what `Config` keeps. Out: plain values for YAML and JSON. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable


def plain(value: object) -> object:
    """As it is."""
    return list(value) if isinstance(value, tuple) else value


def listed(value: object) -> object:
    """A list, or null for none, as upstream writes it."""
    assert isinstance(value, tuple)
    return list(value) or None


def joined(value: object) -> object:
    """One text with commas."""
    assert isinstance(value, tuple)
    return ",".join(value)


def mapping(value: object) -> object:
    """A mapping of pairs."""
    assert isinstance(value, Iterable)
    return dict(value)


def bind_address(value: object) -> object:
    """The node's IP, or the unspecified address for none."""
    assert isinstance(value, tuple)
    return value[0] if value else "0.0.0.0"


def word(value: object) -> object:
    """The text of an enumeration's member."""
    return str(getattr(value, "value", value))


def port_range(value: object) -> object:
    """`first-last`."""
    assert isinstance(value, tuple)
    return f"{value[0]}-{value[1]}"


def duration(value: object) -> object:
    """A duration as Go writes it: `1h0m0s`, `1m30s`, `500ms`, `0s`."""
    assert isinstance(value, float | int)
    left = round(abs(value) * 1e9)
    sign = "-" if value < 0 else ""
    if left == 0:
        return "0s"
    for unit, size in (("ns", 1), ("µs", 1000), ("ms", 1_000_000)):
        if left < size * 1000:
            return f"{sign}{_decimal(left, size)}{unit}"
    minutes, left = divmod(left, 60_000_000_000)
    hours, minutes = divmod(minutes, 60)
    text = f"{_decimal(left, 1_000_000_000)}s"
    if hours:
        return f"{sign}{hours}h{minutes}m{text}"
    return f"{sign}{minutes}m{text}" if minutes else f"{sign}{text}"


def _decimal(value: int, size: int) -> str:
    whole, part = divmod(value, size)
    return f"{whole}.{str(part).zfill(len(str(size)) - 1).rstrip('0')}" if part else str(whole)
