"""The event loop of a relay worker: one epoll for thousands of sockets with a handler each, and for asyncio's few beside them.

In: descriptors with a handler each. Out: calls `handler(events)` with what epoll said (EPOLLIN, EPOLLOUT, EPOLLRDHUP, EPOLLHUP, EPOLLERR).
The Poller is the selector of asyncio's own loop (`Loop`), for which timers, signals and the channel to the controller are enough; it goes
on with rounds of its own inside `select` until asyncio has something to do: a timer is due, a descriptor of asyncio's is ready, or somebody
has asked for a call. A round takes at most `TURN` events, so that is looked at every few milliseconds however much comes. Whether a
descriptor is level- or edge-triggered is its owner's affair: who leaves something over that no edge will tell of asks for another round
(`again`). What must not happen here: knowledge of TCP or UDP, waiting in a handler, an exception that gets out.

A descriptor that is closed while a round goes on may come back as another connection's before the round ends, and stale events would then
hit the wrong one. So nobody closes inside a handler: `bury` closes when the round is over.
"""

from __future__ import annotations

import asyncio
import logging
import select
import selectors
import time
from collections.abc import Callable, Coroutine, Mapping
from contextvars import Context
from selectors import EVENT_READ, EVENT_WRITE, SelectorKey
from typing import Any, Protocol

log = logging.getLogger("kproxy.relay")

TURN = 128  # events of one round
_LONGEST_S = 3600.0  # that one `select` waits: asyncio asks again
_LOGGED = 20  # tracebacks of one poller; what goes wrong more often than that is counted only
Handler = Callable[[int], None]


class Closeable(Protocol):
    """What `bury` takes: a socket."""

    def close(self) -> object: ...


class HasFileno(Protocol):
    """What asyncio may watch besides a number."""

    def fileno(self) -> int: ...


class Poller(selectors.BaseSelector):
    """The sockets of one worker. `failures`: exceptions that left a handler, each a fault of ours."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.failures = 0
        self._epoll = select.epoll()
        self._handlers: dict[int, Handler] = {}
        self._keys: dict[int, SelectorKey] = {}  # asyncio's
        self._buried: list[Closeable] = []
        self._again: dict[Callable[[], None], None] = {}
        self._turning = self._asked = False

    # --- for the relays ---------------------------------------------------------------------------------------------------------------

    def add(self, fd: int, events: int, handler: Handler) -> None:
        """Calls `handler(events)` whenever one of `events` (or EPOLLHUP, EPOLLERR) holds for `fd`."""
        self._epoll.register(fd, events)
        self._handlers[fd] = handler

    def change(self, fd: int, events: int) -> None:
        """Other events from now on; 0 leaves EPOLLHUP and EPOLLERR, which cannot be turned off."""
        self._epoll.modify(fd, events)

    def put(self, fd: int, events: int, handler: Handler) -> None:
        """`add`, or `change` of events and handler: whatever was the case before."""
        if fd in self._handlers:
            self._epoll.modify(fd, events)
        else:
            self._epoll.register(fd, events)
        self._handlers[fd] = handler

    def drop(self, fd: int) -> None:
        """No more events for `fd`, this round's included; it stays open. Unknown descriptors are no error."""
        if self._handlers.pop(fd, None) is not None:
            try:
                self._epoll.unregister(fd)
            except OSError:
                log.debug("descriptor %d was closed before it was dropped", fd)

    def bury(self, fd: int, sock: Closeable) -> None:
        """No more events for `fd`, and `sock`, its owner, is closed when the round is over (at once outside of one)."""
        self._handlers.pop(fd, None)
        if self._turning:
            self._buried.append(sock)
        else:
            sock.close()

    def again(self, work: Callable[[], None]) -> None:
        """Calls `work` when this round is over, once: for who is edge-triggered and has left something over."""
        self._again[work] = None

    def tell(self, what: str) -> None:
        """Counts the exception that is being handled, and tells of it unless too many were told already."""
        self.failures += 1
        if self.failures <= _LOGGED:
            log.exception(what)

    def leave(self) -> None:
        """Forgets all handlers. Sockets stay open."""
        for fd in [*self._handlers]:
            self.drop(fd)
        self._again.clear()

    # --- for asyncio ------------------------------------------------------------------------------------------------------------------

    def asked(self) -> None:
        """Asyncio has something to do now, or may have before it said: `select` returns after this round."""
        self._asked = True

    def register(self, fileobj: int | HasFileno, events: int, data: Any = None) -> SelectorKey:
        """As selectors.EpollSelector does."""
        key = SelectorKey(fileobj, _number(fileobj), events, data)
        self._epoll.register(key.fd, _asked_for(events))
        self._keys[key.fd] = key
        return key

    def unregister(self, fileobj: int | HasFileno) -> SelectorKey:
        """Likewise."""
        key = self._keys.pop(_number(fileobj))
        try:
            self._epoll.unregister(key.fd)
        except OSError:
            log.debug("descriptor %d was closed before it was dropped", key.fd)
        return key

    def modify(self, fileobj: int | HasFileno, events: int, data: Any = None) -> SelectorKey:
        """Likewise."""
        old = self._keys[_number(fileobj)]
        if events != old.events:
            self._epoll.modify(old.fd, _asked_for(events))
        key = self._keys[old.fd] = old._replace(events=events, data=data)
        return key

    def get_key(self, fileobj: int | HasFileno) -> SelectorKey:
        """Likewise: KeyError for what asyncio does not watch."""
        return self._keys[_number(fileobj)]

    def get_map(self) -> Mapping[Any, SelectorKey]:
        """By descriptor."""
        return self._keys

    def close(self) -> None:
        """Ends, with the loop."""
        self._epoll.close()
        self._handlers.clear()
        self._keys.clear()
        self._again.clear()

    def select(self, timeout: float | None = None) -> list[tuple[SelectorKey, int]]:
        """Has handlers called until asyncio has something to do: what of its descriptors is ready."""
        poll, handlers, keys, clock = self._epoll.poll, self._handlers, self._keys, time.monotonic
        wait = _LONGEST_S if timeout is None else min(max(0.0, timeout), _LONGEST_S)
        until = clock() + wait
        found: list[tuple[SelectorKey, int]] = []
        self._asked, self._turning = False, True
        while True:
            ready = poll(0 if self._again else wait, TURN)
            for fd, events in ready:
                try:
                    handler = handlers[fd]
                except KeyError:  # asyncio's, or dropped or buried in this round
                    if fd in keys:
                        found.append((keys[fd], _told(events) & keys[fd].events))
                    continue
                try:
                    handler(events)
                except Exception:
                    self.tell("a handler failed; its descriptor is not watched any more")
                    self.drop(fd)
            if self._buried:
                self._close_buried()
            if self._again:
                self._catch_up()
            elif not ready:
                break
            if found or self._asked:
                break
            wait = until - clock()
            if wait <= 0:
                break
        self._turning = False
        return found

    def _catch_up(self) -> None:
        """What was left over, once in a round whatever epoll says meanwhile."""
        again, self._again = self._again, {}
        for work in again:
            try:
                work()
            except Exception:
                self.tell("work that was left over failed")
        self._close_buried()

    def _close_buried(self) -> None:
        buried, self._buried = self._buried, []
        for sock in buried:
            sock.close()


class Loop(asyncio.SelectorEventLoop):
    """Asyncio's loop, whose selector is the Poller: whatever is asked of it inside a handler is done after the round.

    Measured (CPython 3.11, kernel 6.18): the Poller's epoll as a descriptor of uvloop's, as it was, cost two turns through the kernel and
    one through uvloop for three requests, and a second wake-up for each event.
    """

    def __init__(self) -> None:
        self.poller = Poller(self)
        super().__init__(self.poller)

    def call_soon(  # type: ignore[override]  # typeshed ties the arguments to what is called
        self, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.Handle:
        """As asyncio's."""
        self.poller.asked()
        return super().call_soon(callback, *args, context=context)

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        """As asyncio's."""
        self.poller.asked()
        return super().call_at(when, callback, *args, context=context)


def run(main_task: Coroutine[Any, Any, None]) -> None:
    """Runs `main_task` to its end, in a loop with a Poller."""
    with asyncio.Runner(loop_factory=Loop) as runner:
        runner.run(main_task)


def poller() -> Poller:
    """The running loop's."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, Loop)
    return loop.poller


def _number(fileobj: int | HasFileno) -> int:
    return fileobj if isinstance(fileobj, int) else fileobj.fileno()


def _asked_for(events: int) -> int:
    return (select.EPOLLIN if events & EVENT_READ else 0) | (select.EPOLLOUT if events & EVENT_WRITE else 0)


def _told(events: int) -> int:
    """As asyncio takes it: an error wakes readers and writers."""
    reading = EVENT_READ if events & ~select.EPOLLOUT else 0
    return reading | (EVENT_WRITE if events & ~select.EPOLLIN else 0)
