"""Which client stays with which endpoint, kept by the controller for workers that come anew, and on disk for the next controller.

In: entries of workers. Out: those that are news, all that still hold, and a file of bounded size in the run directory. Times are of
CLOCK_MONOTONIC, so the file says which start of the machine they belong to and is forgotten after another one. What must not happen here:
trust in the file, growth with what clients do, or a write that the event loop waits for.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Iterable
from pathlib import Path

import msgspec

from kproxy.relay.affinity import MAX_AFFINITY_S, MOST, Group, Remembered
from kproxy.relay.targets import Table
from kproxy.telemetry.logs import fields

log = logging.getLogger("kproxy.relay")

_MOST_OCTETS = 32 << 20
_EVERY_S = 5.0
_BOOT = Path("/proc/sys/kernel/random/boot_id")


class _File(msgspec.Struct, frozen=True):
    """What is on disk."""

    boot: str
    entries: tuple[Remembered, ...]


class AffinityMemory:
    """Affinity of a node. path: None keeps nothing on disk."""

    every_s = _EVERY_S  # between two writes

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._held: dict[tuple[Group, str], Remembered] = {}  # the one used longest ago first
        self._written = True

    def load(self, now: float) -> None:
        """What an earlier controller of this start of the machine wrote."""
        if self._path is None:
            return
        try:
            with self._path.open("rb") as file:
                raw = file.read(_MOST_OCTETS + 1)
            found = msgspec.msgpack.decode(raw, type=_File)
        except FileNotFoundError:
            return
        except (OSError, ValueError) as error:
            log.warning("The remembered affinity cannot be read", extra=fields(error=str(error)))
            return
        if found.boot == _boot():
            self.take(entry for entry in found.entries if entry.last <= now)
            self._written = True

    def take(self, entries: Iterable[Remembered]) -> list[Remembered]:
        """Keeps entries that are younger than what is known; returns those."""
        news = []
        for entry in entries:
            of = (entry[:3], entry.client)
            known = self._held.get(of)
            if known is not None and _weight(known) >= _weight(entry):
                continue
            self._held.pop(of, None)
            self._held[of] = entry
            news.append(entry)
        while len(self._held) > MOST:
            del self._held[next(iter(self._held))]
        self._written = self._written and not news
        return news

    def entries(self, now: float) -> list[Remembered]:
        """All that may still hold; a worker knows for how long its Services want it."""
        return [entry for entry in self._held.values() if now - entry.last < MAX_AFFINITY_S]

    async def write(self, table: Table | None, now: float) -> None:
        """Forgets what does not hold any more by `table` and writes the rest, if anything changed. A full disk is told, not raised."""
        if table is not None:
            keeps = {target.group: target.affinity_s for target in table.targets.values() if target.affinity_s}
            gone = [of for of, entry in self._held.items() if now - entry.last >= keeps.get(of[0], 0)]
            for of in gone:
                del self._held[of]
            self._written = self._written and not gone
        if self._path is None or self._written:
            return
        self._written = True
        entries = (*self._held.values(),)
        try:
            await asyncio.to_thread(_write, self._path, entries)
        except OSError as error:
            log.warning("Affinity cannot be remembered on disk", extra=fields(error=error.strerror))


def _weight(entry: Remembered) -> tuple[float, tuple[int, ...], int]:
    """The later connection counts; of two at the same moment the one whose endpoint sorts first, as the workers have it."""
    return entry.last, tuple(-ord(c) for c in entry.address), -entry.port


def _write(path: Path, entries: tuple[Remembered, ...]) -> None:
    beside = path.with_suffix(".new")
    beside.write_bytes(msgspec.msgpack.encode(_File(_boot(), entries)))
    beside.chmod(0o600)
    os.replace(beside, path)  # noqa: PTH105 - the same in fewer words


def _boot() -> str:
    try:
        return _BOOT.read_text(encoding="ascii").strip()
    except OSError:
        return ""
