"""While more queries come to a socket than are answered: who asks little goes first, and who asks much gets all the time that is left.

    socket ─▶ read, all of it ─┬─ who is not heavy (fairness.py) ─▶ answered at once
              ▲                └─ who is ─▶ line ─▶ a few, some tens of microseconds ─┐
              └───────────────────────────────────────────────────────────────────────┘

In: a socket's datagrams, from the moment on that batches come back full. Out: answers; what of heavy sources finds no place in line is
dropped, and the kernel is told to drop so much of it before it is read (sieve.py). What must not happen here: a worker that rests while
queries wait. Reading a query costs a fifth of answering it, so others wait for what is being answered and for nothing else; a line that got
only part of the time lost queries of a client that was nearly alone, and once it had lost some it went on losing them for a second.

Once all of it is worked off and nothing was too much, what comes is read and answered by the batch again, which costs half of it, until a
reading comes back full.
An only source stands in line as well, so that the next one to come is seen at once. What the worker had no processor for is worked off for
a while before any of it is dropped: it waits in the kernel's queue.
"""

from __future__ import annotations

import asyncio
import socket
from collections import Counter, deque
from collections.abc import Callable
from time import perf_counter, thread_time
from typing import Any, Protocol

from kproxy.dns import sieve
from kproxy.dns.batches import BATCH, RECEIVE
from kproxy.dns.fairness import Shares

CALM_S = 1.0  # without a sign of it, after which overload is over
CROWDED = 0.5  # of a socket's queue: it may overflow before it is looked at again
ADJUST_S = 0.02  # how often it is looked at how much of the heavy sources the kernel lets through
LEAST_SHARE = 1 / 256
TIGHTEST = 0.25  # a span lets through at least this part of what the one before did
EASE = 1.25  # and each look this much more where all of it could be answered
# Looks in a span. In one alone more may come than is answered because the worker had no processor for a moment; what stood in the queue
# by then says nothing of what comes, and a client that was cut down to a hundredth for it needed a second to be heard again.
SPAN = 5
READ = 512  # packets of one reading; a millisecond when they are put in line
MANY = 200  # packets between two looks with heavy sources among them: ten thousand a second are a flood, also where all can be answered
# Queries of heavy sources that wait, a tenth of a second of work. Others wait for none of them, and a client is served better late than
# never: with a quarter of it a worker that had half of a processor dropped a tenth of what it could have answered a moment later.
LINE = 8192
PATIENCE_S = 0.25  # of an only source's line that is full: so long it may take to work off what came in a moment without a processor
# Queries of the line between two readings at most, and how much processor time may pass, tasks included; the same for an only source, where
# nobody is known to wait: fewer readings are more answers.
FEW, FEW_S = 24, 0.0003
FEW_ALONE, FEW_ALONE_S = 96, 0.0015

Packet = tuple[bytes, Any]


class Serving(Protocol):
    """What there is of a socket besides."""

    sock: socket.socket
    is_watched: bool

    def answer_batch(self) -> int:
        """Reads the socket once and answers what there is; how many packets, or -1 when that failed."""

    def serve(self, receive: Callable[[int], Packet], argument: int, keep: bool) -> int:
        """Answers what `receive` gives."""

    def answer(self, data: bytes, peer: Any, *, keep: bool) -> None:
        """Answers one query and tells those who observe."""

    def send(self, reply: bytes, peer: Any) -> None:
        """Sends a datagram."""

    def call_siblings(self) -> None:
        """Has other workers take their part of what comes."""


class Overload:
    """Of one socket. again: what reads it next, in the loop's next round. over: called when the overload is.

    limited: told how much of whom was dropped.
    """

    def __init__(
        self,
        serving: Serving,
        counters: Counter[str],
        limited: Callable[[dict[str, int]], None],
        again: Callable[[], None],
        over: Callable[[], None],
    ) -> None:
        self._serving, self._counters, self._limited = serving, counters, limited
        self._read_again, self._over = again, over
        self._shares = Shares()
        self._line: deque[Packet] = deque()
        self._few = FEW // 2
        self._spent = 0.0  # the processor time of this thread when the last few were begun with; 0: there was no line
        self._standing = 0.0  # since when there is a line
        self._until = 0.0
        self._share = 1.0  # of heavy sources, that passes
        self._sieved: frozenset[str] = frozenset()
        self._seen = 0  # packets that were read to stand in line, or not, since the last look
        self._behind = True  # more has come than one reading takes, and is not worked off
        # Since the span began: looks, queries of heavy sources that stood in line, and that did not.
        self._looks = self._waited = self._shed = 0
        self._was_too_much = False  # in the span before
        self._adjusting: asyncio.TimerHandle | None = None
        self._turn: asyncio.Handle | None = None

    def begin(self) -> None:
        """There is overload."""
        self._counters["overloads"] += 1
        self._behind = True
        self._until = perf_counter() + CALM_S
        if self._adjusting is None:
            self._adjusting = asyncio.get_running_loop().call_later(ADJUST_S, self._adjust)

    def end(self) -> None:
        """The socket is to be closed: answers whoever stands in line."""
        for timer in (self._turn, self._adjusting):
            if timer is not None:
                timer.cancel()
        while self._line:
            data, peer = self._line.popleft()
            self._serving.answer(data, peer, keep=False)

    def drain(self) -> bool:
        """Reads, and sees to it that the line moves on; whether there was anything to read."""
        began, had_line = perf_counter(), bool(self._line)
        if not self._behind and not had_line and not self._serving.is_watched:
            served = self._serving.answer_batch()
            if served < BATCH:
                return served > 0
            self._behind = True
        read = self._read(began)
        if read >= READ // 4:
            self._until = began + CALM_S
        elif not self._line and self._share == 1.0 and not self._was_too_much:
            self._behind = False
        if self._line:
            if not had_line:
                self._standing, self._spent = began, 0.0
            if self._turn is None:
                self._turn = asyncio.get_running_loop().call_soon(self._next_turn)
        return read > 0

    def _next_turn(self) -> None:
        """One in every round of the loop: TCP, forwards and the channel have theirs in between, and what the last few began is done."""
        self._turn = None
        self._read_again()
        spent = thread_time()
        took = spent - self._spent
        most, most_s = (FEW_ALONE, FEW_ALONE_S) if self._shares.alone else (FEW, FEW_S)
        if self._spent and took > most_s:
            self._few = max(1, self._few * 3 // 4)
        elif took < most_s / 2:
            self._few += 1
        self._few = min(most, self._few)
        self._spent = spent
        line = self._line
        few = min(self._few, len(line))
        # A flood of ever new names must not throw out what others ask for. Where nobody else asks, each name is worked out once.
        self._answer_all([line.popleft() for _ in range(few)], keep=self._shares.alone)

    def _read(self, now: float) -> int:
        """Reads what there is. Answers at once who is not heavy; the others stand in line, or are dropped where that is full."""
        receive, shares, read = self._serving.sock.recvfrom, self._shares, 0
        packets: list[Packet] = []
        blocked = shares.alone and len(self._line) >= LINE and now - self._standing < PATIENCE_S
        while read < READ and not blocked:
            packets.clear()
            try:
                for _ in range(READ // 4):
                    packets.append(receive(RECEIVE))
            except BlockingIOError:
                blocked = True
            except OSError:  # of an earlier send, told here
                self._counters["socket_errors"] += 1
                blocked = not packets
            if packets:
                read += len(packets)
                shares.arrived([peer[0] for _, peer in packets])
                self._answer_all(self._without_heavy(packets) if shares.heavy else packets, keep=True)
        self._seen += read
        return read

    def _answer_all(self, packets: list[Packet], *, keep: bool) -> None:
        if self._serving.is_watched:
            for data, peer in packets:
                self._serving.answer(data, peer, keep=keep)
            return
        packets.reverse()  # `pop` takes from the end
        while packets:
            self._serving.serve(packets.pop, -1, keep)

    def _without_heavy(self, packets: list[Packet]) -> list[Packet]:
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

    def _drop(self, data: bytes, peer: Any) -> None:
        counters = self._counters
        counters["queries_udp"] += 1
        counters["limited"] += 1
        self._shed += 1
        if self._shares.drop(peer[0]) and len(data) >= 12 and not data[2] & 0x80:
            # QR and TC, the opcode and RD as they came; nothing but the header: TCP will tell the rest
            self._serving.send(data[:2] + bytes((0x82 | (data[2] & 0x79), 0)) + b"\0\0\0\0\0\0\0\0", peer)

    def _adjust(self) -> None:
        """Fifty times a second while there is overload: the kernel lets through what can be answered of the heavy sources, and no more.

        What passes follows what could be answered within a few looks, in both directions: a client that asks a little too much for a
        moment, or whose worker had no processor for one, must not be cut off for seconds.
        """
        now, heavy = perf_counter(), self._shares.heavy
        if len(self._line) > FEW:
            self._serving.call_siblings()
            self._until = now + CALM_S
        elif heavy and not self._shares.alone and self._seen > MANY:
            self._until = now + CALM_S
        self._seen = 0
        share = self._next_share(heavy)
        if share != self._share or (share < 1.0 and not heavy <= self._sieved):
            self._share = share
            self._sieve(heavy)
        if self._shares.dropped:
            self._limited(self._shares.take())
        if self._share == 1.0 and not self._line and now > self._until:
            self._adjusting = None
            self._shares.calm()
            self._over()
        else:
            self._adjusting = asyncio.get_running_loop().call_later(ADJUST_S, self._adjust)

    def _next_share(self, heavy: frozenset[str]) -> float:
        """The part of the heavy sources' packets that is to pass from now on: less after two spans in which it was too much."""
        self._looks += 1
        if self._looks < SPAN:
            return self._share if self._shed or self._was_too_much else min(1.0, self._share * EASE)
        crowded = sieve.filled(self._serving.sock) > CROWDED
        kept = self._waited / (self._waited + self._shed) if self._shed else 1.0
        too_much, before = bool(heavy) and (self._shed > 0 or crowded), self._was_too_much
        self._was_too_much = too_much
        self._looks = self._waited = self._shed = 0
        if not (too_much and before):
            return self._share
        return max(LEAST_SHARE, self._share * max(TIGHTEST, min(kept, 0.5 if crowded else 1.0)))

    def _sieve(self, heavy: frozenset[str]) -> None:
        """Tells the kernel."""
        sock = self._serving.sock
        if self._share < 1.0:
            self._sieved = frozenset(sorted(heavy | self._sieved)[: sieve.SOURCES])
            sieve.attach(sock, sieve.program(self._sieved, sock.family, self._share))
        elif self._sieved:
            sieve.detach(sock)
            self._sieved = frozenset()
        self._shares.sieved, self._shares.share = self._sieved, self._share
