"""Looks every few seconds whether the kernel's table of open flows is full, and says so once.

In: the kernel's counters by netlink, two short answers (0.1 ms). Out: `Gauge.fullness` for metrics and pages, a line in the log when the
verdict changes, and a call for whoever writes Events. What must not happen here: the verdict itself (fullness.py), or an exception that
ends the controller: a kernel without such counters is said once and asked again rarely.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Callable

from kproxy.conntrack.fullness import Fullness, judge, questions, read
from kproxy.telemetry.logs import fields

log = logging.getLogger("kproxy.conntrack")

_PERIOD_S, _RARELY_S = 5.0, 60.0
_NETLINK_NETFILTER = 12
_PATIENCE_S = 1.0
_DATAGRAMS = 64  # of 32 KiB: room for 10,000 processors


def look() -> Fullness:
    """How the table stands, without a verdict. OSError: the kernel does not tell. Blocks for as long as two system calls."""
    found = Fullness()
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER) as sock:
        sock.settimeout(_PATIENCE_S)
        for question in questions():
            sock.sendto(question, (0, 0))
            answered = False
            for _ in range(_DATAGRAMS):
                try:
                    found, answered = read(sock.recv(1 << 16), found)
                except ValueError as error:
                    raise OSError(f"conntrack: {error}") from error
                if answered:
                    break
            if not answered:
                raise OSError("conntrack: the kernel's counters have no end")
    return found


class Gauge:
    """The latest `fullness`, kept by `keep`. on_change: called with it whenever the table becomes full or has room again."""

    def __init__(self, on_change: Callable[[Fullness], None] | None = None) -> None:
        self.fullness: Fullness | None = None  # None: not looked yet, or the kernel does not tell
        self.on_change = on_change
        self._told = ""

    async def keep(self) -> None:
        """Runs for ever."""
        while True:
            pause_s = _PERIOD_S if self._look() else _RARELY_S
            await asyncio.sleep(pause_s)

    def _look(self) -> bool:
        try:
            found = look()
        except OSError as error:
            if str(error) != self._told:
                self._told = str(error)
                log.info("Nobody knows how full the table of flows is", extra=fields(error=error))
            self.fullness = None
            return False
        before, self.fullness = self.fullness, judge(found, self.fullness, at=time.monotonic())
        was_full = before is not None and before.is_full
        if self.fullness.is_full != was_full:
            self._say(self.fullness)
        return True

    def _say(self, fullness: Fullness) -> None:
        table = fields(entries=fullness.entries, limit=fullness.limit, dropped=fullness.dropped)
        if fullness.is_full:
            log.error("The table of flows is full: new connections are dropped (nf_conntrack_max)", extra=table)
        else:
            log.info("The table of flows has room again", extra=table)
        if self.on_change is not None:
            self.on_change(fullness)
