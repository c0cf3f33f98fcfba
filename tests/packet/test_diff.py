"""`kproxy diff` against real tables: what is told, and with which exit code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from kproxy.cli.diff import command
from kproxy.sync.drift import DriftStatus
from kproxy.sync.status import SyncStatus
from kproxy.telemetry.http import Health
from kproxy.telemetry.statepage import StatusPage, drift_page, health_page, sync_page
from tests.packet.node import FULL, Node, desired
from tests.support.state_pages import serving


def _page(node: Node, *, writer: bool = True) -> StatusPage:
    return StatusPage(
        version="1", pid=1, node="testnode", mode="iptables", variant=node.variant.value, evidence=[], writer=writer, api_server="",
        uptime_s=1.0, health=health_page(Health(data_path=True, node_eligible=True, ready=True)),
        sync=sync_page(SyncStatus(), None, 0.0), watches=[], services=2, endpoint_slices=1, service_ports=2, rules=9,
        drift=drift_page(DriftStatus(), 0.0), dns_enabled=False, dns_workers=0, dns_addresses=[], problems=[],
    )  # fmt: skip


def _diff(node: Node, directory: Path, *, writer: bool = True) -> tuple[int, dict[str, Any]]:
    wanted = node.backend.compile(desired(*FULL))
    with serving(directory, [_page(node, writer=writer)], wanted), node.space.entered():
        done = CliRunner().invoke(command, ["--run-dir", str(directory), "-o", "json"])
    return done.exit_code, json.loads(done.stdout) if done.stdout else {}


def test_drift_is_told_in_both_variants(node: Node, tmp_path: Path) -> None:
    node.sync(desired(*FULL))
    assert _diff(node, tmp_path) == (0, {"node": "testnode", "drift": False, "chains": []})
    node.tool("iptables", "-t", "nat", "-D", "PREROUTING", "1")
    node.tool("iptables", "-t", "nat", "-A", "KUBE-MARK-MASQ", "-s", "192.0.2.1", "-j", "RETURN")
    node.tool("ip6tables", "-t", "filter", "-F", "KUBE-FORWARD")
    node.tool("iptables", "-t", "nat", "-A", "PREROUTING", "-s", "192.0.2.9", "-j", "ACCEPT")  # somebody else's
    code, told = _diff(node, tmp_path)
    chains = {(c["family"], c["chain"]): c for c in told["chains"]}
    assert (code, told["drift"], len(chains)) == (1, True, 3)
    assert "KUBE-SERVICES" in chains["IPv4", "PREROUTING"]["missing"][0]
    assert chains["IPv4", "KUBE-MARK-MASQ"]["extra"] == ["-s 192.0.2.1/32 -j RETURN"]
    assert len(chains["IPv6", "KUBE-FORWARD"]["missing"]) == 3


def test_a_family_that_this_machine_cannot_do_lacks_nothing(
    node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node.sync(desired(*FULL))
    node.tool("ip6tables", "-t", "filter", "-F", "KUBE-FORWARD")
    assert _diff(node, tmp_path)[0] == 1
    monkeypatch.setattr("kproxy.backends.iptables.tools._IPV6", tmp_path / "absent")
    assert _diff(node, tmp_path)[0] == 0


def test_one_that_stands_by_wants_nothing(node: Node, tmp_path: Path) -> None:
    assert _diff(node, tmp_path, writer=False)[0] == 1
