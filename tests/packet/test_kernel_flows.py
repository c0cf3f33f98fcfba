"""`kproxy observe --flows` of a kernel mode: what real conntrack holds of Services, with octets where it counts them."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest

from kproxy.backends.iptables.settings import IptablesSettings
from kproxy.cli.kernel_flows import counts_octets, kernel_flows
from kproxy.errors import UnsupportedError
from kproxy.model.desired import NodeSettings
from kproxy.model.names import Family, NamespacedName, Protocol
from kproxy.model.objects import EndpointSlice, PortSpec, Service, SliceEndpoint, SlicePort
from kproxy.model.snapshot import Snapshot
from kproxy.telemetry.relaypage import FlowPage, FlowsHead, Wanted
from kproxy.telemetry.statepage import FORMAT, Header, NodeState
from tests.support.flow_table import track
from tests.support.netns import Namespace, run, sysctl

NAME = NamespacedName("shop", "dns")
SERVICE = Service(
    name=NAME,
    cluster_ips=("10.96.0.7",),
    ports=(
        PortSpec(name="dns", protocol=Protocol.UDP, port=53, node_port=30053),
        PortSpec(name="http", protocol=Protocol.TCP, port=80),
    ),
)
SLICE = EndpointSlice(
    name=NamespacedName("shop", "dns-1"),
    service=NAME,
    family=Family.IPV4,
    ports=(
        SlicePort(name="dns", protocol=Protocol.UDP, port=5353),
        SlicePort(name="http", protocol=Protocol.TCP, port=8080),
    ),
    endpoints=(SliceEndpoint(address="10.244.0.5", pod="dns-a"),),
)
NODE = "192.0.2.21"
KNOWN = NodeState(
    header=Header(
        format=FORMAT, version="1", settings=NodeSettings(name="node-1"), iptables=IptablesSettings(), local_addresses=[NODE],
        variant="nft", writer=True, heard_s=0.0, synced_s=0.0,
    ),
    snapshot=Snapshot(
        services={NAME: SERVICE}, slices={SLICE.name: SLICE}, slices_of={NAME: (SLICE,)}, local_addresses=frozenset({NODE})
    ),
    problems=(),
)  # fmt: skip


@pytest.fixture
def space() -> Iterator[Namespace]:
    with Namespace.new() as made, made.entered():
        yield made


def look(**wanted: object) -> tuple[FlowsHead, list[FlowPage]]:
    """The page, now."""
    return kernel_flows(KNOWN, "iptables", Wanted(**wanted), time.time())  # type: ignore[arg-type]


def test_flows_to_services_and_no_others(space: Namespace) -> None:
    assert track(
        [
            (("10.244.0.9", 1111), ("10.96.0.7", 53), ("10.244.0.5", 5353)),
            (("203.0.113.9", 2222), (NODE, 30053), ("10.244.0.5", 5353)),
            (("10.244.0.9", 3333), ("10.96.0.8", 53), ("10.244.0.5", 5353)),
            (("10.244.0.9", 4444), ("203.0.113.1", 30053), ("203.0.113.1", 30053)),
        ]
    )
    head, flows = look(sort="service")
    assert (head.open, head.matching, head.shown, head.mode) == (2, 2, 2, "iptables")
    assert [(f.client, f.virtual, f.endpoint, f.endpoint_pod, f.service, f.protocol, f.state) for f in flows] == [
        ("10.244.0.9:1111", "10.96.0.7:53", "10.244.0.5:5353", "shop/dns-a", "shop/dns:dns", "UDP", "open"),
        ("203.0.113.9:2222", f"{NODE}:30053", "10.244.0.5:5353", "shop/dns-a", "shop/dns:dns", "UDP", "open"),
    ]
    head, flows = look(pod="203.0.113.9", limit=5)
    assert (head.open, head.matching) == (2, 1) and [flow.client for flow in flows] == ["203.0.113.9:2222"]


def test_octets_and_age_where_the_kernel_counts(space: Namespace) -> None:
    run(None, "ip", "address", "add", "10.96.0.7/32", "dev", "lo")
    run(
        None,
        "nft",
        "add table ip t; add chain ip t c { type filter hook input priority 0; }; add rule ip t c ct state new accept",
    )
    sysctl(space, netfilter__nf_conntrack_acct=1, netfilter__nf_conntrack_timestamp=1)
    assert counts_octets()
    with socket.create_server(("10.96.0.7", 80)) as server, socket.create_connection(("10.96.0.7", 80)) as client:
        accepted, peer = server.accept()
        with accepted:
            client.sendall(b"x" * 1000)
            assert len(accepted.recv(1000)) == 1000
            _, (flow,) = look(protocol="TCP")
            assert (flow.client, flow.state, flow.service) == (f"{peer[0]}:{peer[1]}", "open", "shop/dns:http")
            assert flow.sent is not None and 1000 < flow.sent < 2000
            assert flow.received is not None and 0 < flow.received < 1000
            assert flow.age_seconds is not None and flow.age_seconds < 60
    sysctl(space, netfilter__nf_conntrack_acct=0)
    assert not counts_octets()


def test_who_may_not_look_is_told_what_it_takes(space: Namespace) -> None:
    pid = os.fork()
    if not pid:  # the child gives its rights up for good
        os.setgroups([])
        os.setresgid(65534, 65534, 65534)
        os.setresuid(65534, 65534, 65534)
        try:
            look()
        except UnsupportedError as error:
            os._exit(0 if "it takes root" in str(error) else 1)
        os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_a_state_without_flows_is_empty(space: Namespace) -> None:
    assert look() == (FlowsHead(mode="iptables", open=0, told=0, matching=0, shown=0), [])
    assert replace(Wanted(), limit=3).of([]) == ([], 0)
