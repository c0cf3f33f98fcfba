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
import resource
import signal
import socket
import sys
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import msgspec

from kproxy import recorded  # before the others, which it makes cost less
from kproxy.dns.chain import serve as serve_chain
from kproxy.dns.directives import zone_settings
from kproxy.dns.feed import Feed
from kproxy.dns.files import follow_files
from kproxy.dns.forward import Forwarders
from kproxy.dns.kernel_feed import follow_kernel
from kproxy.dns.server import Place, Server
from kproxy.dns.settings import DnsSettings
from kproxy.dns.sockets import bound, is_taken
from kproxy.dns.zone import empty_zone
from kproxy.eventloop import run
from kproxy.process import drop_capabilities, settle
from kproxy.telemetry.logs import configure, fields

log = logging.getLogger("kproxy.dns.worker")

# For the first zone, where nobody else answers: a controller that starts beside us is there in one to two seconds, on a busy node in more,
# and one that cannot reach its API server has the zone of its last life on disk. Nobody is sent here before there is a zone.
GRACE_S = 5.0
MEMORY_AFTER_S = 0.5  # without a zone from a controller, and with nobody else who answers: the one on disk is used
LOOK_EVERY_S = 0.1
FILES = 16384
# Records die by reference count, and as many come as go. With Python's own thresholds (700, 10, 10) an eighth of a worker's time went into
# looking for cycles at a thousand endpoint changes a second, some of it in pauses of milliseconds.
_THRESHOLDS = (20_000, 20, 20)
NET_BIND_SERVICE = 10  # the one capability kept: a Corefile may name another port below 1024 at any time


def raise_file_limit() -> None:
    """As many descriptors as allowed, within reason: TCP clients and forwarded questions have one each, the usual soft limit is 1024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = FILES if hard == resource.RLIM_INFINITY else min(FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def settle_memory() -> None:
    """Takes all that lives now out of later garbage collections: a zone is large, without cycles, and not worth walking.

    Not even once, here: that takes 0.25 s at 10,000 Services, in which no query is answered. What garbage of asyncio's is frozen with it is
    little; an old zone goes by its reference counts.
    """
    gc.freeze()
    gc.set_threshold(*_THRESHOLDS)


def _recalled(feed: Feed, memory: Path | None) -> bool:
    """Whether there is a zone on disk to answer from; what is wrong with it is told."""
    if memory is None:
        return False
    try:
        feed.recall(memory)
    except FileNotFoundError:
        return False
    except (OSError, ValueError) as error:
        log.warning("the zone on disk is not used", extra=fields(path=memory, why=error))
        return False
    return True


async def _worth_binding(
    places: Iterable[Place], feed: Feed, ended: asyncio.Event, grace_s: float, memory: Path | None
) -> bool:
    """Waits for the moment to bind (the module's text says which); False when the process is to end instead.

    Raises OSError at once when a stranger has the port.
    """
    wanted = tuple(places)
    for address, port in wanted:
        # Bound and not listening, a TCP socket takes nothing from siblings, yet a stranger without SO_REUSEPORT refuses it.
        bound(socket.SOCK_STREAM, address, port).close()
    begun = time.monotonic()
    tried = False
    while not feed.arrived.is_set():
        if not tried and time.monotonic() - begun >= min(MEMORY_AFTER_S, grace_s):
            tried = True
            if not any(is_taken(*place) for place in wanted) and _recalled(feed, memory):
                break
        if time.monotonic() - begun >= grace_s and not any(is_taken(*place) for place in wanted):
            break
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LOOK_EVERY_S):
                await feed.arrived.wait()
        if ended.is_set():
            return False
    return True


async def serve(
    settings: DnsSettings, path: str, *, announce: bool, grace_s: float = GRACE_S, memory: Path | None = None
) -> None:
    """Binds, says `ready` on standard output if wished, answers until SIGTERM or SIGINT. Raises OSError when it cannot bind."""
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    loop.add_signal_handler(signal.SIGHUP, lambda: None)
    counters: Counter[str] = Counter()
    async with asyncio.TaskGroup() as tasks:
        server = Server(settings, [empty_zone(flat) for flat in zone_settings(settings)], counters, tasks.create_task)
        feed = Feed(path, server, settle_memory)
        tasks.create_task(feed.run())
        tasks.create_task(follow_files(server))
        tasks.create_task(follow_kernel(f"{path}.kernel", server))
        if await _worth_binding(server.places(), feed, ended, grace_s, memory):
            await server.start()
            server.responder.upstreams.start()
            # Nothing here needs more than this once the sockets are bound, and packets may be hostile.
            if why := drop_capabilities([NET_BIND_SERVICE]):
                log.warning("the capabilities cannot be given up: %s", why)
            feed.listening()
            recorded.end()
            settle_memory()
            log.info("answering on %s port %d", ", ".join(server.settings.listen), server.settings.port)
            if announce:
                print("ready", flush=True)
            await ended.wait()
            await server.stop()
            server.responder.upstreams.close()
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
    parser.add_argument(
        "--grace", type=float, default=GRACE_S, metavar="S", help="wait so long for a zone where nobody else answers"
    )
    parser.add_argument("--memory", metavar="FILE", help="the zones on disk, for when no controller brings any")
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
        serve_chain(settings, [empty_zone(flat) for flat in zone_settings(settings)])
        Forwarders(settings, Counter())
    except (OSError, ValueError) as error:
        print(f"{options.name}: --config: {error}", file=sys.stderr)
        return 2
    gc.collect()  # what the imports left
    code, memory = 0, Path(options.memory) if options.memory else None
    try:
        run(serve(settings, options.channel, announce=options.announce, grace_s=options.grace, memory=memory))
    except* OSError as group:
        print(f"{options.name}: {group.exceptions[0]}", file=sys.stderr)
        code = 3
    return code


if __name__ == "__main__":
    sys.exit(main())
