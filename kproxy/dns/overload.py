"""While more queries come to a socket than are answered: who asks little goes first, and who asks much gets all the time that is left.

    socket ─▶ read, all of it ─┬─ who is not heavy (fairness.py) ─▶ answered at once
              ▲                └─ who is ─▶ line ─▶ a few, some tens of microseconds ─┐
              └───────────────────────────────────────────────────────────────────────┘

In: a socket's datagrams, from the moment on that batches come back full. Out: answers; what of heavy sources finds no place in line is
dropped, and the kernel is told to drop so much of it before it is read (sieve.py). What must not happen here: a worker that rests while
queries wait. Reading a query costs a fifth of answering it, so others wait for what is being answered and for nothing else; a line that got
only part of the time lost queries of a client that was nearly alone, and once it had lost some it went on losing them for a second.

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
from kproxy.dns.fairness import Shares

CALM_S = 1.0  # without a sign of it, after which overload is over
CROWDED = 0.5  # of a socket's queue: it may overflow before it is looked at again
ADJUST_S = 0.02  # how often it is looked at how much of the heavy sources the kernel lets through
LEAST_SHARE = 1 / 256
TIGHTEST = 0.25  # one look lets through at least this part of what the look before did: a burst is not a flood
EASE = 1.25  # and this much more where all of it could be answered
EASE_S = 0.04
CROWDED_S = 0.1  # between two looks that halve it because of a full queue: what is in there already passed
READ = 512  # packets of one reading; a millisecond when they are put in line
RECEIVE = 4096
MANY = 200  # packets between two looks with heavy sources among them: ten thousand a second are a flood, also where all can be answered
LINE = 2048  # queries of heavy sources that wait
PATIENCE_S = 0.25  # of an only source's line that is full: so long it may take to work off what came in a moment without a processor
FEW, FEW_S = (
    24,
    0.00015,
)  # queries of the line between two readings at most, and how much processor time may pass, tasks included

Packet = tuple[bytes, Any]


class Serving(Protocol):
    """What there is of a socket besides."""

    sock: socket.socket
    is_watched: bool

    def serve(self, receive: Callable[[int], Packet], argument: int, keep: bool) -> int:
        """Answers what `receive` gives."""

    def answer(self, data: bytes, peer: Any, *, keep: bool) -> None:
        """Answers one query and tells those who observe."""

    def send(self, reply: bytes, peer: Any) -> None:
        """Sends a datagram."""


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
        self._few, self._spent = (
            FEW // 2,
            0.0,
        )  # the processor time of this thread when the last few were begun with; 0: there was no line
        self._standing = 0.0  # since when there is a line
        self._until = 0.0
        self._share, self._changed = 1.0, 0.0  # of heavy sources, that passes; when that was last another
        self._halved = 0.0
        self._sieved: frozenset[str] = frozenset()
        # queries of heavy sources that stood in line and that did not, and all that were read, since the last look
        self._waited = self._shed = self._seen = 0
        self._adjusting: asyncio.TimerHandle | None = None
        self._turn: asyncio.Handle | None = None

    def begin(self) -> None:
        """There is overload."""
        self._counters["overloads"] += 1
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
        read = self._read(began)
        if read >= READ // 4:
            self._until = began + CALM_S
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
        if self._spent and took > FEW_S:
            self._few = max(1, self._few // 2)
        elif took < FEW_S / 2:
            self._few = min(FEW, self._few + 1)
        self._spent = spent
        line = self._line
        # A flood of ever new names must not throw out what others ask for.
        self._answer_all([line.popleft() for _ in range(min(self._few, len(line)))], keep=False)

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
        if self._line or (heavy and not self._shares.alone and self._seen > MANY):
            self._until = now + CALM_S
        self._choose_share(now, heavy)
        if self._shares.dropped:
            self._limited(self._shares.take())
        self._waited = self._shed = self._seen = 0
        if self._share == 1.0 and not self._line and now > self._until:
            self._adjusting = None
            self._shares.calm()
            self._over()
        else:
            self._adjusting = asyncio.get_running_loop().call_later(ADJUST_S, self._adjust)

    def _choose_share(self, now: float, heavy: frozenset[str]) -> None:
        before, sock = self._share, self._serving.sock
        crowded = now - self._halved > CROWDED_S and sieve.filled(sock) > CROWDED
        if heavy and (self._shed or crowded):
            kept = self._waited / (self._waited + self._shed) if self._shed else 1.0
            kept = max(TIGHTEST, min(kept, 0.5 if crowded else 1.0))
            self._halved = now if crowded else self._halved
            self._share, self._changed = max(LEAST_SHARE, self._share * kept), now
        elif self._share < 1.0 and now - self._changed > EASE_S:
            self._share, self._changed = min(1.0, self._share * EASE), now
        if self._share < 1.0:
            wanted = (heavy | self._sieved) if self._sieved else heavy
            if self._share != before or wanted != self._sieved:
                self._sieved = frozenset(sorted(wanted)[: sieve.SOURCES])
                sieve.attach(sock, sieve.program(self._sieved, sock.family, self._share))
        elif self._sieved:
            sieve.detach(sock)
            self._sieved = frozenset()
