"""A worker's hand on rings and on the connections that the program opens by them: places, ports, entries, and what passed.

In: the maps' descriptors and this worker's part of the kernel's flows. Out: rings and places in memory that the program shares, entries in
the kernel's hash, and ports of this machine that nobody else gets. What must not happen here: knowing when a ring is wished, or for whom.

A place has a port of the node for its own: a socket that is bound to it, and does nothing else, keeps it from everybody. The program takes
the places in turn, so that a port is used again as late as possible.
"""

from __future__ import annotations

import resource
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from kproxy.ebpf import calls
from kproxy.relay import kernel_maps as layout
from kproxy.relay import kernel_rings as rings
from kproxy.relay.kernel_flows import KernelFlows, Way
from kproxy.relay.kernel_maps import Ends, FlowMaps, flow_key

_WORD, _LONG, _PORT = struct.Struct("=I"), struct.Struct("=Q"), struct.Struct("!H")
_WHOSE = struct.Struct("=IIQ")
_PORTS = struct.Struct("!HH")
_SHARE = 32  # ports may take one in so many of the descriptors that this process may have
_LIVE = (layout.OPENING, layout.FORWARD)


@dataclass(frozen=True, slots=True)
class Opened:
    """A connection that the program has opened. ring, choice: whose it is. began: ns of CLOCK_MONOTONIC. accepted: by the endpoint."""

    place: int
    ring: int
    choice: int
    began: int
    client_port: int
    own_port: int
    accepted: bool


class OpenedFlows:
    """Of one worker."""

    def __init__(self, maps: FlowMaps, flows: KernelFlows) -> None:
        """Raises OSError, ValueError where the rings cannot be had in memory."""
        self.flows = flows
        self._repeats = calls.Map(maps.repeats, layout.KEY, rings.NUMBER)
        self._rings = calls.memory(maps.rings, rings.RINGS * rings.RING)
        self._memory = memoryview(self._rings)
        first = flows.slot * rings.PER_WORKER
        self._free: list[int] = [*range(first + rings.PER_WORKER - 1, first - 1, -1)]
        self._first = flows.slot * layout.PER_SLOT + layout.HANDED
        self._ports: list[socket.socket] = []

    @property
    def room(self) -> int:
        """How many such connections there may be at once."""
        return len(self._ports)

    # --- rings ------------------------------------------------------------------------------------------------------------------------

    def take(self) -> int | None:
        """A ring that holds nothing, or None: no more of them."""
        if not self._free:
            return None
        ring = self._free.pop()
        self._memory[ring * rings.RING : (ring + 1) * rings.RING] = bytes(rings.RING)
        return ring

    def lead(self, ring: int, key: bytes) -> bool:
        """The client's connections go by it from now on; False where another worker has one for them. Raises OSError."""
        if self._repeats.get(key) is not None:
            return False
        self._repeats.put(key, _WORD.pack(ring))
        return True

    def give_back(self, ring: int, key: bytes) -> None:
        """Nobody goes by it, and nothing is open that came by it. Raises OSError."""
        self.hold(ring, 0)
        found = self._repeats.get(key)
        if found is not None and _WORD.unpack(found)[0] == ring:
            self._repeats.delete(key)
        self._free.append(ring)

    def hold(self, ring: int, until_ns: int) -> None:
        """It is good until then (CLOCK_MONOTONIC)."""
        _LONG.pack_into(self._memory, ring * rings.RING + rings.UNTIL_AT, until_ns)

    def choose(self, ring: int, link: int, choices: bytes) -> None:
        """The client's link, and the next choices."""
        at = ring * rings.RING
        _WORD.pack_into(self._memory, at + rings.LINK_AT, link)
        _WORD.pack_into(self._memory, at + rings.SLOT_AT, self.flows.slot)
        self._memory[at + rings.CHOICES_AT : at + rings.ENDS_AT] = rings.turn(choices)

    def set_end(self, ring: int, choice: int, octets: bytes) -> None:
        """Whom a choice means. octets: RingEnd.octets(). Counters go on."""
        at = self._end(ring, choice)
        self._memory[at : at + len(octets)] = octets

    def counted(self, ring: int, choice: int) -> rings.Counted:
        """What the program did with it."""
        return rings.counted(self._memory, self._end(ring, choice))

    def forgive(self, ring: int, choice: int) -> None:
        """It may be asked again, although it has not answered."""
        _LONG.pack_into(self._memory, self._end(ring, choice) + rings.ASKED_AT, 0)

    def _end(self, ring: int, choice: int) -> int:
        return ring * rings.RING + rings.ENDS_AT + choice * rings.END

    # --- places -----------------------------------------------------------------------------------------------------------------------

    def grow(self, wanted: int) -> None:
        """As many places as that, if there are ports. Raises OSError; those that there are stay."""
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        for number in range(len(self._ports), min(wanted, layout.OPENERS, max(16, soft // _SHARE))):
            sock = _bound()
            self._ports.append(sock)
            pair = (self._first + number) * layout.PAIR
            memory = self.flows.memory
            memory[pair : pair + layout.PAIR] = bytes(layout.PAIR)
            _PORT.pack_into(memory, pair + layout.OWN_PORT_AT, sock.getsockname()[1])
            self.flows.set_state(self._first + number, layout.VACANT)
        self.flows.offer(len(self._ports))

    def open(self) -> Iterator[Opened]:
        """Those that are open, or being opened."""
        for place in range(self._first, self._first + len(self._ports)):
            state = self.flows.state(place)
            if state in _LIVE:
                at = place * layout.PAIR
                ring, choice, began = _WHOSE.unpack_from(self.flows.memory, at + layout.RING_AT)
                client, own = _PORTS.unpack_from(self.flows.memory, at + layout.CLIENT_PORT_AT)
                yield Opened(place, ring - 1, choice, began, client, own, state == layout.FORWARD)

    def end(self, opened: Opened, ways: tuple[Way, Way]) -> bool:
        """Takes it away, uncounted, and its place is vacant again; False where the program was first. Raises OSError."""
        if not self.flows.drop(layout.TCP, ways[0]):
            return False
        self.flows.drop(layout.TCP, ways[1])
        self.flows.set_state(opened.place, layout.VACANT)
        return True

    def close(self) -> None:
        """Opens no more; nothing is open. Ports are anybody's."""
        self.flows.offer(0)
        for number in range(len(self._ports)):
            self.flows.set_state(self._first + number, layout.OFF)
        for sock in self._ports:
            sock.close()
        self._ports.clear()
        self._memory.release()
        self._rings.close()


def repeat_key(packet: Ends) -> bytes:
    """Of a client's connections, whatever their port."""
    return flow_key(layout.TCP, Ends(packet.source, packet.destination, 0, packet.destination_port))


def _bound() -> socket.socket:
    """A socket with a port that nobody else on this machine gets, for either family. Raises OSError."""
    try:
        sock = socket.socket(socket.AF_INET6, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    except OSError:
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        sock.setsockopt(
            socket.SOL_SOCKET, socket.SO_REUSEADDR, 1
        )  # a server that does the same may listen there nevertheless
        if sock.family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        sock.bind(("::" if sock.family == socket.AF_INET6 else "0.0.0.0", 0))
    except OSError:
        sock.close()
        raise
    return sock
