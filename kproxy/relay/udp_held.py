"""Large datagrams that are held to be sent again: copies, of so many sessions at the most."""

from __future__ import annotations

from collections import OrderedDict

from kproxy.relay.udp_session import SMALL, Session

_MOST = 128  # datagrams of SMALL octets and more: 8 MiB


class LargeHeld:
    """Of one relay. What must not happen here: more than _MOST copies at a time."""

    def __init__(self) -> None:
        self._of: OrderedDict[Session, None] = OrderedDict()  # those that may hold a large datagram

    def hold(self, session: Session, view: memoryview) -> None:
        """Keeps a copy, in place of the oldest one."""
        session.held = bytes(view)
        self._of[session] = None
        self._of.move_to_end(session)
        if len(self._of) > _MOST:
            other, _ = self._of.popitem(last=False)
            if other.held is not None and len(other.held) >= SMALL:
                other.held = None

    def forget(self, session: Session) -> None:
        """It is over."""
        self._of.pop(session, None)
