"""Keeps a program on the links that pods are behind, as they come and go.

In: a program's descriptor, the kernel's announcements of links. Out: the descriptors of its attachments, by a number of their own each: a
program is on a link for as long as somebody holds that descriptor, and as the link is there. What must not happen here: knowing what the
program does; and a program in front of others': where somebody has filters at a link's ingress (the bandwidth plug-in of CNI shapes what a
pod sends there, network plug-ins with eBPF judge it), packets are theirs, and the link does without. That counts for a link that is new:
filters that come to one which had none for long watch what passes, and taking the program away would end what it carries.
"""

from __future__ import annotations

import asyncio
import errno
import itertools
import logging
import os
from collections.abc import Callable
from contextlib import suppress

from kproxy.ebpf import calls
from kproxy.node.announcements import LINKS, QDISCS, announced
from kproxy.node.rtnetlink import Route

log = logging.getLogger("kproxy.node")

KIND = "veth"  # what container runtimes give pods, with the other end in the pod
GATHER_S = 0.02  # after an announcement: a pod's link comes up within a few milliseconds
RESYNC_S = 60.0
NEW_S = 10.0  # so long a link's other owners have to make it theirs
_NO_TCX = (errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM)


class ProgramLinks:
    """held: the attachments' descriptors by number. changed: called when they are others."""

    def __init__(self, changed: Callable[[], None] = lambda: None) -> None:
        self._changed = changed
        self._numbers = itertools.count(1)
        self._of: dict[int, int] = {}  # a link's index → number
        self._came: dict[int, float] = {}  # a link's index → when the program came to it
        self.held: dict[int, int] = {}

    async def follow(self, code: int) -> None:
        """Runs until cancelled. Raises OSError where the kernel does not offer it (before Linux 6.6 there is no TCX)."""
        with announced(LINKS | QDISCS) as notified:
            while True:
                notified.clear()
                try:
                    self._attach(*await asyncio.to_thread(_links), code, asyncio.get_running_loop().time())
                except OSError as error:
                    if error.errno in _NO_TCX:
                        raise
                    log.debug("links: %s", error)
                with suppress(TimeoutError):
                    async with asyncio.timeout(RESYNC_S):
                        await notified.wait()
                    await asyncio.sleep(GATHER_S)

    def _attach(self, found: set[int], filtered: set[int], code: int, now: float) -> None:
        """found: links of pods. filtered: those with filters of somebody else. now: monotonic seconds."""
        before = len(self._of), next(reversed(self.held), 0)
        taken = {index for index in filtered & self._of.keys() if now - self._came[index] < NEW_S}
        try:
            for index in (self._of.keys() - found) | taken:
                os.close(self.held.pop(self._of.pop(index)))
                del self._came[index]
            for index in sorted(found - self._of.keys() - filtered):
                try:
                    made = calls.attach(code, index, calls.TCX_INGRESS)
                except OSError as error:
                    if error.errno not in (errno.ENODEV, errno.ENXIO):  # it has just gone
                        raise
                    continue
                number = self._of[index] = next(self._numbers)
                self.held[number], self._came[index] = made, now
        finally:
            if before != (len(self._of), next(reversed(self.held), 0)):
                self._changed()

    def close(self) -> None:
        """Takes the program off every link that nobody else holds it on."""
        for descriptor in self.held.values():
            os.close(descriptor)
        self.held.clear()
        self._of.clear()
        self._came.clear()


def _links() -> tuple[set[int], set[int]]:
    """Numbers of the links that pods may be behind, and of those with filters. Blocks a few milliseconds; raises OSError."""
    with Route() as kernel:
        found = {link.index for link in kernel.links() if link.kind == KIND}
        try:
            return found, kernel.ingress()
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP:
                raise
            return found, set()  # a kernel without queueing disciplines
