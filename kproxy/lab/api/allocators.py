"""Addresses and ports of Services: who has which, and the next free one.

What comes in: requests of the Service strategy. What comes out: an address or port, or `AllocationError` whose text is the real
allocator's (pkg/registry/core/service/{ip,port}allocator at v1.36.3). As there, the lower part of a range is left for
people who choose for themselves: automatic allocation takes from the upper part first. Random numbers are an argument.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class AllocationError(Exception):
    """The address or port cannot be had; the text says why."""


def band_offset(size: int, largest: int, smallest: int, step: int) -> int:
    """How many values at the start of a range are left for manual choice: min(max(smallest, size/step), largest), 0 if small."""
    if size <= smallest:
        return 0
    return min(max(smallest, size // step), largest)


class IntegerPool:
    """A set of taken integers out of `size`; finds free ones above `reserved` first, starting at a random place."""

    def __init__(self, size: int, reserved: int, choose: Callable[[int], int]) -> None:
        self._size = size
        self._reserved = reserved
        self._choose = choose
        self._taken: set[int] = set()

    def __len__(self) -> int:
        return len(self._taken)

    def take(self, number: int) -> bool:
        """Take one number; False when it is taken already."""
        if number in self._taken:
            return False
        self._taken.add(number)
        return True

    def is_taken(self, number: int) -> bool:
        """Whether a number is taken."""
        return number in self._taken

    def release(self, number: int) -> None:
        """Give a number back; giving back a free one does nothing."""
        self._taken.discard(number)

    def find(self) -> int | None:
        """A free number, not taken yet; None when there is none."""
        for start, stop in ((self._reserved, self._size), (0, self._reserved)):
            width = stop - start
            if width <= 0:
                continue
            first = self._choose(width)
            # At most every taken number is met once before a free one is, so this loop is short unless the range is nearly full.
            for step in range(min(width, len(self._taken) + 1)):
                number = start + (first + step) % width
                if number not in self._taken:
                    return number
        return None


class AddressAllocator:
    """The cluster IPs of one range. Network and (IPv4) broadcast address are never handed out."""

    def __init__(self, network: Network, choose: Callable[[int], int]) -> None:
        self.network = network
        self._base = int(network.network_address) + 1
        count = network.num_addresses - (2 if network.version == 4 else 1)
        self._size = max(0, min(count, 1 << 16))
        self._pool = IntegerPool(self._size, band_offset(self._size, 256, 16, 16), choose)

    @property
    def family(self) -> str:
        """`IPv4` or `IPv6`."""
        return f"IPv{self.network.version}"

    def _number(self, address: str) -> int:
        parsed = ipaddress.ip_address(address)
        number = int(parsed) - self._base
        if parsed.version != self.network.version or not 0 <= number < self._size:
            # Since v1.33 several ranges may exist (ServiceCIDR), and the allocator of all of them says it in these words.
            raise AllocationError("the provided network does not match the current range")
        return number

    def take(self, address: str, *, dry_run: bool = False) -> None:
        """Take one address. AllocationError when it is outside the range or taken."""
        number = self._number(address)
        if self._pool.is_taken(number):
            raise AllocationError("provided IP is already allocated")
        if not dry_run:
            self._pool.take(number)

    def next(self, *, dry_run: bool = False) -> str:
        """Take any free address. AllocationError when the range is full."""
        number = self._pool.find()
        if number is None:
            raise AllocationError("range is full")
        if not dry_run:
            self._pool.take(number)
        return str(ipaddress.ip_address(self._base + number))

    def release(self, address: str) -> None:
        """Give an address back; addresses outside the range are ignored."""
        try:
            self._pool.release(self._number(address))
        except (AllocationError, ValueError):
            return


class PortAllocator:
    """The node ports, one set for all protocols as the real allocator keeps it."""

    def __init__(self, first: int, last: int, choose: Callable[[int], int]) -> None:
        self._first = first
        self._last = last
        size = last - first + 1
        self._pool = IntegerPool(size, band_offset(size, 128, 16, 32), choose)

    def take(self, port: int) -> None:
        """Take one port. AllocationError when it is outside the range or taken."""
        if not self._first <= port <= self._last:
            raise AllocationError(
                f"provided port is not in the valid range. The range of valid ports is {self._first}-{self._last}"
            )
        if not self._pool.take(port - self._first):
            raise AllocationError("provided port is already allocated")

    def next(self) -> int:
        """Take any free port. AllocationError when the range is full."""
        number = self._pool.find()
        if number is None:
            raise AllocationError("range is full")
        self._pool.take(number)
        return self._first + number

    def release(self, port: int) -> None:
        """Give a port back."""
        self._pool.release(port - self._first)


class PortOperation:
    """The port changes of one write: undone when the write fails, made final when it succeeds.

    The real allocator defers releases to the commit, so that a port given up by a failed update is not lost to another Service.
    """

    def __init__(self, ports: PortAllocator, *, dry_run: bool) -> None:
        self._ports = ports
        self._dry_run = dry_run
        self._taken: list[int] = []
        self._released: list[int] = []

    def take(self, port: int) -> None:
        """Take one port for this write."""
        self._ports.take(port)
        self._taken.append(port)

    def next(self) -> int:
        """Take any free port for this write."""
        port = self._ports.next()
        self._taken.append(port)
        return port

    def release(self, port: int) -> None:
        """Give a port back once the write has succeeded."""
        self._released.append(port)

    def commit(self) -> None:
        """The write succeeded; a dry run takes everything back."""
        if self._dry_run:
            self.revert()
            return
        for port in self._released:
            self._ports.release(port)

    def revert(self) -> None:
        """The write failed."""
        for port in self._taken:
            self._ports.release(port)
        self._taken.clear()
