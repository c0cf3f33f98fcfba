"""Who writes the rules of this node: whoever holds the lock file of the run directory.

The kernel gives the lock back when its holder dies, however it dies, so a controller started again (or the next version, waiting) goes on
at once. The file holds the pid of the present writer, for people. Whoever waits holds a second lock meanwhile, shared, so that a writer on
its way out knows whether somebody takes over what it would otherwise give back.
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
    lock = _open(path)
    if _try(lock):
        return _signed(lock)
    with _open(_waiting_room(path)) as waiting:
        fcntl.flock(waiting, fcntl.LOCK_SH)
        lock.seek(0)
        log.info("Standing by: another kproxy writes the rules", extra=fields(pid=lock.read(16).strip()))
        while not _try(lock):  # noqa: ASYNC110 - the kernel tells nobody when a lock of another process is free
            await asyncio.sleep(_RETRY_S)
    return _signed(lock)


def somebody_waits(path: Path) -> bool:
    """Whether another process stands by to write once this one is gone."""
    with _open(_waiting_room(path)) as waiting:
        return not _try(waiting)


def _waiting_room(path: Path) -> Path:
    return path.with_suffix(".next")


def _open(path: Path) -> IO[str]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("a+", encoding="ascii")
    except OSError as error:
        raise UnsupportedError(
            f"cannot use the run directory {path.parent}: {error.strerror}; choose another with --run-dir"
        ) from error


def _try(lock: IO[str]) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _signed(lock: IO[str]) -> IO[str]:
    """Writes the pid into the file, for people; a full disk takes nothing from the right itself."""
    try:
        os.truncate(lock.fileno(), 0)
        os.write(lock.fileno(), f"{os.getpid()}\n".encode())
    except OSError as error:
        log.warning("The lock file does not name its holder", extra=fields(error=error.strerror))
    return lock
