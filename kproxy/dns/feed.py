"""The worker's side of the channel: applies what the controller sends, reports what is counted and seen, and comes back for ever.

In: frames (channel.py). Out: a server that answers from the newest zones. What must not happen here: waiting with an answer for the
controller; a whole zone comes in parts, and queries are answered between two of them.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from msgspec.structs import replace

from kproxy.dns import channel, memory, names
from kproxy.dns.channel import (
    About,
    Ask,
    Begin,
    Change,
    Counts,
    End,
    FromController,
    Held,
    Hello,
    Limited,
    Observe,
    Observed,
    Part,
    Resync,
    Said,
    Tell,
)
from kproxy.dns.directives import zone_settings
from kproxy.dns.server import Server
from kproxy.dns.sharing import change_all, finish_all
from kproxy.dns.zone import Loading, Zone, ZoneDelta
from kproxy.telemetry.logs import fields

log = logging.getLogger("kproxy.dns.worker")

COUNTS_EVERY_S = 2.0
SHOWN_EVERY_S = 0.2  # while somebody looks
FIRST_PAUSE_S = 0.05  # before connecting again; doubles with jitter
LONGEST_PAUSE_S = 2.0
LONGEST_WITHOUT_ZONE_S = 0.1  # every moment without a zone is SERVFAIL for somebody


class Feed:
    """Connects, applies what comes, reports, and connects again for ever. settled: called after a whole zone has been taken in."""

    def __init__(self, path: str, server: Server, settled: Callable[[], None] = lambda: None) -> None:
        self._path = path
        self._server = server
        self._settled = settled
        self._number = -1
        self._begun: Begin | None = None
        self._loading: list[Loading] = []
        self._writer: asyncio.StreamWriter | None = None
        self._listening = False
        self._complaint = ""
        self._timers: dict[Callable[[], None], asyncio.TimerHandle] = {}
        self.arrived = asyncio.Event()  # the first zones
        server.strangers.notice = self._limited
        server.strangers.name = lambda source: server.hot.clients.find(source).name

    async def run(self) -> None:
        """Never returns; cancelled at the end of the process."""
        pause = FIRST_PAUSE_S
        while True:
            try:
                reader, writer = await asyncio.open_unix_connection(self._path)
                pause = FIRST_PAUSE_S
                try:
                    await self._follow(reader, writer)
                finally:
                    self._loading, self._begun = [], None
                    writer.transport.abort()
            except (OSError, EOFError, TimeoutError):
                pass  # the controller is away; what is held is answered
            except ValueError as error:  # another version's, during an upgrade
                self._complain("the controller's messages cannot be read", error)
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(pause * 2, LONGEST_PAUSE_S if self.arrived.is_set() else LONGEST_WITHOUT_ZONE_S)

    def _complain(self, what: str, error: Exception) -> None:
        if str(error) != self._complaint:
            self._complaint = str(error)
            log.warning("%s", what, extra=fields(err=error))

    async def _follow(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._number = -1  # numbers are the controller's, and this may be another one
        self._writer = writer
        writer.write(channel.frame(Hello(os.getpid(), 0 if self._listening and self.arrived.is_set() else -1)))
        self._again(COUNTS_EVERY_S, self._report)
        try:
            while True:
                self._take(await channel.receive_from_controller(reader), writer)
                await asyncio.sleep(0)  # queries first: a zone comes in many parts
        finally:
            self._writer = None
            self._server.observing.observe(False)
            for timer in self._timers.values():
                timer.cancel()

    def _again(self, after_s: float, report: Callable[[], None]) -> None:
        self._timers[report] = asyncio.get_running_loop().call_later(after_s, report)

    def _say(self, message: channel.FromWorker) -> None:
        # A controller that does not read is not waited for: counters are told whole the next time, records are lost.
        if self._writer is not None and self._writer.transport.get_write_buffer_size() < channel.MAX_FRAME:
            self._writer.write(channel.frame(message))

    def _report(self) -> None:
        self._say(Counts(self._server.counted()))
        self._again(COUNTS_EVERY_S, self._report)

    def _show(self) -> None:
        records, left_out = self._server.observing.take()
        if records or left_out:
            self._say(Observed(tuple(records), left_out))
        if self._server.observing.observed:
            self._again(SHOWN_EVERY_S, self._show)

    def _limited(self, source: str, dropped: int) -> None:
        self._say(Limited(source, self._server.hot.clients.find(source).name, dropped))

    def _said(self, number: int, reply: bytes, took_s: float) -> None:
        self._say(Said(number, reply, int(took_s * 1e6)))

    def _take(self, message: FromController, writer: asyncio.StreamWriter | None) -> None:
        match message:
            case About():
                self._server.know(message.networks, message.pods, message.cookie_secrets)
            case Observe():
                self._server.observing.observe(message.on)
                if message.on:
                    self._again(SHOWN_EVERY_S, self._show)
            case Ask():
                client = self._server.hot.clients.find(message.client or "127.0.0.1")
                said = partial(self._said, message.number)
                self._server.responder.ask_as(client, message.query, message.walk, said)
            case Tell():
                self._say(Counts(self._server.counted()))
            case Begin():
                self._begun = message
                self._loading = [Loading(settings) for settings in message.zones]
            case Part() if message.zone < len(self._loading):
                self._loading[message.zone].add(message.services)
            case End() if self._begun is not None and len(message.deltas) == len(self._loading):
                zones = finish_all(self._loading, message.deltas, self._begun.zones)
                settings = self._begun.settings or self._server.settings
                self._loading, self._begun = [], None
                try:
                    self._server.answer_from(settings, zones, None)
                except (
                    OSError,
                    ValueError,
                ) as error:  # the old ones stay in force; the controller sees that it is not held
                    self._complain("new settings cannot be followed", error)
                    return
                self._hold(message.number)
                self._settled()
            case Change() if message.base == self._number and len(message.deltas) == len(self._server.zones):
                changed = _changed(self._server.zones, message.deltas)
                zones = change_all(self._server.zones, message.deltas)
                self._server.answer_from(self._server.settings, zones, changed)
                self._hold(message.number)
            case _:
                if writer is not None:
                    writer.write(channel.frame(Resync()))

    def _hold(self, number: int) -> None:
        self._number = number
        self.arrived.set()
        if self._listening:
            self._say(Held(number))

    def listening(self) -> None:
        """The sockets are bound: from now on a zone that is held is a zone that is answered from."""
        self._listening = True
        if self.arrived.is_set():
            self._say(Held(max(self._number, 0)))

    def recall(self, path: Path) -> None:
        """Answers from the zones on disk, until a controller brings others. Raises OSError and ValueError, saying what is wrong."""
        messages, age_s = memory.read(path)
        own = self._server.settings
        for message in map(channel.from_controller, messages):
            if isinstance(message, Begin):
                then = message.settings or own
                if (then.listen, then.port) != (own.listen, own.port):
                    raise ValueError("it is of a server at other addresses")
                if message.settings is None and message.zones != tuple(zone_settings(own)):
                    raise ValueError("its zones are of another configuration")
            self._take(message, None)
        if not self.arrived.is_set():
            raise ValueError("it has no zones")
        self._number = -1
        told = fields(path=path, age_s=round(age_s))
        log.warning("the controller brings no zone: answering from the one on disk", extra=told)


def _changed(zones: Sequence[Zone], deltas: Sequence[ZoneDelta]) -> list[bytes] | None:
    """Owners of replies that may differ; None when all may. zones: before the change.

    Endpoints come and go all the time, and what most pods ask for, a Service's own address, is the same with others.
    """
    if any(delta.is_wide for delta in deltas):
        return None
    found = []
    for zone, delta in zip(zones, deltas, strict=True):
        for records in delta.changed:
            before = zone.services.get(records.key)
            found.append(records.key)
            if before is None or replace(before, groups=()) != replace(records, groups=()):
                found.append(names.steady(records.key))
        for key in delta.removed:
            found += (key, names.steady(key))
    return found
