"""The UDP relay of one worker: a session for each client socket and address of a Service that it writes to.

The first datagram of a client comes to a listener, with the destination that it had. It makes a session, with a socket connected to an
endpoint; what comes back is sent by the speaker of that address (udp_speakers). A session that lasts gets a socket of its own, with the
address that was asked and connected to the client, which the kernel finds from then on (rules and sockets look for connected ones first):
half the work for each datagram, and it stays with this worker whichever others come and go. In: listeners, a Table, a Chooser. Out:
datagrams, counters, and what is open for people.

Sessions are bounded as conntrack's are: by time (30 s, 120 s once both sides have spoken for two seconds: nf_conntrack_proto_udp.c) and
in number, where the one that was idle for longest goes. An endpoint that reports an error (ICMP) or goes away leaves its sessions without
one: another gets the last datagram that was not answered, or whichever comes next. What must not happen here: a wait, work without a bound.
"""

from __future__ import annotations

import contextlib
import errno
import heapq
import select
import socket
import time
from collections.abc import Callable, Iterator
from itertools import islice

from kproxy.relay.choosing import Choosing
from kproxy.relay.counts import BEGAN, FAILED, GAVE_UP, LOST, OPEN, RETRIES, Counts
from kproxy.relay.kernel_datagrams import KernelDatagrams
from kproxy.relay.kernel_flows import KernelFlows
from kproxy.relay.limits import Limits
from kproxy.relay.poller import Poller
from kproxy.relay.targets import End, Flow, Key, Table, Target
from kproxy.relay.udp_held import LargeHeld
from kproxy.relay.udp_session import BUFFER, WHOLE, Session
from kproxy.relay.udp_sockets import CONTROL_OCTETS, Address, clear_errors, original_destination, to_endpoint
from kproxy.relay.udp_speakers import Speakers

UNANSWERED_S, STREAM_S = 30.0, 120.0
_STREAM_AFTER_S = _DRAINING_S = 2.0
_LASTING = 16  # datagrams of a client that ask for a socket of its own; so does speaking for two seconds
_FITS = 1232  # octets: IPv6 has 1280 everywhere
_BURST = 64  # datagrams of a listener in a row; others have their turn then
_TRIES = 8  # endpoints that may report errors for one datagram
_FULL = {errno.EMFILE, errno.ENFILE, errno.EAGAIN}  # EAGAIN of connect: this node has no port left to send from
_NOT_THE_ENDPOINTS_FAULT = {errno.ENOBUFS, errno.ENOMEM, errno.EMSGSIZE, *_FULL}


class UdpRelay:
    """All UDP sessions of one worker. now: the time of the last sweep or first datagram, which is exact enough for idle times."""

    def __init__(
        self, poller: Poller, chooser: Choosing, counts: Counts, limits: Limits, now: Callable[[], float]
    ) -> None:
        """now: monotonic seconds."""
        self._poller, self._chooser, self._counts, self._limits, self._clock = poller, chooser, counts, limits, now
        self.now = now()
        self._wall = time.time() - self.now  # noqa: TID251 - for people
        self._table = Table()
        self._listeners: list[socket.socket] = []
        self._sessions: dict[tuple[Address, Address], Session] = {}  # by client and asked, the oldest in front
        self._of: dict[Key, dict[Session, None]] = {}
        self._large = LargeHeld()
        self.hold = self._large.hold
        self._kernel: KernelDatagrams | None = None
        self._speakers = Speakers(poller, self.strayed, BUFFER)
        self._number = 0
        self._swept = self.now
        self._unstreamed_s = UNANSWERED_S

    @property
    def open(self) -> int:
        """Sessions."""
        return len(self._sessions)

    def listen(self, sock: socket.socket, family: str, entry: str) -> None:
        """Takes first datagrams from `sock` (udp_sockets.listening) until `close_listeners`. family: IPv4, IPv6; entry: INSIDE, OUTSIDE."""
        self._listeners.append(sock)
        self._poller.add(sock.fileno(), select.EPOLLIN, lambda _: self._from_listener(sock, family, entry))

    def use(self, table: Table) -> None:
        """The destinations from now on. Sessions end whose Service is no more; those whose endpoint went choose again when they speak."""
        self.now = self._clock()
        self._table = table
        for key, sessions in [*self._of.items()]:
            target = table.find(*key)
            before = next(iter(sessions)).target
            if target is before:
                continue
            if target is None or target.name != before.name:
                for session in [*sessions]:
                    self._finish(session)
                continue
            stay = {*target.endpoints, *target.keeps}
            for session in sessions:
                if session.end is not None and session.end not in stay:
                    self._release(session)
                session.target = target

    def use_kernel(self, flows: KernelFlows | None) -> None:
        """Sessions that last are carried by the kernel from now on; None: by this worker."""
        if self._kernel is not None:
            for session in self._sessions.values():
                self._kernel.take_back(session)
        self._kernel = None
        if flows is not None:
            self._kernel = KernelDatagrams(flows, self._counts, self._poller, self._clock)

    def flows(self, limit: int) -> list[Flow]:
        """What is open, the oldest first, at most `limit`."""
        return [*self.each_flow(limit)]

    def each_flow(self, limit: int) -> Iterator[Flow]:
        """As `flows`, one after the other; between two of them sessions may come and go."""
        for session in [*islice(self._sessions.values(), max(0, limit))]:
            if not session.ended:
                if self._kernel is not None:
                    self._kernel.hear(session, self.now)
                yield session.flow(self._wall)

    def close_listeners(self) -> None:
        """Takes no more clients; sessions go on."""
        for sock in self._listeners:
            self._poller.bury(sock.fileno(), sock)
        self._listeners.clear()

    def sweep(self, now: float) -> None:
        """To be called about once a second: ends what nobody uses any more, and counts what went through the rest."""
        before, self.now, self._swept = self._swept, now, now
        kernel, draining = self._kernel, self._unstreamed_s == _DRAINING_S
        for session in [*self._sessions.values()]:
            if kernel is not None:
                kernel.hear(session, now)
            if session.used >= before:
                if kernel is not None and (session.client_sock is not None or not draining):
                    kernel.consider(session)
                session.tell()
            stream = session.answered and session.used - session.began >= _STREAM_AFTER_S
            if now - session.used > (STREAM_S if stream else self._unstreamed_s):
                self._finish(session)
            elif session.client_sock is None:
                if session.used - session.began >= _STREAM_AFTER_S:
                    self._house(session)
            elif session.young:
                session.settle()

    def drain(self) -> None:
        """This worker is to end: from now on a question that was answered, or never, is forgotten after two seconds; streams go on."""
        self._unstreamed_s = _DRAINING_S
        for session in self._sessions.values():
            if self._kernel is not None and session.client_sock is None:  # others will be where its datagrams arrive
                self._kernel.take_back(session)

    def close(self) -> None:
        """Ends everything."""
        self.close_listeners()
        for session in [*self._sessions.values()]:
            self._finish(session)
        self._speakers.close()

    # --- from listeners, and from sockets that were not connected yet ---------------------------------------------------------------

    def _from_listener(self, sock: socket.socket, family: str, entry: str) -> None:
        self.now = self._clock()
        for _ in range(_BURST):
            try:
                size, control, _, peer = sock.recvmsg_into([BUFFER], CONTROL_OCTETS)
            except OSError:  # nothing more
                return
            asked = original_destination(control)
            if asked is not None:
                to = asked if family == "IPv4" else (*asked, 0, peer[3])
                self.arrived(entry, family, to, peer, WHOLE[:size])

    def arrived(
        self, entry: str, family: str, asked: Address, client: Address, view: memoryview, last: bool = False
    ) -> None:
        """A datagram of a new client, or of a session without a socket of its own.

        last: it came before and waited for a descriptor.
        """
        session = self._sessions.get((client, asked))
        if session is None:
            key = Key(entry, family, "UDP", asked[0], asked[1])
            target = self._table.find(*key)
            if target is None:
                self._counts.unknown += 1
                return
            try:
                session = self._begin(key, target, client, asked)
            except OSError as error:
                if error.errno in _FULL and not last:
                    words = memoryview(bytes(view))
                    self._make_room(lambda: self.arrived(entry, family, asked, client, words, last=True))
                else:
                    self._counts.service(target.name)[LOST] += 1
                return
        session.forward(view, len(view))
        if session.sent_datagrams == _LASTING:
            self._house(session)
            if self._kernel is not None:
                self._kernel.hand_over(session)

    def strayed(self, asked: Address, client: Address, view: memoryview) -> None:
        """A datagram found a socket that was bound and not yet connected to whom it is for: rules did not look at who sends it."""
        session = self._sessions.get((client, asked))
        if session is not None:
            session.forward(view, len(view))
        else:
            self._counts.strayed += 1

    def _begin(self, key: Key, target: Target, client: Address, asked: Address) -> Session:
        if len(self._sessions) >= self._limits.sessions:
            self._evict()
        session = Session(self, key, target, client, asked, self._speakers.take(key.family, asked))
        self._number += 1
        session.number, session.began, session.used = self._number, self.now, self.now
        self._sessions[client, asked] = session
        self._of.setdefault(key, {})[session] = None
        return session

    def _house(self, session: Session) -> None:
        """Gives a session that lasts a socket of its own, if there is one to be had."""
        if session.ended:  # of those that were idle for longest, to make room for itself
            return
        try:
            sock = session.speaker.own_socket(session.client)
        except OSError:  # tried again while it lasts
            return
        if sock is None:
            return
        try:
            self._poller.add(sock.fileno(), select.EPOLLIN, session.from_client)
        except OSError:  # the epoll has no room; what nobody reads must take nothing from the socket that all share
            session.speaker.own -= 1
            sock.close()
            return
        session.speak(sock)

    def _evict(self) -> None:
        """Ends the sessions that were idle for longest: a few at once, because finding them means looking at all.

        Those that did not last go before those that did, as with conntrack (early_drop): questions by the thousand end no stream.
        """
        sessions = self._sessions.values()
        for session in heapq.nsmallest(max(1, len(sessions) // 64), sessions, key=_worth):
            self._counts.evicted += 1
            self._finish(session)

    def _make_room(self, then: Callable[[], None]) -> None:
        """No descriptor or no port is left: the oldest sessions give up theirs, which are free when this turn of the poller is over."""
        self._evict()
        self._poller.again(then)

    # --- what sessions say ----------------------------------------------------------------------------------------------------------

    def first_answer(self, session: Session, size: int) -> None:
        """The endpoint answers. A router's word that the answer is too large finds its way only to a socket connected to the client."""
        session.answered = True
        session.tried.clear()
        if session.end is not None:
            self._chooser.worked(session.target, session.end, self.now)
        if size > _FITS and session.client_sock is None and session.key.family == "IPv6":
            self._house(session)

    def choose(self, session: Session, last: bool = False) -> None:
        """Finds an endpoint for a session that has none, and sends it what is held. Endpoints that cannot be reached are passed over.

        last: it was tried before, and waited for a descriptor.
        """
        if session.ended or session.end is not None:
            return
        client = session.client
        for end in self._chooser.order(session.target, client[0], self.now):
            if end in session.tried:
                continue
            if len(session.tried) >= _TRIES:
                break
            if session.tried:
                session.retries += 1
                self._count(session, end, RETRIES)
            try:
                self._connect(session, end)
            except OSError as error:
                if error.errno in _FULL and not last:
                    self._make_room(lambda: self.choose(session, last=True))
                elif error.errno in _NOT_THE_ENDPOINTS_FAULT:
                    self._lost(session, error)
                else:
                    self._failed(session, end)
                    continue
                return
            if self._sent_again(session, end):
                return
        session.tried.clear()  # the client's next datagram begins anew
        self._counts.service(session.target.name)[GAVE_UP] += 1

    def _sent_again(self, session: Session, end: End) -> bool:
        """Sends what is held; False when it turned out that nobody is there."""
        if session.held is None:
            return True
        try:
            session.end_send(session.held)
        except OSError as error:
            if error.errno not in _NOT_THE_ENDPOINTS_FAULT:
                self._failed(session, end)
                return False
            self._lost(session, error)
        return True

    def not_sent(self, session: Session, error: OSError) -> None:
        """The endpoint's socket reports an error: of the datagram at hand, or an ICMP message about an earlier one."""
        end = session.end
        if end is None:
            return
        if error.errno in _NOT_THE_ENDPOINTS_FAULT:
            self._lost(session, error)
            return
        if self._kernel is not None:
            self._kernel.refused(session)
        self._failed(session, end)
        if session.held is not None:
            self.choose(session)

    def not_delivered(self, session: Session, error: OSError) -> None:
        """The client's socket reports an error: the client is gone, or its buffers are full."""
        self._counts.service(session.target.name)[LOST] += 1
        if error.errno == errno.ECONNREFUSED:
            self._finish(session)

    def client_gone(self, session: Session) -> None:
        """The client's socket is closed, says its host."""
        self._finish(session)

    # --- endpoints of sessions ------------------------------------------------------------------------------------------------------

    def _connect(self, session: Session, end: End) -> None:
        target, client = session.target, session.client
        # An endpoint that is its own client would throw away what seems to come from itself.
        own = target.preserve_source and end in target.local and end[0] != client[0]
        sock = to_endpoint(end, client if own else None)
        session.use(end, sock, self._counts.service(target.name), self._counts.endpoint(target.name, end))
        self._count(session, end, BEGAN)
        self._count(session, end, OPEN)
        self._chooser.began(target, end)
        self._chooser.took(target, client[0], end, self.now)
        self._poller.add(sock.fileno(), select.EPOLLIN, session.from_endpoint)

    def _failed(self, session: Session, end: End) -> None:
        self._count(session, end, FAILED)
        self._chooser.failed(session.target, end, self.now)
        session.tried.append(end)
        self._release(session)

    def _release(self, session: Session) -> None:
        """Takes the endpoint from a session."""
        end = session.end
        if end is None:
            return
        if self._kernel is not None:
            self._kernel.take_back(session)
        session.tell()
        self._count(session, end, OPEN, -1)
        self._chooser.ended(session.target, end)
        self._poller.bury(session.end_sock.fileno(), session.end_sock)
        session.unuse()

    def _finish(self, session: Session) -> None:
        if session.ended:
            return
        session.ended = True
        self._release(session)
        del self._sessions[session.client, session.asked]
        same = self._of[session.key]
        del same[session]
        if not same:
            del self._of[session.key]
        self._large.forget(session)
        own = session.client_sock
        self._speakers.leave(session.speaker, own is not None)
        if own is not None:
            self._poller.bury(own.fileno(), own)
        session.forget()

    def _lost(self, session: Session, error: OSError) -> None:
        """A datagram was not taken, and nobody is to blame; one that was too large for the way is cut now that its size is known."""
        if error.errno == errno.EMSGSIZE and session.end is not None:
            clear_errors(session.end_sock)
            if session.held is not None:
                with contextlib.suppress(OSError):
                    session.end_send(session.held)
                    return
        self._counts.service(session.target.name)[LOST] += 1

    def _count(self, session: Session, end: End, column: int, by: int = 1) -> None:
        self._counts.service(session.target.name)[column] += by
        self._counts.endpoint(session.target.name, end)[column] += by


def _worth(session: Session) -> tuple[bool, float]:
    return session.used - session.began >= _STREAM_AFTER_S, session.used
