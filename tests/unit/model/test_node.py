"""What the node contributes: its IP, the local detector, where node ports answer."""

from __future__ import annotations

from dataclasses import replace

import pytest

from kproxy.model.desired import DetectMode, LocalDetector, NodePortAddresses, NodeSettings
from kproxy.model.events import AddressesChanged
from kproxy.model.names import Family
from kproxy.model.node import local_detector, node_ip, node_port_addresses, untracked_dns
from kproxy.model.snapshot import Snapshot, fold
from tests.support.addressing import NODE, NODE_IP, NODE_IP_2, six
from tests.support.builders import node, snapshot

_LOCAL = frozenset({NODE_IP, NODE_IP_2, "127.0.0.1", "::1", six(NODE_IP), "fe80::1"})
_HERE = fold(snapshot(node()), [AddressesChanged(_LOCAL)])
_SETTINGS = NodeSettings(name=NODE)
_EVERYWHERE = NodePortAddresses(everywhere=True, loopback=True)


def _at(*addresses: str, loopback: bool = False) -> NodePortAddresses:
    return NodePortAddresses(everywhere=False, loopback=loopback, addresses=addresses)


_NODE_PORTS = [
    pytest.param((), _EVERYWHERE, NodePortAddresses(), id="default"),
    pytest.param(("all",), _EVERYWHERE, NodePortAddresses(), id="all"),
    pytest.param(
        ("0.0.0.0/0",), _EVERYWHERE, NodePortAddresses(), id="everything as a network; IPv6 has no entry: everywhere"
    ),
    pytest.param(("primary",), _at(NODE_IP), _at(six(NODE_IP)), id="primary"),
    pytest.param(("localhost",), _at("127.0.0.1", loopback=True), _at(), id="localhost: never for IPv6"),
    pytest.param(("primary", "127.0.0.0/8"), _at("127.0.0.1", NODE_IP, loopback=True), _at(six(NODE_IP)), id="mixed"),
    pytest.param(("192.168.0.0/16",), _at(NODE_IP, NODE_IP_2), NodePortAddresses(), id="network"),
    pytest.param(("192.168.7.0/24",), _at(), NodePortAddresses(), id="network without any address of the node"),
    pytest.param(("::1/128",), _EVERYWHERE, _at(), id="IPv6 loopback does not work"),
]


@pytest.mark.parametrize(("entries", "four", "six_"), _NODE_PORTS)
def test_node_port_addresses(entries: tuple[str, ...], four: NodePortAddresses, six_: NodePortAddresses) -> None:
    settings = replace(_SETTINGS, node_port_addresses=entries)
    assert node_port_addresses(_HERE, settings, Family.IPV4) == four
    assert node_port_addresses(_HERE, settings, Family.IPV6) == six_


def test_loopback_is_left_out_without_localhost_node_ports() -> None:
    settings = replace(_SETTINGS, node_port_addresses=("127.0.0.0/8", "192.168.0.0/24"), localhost_node_ports=False)
    assert node_port_addresses(_HERE, settings, Family.IPV4) == _at(NODE_IP)
    everywhere = replace(_SETTINGS, localhost_node_ports=False)
    assert node_port_addresses(_HERE, everywhere, Family.IPV4) == NodePortAddresses()


def test_without_interface_addresses_the_nodes_own_stand_in() -> None:
    settings = replace(_SETTINGS, node_port_addresses=("192.168.0.0/16", "localhost"))
    found = node_port_addresses(snapshot(node()), settings, Family.IPV4)
    assert found == _at("127.0.0.1", NODE_IP, loopback=True)


def test_node_ip() -> None:
    assert node_ip(_HERE, _SETTINGS, Family.IPV4) == NODE_IP
    assert node_ip(_HERE, replace(_SETTINGS, node_ips=("192.0.2.1",)), Family.IPV4) == "192.0.2.1"
    assert node_ip(_HERE, replace(_SETTINGS, node_ips=("192.0.2.1",)), Family.IPV6) == six(NODE_IP)
    assert node_ip(Snapshot(), _SETTINGS, Family.IPV4) == "127.0.0.1"
    assert node_ip(Snapshot(), _SETTINGS, Family.IPV6) == "::1"


_DETECTORS = [
    pytest.param(
        {"cluster_cidrs": ("fd00::/8", "10.0.0.0/8", "11.0.0.0/8")}, "10.0.0.0/8", "fd00::/8", id="ClusterCIDR"
    ),
    pytest.param({"detect_mode": DetectMode.NODE_CIDR}, "10.0.0.0/24", "fd00:10::/64", id="NodeCIDR"),
]


@pytest.mark.parametrize(("fields", "four", "six_"), _DETECTORS)
def test_detectors_by_source(fields: dict[str, object], four: str, six_: str) -> None:
    settings = replace(_SETTINGS, **fields)
    assert local_detector(_HERE, settings, Family.IPV4) == LocalDetector(source=four)
    assert local_detector(_HERE, settings, Family.IPV6) == LocalDetector(source=six_)


def test_detectors_by_interface() -> None:
    bridge = replace(_SETTINGS, detect_mode=DetectMode.BRIDGE_INTERFACE, bridge_interface="cni0")
    prefix = replace(_SETTINGS, detect_mode=DetectMode.INTERFACE_NAME_PREFIX, interface_prefix="veth")
    for family in Family:
        assert local_detector(_HERE, bridge, family) == LocalDetector(interface="cni0")
        assert local_detector(_HERE, prefix, family) == LocalDetector(interface_prefix="veth")


@pytest.mark.parametrize("mode", DetectMode)
def test_a_mode_without_its_input_detects_nothing(mode: DetectMode) -> None:
    for family in Family:
        assert local_detector(Snapshot(), replace(_SETTINGS, detect_mode=mode), family) is None


def test_untracked_dns_is_split_by_family() -> None:
    settings = replace(_SETTINGS, dns_addresses=("fd00::a", "10.96.0.10", "10.96.0.10"))
    assert untracked_dns(settings, Family.IPV4) == ("10.96.0.10",)
    assert untracked_dns(settings, Family.IPV6) == ("fd00::a",)
