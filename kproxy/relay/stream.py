"""The octets of one connection: what comes in on one socket goes out on the other, as it comes.

In: readiness of two connected, non-blocking sockets. Out: what was read from one, written to the other in the same call. Passed on are
back-pressure (who cannot be written to stops the other's reading; at most one read waits in memory), the end of one direction (FIN; the
other direction goes on) and the abortion of the connection (RST). What must not happen here: more than one read for an event, so that
nobody's stream holds others up; an allocation for octets that go straight through.

Measured (CPython 3.11, kernel 6.18, one core): of 15 µs for a request and its answer on a kept connection 12.7 are the kernel's (two sends
9.4, two reads 1.9, epoll 1.1) and 0.7 Python's own; HAProxy 2.6 takes 13.4. Level-triggered it was 22. `os.read` and `os.write` of small
objects in place of the one large buffer changed nothing; 256 KB at a time carry 11 to 27 Gb/s where HAProxy carries 7 (its buffers have
16 KB); splice(2) had 17 to 19 in a prototype, for two more descriptors and 9,900 connections a second. `MSG_MORE` with the last octets
before a FIN spares a packet of five: 88 → 83 µs for a connection with one request.

Relaying in the kernel (a sockhash whose verdict program redirects each skb to the other socket) was measured and left: of the whole machine
a request on one of 50 kept connections took 35.5 µs with it, 37.3 with HAProxy and 21.6 without a relay; with 200 connections it was
behind HAProxy (39.7 against 36.7), and it answered 30,000 requests a second where HAProxy answered 52,000: each octet is sent by a kworker
of the core that received it.
"""

from __future__ import annotations

import socket
import struct
from _socket import socket as Socket
from select import EPOLLERR, EPOLLET, EPOLLHUP, EPOLLIN, EPOLLOUT, EPOLLPRI, EPOLLRDHUP
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kproxy.relay.connection import Connection

READING = EPOLLIN | EPOLLRDHUP | EPOLLPRI | EPOLLET
_MORE = EPOLLRDHUP | EPOLLPRI
_STOPS = EPOLLRDHUP | EPOLLPRI | EPOLLERR | EPOLLHUP
_READS = 4
CUT = 1024  # octets: shorter views are there, 70 ns each for 120 KiB
READING_AND_WRITING = READING | EPOLLOUT
_ABORT = struct.pack("ii", 1, 0)  # SO_LINGER: close() sends RST


class Buffers:
    """What all connections of a worker read into, one after the other. waiting: octets in memory that nobody would take yet.

    Reading much at once is what makes a stream fast, and costs nothing where little comes, for the buffer is there anyway. But what
    the other side does not take has to be kept, so with much of that around everybody reads little.
    """

    LARGE, SMALL, MUCH = 256 << 10, 4 << 10, 64 << 20

    def __init__(self) -> None:
        self.waiting = 0
        self.view = self._large = memoryview(bytearray(self.LARGE))
        self.cut = tuple(self._large[:size] for size in range(CUT))  # to find a short view costs a third of cutting one
        self._small = self._large[: self.SMALL]

    def kept(self, octets: int) -> None:
        """More octets are kept; less, if negative."""
        self.waiting += octets
        self.view = self._small if self.waiting > self.MUCH else self._large


class Side:
    """One of the two sockets of a connection. Edge-triggered: what `ready` leaves over is asked for by `Poller.again`, never by epoll."""

    __slots__ = (
        "broken",
        "buffers",
        "connection",
        "eager",
        "ended",
        "fd",
        "octets",
        "other",
        "pending",
        "sock",
        "with_end",
    )

    def __init__(self, connection: Connection, buffers: Buffers, sock: Socket, fd: int) -> None:
        self.connection, self.buffers, self.sock, self.fd = connection, buffers, sock, fd
        self.other: Side | None = None
        self.pending = (
            b""  # was read from the other side and is still to be written here; that one is not read meanwhile
        )
        self.octets = 0  # that were read here
        self.eager = False  # the peer's end was in sight, or something urgent, at which reads stop: a short read may not be the last
        self.with_end = 0  # MSG_MORE when the peer's end has arrived: what is read goes out in one packet with it
        self.ended = False  # nothing comes any more
        self.broken = False  # nothing can be written any more

    def ready(self, events: int) -> None:
        """Epoll's word: something can be read or written, or the connection is gone."""
        other = self.other
        if other is None:
            return
        try:
            if events == EPOLLIN and not (self.eager or self.ended or other.pending):  # nearly always
                self.read()
                return
            if events & _MORE:
                self.eager = True
                if events & EPOLLRDHUP:
                    self.with_end = socket.MSG_MORE
            if self.pending and events & EPOLLOUT:
                self.flush()
                if self.other is None:
                    return
            if other.pending or self.ended:
                if events & EPOLLERR:
                    self.connection.abort()
            elif self.read() and self.eager:
                if events & _STOPS != EPOLLRDHUP:
                    self.again()
                else:  # the end was there before these octets were read, so they were the last
                    self._end()
        except Exception:  # ours; the poller tells of it, and it costs this connection alone
            self.connection.abort()
            raise

    def again(self) -> None:
        """Reads on: up to `_READS` times if an edge would not tell of what is left, else once."""
        for _ in range(_READS):
            other = self.other
            if other is None or other.pending or self.ended or not self.read() or not self.eager:
                return
        self.connection.soon(self)

    def read(self) -> bool:
        """One read, and what came goes to the other side. Whether anything came."""
        other = self.other
        assert other is not None
        buffers = self.buffers
        view = buffers.view
        try:
            size = self.sock.recv_into(view)
        except BlockingIOError:
            return False
        except OSError:
            if self.with_end:  # no end comes, for which what was read before waits
                push(other.sock)
            self.connection.abort()
            return False
        if not size:
            self._end()
            return False
        self.octets += size
        try:
            sent = other.sock.send(buffers.cut[size] if size < CUT else view[:size], self.with_end)
        except BlockingIOError:
            sent = 0
        except OSError:
            other.lost()
            return False
        if sent != size:
            other.keep(view[sent:size])
        elif size == len(view):
            self.connection.soon(self)
            return False
        return True

    def keep(self, octets: memoryview) -> None:
        """The kernel takes no more for this side: the other one is not read until it has taken everything."""
        self.pending = bytes(octets)
        self.buffers.kept(len(octets))
        self.connection.wait_for_room(self)

    def flush(self) -> None:
        """Writes what is pending."""
        try:
            sent = self.sock.send(self.pending)
        except BlockingIOError:
            return
        except OSError:
            self.lost()
            return
        self.buffers.kept(-sent)
        self.pending = self.pending[sent:]
        other = self.other
        assert other is not None
        if self.pending:
            return
        if other.ended:
            self._finish()
        else:
            self.connection.soon(other)  # what came meanwhile has had its edge

    def _end(self) -> None:
        """The peer sends no more."""
        if self.broken:  # what it had sent before it broke off was read to the end
            self.connection.abort()
            return
        self.ended = True
        other = self.other
        assert other is not None
        if not other.pending:
            other._finish()

    def _finish(self) -> None:
        """Everything is written here, and the other side has ended: so does this direction."""
        other = self.other
        assert other is not None
        if self.ended and not other.pending:
            self.connection.end()
            return
        try:
            self.sock.shutdown(socket.SHUT_WR)
        except OSError:  # it was reset meanwhile, which reading it would tell; but it may have ended before
            if self.ended:
                self.connection.abort()

    def lost(self) -> None:
        """Nothing can be written here any more. What the peer said before it broke off is still to be read: some servers answer and
        close without having read everything, and a reset follows their answer.
        """
        self.broken = True
        other = self.other
        assert other is not None
        self.drop_pending()
        if self.ended or other.pending:
            self.connection.abort()
            return
        other.ended = True  # nobody is there to read it for
        while self.other is not None and not other.pending and self.read():
            pass

    def drop_pending(self) -> None:
        """Forgets what is still to be written here."""
        if self.pending:
            self.buffers.kept(-len(self.pending))
            self.pending = b""

    def close(self, *, reset: bool) -> None:
        """The end of this side. reset: by RST. Its connection buries the socket."""
        if self.pending:
            self.drop_pending()
        if reset:
            abort(self.sock)
        self.other = None


def push(sock: Socket) -> None:
    """What MSG_MORE has held back is sent: a reset would throw it away."""
    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    except OSError:
        return


def abort(sock: Socket) -> None:
    """Closing the socket will send RST."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _ABORT)
    except OSError:
        return
