"""The process that serves node ports on loopback: `python -m kproxy.loopback.worker --channel PATH`.

One process is enough: its clients are this node's own processes. It stands beside the controller (a packet loop never shares an
interpreter with the watcher) and below the supervisor: connections outlive a controller that starts over, and while none is there the
listeners of the last one stay. It learns what to listen on from the channel, gives up every capability but the one for ports below 1024,
and ends on SIGTERM: at once it listens no more (of two instances the other one gets all), and when no connection is open any more, or after
three seconds, it is gone.

It imports the standard library, msgspec, uvloop and this package, nothing more.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import random
import resource
import signal
import sys

from kproxy.eventloop import run
from kproxy.loopback import channel
from kproxy.loopback.channel import Begin, Counts, End, Free, FromController, Hello, Taken, Update
from kproxy.loopback.listeners import Key, Listener
from kproxy.loopback.server import Server
from kproxy.process import drop_capabilities, settle

log = logging.getLogger("kproxy.loopback")

_FILES = 16384
_SPARE_FILES = 256  # listeners are counted on top of this
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.05, 2.0
_COUNTS_EVERY_S = 2.0
_LOOK_S, _LOOKS = 0.02, 150  # for open connections, after the end was asked for; the supervisor grants ten seconds
_CAP_NET_BIND_SERVICE = 10


class Feed:
    """The worker's side of the channel: connects, obeys, reports, and connects again for ever."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._writer: asyncio.StreamWriter | None = None
        self._coming: dict[Key, Listener] = {}
        self.server: Server | None = None

    async def run(self, server: Server) -> None:
        """Never returns."""
        pause_s = _FIRST_PAUSE_S
        complaint = ""
        while True:
            try:
                reader, writer = await asyncio.open_unix_connection(self._path)
                pause_s = _FIRST_PAUSE_S
                try:
                    await self._follow(reader, writer, server)
                finally:
                    self._writer = None
                    writer.transport.abort()
            except (OSError, EOFError):
                pass  # the controller is away; what is listened on stays
            except ValueError as error:  # another version's, during an upgrade
                if str(error) != complaint:
                    complaint = str(error)
                    log.warning("the controller's messages cannot be read: %s", error)
            await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    async def _follow(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, server: Server) -> None:
        self._writer = writer
        self._coming = dict(server.wanted)
        writer.write(channel.frame(Hello(os.getpid())))
        for listener in server.waiting:
            self.taken(listener, "EADDRINUSE")
        while True:
            await self._take(await channel.receive_from_controller(reader), server)

    async def _take(self, message: FromController, server: Server) -> None:
        match message:
            case Begin():
                self._coming = {}
            case Update(changed=changed, removed=removed):
                self._coming.update((listener.key, listener) for listener in changed)
                for key in removed:
                    self._coming.pop(key, None)
            case End():
                await server.use(self._coming)

    async def report(self, server: Server) -> None:
        """Sends the counters from time to time; runs for ever."""
        while True:
            await asyncio.sleep(_COUNTS_EVERY_S)
            self._say(Counts(dict(server.counters)))

    def taken(self, listener: Listener, error: str) -> None:
        """For the server: this port cannot be had."""
        log.warning("node port %d/%s on loopback is taken (%s)", listener.port, listener.protocol, error)
        self._say(Taken(listener.key, listener.name, error))

    def free(self, key: Key) -> None:
        """For the server: this port can be had again."""
        self._say(Free(key))

    def _say(self, message: channel.FromWorker) -> None:
        if self._writer is not None and not self._writer.is_closing():
            self._writer.write(channel.frame(message))


def file_limit() -> int:
    """As many descriptors as allowed, within reason; how many."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _FILES if hard == resource.RLIM_INFINITY else min(_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        return wanted
    return min(_FILES, soft) if soft != resource.RLIM_INFINITY else _FILES


async def serve(path: str, limit: int) -> None:
    """Serves until SIGTERM or SIGINT. limit: TCP connections, and UDP sessions."""
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    loop.add_signal_handler(signal.SIGHUP, lambda: None)
    feed = Feed(path)
    async with asyncio.TaskGroup() as tasks:
        server = Server(tasks.create_task, limit, feed.taken, feed.free)
        working = [tasks.create_task(work) for work in (feed.run(server), feed.report(server), server.keep())]
        await ended.wait()
        for task in working:
            task.cancel()
        await asyncio.wait(working)
        server.close()
        for _ in range(_LOOKS):
            if server.busy:
                await asyncio.sleep(_LOOK_S)
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()


def main(argv: list[str] | None = None) -> int:
    """Entry point; the exit code."""
    parser = argparse.ArgumentParser(prog="kproxy.loopback.worker", description="Node ports on loopback.")
    parser.add_argument("--channel", required=True, metavar="PATH", help="the controller's Unix socket")
    parser.add_argument("--name", default="kproxy-loopback", help="what ps shows")
    parser.add_argument("--parent", type=int, default=None, metavar="PID", help="end when this process ends")
    options = parser.parse_args(argv)
    settle(options.name, parent_pid=options.parent)
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(levelname)s " + options.name + " %(message)s")
    if why := drop_capabilities(keep=(_CAP_NET_BIND_SERVICE,)):
        log.warning("the capabilities cannot be given up: %s", why)
    limit = max(16, (file_limit() - _SPARE_FILES) // 3)  # two descriptors for a connection, one for a session
    with contextlib.suppress(KeyboardInterrupt):
        run(serve(options.channel, limit))
    return 0


if __name__ == "__main__":
    sys.exit(main())
