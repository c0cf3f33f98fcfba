"""Takes away what another mode of kproxy, or kube-proxy, left in the kernel; only once our own rules are in force.

In: the outcome of every sync, and `Left`s, each one kind of leftover. Out: their removal, one after the other, tried until it is done.
Until then both lead somewhere, so that no packet is refused in between: rules of mode userspace go before those of iptables, and flows that
either has in hand it keeps. What must not happen here: a removal by an instance that stands by (it never syncs), or one that ends a sync.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Protocol

from kproxy.errors import KproxyError
from kproxy.sync.loop import SyncOutcome
from kproxy.telemetry.logs import fields

log = logging.getLogger("kproxy.sync")

_FIRST_RETRY_S, _LONGEST_RETRY_S = 1.0, 60.0


class Left(Protocol):
    """One kind of leftover."""

    @property
    def name(self) -> str:
        """What it is, for the log."""

    async def remove(self) -> str:
        """Removes it, says what that was; "" when nothing was there. Raises KproxyError or OSError: it is tried again."""


class Succession:
    """Give its `observe` to the sync loop and run `keep` in the task group."""

    def __init__(self, left: Sequence[Left]) -> None:
        self.done: list[str] = []  # what was removed, for people
        self._left = left
        self._in_force = asyncio.Event()

    def observe(self, outcome: SyncOutcome) -> None:
        """Told of every sync."""
        if outcome.error is None:
            self._in_force.set()

    async def keep(self) -> None:
        """Removes everything once, and ends."""
        await self._in_force.wait()
        for left in self._left:
            await self._remove(left)

    async def _remove(self, left: Left) -> None:
        pause_s, told = _FIRST_RETRY_S, ""
        while True:
            try:
                found = await left.remove()
            except (KproxyError, OSError) as error:
                if str(error) != told:
                    told = str(error)
                    log.warning(
                        "What another mode left stays until the next try", extra=fields(left=left.name, error=error)
                    )
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, _LONGEST_RETRY_S)
                continue
            if found:
                self.done.append(f"{left.name}: {found}")
                log.info("Removed what another mode left", extra=fields(left=left.name, removed=found))
            return
