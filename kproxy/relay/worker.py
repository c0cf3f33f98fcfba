"""One relaying process: `python -m kproxy.relay.worker --channel PATH --ports 10270,10271 --name kproxy-relay-0 --parent PID`.

It accepts what rules bring to its two ports, beside its siblings (SO_REUSEPORT), and carries bytes to endpoints by the table that the
controller sends. While no controller is there it goes on with what it has. Nothing ends it but

    SIGTERM   it drains: open connections go on, what still arrives is served (rules decide who gets new ones), and it ends when nothing
              was open and nothing came for a second, or after --hand-over seconds, when it resets what is left
    SIGUSR2   others will take its place, and nobody waits for this process: it goes on as before until the controller says that rules
              lead elsewhere, and then until nothing is open, however long that takes
    SIGKILL   its own connections, and no others, are reset
    itself    when it has been ten seconds on a processor without coming back to its event loop: its share of new connections would wait
              for ever. The kernel counts (ITIMER_PROF: time without a processor does not count) and faulthandler tells where it was.
              One that hangs without a processor is the supervisor's to end (relay/stillness.py)

It gives up every capability but two: CAP_NET_RAW, which is enough for IP_TRANSPARENT (kernel 6.18: ip_sockglue.c, tried one by one; where
a container has not got it, CAP_NET_ADMIN has to do), and CAP_NET_BIND_SERVICE, because sockets bear the ports that clients asked for.

It imports the standard library, msgspec and this package, nothing more: what it weighs is paid once per core.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import faulthandler
import gc
import logging
import os
import random
import resource
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from dataclasses import fields as fields_of
from itertools import chain, islice
from pathlib import Path

from kproxy.process import drop_capabilities, settle
from kproxy.relay import channel
from kproxy.relay.affinity import Remembered
from kproxy.relay.channel import Hello
from kproxy.relay.chooser import Chooser
from kproxy.relay.counts import Counts
from kproxy.relay.feed import Feed
from kproxy.relay.kernel_feed import follow_kernel
from kproxy.relay.kernel_flows import KernelFlows
from kproxy.relay.kernel_opened import OpenedFlows
from kproxy.relay.limits import Limits
from kproxy.relay.listening import BACKLOG, Listener, listeners
from kproxy.relay.paths import kernel_path
from kproxy.relay.poller import poller, run
from kproxy.relay.targets import End, Flow, Table
from kproxy.relay.tcp import TcpRelay
from kproxy.relay.totals import Row
from kproxy.relay.udp import UdpRelay
from kproxy.telemetry.logs import configure, fields

log = logging.getLogger("kproxy.relay")

CANNOT = 3  # exit code: this machine lacks what is needed
NET_BIND_SERVICE, NET_ADMIN, NET_RAW = 10, 12, 13
_FILES = 262_144  # 1 KB of kernel memory each while open, nothing while not
_SPARE_FILES = 128
_SWEEP_S, _TELL_S, _AFFINITY_S = 1.0, 2.0, 0.2
_FORGET_S = 60.0
_LOOP_S = 10.0  # the longest step that is known, a table of 100,000 endpoints, takes a fifth of a second
_IDLE_S = 1.0  # a SYN that was on its way when rules changed comes again after a second: by then it goes elsewhere
_LOOK_S = 0.1
_FLOWS_AT_ONCE = 150  # told without giving the loop back: 1 ms
_AT_ONCE = 5_000  # rows compared without giving the loop back: 2 ms
# A connection makes and drops a dozen objects that no cycle holds; with Python's thresholds (700, 10, 10) the collector would look at all
# that is open every few thousand connections and find nothing.
_THRESHOLDS = (50_000, 20, 50)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the command line says."""

    channel: str
    ports: tuple[int, int]
    hand_over_s: float
    limits: Limits


class Worker:
    """The relays of this process and what they share."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._counts, self._chooser, self._poller = Counts(), Chooser(random.random), poller()
        parts = (self._poller, self._chooser, self._counts, settings.limits, time.monotonic)
        self.tcp, self.udp = TcpRelay(*parts), UdpRelay(*parts)
        self._table = Table()
        self._made: list[Listener] = []
        self._told: dict[tuple[str, End | None], list[int]] = {}
        self._hello = Hello(os.getpid(), time.monotonic_ns(), settings.ports, rings=True)
        self.feed = Feed(settings.channel, self._hello)
        self.end_by: float | None = None  # monotonic; None: not asked to end
        self.asked = asyncio.Event()

    @property
    def open(self) -> int:
        """Connections and sessions."""
        return self.tcp.open + self.tcp.opened + self.udp.open

    def listen(self, made: list[Listener]) -> None:
        """Takes what arrives at these sockets, from the first table on: siblings that know the Services get all until then."""
        self._made = made

    def _begin(self) -> None:
        for one in self._made:
            if one.protocol == "TCP":
                one.sock.listen(BACKLOG)
            relay = self.tcp if one.protocol == "TCP" else self.udp
            relay.listen(one.sock, one.family, one.entry)

    def drain(self, seconds: float) -> None:
        """Ends when nothing is open, or after `seconds`."""
        self.end_by = min(self.end_by or float("inf"), time.monotonic() + seconds)
        self.udp.drain()
        self.leave()
        self.asked.set()

    def leave(self) -> None:
        """Says that others take its place, and goes on."""
        if not self._hello.draining:
            self._hello = Hello(self._hello.pid, self._hello.life, self._hello.ports, draining=True, rings=True)
            self.feed.introduce(self._hello)
            self.tcp.stop_opening()

    async def drained(self) -> None:
        """Returns when the worker may end, after it was asked to."""
        await self.asked.wait()
        log.info("Draining", extra=fields(open=self.open))
        seen, quiet_since = -1, time.monotonic()
        while self.end_by is not None and (now := time.monotonic()) < self.end_by:
            came = self._counts.accepted + self.udp.open
            if self.open or came != seen:
                seen, quiet_since = came, now
            elif now - quiet_since >= _IDLE_S:
                break
            await asyncio.sleep(_LOOK_S)
        log.info("Ending", extra=fields(open=self.open))

    def close(self) -> None:
        """Resets what is open and ends."""
        self.tcp.close_listeners()
        self.udp.close_listeners()
        self.tcp.close()
        self.udp.close()

    def use_kernel(self, flows: KernelFlows | None, opened: OpenedFlows | None = None) -> None:
        """What lasts is carried by the kernel from now on, and what comes again and again opened; None: by this worker."""
        self.tcp.use_kernel(flows, opened)
        if self._hello.draining:
            self.tcp.stop_opening()
        self.udp.use_kernel(flows)

    # --- what the controller says (feed.Obeys) ----------------------------------------------------------------------------------------

    def use(self, table: Table) -> None:
        """Relays by it from now on."""
        first = not self.feed.has_table
        self._table = table
        self._chooser.use(table)
        self.tcp.use(table)
        self.udp.use(table)
        if first:
            self._begin()
            gc.freeze()

    def learn(self, entries: tuple[Remembered, ...]) -> None:
        """Affinity that others decided."""
        self._chooser.learn(entries, time.monotonic())

    def renew(self, names: tuple[str, ...] | None) -> None:
        """Rules for these ServicePorts are others; None: for all."""
        if self.tcp.kernel is not None:
            self.tcp.kernel.renew(names)

    def led(self, ports: tuple[int, int]) -> None:
        """Rules lead to these ports."""
        if self._hello.draining and ports != self._hello.ports and not self.asked.is_set():
            self.drain(float("inf"))

    def everything(self) -> Iterator[bytes]:
        """Frames for a controller that is new: it has forgotten what was told."""
        self._told.clear()
        yield from channel.stays_frames([*self._chooser.affinity.everything()])

    async def flows(self, limit: int) -> tuple[list[Flow], int]:
        """What is open, at most `limit`, and how much. A millisecond at a time: whoever looks does not hold the connections up."""
        found: list[Flow] = []
        for flow in islice(chain(self.tcp.each_flow(limit), self.udp.each_flow(limit)), max(0, limit)):
            found.append(flow)
            if len(found) % _FLOWS_AT_ONCE == 0:
                await asyncio.sleep(0)
        return found, self.open

    # --- what it does from time to time -----------------------------------------------------------------------------------------------

    async def sweep(self) -> None:
        """What is over ends; runs for ever."""
        forget_at = time.monotonic() + _FORGET_S
        while True:
            signal.setitimer(signal.ITIMER_PROF, _LOOP_S)
            await asyncio.sleep(_SWEEP_S)
            now = time.monotonic()
            for sweep in (self.tcp.sweep, self.udp.sweep, self._chooser.sweep):
                sweep(now)
            if now >= forget_at:
                forget_at = now + _FORGET_S
                self._forget()

    def _forget(self) -> None:
        """Rows of what is gone; costs what had traffic, not what there is."""
        seen = self._counts.services
        names: set[str] = set()
        ends: set[tuple[str, End]] = set()
        for target in {id(target): target for target in self._table.targets.values()}.values():
            if target.name in seen:
                names.add(target.name)
                ends.update((target.name, end) for end in (*target.endpoints, *target.keeps))
        self._counts.forget(names, ends)
        rows: set[tuple[str, End | None]] = {(name, None) for name in self._counts.services}
        rows |= self._counts.endpoints.keys()
        for of in self._told.keys() - rows:
            del self._told[of]

    async def tell_affinity(self) -> None:
        """Other workers get a client's next connection: they should know where it stays. Runs for ever."""
        while True:
            await asyncio.sleep(_AFFINITY_S)
            for frame in channel.stays_frames(self._chooser.news()):
                self.feed.say(frame)

    async def tell_counts(self) -> None:
        """Counters and ejections to the controller; runs for ever."""
        ejected: tuple[object, ...] = ()
        while True:
            await asyncio.sleep(_TELL_S)
            for frame in channel.counted_frames(await self._changed(), self._whole(), self.open):
                self.feed.say(frame)
            now_out = self._chooser.ejected(time.monotonic())
            if now_out or ejected:
                self.feed.say(channel.frame(channel.Ejected(now_out)))
            ejected = now_out

    async def _changed(self) -> list[Row]:
        """Rows that are not as they were told."""
        found: list[Row] = []
        services = [(name, None, row) for name, row in self._counts.services.items()]
        endpoints = [(name, end, row) for (name, end), row in self._counts.endpoints.items()]
        for number, (name, end, row) in enumerate((*services, *endpoints)):
            if number % _AT_ONCE == _AT_ONCE - 1:
                await asyncio.sleep(0)
            if self._told.get((name, end)) != row:
                told = self._told[name, end] = list(row)
                found.append((name, end, told))
        return found

    def _whole(self) -> dict[str, int]:
        values = {one.name: getattr(self._counts, one.name) for one in fields_of(self._counts)}
        numbers = {name: value for name, value in values.items() if isinstance(value, int)}
        return {**numbers, "ejections": self._chooser.ejections, "handler_failures": self._poller.failures}


async def _for_ever(work: Callable[[], Awaitable[None]]) -> None:
    """A fault of ours in what is done beside the relaying is told, and tried again: it ends no connection."""
    told = 0
    while True:
        try:
            await work()
        except Exception:
            told += 1
            if told <= 20:
                log.exception("A part of the worker failed")
        await asyncio.sleep(1.0)


async def serve(settings: Settings, made: list[Listener]) -> None:
    """Relays until SIGTERM or SIGINT, and until that is done."""
    loop = asyncio.get_running_loop()
    worker = Worker(settings)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, worker.drain, settings.hand_over_s)
    loop.add_signal_handler(signal.SIGUSR2, worker.leave)
    for number in (signal.SIGHUP, signal.SIGUSR1):
        loop.add_signal_handler(number, lambda: None)
    faulthandler.register(signal.SIGPROF, all_threads=False, chain=True)  # and then the end
    worker.listen(made)
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_THRESHOLDS)
    kernel = kernel_path(settings.channel)
    parts = (
        lambda: worker.feed.run(worker),
        worker.sweep,
        worker.tell_affinity,
        worker.tell_counts,
        lambda: follow_kernel(kernel, worker.use_kernel, worker.tcp.leave_kernel),
    )
    tasks = [asyncio.ensure_future(_for_ever(part)) for part in parts]
    await worker.drained()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    worker.close()


def _has(capability: int) -> bool:
    """Whether it is in effect for this process."""
    status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    (effective,) = (line.split()[1] for line in status.splitlines() if line.startswith("CapEff:"))
    return bool(int(effective, 16) >> capability & 1)


def raise_file_limit() -> int:
    """As many descriptors as allowed, within reason; how many."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < _FILES:
        with contextlib.suppress(OSError, ValueError):  # CAP_SYS_RESOURCE
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, _FILES))
            hard = _FILES
    wanted = _FILES if hard == resource.RLIM_INFINITY else min(_FILES, hard)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return wanted
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return wanted


def limits(files: int, connections: int, connect_timeout_s: float, hedge_after_s: float, sessions: int = 0) -> Limits:
    """What `files` descriptors are enough for: two for a connection, two for a session, and some for attempts and the rest.

    connections, sessions: the most, 0 for what the descriptors allow.
    """
    usable = max(64, files - _SPARE_FILES - files // 16)
    sessions = min(sessions or Limits().sessions, Limits().sessions, usable // 8)
    fit = (usable - 2 * sessions) // 2
    return Limits(
        connections=min(connections, fit) if connections else fit,
        sessions=sessions,
        connect_timeout_s=connect_timeout_s,
        hedge_after_s=hedge_after_s,
    )


def _parsed(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="kproxy.relay.worker", description="Carries connections to Services.")
    parser.add_argument("--channel", required=True, metavar="PATH", help="the controller's Unix socket")
    parser.add_argument("--ports", required=True, metavar="INSIDE,OUTSIDE", help="where rules bring connections")
    parser.add_argument("--name", default="kproxy-relay", help="what ps shows")
    parser.add_argument("--parent", type=int, default=None, metavar="PID", help="drain when this process ends")
    parser.add_argument(
        "--hand-over", type=float, default=300.0, metavar="S", help="longest time from SIGTERM to the end"
    )
    parser.add_argument("--connections", type=int, default=0, metavar="N", help="most at a time; 0: what files allow")
    parser.add_argument("--sessions", type=int, default=0, metavar="N", help="most of UDP; 0: what files allow")
    parser.add_argument("--connect-timeout", type=float, default=10.0, metavar="S", help="for all attempts together")
    parser.add_argument("--hedge-after", type=float, default=0.2, metavar="S", help="then another endpoint is tried")
    parser.add_argument("--log-format", default="text")
    parser.add_argument("--verbosity", type=int, default=2)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Entry point; the exit code."""
    options = _parsed(argv)
    settle(options.name, parent_pid=options.parent)
    configure(options.log_format, options.verbosity)
    inside, outside = map(int, options.ports.split(","))
    files = raise_file_limit()
    try:
        made = listeners((inside, outside))
    except OSError as error:
        log.error("The relay cannot listen", extra=fields(inside=inside, outside=outside, error=error.strerror))
        return CANNOT if isinstance(error, PermissionError) else 1
    if why := drop_capabilities(keep=(NET_RAW if _has(NET_RAW) else NET_ADMIN, NET_BIND_SERVICE)):
        log.warning("Capabilities cannot be given up", extra=fields(error=why))
    settings = Settings(
        channel=options.channel,
        ports=(inside, outside),
        hand_over_s=options.hand_over,
        limits=limits(files, options.connections, options.connect_timeout, options.hedge_after, options.sessions),
    )
    run(serve(settings, made))
    return 0


if __name__ == "__main__":
    sys.exit(main())
