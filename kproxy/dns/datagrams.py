"""One UDP socket of a worker: queries in, replies out, at the cost of a look-up and a part of two system calls (batches.py).

In: packets. Out: replies that are remembered (cache.py), found by the bytes behind the ID; everything else goes to `slowly`. What must not
happen here:
* asyncio's DatagramProtocol: it costs five times the CPU of draining the socket on a readable event (28 us a query against 5, measured);
* an OSError ending a batch: a packet from port 0 makes a send fail with EINVAL, and the others behind it are innocent;
* a remembered reply waiting for one that is not: those leave first, and the rest of the batch is looked at again, one by one;
* a cost for what happens rarely. There are three ways to read, one in force at a time: `_drain`; `_drain_watched` while somebody observes;
  and overload.py's when readings come back full, which reads everything first and lets those wait who send more than others.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from math import inf
from time import perf_counter
from typing import Any

from kproxy.dns.batches import BATCH, NOTHING, RECEIVE, STARTS, Peer
from kproxy.dns.clients import Client
from kproxy.dns.kernel_answers import KernelAnswers
from kproxy.dns.overload import Overload
from kproxy.dns.remembered import Caches, Hot
from kproxy.dns.spreading import Spreading

MORE = 8  # packets in a reading after which another one is worth more than a round of the event loop: more have come
FULL = 3  # readings in a row that came back full, so many stood in the queue: more comes than is answered
OFFERS = 8  # to the kernel, of one batch: each costs as much as an answer; where the kernel answers, batches are small
GLANCE_S = 0.001  # for so long at most queries wait behind replies that others were asked for

_NUMBERS = range(BATCH)


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
        self._batch = hot.batch(self.family)
        self._own = socket.htons(port)
        self._slowly = slowly
        self._watched = watched
        self._full = 0
        self._spreading = Spreading(sock)
        self._overload = Overload(self, hot.counters, limited, self._readable, self._calm)
        self._read: Callable[[], bool] = self._drain
        self.is_watched = False
        self.kernel: KernelAnswers | None = None  # what is found is offered to it
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
        if self._read != self._overload.drain:
            self._read = self._drain_watched if on else self._drain

    def finish(self) -> None:
        """Answers what has arrived, within bounds, and closes the socket. The group must have been left before."""
        self._looked = inf
        asyncio.get_running_loop().remove_reader(self.sock.fileno())
        self._overload.end()
        self._spreading.end()
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
        """Answers what has come, up to two batches; whether there was anything."""
        total = 0
        while total < BATCH:
            served = self.answer_batch()
            total += max(served, 0)
            if served == BATCH:
                self._full += 1
                if self._full >= FULL:
                    self._overloaded()
                break
            self._full = 0
            if served < MORE:
                break
        return total > 0

    def answer_batch(self) -> int:
        """Answers one reading of the socket; how many packets that were, or -1 when it failed. The hot loop."""
        batch, family, clients = self._batch, self.family, self._hot.clients
        began = perf_counter()
        try:
            count = batch.receive(self.sock.fileno())
        except OSError:  # an error of an earlier send, reported here; the next readable event goes on
            self._count(0, 0, 1, began)
            return -1
        if count <= NOTHING:
            return 0 if count == NOTHING else self.serve(self.sock.recvfrom, RECEIVE)
        lasting, fleeting, dated, rounds, seldom = self.caches.quick
        known, next_order = clients.seen.get, self.caches.common.next_order
        packets, lengths, senders, sizes = batch.packets, batch.lengths, batch.senders(count), batch.sizes(count)
        ports = batch.ports(count)
        if self._own in ports:  # from a port like ours: perhaps from ourselves
            senders = [None if port == self._own else sender for port, sender in zip(ports, senders, strict=True)]
        late: list[int] = []
        kernel, offers = self.kernel, []
        for number, start, size, sender in zip(_NUMBERS, STARTS, sizes, senders, strict=False):
            client = known(sender)
            if client is not None:
                begin = start + 2
                key = packets[begin : start + size]
                found = lasting(key) or fleeting(key)
                if found is None:  # in the order of how many come, and of what a look costs
                    own = (client.view, key)
                    found = dated(own) or (next_order(key) if key in rounds else None) or seldom(key, client, own)
                if found is not None:
                    reply, counts = found
                    counts[family] += 1
                    if kernel is not None:
                        offers.append((key, client))
                    end = begin + len(reply)
                    packets[begin:end] = reply
                    lengths[number] = end - start
                    continue
            late.append(number)
        if late:
            self._answer_late(count, late, senders, sizes, began)
        else:
            self._count(count, 0, batch.send(self.sock.fileno(), 0, count), began)
        for key, client in offers[:OFFERS]:
            self.offer(key, client)
        return count

    def offer(self, key: bytes, client: Client) -> None:
        """Has the kernel answer this query from now on, where it can; what is remembered is what it says."""
        if self.kernel is not None:
            self.kernel.offer(key, client, self.caches, self.port, self.family)

    def _answer_late(self, count: int, late: list[int], senders: list[Any], sizes: list[int], began: float) -> None:
        """Sends the replies of a batch but for those of the packets `late`, and then answers these one by one."""
        batch, descriptor = self._batch, self.sock.fileno()
        rest, first, errors = [], 0, 0
        for number in late:
            start, peer = STARTS[number], batch.peer(number)
            rest.append((batch.packets[start : start + sizes[number]], peer))
            errors += batch.send(descriptor, first, number)
            first = number + 1
            if senders[number] is not None:
                self._hot.clients.see(senders[number], peer[0])
        errors += batch.send(descriptor, first, count)
        self._count(count - len(late), 0, errors, began)
        rest.reverse()  # `pop` takes from the end
        self.serve(rest.pop, -1)

    def serve(self, receive: Callable[[int], tuple[bytes, Peer]], argument: int, keep: bool = True) -> int:
        """Answers up to a batch of what `receive` gives; how many, or -1 when an error ended it.

        receive: the socket's `recvfrom`, or `pop` of a list of packets that were read already (with -1). keep: remember what was not, too.
        """
        send, family, port = self.sock.sendto, self.family, self.port
        lasting, fleeting, dated, rounds, seldom = self.caches.quick
        known, next_order, slowly = self._hot.clients.known.get, self.caches.common.next_order, self._slowly
        served = slow = errors = 0
        failed = False
        kernel, offers = self.kernel, []
        began = perf_counter()
        try:
            for served in _NUMBERS:  # noqa: B007 - how many there were, wherever it ends
                data, peer = receive(argument)
                client = known(peer[0])
                if client is not None and peer[1] != port:
                    key = data[2:]
                    found = lasting(key) or fleeting(key)
                    if found is None:
                        own = (client.view, key)
                        found = dated(own) or (next_order(key) if key in rounds else None) or seldom(key, client, own)
                    if found is not None:
                        reply, counts = found
                        counts[family] += 1
                        try:
                            send(data[:2] + reply, peer)
                        except OSError:
                            errors += 1
                        if kernel is not None:
                            offers.append((key, client))
                        continue
                slow += 1
                slowly(self, data, peer, keep)
            served = BATCH
        except BlockingIOError:
            pass
        except IndexError:  # the list is empty
            if argument != -1:
                raise
        except OSError:
            errors += 1
            failed = True
        self._count(served, slow, errors, began)
        for key, client in offers[:OFFERS]:
            self.offer(key, client)
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
            found = caches.find(key, client)
            if found is not None:
                counters["cache_hits"] += 1
                found[1][self.family] += 1
                self.send(data[:2] + found[0], peer)
                if self.is_watched:
                    self._watched(found[0], data, peer, began)
                self._hot.quick_s += perf_counter() - began
                return
        self._slowly(self, data, peer, keep)

    def call_siblings(self) -> None:
        """Has other workers take their part of what comes to this address."""
        self._spreading.needed()

    def _overloaded(self) -> None:
        if self._looked == inf:  # finishing
            return
        self.call_siblings()
        self._overload.begin()
        self._read = self._overload.drain

    def _calm(self) -> None:
        self._full = 0
        self._read = self._drain_watched if self.is_watched else self._drain
