"""A worker's end of the channel: connects, obeys, tells, and connects again for ever.

In: what the controller says. Out: a Table for the relays when it is complete, affinity for the chooser, and the worker's own words.
While no controller is there the worker goes on with what it has. What must not happen here: an exception that ends the worker, or a frame
that holds the relays up for long.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Iterator
from typing import Protocol

from kproxy.relay import channel
from kproxy.relay.affinity import Remembered
from kproxy.relay.channel import Anew, AskFlows, Begin, End, FromController, Held, Hello, Lead, Stays, Update
from kproxy.relay.targets import Flow, Key, Table, Target
from kproxy.telemetry.logs import fields

log = logging.getLogger("kproxy.relay")

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.05, 1.0
_TOO_FAR_BEHIND = 64 << 20  # octets that the controller did not take: it hangs, and is hung up on


class Obeys(Protocol):
    """What the controller's words go to: the worker."""

    def use(self, table: Table) -> None:
        """Relays by it from now on."""

    def learn(self, entries: tuple[Remembered, ...]) -> None:
        """Affinity that others decided."""

    def renew(self, names: tuple[str, ...] | None) -> None:
        """Rules for these ServicePorts are others; None: for all."""

    def led(self, ports: tuple[int, int]) -> None:
        """Rules lead to these ports."""

    def everything(self) -> Iterator[bytes]:
        """Frames that tell a controller that is new what the worker knows."""

    async def flows(self, limit: int) -> tuple[list[Flow], int]:
        """What is open, at most `limit`, and how much is open."""


class Feed:
    """path: the controller's socket. hello: said first, and again when it is changed by `introduce`."""

    def __init__(self, path: str, hello: Hello) -> None:
        self._path, self._hello = path, hello
        self._writer: asyncio.StreamWriter | None = None
        self._coming: dict[Key, Target] = {}
        self._changed = False
        self.has_table = False

    def introduce(self, hello: Hello) -> None:
        """The worker is another than it was: it is to leave."""
        self._hello = hello
        self.say(channel.frame(hello))

    def say(self, frame: bytes) -> None:
        """Sends a frame if a controller is there; what cannot be sent is lost."""
        writer = self._writer
        if writer is None or writer.is_closing():
            return
        if writer.transport.get_write_buffer_size() > _TOO_FAR_BEHIND:
            writer.transport.abort()
        else:
            writer.write(frame)

    async def run(self, worker: Obeys) -> None:
        """Never returns."""
        pause_s, complaint = _FIRST_PAUSE_S, ""
        while True:
            try:
                reader, writer = await asyncio.open_unix_connection(self._path, limit=1 << 20)
                pause_s = _FIRST_PAUSE_S
                try:
                    await self._follow(reader, writer, worker)
                finally:
                    self._writer = None
                    writer.transport.abort()
            except (OSError, EOFError):
                pass  # the controller is away; connections go on, and new ones are served as before
            except Exception as error:
                if repr(error) != complaint:
                    complaint = repr(error)
                    log.warning("The controller's words cannot be followed", extra=fields(error=complaint))
            await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    async def _follow(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, worker: Obeys) -> None:
        writer.write(channel.frame(self._hello))
        self._writer = writer
        for frame in worker.everything():
            self.say(frame)
            with contextlib.suppress(ConnectionError):
                await writer.drain()
        while True:
            await self._obey(await channel.receive_from_controller(reader), worker)
            await asyncio.sleep(
                0
            )  # frames that are there already would be taken in one go: connections have their turn

    async def _obey(self, message: FromController, worker: Obeys) -> None:
        match message:
            case Anew(names=names):
                worker.renew(names)
            case Begin():
                self._coming, self._changed = {}, True
            case Update(changed=changed, removed=removed):
                self._changed = True
                for target, keys in changed:
                    self._coming.update(dict.fromkeys(keys, target))
                for key in removed:
                    self._coming.pop(key, None)
            case End(number=number):
                if self._changed or not self.has_table:
                    worker.use(Table(dict(self._coming)))
                self.has_table, self._changed = True, False
                self.say(channel.frame(Held(number)))
            case Stays(entries=entries):
                worker.learn(entries)
            case Lead(ports=ports):
                worker.led(ports)
            case AskFlows(question=question, limit=limit):
                began = time.monotonic()
                flows, total = await worker.flows(limit)
                log.debug("Flows", extra=fields(count=len(flows), seconds=time.monotonic() - began))
                for frame in channel.flows_frames(question, flows, total):
                    self.say(frame)
                    await asyncio.sleep(0)
