"""The zones on disk, for a start without an API server: the very frames that a worker would be sent, and proof that they are whole.

    kproxy-zones 2\\n  ·  {"version": …}\\n  ·  frames: About, Begin, Part …, End  ·  SHA-256 of all before (32 octets)

Out of the controller: the file, written anew a few seconds after a change and replaced in one step, so that no reader ever sees half of
one; its time of modification says when it was last known to be true. Into a worker that no controller brings a zone: the frames. A file
that is cut, changed, of another format or too large is refused with the reason. What must not happen here: cookie secrets on a disk, a
write that holds up the event loop, a disk that is full ending anything.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from kproxy import __version__
from kproxy.dns.settings import ZONES_FILE
from kproxy.telemetry.logs import fields

log = logging.getLogger("kproxy.dns.memory")

NAME = ZONES_FILE
MAX_OCTETS = 64 << 20  # 10,000 Services with 50,000 endpoints are 4 MB
WRITE_EVERY_S = 5.0
TRUE_EVERY_S = 10.0  # how often it is said that the file is still true
_FORMAT = b"kproxy-zones 2\n"
_DIGEST = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryState:
    """The file as it is now. age_s: since it was last known to be true, None where there is none. problem: why it cannot be written."""

    age_s: float | None = None
    octets: int = 0
    problem: str = ""


NO_MEMORY = MemoryState()


def packed(frames: Iterable[bytes]) -> bytes:
    """The file's content. Raises ValueError when it is larger than any reader takes."""
    data = bytearray(_FORMAT + json.dumps({"version": __version__}).encode() + b"\n")
    for frame in frames:
        data += frame
        if len(data) > MAX_OCTETS:
            raise ValueError(f"the zones are larger than {MAX_OCTETS >> 20} MiB")
    return bytes(data + hashlib.sha256(data).digest())


def unpacked(data: bytes) -> list[bytes]:
    """The messages of the frames. Raises ValueError, saying what is wrong, for anything that `packed` did not make."""
    if not data.startswith(_FORMAT):
        raise ValueError("it is no zone file of this version")
    body, digest = data[:-_DIGEST], data[-_DIGEST:]
    if hashlib.sha256(body).digest() != digest:
        raise ValueError("it is not whole, or was changed")
    at = body.index(b"\n", len(_FORMAT)) + 1
    found = []
    while at < len(body):
        size = int.from_bytes(body[at : at + 4], "big")
        found.append(body[at + 4 : at + 4 + size])
        at += 4 + size
    return found


def read(path: Path) -> tuple[list[bytes], float]:
    """Messages and age in seconds. Raises ValueError with the reason; OSError, FileNotFoundError among them, from the file system."""
    with path.open("rb") as file:
        facts = os.fstat(file.fileno())
        if facts.st_size > MAX_OCTETS + _DIGEST:
            raise ValueError(f"it is larger than {MAX_OCTETS >> 20} MiB")
        return unpacked(file.read()), max(0.0, _unix() - facts.st_mtime)


class Memory:
    """The controller's side. frames: everything as it is now, None before there is anything. is_true: whether the API is heard now."""

    def __init__(self, path: Path, frames: Callable[[], Iterable[bytes] | None], is_true: Callable[[], bool]) -> None:
        self._path, self._frames, self._is_true = path, frames, is_true
        self._changed = asyncio.Event()
        self._problem = ""
        self._written = False

    def changed(self) -> None:
        """There is something new to write."""
        self._changed.set()

    def state(self) -> MemoryState:
        """For status and metrics."""
        try:
            facts = self._path.stat()
        except OSError:
            return MemoryState(problem=self._problem)
        return MemoryState(age_s=max(0.0, _unix() - facts.st_mtime), octets=facts.st_size, problem=self._problem)

    async def keep(self) -> None:
        """Writes for ever, at most every WRITE_EVERY_S."""
        while True:
            try:
                async with asyncio.timeout(TRUE_EVERY_S):
                    await self._changed.wait()
            except TimeoutError:
                if self._written and self._is_true():
                    self._touch()
                continue
            await asyncio.sleep(WRITE_EVERY_S)
            self._changed.clear()
            frames = self._frames()
            if frames is not None:
                await self._write(frames)

    async def _write(self, frames: Iterable[bytes]) -> None:
        whole = []
        size = 0
        for frame in frames:  # each is a few milliseconds of work
            whole.append(frame)
            size += len(frame)
            if size > MAX_OCTETS:
                break
            await asyncio.sleep(0)
        try:
            await asyncio.to_thread(self._replace, whole)
        except (OSError, ValueError) as error:
            told = getattr(error, "strerror", None) or str(error)
            if told != self._problem:
                log.warning("The zones are not kept on disk", extra=fields(path=self._path, error=told))
            self._problem = told
        else:
            self._problem, self._written = "", True

    def _replace(self, frames: list[bytes]) -> None:
        data = packed(frames)
        beside = self._path.with_suffix(f".{os.getpid()}")
        try:
            with beside.open("wb") as file:
                os.fchmod(file.fileno(), 0o600)
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            beside.replace(self._path)
        finally:
            beside.unlink(missing_ok=True)

    def _touch(self) -> None:
        try:
            os.utime(self._path)
        except OSError:
            self._changed.set()  # somebody took it away: it is written again


def _unix() -> float:
    return time.time()
