"""The maps by which workers tell the kernel's program (kernel_program.py) which open flows to relay: sizes, and how they are packed. Pure.

    flows   what a packet is → where it goes: two entries for each flow, one for either direction
    pairs   one place for each flow, shared by its two entries and the worker: its state, and what passed. Workers read and write it in
            memory (mmap), without a system call
    leases  until when a worker vouches for its UDP flows and its rings, one place for each
    repeats who opens connections to what again and again → the number of a ring
    rings   the endpoints that a worker has chosen for the next of those connections (kernel_rings.py)

In: addresses, ports, numbers. Out: octets; numbers are in this machine's order, addresses and ports in the network's. What must not happen
here: knowing when a flow may be handed over.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from socket import AF_INET, AF_INET6, inet_pton

import msgspec

SLOTS, PER_SLOT = 8, 4096  # workers at once, during upgrades as well; flows of each
PAIRS = SLOTS * PER_SLOT
OPENERS = 1024  # of a worker's places, the last ones: for connections that the program opens
HANDED = PER_SLOT - OPENERS
TCP, UDP = 6, 17

KEY, VALUE, PAIR, LEASE = 40, 68, 176, 24

# States of a pair. What is off, or over, the program lets pass to the sockets. A vacant one waits for a SYN, and is being opened until the
# endpoint has answered it.
OFF, OBSERVE, FORWARD, OVER, VACANT, OPENING = range(6)

# Offsets in a pair. Those of two parts: the second, of packets from the endpoint, is behind the first, of those from the client.
STATE_AT = 0
SETTLED_AT, ENDED_AT = 4, 6  # one octet each
SEEN_AT, OCTETS_AT, PACKETS_AT = 8, 24, 40  # eight octets each
NOTES_AT, NOTE = 56, 16
REACHED_AT = 88  # four octets each: TCP's number of the octet that the receiver waits for, when it has everything
LINK_AT = 96  # four octets each: the only link that packets of this direction come by; others' are not of this flow
# Of a connection that the program has opened: its ring's number and 1 more (0: a worker has handed it over), which of the ring's ends it
# has, when it began, the ports of client and node, in the network's order, and of either side one octet that says that its peer has heard
# its end.
RING_AT, CHOICE_AT, BEGAN_AT, CLIENT_PORT_AT, OWN_PORT_AT, HEARD_AT = 104, 108, 112, 120, 122, 124
SAVED_AT = NOTES_AT  # instead of notes: the changing parts of the client's SYN, to say it again if the endpoint refuses
# Where packets of each direction went last: when that was found out (ns), the link, and 12 octets of Ethernet's addresses.
WAY_AT, WAY, WAY_LINK_AT, WAY_ADDRESSES_AT = 128, 24, 8, 12

# Offsets in a lease: until when it holds, which place is to be looked at next, and how many of the places for openings there are.
UNTIL_AT, NEXT_AT, OPENERS_AT = 0, 8, 16

# In a note: what was observed of the relay's socket that packets of this direction are for.
CLOCK_AT, READ_FROM_AT, WRITTEN_FROM_AT, TIMES_AT = 0, 4, 8, 12

# What SETTLED says of that socket: the program is to find out whether everything it has sent is acknowledged; it is; the worker will say.
ASK, SETTLED, UNSETTLED = range(3)

# Offsets in a flow's value.
PLACE_AT, DIRECTION_AT, SOURCE_AT, DESTINATION_AT, PORTS_AT = 0, 4, 8, 24, 40
ADDRESS_SUM_AT, PORT_SUM_AT = 44, 48
SEQUENCE_AT, ACKNOWLEDGEMENT_AT, CLOCK_SHIFT_AT, ECHO_SHIFT_AT = 52, 56, 60, 64

FROM_CLIENT, FROM_ENDPOINT = 0, 1

_PORTS = struct.Struct("!HH")
_HEAD, _TAIL = struct.Struct("=II"), struct.Struct("=IIIIII")


@dataclass(frozen=True, slots=True)
class FlowMaps:
    """Descriptors."""

    flows: int
    pairs: int
    leases: int
    repeats: int
    rings: int


class FlowSlot(msgspec.Struct, frozen=True):
    """What goes with the descriptors to a worker. openings: whether the program may open connections for it."""

    slot: int
    openings: bool = True


@dataclass(frozen=True, slots=True)
class Ends:
    """The two ends of a packet: addresses packed, ports as numbers."""

    source: bytes
    destination: bytes
    source_port: int
    destination_port: int

    def turned(self) -> Ends:
        """Of a packet the other way."""
        return Ends(self.destination, self.source, self.destination_port, self.source_port)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shift:
    """What is added to a TCP segment's numbers, modulo 2^32; clock, echo: of its timestamps."""

    sequence: int = 0
    acknowledgement: int = 0
    clock: int = 0
    echo: int = 0


NO_SHIFT = Shift()


def ends(source: tuple[str, int], destination: tuple[str, int]) -> Ends:
    """Of textual addresses of one family. Raises OSError for what is none."""
    family = AF_INET6 if ":" in source[0] else AF_INET
    return Ends(inet_pton(family, source[0]), inet_pton(family, destination[0]), source[1], destination[1])


def flow_key(protocol: int, packet: Ends) -> bytes:
    """Of the packets of one direction, as they arrive. protocol: TCP, UDP."""
    addresses = packet.source.ljust(16, b"\0") + packet.destination.ljust(16, b"\0")
    kind = protocol | (len(packet.source) == 16) << 8
    return addresses + _PORTS.pack(packet.source_port, packet.destination_port) + struct.pack("=I", kind)


def told_of_flow(key: bytes, value: bytes) -> tuple[int, int, int, Ends]:
    """Protocol, place, direction, and the ends of its packets as they leave, of an entry."""
    (kind,) = struct.unpack_from("=I", key, 36)
    size = 16 if kind >> 8 else 4
    place, direction = _HEAD.unpack_from(value)
    source, destination = (value[at : at + size] for at in (SOURCE_AT, DESTINATION_AT))
    return kind & 0xFF, place, direction, Ends(source, destination, *_PORTS.unpack_from(value, PORTS_AT))


def flow_value(place: int, direction: int, arriving: Ends, leaving: Ends, shift: Shift = NO_SHIFT) -> bytes:
    """place: the pair's number. arriving, leaving: what the packet's ends are and what they become."""
    addresses = leaving.source.ljust(16, b"\0") + leaving.destination.ljust(16, b"\0")
    ports = _PORTS.pack(leaving.source_port, leaving.destination_port)
    sums = (
        difference(arriving.source + arriving.destination, leaving.source + leaving.destination),
        difference(_PORTS.pack(arriving.source_port, arriving.destination_port), ports),
    )
    tail = (*sums, shift.sequence, shift.acknowledgement, shift.clock, shift.echo)
    return _HEAD.pack(place, direction) + addresses + ports + _TAIL.pack(*tail)


def difference(old: bytes, new: bytes) -> int:
    """What `new` in the place of `old` changes in a sum of the Internet's (RFC 1624), in this machine's order as the kernel takes it."""
    words = struct.unpack(f"={len(new) // 2}H", new) + tuple(
        word ^ 0xFFFF for word in struct.unpack(f"={len(old) // 2}H", old)
    )
    return sum(words)
