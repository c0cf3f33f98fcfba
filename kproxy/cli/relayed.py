"""How the relay's part of an explained Service is shown: lines for a terminal, and its part of `kproxy explain -o json`.

In: a `RelaySeen`. Out: lines, or plain types. What must not happen here: finding something out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from kproxy.cli.terminal import lasting, octets
from kproxy.explain.flows import end_text
from kproxy.explain.relay import RelaySeen, WaySeen

_SHOWN = 100  # endpoints


def relay_lines(seen: RelaySeen) -> Iterator[str]:
    """For people."""
    if seen.why_not:
        yield f"not relayed: {seen.why_not}"
        return
    yield "what the relay does with its connections"
    for way in seen.ways:
        count = "1 endpoint" if len(way.endpoints) == 1 else f"{len(way.endpoints)} endpoints"
        yield f"  {way.to}, {way.senders}: listener {_listener(way)}, {count}"
    for title, sentences in (
        ("choice", seen.choice),
        ("retries", seen.retries),
        ("source address", seen.source),
        ("other than in a kernel mode", seen.differs),
    ):
        yield f"  {title}"
        yield from (f"    {sentence}" for sentence in sentences)
    if seen.counted:
        yield f"  so far: {_counted(seen.counted)}"
        yield from (f"    {end}: {_counted(row)}" for end, row in sorted(seen.counted_by_end.items())[:_SHOWN])
    for end, seconds in seen.ejected:
        yield f"  ! {end} is left out at the moment: connections to it failed; tried again in {lasting(seconds)}"


def _counted(row: Mapping[str, int]) -> str:
    """A row of counts; the rare ones only where there are any."""
    words = [f"{row.get('began', 0)} connections", f"{row.get('open', 0)} open"]
    for column, text in (
        ("failed", "failed connects"),
        ("retries", "retries"),
        ("gave_up", "given up"),
        ("lost", "datagrams lost"),
    ):
        words += [f"{row[column]} {text}"] if row.get(column) else []
    return ", ".join([*words, f"{octets(row.get('sent'))} sent", f"{octets(row.get('received'))} received"])


def _listener(way: WaySeen) -> str:
    return way.entry if way.port is None else f"{way.entry} (port {way.port})"


def relay_json(seen: RelaySeen) -> dict[str, object]:
    """For programs. Fields are added, never renamed."""
    return {
        "notRelayed": seen.why_not,
        "ways": [
            {
                "to": way.to,
                "senders": way.senders,
                "listener": way.entry,
                "listenerPort": way.port,
                "endpoints": [end_text(*end) for end in way.endpoints],
            }
            for way in seen.ways
        ],
        "choice": list(seen.choice),
        "retries": list(seen.retries),
        "source": list(seen.source),
        "ejected": [{"endpoint": end, "seconds": round(seconds, 1)} for end, seconds in seen.ejected],
        "differs": list(seen.differs),
        "counted": dict(seen.counted),
        "countedByEndpoint": {end: dict(row) for end, row in seen.counted_by_end.items()},
    }
