"""One answering process: `python -m kproxy.dns.worker --channel PATH --config JSON`.

It binds the DNS addresses beside its siblings, answers from the zone the controller sends, and goes on with that zone when the
controller is away, for as long as it takes. SIGTERM: what has arrived is answered, then it ends with code 0. When it cannot bind it ends
with code 3 and says so.

When it binds: as soon as it has a zone. SO_REUSEPORT gives a new socket its share of the queries at once, so a worker that starts again
beside others (a crash, an upgrade) would answer that share SERVFAIL until the zone has come. Only where nobody listens does it bind
without one, after a short grace: names of the zone are SERVFAIL then, and all others are forwarded.

It imports the standard library, msgspec and this package, nothing more: what it weighs is paid once per core.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import logging
import os
import random
import resource
import signal
import socket
import sys
import time
from collections import Counter
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import msgspec

from kproxy.dns import channel
from kproxy.dns.channel import Begin, Change, Counts, End, FromController, Held, Hello, Part, Resync, Tell
from kproxy.dns.forward import Forwarder
from kproxy.dns.server import Server, bound, is_taken
from kproxy.dns.settings import DnsSettings
from kproxy.dns.zone import Loading, empty_zone, with_changes
from kproxy.process import drop_capabilities, settle
from kproxy.telemetry.logs import configure

log = logging.getLogger("kproxy.dns.worker")

COUNTS_EVERY_S = 2.0
FIRST_PAUSE_S = 0.05  # before connecting again; doubles with jitter
LONGEST_PAUSE_S = 2.0
GRACE_S = 0.5  # a controller that is there sends its zone well within it
LOOK_EVERY_S = 0.1
FILES = 16384


class Feed:
    """The worker's side of the channel: connects, applies what comes, reports counters, and connects again for ever."""

    def __init__(self, path: str, server: Server) -> None:
        self._path = path
        self._server = server
        self._number = -1
        self._loading: Loading | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._listening = False
        self._complaint = ""
        self.arrived = asyncio.Event()  # the first zone

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
                    self._loading = None
                    writer.transport.abort()
            except (OSError, EOFError, TimeoutError):
                pass  # the controller is away; what is held is answered
            except ValueError as error:  # another version's, during an upgrade
                if str(error) != self._complaint:
                    self._complaint = str(error)
                    log.warning("the controller's messages cannot be read: %s", error)
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(pause * 2, LONGEST_PAUSE_S)

    async def _follow(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._number = -1  # numbers are the controller's, and this may be another one
        self._writer = writer
        writer.write(channel.frame(Hello(os.getpid())))
        self._timer = asyncio.get_running_loop().call_later(COUNTS_EVERY_S, self._report, writer)
        try:
            while True:
                self._take(await channel.receive_from_controller(reader), writer)
                await asyncio.sleep(0)  # queries first: a zone comes in many parts
        finally:
            self._writer = None
            self._timer.cancel()

    def _report(self, writer: asyncio.StreamWriter) -> None:
        writer.write(channel.frame(Counts(dict(self._server.counters))))
        self._timer = asyncio.get_running_loop().call_later(COUNTS_EVERY_S, self._report, writer)

    def _take(self, message: FromController, writer: asyncio.StreamWriter) -> None:
        match message:
            case Tell():
                writer.write(channel.frame(Counts(dict(self._server.counters))))
            case Begin():
                self._loading = Loading(message.settings)
            case Part() if self._loading is not None:
                self._loading.add(message.services)
            case End() if self._loading is not None:
                self._server.replace_zone(self._loading.finish(message.delta), None)
                self._loading = None
                self._hold(message.number, writer)
                settle_memory()
            case Change() if message.base == self._number:
                delta = message.delta
                changed = None if delta.namespaces is not None else [r.key for r in delta.changed] + list(delta.removed)
                self._server.replace_zone(with_changes(self._server.zone, delta), changed)
                self._hold(message.number, writer)
            case _:
                writer.write(channel.frame(Resync()))

    def _hold(self, number: int, writer: asyncio.StreamWriter) -> None:
        self._number = number
        self.arrived.set()
        if self._listening:
            writer.write(channel.frame(Held(number)))

    def listening(self) -> None:
        """The sockets are bound: from now on a zone that is held is a zone that is answered from."""
        self._listening = True
        if self._writer is not None and self._number >= 0:
            self._writer.write(channel.frame(Held(self._number)))


def raise_file_limit() -> None:
    """As many descriptors as allowed, within reason: TCP clients and forwarded questions have one each, the usual soft limit is 1024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = FILES if hard == resource.RLIM_INFINITY else min(FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def settle_memory() -> None:
    """Takes all that lives now out of later garbage collections: a zone is large, without cycles, and not worth walking."""
    gc.unfreeze()
    gc.collect()
    gc.freeze()


async def _worth_binding(settings: DnsSettings, feed: Feed, ended: asyncio.Event) -> bool:
    """Waits for the moment to bind (the module's text says which); False when the process is to end instead.

    Raises OSError at once when a stranger has the port.
    """
    for address in settings.listen:
        # Bound and not listening, a TCP socket takes nothing from siblings, yet a stranger without SO_REUSEPORT refuses it.
        bound(socket.SOCK_STREAM, address, settings.port).close()
    begun = time.monotonic()
    while not feed.arrived.is_set():
        if time.monotonic() - begun >= GRACE_S and not any(is_taken(a, settings.port) for a in settings.listen):
            break
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LOOK_EVERY_S):
                await feed.arrived.wait()
        if ended.is_set():
            return False
    return True


async def serve(settings: DnsSettings, path: str, *, announce: bool) -> None:
    """Binds, says `ready` on standard output if wished, answers until SIGTERM or SIGINT. Raises OSError when it cannot bind."""
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    loop.add_signal_handler(signal.SIGHUP, lambda: None)
    counters: Counter[str] = Counter()
    async with asyncio.TaskGroup() as tasks:
        forwarder = Forwarder(settings, counters)
        server = Server(settings, empty_zone(settings), forwarder, counters, tasks.create_task)
        feed = Feed(path, server)
        tasks.create_task(feed.run())
        if await _worth_binding(settings, feed, ended):
            await server.start()
            if (
                why := drop_capabilities()
            ):  # nothing here needs one once the sockets are bound, and packets may be hostile
                log.warning("the capabilities cannot be given up: %s", why)
            feed.listening()
            settle_memory()
            log.info("answering on %s port %d", ", ".join(settings.listen), settings.port)
            if announce:
                print("ready", flush=True)
            await ended.wait()
            await server.stop()
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()  # forwards whose upstream is silent: their clients will ask somebody else


def main(argv: list[str] | None = None) -> int:
    """Entry point; the exit code."""
    parser = argparse.ArgumentParser(prog="kproxy.dns.worker", description="One DNS answering process of kproxy.")
    parser.add_argument("--channel", required=True, metavar="PATH", help="the controller's Unix socket")
    parser.add_argument("--config", required=True, metavar="JSON", help="DnsSettings, or @FILE")
    parser.add_argument("--name", default="kproxy-dns", help="what ps shows")
    parser.add_argument("--parent", type=int, default=None, metavar="PID", help="end when this process ends")
    parser.add_argument("--announce", action="store_true", help="say `ready` on standard output once it answers")
    parser.add_argument("--log-format", default="text", choices=("text", "json"), help="form of log lines")
    parser.add_argument("--verbosity", type=int, default=0, metavar="N", help="4 and more: debug lines too")
    options = parser.parse_args(argv)
    settle(options.name, parent_pid=options.parent)
    raise_file_limit()
    configure(options.log_format, options.verbosity)
    text = options.config
    try:
        raw = Path(text[1:]).read_bytes() if text.startswith("@") else text.encode()
        settings = msgspec.json.decode(raw, type=DnsSettings)
        empty_zone(settings)
        Forwarder(settings, Counter())
    except (OSError, ValueError) as error:
        print(f"{options.name}: --config: {error}", file=sys.stderr)
        return 2
    code = 0
    try:
        run(serve(settings, options.channel, announce=options.announce))
    except* OSError as group:
        print(f"{options.name}: {group.exceptions[0]}", file=sys.stderr)
        code = 3
    return code


def run(main_task: Coroutine[Any, Any, None]) -> None:
    """Runs the worker's event loop: uvloop where it is installed, its wake-up costs a third of asyncio's."""
    try:
        import uvloop
    except ImportError:
        asyncio.run(main_task)
    else:
        uvloop.run(main_task)


if __name__ == "__main__":
    sys.exit(main())
