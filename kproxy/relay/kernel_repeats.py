"""A client that opens connections to the same destination again and again, as a worker knows it.

In: what was seen of its connections. Out: what of an endpoint goes into a ring. What must not happen here: the kernel's maps.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kproxy.relay.kernel_flows import Way
from kproxy.relay.kernel_maps import Ends
from kproxy.relay.kernel_opened import Opened
from kproxy.relay.kernel_rings import Counted, RingEnd
from kproxy.relay.targets import End, Target

if TYPE_CHECKING:
    from kproxy.relay.connection import Connection

_ANSWER_S = 60.0  # so long a SYN may be answered
_NOTHING = Counted(0, 0, 0, 0, 0, 0, 0)


class Slot:
    """An endpoint of a ring. verified: when a connection last came the whole way there; counted: the program's counters, as known."""

    __slots__ = (
        "counted", "drain_at", "end", "ended", "open_rows", "opened_rows", "received", "received_rows", "ring_end", "sent", "sent_rows",
        "target", "unfit", "verified",
    )  # fmt: skip

    def __init__(self, end: End, target: Target, ring_end: RingEnd) -> None:
        self.end, self.target, self.ring_end = end, target, ring_end
        self.verified = float("-inf")
        self.drain_at = 0.0
        self.unfit = False  # it answers in a way that the program does not read
        self.begin(_NOTHING)

    def begin(self, counted: Counted) -> None:
        """From these counters on: they go on when a place of the ring gets another endpoint."""
        self.counted = counted
        self.ended = self.sent = self.received = (
            0  # of connections that the worker has ended, which the program does not count
        )
        # What the rows have already (counts.py).
        self.opened_rows, self.open_rows = counted.opened, 0
        self.sent_rows, self.received_rows = counted.sent, counted.received

    @property
    def open(self) -> int:
        """Connections, now."""
        return self.counted.opened - self.counted.ended - self.ended

    def is_over(self, now: float) -> bool:
        """Whether nothing can come of it any more, and all is told."""
        return not self.open and not self.open_rows and self.counted.asked / 1e9 < now - _ANSWER_S


class Repeat:
    """A client and its destination. name: its address and what it asked for; packet: the same, as packets have it, with any port of its
    own.

    ring: None until one endpoint is verified; link: the client's, 0: not known. watched: endpoints a connection to which is looked at;
    missed: how many in a row did not tell the client's link; rest_until: no more of them before then. fit: there is such a destination,
    and its connections may be opened by the kernel. chosen: when the ring was filled; ended: when it was said to be no more,
    connections from before tell nothing; held: whether it may be good now; used: when a connection came.
    """

    __slots__ = (
        "away", "chosen", "ended", "entry", "fit", "held", "key", "link", "missed", "name", "packet", "rest_until", "ring", "slots",
        "target", "used", "watched",
    )  # fmt: skip

    def __init__(self, name: tuple[str, End], entry: str, target: Target, packet: Ends, key: bytes, now: float) -> None:
        """packet: its ends as they come, with any port of the client. key: in the map."""
        self.name, self.entry, self.target, self.packet, self.key = name, entry, target, packet, key
        self.ring: int | None = None
        self.link = 0
        self.slots: list[Slot | None] = []
        self.away: dict[
            End, tuple[int, float]
        ] = {}  # endpoints whose link was not seen: how often, until when it is not tried
        self.watched: set[End] = set()
        self.missed = 0
        self.rest_until = self.chosen = self.ended = float("-inf")
        self.held, self.fit = False, True
        self.used = now

    @property
    def open(self) -> int:
        """Connections that came by the ring, now."""
        return sum(slot.open for slot in self.slots if slot is not None)

    def link_of(self, end: End) -> int:
        """By which an endpoint's packets have come; 0: not known."""
        return next((slot.ring_end.link for slot in self.slots if slot is not None and slot.end == end), 0)

    def ways(self, opened: Opened) -> tuple[Way, Way]:
        """Both directions of a connection of its ring."""
        slot = self.slots[opened.choice]
        assert slot is not None
        there = slot.ring_end.leaving
        near = Ends(self.packet.source, self.packet.destination, opened.client_port, self.packet.destination_port)
        far = Ends(there.source, there.destination, opened.own_port, there.destination_port)
        return Way(near, far), Way(far.turned(), near.turned())


class Watched:
    """A connection that comes the whole way, with entries that observe it. It has a Handed's place in it (kernel_streams.py).

    ended: when it was over and its links were not known yet; 0: it goes on.
    """

    __slots__ = ("connection", "ended", "forwards", "place", "repeat", "since", "ways")

    def __init__(self, repeat: Repeat, connection: Connection, place: int, ways: tuple[Way, Way], since: float) -> None:
        self.repeat, self.connection, self.place, self.ways, self.since = repeat, connection, place, ways, since
        self.forwards, self.ended = False, 0.0
