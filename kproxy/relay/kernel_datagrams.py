"""UDP sessions whose datagrams the kernel carries once they last: which, and until when.

In: sessions of UdpRelay, the kernel's flows. Out: entries for those that are answered and go on; in the session itself, at every sweep,
what passed, as if it had come by the worker. What must not happen here: anything on the way of a session that asks one question (two
entries are two writes, 5 us each); a session that lives longer, or is counted otherwise, for being handed over.

Its sockets stay: that to the endpoint holds the port and hears ICMP errors, and whatever the program lets pass (fragments, what no link
leads to, everything while the lease is over) goes by them. Entries go before anything else of a session does. One that is silent gives its
place back after a while, and gets another when it speaks again; one that the program does not meet (of the node's own processes, or
from links without the program) is left alone from then on.

At first its entries only say OBSERVE, for a few exchanges that still come by the sockets, through all rules of the node: the program notes
by which link they come. Whatever claims to be of the session and comes by another, then or later, is not carried (kernel_maps.LINK_AT).
About once a minute it begins so anew: rules of the node that forbid it now take hold.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from itertools import islice
from typing import TYPE_CHECKING

from kproxy.relay.counts import Counts
from kproxy.relay.kernel_flows import KernelFlows, Passed, Way
from kproxy.relay.kernel_maps import FORWARD, OBSERVE, OVER, UDP, ends
from kproxy.relay.poller import Poller
from kproxy.relay.udp_sockets import refused

if TYPE_CHECKING:
    from kproxy.relay.udp_session import Session

log = logging.getLogger("kproxy.relay")

IDLE_S = 10.0
AGAIN_S, _SPREAD = 60.0, 16  # then it comes the whole way again; seconds over which sessions are spread
_LOOK_S, _LOOKED_AT, _OBSERVED_S = 0.1, 512, 2.0
_SEEN = 2  # datagrams of either side
_LASTING, _LIVELY = 32, 4  # datagrams of both sides: in all, and since the last sweep
_NOTHING = Passed((0, 0), (0, 0), (0, 0))


class Handed:
    """What the kernel has of a session. passed: what the session knows of; began: when it was observed first; since: when something passed.

    before: datagrams of either side when it was observed first.
    """

    __slots__ = ("before", "began", "forwards", "passed", "place", "since", "ways")

    def __init__(self, place: int, ways: tuple[Way, Way], since: float, before: tuple[int, int]) -> None:
        self.place, self.ways, self.before = place, ways, before
        self.began = self.since = since
        self.passed, self.forwards = _NOTHING, False


class KernelDatagrams:
    """Of one UdpRelay."""

    def __init__(self, flows: KernelFlows, counts: Counts, poller: Poller, now: Callable[[], float]) -> None:
        """now: monotonic seconds."""
        self._flows, self._counts, self._poller, self._now = flows, counts, poller, now
        self._observed: dict[Session, None] = {}
        self._looks = False

    def consider(self, session: Session) -> None:
        """Hands over what lasts and is lively; before it is told to the counters."""
        fresh = session.sent_datagrams + session.received_datagrams - session.told[2] - session.told[3]
        if fresh >= _LIVELY and session.sent_datagrams + session.received_datagrams >= _LASTING:
            self.hand_over(session)

    def hand_over(self, session: Session) -> None:
        """Its datagrams are to pass without this worker soon, if there is a place and both ways are known."""
        if session.handed is not None or session.alien or not session.answered or session.end is None:
            return
        client, asked, end = session.client, session.asked, session.end
        if len(client) == 4 and client[3]:  # of one link only, which the entries do not name
            return
        try:
            local = session.end_sock.getsockname()
            there = Way(ends(client[:2], asked[:2]), ends(local[:2], end))
        except OSError:
            return
        place = self._flows.take()
        if place is None:
            return
        ways = there, Way(there.leaving.turned(), there.arriving.turned())
        try:
            self._flows.put(place, UDP, ways, OBSERVE)
        except OSError as error:
            log.debug("a session cannot be handed over: %s", error)
            self._flows.give_back(place)
            return
        before = session.sent_datagrams, session.received_datagrams
        session.handed = Handed(place, ways, self._now(), before)
        self._observed[session] = None
        if not self._looks:
            self._looks = True
            self._poller.loop.call_later(_LOOK_S, self._look_again)

    def _look_again(self) -> None:
        try:
            self.look()
        except Exception:
            self._poller.tell("sessions could not be looked at")
        self._looks = bool(self._observed)
        if self._looks:
            self._poller.loop.call_later(_LOOK_S, self._look_again)

    def look(self) -> None:
        """Lets those pass that were observed for long enough."""
        now = self._now()
        for session in [*islice(self._observed, _LOOKED_AT)]:
            del self._observed[session]
            handed = session.handed
            if handed is None or handed.forwards:
                continue
            sent, received = handed.before
            if self._flows.state(handed.place) == OVER:
                session.alien = True
                self.take_back(session)
            elif session.sent_datagrams - sent >= _SEEN and session.received_datagrams - received >= _SEEN:
                self._forward(session, handed, now)
            elif now - handed.since >= _OBSERVED_S:
                self.take_back(session)
            else:
                self._observed[session] = None

    def _forward(self, session: Session, handed: Handed, now: float) -> None:
        links = self._flows.links(handed.place)
        for link, way in zip(links, handed.ways, strict=True):
            if (
                not link
            ):  # its datagrams do not come by any link with the program; whoever sent such a one would be somebody else
                self._flows.remove(UDP, (way,))
        if not any(links):
            session.alien = True
            self.take_back(session)
            return
        handed.forwards, handed.since = True, now
        self._flows.set_state(handed.place, FORWARD)
        self._counts.handed += 1

    def hear(self, session: Session, now: float) -> None:
        """What passed is the session's; ends what nothing passes through."""
        handed = session.handed
        if handed is None or not handed.forwards:
            return
        self._take(session, handed, now)
        if now - handed.since >= IDLE_S or now - handed.began >= AGAIN_S + session.number % _SPREAD:
            self.take_back(session)

    def refused(self, session: Session) -> None:
        """Its endpoint does not take a datagram: what did not come by the worker is held to be sent again, as if it had."""
        if session.handed is not None:
            self.take_back(session)
            if session.held is None:
                session.held = refused(session.end_sock)

    def take_back(self, session: Session) -> None:
        """Its datagrams come by the sockets from here on."""
        handed = session.handed
        if handed is None:
            return
        session.handed = None
        self._flows.end(handed.place, UDP, handed.ways)
        self._take(session, handed, session.relay.now)

    def _take(self, session: Session, handed: Handed, now: float) -> None:
        passed, before = self._flows.passed(handed.place), handed.passed
        if passed.packets == before.packets:
            return
        handed.passed, handed.since = passed, now
        session.used = now
        session.sent += passed.octets[0] - before.octets[0]
        session.received += passed.octets[1] - before.octets[1]
        session.sent_datagrams += passed.packets[0] - before.packets[0]
        answers = passed.packets[1] - before.packets[1]
        session.received_datagrams += answers
        if answers:
            session.held = None
