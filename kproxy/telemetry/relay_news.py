"""What people should hear of the relay without asking: endpoints that are left out and come back, connections that found no room.

In: what the workers told last, looked at every two seconds. Out: log lines and Events, few: an endpoint is named when it goes and when it
is back, and its pauses grow to a minute; want of room is told once a minute. What must not happen here: a line for each connection, or for
each of a thousand endpoints that a broken network takes away at once.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence

from kproxy.explain.flows import end_text
from kproxy.relay.targets import End, Table
from kproxy.telemetry.events import Note
from kproxy.telemetry.logs import fields
from kproxy.telemetry.notices import endpoint_back, endpoint_left_out, relay_overloaded

log = logging.getLogger("kproxy.relay")

LOOK_S = 2.0
_OVERLOAD_S = 60.0  # between two words about want of room
_NAMED = 10  # endpoints in one look
_SERVICES = 3  # Services of an endpoint that get an Event


class RelayNews:
    """One for each controller. ejected: endpoints that are left out, and for how many seconds more; table: what is relayed, None at first.

    shed: how many connections the workers have reset for want of room since they started. record: takes Events. now: monotonic seconds.
    """

    def __init__(
        self,
        node: str,
        *,
        ejected: Callable[[], Mapping[End, float]],
        shed: Callable[[], int],
        table: Callable[[], Table | None],
        record: Callable[[Note], None],
        now: Callable[[], float],
    ) -> None:
        self._node, self._ejected, self._shed, self._table = node, ejected, shed, table
        self._record, self._now = record, now
        self._out: dict[End, tuple[str, ...]] = {}  # and the Service ports that they are of
        self._told_shed = 0
        self._told_at = float("-inf")

    async def keep(self) -> None:
        """Looks for ever."""
        while True:
            await asyncio.sleep(LOOK_S)
            self.look()

    def look(self) -> None:
        """Tells what is new."""
        ejected, table = self._ejected(), self._table() or Table()
        new = [end for end in ejected if end not in self._out]
        gone = [end for end in self._out if end not in ejected]
        services = _services(table, {*new, *gone}) if new or gone else {}
        for end in new:
            self._out[end] = services.get(end, ())
        back = [end for end in gone if services.get(end)]  # the others are no endpoints any more, which is not news
        self._tell_out(new, ejected)
        self._tell_back(back)
        for end in gone:
            del self._out[end]
        self._tell_overload()

    def _tell_out(self, new: Sequence[End], ejected: Mapping[End, float]) -> None:
        for end in new[:_NAMED]:
            facts = fields(endpoint=end_text(*end), services=", ".join(self._out[end]), seconds=round(ejected[end], 1))
            log.warning("Connections to an endpoint fail: it is left out", extra=facts)
            for name in self._out[end][:_SERVICES]:
                self._record(endpoint_left_out(self._node, name, end_text(*end)))
        if len(new) > _NAMED:
            log.warning("Further endpoints are left out", extra=fields(count=len(new) - _NAMED))

    def _tell_back(self, back: Sequence[End]) -> None:
        for end in back[:_NAMED]:
            log.info("An endpoint is back", extra=fields(endpoint=end_text(*end), services=", ".join(self._out[end])))
            for name in self._out[end][:_SERVICES]:
                self._record(endpoint_back(self._node, name, end_text(*end)))
        if len(back) > _NAMED:
            log.info("Further endpoints are back", extra=fields(count=len(back) - _NAMED))

    def _tell_overload(self) -> None:
        shed, now = self._shed(), self._now()
        if shed > self._told_shed and now - self._told_at >= _OVERLOAD_S:
            count, self._told_shed, self._told_at = shed - self._told_shed, shed, now
            log.warning("Connections were reset for want of room", extra=fields(count=count))
            self._record(relay_overloaded(self._node, count))


def _services(table: Table, ends: set[End]) -> dict[End, tuple[str, ...]]:
    """Which Service ports these endpoints are of; those of none are left out."""
    found: dict[End, dict[str, None]] = {}
    for target in {id(target): target for target in table.targets.values()}.values():
        for end in ends.intersection(target.endpoints):
            found.setdefault(end, {})[target.name] = None
    return {end: tuple(sorted(names)) for end, names in found.items()}
