"""What one worker has the kernel answer in its place (kernel_program.py), and takes back in time.

In: queries that the hot loop has just answered from memory, and everything that throws something out of that memory. Out: entries of the
maps, and uses of replies, counted where the hot loop counts its own. What must not happen here: an answer that the worker would not give
itself. So two leases stand behind what is offered, as `cache.AnswerCache` has two halves: of *lasting* answers those go whose Service
changes, each by its key; *fleeting* ones go at every change, all of them by one write of another number. Both leases end by themselves
when the worker's loop does not turn for LEASE_S.

A query is offered when the hot loop finds it, for it came again, and at once where it is a Service's. The program notes which clients it
meets; for one that it has not met (this node's own processes, other nodes) offers rest.
"""

from __future__ import annotations

import asyncio
import struct
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from time import monotonic_ns
from typing import Any

from kproxy.dns import kernel_maps as layout
from kproxy.dns.cache import Entry
from kproxy.dns.clients import Client
from kproxy.dns.remembered import Caches
from kproxy.ebpf.calls import Map, possible_processors

LEASE_S = 2.0
RENEW_S = 0.5
CLIENT_S = 5.0  # after which one query of a client comes the whole way again
MEET_S = 0.2  # within which the program meets a client
REST_S = 10.0  # in which nothing is offered for one that it does not meet
AGAIN_S = 1.0  # an answer that was offered is offered again after this, at the earliest: it was the one least used
HELD = 16384  # offers remembered; beyond them everything is begun anew
ONCE_BITS = 17  # of a hash of what was denied once lately; a quarter of them set at most
_SECOND = 1_000_000_000
_INDEX = struct.Struct("=I")


@dataclass(slots=True)
class _Counted:
    """A place in the map of counters and the list its uses go to. told: what the place said last."""

    index: int
    counts: list[int]
    family: int
    told: int


@dataclass(slots=True)
class _Known:
    """One client, times in nanoseconds. until: of its entry; since: when that was written. is_met: the program has seen it since."""

    until: int = 0
    since: int = 0
    is_met: bool = False
    rests_until: int = 0


class KernelAnswers:
    """Of one worker, in one slot. number: what its leases begin with; no lease in this slot ever had it or one above.

    Every method that writes a map raises nothing: an error ends the whole, `is_over` is set, and the leases run out.
    """

    def __init__(self, maps: layout.Maps, slot: int, number: int, counters: Counter[str]) -> None:
        processors = possible_processors()
        self._places = Map(maps.places, layout.PLACE_KEY, 4)
        self._clients = Map(maps.clients, layout.ADDRESS, layout.CLIENT_VALUE)
        self._answers = Map(maps.answers, layout.KEY, layout.VALUE)
        self._leases = Map(maps.leases, 4, layout.LEASE_VALUE)
        self._uses = Map(maps.counters, 4, 8 * processors)
        self._sums = struct.Struct(f"={processors}Q")
        self._counters = counters
        self._slot = slot
        self._numbers = [number, number]  # of the leases of lasting and of fleeting answers
        # Of lasting and of fleeting answers: hash of the key (a key has 140 octets) → when it was offered, nanoseconds.
        self._held: tuple[dict[int, int], dict[int, int]] = ({}, {})
        self._personal: dict[tuple[int, int, bytes], set[bytes]] = {}  # lasting answers for some clients alone
        self._emptied: dict[int, int] = {}  # by port: how often a half of lasting answers was thrown out whole
        self._known: dict[str, _Known] = {}
        self._once, self._marks = bytearray(1 << ONCE_BITS - 3), 0
        self._counted: dict[tuple[int, int], _Counted] = {}
        self._paused = False
        self._timer: asyncio.TimerHandle | None = None
        self.is_over = False

    def begin(self) -> None:
        """Takes the leases, and prolongs them from now on. Raises OSError when the maps cannot be written."""
        self._prolong()
        self._timer = asyncio.get_running_loop().call_later(RENEW_S, self._renew)

    def end(self) -> None:
        """Takes everything back, at once."""
        self.is_over = True
        if self._timer is not None:
            self._timer.cancel()
        try:
            self._lease(0)
        except OSError:
            pass  # they run out by themselves

    def pause(self, on: bool) -> None:
        """Whether every query is to come to the worker, because somebody observes."""
        self._paused = on
        if on:
            self._do(self._lease, 0)
        else:
            self._do(self._prolong)

    def answers_at(self, packed: bytes, port: int, name: int, family: int) -> None:
        """Queries to an address and port may be answered. name: the port as server blocks call it. family: 1 of IPv6."""
        number = layout.place_number(name, six=bool(family))
        self._do(self._places.put, layout.place_key(packed, port), layout.place_value(number))

    def answers_no_more(self, packed: bytes, port: int) -> None:
        """The opposite; workers that still answer there have their queries come by the sockets."""
        self._do(self._places.delete, layout.place_key(packed, port))

    def offer(self, key: bytes, client: Client, caches: Caches, name: int, family: int) -> None:
        """Has the kernel answer a query that was found a moment ago. key: its octets behind the ID. name, family: see `answers_at`."""
        if self._paused or self.is_over or len(key) > layout.QUERY or not client.packed:
            return
        now = monotonic_ns()
        known = self._known.get(client.address)
        if known is None:
            if len(self._known) >= layout.CLIENTS:
                self._known.clear()
            known = self._known[client.address] = _Known()
        if now < known.rests_until:
            return
        found = self._found(key, client, caches)
        if found is None:
            return
        entries, scope, lease, until = found
        if not entries or max(len(reply) for reply, _ in entries) > layout.REPLY or until <= now:
            return
        self._do(self._admit, known, client.packed, now)
        if now < known.rests_until:
            return
        place = layout.place_number(name, six=bool(family))
        at = layout.answer_key(scope, place, key)
        mark = hash(at) if until == layout.FOR_EVER else hash((at, until))
        if now - self._held[lease].get(mark, 0) > AGAIN_S * _SECOND:
            for order in reversed(range(len(entries))):  # the first one tells of the others, so it comes last
                reply, counts = entries[order]
                turn = layout.answer_key(scope, place, key, order)
                self._do(self._put, turn, reply, counts, family, lease, until, len(entries))
            self._held[lease][mark] = now
        if lease == 0 and scope != layout.EVERYBODY:
            self._personal.setdefault((name, client.view, key), set()).add(at)

    def _admit(self, known: _Known, packed: bytes, now: int) -> None:
        """Has the program know this client for the next seconds; or lets offers for it rest."""
        at = layout.client_key(packed)
        if not known.is_met and known.since and now - known.since > MEET_S * _SECOND:
            value = self._clients.get(at)
            if value is not None and not layout.was_seen(value):
                known.rests_until, known.since, known.until = now + int(REST_S * _SECOND), 0, 0
                return
            known.is_met = True
        if known.until - now < CLIENT_S * _SECOND / 2:
            known.until, known.since, known.is_met = now + int(CLIENT_S * _SECOND), now, False
            self._clients.put(at, layout.client_value(known.until, 2 * self._slot, self._numbers[0]))

    def _found(self, key: bytes, client: Client, caches: Caches) -> tuple[list[Entry], bytes, int, int] | None:
        """The reply in its orders, for whom it is, by which lease (0: lasting), and until when."""
        common, own = caches.common, (client.view, key)
        if (found := common.lasting.get(key)) is not None:
            return [found], layout.EVERYBODY, 0, layout.FOR_EVER
        if (found := common.fleeting.get(key)) is not None:
            return [found], layout.EVERYBODY, 1, layout.FOR_EVER
        alone = layout.client_key(client.packed)
        if (found := caches.dated.fleeting.get(own) or caches.dated.fleeting.get((client.address, key))) is not None:
            return [found], alone, 1, caches.second_over
        if key in common.rounds:
            return common.orders_of(key, layout.ORDERS), layout.EVERYBODY, 0, layout.FOR_EVER
        if client.view < 0:
            return None
        if (found := caches.personal.lasting.get(own)) is not None:
            return [found], alone, 0, layout.FOR_EVER
        if (found := caches.personal.fleeting.get(own)) is not None:
            return [found], alone, 1, layout.FOR_EVER
        if own in caches.personal.rounds:
            return caches.personal.orders_of(own, layout.ORDERS), alone, 0, layout.FOR_EVER
        if self._is_first(own):
            return None
        denied = caches.denials.find(key, client)
        return None if denied is None else ([denied], alone, 1, layout.FOR_EVER)

    def _is_first(self, own: tuple[int, bytes]) -> bool:
        """Whether this was not denied lately, and from now on it was: of names that nobody has most are asked once."""
        number = hash(own) & (1 << ONCE_BITS) - 1
        place, bit = number >> 3, 1 << (number & 7)
        if self._once[place] & bit:
            return False
        if self._marks >= 1 << ONCE_BITS - 2:
            self._once, self._marks = bytearray(len(self._once)), 0
        self._once[place] |= bit
        self._marks += 1
        return True

    def _put(
        self, at: bytes, reply: bytes, counts: list[int], family: int, lease: int, until: int, orders: int
    ) -> None:
        counted = self._counted.get((id(counts), family))
        if counted is None:
            if len(self._counted) >= layout.KINDS:
                self._forget_all()
                self._collect()
                self._counted.clear()
            index = self._slot * layout.KINDS + len(self._counted)
            counted = _Counted(index, counts, family, self._read(index))
            self._counted[(id(counts), family)] = counted
        if len(self._held[lease]) >= HELD:
            self._forget_all()
        value = layout.answer_value(until, 2 * self._slot + lease, self._numbers[lease], counted.index, reply, orders)
        self._answers.put(at, value)

    def forget(self, name: int, caches: Caches, common: Iterable[Any], personal: Iterable[Any]) -> None:
        """Takes back what a change has thrown out of a port's memory: everything fleeting, and lasting answers by their keys.

        common: octets behind the ID. personal: the view with them.
        """
        emptied = caches.common.emptied + caches.personal.emptied
        if self._emptied.get(name, 0) != emptied:
            self._emptied[name] = emptied
            self._do(self._forget_all)
            return
        for key in common:
            for six in (False, True):
                at = layout.answer_key(layout.EVERYBODY, layout.place_number(name, six=six), key)
                if len(key) <= layout.QUERY and self._held[0].pop(hash(at), None) is not None:
                    self._do(self._answers.delete, at)
        for view, key in personal:
            for at in self._personal.pop((name, view, key), ()):
                self._do(self._answers.delete, at)
        self._do(self._another_number, 1)

    def forget_all(self) -> None:
        """Takes back everything: other settings, other clients, another zone."""
        self._do(self._forget_all)

    def _forget_all(self) -> None:
        self._another_number(0)
        self._another_number(1)
        self._personal.clear()
        self._known.clear()

    def _another_number(self, lease: int) -> None:
        self._numbers[lease] += 1
        self._held[lease].clear()
        if not self._paused:
            self._prolong()

    def _prolong(self) -> None:
        self._lease(monotonic_ns() + int(LEASE_S * _SECOND))

    def _lease(self, until: int) -> None:
        for lease, number in enumerate(self._numbers):
            self._leases.put(_INDEX.pack(2 * self._slot + lease), layout.lease_value(until, number))

    def _renew(self) -> None:
        if self.is_over:
            return
        if not self._paused:
            self._do(self._prolong)
        self._timer = asyncio.get_running_loop().call_later(RENEW_S, self._renew)

    def collect(self) -> None:
        """Brings the counters up to date with what the kernel has answered."""
        if not self.is_over:
            self._do(self._collect)

    def _collect(self) -> None:
        answered = 0
        for counted in self._counted.values():
            now = self._read(counted.index)
            new = now - counted.told
            if new > 0:
                counted.told = now
                counted.counts[counted.family] += new
                answered += new
        for name in ("queries_udp", "cache_hits", "kernel_answers"):
            self._counters[name] += answered

    def _read(self, index: int) -> int:
        found = self._uses.get(_INDEX.pack(index))
        return sum(self._sums.unpack(found)) if found is not None else 0

    def _do(self, act: Callable[..., object], *arguments: object) -> None:
        """Calls; an OSError ends the whole: who cannot take back must not offer."""
        if self.is_over:
            return
        try:
            act(*arguments)
        except OSError:
            self._counters["kernel_errors"] += 1
            self.end()
