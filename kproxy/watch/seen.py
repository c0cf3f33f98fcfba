"""How far each kind has been seen, on disk: the first list after a restart is at least as new, so that no node moves back in time.

    {"server": URL, "versions": {"Service": "812345", …}}

In: the reflectors' statistics. Out: a version for each kind, "0" (whatever the server has at hand) where none is known. API servers answer
such a list from their caches, and one that lags behind the others waits until it has caught up, or says that it cannot. Without the file
that would take a consistent list, which costs several times as much (reflector.py). A file that is absent, odd or of another server is
no file.

What must not happen here: trust in the file beyond that. A version that no server ever reaches (an etcd restored from a backup) is refused
by the server within seconds, and another list is asked for.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from kproxy.model.objects import Kind
from kproxy.watch.reflector import WatchStats

NAME = "seen.json"
NOTHING = "0"
_EVERY_S = 10.0
_MOST = 4096  # octets of the file
_DIGITS = 20  # of a version: etcd's are 63 bits


class Seen:
    """The file at `path`, in a directory that is there. `server` is the URL of the API server that the versions are of."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._written: dict[str, str] = {}

    def versions(self, server: str) -> dict[str, str]:
        """By the name of their kind."""
        try:
            with self._path.open("rb") as stream:
                found = json.loads(stream.read(_MOST))
            if found["server"] != server:
                return {}
            pairs = [(kind.value, found["versions"].get(kind.value)) for kind in Kind]
            return {kind: version for kind, version in pairs if _is_version(version)}
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return {}

    def remember(self, server: str, watches: Sequence[WatchStats]) -> None:
        """Replaces the file, in one step, when it says something new. A directory that takes no files costs the next start a moment."""
        seen = {stats.kind.value: stats.version for stats in watches if _is_version(stats.version)}
        if not seen or seen == self._written:
            return
        beside = self._path.with_suffix(f".{os.getpid()}")
        with suppress(OSError):
            beside.write_text(json.dumps({"server": server, "versions": seen}), encoding="ascii")
            beside.replace(self._path)
            self._written = seen

    async def keep(self, server: str, watches: Sequence[WatchStats]) -> None:
        """Remembers from time to time, for ever: an end by SIGKILL leaves a file that is a little older, and as true."""
        while True:
            await asyncio.sleep(_EVERY_S)
            self.remember(server, watches)


def _is_version(value: object) -> bool:
    return isinstance(value, str) and 0 < len(value) <= _DIGITS and value.isascii() and value.isdigit()
