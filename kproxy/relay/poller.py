"""One epoll of our own inside the event loop: readiness of thousands of sockets without a transport, a future or a handle for any of them.

In: descriptors with a handler each. Out: calls `handler(events)` with what epoll said (EPOLLIN, EPOLLOUT, EPOLLRDHUP, EPOLLHUP, EPOLLERR).
The epoll descriptor is itself a reader of the asyncio loop, so timers, signals and the channel to the controller go on beside it: a turn
takes at most `_ROUNDS` times `TURN` events and then gives the loop back. Whether a descriptor is level- or edge-triggered is its owner's
affair: who leaves something over that no edge will tell of asks for another turn (`again`). What must not happen here: knowledge of TCP or
UDP, waiting, an exception that gets out.

A descriptor that is closed while a turn goes on may come back as another connection's before the turn ends, and stale events would then
hit the wrong one. So nobody closes inside a handler: `bury` closes when the round is over.

Measured (CPython 3.11, kernel 6.18, one busy core): hot descriptors in a selector for asyncio's own loop instead, which spares the outer
epoll, brought 2 to 3 % more requests and connections and 2 % less to 2 % more CPU for each; not worth a loop of our own beside uvloop's.
"""

from __future__ import annotations

import asyncio
import logging
import select
from collections.abc import Callable
from typing import Protocol

log = logging.getLogger("kproxy.relay")

TURN = 128  # events of one round
# When that many were ready, more have come meanwhile: asking again at once spares a turn of the loop, which costs two system calls and
# some microseconds (4 % of a request on a busy core). No more rounds than these, so that a turn remains some milliseconds of work.
_BUSY, _ROUNDS = 4, 3
_LOGGED = 20  # tracebacks of one poller; what goes wrong more often than that is counted only
Handler = Callable[[int], None]


class Closeable(Protocol):
    """What `bury` takes: a socket."""

    def close(self) -> object: ...


class Poller:
    """The sockets of one worker. `failures`: exceptions that left a handler, each a fault of ours."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.failures = 0
        self._epoll = select.epoll()
        self._handlers: dict[int, Handler] = {}
        self._buried: list[Closeable] = []
        self._again: dict[Callable[[], None], None] = {}
        self._turning = False
        loop.add_reader(self._epoll.fileno(), self._turn)

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
        """No more events for `fd`, this turn's included; it stays open. Unknown descriptors are no error."""
        if self._handlers.pop(fd, None) is not None:
            try:
                self._epoll.unregister(fd)
            except OSError:
                log.debug("descriptor %d was closed before it was dropped", fd)

    def bury(self, fd: int, sock: Closeable) -> None:
        """No more events for `fd`, and `sock`, its owner, is closed when the turn is over (at once outside of a turn)."""
        self._handlers.pop(fd, None)
        if self._turning:
            self._buried.append(sock)
        else:
            sock.close()

    def again(self, work: Callable[[], None]) -> None:
        """Calls `work` in the next turn, once: for who is edge-triggered and has left something over."""
        if not self._again:
            self.loop.call_soon(self._catch_up)
        self._again[work] = None

    def tell(self, what: str) -> None:
        """Counts the exception that is being handled, and tells of it unless too many were told already."""
        self.failures += 1
        if self.failures <= _LOGGED:
            log.exception(what)

    def close(self) -> None:
        """Ends. Sockets stay open."""
        self.loop.remove_reader(self._epoll.fileno())
        self._epoll.close()
        self._handlers.clear()
        self._again.clear()

    def _turn(self) -> None:
        handlers = self._handlers
        self._turning = True
        for _ in range(_ROUNDS):
            ready = self._epoll.poll(0, TURN)
            for fd, events in ready:
                handler = handlers.get(fd)
                if handler is None:  # dropped or buried in this turn
                    continue
                try:
                    handler(events)
                except Exception:
                    self.tell("a handler failed; its descriptor is not watched any more")
                    self.drop(fd)
            if self._buried:
                self._close_buried()
            if len(ready) < _BUSY:
                break
        self._turning = False

    def _catch_up(self) -> None:
        """What was left over, once in a turn of the loop whatever epoll says meanwhile."""
        again, self._again = self._again, {}
        self._turning = True
        for work in again:
            try:
                work()
            except Exception:
                self.tell("work that was left over failed")
        self._close_buried()
        self._turning = False

    def _close_buried(self) -> None:
        buried, self._buried = self._buried, []
        for sock in buried:
            sock.close()
