"""One UDP session: the datagrams of one client socket to one address of a Service, and of one endpoint back. The hot path.

In: readiness of its two sockets. Out: datagrams on the other one, octets and datagrams counted, and a word to the relay when a side
reports an error. Only plain system calls and slots of one object here: at 60,000 exchanges a second an attribute costs a thousandth of a
core, and an allocation several. What must not happen here: a loop (one datagram for each readiness, so that all have their turn), a clock
(`relay.now` is the time of the last sweep), a choice.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from select import EPOLLERR
from typing import TYPE_CHECKING

from kproxy.relay.counts import RECEIVED, RECEIVED_DATAGRAMS, SENT, SENT_DATAGRAMS, Row
from kproxy.relay.targets import End, Flow, Key, Target
from kproxy.relay.udp_sockets import Address, clear_errors

if TYPE_CHECKING:
    from kproxy.relay.kernel_datagrams import Handed
    from kproxy.relay.udp import UdpRelay
    from kproxy.relay.udp_speakers import Speaker

LARGEST = 65536  # more than a datagram can have
SMALL = 2048  # datagrams below this are copied without asking how much is held already
BUFFER = bytearray(LARGEST)  # of the whole process: what is read is sent on, or copied, before the next read
WHOLE = memoryview(BUFFER)
VIEWS = tuple(WHOLE[:size] for size in range(SMALL))  # cutting a view costs more than finding it


def _nobody(_: object) -> int:
    return 0


class Session:
    """A client's socket as seen from here. Octets and datagrams: `sent` from the client, `received` from the endpoint."""

    __slots__ = (
        "alien", "answered", "asked", "began", "client", "client_recv", "client_send", "client_sock", "end", "end_recv", "end_send",
        "end_sock", "ended", "handed", "held", "key", "number", "received", "received_datagrams", "relay", "retries", "rows", "sent",
        "sent_datagrams", "speaker", "target", "told", "tried", "used", "young",
    )  # fmt: skip

    def __init__(
        self, relay: UdpRelay, key: Key, target: Target, client: Address, asked: Address, speaker: Speaker
    ) -> None:
        self.relay, self.key, self.target = relay, key, target
        self.client, self.asked, self.speaker = client, asked, speaker
        self.number, self.began, self.used = 0, 0.0, 0.0
        self.sent = self.received = self.sent_datagrams = self.received_datagrams = self.retries = 0
        self.told = [0, 0, 0, 0]  # what of the first four is in `rows`
        self.rows: tuple[Row, ...] = ()  # counters of the Service and of the endpoint, while there is one
        self.held: bytes | None = None  # the last datagram of the client, while it is unanswered
        self.tried: list[End] = []  # endpoints that reported an error since one answered
        self.answered = self.ended = False
        self.young = False
        self.handed: Handed | None = None  # what the kernel has of it
        self.alien = False  # the kernel's program does not meet it
        self.client_sock: socket.socket | None = None  # of its own; without one, datagrams come by the listener
        self.client_send: Callable[[memoryview], int] = speaker.send(client)
        self.client_recv: Callable[[bytearray], int]
        self.end: End | None = None
        self.end_sock: socket.socket
        self.end_send: Callable[[memoryview | bytes], object] = self._choose

    def speak(self, sock: socket.socket) -> None:
        """The client has its own socket. While it is young every sender is looked at: some datagrams came before it was connected."""
        self.client_sock, self.client_recv, self.client_send = sock, self._receive_from_anybody, sock.send
        self.young = True

    def use(self, end: End, sock: socket.socket, *rows: Row) -> None:
        """`end` is the endpoint from now on, by this socket; what passes is added to `rows`."""
        self.end, self.end_sock, self.end_recv, self.end_send = end, sock, sock.recv_into, sock.send
        self.rows = rows

    def unuse(self) -> None:
        """No endpoint: the client's next datagram finds one."""
        self.end, self.end_send, self.answered, self.rows = None, self._choose, False, ()

    def forget(self) -> None:
        """It is over: what refers to itself goes, so that memory is free without the garbage collector, which comes rarely."""
        self.end_send = self.client_recv = _nobody

    def _choose(self, view: memoryview | bytes) -> None:
        if self.held is None:  # a large one, of very many
            self.held = bytes(view)
        self.relay.choose(self)

    def settle(self) -> None:
        """Whatever was on its way while the socket was not connected has come: no more looking at senders."""
        self.young = False
        if self.client_sock is not None:
            self.client_recv = self.client_sock.recv_into

    def _receive_from_anybody(self, buffer: bytearray) -> int:
        if self.client_sock is None:
            raise BlockingIOError
        size, peer = self.client_sock.recvfrom_into(buffer)
        if peer != self.client:
            self.relay.strayed(self.asked, peer, WHOLE[:size])
            raise BlockingIOError
        return size

    def from_client(self, _: int) -> None:
        """A datagram of the client is there."""
        receive = (
            self.client_recv
        )  # called where it is, Python 3.11 would look for a method first: 1.5 % of the worker's time
        try:
            size = receive(BUFFER)
        except BlockingIOError:
            return
        except OSError:
            self.relay.client_gone(self)
            return
        self.forward(VIEWS[size] if size < SMALL else WHOLE[:size], size)

    def forward(self, view: memoryview, size: int) -> None:
        """Sends a datagram of the client to the endpoint."""
        self.used = self.relay.now
        self.sent += size
        self.sent_datagrams += 1
        if size < SMALL:
            self.held = bytes(view)
        else:
            self.relay.hold(self, view)
        send = self.end_send
        try:
            send(view)
        except OSError as error:
            self.relay.not_sent(self, error)

    def from_endpoint(self, events: int) -> None:
        """A datagram of the endpoint is there, or an error of one that was sent to it."""
        receive = self.end_recv
        try:
            size = receive(BUFFER)
        except BlockingIOError:
            if events & EPOLLERR:  # details of an error that was told; epoll goes on about them until they are read
                clear_errors(self.end_sock)
            return
        except OSError as error:
            self.relay.not_sent(self, error)
            return
        self.used = self.relay.now
        self.received += size
        self.received_datagrams += 1
        self.held = None
        if not self.answered:
            self.relay.first_answer(self, size)
        send = self.client_send
        try:
            send(VIEWS[size] if size < SMALL else WHOLE[:size])
        except OSError as error:
            self.relay.not_delivered(self, error)

    def tell(self) -> None:
        """Adds to the counters what came since the last time."""
        told = self.told
        now = [self.sent, self.received, self.sent_datagrams, self.received_datagrams]
        if now == told or not self.rows:
            return
        for row in self.rows:
            row[SENT] += now[0] - told[0]
            row[RECEIVED] += now[1] - told[1]
            row[SENT_DATAGRAMS] += now[2] - told[2]
            row[RECEIVED_DATAGRAMS] += now[3] - told[3]
        self.told = now

    def flow(self, wall: float) -> Flow:
        """For people. wall: seconds since the epoch when the relay's clock was at zero."""
        end = self.end
        return Flow(
            worker=os.getpid(),
            number=self.number,
            protocol="UDP",
            client=_text(self.client),
            virtual=_text(self.asked),
            service=self.target.name,
            endpoint=_text(end) if end is not None else "",
            source=_text(self.end_sock.getsockname()) if end is not None else "",
            began=wall + self.began,
            sent=self.sent,
            received=self.received,
            retries=self.retries,
            state="open" if end is not None else "connecting",
            in_kernel=self.handed is not None and self.handed.forwards,
        )


def _text(address: Address) -> str:
    return f"[{address[0]}]:{address[1]}" if ":" in address[0] else f"{address[0]}:{address[1]}"
