"""Two modes in one kernel: whose rules go first while both are there, how mode userspace leaves, `kproxy diff` and `kproxy cleanup`."""

from __future__ import annotations

import asyncio
import json
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from kproxy.app_left import FlowsLeft, IptablesLeft, NftablesLeft
from kproxy.backends.iptables.apply import IptablesBackend
from kproxy.backends.iptables.variant import Variant
from kproxy.backends.userspace import leaving
from kproxy.cli.diff import command
from kproxy.config.config import UserspaceConfig
from kproxy.model.desired import DesiredState
from kproxy.relay.publisher import RelayPublisher
from kproxy.sync.drift import DriftStatus
from kproxy.sync.status import SyncStatus
from kproxy.telemetry.http import Health
from kproxy.telemetry.plane_userspace import UserspacePlane
from kproxy.telemetry.statepage import StatusPage, drift_page, health_page, sync_page
from tests.packet.entered import Ground
from tests.support.addressing import CLUSTER_IP, VIP, six, twin
from tests.support.builders import Built, ep, port, slice_, svc
from tests.support.entrance import Entrance
from tests.support.flows import H, P, Source, X
from tests.support.netns import run
from tests.support.probing import Answered
from tests.support.state_pages import serving_rules

_KPROXY = (sys.executable, "-m", "kproxy")
_ADDRESSES = frozenset({"100.64.1.1", "127.0.0.1"})


@pytest.fixture
def ground() -> Iterator[Ground]:
    made = Ground()
    yield made
    made.close()


def _objects(protocol: str = "TCP", name: str = "svc1") -> tuple[Built, ...]:
    """A Service whose endpoint is the world outside."""
    ports = [("p80", 8080, protocol)]
    return svc(ports=[port(80, "p80", protocol)], lb=[VIP], name=name), slice_(ep(X.address), of=name, ports=ports)


def _iptables(ground: Ground, variant: Variant, desired: DesiredState) -> IptablesBackend:
    with ground.node.entered():
        backend = IptablesBackend(variant=variant)
        asyncio.run(backend.bring(asyncio.run(backend.observe()), desired))
    return backend


@pytest.mark.parametrize("variant", list(Variant))
@pytest.mark.parametrize("protocol", ["TCP", "UDP"])
def test_while_both_are_there_the_relay_has_every_new_connection(
    ground: Ground, variant: Variant, protocol: str
) -> None:
    """DNAT comes after TPROXY and would lead what the relay has taken to a pod's address, where nobody listens for it."""
    four, to = _objects(protocol), (CLUSTER_IP, 80)
    both = (*four, *twin(_objects(protocol, "six")))
    _iptables(ground, variant, ground.desired(*both))
    with Entrance(ground.node):
        ground.bring(*both)
        for source in (P, H, X):
            assert ground.ask(source, to, protocol) == Answered(f"inside/{to[0]}:{to[1]}", source.address), source
            sender, far = twin(source), (six(to[0]), to[1])
            assert ground.ask(sender, far, protocol) == Answered(f"inside/[{far[0]}]:{far[1]}", sender.address), sender
        with ground.node.entered():
            assert f"iptables-{variant.value}" in asyncio.run(IptablesLeft().remove())
            assert asyncio.run(IptablesLeft().remove()) == ""
        assert "KUBE-SERVICES" not in run(ground.node, f"iptables-{variant.value}-save")
        for source in (P, H):
            assert ground.ask(source, to, protocol) == Answered(f"inside/{to[0]}:{to[1]}", source.address), source


def test_udp_flows_of_rules_before_come_to_the_relay_once_they_are_forgotten(ground: Ground) -> None:
    """A client that keeps its port would be led to the endpoint of before by conntrack, and past the relay, for as long as it sends."""
    desired, to = ground.desired(*_objects("UDP")), (CLUSTER_IP, 80)
    iptables = _iptables(ground, Variant.NFT, desired)
    with ground.at(P).entered(), _udp(P) as sock:
        sock.sendto(b"to the endpoint of before", to)
        with Entrance(ground.node):
            ground.bring(*_objects("UDP"))
            with ground.node.entered():
                asyncio.run(iptables.cleanup())
                left = FlowsLeft(lambda: (desired, _ADDRESSES), relays=True)
                assert asyncio.run(left.remove()) == "1 that were led elsewhere"
                assert asyncio.run(left.remove()) == "", "flows of the relay stay"
            sock.sendto(b"once more", to)
            told, sender = sock.recvfrom(256)
    assert (told.split()[0], sender) == (b"inside/172.30.0.41:80", to)


def _udp(source: Source) -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.settimeout(5)
    sock.bind((source.address, 0))
    return sock


def test_who_leaves_keeps_what_is_open_and_takes_nothing_new(ground: Ground) -> None:
    to = (CLUSTER_IP, 80)
    with Entrance(ground.node):
        ground.bring(*_objects())
        with ground.connected(P, to) as of_pod, ground.connected(H, to) as of_node:
            with ground.node.entered():
                assert {family.value for family in leaving.left_behind()} == {"IPv4", "IPv6"}
                asyncio.run(leaving.retire())
            for sock in (of_pod, of_node):
                sock.sendall(b"goes on")
                assert sock.recv(64) == b"goes on"
            for source in (P, H):
                assert ground.ask(source, to) == Answered(f"{to[0]}:{to[1]}", source.address), (
                    "where the default route leads"
                )
            with ground.node.entered():
                asyncio.run(ground.backend.cleanup())
                assert leaving.left_behind() == {}
    assert "fwmark" not in run(ground.node, "ip", "rule")


def test_tables_of_kube_proxy_go_and_others_stay(ground: Ground) -> None:
    for family in ("ip", "ip6"):
        run(
            ground.node,
            "nft",
            f"add table {family} kube-proxy ; add set {family} kube-proxy s {{ type inet_service ; }}",
        )
    run(ground.node, "nft", "add table ip somebody ; add set ip somebody s { type inet_service ; }")
    with ground.node.entered():
        assert asyncio.run(NftablesLeft().remove()) == "table ip kube-proxy, table ip6 kube-proxy"
        assert asyncio.run(NftablesLeft().remove()) == ""
    assert run(ground.node, "nft", "list", "tables").split("\n")[0] == "table ip somebody"


def test_cleanup_takes_the_rules_of_mode_userspace(ground: Ground) -> None:
    ground.bring(*_objects())
    shown = run(ground.node, *_KPROXY, "cleanup", "--dry-run")
    assert "delete table ip kproxy-userspace\n" in shown
    assert "kproxy-userspace" in run(ground.node, "nft", "list", "tables")
    told = json.loads(run(ground.node, *_KPROXY, "cleanup", "-o", "json"))
    assert (told["tables"], told["tablesError"]) == (["ip kproxy-userspace", "ip6 kproxy-userspace"], "")
    assert "kproxy-userspace" not in run(ground.node, "nft", "list", "tables")
    assert "fwmark" not in run(ground.node, "ip", "rule") + run(ground.node, "ip", "-6", "rule")


def _diff(ground: Ground, directory: Path) -> tuple[int, dict[str, tuple[list[str], list[str]]]]:
    page = StatusPage(
        version="1", pid=1, node="testnode", mode="userspace", variant="", evidence=[], writer=True, api_server="", uptime_s=1.0,
        health=health_page(Health(data_path=True, node_eligible=True, ready=True)), sync=sync_page(SyncStatus(), None, 0.0),
        watches=[], services=1, endpoint_slices=1, service_ports=1, rules=3, drift=drift_page(DriftStatus(), 0.0),
        dns_enabled=False, dns_workers=0, dns_addresses=[], problems=[],
    )  # fmt: skip
    plane = UserspacePlane(ground.backend, RelayPublisher(directory / "relay.sock"), UserspaceConfig())
    with serving_rules(directory, page, plane.wanted), ground.node.entered():
        done = CliRunner().invoke(command, ["--run-dir", str(directory), "-o", "json"])
    told = json.loads(done.stdout)
    assert told["drift"] == bool(told["sets"])
    return done.exit_code, {f"{s['family']} {s['what']}": (s["missing"], s["extra"]) for s in told["sets"]}


def test_diff_tells_elements_rules_and_route(ground: Ground, tmp_path: Path) -> None:
    ground.bring(*_objects())
    assert _diff(ground, tmp_path) == (0, {})
    key = f"{CLUSTER_IP} . tcp . 80"
    run(ground.node, "nft", f"delete element ip kproxy-userspace destinations {{ {key} }}")
    run(ground.node, "nft", "add element ip kproxy-userspace relayed { 192.0.2.9 . udp . 9 }")
    run(ground.node, "nft", "insert rule ip6 kproxy-userspace filter-input accept")
    run(ground.node, "ip", "-6", "rule", "del", "priority", "100")
    code, told = _diff(ground, tmp_path)
    assert code == 1
    assert told == {
        "IPv4 destinations": ([f"{key} : goto relay-inside  # ns1/svc1:p80"], []),
        "IPv4 relayed": ([], ["192.0.2.9 . udp . 9"]),
        "IPv6 policy route": ([], []),
        "IPv6 rules": ([], []),
    }
