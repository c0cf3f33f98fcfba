"""A whole lab in mode userspace: every line of the study notes, and an instance of the other mode that takes a node over."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import yaml

from tests.lab.test_check import every_line
from tests.lab.test_survival import KILL, LOAD
from tests.support.lab import WEB, LabUnderTest, lab_processes

_CONFIG, _OTHER = "/run/kproxy-node/config.yaml", "/run/kproxy-node/other.yaml"
_RATE, _SECONDS, _TIMEOUT_S = 100, 6, 5


def test_every_line_in_mode_userspace(tmp_path: Path) -> None:
    every_line(LabUnderTest(tmp_path), "--mode", "userspace")
    assert lab_processes(tmp_path) == []


def test_an_instance_of_the_other_mode_takes_over_and_gives_back(own_lab: LabUnderTest) -> None:
    """Two DaemonSets, or an upgrade that changes the mode: whoever is there goes on until the other one's rules are in force."""
    own_lab.ok("up", "--detach", "--nodes", "1")
    config = yaml.safe_load(own_lab.at("node-1", "cat", _CONFIG))
    assert config["mode"] == "iptables"
    own_lab.ok(
        "exec", "node-1", "--", "sh", "-c", f"cat > {_OTHER}", stdin=yaml.safe_dump({**config, "mode": "userspace"})
    )
    own_lab.ok("apply", "-f", "-", stdin=WEB)
    own_lab.until("web", "client", "curl", "-sm1", "http://192.168.200.21:30080/hostname")
    second = subprocess.Popen(
        own_lab.argv("exec", "node-1", "--", sys.executable, "-m", "kproxy", "run", "--config", _OTHER, "--run-dir", "/run/kproxy"),
        env=own_lab.environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert second.stderr is not None
        while "Standing by" not in (line := second.stderr.readline()):
            assert line, "the second instance ended"
        loads = [
            _load(own_lab, place, address) for place, address in (("client", "192.168.200.21"), ("node-1", "127.0.0.1"))
        ]
        own_lab.ok("exec", "node-1", "--", sys.executable, "-c", KILL, "kproxy.supervisor", "SIGTERM")
        own_lab.until("kproxy-userspace", "node-1", "nft", "list", "tables")
        own_lab.until("mode           userspace", "node-1", "kproxy", "status")
        own_lab.until("no such rule", "node-1", "sh", "-c", "iptables-save | grep default/web || echo no such rule")
        _all_answered(own_lab, loads)
    finally:
        second.terminate()
        second.communicate(timeout=60)
    # The first one was started again and stood by: it has the node once more, and nothing of the other is left.
    own_lab.until("default/web", "node-1", "sh", "-c", "iptables-nft-save; iptables-legacy-save")
    own_lab.until("web", "client", "curl", "-sm1", "http://192.168.200.21:30080/hostname")
    own_lab.until("none of it", "node-1", "sh", "-c", "nft list tables | grep userspace || echo none of it", limit_s=30)
    assert "fwmark" not in own_lab.at("node-1", "sh", "-c", "ip rule; ip -6 rule")


def _load(lab: LabUnderTest, place: str, address: str) -> subprocess.Popen[bytes]:
    words = (sys.executable, str(LOAD), "connect", address, "30080", "--rate", str(_RATE), "--seconds", str(_SECONDS))
    argv = lab.argv("exec", place, "--", *words, "--timeout", str(_TIMEOUT_S))
    return subprocess.Popen(argv, env=lab.environment, stdout=subprocess.PIPE)


def _all_answered(lab: LabUnderTest, loads: list[subprocess.Popen[bytes]]) -> None:
    told = [json.loads(load.communicate(timeout=90)[0]) for load in loads]
    assert [one["failed"] for one in told] == [0, 0], (told, lab.logs())
    assert [one["sent"] for one in told] == [_RATE * _SECONDS] * 2
