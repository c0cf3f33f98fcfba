"""The layout of rings: the endpoints that a worker has chosen in advance, for a client that connects to the same again and again. Pure.

    repeats   client, destination → ring; the key is a flow's (kernel_maps.flow_key) without the client's port
    ring      until when it holds, by which link the client's packets come, `TURN` choices that are taken one after the other and around,
              and up to `ENDS` endpoints that those name

A choice is the number of an end, or `WHOLE_WAY`: that connection comes by the node's rules and the worker's sockets. In an end stands what
a worker would do with a connection to it, and what the program did: when it asked first without an answer since, and how many connections
and octets it carried.

In: addresses, numbers. Out: octets, as in kernel_maps. What must not happen here: a choice.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import NamedTuple

from kproxy.relay import kernel_maps as layout
from kproxy.relay.kernel_maps import Ends, difference

PER_WORKER = 64  # rings of one worker
RINGS = layout.SLOTS * PER_WORKER
TURN, ENDS, WHOLE_WAY = 64, 16, 0xFF
NUMBER = 4  # octets of the value in `repeats`
PATIENCE_NS = 20_000_000  # an endpoint that has not answered a SYN for so long is sent no other

# Offsets in a ring. UNTIL and the turn are 8 octets, link and slot 4, choices one each.
UNTIL_AT, TURN_AT, LINK_AT, SLOT_AT, CHOICES_AT, ENDS_AT = 0, 8, 16, 20, 64, 128
END = 128
RING = ENDS_AT + ENDS * END

# Offsets in an end: addresses and ports as its packets get them, what that changes in sums (there and back), its link; when it was asked
# first without an answer (ns, 0: never), and then eight octets each.
SOURCE_AT, DESTINATION_AT, PORT_AT, THERE_SUM_AT, BACK_SUM_AT, END_LINK_AT = 0, 16, 32, 36, 40, 44
ASKED_AT, OPENED_AT, ENDED_AT, SENT_AT, RECEIVED_AT, FAILED_AT, ODD_AT = 48, 56, 64, 72, 80, 88, 96

_COUNTED = struct.Struct("=7Q")


class Counted(NamedTuple):
    """What the program did with an end. odd: answers that it could not read."""

    asked: int
    opened: int
    ended: int
    sent: int
    received: int
    failed: int
    odd: int


@dataclass(frozen=True, slots=True)
class RingEnd:
    """An endpoint of a ring. ends: of a client's packets when they have left, the port of the source being whichever is free.

    arriving: as they come, the client's port being any. link: by which the endpoint's packets come.
    """

    arriving: Ends
    leaving: Ends
    link: int

    def octets(self) -> bytes:
        """What does not change of an end, ASKED_AT octets."""
        there = difference(
            self.arriving.source + self.arriving.destination, self.leaving.source + self.leaving.destination
        )
        back = difference(
            self.leaving.destination + self.leaving.source, self.arriving.destination + self.arriving.source
        )
        addresses = self.leaving.source.ljust(16, b"\0") + self.leaving.destination.ljust(16, b"\0")
        return (
            addresses
            + struct.pack("!HH", self.leaving.destination_port, 0)
            + struct.pack("=III", there, back, self.link)
        )


def turn(choices: bytes) -> bytes:
    """What stands at CHOICES_AT. choices: at most TURN; what is missing goes the whole way."""
    return choices.ljust(TURN, bytes((WHOLE_WAY,)))


def counted(memory: memoryview, at: int) -> Counted:
    """Of the end that begins there."""
    return Counted(*_COUNTED.unpack_from(memory, at + ASKED_AT))
