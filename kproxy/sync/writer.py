"""Who writes the rules of this node: whoever holds the lock file of the run directory.

The kernel gives the lock back when its holder dies, however it dies, so a controller started again (or the next version, waiting) goes on
at once. The file holds the pid of the present writer, for people.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
from pathlib import Path
from typing import IO

from kproxy.errors import UnsupportedError
from kproxy.telemetry.logs import fields

log = logging.getLogger("kproxy.sync")

_RETRY_S = 0.1


async def acquire(path: Path) -> IO[str]:
    """Waits until this process is the writer; closing the returned file gives the right back. Raises UnsupportedError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = path.open("a+", encoding="ascii")
    except OSError as error:
        raise UnsupportedError(
            f"cannot use the run directory {path.parent}: {error.strerror}; choose another with --run-dir"
        ) from error
    standing_by = False
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not standing_by:
                lock.seek(0)
                log.info("Standing by: another kproxy writes the rules", extra=fields(pid=lock.read(16).strip()))
                standing_by = True
            await asyncio.sleep(_RETRY_S)
            continue
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        return lock
