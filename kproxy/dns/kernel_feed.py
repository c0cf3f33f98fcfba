"""How a worker comes to the maps of the kernel's answers: the controller made them and hands over their descriptors, with a slot.

In: the path of the controller's socket (kernel_links.py). Out: `Server.use_kernel` with what may be offered to, and with None when the
controller has gone, whose programs went with it. What must not happen here: answering less because of it; where nobody listens at the
path, the kernel is too old or the maps cannot be written, every query comes by the sockets as ever.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
from contextlib import suppress

import msgspec

from kproxy.dns.kernel_answers import KernelAnswers
from kproxy.dns.kernel_maps import Maps, Slot
from kproxy.dns.server import Server
from kproxy.ebpf.handing import Visit
from kproxy.telemetry.logs import fields

log = logging.getLogger("kproxy.dns.worker")

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 5.0
_MAPS = 5


async def follow_kernel(path: str, server: Server) -> None:
    """Runs for ever; cancelled at the end of the process."""
    pause = FIRST_PAUSE_S
    while True:
        try:
            await _use(path, server)
            pause = FIRST_PAUSE_S
        except (OSError, EOFError, ValueError) as error:
            log.debug("the kernel is not given answers", extra=fields(err=error))
        await asyncio.sleep(pause * random.uniform(0.5, 1.0))
        pause = min(2 * pause, LONGEST_PAUSE_S)


async def _use(path: str, server: Server) -> None:
    """Raises OSError, EOFError and ValueError when it cannot be; returns when the controller is gone."""
    visit = await Visit.to(path)
    try:
        if len(visit.descriptors) != _MAPS:
            raise ValueError("the controller's maps are others")
        slot = msgspec.json.decode(visit.words, type=Slot)
        answers = KernelAnswers(Maps(*visit.descriptors), slot.slot, slot.number, server.counters)
        answers.begin()
        try:
            server.use_kernel(answers)
            with suppress(EOFError):
                await visit.further()  # nothing comes but the end
        finally:
            server.use_kernel(None)
            answers.end()
    finally:
        visit.close()
        for descriptor in visit.descriptors:
            os.close(descriptor)
