"""What the kernel does for one TcpRelay: it carries connections that are open (kernel_streams.py), and opens such as come again and again
(kernel_openings.py, kernel_care.py).

In: connections of the relay, its clock, chooser and counters; the kernel's flows. Out: how many there are, and room for others. What must
not happen here: more than passing on; a fault of what is done beside the relaying ends no connection.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from typing import TYPE_CHECKING

from kproxy.relay.counts import Counts
from kproxy.relay.kernel_care import OpenedCare
from kproxy.relay.kernel_flows import KernelFlows
from kproxy.relay.kernel_opened import OpenedFlows
from kproxy.relay.kernel_openings import Ahead, KernelOpenings
from kproxy.relay.kernel_repeats import Watched
from kproxy.relay.kernel_streams import LOOK_S, Handed, KernelStreams
from kproxy.relay.poller import Poller
from kproxy.relay.targets import End, Flow, Target

if TYPE_CHECKING:
    from kproxy.relay.connection import Connection


class KernelSide:
    """Of one TcpRelay, from its making to `close`. opened: connections that the kernel has opened, as of the last look."""

    def __init__(
        self,
        flows: KernelFlows,
        opened: OpenedFlows | None,
        parts: tuple[Poller, Ahead, Counts, Callable[[], float]],
        fresh: Iterable[Connection],
        room: Callable[[], int],
    ) -> None:
        """parts: the relay's. fresh: its young connections, as they are at any time. room: how many more it may have."""
        self._poller, chooser, counts, self._now = parts
        self._fresh, self._room = fresh, room
        self.streams = KernelStreams(flows, self._now, self._poller)
        self.openings = None if opened is None else KernelOpenings(opened, chooser, counts, self._now)
        self.care = None if self.openings is None else OpenedCare(self.openings, counts)
        self._open = True
        self._look()

    @property
    def opened(self) -> int:
        """Connections that the kernel has opened, as of the last look."""
        return self.openings.open if self.openings is not None else 0

    @property
    def opened_now(self) -> int:
        """The same, counted."""
        return self.care.open if self.care is not None else 0

    @property
    def carried(self) -> int:
        """Connections that the kernel carries, whoever opened them."""
        return self.streams.forwarded + self.opened_now

    def came(self, connection: Connection, peer: End, asked: End, now: float) -> None:
        """It has its endpoint, and nothing has passed yet."""
        if self.openings is not None:
            self.openings.came(connection, peer, asked, now)

    def take_back(self, handed: Handed | Watched) -> None:
        """Its connection ends: the kernel forgets it."""
        if isinstance(handed, Handed):
            self.streams.let_go(handed)
        elif self.openings is not None:
            self.openings.over(handed, self._now())

    def seen_ended(self, handed: Handed | Watched | None) -> bool:
        """Whether the kernel has seen one of its peers end."""
        return isinstance(handed, Handed) and self.streams.half_closed(handed)

    def flows(self, worker: int, wall: float) -> Iterator[Flow]:
        """Connections that the kernel has opened, for people; the others are the relay's to tell of."""
        if self.care is not None:
            yield from self.care.flows(worker, wall)

    def use(self, find: Callable[[str, Target, End], Target | None]) -> None:
        """The table is another (KernelOpenings.use)."""
        if self.openings is not None:
            self.openings.use(find)

    def renew(self, names: Collection[str] | None) -> None:
        """Rules for these ServicePorts are others; None: for all."""
        if self.openings is not None:
            self.openings.renew(names)

    def stop(self) -> None:
        """The kernel opens no more connections for this worker; those that it has opened go on."""
        if self.openings is not None:
            self.openings.stop()

    def sweep(self, now: float) -> None:
        """About once a second."""
        self.streams.sweep(now)
        if self.care is not None and self.openings is not None:
            self.care.sweep(now)
            self.openings.sweep(now)

    def close(self) -> None:
        """Connections that the kernel carries end."""
        self._open = False
        if self.care is not None and self.openings is not None:
            self.openings.stop()  # first, that none begins which nobody would end
            self.care.close()
            self.openings.close()
        self.streams.close()

    def _look(self) -> None:
        if not self._open:
            return
        try:
            busy = self.streams.look(self._fresh)
            if self.openings is not None:
                busy |= self.openings.look(self._now(), self._room())
        except Exception:
            self._poller.tell("connections could not be looked at")
            busy = False
        self._poller.loop.call_later(LOOK_S if busy else 5 * LOOK_S, self._look)
