"""Time that passes only when nothing else happens: minutes of waiting in milliseconds, in the order in which they would be waited.

time = VirtualTime()
… reflect(api, …, now=time.now, sleep=time.sleep) …
await time.until(600)
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable
from itertools import count

_QUIET_S = 0.004  # real seconds without a step: loopback answers, or refuses, well within
_IDLE_STEPS = 75  # so many of them with nobody asleep: then nobody is at work either


class VirtualTime:
    """A clock and its sleepers."""

    def __init__(self) -> None:
        self._now = 0.0
        self._order = count()
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self.slept: list[float] = []

    def now(self) -> float:
        """Seconds since the beginning."""
        return self._now

    def move(self, seconds: float) -> None:
        """Lets time pass at once; sleepers whose time has come wake at the next step of `until`."""
        self._now += seconds

    async def sleep(self, seconds: float) -> None:
        """Waits until the clock has moved on by so much."""
        self.slept.append(seconds)
        woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self._now + seconds, next(self._order), woken))
        await woken

    async def until(self, then: float, also: Callable[[], bool] | None = None) -> None:
        """Lets time pass up to `then`, each sleeper waking at his time, one after the other; or until `also()` holds.

        With `also` time stands still while nobody sleeps: somebody is at work then, in real time.
        """
        idle = 0
        while also is None or not also():
            await asyncio.sleep(_QUIET_S)
            while self._sleepers and self._sleepers[0][2].done():  # cancelled
                heapq.heappop(self._sleepers)
            idle = 0 if self._sleepers else idle + 1
            if idle > 0 and (also is not None or idle < _IDLE_STEPS):
                continue
            if not self._sleepers or self._sleepers[0][0] > then:
                self._now = max(self._now, then)
                return
            due, _, woken = heapq.heappop(self._sleepers)
            self._now = max(self._now, due)
            woken.set_result(None)
