"""The addresses on this machine's interfaces, and every change of them, from the kernel by netlink.

In: nothing. Out: `AddressesChanged` with all addresses whenever the set differs from the last one. Nothing is left out: loopback,
link-local, addresses of bridges, of interfaces that are down and IPv6 addresses still under duplicate detection all count, because
node ports in mode "all" answer on every local address, and `resolve` decides what is usable for what.

A change message only says "look again" (node/announcements.py): the whole set is dumped then. Besides, it is dumped every `RESYNC_S`
whatever happens. A burst of changes is looked at once.

The dump runs in a thread, since it blocks (node/rtnetlink.py).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress

from kproxy.model.events import AddressesChanged, Event
from kproxy.node.announcements import ADDRESSES, announced
from kproxy.node.rtnetlink import Route
from kproxy.watch.fields import BadText, canonical_address

log = logging.getLogger("kproxy.watch")

RESYNC_S = 60.0
GATHER_S = (
    0.02  # after a change, before the dump: an interface that comes up gets its addresses within a few milliseconds
)
RETRY_S = 1.0
MAX_ADDRESSES = 20_000


async def watch_addresses(emit: Callable[[Event], None]) -> None:
    """Runs for ever; the first event comes as soon as the kernel has been asked."""
    last: frozenset[str] | None = None
    with announced(ADDRESSES) as notified:
        while True:
            notified.clear()
            try:
                found = await asyncio.to_thread(local_addresses)
            except OSError as error:
                log.warning("Node addresses: netlink failed (%s), asking again", error)
                await asyncio.sleep(RETRY_S)
                continue
            if found != last:
                last = found
                emit(AddressesChanged(found))
            with suppress(TimeoutError):
                async with asyncio.timeout(RESYNC_S):  # wait_for of Python 3.11 may swallow a cancellation
                    await notified.wait()
                await asyncio.sleep(GATHER_S)


def local_addresses() -> frozenset[str]:
    """Every address of every interface in this network namespace, canonical. Blocks; raises OSError."""
    found: set[str] = set()
    with Route() as kernel:
        for held in kernel.addresses():
            if len(found) < MAX_ADDRESSES:
                with suppress(BadText):
                    found.add(canonical_address(held.address))
    return frozenset(found)
