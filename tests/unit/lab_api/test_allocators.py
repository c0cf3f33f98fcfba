"""Cluster IPs and node ports."""

from __future__ import annotations

import ipaddress
import random

import pytest

from kproxy.lab.api.allocators import AddressAllocator, AllocationError, PortAllocator, PortOperation, band_offset


def addresses(network: str) -> AddressAllocator:
    return AddressAllocator(ipaddress.ip_network(network), random.Random(1).randrange)


def test_automatic_addresses_leave_the_lower_band_for_people() -> None:
    # /24: 254 addresses, of which min(max(16, 254/16), 256) = 16 are left for manual choice first.
    allocator = addresses("10.96.0.0/24")
    taken = {int(ipaddress.ip_address(allocator.next())) & 255 for _ in range(254 - 16)}
    assert taken == set(range(17, 255))
    assert int(ipaddress.ip_address(allocator.next())) & 255 <= 16, "the band is used when nothing else is left"


def test_a_range_can_be_used_up_and_given_back() -> None:
    allocator = addresses("10.96.0.0/29")
    given = {allocator.next() for _ in range(6)}
    assert given == {f"10.96.0.{last}" for last in range(1, 7)}, "neither network nor broadcast address"
    with pytest.raises(AllocationError, match="range is full"):
        allocator.next()
    allocator.release("10.96.0.3")
    assert allocator.next() == "10.96.0.3"


def test_chosen_addresses() -> None:
    allocator = addresses("10.96.0.0/16")
    allocator.take("10.96.0.10")
    with pytest.raises(AllocationError, match="provided IP is already allocated"):
        allocator.take("10.96.0.10")
    for outside in ("10.0.0.1", "10.96.0.0", "10.96.255.255", "fd00::1"):
        with pytest.raises(AllocationError, match="the provided network does not match the current range"):
            allocator.take(outside)
    allocator.take("10.96.0.11", dry_run=True)
    allocator.take("10.96.0.11")


def test_ipv6_range() -> None:
    allocator = addresses("fd00:10:96::/112")
    assert ipaddress.ip_address(allocator.next()) in ipaddress.ip_network("fd00:10:96::/112")


def test_ports() -> None:
    ports = PortAllocator(30000, 32767, random.Random(1).randrange)
    ports.take(30080)
    with pytest.raises(AllocationError, match="provided port is already allocated"):
        ports.take(30080)
    with pytest.raises(AllocationError, match="The range of valid ports is 30000-32767"):
        ports.take(80)
    assert 30086 <= ports.next() <= 32767, "the first 86 are left for people"


def test_a_failed_write_takes_nothing_and_releases_nothing() -> None:
    ports = PortAllocator(30000, 30010, random.Random(1).randrange)
    ports.take(30001)
    operation = PortOperation(ports, dry_run=False)
    operation.take(30002)
    operation.release(30001)
    operation.revert()
    ports.take(30002)
    with pytest.raises(AllocationError):
        ports.take(30001)


def test_a_dry_run_takes_nothing() -> None:
    ports = PortAllocator(30000, 30010, random.Random(1).randrange)
    operation = PortOperation(ports, dry_run=True)
    operation.take(30002)
    operation.commit()
    ports.take(30002)


@pytest.mark.parametrize(("size", "offset"), [(2768, 86), (16, 0), (17, 16), (65534, 128)])
def test_band(size: int, offset: int) -> None:
    assert band_offset(size, 128, 16, 32) == offset
