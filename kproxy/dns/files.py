"""The files that directives name (`hosts`, `autopath`): read, and read again when they change.

In: a server and its blocks. Out: the files' texts, given to the server. What must not happen here: understanding them (hosts.py does), or a
file of any size or kind stopping a worker: what cannot be read counts as empty, what is longer than OCTETS is cut.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Protocol

from kproxy.dns.blocks import ServerBlock

OCTETS = 4 << 20
LOOK_EVERY_S = 1.0

_Mark = tuple[int, int, int]


class Following(Protocol):
    """Who is told."""

    @property
    def blocks(self) -> tuple[ServerBlock, ...]:
        """In force."""

    def take_files(self, files: Mapping[str, str]) -> None:
        """The texts by path."""


def named(blocks: Iterable[ServerBlock]) -> dict[str, float]:
    """Paths, and how often they are looked at, in seconds; 0: once."""
    found: dict[str, float] = {}
    for block in blocks:
        if block.hosts is not None and block.hosts.file:
            found[block.hosts.file] = block.hosts.reload_s
        if block.autopath is not None and not block.autopath.source.startswith("@"):
            found[block.autopath.source] = 0.0
    return found


def at_first(blocks: Iterable[ServerBlock], known: Mapping[str, str]) -> dict[str, str]:
    """`known` and what has not been read yet, read at once: a name in a file that is not there yet would be answered wrongly."""
    return {**known, **{path: _read(path) for path in named(blocks) if path not in known}}


async def follow_files(server: Following) -> None:
    """For ever."""
    marks: dict[str, _Mark] = {}
    texts: dict[str, str] = {}
    due: dict[str, float] = {}
    while True:
        wanted, now = named(server.blocks), asyncio.get_running_loop().time()
        changed = bool(texts.keys() - wanted.keys())
        texts = {path: text for path, text in texts.items() if path in wanted}
        for path, every_s in wanted.items():
            if path in texts and (not every_s or now < due.get(path, 0.0)):
                continue
            due[path] = now + every_s
            mark = await asyncio.to_thread(_mark, path)
            if path not in texts or mark != marks.get(path):
                marks[path], texts[path] = mark, await asyncio.to_thread(_read, path)
                changed = True
        if changed:
            server.take_files(dict(texts))
        await asyncio.sleep(LOOK_EVERY_S)


def _mark(path: str) -> _Mark:
    try:
        found = Path(path).stat()
    except OSError:
        return (0, 0, 0)
    return (found.st_mtime_ns, found.st_size, found.st_ino)


def _read(path: str) -> str:
    try:
        if not Path(path).is_file():
            return ""
        with Path(path).open("rb") as file:
            return file.read(OCTETS).decode("utf-8", "replace")
    except OSError:
        return ""
