"""TCP connections whose octets the kernel carries once they are open: which, from when on, and until when.

In: connections of TcpRelay (one look at each fresh one every 50 ms, at the others once a second), the kernel's flows. Out: entries for
those that talk, their counters, and their end. What must not happen here: anything on the way of a connection that lives for a request;
a connection that is worse for being handed over. Whatever is not as it should be leaves it where it is, with the worker.

A connection goes through:

    talking     octets passed in two looks, one after the other
    observed    its entries say OBSERVE: packets come to the sockets, the program notes the numbers at which both connections began
    handed      the notes agree, both connections have the same options, and nothing much is under way: the entries get what is to be
                added (kernel_numbers.py), the pair says FORWARD, and packets find the other end by themselves

The order of an octet in a connection never changes: the client's n-th is the n-th that the endpoint gets (behind a PROXY header). So what
the worker has read before it hands over it writes after that, at the right place. Its two sockets stay: they hold the ports, and when what
they have sent is acknowledged they are silent. FINs and resets go through the kernel like all else; the pair tells, and the sockets are
closed, by a reset that nobody believes, because its number is of long ago; conntrack does, and forgets.

To end what is handed over while it lasts (an endpoint's drain is over, the worker ends) both peers get a reset with the number they wait
for, from a raw socket (kernel_reset.py).
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import islice
from select import EPOLLERR, EPOLLHUP
from typing import TYPE_CHECKING

from kproxy.relay import kernel_maps as layout
from kproxy.relay.kernel_flows import KernelFlows, Way
from kproxy.relay.kernel_maps import FROM_CLIENT, FROM_ENDPOINT, ends
from kproxy.relay.kernel_numbers import SYN_COUNTED, adds_up, are_alike, clock_of, info_of, shifts
from kproxy.relay.kernel_reset import Resets
from kproxy.relay.poller import Poller
from kproxy.relay.proxy_header import proxy_header
from kproxy.relay.stream import READING
from kproxy.telemetry.logs import fields

if TYPE_CHECKING:
    from kproxy.relay.connection import Connection
    from kproxy.relay.stream import Side

log = logging.getLogger("kproxy.relay")

LOOK_S, FRESH_S = 0.05, 10.0
_LOOKED_AT = 256  # fresh connections in one look
_BEGUN = 64  # of them, and handed over: up to a dozen system calls each
_SWEPT = 500  # carried ones in one sweep: 3 ms
_SEEN = 3  # equal notes of either direction
_OBSERVED_S = 10.0  # then it is left alone until it talks again
_LINGER_S = 2.0  # from the last packet of a connection that has ended, for what is sent again
ASK_AFTER_S, ASK_AGAIN_S, ASKED = 60.0, 15.0, 5  # of silence; how often, before who does not answer is gone


class Handed:
    """A connection with entries. begun: when it was observed; since: when it was handed over, both monotonic."""

    __slots__ = ("asked", "asked_at", "begun", "connection", "forwards", "owed", "place", "since", "told", "ways")

    def __init__(self, connection: Connection, place: int, ways: tuple[Way, Way], begun: float) -> None:
        self.connection, self.place, self.ways, self.begun = connection, place, ways, begun
        self.forwards = False
        self.told = (0, 0)  # octets that the connection's sides know of
        self.owed = False  # one of the sockets has octets that it could not send yet
        self.since, self.asked, self.asked_at = 0.0, 0, 0.0


class KernelStreams:
    """Of one TcpRelay."""

    def __init__(self, flows: KernelFlows, now: Callable[[], float], poller: Poller) -> None:
        """now: monotonic seconds."""
        self._flows, self._now, self._poller = flows, now, poller
        self._talked: dict[Connection, int] = {}  # octets at the last look
        self._observed: dict[Handed, None] = {}
        self._forwarded: dict[Handed, None] = {}
        self._swept: Iterator[Handed] = iter(())
        self._resets = Resets()

    @property
    def forwarded(self) -> int:
        """How many connections the kernel carries."""
        return len(self._forwarded)

    def look(self, fresh: Iterable[Connection]) -> bool:
        """To be called every LOOK_S with connections that are young: begins to observe those that talk, hands over those that were.

        Whether there is anything to look at soon.
        """
        now, before, room = self._now(), self._talked, _BEGUN
        self._talked = {}
        for connection in islice(fresh, _LOOKED_AT):
            if connection.handed is None:
                octets = connection.client.octets + connection.server.octets
                self._talked[connection] = octets
                if (
                    room
                    and before.get(connection, octets) != octets
                    and connection.client.octets
                    and connection.server.octets
                ):
                    room -= 1
                    self.observe(connection, now)
        for handed in [*islice(self._observed, _BEGUN)]:
            del self._observed[handed]
            if now - handed.begun > _OBSERVED_S or self._flows.state(handed.place) != layout.OBSERVE:
                self._leave(handed)
            elif self._times(handed) < _SEEN or not self._hand_over(handed):
                self._observed[handed] = None
        return bool(self._talked or self._observed)

    def moved(self, connection: Connection, now: float) -> None:
        """Octets have passed since the last sweep: of one that is no longer fresh it is told here."""
        if connection.handed is None and connection.began + FRESH_S <= now:
            self.observe(connection, now)

    def observe(self, connection: Connection, now: float) -> None:
        """Puts entries for a connection that talks, if it is one that could be handed over."""
        if not _is_plain(connection):
            return
        place = self._flows.take()
        if place is None:
            return
        try:
            ways = ways_of(connection)
            self._flows.put(place, layout.TCP, ways, layout.OBSERVE)
        except (OSError, ValueError) as error:
            log.debug("a connection is not observed", extra=fields(err=error))
            self._flows.give_back(place)
            return
        connection.handed = handed = Handed(connection, place, ways, now)
        self._observed[handed] = None

    def sweep(self, now: float) -> None:
        """About once a second: what of the forwarded ones is over is closed, and who is silent is asked. A bounded part each time."""
        part = [*islice(self._swept, _SWEPT)]
        if not part:
            self._swept = iter([*self._forwarded])
            part = [*islice(self._swept, _SWEPT)]
        for handed in part:
            if handed not in self._forwarded:
                continue
            self.count(handed)
            seen = [ns / 1e9 for ns in self._flows.passed(handed.place).seen]  # of the clock that `now` is
            if self._flows.state(handed.place) != layout.FORWARD:
                handed.connection.abort()
            elif self._has_ended(handed):
                if now - max(seen) > _LINGER_S:
                    handed.connection.abort()
            else:
                if handed.owed:
                    self._owe(handed)
                self._mind(handed, now, now - max(handed.since, min(seen)))

    def count(self, handed: Handed) -> None:
        """Brings the octets of the connection's sides up to now."""
        octets = self._flows.passed(handed.place).octets
        handed.connection.client.octets += octets[0] - handed.told[0]
        handed.connection.server.octets += octets[1] - handed.told[1]
        handed.told = octets

    def let_go(self, handed: Handed) -> None:
        """Its connection ends: no more entries; peers that do not know it yet get a reset."""
        self._observed.pop(handed, None)
        if self._forwarded.pop(handed, self) is not self:
            self.count(handed)
            if self._flows.state(handed.place) == layout.FORWARD and not self._has_ended(handed):
                self._reset(handed)
        self._flows.end(handed.place, layout.TCP, handed.ways)

    def half_closed(self, handed: Handed) -> bool:
        """Whether one of its peers has ended."""
        return any(self._flows.ended(handed.place))

    def _has_ended(self, handed: Handed) -> bool:
        """Both peers have, by either way."""
        sides = handed.connection.client, handed.connection.server
        return all(by or side.ended for by, side in zip(self._flows.ended(handed.place), sides, strict=True))

    def close(self) -> None:
        """The kernel's flows are gone, or the worker ends: connections that are forwarded end with them."""
        for handed in [*self._forwarded]:
            handed.connection.abort()
        for handed in [*self._observed]:
            self._leave(handed)
        self._resets.close()

    def _leave(self, handed: Handed) -> None:
        """It stays with the worker."""
        self._observed.pop(handed, None)
        handed.connection.handed = None
        self._flows.end(handed.place, layout.TCP, handed.ways)

    def _times(self, handed: Handed) -> int:
        return min(self._flows.note(handed.place, way).times for way in (FROM_CLIENT, FROM_ENDPOINT))

    def _hand_over(self, handed: Handed) -> bool:
        """Whether it is handed over now."""
        connection = handed.connection
        client, server = connection.client, connection.server
        try:
            infos = info_of(client.sock), info_of(server.sock)
            if not _is_plain(connection) or not are_alike(*infos) or any(one.unsent for one in infos):
                return False
            header = _header(connection)
            if not adds_up(infos[0], server.octets, 0) or not adds_up(infos[1], client.octets + header, SYN_COUNTED):
                return False
            notes = (self._flows.note(handed.place, FROM_CLIENT), self._flows.note(handed.place, FROM_ENDPOINT))
            added = shifts(notes, (clock_of(client.sock), clock_of(server.sock)), header)
            ways = (replace(handed.ways[0], shift=added[0]), replace(handed.ways[1], shift=added[1]))
            for side in (client, server):
                side.sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 0)
            self._flows.begin_at(
                handed.place, FROM_CLIENT, notes[1].written_from + SYN_COUNTED + header + client.octets
            )
            self._flows.begin_at(handed.place, FROM_ENDPOINT, notes[0].written_from + server.octets)
            self._flows.put(handed.place, layout.TCP, ways, layout.FORWARD)
        except OSError as error:
            log.debug("a connection is not handed over", extra=fields(err=error))
            return False
        handed.ways, handed.forwards, handed.since = ways, True, self._now()
        self._forwarded[handed] = None
        handed.connection.relay.counts.handed += 1
        # Anew, so that epoll tells what has come before and was not read.
        for side in (client, server):
            self._poller.put(side.fd, READING, self._reader(handed, side))
        return True

    def _reader(self, handed: Handed, side: Side) -> Callable[[int], None]:
        """What still comes by a socket is passed on, and the other socket is owed its acknowledgement."""

        def ready(events: int) -> None:
            if events & (EPOLLERR | EPOLLHUP):  # of a socket that has not heard for long; its peers go on without it
                self._poller.drop(side.fd)
                return
            side.ready(events)
            if handed.connection.handed is handed:
                self._owe(handed)

        return ready

    def _owe(self, handed: Handed) -> None:
        """The program is to look whether the sockets have sent everything, and heard that it came."""
        handed.owed = False
        for side, acknowledged in ((handed.connection.client, FROM_CLIENT), (handed.connection.server, FROM_ENDPOINT)):
            try:
                owed = bool(side.pending) or info_of(side.sock).unsent > 0
            except OSError:
                owed = False
            handed.owed |= owed
            self._flows.settle(handed.place, acknowledged, layout.UNSETTLED if owed else layout.ASK)

    def _mind(self, handed: Handed, now: float, quiet_s: float) -> None:
        """Who is silent for long is asked by the kernel's keep-alive, with the numbers of long ago: whoever is there acknowledges what it
        has, which the program sees. Who is not there after several times is gone.
        """
        if handed.asked and now - handed.asked_at > ASK_AGAIN_S / 2:
            self._keep_alive(handed, 0)
        if quiet_s < ASK_AFTER_S:
            handed.asked = 0
        elif not handed.asked or now - handed.asked_at > ASK_AGAIN_S:
            handed.asked, handed.asked_at = handed.asked + 1, now
            if handed.asked > ASKED:
                handed.connection.abort()
            else:
                self._keep_alive(handed, 1)

    def _keep_alive(self, handed: Handed, value: int) -> None:
        for side in (handed.connection.client, handed.connection.server):
            try:
                side.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 1)
                side.sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, value)
            except OSError:
                return

    def _reset(self, handed: Handed) -> None:
        """Both peers, with the numbers they wait for."""
        for way, back in ((FROM_ENDPOINT, handed.ways[0]), (FROM_CLIENT, handed.ways[1])):
            self._resets.send(back.arriving.turned(), self._flows.reached(handed.place, way))


def _is_plain(connection: Connection) -> bool:
    """Both directions are open, and nothing waits in memory."""
    client, server = connection.client, connection.server
    return client.other is not None and not connection.drain_at and not any(
        side.ended or side.broken or side.eager or side.pending for side in (client, server)
    )  # fmt: skip


def ways_of(connection: Connection) -> tuple[Way, Way]:
    """Both directions. Raises OSError, ValueError where an address has a scope."""
    client, asked = connection.client.sock.getpeername(), connection.client.sock.getsockname()
    source, endpoint = connection.server.sock.getsockname(), connection.server.sock.getpeername()
    if any(name[0].startswith("fe80:") or "%" in name[0] for name in (client, asked, source, endpoint)):
        raise ValueError("an address of one link")
    near, far = ends(client[:2], asked[:2]), ends(source[:2], endpoint[:2])
    return Way(near, far), Way(far.turned(), near.turned())


def _header(connection: Connection) -> int:
    """Octets in front of the client's own."""
    kind = connection.target.proxy_protocol
    if not kind:
        return 0
    return len(proxy_header(kind, connection.client.sock.getpeername()[:2], connection.client.sock.getsockname()[:2]))
