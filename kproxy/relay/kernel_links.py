"""The controller's part in the kernel's flows: the maps, the program, and the links of pods that it stands on.

In: a path to listen at, the kernel's announcements of links. Out: the program on every veth of this network namespace; for each worker that
connects (kernel_feed.py) a slot, the maps' descriptors, and those of the program's attachments: a worker keeps all of them until it ends,
so that what it has handed to the kernel goes on without this process, whether that was killed or another takes its place. What must not
happen here: an entry; workers write the maps. And a node that does without: where the kernel refuses (before Linux 6.6 there is no TCX,
without CAP_BPF no map), that is said once and everything goes by the sockets.

When a worker has ended, peers of what it had carried are told, and its entries are taken out of the hash before another gets its slot. A
controller makes maps of its own: workers of an earlier one go on with theirs, and for that time a link has two programs, each of which lets
pass what it does not know.
"""

from __future__ import annotations

import asyncio
import logging
import os
import struct
import time
from contextlib import ExitStack
from dataclasses import astuple

import msgspec

from kproxy.ebpf import calls
from kproxy.ebpf.handing import Desk
from kproxy.node.program_links import ProgramLinks
from kproxy.relay import kernel_maps as layout
from kproxy.relay import kernel_rings as rings
from kproxy.relay.kernel_program import program
from kproxy.relay.kernel_reset import Resets
from kproxy.telemetry.logs import fields

log = logging.getLogger("kproxy.relay")

_LAST_S, _LOOK_S = 1.0, 0.05  # for connections of a worker that has ended


class KernelLinks:
    """Of one controller. links: how many have the program. why_not: what keeps the kernel from relaying; empty where it does."""

    def __init__(self, path: str, *, openings: bool = True) -> None:
        """openings: the program may open connections itself (userspace.kernelOpenings)."""
        self._openings = openings
        self._links = ProgramLinks(self._changed)
        self._desk = Desk(path, layout.SLOTS, self._begun, self._left, self._links.held)
        self.maps: layout.FlowMaps | None = None
        self.why_not = "it has only begun"

    @property
    def links(self) -> int:
        """How many links have the program."""
        return len(self._links.held)

    async def run(self) -> None:
        """Runs until cancelled, or returns at once where the kernel does not offer it."""
        with ExitStack() as held:
            try:
                self.maps, code = await asyncio.to_thread(_made, held)
                held.callback(self._end)
                self._desk.open()
                self.why_not = ""
                await self._links.follow(code)
            except OSError as error:
                self.why_not = str(error.strerror or error).splitlines()[0]
                log.info("The kernel relays nothing itself here", extra=fields(why=self.why_not))
                log.debug("%s", error)

    def _changed(self) -> None:
        self._desk.tell()

    def _begun(self, slot: int) -> tuple[bytes, list[int]]:
        assert self.maps is not None
        return msgspec.json.encode(layout.FlowSlot(slot, self._openings)), [*astuple(self.maps)]

    async def _left(self, slot: int) -> None:
        if self.maps is not None:
            # Copies, for the thread may go on when this process's own are closed.
            copies = layout.FlowMaps(*(os.dup(one) for one in astuple(self.maps)))
            await asyncio.to_thread(_cleared, copies, slot)

    def _end(self) -> None:
        self._desk.close()
        self._links.close()
        self.maps = None


def _made(held: ExitStack) -> tuple[layout.FlowMaps, int]:
    """The maps and the program, for as long as `held`. Raises OSError."""

    def kept(descriptor: int) -> int:
        held.callback(os.close, descriptor)
        return descriptor

    maps = layout.FlowMaps(
        flows=kept(
            calls.create_map(calls.HASH, "kproxy_flows", layout.KEY, layout.VALUE, 2 * layout.PAIRS, calls.NO_PREALLOC)
        ),
        pairs=kept(calls.create_map(calls.ARRAY, "kproxy_pairs", 4, layout.PAIR, layout.PAIRS, calls.MMAPABLE)),
        leases=kept(calls.create_map(calls.ARRAY, "kproxy_vouched", 4, layout.LEASE, layout.SLOTS, calls.MMAPABLE)),
        repeats=kept(
            calls.create_map(calls.HASH, "kproxy_repeats", layout.KEY, rings.NUMBER, rings.RINGS, calls.NO_PREALLOC)
        ),
        rings=kept(calls.create_map(calls.ARRAY, "kproxy_rings", 4, rings.RING, rings.RINGS, calls.MMAPABLE)),
    )
    return maps, kept(calls.load_program(calls.SCHED_CLS, "kproxy_relay", program(maps)))


def _cleared(maps: layout.FlowMaps, slot: int) -> None:
    """Takes away what a worker that has ended left in its slot; closes the descriptors. Blocks up to `_LAST_S`. Raises OSError."""
    try:
        _blank(maps.leases, layout.LEASE, slot, slot + 1, layout.SLOTS)
        own = range(slot * rings.PER_WORKER, (slot + 1) * rings.PER_WORKER)
        _delete(calls.Map(maps.repeats, layout.KEY, rings.NUMBER), 0, own)
        _blank(maps.rings, rings.RING, own.start, own.stop, rings.RINGS)
        mine = range(slot * layout.PER_SLOT, (slot + 1) * layout.PER_SLOT)
        _wait(maps, mine)
        _reset(maps, mine)
        _delete(calls.Map(maps.flows, layout.KEY, layout.VALUE), layout.PLACE_AT, mine)
        _blank(maps.pairs, layout.PAIR, mine.start, mine.stop, layout.PAIRS)
    finally:
        for descriptor in astuple(maps):
            os.close(descriptor)


def _wait(maps: layout.FlowMaps, mine: range) -> None:
    """Connections that the kernel had opened need no worker: most of them last for a request, and get the time for it."""
    until = time.monotonic() + _LAST_S
    flows = calls.Map(maps.flows, layout.KEY, layout.VALUE)
    while time.monotonic() < until:
        places = (struct.unpack_from("=I", value, layout.PLACE_AT)[0] for _, value in flows.entries())
        if not any(place in mine and place - mine.start >= layout.HANDED for place in places):
            return
        time.sleep(_LOOK_S)


def _reset(maps: layout.FlowMaps, mine: range) -> None:
    """Peers of TCP connections that were carried are told that they are over: their own next packet might be long in coming."""
    resets = Resets()
    with calls.memory(maps.pairs, layout.PAIR * layout.PAIRS) as pairs:
        for key, value in calls.Map(maps.flows, layout.KEY, layout.VALUE).entries():
            protocol, place, direction, leaving = layout.told_of_flow(key, value)
            at = place * layout.PAIR
            carried = struct.unpack_from("=I", pairs, at + layout.STATE_AT)[0] == layout.FORWARD
            if protocol == layout.TCP and place in mine and carried:
                (reached,) = struct.unpack_from("=I", pairs, at + layout.REACHED_AT + 4 * direction)
                resets.send(leaving, reached)
    resets.close()


def _delete(table: calls.Map, at: int, mine: range) -> None:
    """The entries of a hash whose number, `at` in the value, is among these."""
    for key in [key for key, value in table.entries() if struct.unpack_from("=I", value, at)[0] in mine]:
        table.delete(key)


def _blank(array: int, size: int, start: int, stop: int, entries: int) -> None:
    """Zeros for a part of an array."""
    with calls.memory(array, size * entries) as memory:
        memory[start * size : stop * size] = bytes((stop - start) * size)
