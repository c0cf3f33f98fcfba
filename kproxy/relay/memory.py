"""Which client stays with which endpoint, kept by the controller for workers that come anew, and on disk for the next controller.

In: entries of workers, and the file, which another instance of the node may write meanwhile (an upgrade). Out: entries that are news, all
that still hold, and a file of bounded size in the run directory. Times are of CLOCK_MONOTONIC, so the file says which start of the machine
they belong to and is forgotten after another one. What must not happen here: trust in the file, growth with what clients do, or a write
that the event loop waits for.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Iterable
from pathlib import Path

import msgspec

from kproxy.relay.affinity import MAX_AFFINITY_S, MOST, Group, Remembered
from kproxy.telemetry.logs import fields

log = logging.getLogger("kproxy.relay")

_MOST_OCTETS = 32 << 20
_BOOT = Path("/proc/sys/kernel/random/boot_id")


class _File(msgspec.Struct, frozen=True):
    """What is on disk."""

    boot: str
    entries: tuple[Remembered, ...]


class AffinityMemory:
    """Affinity of a node. path: None keeps nothing on disk."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._held: dict[tuple[Group, str], Remembered] = {}  # the one used longest ago first
        self._written = True
        self._seen: tuple[int, int] | None = None  # the file as it was read or written last
        self._complaint = ""  # that was told last

    def load(self, now: float) -> list[Remembered]:
        """What another controller, of this start of the machine, has written since the last time; those entries that are news."""
        if self._path is None or (mark := self._mark(self._path)) == self._seen:
            return []
        self._seen = mark
        try:
            with self._path.open("rb") as file:
                found = msgspec.msgpack.decode(file.read(_MOST_OCTETS), type=_File)
        except FileNotFoundError:
            return []
        except (OSError, ValueError) as error:
            log.warning("The remembered affinity cannot be read", extra=fields(error=str(error)))
            return []
        if found.boot != _boot():
            return []
        written = self._written
        news = self.take(entry for entry in found.entries if entry.last <= now and _holds(entry, now))
        self._written = written  # it stands there already
        return news

    @staticmethod
    def _mark(path: Path) -> tuple[int, int] | None:
        try:
            seen = path.stat()
        except OSError:
            return None
        return seen.st_ino, seen.st_mtime_ns

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
        """All that hold."""
        return [entry for entry in self._held.values() if _holds(entry, now)]

    async def write(self, now: float) -> None:
        """Forgets what does not hold any more and writes the rest, if anything changed. A full disk is told, and tried again."""
        gone = [of for of, entry in self._held.items() if not _holds(entry, now)]
        for of in gone:
            del self._held[of]
        self._written = self._written and not gone
        if self._path is None or self._written:
            return
        self._written = True
        entries = (*self._held.values(),)
        try:
            await asyncio.to_thread(_write, self._path, entries)
            self._seen, self._complaint = self._mark(self._path), ""
        except OSError as error:
            self._written = False
            if str(error) != self._complaint:
                self._complaint = str(error)
                log.warning("Affinity cannot be remembered on disk", extra=fields(error=error.strerror))


def _holds(entry: Remembered, now: float) -> bool:
    return now - entry.last < min(entry.timeout_s, MAX_AFFINITY_S)


def _weight(entry: Remembered) -> tuple[float, tuple[int, ...], int]:
    """The later connection counts; of two at the same moment the one whose endpoint sorts first, as the workers have it."""
    return entry.last, tuple(-ord(c) for c in entry.address), -entry.port


def _write(path: Path, entries: tuple[Remembered, ...]) -> None:
    beside = path.with_suffix(f".{os.getpid()}")
    try:
        beside.write_bytes(msgspec.msgpack.encode(_File(_boot(), entries)))
        beside.chmod(0o600)
        os.replace(beside, path)  # noqa: PTH105 - the same in fewer words
    except OSError:
        with contextlib.suppress(OSError):
            beside.unlink()  # a part of it on a full disk
        raise


def _boot() -> str:
    try:
        return _BOOT.read_text(encoding="ascii").strip()
    except OSError:
        return ""
