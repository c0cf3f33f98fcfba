"""The addressing plan: nodes, and pod addresses handed out in turn."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest

from kproxy.lab import addressing


def test_three_nodes_have_the_addresses_of_the_notes() -> None:
    found = [(node.name, node.ip, node.pod_cidr, node.gateway) for node in addressing.nodes(3)]
    assert found == [
        ("node-1", "192.168.200.21", "10.244.0.0/24", "10.244.0.1"),
        ("node-2", "192.168.200.22", "10.244.1.0/24", "10.244.1.1"),
        ("node-3", "192.168.200.23", "10.244.2.0/24", "10.244.2.1"),
    ]


@pytest.mark.parametrize("count", [0, 10])
def test_a_lab_of_impossible_size_is_refused(count: int) -> None:
    with pytest.raises(ValueError, match="1 to 9 nodes"):
        addressing.nodes(count)


def test_the_pool_is_exactly_240_to_250() -> None:
    covered = {str(address) for network in addressing.POOL for address in ip_network(network)}
    first, last = ip_address(addressing.POOL_FIRST), ip_address(addressing.POOL_LAST)
    assert covered == {str(ip_address(number)) for number in range(int(first), int(last) + 1)}


def test_pod_addresses_go_round_and_skip_the_taken() -> None:
    node = addressing.nodes(1)[0]
    assert addressing.pod_address(node, frozenset(), 1) == ("10.244.0.2", 2)
    assert addressing.pod_address(node, frozenset({"10.244.0.3"}), 2) == ("10.244.0.4", 4)
    assert addressing.pod_address(node, frozenset(), 254) == ("10.244.0.2", 2)
    everything = frozenset(f"10.244.0.{host}" for host in range(2, 255))
    assert addressing.pod_address(node, everything, 7) is None
    assert addressing.pod_address(node, everything - {"10.244.0.7"}, 7) == ("10.244.0.7", 7)


@pytest.mark.parametrize(
    ("address", "may"),
    [
        ("10.244.0.2", True),
        ("10.244.0.254", True),
        ("10.244.0.1", False),
        ("10.244.0.255", False),
        ("10.244.1.2", False),
        ("192.168.200.1", False),
        ("fd00::2", False),
        ("", False),
        ("x", False),
    ],
)
def test_a_pod_keeps_only_an_address_of_its_node(address: str, may: bool) -> None:
    assert addressing.is_pod_address(addressing.nodes(1)[0], address) is may


def test_the_second_family_has_the_same_host_numbers() -> None:
    node = addressing.nodes(2)[1]
    assert (node.ip6, node.pod_cidr6, node.gateway6) == ("fd00:200::22", "fd00:10:244:1::/64", "fd00:10:244:1::1")
    assert node.pod_ip6("10.244.1.17") == "fd00:10:244:1::11"
