"""When this node holds the cluster's DNS addresses, and when it gives them back.

In: the addresses, and three questions for the controller: is there somebody who answers, which addresses has the node, do the rules track
port 53 again. Effects: `node.hold` and `node.release`, and a line in the log for each thing that is new. What must not happen here: an
address without answers, or untracked rules without the address.

An address that the node cannot hold (no privilege in this namespace, a kernel without IPv6) is tried again, ever less often: it may be that
somebody enables the family, and it must not fill the log.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

from kproxy.dns.node import hold, release
from kproxy.telemetry.logs import fields

log = logging.getLogger("kproxy.dns.presence")

WAIT_S = 0.02  # how soon after the first zone and worker the address is taken
CHECK_S = 1.0  # how soon it is taken again when somebody (an older instance on its way out) removed it
LONGEST_S = 60.0  # between tries for what the node cannot hold
TRIES = 5  # of the last sync
TRY_AGAIN_S = 0.5


class Presence:
    """Of one controller. sleep: `asyncio.sleep`, or a test's."""

    def __init__(self, addresses: tuple[str, ...], sleep: Callable[[float], Awaitable[object]] = asyncio.sleep) -> None:
        self._addresses = addresses
        self._sleep = sleep
        self._told: set[str] = set()
        self._since: float | None = None

    def held_s(self, now: float) -> float | None:
        """For how long this node has held the addresses, as far as this controller saw; None while it does not. now: monotonic seconds."""
        return now - self._since if self._since is not None else None

    async def keep(self, ready: Callable[[], bool], present: Callable[[], frozenset[str]]) -> None:
        """Takes the addresses while `ready`, and again when they are lost; runs for ever. UnsupportedError: without the privilege to."""
        pause = CHECK_S
        last: tuple[str, ...] = ()
        while True:
            if not ready():
                await self._sleep(WAIT_S)
                continue
            if set(self._addresses) <= present():
                self._since = self._since if self._since is not None else time.monotonic()
                pause = CHECK_S
            else:
                held = await hold(self._addresses, self._told)
                if held and held != last:
                    log.info("Cluster DNS is answered on this node", extra=fields(addresses=", ".join(held)))
                # What is held already and refused again is no news, and neither is what others removed: that is taken at once.
                pause = CHECK_S if held == self._addresses else min(2 * pause, LONGEST_S)
                last = held
            await self._sleep(pause)

    async def leave(self, sync: Callable[[], Awaitable[bool]]) -> bool:
        """Gives the addresses back once `sync` has made the rules track port 53 again; whether it did.

        With rules that still leave it untracked, a query to an address that is gone would go nowhere at all. So the address stays then:
        clients are refused at once and ask their next server, and the next instance finds both as they were.
        """
        for attempt in range(TRIES):
            if attempt:
                await self._sleep(TRY_AGAIN_S)
            if await sync():
                await release(self._addresses)
                self._since = None
                return True
        log.error("The rules could not be written a last time: the cluster's DNS addresses stay on this node")
        return False
