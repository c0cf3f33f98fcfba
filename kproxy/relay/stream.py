"""The octets of one connection: what comes in on one socket goes out on the other, as it comes.

In: readiness of two connected, non-blocking sockets. Out: what was read from one, written to the other in the same call. Passed on are
back-pressure (who cannot be written to stops the other's reading; at most one read waits in memory), the end of one direction (FIN; the
other direction goes on) and the abortion of the connection (RST). What must not happen here: more than one read for an event, so that
nobody's stream holds others up; an allocation for octets that go straight through.
"""

from __future__ import annotations

import socket
import struct
from _socket import socket as Socket
from select import EPOLLERR, EPOLLHUP, EPOLLIN, EPOLLOUT, EPOLLRDHUP
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kproxy.relay.connection import Connection

READING = EPOLLIN | EPOLLRDHUP
_GONE = EPOLLHUP | EPOLLERR
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
        self._small = self._large[: self.SMALL]

    def kept(self, octets: int) -> None:
        """More octets are kept; less, if negative."""
        self.waiting += octets
        self.view = self._small if self.waiting > self.MUCH else self._large


class Side:
    """One of the two sockets of a connection."""

    __slots__ = ("broken", "connection", "ended", "events", "fd", "octets", "other", "pending", "sock")

    def __init__(self, connection: Connection, sock: Socket, fd: int) -> None:
        self.connection, self.sock, self.fd = connection, sock, fd
        self.other: Side | None = None
        self.pending = b""  # was read from the other side, and is still to be written here
        self.events = 0  # what epoll watches for
        self.octets = 0  # that were read here
        self.ended = False  # nothing comes any more
        self.broken = False  # nothing can be written any more

    def ready(self, events: int) -> None:
        """Epoll's word: something can be read or written, or the connection is gone."""
        if events & EPOLLOUT and not self._flush():
            return
        if not self.events & EPOLLIN:
            if events & _GONE:
                self._gone(events)
            return
        if self.read() and events & EPOLLRDHUP and self.events & EPOLLIN:
            self.read()  # the end is behind what was read just now: no need to ask epoll for it

    def read(self) -> bool:
        """One read, and what came goes to the other side. Whether anything came."""
        other = self.other
        if other is None:  # the connection has ended
            return False
        view = self.connection.buffers.view
        try:
            size = self.sock.recv_into(view)
        except BlockingIOError:
            return False
        except OSError:
            self.connection.abort()
            return False
        if not size:
            self._end()
            return False
        self.octets += size
        try:
            sent = other.sock.send(view[:size])
        except BlockingIOError:
            sent = 0
        except OSError:
            other.lost()
            return False
        if sent != size:
            other.keep(view[sent:size])
        return True

    def keep(self, octets: memoryview) -> None:
        """The kernel takes no more for this side: the other one is not read until it has taken everything."""
        assert self.other is not None
        self.pending += octets
        self.connection.buffers.kept(len(octets))
        self._watch(self.events | EPOLLOUT)
        self.other._watch(self.other.events & ~READING)

    def _flush(self) -> bool:
        """Writes what is pending; whether the connection goes on."""
        try:
            sent = self.sock.send(self.pending)
        except BlockingIOError:
            return True
        except OSError:
            self.lost()
            return self.other is not None
        self.connection.buffers.kept(-sent)
        self.pending = self.pending[sent:]
        if self.pending:
            return True
        self._watch(self.events & ~EPOLLOUT)
        other = self.other
        assert other is not None
        if not other.ended:
            other._watch(other.events | READING)
            return True
        return self._finish()

    def _end(self) -> None:
        """The peer sends no more."""
        if self.broken:  # what it had sent before it broke off was read to the end
            self.connection.abort()
            return
        self.ended = True
        other = self.other
        assert other is not None
        self._watch(self.events & ~READING)
        if not other.pending:
            other._finish()

    def _finish(self) -> bool:
        """Everything is written here, and the other side has ended: so does this direction. Whether the connection goes on."""
        other = self.other
        assert other is not None
        if self.ended and not other.pending:
            self.connection.end()
            return False
        try:
            self.sock.shutdown(socket.SHUT_WR)
        except OSError:  # it was reset meanwhile, which reading it would tell; but it may have ended before
            if self.ended:
                self.connection.abort()
                return False
        return True

    def lost(self) -> None:
        """Nothing can be written here any more. What the peer said before it broke off is still to be read: some servers answer and
        close without having read everything, and a reset follows their answer.
        """
        self.broken = True
        other = self.other
        assert other is not None
        self.connection.buffers.kept(-len(self.pending))
        self.pending = b""
        other._watch(other.events & ~READING)
        if self.ended or not self.events & EPOLLIN:
            self.connection.abort()
        else:
            self._watch(READING)

    def _gone(self, events: int) -> None:
        """EPOLLHUP or EPOLLERR while nothing is read here: level-triggered, so it would come again and again."""
        if events & EPOLLERR:
            self.connection.abort()
        else:  # both directions have ended; only what waits for the other side keeps the connection
            self.connection.unwatch(self)

    def _watch(self, events: int) -> None:
        if events != self.events:
            self.events = events
            self.connection.watch(self)

    def close(self, *, reset: bool) -> None:
        """The end of this side. reset: by RST."""
        if self.pending:
            self.connection.buffers.kept(-len(self.pending))
            self.pending = b""
        if reset:
            abort(self.sock)
        self.other = None
        self.connection.bury(self)


def abort(sock: Socket) -> None:
    """Closing the socket will send RST."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _ABORT)
    except OSError:
        return
