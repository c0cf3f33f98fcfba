"""Finding an endpoint for an accepted client: one after the other, and side by side when one is silent.

In: the order of endpoints from the chooser. Out: a Connection with the first endpoint that accepts, or a reset for the client when none
does. Refused or unreachable: the next at once. Silent for `hedge_after_s` (a dead node answers nothing, and the kernel would try for two
minutes): another one beside it, and the first to accept wins. The client is not read before: what it says belongs to whoever accepts, and
a protocol in which the server speaks first works like any other. What must not happen here: an attempt that is not ended, one way or the
other.
"""

from __future__ import annotations

import errno
import socket
from _socket import socket as Socket
from collections.abc import Iterator
from select import EPOLLERR, EPOLLHUP, EPOLLOUT
from typing import TYPE_CHECKING

from kproxy.relay.connection import Connection, address_text
from kproxy.relay.counts import FAILED, GAVE_UP
from kproxy.relay.stream import abort
from kproxy.relay.targets import End, Flow, Target
from kproxy.relay.udp_sockets import IP_TRANSPARENT, IPV6_TRANSPARENT

if TYPE_CHECKING:
    from kproxy.relay.tcp import TcpRelay

BESIDE = 4  # attempts at the same time for one client; the oldest makes room when there is another endpoint to try
_SECOND_SYN_S = (
    1.5  # the kernel sends a SYN again after a second (RFC 6298, 2.1), and somebody has to have time to answer
)
_PENDING = (errno.EINPROGRESS, errno.EALREADY)
CONNECTED = (0, errno.EISCONN)
_FULL = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_TYPE = socket.SOCK_STREAM | socket.SOCK_NONBLOCK
_IP_BIND_ADDRESS_NO_PORT = (
    24  # of Linux, for both families: the port is chosen by connect, when the whole address is known
)


class Attempt:
    """A socket on its way to an endpoint."""

    __slots__ = ("connecting", "end", "fd", "since", "sock")

    def __init__(self, connecting: Connecting, end: End, sock: Socket, since: float) -> None:
        self.connecting, self.end, self.sock, self.since = connecting, end, sock, since
        self.fd = sock.fileno()

    def ready(self, _events: int) -> None:
        """Epoll's word: it is decided."""
        self.connecting.decided(self, _connect_again(self.sock, self.end))


class Connecting:
    """An accepted client without an endpoint, yet."""

    __slots__ = (
        "asked", "attempts", "began", "done", "entry", "fd", "number", "order", "peer", "relay", "sock", "target", "tries"
    )  # fmt: skip

    def __init__(
        self,
        relay: TcpRelay,
        target: Target,
        entry: str,
        sock: tuple[Socket, int],
        peer: End,
        asked: End,
        number: int,
        now: float,
        order: Iterator[End],
    ) -> None:
        """sock: and its descriptor. peer: the client; asked: the destination as the client sees it; IPv6 has more behind; monotonic now.
        order: of the endpoints to try.
        """
        self.relay, self.target, self.entry, self.peer, self.asked = relay, target, entry, peer, asked
        self.number, self.began, self.order = number, now, order
        self.sock, self.fd = sock
        self.attempts: list[Attempt] = []
        self.tries = 0
        self.done = False

    @property
    def open(self) -> bool:
        """Whether it still waits for an endpoint."""
        return not self.done

    def advance(self, now: float) -> None:
        """Tries endpoints until one has accepted or does not answer at once. None is left: waits for those that are on their way."""
        for end in self.order:
            if self.tried(end, *reach(self.target, self.peer[0], end), now):
                return
        if not self.attempts:
            self._give_up()

    def tried(self, end: End, sock: Socket | None, result: int, now: float) -> bool:
        """What `reach` brought: whether that is enough for now, or the next one is to be tried."""
        relay, target = self.relay, self.target
        self.tries += 1
        if sock is None and result in _FULL:  # of this worker, not the endpoint's fault
            relay.counts.shed += 1
            if not self.attempts:
                self._give_up()
            return True
        relay.chooser.began(target, end)
        if sock is not None and result in CONNECTED:
            self._won(end, sock, sock.fileno(), now)
            return True
        if sock is not None and result in _PENDING:
            if len(self.attempts) >= BESIDE:
                self._lose(self.attempts[0], now)
            attempt = Attempt(self, end, sock, now)
            self.attempts.append(attempt)
            relay.poller.add(attempt.fd, EPOLLOUT, attempt.ready)
            return True
        if sock is not None:
            sock.close()
        self._failed(end, now)
        return False

    def decided(self, attempt: Attempt, result: int) -> None:
        """The kernel knows how this attempt ended. result: an errno, 0 for success."""
        if self.done or result in _PENDING:
            return
        now = self.relay.now()
        if result in CONNECTED:
            self.attempts.remove(attempt)
            self._won(attempt.end, attempt.sock, attempt.fd, now)
        else:
            self._lose(attempt, now)
            self.advance(now)

    def silent(self, now: float) -> None:
        """Nobody has answered for `hedge_after_s`, once more."""
        if now - self.began >= self.relay.limits.connect_timeout_s:
            for attempt in [*self.attempts]:
                self._lose(attempt, now)
            self._give_up()
            return
        self.relay.poller.put(self.fd, 0, self._client_ready)
        if self.target.affinity_s and self.attempts and now - self.attempts[-1].since < _SECOND_SYN_S:
            return  # whoever belongs to an endpoint does not leave it for one lost packet, nor for a busy moment
        tried = self.tries
        self.advance(now)
        self.relay.counts.hedged += self.tries > tried

    def cancel(self) -> None:
        """The client is reset, and every attempt ended, without a word about the endpoints."""
        for attempt in self.attempts:
            self.relay.chooser.ended(self.target, attempt.end)
            self.relay.poller.bury(attempt.fd, attempt.sock)
        self.attempts.clear()
        self._refuse()

    def flow(self, worker: int, wall: float) -> Flow:
        """For people. wall: the moment when the monotonic clock was 0, in seconds since the epoch."""
        return Flow(
            worker=worker,
            number=self.number,
            protocol="TCP",
            client=address_text(self.peer),
            virtual=address_text(self.asked),
            service=self.target.name,
            endpoint="",
            began=wall + self.began,
            retries=max(0, self.tries - 1),
            state="connecting",
        )

    def _client_ready(self, events: int) -> None:
        """Nothing is read here; but a client that has reset its connection needs no endpoint."""
        if events & (EPOLLERR | EPOLLHUP):
            self.cancel()

    def _won(self, end: End, sock: Socket, fd: int, now: float) -> None:
        """The endpoint has accepted."""
        relay = self.relay
        self.done = True
        if self.attempts:
            self._lose_others(now)
        client, retries = (self.sock, self.fd), self.tries - 1
        connection = Connection(
            relay, self.target, self.entry, client, end, (sock, fd), self.number, self.began, retries
        )
        relay.connected(self, connection)
        relay.begin(connection, self.peer, self.asked, now)

    def _lose_others(self, now: float) -> None:
        """Somebody else was first. Who has been silent for long has failed; who has not is not to blame."""
        for other in self.attempts:
            if now - other.since >= self.relay.limits.hedge_after_s:
                self._count_failure(other.end, now)
            self.relay.chooser.ended(self.target, other.end)
            self.relay.poller.bury(other.fd, other.sock)
        self.attempts.clear()

    def _lose(self, attempt: Attempt, now: float) -> None:
        """The endpoint has not accepted."""
        self.attempts.remove(attempt)
        self.relay.poller.bury(attempt.fd, attempt.sock)
        self._failed(attempt.end, now)

    def _failed(self, end: End, now: float) -> None:
        self.relay.chooser.ended(self.target, end)
        self._count_failure(end, now)

    def _count_failure(self, end: End, now: float) -> None:
        self.relay.chooser.failed(self.target, end, now)
        self.relay.counts.service(self.target.name)[FAILED] += 1
        self.relay.counts.endpoint(self.target.name, end)[FAILED] += 1

    def _give_up(self) -> None:
        self.relay.counts.service(self.target.name)[GAVE_UP] += 1
        self._refuse()

    def _refuse(self) -> None:
        self.done = True
        self.relay.gave_up(self)
        abort(self.sock)
        self.relay.poller.bury(self.fd, self.sock)


def reach(target: Target, client: str, end: End) -> tuple[Socket | None, int]:
    """A socket on its way to `end`, if there is one, and what the kernel says of it: an errno, 0 for connected.

    Between network namespaces of one machine the handshake is over when `connect` returns, although it says EINPROGRESS (the answer
    waits in the socket's backlog): asking again costs 0.4 µs and saves a turn of the poller.
    """
    sock = None
    try:
        sock = _socket(target, client, end)
        result = sock.connect_ex(end)
        if result == errno.EINPROGRESS:
            result = sock.connect_ex(end)
    except OSError as error:
        result = error.errno or errno.EINVAL
    return sock, result


def _socket(target: Target, client: str, end: End) -> Socket:
    """A socket for an attempt; OSError when there is none, or the client's address cannot be had."""
    six = target.family == "IPv6"
    sock = Socket(socket.AF_INET6 if six else socket.AF_INET, _TYPE, 0)
    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # Always: by that rules know what the relay sends, and never bring it back (an endpoint may be an address of a Service).
        if six:
            sock.setsockopt(socket.IPPROTO_IPV6, IPV6_TRANSPARENT, 1)
        else:
            sock.setsockopt(socket.IPPROTO_IP, IP_TRANSPARENT, 1)
        if target.preserve_source and end in target.local and _is_worth_showing(client, end):
            sock.setsockopt(socket.IPPROTO_IP, _IP_BIND_ADDRESS_NO_PORT, 1)
            sock.bind((client, 0))
    except OSError:
        sock.close()
        raise
    return sock


def _connect_again(sock: Socket, end: End) -> int:
    """What became of an attempt: an errno, 0 for success."""
    try:
        return sock.connect_ex(end)
    except OSError as error:
        return error.errno or errno.EINVAL


def _is_worth_showing(client: str, end: End) -> bool:
    """Whether `end` can answer to the client's own address. A pod that reaches itself would get packets from itself, and drop them;
    loopback and link-local addresses mean something else to it.
    """
    return client != end[0] and not client.startswith(("127.", "fe80:")) and client != "::1"
