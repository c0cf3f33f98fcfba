"""Chain names: upstream's hashes, and proof that every name is short enough and unique."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kproxy.backends.iptables import names
from kproxy.model.desired import Endpoint
from kproxy.model.names import NamespacedName, Protocol, ServicePortName


def _name(text: str, protocol: str = "TCP") -> ServicePortName:
    namespaced, _, port = text.partition(":")
    namespace, _, service = namespaced.partition("/")
    return ServicePortName(NamespacedName(namespace, service), port, Protocol(protocol))


@pytest.mark.parametrize(
    ("name", "protocol", "expected"),
    [
        ("ns1/svc1:p80", "TCP", "XPGD46QRK7WJZT7O"),
        ("ns2/svc2:p80", "TCP", "GNZBNJ2PO5MGZ6GT"),
        ("ns3/svc3:p80", "TCP", "X27LE4BHSL4DOUIK"),
        ("ns4/svc4:p80", "TCP", "4SW47YFZTEDKD3PK"),
        ("ns1/svc1", "TCP", "AQI2S6QIMU7PVVRP"),
        ("default/kubernetes:https", "TCP", "NPX46M4PTMTKRN6Y"),
        ("kube-system/kube-dns:dns", "UDP", "TCOU7JCQXEZGVUNU"),
    ],
)
def test_hash_of_a_service_port_is_upstreams(name: str, protocol: str, expected: str) -> None:
    assert names.service_hash(_name(name, protocol)) == expected


@pytest.mark.parametrize(
    ("address", "expected"), [("10.180.0.1", "SXIVWICOYRO3J4NJ"), ("fd00:10:180::1", "OGYCNMB4EMRUSJ6N")]
)
def test_hash_of_an_endpoint_is_upstreams(address: str, expected: str) -> None:
    endpoint = Endpoint(address=address, port=80)
    assert names.endpoint_chain(_name("ns1/svc1:p80"), endpoint) == f"KUBE-SEP-{expected}"


def test_fixed_names_fit() -> None:
    fixed = {chain for chains in names.FIXED_CHAINS.values() for chain in chains} | {names.KUBELET_FIREWALL}
    assert all(len(chain) <= names.CHAIN_NAME_LIMIT for chain in fixed)


@given(st.text(min_size=1, max_size=400), st.text(max_size=400), st.sampled_from(list(Protocol)))
def test_hashed_names_fit_for_any_service(service: str, port: str, protocol: Protocol) -> None:
    name = ServicePortName(NamespacedName("ns", service), port, protocol)
    hashed = [prefix + names.service_hash(name) for prefix in names.HASHED_PREFIXES]
    hashed.append(names.endpoint_chain(name, Endpoint(address="ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", port=65535)))
    assert all(len(chain) <= names.CHAIN_NAME_LIMIT for chain in hashed)
    assert all(names.is_hashed(chain) for chain in hashed)


@pytest.mark.parametrize(
    "chain",
    [
        names.network_chain("255.255.255.255/32"),
        names.network_chain("10.96.0.0/21"),
        names.network_chain("fd00:10:96::/120"),
        names.port_range_chain("sctp", 32768, 65535),
        names.port_range_chain("tcp", 30000, 30000),
    ],
)
def test_branches_fit_are_swept_by_kube_proxy_and_told_from_chains_of_service_ports(chain: str) -> None:
    swept = ("KUBE-SVC-", "KUBE-SVL-", "KUBE-EXT-", "KUBE-FW-", "KUBE-SEP-")  # kube-proxy v1.36, stale chains
    assert len(chain) <= names.CHAIN_NAME_LIMIT
    assert chain.startswith(swept)
    assert names.is_branch(chain)
    assert names.is_removable("nat", chain)
    assert not any(names.is_branch(prefix + "XPGD46QRK7WJZT7O") for prefix in swept)
    assert not any(names.is_branch(fixed) for chains in names.FIXED_CHAINS.values() for fixed in chains)


def test_only_our_chains_may_be_removed() -> None:
    assert names.is_removable("nat", "KUBE-SEP-SXIVWICOYRO3J4NJ")
    assert names.is_removable("filter", "KUBE-SERVICES")
    assert names.is_removable("raw", "KPROXY-DNS-OUTPUT")
    assert names.is_removable("filter", "KPROXY-DNS-INPUT")
    for table, chain in [
        ("filter", "KUBE-FIREWALL"),
        ("filter", "KUBE-SEP-SXIVWICOYRO3J4NJ"),
        ("mangle", "KUBE-KUBELET-CANARY"),
        ("mangle", "KUBE-IPTABLES-HINT"),
        ("nat", "CNI-HOSTPORT-DNAT"),
        ("nat", "KUBE-HOSTPORTS"),
        ("nat", "PREROUTING"),
    ]:
        assert not names.is_removable(table, chain), chain
