"""A worker's hand on the flows that the kernel relays for it: places, entries, and what passed.

In: the maps' descriptors and this worker's slot (kernel_feed.py). Out: entries in the kernel's hash, a few system calls for each flow, and
numbers of a pair, read from memory. What must not happen here: knowing TCP or UDP, or when a flow may be handed over.

Places in memory are shared with the program, which changes its part of them at any time: each number by itself is whole, two of them may
be a packet apart.
"""

from __future__ import annotations

import logging
import mmap
import struct
from dataclasses import dataclass

from kproxy.ebpf import calls
from kproxy.relay import kernel_maps as layout
from kproxy.relay.kernel_maps import NO_SHIFT, Ends, FlowMaps, Shift, flow_key, flow_value
from kproxy.telemetry.logs import fields

log = logging.getLogger("kproxy.relay")

_PASSED, _NOTE, _WORD, _LONG = struct.Struct("=6Q"), struct.Struct("=iIII"), struct.Struct("=I"), struct.Struct("=Q")
_TWO = struct.Struct("=II")


@dataclass(frozen=True, slots=True)
class Passed:
    """What went through the kernel; of each two, the first is what the client sent. seen: ns of CLOCK_MONOTONIC, 0: nothing yet."""

    seen: tuple[int, int]
    octets: tuple[int, int]
    packets: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Note:
    """Of the relay's socket that packets of one direction are for. times: how often the same was found.

    clock: the peer's timestamps beside milliseconds of CLOCK_MONOTONIC. read_from, written_from: the numbers of the first octet.
    """

    clock: int
    read_from: int
    written_from: int
    times: int


@dataclass(frozen=True, slots=True)
class Way:
    """One direction of a flow: a packet as it arrives, and as it leaves."""

    arriving: Ends
    leaving: Ends
    shift: Shift = NO_SHIFT


class KernelFlows:
    """Of one worker. free: places left."""

    def __init__(self, maps: FlowMaps, slot: int) -> None:
        """Raises OSError, ValueError where the maps cannot be had in memory. The descriptors stay the caller's, who keeps them open."""
        self.slot = slot
        self._flows = calls.Map(maps.flows, layout.KEY, layout.VALUE)
        self._pairs = calls.memory(maps.pairs, layout.PAIRS * layout.PAIR)
        self._leases = calls.memory(maps.leases, layout.SLOTS * layout.LEASE)
        first = slot * layout.PER_SLOT
        self._places: list[int] = [*range(first + layout.HANDED - 1, first - 1, -1)]

    @property
    def free(self) -> int:
        """Places left."""
        return len(self._places)

    @property
    def memory(self) -> mmap.mmap:
        """All pairs."""
        return self._pairs

    def take(self) -> int | None:
        """A place whose numbers are all 0, or None: no more than so many flows at once."""
        if not self._places:
            return None
        place: int = self._places.pop()
        at = place * layout.PAIR
        self._pairs[at : at + layout.PAIR] = bytes(layout.PAIR)
        return place

    def put(self, place: int, protocol: int, ways: tuple[Way, Way], state: int) -> None:
        """Both entries, from the client and from the endpoint, and then the state. Raises OSError; nothing is left behind then."""
        try:
            for direction, way in enumerate(ways):
                self._flows.put(
                    flow_key(protocol, way.arriving), flow_value(place, direction, way.arriving, way.leaving, way.shift)
                )
        except OSError:
            self.remove(protocol, ways)
            raise
        self.set_state(place, state)

    def remove(self, protocol: int, ways: tuple[Way, ...]) -> None:
        """Takes entries away; packets come by the sockets from here on. Raises OSError."""
        for way in ways:
            self.drop(protocol, way)

    def drop(self, protocol: int, way: Way) -> bool:
        """The same with one entry; whether it was there."""
        return self._flows.delete(flow_key(protocol, way.arriving))

    def end(self, place: int, protocol: int, ways: tuple[Way, ...]) -> None:
        """Packets come by the sockets from here on, and the place is free."""
        self.set_state(place, layout.OFF)
        try:
            self.remove(protocol, ways)
        except OSError as error:  # the place stays taken: an entry must not lead to somebody else's pair
            log.warning("An entry of the kernel's flows cannot be removed", extra=fields(err=error))
            return
        self.give_back(place)

    def give_back(self, place: int) -> None:
        """The place is free, after its entries were removed."""
        self.set_state(place, layout.OFF)
        self._places.append(place)

    def state(self, place: int) -> int:
        """See kernel_maps."""
        return int(_WORD.unpack_from(self._pairs, place * layout.PAIR)[0])

    def set_state(self, place: int, state: int) -> None:
        """From the next packet on."""
        _WORD.pack_into(self._pairs, place * layout.PAIR, state)

    def passed(self, place: int) -> Passed:
        """What went through the kernel since `take`."""
        found = _PASSED.unpack_from(self._pairs, place * layout.PAIR + layout.SEEN_AT)
        return Passed((found[0], found[1]), (found[2], found[3]), (found[4], found[5]))

    def links(self, place: int) -> tuple[int, int]:
        """By which link packets of each direction come; 0: none did."""
        first, second = _TWO.unpack_from(self._pairs, place * layout.PAIR + layout.LINK_AT)
        return first, second

    def note(self, place: int, direction: int) -> Note:
        """What was observed."""
        return Note(*_NOTE.unpack_from(self._pairs, place * layout.PAIR + layout.NOTES_AT + direction * layout.NOTE))

    def ended(self, place: int) -> tuple[bool, bool]:
        """TCP: whose FIN has passed."""
        at = place * layout.PAIR + layout.ENDED_AT
        return self._pairs[at] != 0, self._pairs[at + 1] != 0

    def reached(self, place: int, direction: int) -> int:
        """TCP: the number, at the receiver's connection, of the octet behind all that went this way."""
        return int(_WORD.unpack_from(self._pairs, place * layout.PAIR + layout.REACHED_AT + 4 * direction)[0])

    def begin_at(self, place: int, direction: int, number: int) -> None:
        """TCP: the same for what the worker itself has sent."""
        _WORD.pack_into(self._pairs, place * layout.PAIR + layout.REACHED_AT + 4 * direction, number & 0xFFFFFFFF)

    def settle(self, place: int, direction: int, value: int) -> None:
        """TCP: what is to be thought of the relay's socket (kernel_maps.SETTLED …)."""
        self._pairs[place * layout.PAIR + layout.SETTLED_AT + direction] = value

    def settled(self, place: int) -> tuple[bool, bool]:
        """TCP: which of the relay's sockets has heard that everything it sent has come."""
        at = place * layout.PAIR + layout.SETTLED_AT
        return self._pairs[at] == layout.SETTLED, self._pairs[at + 1] == layout.SETTLED

    def vouch(self, until_ns: int) -> None:
        """UDP flows and rings are good until then (CLOCK_MONOTONIC)."""
        _LONG.pack_into(self._leases, self.slot * layout.LEASE, until_ns)

    def offer(self, openers: int) -> None:
        """So many of the places behind HANDED are for connections that the program opens."""
        _WORD.pack_into(self._leases, self.slot * layout.LEASE + layout.OPENERS_AT, openers)

    def close(self) -> None:
        """Lets go of the memory."""
        self._pairs.close()
        self._leases.close()
