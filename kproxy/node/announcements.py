"""The kernel's announcements that links or addresses of this network namespace have changed: a reason to look again, and nothing more.

In: multicast groups of rtnetlink. Out: an event that is set by each announcement. What must not happen here: reading one. The contents
are thrown away and whoever waits dumps what it needs (rtnetlink.py, a few milliseconds), so that a lost message cannot leave a wrong set;
lost ones (ENOBUFS) set the event as well.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Iterator
from contextlib import contextmanager

ADDRESSES = 0x10 | 0x100  # RTMGRP_IPV4_IFADDR, RTMGRP_IPV6_IFADDR
LINKS = 0x1  # RTMGRP_LINK
QDISCS = 0x8  # RTMGRP_TC


@contextmanager
def announced(groups: int) -> Iterator[asyncio.Event]:
    """An event that is set whenever the kernel announces a change. Raises OSError where there is no netlink."""
    notified = asyncio.Event()
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as announcements:
        announcements.bind((0, groups))
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
