"""The addresses on this machine's interfaces, and every change of them, from the kernel by netlink.

In: nothing. Out: `AddressesChanged` with all addresses whenever the set differs from the last one. Nothing is left out: loopback,
link-local, addresses of bridges, of interfaces that are down and IPv6 addresses still under duplicate detection all count, because
node ports in mode "all" answer on every local address, and `resolve` decides what is usable for what.

A change message only says "look again": its contents are thrown away and the whole set is dumped (a few ms), so a lost message cannot
leave a wrong set. Messages are lost when the socket's buffer overruns (ENOBUFS, which is a reason to look, too); besides, the set is
dumped every `RESYNC_S` whatever happens. A burst of changes is looked at once.

The dump runs in a thread, since it blocks (node/rtnetlink.py).
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from kproxy.model.events import AddressesChanged, Event
from kproxy.node.rtnetlink import ANNOUNCED, Route
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
    with _notifications() as notified:
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


@contextmanager
def _notifications() -> Iterator[asyncio.Event]:
    """An event that is set whenever the kernel announces a change of addresses.

    A bare socket, because the contents do not matter, and because it can be drained even when the kernel had to drop messages.
    """
    notified = asyncio.Event()
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as announcements:
        announcements.bind((0, ANNOUNCED))
        announcements.setblocking(False)

        def drain() -> None:
            notified.set()
            for _ in range(1000):
                try:
                    announcements.recv(1 << 16)
                except BlockingIOError:
                    return
                except OSError as error:
                    if error.errno != errno.ENOBUFS:
                        raise

        loop.add_reader(announcements.fileno(), drain)
        try:
            yield notified
        finally:
            loop.remove_reader(announcements.fileno())
