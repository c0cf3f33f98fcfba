"""`kproxy status` against a served state socket: exit codes, waiting, text, JSON."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner, Result

from kproxy.cli.status import command
from kproxy.errors import UnsupportedError
from kproxy.model.names import NamespacedName
from kproxy.model.objects import Kind, Problem
from kproxy.sync.drift import DriftStatus
from kproxy.sync.status import SyncStatus
from kproxy.telemetry.http import Health
from kproxy.telemetry.statepage import RelayPage, StatusPage, drift_page, health_page, sync_page, watch_page
from kproxy.watch.reflector import WatchStats
from tests.support.state_pages import serving

NOW = 1000.0
WELL = Health(data_path=True, node_eligible=True, ready=True)
WAITING = Health(data_path=True, node_eligible=True, ready=False, waiting_for="the first list of Service")
LATE = Health(data_path=False, node_eligible=True, ready=True)
HOSTILE = Problem("Service", str(NamespacedName("a", "b")), "odd \x1b[31m\nfake line\u202e")


def _page(health: Health = WELL, *, writer: bool = True, drift: DriftStatus | None = None) -> StatusPage:
    status = SyncStatus(
        writer=writer,
        syncs=3,
        failures=1,
        services=2,
        last_duration_s=0.25,
        problems=(HOSTILE,),
        last_error="\x1b]0;x\x07",
    )
    heard = WatchStats(
        Kind.SERVICE, synced=True, last_heard_s=NOW - 2, relists=1, errors=4, last_error="\x9b31mno", waits_s=7.5
    )
    return StatusPage(
        version="1.2", pid=42, node="node-1", mode="iptables", variant="nft", evidence=["rules of the kubelet \x1b[2J", "a warning"],
        writer=writer, api_server="https://10.0.0.1:6443", uptime_s=7300.0, health=health_page(health),
        sync=sync_page(status, NOW - 61, NOW), watches=[watch_page(heard, NOW), watch_page(WatchStats(Kind.NODE), NOW)],
        services=2, endpoint_slices=3, service_ports=4, rules=91, drift=drift_page(drift or DriftStatus(watched=True), NOW),
        dns_enabled=True, dns_workers=2, dns_addresses=["10.96.0.10"], problems=list(status.problems),
    )  # fmt: skip


def _run(directory: Path, *words: str) -> Result:
    return CliRunner().invoke(command, ["--run-dir", str(directory), *words])


@pytest.mark.parametrize(
    ("health", "code", "word"),
    [
        (WELL, 0, "ready and healthy"),
        (WAITING, 1, "NOT READY, waiting for the first list of Service"),
        (LATE, 1, "NOT HEALTHY"),
    ],
    ids=["well", "not ready", "late"],
)
def test_exit_codes_follow_health(tmp_path: Path, health: Health, code: int, word: str) -> None:
    with serving(tmp_path, [_page(health)]):
        result = _run(tmp_path)
    assert (result.exit_code, word in result.output) == (code, True), result.output


def test_the_page_for_people(tmp_path: Path) -> None:
    drift = DriftStatus(
        watched=True, found=2, mended=1, last=("IPv4 nat KUBE-SERVICES: 1 missing",), last_found=NOW - 30
    )
    with serving(tmp_path, [_page(drift=drift)]):
        text = _run(tmp_path).output
    for wanted in (
        "kproxy 1.2 on node-1: ready and healthy, process 42, writes the rules",
        "mode           iptables",
        "last sync      61 s ago, took 250 ms; 3 went well, 1 failed",
        "2 Services, 3 EndpointSlices: 4 Service ports, 91 rules",
        "2 workers; 10.96.0.10",
        "found 2, mended 1; the last one 30 s ago: IPv4 nat KUBE-SERVICES: 1 missing",
        "trying again, 7.5 s between attempts",
        "1 problems",
    ):
        assert wanted in text
    (node,) = [line.split() for line in text.splitlines() if line.startswith("Node ")]
    assert node == ["Node", "first", "list", "never", "0", "0"]


def test_mode_userspace_tells_of_its_relay_workers(tmp_path: Path) -> None:
    page = _page()
    page.mode, page.variant, page.evidence = "userspace", "", ["userspace: nftables v1.0.6, TPROXY"]
    page.relay = RelayPage(
        workers=2, draining=1, ports=[10272, 10273], connections=500, open=7, retries=3, gave_up=1, shed=4,
        ejected=["10.244.0.5:80"], kernel_flows=60, kernel_openings=900, kernel_links=12,
    )  # fmt: skip
    with serving(tmp_path, [page]):
        text = " ".join(_run(tmp_path).output.split())
        told = json.loads(_run(tmp_path, "-o", "json").output)
    for words in (
        "mode userspace evidence userspace: nftables v1.0.6, TPROXY",
        "4 Service ports, 91 destinations",
        "relay 2 workers, 1 draining, ports 10272 and 10273",
        "7 open of 500 connections; 3 retries, 1 clients refused",
        "4 CONNECTIONS RESET FOR WANT OF ROOM",
        "left out after failures: 10.244.0.5:80",
        "handed over to the kernel 60 times, and 900 connections opened there, on the links of 12 pods",
        "kproxy observe --flows",
    ):
        assert words in text
    assert (told["relay"]["gaveUp"], told["relay"]["failedConnects"], told["relay"]["kernelLinks"]) == (1, 0, 12)
    page.relay = RelayPage(kernel_why_not="map kproxy_flows: Operation not permitted")
    with serving(tmp_path, [page]):
        text = _run(tmp_path).output
    assert "0 workers, NO PORTS YET" in text
    assert "the kernel relays nothing itself: map kproxy_flows: Operation not permitted" in text


def test_one_that_stands_by_says_so(tmp_path: Path) -> None:
    with serving(tmp_path, [_page(writer=False)]):
        assert "stands by: another kproxy writes the rules" in _run(tmp_path).output


def test_fault_47_no_hostile_text_moves_the_cursor(tmp_path: Path) -> None:
    with serving(tmp_path, [_page()]):
        text, told = _run(tmp_path).output, _run(tmp_path, "-o", "json").stdout
    assert all(line.isprintable() for line in text.split("\n"))
    assert "\\x1b[31m\\nfake line\\u202e" in text
    assert "\x1b" not in told
    assert "\n" not in told.rstrip("\n")


def test_the_shape_of_the_json(tmp_path: Path) -> None:
    """Programs rely on these names; a field may be added here, never renamed."""
    with serving(tmp_path, [_page()]):
        told: dict[str, Any] = json.loads(_run(tmp_path, "-o", "json").stdout)
    assert list(told) == [
        "version", "pid", "node", "mode", "variant", "evidence", "writer", "apiServer", "uptimeSeconds", "health", "sync", "watches",
        "services", "endpointSlices", "servicePorts", "rules", "drift", "dnsEnabled", "dnsWorkers", "dnsAddresses", "dns", "relay",
        "problems",
    ]  # fmt: skip
    assert list(told["health"]) == ["healthy", "nodeEligible", "ready", "waitingFor"]
    assert list(told["sync"]) == ["count", "failures", "ageSeconds", "durationSeconds", "waitingSeconds", "lastError"]
    assert list(told["watches"][0]) == [
        "kind",
        "synced",
        "ageSeconds",
        "relists",
        "failures",
        "waitsSeconds",
        "lastError",
    ]
    assert {"watched", "found", "mended", "ageSeconds", "last"} <= set(told["drift"])
    assert msgspec.convert(told, StatusPage) == _page()


def test_waiting_ends_when_it_is_ready_and_tells_what_it_waits_for(tmp_path: Path) -> None:
    with serving(tmp_path, [_page(WAITING), _page(WAITING), _page(LATE), _page()]):
        result = _run(tmp_path, "--wait", "30")
    assert result.exit_code == 0
    waits = [line for line in result.stderr.splitlines() if "waiting for" in line]
    assert waits == [
        "kproxy: waiting for the first list of Service",
        "kproxy: waiting for a change that does not reach the kernel",
    ]


def test_waiting_ends_when_time_is_up(tmp_path: Path) -> None:
    with serving(tmp_path, [_page(WAITING)]):
        assert _run(tmp_path, "--wait", "0.3").exit_code == 1
    before = time.monotonic()
    result = _run(tmp_path, "--wait", "0.3")
    assert isinstance(result.exception, UnsupportedError)
    assert time.monotonic() - before >= 0.3
    assert "waiting for a kproxy in" in result.stderr


def test_waiting_without_a_number_is_for_a_minute(tmp_path: Path) -> None:
    with serving(tmp_path, [_page()]):
        assert _run(tmp_path, "--wait").exit_code == 0
