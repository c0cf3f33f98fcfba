"""kproxy's own way from an API server to its workers, without the rest of a controller: watch client, reflectors, compiler, publisher.

Runs in the loop of `Workers`. Nothing in here replaces code of ours: it is what the controller wires together.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager, suppress
from dataclasses import replace

from kproxy.app_dns import demands_of
from kproxy.config.config import ClientSettings
from kproxy.dns.settings import DnsSettings
from kproxy.dns.zone import Zone
from kproxy.dns.zones import compile_zones
from kproxy.model.events import Event
from kproxy.model.snapshot import Snapshot, fold
from kproxy.watch.client import connect
from kproxy.watch.reflector import RESOURCES, WatchStats, reflect
from tests.support.dns_worker import Workers, wait_until


class Watching:
    """Follows one API server with one configuration. zones: what the workers have been sent."""

    def __init__(self, workers: Workers, url: str, settings: DnsSettings) -> None:
        self.workers = workers
        self.url = url
        port = workers.settings.port
        blocks = tuple(replace(block, port=port) for block in settings.blocks)
        self.settings = replace(settings, listen=workers.settings.listen, port=port, blocks=blocks)
        self.snapshot = Snapshot()
        self.zones: tuple[Zone, ...] = ()
        self._arrived = asyncio.Event()

    def emit(self, event: Event) -> None:
        """Takes what a reflector has heard."""
        self.snapshot = fold(self.snapshot, [event])
        self._arrived.set()

    async def run(self) -> None:
        """Watches and publishes until it is cancelled."""
        resources = RESOURCES("node-1", demands_of(self.settings))
        async with connect(ClientSettings(master=self.url)) as api, asyncio.TaskGroup() as tasks:
            for resource in resources:
                work = reflect(
                    api,
                    resource,
                    self.emit,
                    now=time.monotonic,
                    sleep=asyncio.sleep,
                    random=random.random,
                    stats=WatchStats(resource.kind),
                )
                tasks.create_task(work)
            wanted = {resource.kind for resource in resources}
            while True:
                await self._arrived.wait()
                self._arrived.clear()
                if wanted <= self.snapshot.synced:
                    serial = int(time.time())
                    zones = compile_zones(self.snapshot, self.settings, self.zones, serial=serial)
                    publisher = self.workers.publisher
                    assert publisher is not None
                    await publisher.publish(*zones, settings=self.settings)
                    await publisher.delivered()
                    self.zones = zones


@contextmanager
def watching(workers: Workers, url: str, settings: DnsSettings) -> Iterator[Watching]:
    """Lets the workers follow the API server at `url` while the block runs; they answer from it when it begins."""
    found = Watching(workers, url, settings)
    alive = sum(process.poll() is None for process in workers.processes)
    wait_until(lambda: len(workers.status()) == alive, "the workers did not connect")
    future = asyncio.run_coroutine_threadsafe(found.run(), workers.loop)
    try:
        wait_until(lambda: bool(found.zones) or future.done(), "everything is listed and sent", timeout_s=20)
        if future.done():
            future.result()
        workers.ready()
        yield found
    finally:
        future.cancel()
        with suppress(CancelledError):
            future.result(timeout=10)
