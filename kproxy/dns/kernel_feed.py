"""How a worker comes to the maps of the kernel's answers: the controller made them and hands over their descriptors, with a slot.

In: the path of the controller's socket (kernel_links.py). Out: `Server.use_kernel` with what may be offered to, and with None when the
controller has gone, whose programs went with it. What must not happen here: answering less because of it; where nobody listens at the
path, the kernel is too old or the maps cannot be written, every query comes by the sockets as ever.
"""

from __future__ import annotations

import array
import asyncio
import logging
import os
import random
import socket
from contextlib import suppress

import msgspec

from kproxy.dns.kernel_answers import KernelAnswers
from kproxy.dns.kernel_maps import Maps, Slot
from kproxy.dns.server import Server
from kproxy.telemetry.logs import fields

log = logging.getLogger("kproxy.dns.worker")

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 5.0
_OCTETS = 4096
_MAPS = 5


async def follow_kernel(path: str, server: Server) -> None:
    """Runs for ever; cancelled at the end of the process."""
    pause = FIRST_PAUSE_S
    while True:
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as sock:
                await asyncio.get_running_loop().sock_connect(sock, path)
                await _use(sock, server)
            pause = FIRST_PAUSE_S
        except (OSError, ValueError) as error:
            log.debug("the kernel is not given answers", extra=fields(err=error))
        await asyncio.sleep(pause * random.uniform(0.5, 1.0))
        pause = min(2 * pause, LONGEST_PAUSE_S)


async def _use(sock: socket.socket, server: Server) -> None:
    """Raises OSError and ValueError when it cannot be; returns when the controller is gone."""
    told, descriptors = await _received(sock)
    try:
        if len(descriptors) != _MAPS:
            raise ValueError("the controller has no slot left")
        slot = msgspec.json.decode(told, type=Slot)
        answers = KernelAnswers(Maps(*descriptors), slot.slot, slot.number, server.counters)
        answers.begin()
        try:
            server.use_kernel(answers)
            await asyncio.get_running_loop().sock_recv(sock, 1)  # nothing is ever said: it is the end
        finally:
            server.use_kernel(None)
            answers.end()
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


async def _received(sock: socket.socket) -> tuple[bytes, list[int]]:
    """The first message and the descriptors that came with it."""
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_reader(sock.fileno(), ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(sock.fileno())
    room = socket.CMSG_LEN(_MAPS * array.array("i").itemsize)
    told, ancillary, _, _ = sock.recvmsg(_OCTETS, room, socket.MSG_CMSG_CLOEXEC)
    found = array.array("i")
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            with suppress(ValueError):
                found.frombytes(data[: len(data) - len(data) % found.itemsize])
    return told, found.tolist()
