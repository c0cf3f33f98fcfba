"""How a worker comes to the kernel's flows: the controller made maps, program and attachments, and hands over their descriptors.

In: the path of the controller's socket (kernel_links.py). Out: `use(flows, opened)` with what the relays may hand over to, and a lease
that is prolonged as long as this worker's event loop turns. What must not happen here: relaying worse because of it; where nobody listens
at the path, the kernel is too old or the maps cannot be had, everything goes by the sockets as ever.

Maps and attachments stay with this process when the controller goes, so that what was handed over goes on. Another controller has others:
this worker takes those when it is there, and nothing is left in its own that cannot come back to a socket (`use(None)` before the change).

The connection is closed only when nothing of the maps is in use here any more: the controller takes that for this worker's end, and gives
its places to another.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import resource
import time
from collections.abc import Callable

import msgspec

from kproxy.ebpf.handing import Visit
from kproxy.relay.kernel_flows import KernelFlows
from kproxy.relay.kernel_maps import FlowMaps, FlowSlot
from kproxy.relay.kernel_opened import OpenedFlows
from kproxy.telemetry.logs import fields

log = logging.getLogger("kproxy.relay")

LEASE_S, RENEW_S = 2.0, 0.5
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 5.0
_MAPS = 5
_SHARE = 32  # attachments may take one in so many of the descriptors that this process may have
_SECOND = 1_000_000_000


async def follow_kernel(
    path: str, use: Callable[[KernelFlows | None, OpenedFlows | None], None], leave: Callable[[], bool]
) -> None:
    """Runs for ever; cancelled at the end of the process. leave: asked before other maps are taken, until it says that nothing is carried
    by the old ones any more; they are to open no connection from the first time on.
    """
    pause = _FIRST_PAUSE_S
    with contextlib.ExitStack() as held:  # what is in use
        while True:
            try:
                visit = await Visit.to(path)
                while True:
                    if leave():
                        break
                    await asyncio.sleep(RENEW_S)
                with contextlib.ExitStack() as made:
                    flows, opened = _flows(visit, made)
                    links = _Links()
                    made.callback(links.close)
                    held.close()
                    held.push(made.pop_all())
                held.callback(use, None, None)
                use(flows, opened)
                pause = _FIRST_PAUSE_S
                while True:
                    links.take(*await visit.further())
            except (OSError, EOFError, ValueError) as error:
                log.debug("the controller hands nothing over", extra=fields(error=error))
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(2 * pause, _LONGEST_PAUSE_S)


def _flows(visit: Visit, held: contextlib.ExitStack) -> tuple[KernelFlows, OpenedFlows | None]:
    """What a worker does with the maps, and its lease, until `held` is closed. Raises OSError, ValueError."""
    held.callback(visit.close)
    for descriptor in visit.descriptors:
        held.callback(os.close, descriptor)
    if len(visit.descriptors) != _MAPS:
        raise ValueError("the controller's maps are others")
    maps, told = FlowMaps(*visit.descriptors), msgspec.json.decode(visit.words, type=FlowSlot)
    flows = KernelFlows(maps, told.slot)
    held.callback(flows.close)
    opened = OpenedFlows(maps, flows) if told.openings else None
    flows.vouch(_until())
    vouching = asyncio.ensure_future(_vouch(flows))
    held.callback(vouching.cancel)
    return flows, opened


async def _vouch(flows: KernelFlows) -> None:
    while True:
        await asyncio.sleep(RENEW_S)
        flows.vouch(_until())


def _until() -> int:
    return time.monotonic_ns() + int(LEASE_S * _SECOND)


class _Links:
    """Attachments of the program, by the controller's numbers for them."""

    def __init__(self) -> None:
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._most = max(16, soft // _SHARE)
        self._held: dict[int, int] = {}

    def take(self, came: dict[int, int], gone: list[int]) -> None:
        """What came is ours to close. Beyond as many as there is room for they end with the controller."""
        for number in gone:
            descriptor = self._held.pop(number, None)
            if descriptor is not None:
                os.close(descriptor)
        for number, descriptor in came.items():
            if len(self._held) < self._most and number not in self._held:
                self._held[number] = descriptor
            else:
                os.close(descriptor)

    def close(self) -> None:
        """The program leaves those links that nobody else holds it on."""
        for descriptor in self._held.values():
            os.close(descriptor)
        self._held.clear()
