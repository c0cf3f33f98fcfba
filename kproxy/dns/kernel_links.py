"""The controller's part in the kernel's answers: the maps, the program, and the links of pods that it stands on.

In: a path to listen at, the kernel's announcements of links. Out: the program on every veth of this network namespace, and the maps'
descriptors for each worker that connects (kernel_feed.py). What must not happen here: an answer; workers write the maps. And a node that
does without: where the kernel refuses (before Linux 6.6 there is no TCX, without CAP_BPF no map), that is said once and everything goes by
the sockets.

A worker has a slot for as long as its connection is open (ebpf/handing.py). When it is gone its leases are ended at once, and the slot's
next worker begins with a number that no lease in it ever had. When this process is gone, so are the program and with it all answers.
"""

from __future__ import annotations

import asyncio
import logging
import os
import struct
from contextlib import ExitStack

import msgspec

from kproxy.dns import kernel_maps as layout
from kproxy.dns.kernel_program import program
from kproxy.ebpf import calls
from kproxy.ebpf.handing import Desk
from kproxy.node.program_links import ProgramLinks
from kproxy.telemetry.logs import fields

log = logging.getLogger("kproxy.dns")

_LIVES = 40  # bits of a lease's number below those that count a slot's lives


class KernelLinks:
    """Of one controller. links: how many have the program. why_not: what keeps the kernel from answering; empty where it does."""

    def __init__(self, path: str) -> None:
        self._links = ProgramLinks()
        self._desk = Desk(path, layout.SLOTS, self._begun, self._left)
        self._lives = 0
        self.maps: layout.Maps | None = None
        self.why_not = "it has only begun"

    @property
    def links(self) -> int:
        """How many links have the program."""
        return len(self._links.held)

    async def run(self) -> None:
        """Runs until cancelled, or returns at once where the kernel does not offer it."""
        with ExitStack() as held:
            try:
                # 20 ms of the kernel's, in which names are to be answered
                self.maps, code = await asyncio.to_thread(_made, held)
                held.callback(self._end)
                self._desk.open()
                self.why_not = ""
                await self._links.follow(code)
            except OSError as error:
                self.why_not = str(error.strerror or error).splitlines()[0]
                log.info("The kernel answers no names itself here", extra=fields(why=self.why_not))
                log.debug("%s", error)

    def _begun(self, slot: int) -> tuple[bytes, list[int]]:
        assert self.maps is not None
        self._lives += 1
        maps = self.maps
        told = msgspec.json.encode(layout.Slot(slot, self._lives << _LIVES))
        return told, [maps.places, maps.clients, maps.answers, maps.leases, maps.counters]

    async def _left(self, slot: int) -> None:
        self._end_leases(slot)

    def _end_leases(self, slot: int) -> None:
        if self.maps is not None:
            leases = calls.Map(self.maps.leases, 4, layout.LEASE_VALUE)
            for lease in (2 * slot, 2 * slot + 1):
                leases.put(struct.pack("=I", lease), layout.lease_value(0, 0))

    def _end(self) -> None:
        self._links.close()
        for slot in self._desk.slots:
            self._end_leases(slot)
        self._desk.close()
        self.maps = None


def _made(held: ExitStack) -> tuple[layout.Maps, int]:
    """The maps and the program, for as long as `held`. Raises OSError."""

    def kept(descriptor: int) -> int:
        held.callback(os.close, descriptor)
        return descriptor

    maps = layout.Maps(
        places=kept(calls.create_map(calls.HASH, "kproxy_places", layout.PLACE_KEY, 4, layout.PLACES)),
        clients=kept(
            calls.create_map(calls.LRU_HASH, "kproxy_clients", layout.ADDRESS, layout.CLIENT_VALUE, layout.CLIENTS)
        ),
        answers=kept(calls.create_map(calls.LRU_HASH, "kproxy_answers", layout.KEY, layout.VALUE, layout.ANSWERS)),
        leases=kept(calls.create_map(calls.ARRAY, "kproxy_leases", 4, layout.LEASE_VALUE, 2 * layout.SLOTS)),
        counters=kept(calls.create_map(calls.PERCPU_ARRAY, "kproxy_counts", 4, 8, layout.SLOTS * layout.KINDS)),
    )
    return maps, kept(calls.load_program(calls.SCHED_CLS, "kproxy_dns", program(maps)))
