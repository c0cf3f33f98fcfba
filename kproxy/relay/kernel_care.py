"""The care for connections that the program has opened (kernel_openings.py): they have no sockets that would do it.

In: the places of the kernel's flows, whose they are. Out: rows of Counts, `Flow`s for people, and the end of those that do not end by
themselves: a SYN that nobody answers, a peer that is gone, an endpoint whose drain is over, a worker that ends. What must not happen here:
a choice.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterator

from kproxy.relay.connection import address_text
from kproxy.relay.counts import BEGAN, OPEN, RECEIVED, SENT, Counts
from kproxy.relay.kernel_maps import FROM_CLIENT, FROM_ENDPOINT
from kproxy.relay.kernel_opened import Opened
from kproxy.relay.kernel_openings import KernelOpenings
from kproxy.relay.kernel_repeats import Repeat, Slot
from kproxy.relay.kernel_reset import Resets
from kproxy.relay.kernel_streams import ASK_AFTER_S, ASK_AGAIN_S, ASKED
from kproxy.relay.targets import Flow
from kproxy.telemetry.logs import fields

log = logging.getLogger("kproxy.relay")

_ANSWER_S = 10.0  # a SYN is older: its client has long said it again


class OpenedCare:
    """Of one TcpRelay."""

    def __init__(self, openings: KernelOpenings, counts: Counts) -> None:
        self._openings, self._opened, self._flows = openings, openings.opened, openings.opened.flows
        self._counts = counts
        self._resets = Resets()
        self._asked: dict[tuple[int, int], tuple[int, float]] = {}  # place and beginning → how often, and when last

    @property
    def open(self) -> int:
        """How many there are, those included that nobody has accepted yet."""
        return sum(1 for _ in self._mine()) if self._openings.by_ring else 0

    def _mine(self) -> Iterator[tuple[Opened, Repeat, Slot]]:
        for opened in self._opened.open():
            repeat = self._openings.by_ring.get(opened.ring)
            if repeat is not None and opened.choice < len(repeat.slots):
                slot = repeat.slots[opened.choice]
                if slot is not None:
                    yield opened, repeat, slot

    def sweep(self, now: float) -> None:
        """Once a second; 2 µs for each that is open."""
        asked, live = self._asked, dict[int, list[int]]()
        self._asked = {}
        self._openings.count(now)
        for opened, repeat, slot in [*self._mine()]:
            passed = self._flows.passed(opened.place)
            sums = live.setdefault(id(slot), [0, 0])
            sums[0] += passed.octets[0]
            sums[1] += passed.octets[1]
            if not opened.accepted:
                if now - opened.began / 1e9 > _ANSWER_S:
                    self._abort(opened, repeat, slot)
            elif self._drains(repeat, slot, now):
                self._abort(opened, repeat, slot)
            else:
                quiet_s = now - min(seen or opened.began for seen in passed.seen) / 1e9
                if quiet_s >= ASK_AFTER_S:
                    self._ask(opened, repeat, slot, asked.get((opened.place, opened.began), (0, 0.0)), now)
        for repeat in self._openings.by_ring.values():
            for one in repeat.slots:
                if one is not None:
                    self._row(one, live.get(id(one), [0, 0]))

    def _row(self, slot: Slot, live: list[int]) -> None:
        """What the rows (counts.py) do not have yet. live: octets of those that are open."""
        counted, name = slot.counted, slot.target.name
        began, more = counted.opened - slot.opened_rows, slot.open - slot.open_rows
        # What ends while it is counted may be in neither sum for a moment; the next sweep has it.
        sent = max(0, counted.sent + slot.sent + live[0] - slot.sent_rows)
        received = max(0, counted.received + slot.received + live[1] - slot.received_rows)
        if not (began or more or sent or received):
            return
        for row in (self._counts.service(name), self._counts.endpoint(name, slot.end)):
            row[BEGAN] += began
            row[OPEN] += more
            row[SENT] += sent
            row[RECEIVED] += received
        self._counts.opened += began
        slot.opened_rows, slot.open_rows = counted.opened, slot.open
        slot.sent_rows += sent
        slot.received_rows += received

    def _drains(self, repeat: Repeat, slot: Slot, now: float) -> bool:
        """Whether its endpoint is gone, and its time with it."""
        drain_s = repeat.target.drain_s
        if slot.end in repeat.target.endpoints or not drain_s:
            slot.drain_at = 0.0
        elif not slot.drain_at:
            slot.drain_at = now + drain_s
        return 0.0 < slot.drain_at <= now

    def _ask(self, opened: Opened, repeat: Repeat, slot: Slot, asked: tuple[int, float], now: float) -> None:
        """Both peers, with a number that they have had: whoever is there acknowledges what it has, which the program sees."""
        times, at = asked
        if now - at > ASK_AGAIN_S:
            if times == ASKED:
                self._abort(opened, repeat, slot)
                return
            times, at = times + 1, now
            there, back = repeat.ways(opened)
            reached = [self._flows.reached(opened.place, way) for way in (FROM_CLIENT, FROM_ENDPOINT)]
            self._resets.ask(there.leaving, reached[0] - 1, reached[1])
            self._resets.ask(back.leaving, reached[1] - 1, reached[0])
        self._asked[opened.place, opened.began] = times, at

    def _abort(self, opened: Opened, repeat: Repeat, slot: Slot) -> None:
        """Ends it; peers that had accepted each other get a reset."""
        ways = repeat.ways(opened)
        reached = [self._flows.reached(opened.place, way) for way in (FROM_CLIENT, FROM_ENDPOINT)]
        octets = self._flows.passed(opened.place).octets
        try:
            if not self._opened.end(opened, ways):
                return
        except OSError as error:
            log.warning("A connection that the kernel carries cannot be ended", extra=fields(err=error))
            return
        if not opened.accepted:
            return
        slot.ended += 1
        slot.sent += octets[0]
        slot.received += octets[1]
        self._openings.ended(slot)
        for way, number in zip(ways, reached, strict=True):
            self._resets.send(way.leaving, number)

    def flows(self, worker: int, wall: float) -> Iterator[Flow]:
        """For people. wall: the moment when the monotonic clock was 0, in seconds since the epoch."""
        for opened, repeat, slot in self._mine():
            there, _ = repeat.ways(opened)
            octets = self._flows.passed(opened.place).octets
            ended = any(self._flows.ended(opened.place))
            state = (
                "connecting"
                if not opened.accepted
                else "draining"
                if slot.drain_at
                else "half-closed"
                if ended
                else "open"
            )
            yield Flow(
                worker=worker,
                number=opened.place,
                protocol="TCP",
                client=_text(there.arriving.source, opened.client_port),
                virtual=_text(there.arriving.destination, there.arriving.destination_port),
                service=slot.target.name,
                endpoint=address_text(slot.end) if opened.accepted else "",
                source=_text(there.leaving.source, opened.own_port),
                began=wall + opened.began / 1e9,
                sent=octets[0],
                received=octets[1],
                state=state,
                in_kernel=True,
            )

    def close(self) -> None:
        """All of them end."""
        for opened, repeat, slot in [*self._mine()]:
            self._abort(opened, repeat, slot)
        self._resets.close()


def _text(address: bytes, port: int) -> str:
    return address_text((socket.inet_ntop(socket.AF_INET6 if len(address) == 16 else socket.AF_INET, address), port))
