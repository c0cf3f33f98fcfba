"""Rings for clients that connect again and again: who gets one, whom it names, and for how long.

In: every connection that a worker has opened (`came`), the Chooser, the kernel's flows. Out: rings (kernel_rings.py), by which the program
opens the next connections of that client, to endpoints that the chooser has picked in advance. What must not happen here: a connection
that the node's rules or the chooser would not have let be.

    often      `OFTEN` connections of one client to one destination within a second: it gets a Repeat
    watched    a connection of it that comes the whole way: entries that only observe tell by which links client and endpoint speak
    verified   an endpoint to which such a connection came. Those of the last `FRESH_S` are in the ring
    held       the ring is good for `HOLD_S` from the beginning of the last such connection

So nothing is opened by the kernel that did not come through rules, sockets and worker a moment before: one in `TURN` always does, and when
rules, a policy or an endpoint say no from now on, the ring has ended within a second. Balancing, affinity and ejections are the chooser's,
asked for `TURN` connections ahead, twenty times a second at most; what is open by rings counts with it as well.

Not for: destinations with a PROXY header or with clients' own addresses, clients from other machines and of the node itself.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection
from dataclasses import replace
from random import getrandbits
from typing import TYPE_CHECKING, Protocol

from kproxy.relay import kernel_maps as layout
from kproxy.relay import kernel_rings as rings
from kproxy.relay.choosing import Choosing
from kproxy.relay.counts import FAILED, Counts
from kproxy.relay.kernel_flows import Way
from kproxy.relay.kernel_maps import FROM_CLIENT, FROM_ENDPOINT
from kproxy.relay.kernel_numbers import can_be_opened, info_of
from kproxy.relay.kernel_opened import OpenedFlows, repeat_key
from kproxy.relay.kernel_repeats import Repeat, Slot, Watched
from kproxy.relay.kernel_reset import Resets
from kproxy.relay.kernel_rings import Counted, RingEnd
from kproxy.relay.kernel_streams import ways_of
from kproxy.relay.targets import INSIDE, End, Target
from kproxy.telemetry.logs import fields

if TYPE_CHECKING:
    from kproxy.relay.connection import Connection

log = logging.getLogger("kproxy.relay")

OFTEN = 16  # connections within a second
HOLD_S, FRESH_S = 1.0, 3.0
_IDLE_S = 10.0  # then it has no ring any more
_NAMES = 4096  # clients and destinations that are counted at once
_WATCHED = rings.ENDS  # connections of one Repeat, each to another endpoint
_WATCHED_S = 0.25  # one that lasts is left alone after that
_LAST_S = 0.02  # from the end of one until its peers have said their last
_AGAIN_S = 0.1  # so soon an endpoint need not be verified again
_CHOOSE_S = 0.05
_REST_S = 2.0
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.25, 16.0
_PORTS = 128  # at first


class Ahead(Choosing, Protocol):
    """What is asked of the chooser here besides."""

    def ahead(self, target: Target, client: str, now: float, count: int) -> list[End]: ...
    def opened(self, target: Target, end: End, more: int) -> None: ...


class KernelOpenings:
    """Of one TcpRelay. stopped: no ring is to hold any more. open: connections by rings, as of the last look."""

    def __init__(self, opened: OpenedFlows, chooser: Ahead, counts: Counts, now: Callable[[], float]) -> None:
        """now: monotonic seconds."""
        self.opened, self._flows = opened, opened.flows
        self._chooser, self._counts, self._now = chooser, counts, now
        self._seen: dict[tuple[str, End], int | Repeat] = {}
        self._watched: dict[Watched, None] = {}
        self.by_ring: dict[int, Repeat] = {}
        self._resets = Resets()
        self.stopped = False
        self.open = 0

    # --- connections that come the whole way ----------------------------------------------------------------------------------------------

    def came(self, connection: Connection, peer: End, asked: End, now: float) -> None:
        """A connection has its endpoint, and nothing has passed yet. 0.3 µs for nearly all."""
        name = peer[0], asked
        found = self._seen.get(name)
        if found is None:
            if len(self._seen) < _NAMES:
                self._seen[name] = 1
        elif found.__class__ is not int:
            repeat: Repeat = found  # type: ignore[assignment]
            if len(repeat.watched) < _WATCHED and repeat.rest_until <= now and repeat.fit:
                self._watch(repeat, connection, now)
        elif found <= OFTEN:
            self._seen[name] = found + 1
            if found == OFTEN and connection.entry == INSIDE and not self.stopped:  # once in a second
                self._begin(name, connection, now)

    @property
    def repeats(self) -> list[Repeat]:
        """All that there are."""
        return [one for one in self._seen.values() if isinstance(one, Repeat)]

    def _begin(self, name: tuple[str, End], connection: Connection, now: float) -> None:
        target = connection.target
        if target.proxy_protocol or target.preserve_source or len(self.repeats) >= rings.PER_WORKER:
            return
        try:
            packet = ways_of(connection)[0].arriving
        except (OSError, ValueError):
            return
        self._seen[name] = repeat = Repeat(name, connection.entry, target, packet, repeat_key(packet), now)
        self._watch(repeat, connection, now)

    def _watch(self, repeat: Repeat, connection: Connection, now: float) -> None:
        """Looks at this one, if it can tell something new."""
        end = connection.endpoint
        slot = next((slot for slot in repeat.slots if slot is not None and slot.end == end), None)
        fresh = slot is not None and (slot.unfit or now - slot.verified < _AGAIN_S)
        away = end in repeat.away and repeat.away[end][1] > now
        if fresh or away or end in repeat.watched or connection.handed is not None or self.stopped:
            return
        place = self._flows.take()
        if place is None:
            return
        try:
            ways = ways_of(connection)
            if not can_be_opened(info_of(connection.client.sock), info_of(connection.server.sock)):
                raise ValueError("its options are others")
            self._flows.put(place, layout.TCP, ways, layout.OBSERVE)
        except (OSError, ValueError) as error:
            log.debug("a connection is not watched", extra=fields(err=error))
            self._flows.give_back(place)
            repeat.rest_until = now + _REST_S
            return
        self._ask(repeat, slot, ways)
        repeat.watched.add(end)
        connection.handed = watched = Watched(repeat, connection, place, ways, now)
        self._watched[watched] = None

    def _ask(self, repeat: Repeat, slot: Slot | None, ways: tuple[Way, Way]) -> None:
        """Who may have said everything already is made to say something: a number that is none of the connection's is answered with its own
        (RFC 9293, 3.10.7.4).
        """
        for known, way in ((slot is not None, ways[FROM_CLIENT]), (repeat.link != 0, ways[FROM_ENDPOINT])):
            if not known:
                self._resets.ask(way.leaving, getrandbits(32), getrandbits(32))

    def over(self, watched: Watched, now: float) -> None:
        """Its connection has ended. Where somebody has said everything before it was watched, his last acknowledgement is yet to come."""
        watched.ended = now
        if all(self._flows.links(watched.place)):
            self._saw(watched, now)

    def _saw(self, watched: Watched, now: float) -> None:
        """It is watched no more: its links are known, or there are none."""
        del self._watched[watched]
        watched.connection.handed = None
        repeat, end = watched.repeat, watched.connection.endpoint
        repeat.watched.discard(end)
        links, state = self._flows.links(watched.place), self._flows.state(watched.place)
        self._flows.end(watched.place, layout.TCP, watched.ways)
        client, server = links[FROM_CLIENT] or repeat.link, links[FROM_ENDPOINT] or repeat.link_of(end)
        if state != layout.OBSERVE or not client:
            # Somebody else's packets came as well; or none by a link with the program, or none at all after it was watched.
            repeat.missed += 1
            repeat.rest_until = now + _pause_s(repeat.missed)
        elif not server:
            missed = repeat.away[end][0] + 1 if end in repeat.away else 1
            repeat.away[end] = missed, now + _pause_s(missed)
        elif self._seen.get(repeat.name) is repeat and repeat.ended < watched.since and end in repeat.target.endpoints:
            self._verified(repeat, watched, (client, server), now)

    # --- rings --------------------------------------------------------------------------------------------------------------------------

    def _verified(self, repeat: Repeat, watched: Watched, links: tuple[int, int], now: float) -> None:
        """A connection came the whole way to an endpoint, and its links are known."""
        try:
            if repeat.ring is None and not self._has_ring(repeat):
                repeat.rest_until = now + _REST_S
                return
            if repeat.link != links[FROM_CLIENT]:  # it is somebody else who has this address now
                self._end(repeat)
                repeat.link = links[FROM_CLIENT]
            slot = self._slot(repeat, watched, links[FROM_ENDPOINT])
        except OSError as error:
            log.debug("no ring", extra=fields(err=error))
            repeat.rest_until = now + _REST_S
            return
        if slot is None:
            return
        known = now - slot.verified < FRESH_S
        slot.verified, repeat.used = watched.since, now
        repeat.missed = 0
        repeat.away.pop(slot.end, None)
        if 0 < slot.counted.asked < watched.since * 1e9:  # it owed an answer, and has spoken since
            self._count(repeat, now)
            self.opened.forgive(self._ring(repeat), repeat.slots.index(slot))
            known = False
        if not known or not repeat.held or now - repeat.chosen >= _CHOOSE_S:
            self._choose(repeat, now)
        if not self.stopped:
            repeat.held = True
            left_s = HOLD_S - (now - watched.since)
            self.opened.hold(self._ring(repeat), time.monotonic_ns() + int(left_s * 1e9))

    def _has_ring(self, repeat: Repeat) -> bool:
        ring = self.opened.take()
        if ring is None:
            return False
        if not self.opened.lead(ring, repeat.key):  # another worker has one for this client
            self.opened.give_back(ring, repeat.key)
            return False
        repeat.ring = ring
        self.by_ring[ring] = repeat
        if not self.opened.room:
            self.opened.grow(_PORTS)
        return True

    def _ring(self, repeat: Repeat) -> int:
        assert repeat.ring is not None
        return repeat.ring

    def _slot(self, repeat: Repeat, watched: Watched, link: int) -> Slot | None:
        """The endpoint's place in the ring; None when all are taken."""
        there, end = watched.ways[0], watched.connection.endpoint
        ring_end = RingEnd(there.arriving, there.leaving, link)
        for number, slot in enumerate(repeat.slots):
            if slot is not None and slot.end == end:
                if slot.ring_end.octets() != ring_end.octets():
                    slot.ring_end = ring_end
                    self.opened.set_end(self._ring(repeat), number, ring_end.octets())
                return slot
        number = next((number for number, slot in enumerate(repeat.slots) if slot is None), len(repeat.slots))
        if number == rings.ENDS:
            return None
        slot = Slot(end, repeat.target, ring_end)
        slot.begin(self.opened.counted(self._ring(repeat), number))
        repeat.slots[number : number + 1] = [slot]
        self.opened.set_end(self._ring(repeat), number, ring_end.octets())
        self.opened.forgive(self._ring(repeat), number)
        return slot

    def _choose(self, repeat: Repeat, now: float) -> None:
        """The next connections' endpoints. The first one goes the whole way, to be verified."""
        repeat.chosen = now
        fit = {
            slot.end: number
            for number, slot in enumerate(repeat.slots)
            if slot is not None and not slot.unfit and now - slot.verified < FRESH_S and not _owes(slot.counted)
        }
        picked = self._chooser.ahead(repeat.target, repeat.name[0], now, rings.TURN - 1)
        choices = bytes((rings.WHOLE_WAY, *(fit.get(end, rings.WHOLE_WAY) for end in picked)))
        self.opened.choose(self._ring(repeat), repeat.link, choices)

    def _end(self, repeat: Repeat) -> None:
        """The next connections come the whole way, until one of them has verified an endpoint."""
        repeat.held, repeat.ended = False, self._now()
        for slot in repeat.slots:
            if slot is not None:
                slot.verified = float("-inf")
        if repeat.ring is not None:
            self.opened.hold(repeat.ring, 0)

    # --- from time to time ----------------------------------------------------------------------------------------------------------------

    def look(self, now: float, room: int) -> bool:
        """Every 50 ms while it says so: what the program did counts with the chooser. room: as many may be open by rings."""
        for watched in [*self._watched]:
            if now - watched.since > _WATCHED_S or 0.0 < watched.ended < now - _LAST_S:
                self._saw(watched, now)
        self.count(now)
        self.open = sum(repeat.open for repeat in self.by_ring.values())
        if self.open >= room:
            for repeat in self.by_ring.values():
                self._end(repeat)
        elif self.by_ring and 2 * self.open >= self.opened.room:
            try:
                self.opened.grow(max(_PORTS, 2 * self.opened.room))
            except OSError as error:
                log.debug("no more ports", extra=fields(err=error))
        return bool(self._watched or self.by_ring)

    def count(self, now: float) -> None:
        """What the program has done up to now is known of every endpoint; a ring that names one which fails is filled anew."""
        for repeat in self.by_ring.values():
            if self._count(repeat, now):
                self._choose(repeat, now)

    def _count(self, repeat: Repeat, now: float) -> bool:
        """Brings its endpoints up to now; whether one has failed since."""
        failed = False
        for number, slot in enumerate(repeat.slots):
            if slot is None:
                continue
            before, before_open = slot.counted, slot.open
            found = slot.counted = self.opened.counted(self._ring(repeat), number)
            if found == before:
                continue
            if slot.open != before_open:
                self._chooser.opened(slot.target, slot.end, slot.open - before_open)
            if found.opened != before.opened:
                repeat.used = now
                self._chooser.worked(slot.target, slot.end, now)
            slot.unfit = slot.unfit or found.odd != before.odd
            more = found.failed - before.failed
            if more:
                self._counts.service(slot.target.name)[FAILED] += more
                self._counts.endpoint(slot.target.name, slot.end)[FAILED] += more
                for _ in range(min(more, 3)):
                    self._chooser.failed(slot.target, slot.end, now)
            failed |= more > 0 or (_owes(found) and not _owes(before))
        return failed

    def ended(self, slot: Slot) -> None:
        """The worker has ended one of its connections (kernel_care.py), which counts as open no more."""
        self._chooser.opened(slot.target, slot.end, -1)

    def use(self, find: Callable[[str, Target, End], Target | None]) -> None:
        """The table is another: find(entry, a Target before, address and port) tells what is there now."""
        for repeat in self.repeats:
            target = find(repeat.entry, repeat.target, repeat.name[1])
            fit = target is not None and not target.proxy_protocol and not target.preserve_source
            if target is repeat.target and fit is repeat.fit:
                continue
            self._end(repeat)
            repeat.away.clear()
            repeat.target, repeat.fit = target or replace(repeat.target, endpoints=()), fit

    def renew(self, names: Collection[str] | None) -> None:
        """Rules for these ServicePorts are others, or for all (None): their clients come through them before anything else."""
        for repeat in self.repeats:
            if names is None or repeat.target.name in names:
                self._end(repeat)

    def stop(self) -> None:
        """Rules lead elsewhere, or will: no connection begins by a ring from now on."""
        self.stopped = True
        for repeat in self.repeats:
            self._end(repeat)

    def sweep(self, now: float) -> None:
        """Once a second: clients that do not come often any more are forgotten."""
        kept: dict[tuple[str, End], int | Repeat] = {}
        busy = {(one.ring, one.choice) for one in self.opened.open()}  # a SYN without an answer is in no counter
        rings_busy = {ring for ring, _ in busy}
        for repeat in self.repeats:
            for number, slot in enumerate(repeat.slots):
                if slot is None or slot.end in repeat.target.endpoints or (repeat.ring, number) in busy:
                    continue
                if slot.is_over(now):
                    repeat.slots[number] = None
            used = now - repeat.used < _IDLE_S or repeat.ring in rings_busy or repeat.watched
            if used or repeat.open or not self._forget(repeat):
                kept[repeat.name] = repeat
        self._seen = kept

    def _forget(self, repeat: Repeat) -> bool:
        if repeat.ring is None:
            return True
        self._end(repeat)
        try:
            self.opened.give_back(repeat.ring, repeat.key)
        except OSError as error:
            log.debug("a ring stays", extra=fields(err=error))
            return False
        del self.by_ring[repeat.ring]
        return True

    def close(self) -> None:
        """Nothing is open by rings any more, and nothing will be."""
        self.stop()
        for watched in [*self._watched]:
            self._saw(watched, self._now())
        for repeat in self.repeats:
            self._forget(repeat)
        self._seen.clear()
        self._resets.close()
        self.opened.close()


def _pause_s(missed: int) -> float:
    """After so many connections in a row whose links were not seen."""
    return float(min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2.0 ** min(missed - 1, 10)))


def _owes(counted: Counted) -> bool:
    """Whether it was asked long ago and has not answered."""
    return 0 < counted.asked < time.monotonic_ns() - rings.PATIENCE_NS
