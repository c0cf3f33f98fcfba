"""`lab check` proves the study notes line by line, and fails when something is broken."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.lab import LabUnderTest, lab_processes

ALL = [f"S{number}" for number in (*range(1, 20), 21)]


def checked(lab: LabUnderTest, *words: str) -> tuple[int, dict[str, Any], str]:
    done = lab.run("check", "-o", "json", *words, limit_s=400)
    assert done.stdout, done.stderr + lab.logs()
    found = json.loads(done.stdout)
    return done.returncode, {line["id"]: line for line in found["checks"]}, done.stderr


def differences(lines: dict[str, Any]) -> list[tuple[str, str, str]]:
    return [(name, s["did"], s["seen"]) for name, line in lines.items() for s in line["steps"] if not s["passed"]]


def every_line(lab: LabUnderTest, *options: str) -> None:
    """Everything passes; S18 changes a node to the other mode and back under load."""
    code, lines, said = checked(lab, *options)
    assert list(lines) == ALL
    assert differences(lines) == []
    assert [name for name, line in lines.items() if not line["passed"]] == []
    assert code == 0
    assert "20/20" in said


@pytest.mark.parametrize("variant", ["legacy", "nft"])
def test_every_line_on_the_embedded_api(tmp_path: Path, variant: str) -> None:
    lab = LabUnderTest(tmp_path)
    every_line(lab, "--variant", variant)
    assert lab_processes(tmp_path) == []  # the check took down what it brought up


@pytest.mark.control_plane
@pytest.mark.parametrize("variant", ["legacy", "nft"])
def test_every_line_on_a_real_control_plane(tmp_path: Path, variant: str) -> None:
    every_line(LabUnderTest(tmp_path), "--api", "real", "--variant", variant)
    assert lab_processes(tmp_path) == []


def test_chosen_lines_alone_and_a_second_time(lab: LabUnderTest) -> None:
    for _ in range(2):
        code, lines, _ = checked(lab, "s2", "S16")
        assert (code, list(lines), differences(lines)) == (0, ["S2", "S16"], [])
    assert lab.status()["cluster"]["pods"] == 3  # kproxy's own: the check removed what it had made


def test_a_line_that_does_not_exist_is_refused(lab: LabUnderTest) -> None:
    done = lab.run("check", "S99")
    assert done.returncode == 2
    assert "S99" in done.stderr


def test_without_a_service_proxy_the_check_fails_and_says_what_it_saw(tmp_path: Path) -> None:
    lab = LabUnderTest(tmp_path)
    try:
        lab.ok("up", "--detach", "--proxy", "none")
        code, lines, _ = checked(lab, "S6", "S15", "S13")
        assert code == 1
        assert not any(line["passed"] for line in lines.values())
        assert any(
            "curl 192.168.200.22:30001" in did or "192.168.200.22:30001" in did for _, did, _ in differences(lines)
        )
    finally:
        lab.run("down")


def test_the_table_shows_line_did_expected_and_seen(lab: LabUnderTest) -> None:
    table = lab.ok("check", "S15")
    assert table.splitlines()[0].split() == ["line", "what", "was", "done", "expected", "seen"]
    assert "S15" in table
    assert "NXDOMAIN" in table
    assert table.splitlines()[-1] == "1 of 1 lines passed"


def test_one_broken_node_is_found_and_named(tmp_path: Path) -> None:
    """Service traffic of node-2 alone is led past the rules, as another program's rules might do."""
    lab = LabUnderTest(tmp_path)
    try:
        lab.ok("up", "--detach")
        for chain in ("PREROUTING", "OUTPUT"):
            lab.at("node-2", "iptables", "-t", "nat", "-I", chain, "-p", "tcp", "-d", "10.96.0.0/16", "-j", "ACCEPT")
        code, lines, _ = checked(lab, "S1")
        places = {did.split(":")[0] for _, did, _ in differences(lines)}
        assert (code, places) == (1, {"node-2", "nettool-2"}), differences(lines)
    finally:
        lab.run("down")
