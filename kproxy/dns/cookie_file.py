"""The secrets of DNS cookies on disk, so that a cookie outlives the controller that it was made under.

In: a path, the time. Out: the secrets, the one in use first. Effects: the file, with mode 0600, written anew by renaming. What must not
happen here: an end because of the disk. Without a file that can be written, secrets live as long as this process, and clients get new
cookies when it starts again: that is all a secret's loss means.

A secret is in use for a month (RFC 9018 section 5 says a year at most, and a few weeks are wise); the one before it is taken for as long as
a cookie lives, and stays in the file until the next change.
"""

from __future__ import annotations

import json
import os
import secrets
from contextlib import suppress
from pathlib import Path

SIZE = 16  # octets
CHANGED_AFTER_S = 30 * 86400


def cookie_secrets(path: Path, now: float) -> tuple[bytes, ...]:
    """The secrets of this node, made and changed as time demands. now: Unix time, seconds. Never raises."""
    known, since = _read(path)
    if known and 0 <= now - since < CHANGED_AFTER_S:
        return known
    found = (secrets.token_bytes(SIZE), *known[:1])
    _write(path, found, now)
    return found


def _read(path: Path) -> tuple[tuple[bytes, ...], float]:
    with suppress(OSError, ValueError, TypeError, AttributeError):
        whole = json.loads(path.read_text(encoding="ascii"))
        found = tuple(bytes.fromhex(text) for text in whole["secrets"])[:2]
        if all(len(secret) == SIZE for secret in found):
            return found, float(whole["since"])
    return (), 0.0


def _write(path: Path, found: tuple[bytes, ...], now: float) -> None:
    text = json.dumps({"secrets": [secret.hex() for secret in found], "since": int(now)})
    beside = path.with_name(f"{path.name}.{os.getpid()}")
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(text)
        beside.replace(path)
