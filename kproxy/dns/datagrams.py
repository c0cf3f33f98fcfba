"""One UDP socket of a worker: queries in, replies out, at the cost of two system calls and a look-up.

In: packets. Out: replies that are remembered (cache.py), found by the bytes behind the ID; everything else goes to `slowly`. What must not
happen here:
* asyncio's DatagramProtocol: it costs five times the CPU of draining the socket on a readable event (28 us a query against 5, measured);
* an OSError ending a batch: a packet from port 0 makes sendto fail with EINVAL, and the others behind it are innocent;
* a cost for what happens rarely. There are three ways to read, one in force at a time: `_drain`; `_drain_watched` while somebody observes;
  and `_drain_fairly` when batches come back full, which reads everything first and lets those wait who send more than their share. What
  of theirs cannot be answered all the same is dropped by the kernel then (sieve.py), before it stands in the queue.
"""

from __future__ import annotations

import asyncio
import socket
from collections import Counter, deque
from collections.abc import Callable
from math import inf
from time import perf_counter
from typing import Any

from kproxy.dns import sieve
from kproxy.dns.cache import AnswerCache, Entry
from kproxy.dns.cache_forward import AgingReplies
from kproxy.dns.clients import Client, Clients
from kproxy.dns.denial import Denials
from kproxy.dns.fairness import Shares

BATCH = 128  # packets per readable event: under a millisecond, so TCP, forwards and the channel get their turn
RECEIVE = 4096  # octets of a query; longer ones are cut by the kernel and then malformed
FULL = 3  # batches in a row that came back full: more comes than is answered
CALM_S = 1.0  # without a full reading, after which overload is over
CROWDED = 0.5  # of a socket's queue: it may overflow before it is looked at again
ADJUST_S = 0.02  # how often it is looked at how much of the heavy sources the kernel lets through
LEAST_SHARE = 1 / 256
TIGHTEST = 0.25  # one look lets through at least this part of what the look before did: a burst is not a flood
EASE = 1.25  # and this much more where all of it could be answered
EASE_S = 0.04
READ = 512  # packets of one reading under overload: a millisecond when they are dropped; who is not heavy is answered at once
LINE = 512  # queries of heavy sources that wait
TURN_S = 0.0004  # of the worker's time, every millisecond, for them
LONGEST_TURN_S = 0.004
GLANCE_S = 0.001  # for so long at most queries wait behind replies that others were asked for

_NUMBERS = range(BATCH)

Peer = Any  # (address, port) of IPv4, with two numbers more of IPv6


class Caches:
    """What is remembered for one port: for everybody, for clients of one view, and for this second alone (replies that age)."""

    def __init__(self) -> None:
        self.common = AnswerCache()
        self.personal = AnswerCache()
        self.dated = AnswerCache(entries=8192, octets=4 << 20)
        self.aging = AgingReplies()  # what the dated ones of the next second are made from
        self.denials = Denials()

    def further(self, own: tuple[int, bytes], client: Client, key: bytes) -> Entry | None:
        """What is remembered for some clients alone. own: view and bytes; key: the bytes behind the ID."""
        return self.personal.get(own) or self.dated.get(own) or self.dated.get((client.address, key))


class Hot:
    """What all sockets of a worker share and read anew for every batch."""

    def __init__(self, counters: Counter[str]) -> None:
        self.counters = counters
        self.clients = Clients()
        self.quick_s = 0.0  # time that batches took
        self.slow_s = 0.0  # of it, in `slowly`


class Datagrams:
    """A bound socket. slowly(datagrams, data, peer, keep): answers what is not remembered; keep: it may be.

    watched(reply, data, peer, began): is told of every reply that was remembered while somebody observes.
    """

    def __init__(
        self,
        sock: socket.socket,
        port: int,
        hot: Hot,
        caches: Caches,
        slowly: Callable[[Datagrams, bytes, Peer, bool], None],
        watched: Callable[[bytes, bytes, Peer, float], None],
        limited: Callable[[dict[str, int]], None],
    ) -> None:
        self.sock = sock
        self.port = port
        self.caches = caches
        self.family = 1 if sock.family == socket.AF_INET6 else 0
        self._hot = hot
        self._slowly = slowly
        self._watched = watched
        self._limited = limited
        self._full = 0
        self._shares = Shares()
        self._line: deque[tuple[bytes, Peer]] = deque()
        self._overload_until = 0.0
        self._share, self._changed = 1.0, 0.0  # of heavy sources, that passes; when that was last another
        self._sieved: frozenset[str] = frozenset()
        self._waited = self._shed = (
            0  # queries of heavy sources that stood in line, and that did not, since the last look
        )
        self._adjusting: asyncio.TimerHandle | None = None
        self._turn: asyncio.TimerHandle | None = None
        self._read: Callable[[], bool] = self._drain
        self.is_watched = False
        self._asked = 0.0  # when the next turn was asked for
        self._looked = 0.0  # when the socket was last read; infinity: it is not any more

    def start(self) -> None:
        """Begins to read."""
        asyncio.get_running_loop().add_reader(self.sock.fileno(), self._readable)

    def _readable(self) -> None:
        self._read()
        self._looked = perf_counter()

    def glance(self) -> None:
        """Reads between two replies that had to be waited for, when that was last done a while ago.

        The event loop takes whatever is ready before it looks at sockets again. A hundred walks of one pod are tens of milliseconds, which
        the queries of all others would spend in the kernel.
        """
        if perf_counter() - self._looked > GLANCE_S:
            self._readable()

    def watch(self, on: bool) -> None:
        """Whether `watched` is told of replies from now on."""
        self.is_watched = on
        if not self._overload_until:
            self._read = self._drain_watched if on else self._drain

    def finish(self) -> None:
        """Answers what has arrived, within bounds, and closes the socket. The group must have been left before."""
        self._looked = inf
        asyncio.get_running_loop().remove_reader(self.sock.fileno())
        for timer in (self._turn, self._adjusting):
            if timer is not None:
                timer.cancel()
        for data, peer in self._line:
            self.answer(data, peer)
        self._line.clear()
        for _ in range(100):  # bounded: a flood must not keep us
            if not self._drain():
                break

    def close(self) -> None:
        """Closes the socket; replies that are still being waited for cannot be sent any more."""
        self.sock.close()

    def send(self, reply: bytes, peer: Peer) -> None:
        """Sends, or counts that it was not possible."""
        try:
            self.sock.sendto(reply, peer)
        except OSError:
            self._hot.counters["socket_errors"] += 1

    def _drain(self) -> bool:
        """Answers up to a batch of queries; whether there may be more."""
        served = self._serve(self.sock.recvfrom, RECEIVE)
        if served == BATCH:
            self._full += 1
            if self._full >= FULL:
                self._overloaded()
        elif served >= 0:
            self._full = 0
        return served < 0 or served == BATCH

    def _serve(self, receive: Callable[[int], tuple[bytes, Peer]], argument: int) -> int:
        """Answers up to a batch of what `receive` gives; how many, or -1 when an error ended it. The hot loop.

        receive: the socket's `recvfrom`, or `pop` of a list of packets that were read already (with -1).
        """
        send, family, port = self.sock.sendto, self.family, self.port
        caches, slowly = self.caches, self._slowly
        lasting, fleeting = caches.common.lasting.get, caches.common.fleeting.get
        dated, next_order, denied, further = (
            caches.dated.fleeting.get,
            caches.common.next_order,
            caches.denials.find,
            caches.further,
        )
        known = self._hot.clients.known.get
        served = slow = errors = 0
        failed = False
        began = perf_counter()
        try:
            for served in _NUMBERS:  # noqa: B007 - how many there were, wherever it ends
                data, peer = receive(argument)
                client = known(peer[0])
                if client is not None and peer[1] != port:
                    key = data[2:]
                    found = lasting(key) or fleeting(key)
                    if found is None:  # in the order of how many come, and of what a look costs
                        own = (client.view, key)
                        found = dated(own) or next_order(key) or denied(data, client) or further(own, client, key)
                    if found is not None:
                        reply, counts = found
                        counts[family] += 1
                        try:
                            send(data[:2] + reply, peer)
                        except OSError:
                            errors += 1
                        continue
                slow += 1
                slowly(self, data, peer, True)
            served = BATCH
        except BlockingIOError:
            pass
        except IndexError:  # the list is empty
            if argument != -1:
                raise
        except OSError:  # an error of an earlier send, reported here; the next readable event goes on
            errors += 1
            failed = True
        self._count(served, slow, errors, began)
        return -1 if failed else served

    def _count(self, served: int, slow: int, errors: int, began: float) -> None:
        hot = self._hot
        hot.quick_s += perf_counter() - began
        counters = hot.counters
        counters["queries_udp"] += served
        counters["cache_hits"] += served - slow
        if errors:
            counters["socket_errors"] += errors

    def _drain_watched(self) -> bool:
        """As `_drain`, one packet after the other, and `watched` is told."""
        try:
            for _ in range(BATCH):
                data, peer = self.sock.recvfrom(RECEIVE)
                self.answer(data, peer)
            self._full += 1
            if self._full >= FULL:
                self._overloaded()
        except BlockingIOError:
            self._full = 0
            return False
        except OSError:
            self._hot.counters["socket_errors"] += 1
        return True

    def answer(self, data: bytes, peer: Peer, *, keep: bool = True) -> None:
        """Answers one query, by what is remembered or not. keep: remember what was not, too."""
        began = perf_counter()
        counters = self._hot.counters
        counters["queries_udp"] += 1
        client = self._hot.clients.known.get(peer[0])
        if client is not None and peer[1] != self.port:
            caches, key = self.caches, data[2:]
            found = caches.common.get(key) or caches.denials.find(data, client)
            found = found or caches.further((client.view, key), client, key)
            if found is not None:
                counters["cache_hits"] += 1
                found[1][self.family] += 1
                self.send(data[:2] + found[0], peer)
                if self.is_watched:
                    self._watched(found[0], data, peer, began)
                self._hot.quick_s += perf_counter() - began
                return
        self._slowly(self, data, peer, keep)

    def _overloaded(self) -> None:
        self._hot.counters["overloads"] += 1
        self._overload_until = perf_counter() + CALM_S
        self._read = self._drain_fairly
        if self._adjusting is None:
            self._adjusting = asyncio.get_running_loop().call_later(ADJUST_S, self._adjust)

    def _adjust(self) -> None:
        """Fifty times a second while there is overload: the kernel lets through what can be answered of the heavy sources, and no more.

        What passes follows what could be answered within a few looks, in both directions: a client that asks a little too much for a
        moment, or whose worker had no processor for one, must not be cut off for seconds.
        """
        now, heavy = perf_counter(), self._shares.heavy
        before = self._share
        self._shares.crowded = sieve.filled(self.sock) > CROWDED
        if heavy and (self._shed or self._shares.crowded):
            kept = self._waited / (self._waited + self._shed) if self._shed else 1.0
            kept = max(TIGHTEST, min(kept, 0.5 if self._shares.crowded else 1.0))
            self._share, self._changed = max(LEAST_SHARE, self._share * kept), now
        elif self._share < 1.0 and now - self._changed > EASE_S:
            self._share, self._changed = min(1.0, self._share * EASE), now
        self._waited = self._shed = 0
        if self._share < 1.0:
            wanted = (heavy | self._sieved) if self._sieved else heavy
            if self._share != before or wanted != self._sieved:
                self._sieved = frozenset(sorted(wanted)[: sieve.SOURCES])
                sieve.attach(self.sock, sieve.program(self._sieved, self.sock.family, self._share))
        elif self._sieved:
            sieve.detach(self.sock)
            self._sieved = frozenset()
        if self._share == 1.0 and not self._line and now > self._overload_until:
            self._adjusting = None
            self._calm()
        else:
            self._adjusting = asyncio.get_running_loop().call_later(ADJUST_S, self._adjust)

    def _drain_fairly(self) -> bool:
        """Reads what there is. Answers at once who is not heavy; the others stand in line, or are dropped where that is full."""
        receive, shares, read = self.sock.recvfrom, self._shares, 0
        packets: list[tuple[bytes, Peer]] = []
        blocked = False
        while read < READ and not blocked:
            packets.clear()
            try:
                for _ in _NUMBERS:
                    packets.append(receive(RECEIVE))
            except BlockingIOError:
                blocked = True
            except OSError:
                self._hot.counters["socket_errors"] += 1
                blocked = not packets
            read += len(packets)
            shares.arrived([peer[0] for _, peer in packets])
            if shares.heavy and not shares.alone:
                packets = self._without_heavy(packets)
            self._answer_all(packets)
        now = perf_counter()
        if read >= BATCH:
            self._overload_until = now + CALM_S
        if self._line and self._turn is None:
            self._next_turn()
        return read > 0

    def _answer_all(self, packets: list[tuple[bytes, Peer]]) -> None:
        if self.is_watched:
            for data, peer in packets:
                self.answer(data, peer)
            return
        packets.reverse()  # `pop` takes from the end
        while packets:
            self._serve(packets.pop, -1)

    def _without_heavy(self, packets: list[tuple[bytes, Peer]]) -> list[tuple[bytes, Peer]]:
        """The packets of those who are not heavy; the others' are in line, or dropped."""
        heavy, line = self._shares.heavy, self._line
        found = []
        for packet in packets:
            if packet[1][0] not in heavy:
                found.append(packet)
            elif len(line) < LINE:
                self._waited += 1
                line.append(packet)
            else:
                self._drop(*packet)
        return found

    def _next_turn(self) -> None:
        self._asked = perf_counter()
        self._turn = asyncio.get_running_loop().call_later(0.001, self._their_turn)

    def _their_turn(self) -> None:
        """The line moves on, for a part of every millisecond; where the processor is shared and this comes late, for that part of the wait.

        Else a worker that sleeps most of the time would drop what it has time for.
        """
        self._turn = None
        line, answer = self._line, self.answer
        now = perf_counter()
        until = now + max(TURN_S, min((now - self._asked) * TURN_S / 0.001, LONGEST_TURN_S))
        while line and perf_counter() < until:
            data, peer = line.popleft()
            answer(data, peer, keep=False)  # a flood of ever new names must not throw out what others ask for
        if line:
            self._next_turn()
        if self._shares.dropped:
            self._limited(self._shares.take())

    def _drop(self, data: bytes, peer: Peer) -> None:
        counters = self._hot.counters
        counters["queries_udp"] += 1
        counters["limited"] += 1
        self._shed += 1
        if self._shares.drop(peer[0]) and len(data) >= 12 and not data[2] & 0x80:
            # QR and TC, the opcode and RD as they came; nothing but the header: TCP will tell the rest
            self.send(data[:2] + bytes((0x82 | (data[2] & 0x79), 0)) + b"\0\0\0\0\0\0\0\0", peer)

    def _calm(self) -> None:
        self._overload_until = 0.0
        self._full = 0
        self._shares.calm()
        self._read = self._drain_watched if self.is_watched else self._drain
