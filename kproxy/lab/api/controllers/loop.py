"""The one loop that runs all controllers.

What comes in: every change of the store. A controller says which keys a change concerns, the loop remembers them (each once, in order) and
calls `reconcile(key)` until none is left. A controller may ask to be called again later. What must not happen here: waiting inside a
reconcile; a change made by one controller is seen by the others as a new key.
"""

from __future__ import annotations

import asyncio
import heapq
import logging
from collections.abc import Callable, Iterable
from typing import Protocol

from kproxy.lab.api.kinds import Resource
from kproxy.lab.api.status import ApiError
from kproxy.lab.api.store import Change, Key, Store

log = logging.getLogger(__name__)

BATCH = 20  # keys worked on before requests get their turn
SETTLE_LIMIT = 200_000  # a bug that makes two controllers undo each other's work must end a test, not hang it


class Controller(Protocol):
    """One controller."""

    def concerned(self, resource: Resource, change: Change) -> Iterable[Key]:
        """The keys a change concerns; cheap, it runs for every change."""

    def reconcile(self, key: Key) -> float | None:
        """Make the world agree for one key. Returns seconds until it wants to look again, or None."""


class Controllers:
    """The queue of keys and the loop over it. `clock` gives seconds."""

    def __init__(self, store: Store, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._controllers: list[Controller] = []
        self._queue: dict[tuple[int, Key], None] = {}
        self._timers: list[tuple[float, int, Key]] = []
        self._wake = asyncio.Event()
        store.subscribe(self._notice)

    def add(self, controller: Controller) -> None:
        """Run a controller from now on."""
        self._controllers.append(controller)

    def _notice(self, resource: Resource, change: Change) -> None:
        for number, controller in enumerate(self._controllers):
            for key in controller.concerned(resource, change):
                self._queue[(number, key)] = None
        self._wake.set()

    def _step(self) -> bool:
        """Work on one key; False when there is nothing to do."""
        now = self._clock()
        while self._timers and self._timers[0][0] <= now:
            _, number, key = heapq.heappop(self._timers)
            self._queue[(number, key)] = None
        if not self._queue:
            return False
        number, key = next(iter(self._queue))
        del self._queue[(number, key)]
        controller = self._controllers[number]
        try:
            again = controller.reconcile(key)
        except ApiError as error:
            # The API refuses what the controller wants, for example in a namespace that is going. Whatever changes that wakes us.
            log.debug("%s %s: %s", type(controller).__name__, key, error.message)
            again = None
        if again is not None:
            heapq.heappush(self._timers, (now + again, number, key))
        return True

    def settle(self) -> int:
        """Work until nothing is left to do now; returns the number of steps. For tests, and at the start."""
        for steps in range(SETTLE_LIMIT):
            if not self._step():
                return steps
        raise RuntimeError("the controllers do not come to rest: " + ", ".join(map(str, list(self._queue)[:5])))

    async def run(self) -> None:
        """Work for ever, a few keys at a time."""
        while True:
            self._wake.clear()
            for _ in range(BATCH):
                if not self._step():
                    break
            if self._queue:
                await asyncio.sleep(0)
                continue
            left = max(0.0, self._timers[0][0] - self._clock()) if self._timers else None
            try:
                await asyncio.wait_for(self._wake.wait(), left)
            except TimeoutError:
                continue
