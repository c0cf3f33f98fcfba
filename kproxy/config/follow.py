"""Notices that the configuration file is another one than the one that was read.

In: the path, and who says whether a new content can be used. Out: one sentence that says what happened, once. The file is looked at once
a second: `stat` follows the symbolic links through which the kubelet swaps a ConfigMap's whole directory at once, sees a rename over the
file, and works on every file system. kube-proxy watches the file's inode by inotify, whose instances are a per-user limit that busy nodes
run out of, and v1.36.3 goes on with the old content after such a swap (seen on the real program).

A content that cannot be used is told and no reason to end: a process started with it would refuse to run, on every node at once, and a
cluster's DNS would be gone for a mistyped line. A file that was written again with the same bytes is the same configuration. One that
is gone has to be gone twice in a row: some editors remove before they write.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable
from pathlib import Path

from kproxy.errors import KproxyError

LOOK_EVERY_S = 1.0
_Mark = tuple[int, int, int, int]


class ConfigChangedError(KproxyError):
    """What is in force is not what the file says any more: the whole process starts anew."""


def fingerprint(path: str) -> str:
    """The content's; "" when it cannot be read."""
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()
    except OSError:
        return ""


def _mark(path: str) -> _Mark | None:
    try:
        found = Path(path).stat()
    except OSError:
        return None
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)


async def wait_for_change(
    path: str, read: str, sleep: Callable[[float], Awaitable[None]], refuse: Callable[[], bool] = lambda: False
) -> str:
    """Returns what happened, once the file at `path` has another fingerprint than `read`, the one of what is in force.

    refuse: asked for each new content; True (after telling why) waits for the next one.
    """
    seen, missing, refused = None, 0, ""
    while True:
        mark = _mark(path)
        missing = missing + 1 if mark is None else 0
        if missing > 1:
            return f"the configuration file {path} is gone"
        if mark is not None and mark != seen:
            seen = mark
            now = fingerprint(path)
            if now and now not in (read, refused):
                if not refuse():
                    return f"the configuration file {path} has changed"
                refused = now
        await sleep(LOOK_EVERY_S)
