"""The part of a controller between events and rules, alive in a network namespace: snapshot, sync loop, healing, node addresses.

    with Living(node.space, variant) as kproxy:
        kproxy.hear(*objects)                 # as if the API had listed them
        kproxy.until(lambda: kproxy.whole())  # the kernel holds what is wanted

Everything runs in one thread of its own that has entered the namespace; tests read the loop's values and never change them. No API server,
no DNS: tests of the whole daemon are in the lanes lab and apiserver.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import uvloop

from kproxy.backends.iptables.apply import IptablesBackend
from kproxy.backends.iptables.guard import IptablesGuard
from kproxy.backends.iptables.tools import Tools
from kproxy.backends.iptables.variant import Variant
from kproxy.model.desired import NodeSettings
from kproxy.model.events import AddressesChanged, Event
from kproxy.model.objects import Kind, key_of
from kproxy.model.snapshot import Snapshot
from kproxy.sync.drift import DriftFound, Patience
from kproxy.sync.healing import Healer
from kproxy.sync.loop import SyncLoop, SyncOutcome
from kproxy.sync.pacer import Pacer
from kproxy.watch.addresses import watch_addresses
from tests.support.builders import Built, replaced
from tests.support.flows import LOCAL_ADDRESSES, SETTINGS, TESTNODE
from tests.support.netns import Namespace

WITHIN_S = 5.0  # what is lost is back, what changed has arrived
QUICK = Patience(period_s=0.1, full_period_s=3600.0)  # looks often, compares never


class Living:
    """One such part. patience: None for no healing. addresses: watch the namespace's own, else those of the behaviour table's node."""

    def __init__(
        self,
        space: Namespace,
        variant: Variant = Variant.NFT,
        *,
        settings: NodeSettings = SETTINGS,
        patience: Patience | None = QUICK,
        addresses: bool = False,
        tools: Callable[[Tools], Tools] = lambda tools: tools,
        max_retry_s: float = 5.0,
    ) -> None:
        self.space, self.variant = space, variant
        with space.entered():
            self.backend, self.guard = self._plane(tools)
        self.loop = SyncLoop(self.backend, self._settings_of, Pacer(max_retry_s=max_retry_s), self._no_zone)
        self.healer = Healer(self.loop, self.backend, self.guard, patience) if patience else None
        self.outcomes: list[SyncOutcome] = []
        self.found: list[DriftFound] = []
        self.loop.observers.append(self.outcomes.append)
        if self.healer:
            self.healer.observers.append(self.found.append)
        self.settings = settings
        self._addresses = addresses
        self._running: asyncio.AbstractEventLoop | None = None
        self._stop = asyncio.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="living")

    def _plane(self, tools: Callable[[Tools], Tools]) -> tuple[Any, Any]:
        """The data plane and its guard."""
        backend = IptablesBackend(variant=self.variant)
        backend.tools = tools(backend.tools)
        return backend, IptablesGuard(backend)

    def _settings_of(self, snapshot: Snapshot) -> NodeSettings:
        return self.settings

    async def _no_zone(self, snapshot: Snapshot) -> None:
        return None

    def _run(self) -> None:
        try:
            with self.space.entered(), asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(self._live())
        except BaseException as failure:
            self._failure = failure

    async def _live(self) -> None:
        self._running = asyncio.get_running_loop()
        async with asyncio.TaskGroup() as group:
            work = [self.loop.keep_snapshot(), self.loop.keep_rules()]
            work += [self.healer.keep()] if self.healer else []
            work += [watch_addresses(self.loop.emit)] if self._addresses else []
            tasks = [group.create_task(each) for each in work]
            await self._stop.wait()
            for task in tasks:
                task.cancel()

    def __enter__(self) -> Living:
        self._thread.start()
        self.until(lambda: self._running is not None)
        return self

    def __exit__(self, *_: object) -> None:
        if self._running is not None and self._thread.is_alive():
            with contextlib.suppress(RuntimeError):
                self._running.call_soon_threadsafe(self._stop.set)
        self._thread.join(30)
        assert self._failure is None, self._failure

    def emit(self, *events: Event) -> None:
        """As the watches do."""
        assert self._running is not None
        for event in events:
            self._running.call_soon_threadsafe(self.loop.emit, event)

    def hear(self, *objects: Built, settled: bool = True) -> None:
        """The lists of every kind, and, without a watch of our own, the addresses of the table's node; waits for the rules."""
        events = replaced(
            (*objects, *(() if any(key_of(o.object).kind is Kind.NODE for o in objects) else (TESTNODE,)))
        )
        if not self._addresses:
            events.append(AddressesChanged(LOCAL_ADDRESSES))
        syncs = self.loop.status.syncs
        self.emit(*events)
        if settled:
            self.until(lambda: self.loop.status.syncs > syncs and self.settled())

    def settled(self) -> bool:
        """Whether nothing waits to be written."""
        return self.loop.status.queued_since is None and not self.loop.busy and self.loop.applied is not None

    def whole(self) -> bool:
        """Whether a look at every rule finds nothing to do. For the calling thread; the loop goes on meanwhile."""
        applied = self.loop.applied
        if applied is None or not self.settled():
            return False
        with self.space.entered():
            backend = self._stranger()
            return not backend.plan(asyncio.run(backend.observe()), applied).batches

    def _stranger(self) -> Any:
        """A data plane that knows nothing of what the loop's has done."""
        return IptablesBackend(tools=self.backend.tools)

    def until(self, condition: Callable[[], bool], within_s: float = WITHIN_S) -> float:
        """Waits; how long it took, in seconds."""
        started = time.monotonic()
        while not condition():
            assert self._failure is None, self._failure
            told = f"{self.loop.status.last_error!r} {self.healer.status if self.healer else ''}"
            assert time.monotonic() < started + within_s, told
            time.sleep(0.01)
        return time.monotonic() - started


def without_waiting(tools: Tools) -> Tools:
    """Tools that give up on a held lock after a second."""
    return replace(tools, lock_wait_s=1)
