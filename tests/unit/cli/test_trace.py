"""`kproxy trace` as people call it: files and words in, text or JSON and an exit code out."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result

from kproxy.cli.trace import command
from kproxy.errors import ConfigError
from tests.support.addressing import BLOCKED, NODE_IP, POD, VIP, six
from tests.support.packets import ROWS

_POD = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {"name": "client", "namespace": "ns1"},
    "spec": {"nodeName": "testnode"},
    "status": {"podIPs": [{"ip": POD}, {"ip": six(POD)}]},
}


@pytest.fixture
def cluster(tmp_path: Path) -> str:
    """A load balancer with source ranges, a dual-stack Service and a pod, in one file."""
    rows = {row.id: row.steps[0] for row in ROWS}
    objects = [b.api for b in (*rows["L05"].objects, rows["L05"].node)]
    for built in rows["D01"].objects:
        text = json.dumps(built.api).replace("svc1", "dual").replace("172.30.0.41", "172.30.0.44")
        objects.append(json.loads(text.replace("fd00:172:30::29", "fd00:172:30::2c")))
    path = tmp_path / "cluster.yaml"
    path.write_text(yaml.safe_dump_all([*objects, _POD]))
    return str(path)


def _run(*words: str) -> Result:
    return CliRunner().invoke(command, list(words), catch_exceptions=True)


def _outcomes(*words: str) -> list[dict[str, object]]:
    result = _run(*words, "-o", "json")
    assert result.exit_code == 0, result.output
    found: list[dict[str, object]] = json.loads(result.stdout)["outcomes"]
    return found


def test_text_names_the_chain_and_the_reason(cluster: str) -> None:
    found = _run("--from", BLOCKED, f"{VIP}:80", cluster)
    assert found.exit_code == 0
    assert f"{BLOCKED} -> {VIP}:80/tcp at testnode, arriving at the node" in found.output
    assert f"passed over: source {BLOCKED} is not in 203.0.113.0/25" in found.output
    assert "DROPPED" in found.output
    assert "KUBE-PROXY-FIREWALL" in found.output


_ASKED = [
    pytest.param(
        ("--from", POD, "--cluster-cidr", "10.0.0.0/8", "ns1/svc1:80"), "reaches", "10.180.0.1:80", False, id="service"
    ),
    pytest.param(
        ("--from", POD, "--cluster-cidr", "10.0.0.0/8", "ns1/svc1:p80"),
        "reaches",
        "10.180.0.1:80",
        False,
        id="port by name",
    ),
    pytest.param(
        ("--from", POD, "--cluster-cidr", "10.0.0.0/8", "ns1/svc1"), "reaches", "10.180.0.1:80", False, id="only port"
    ),
    pytest.param(("--from", "ns1/client", "ns1/svc1"), "reaches", "10.180.0.1:80", False, id="pod"),
    pytest.param(
        ("--from", "node", "--cluster-cidr", "10.0.0.0/8", "ns1/svc1"), "reaches", "10.180.0.1:80", True, id="node"
    ),
    pytest.param(("--from", BLOCKED, f"{NODE_IP}:3001"), "reaches", "10.180.0.1:80", True, id="node port"),
    pytest.param(
        ("--from", BLOCKED, f"{NODE_IP}:3001", "--nodeport-addresses", "10.9.0.0/16"),
        "untouched",
        f"{NODE_IP}:3001",
        False,
        id="flag",
    ),
    pytest.param(("--from", POD, "172.30.0.41:80/udp"), "untouched", "172.30.0.41:80", False, id="udp"),
    pytest.param(("--from", six(POD), "ns1/dual"), "reaches", f"[{six('10.180.0.1')}]:80", False, id="service by IPv6"),
    pytest.param(
        ("--from", six(POD), "[fd00:172:30::2c]:80/tcp"), "reaches", f"[{six('10.180.0.1')}]:80", False, id="IPv6"
    ),
]


@pytest.mark.parametrize(("words", "outcome", "to", "masqueraded"), _ASKED)
def test_what_is_asked(cluster: str, words: tuple[str, ...], outcome: str, to: str, masqueraded: bool) -> None:
    (found,) = _outcomes(*words, cluster)
    assert (found["outcome"], found["to"], found["masqueraded"], found["probability"]) == (
        outcome,
        to,
        masqueraded,
        1.0,
    )


_WRONG = [
    pytest.param(
        ("--from", POD, "ns1/svc:80"), "DEST: no Service ns1/svc in the files; did you mean ns1/svc1?", id="misspelt"
    ),
    pytest.param(("--from", POD, "ns1/svc1:p8"), "say which port of Service ns1/svc1; it has p80 80/tcp", id="port"),
    pytest.param(("--from", POD, "1.2.3.4:99999"), "'99999' is not a port number", id="port number"),
    pytest.param(("--from", POD, "1.2.3.4"), "the port is missing", id="no port"),
    pytest.param(("--from", POD, "x y:80"), "'x y' is not an IP address", id="no address"),
    pytest.param(("--from", POD, ":80"), "is not ADDRESS:PORT", id="nothing"),
    pytest.param(("--from", POD, "[fd00::1]:80"), "are of different families", id="families"),
    pytest.param(("--from", "nonsense", "1.2.3.4:80"), "--from: 'nonsense' is not an IP address", id="sender"),
    pytest.param(
        ("--from", "ns1/clint", "1.2.3.4:80"), "no pod ns1/clint is known here; did you mean ns1/client?", id="pod"
    ),
    pytest.param(("--from", six(POD), "ns1/svc1"), "Service ns1/svc1 has no IPv6 cluster IP", id="no such family"),
    pytest.param(("--from", POD, "1.2.3.4:80", "--cluster-cidr", "10/8"), "--cluster-cidr", id="flag"),
    pytest.param(
        ("--from", POD, "1.2.3.4:80", "--node-address", "x"), "--node-address: must be an IP address", id="node address"
    ),
]


@pytest.mark.parametrize(("words", "message"), _WRONG)
def test_what_is_wrong_is_named(cluster: str, words: tuple[str, ...], message: str) -> None:
    result = _run(*words, cluster)
    assert isinstance(result.exception, ConfigError), result.output
    assert message in str(result.exception)
    assert result.exception.exit_code == 2


def test_a_broken_manifest_names_file_line_and_field(cluster: str, tmp_path: Path) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text("apiVersion: v1\nkind: Service\nmetadata: {name: x}\nspec:\n  clusterIP: 10.0.0\n")
    result = _run("--from", POD, "1.2.3.4:80", cluster, str(bad))
    assert isinstance(result.exception, ConfigError)
    assert "bad.yaml:5: spec.clusterIP" in str(result.exception)


def test_without_a_node_one_has_to_be_named(tmp_path: Path) -> None:
    empty = tmp_path / "empty.yaml"
    empty.write_text("apiVersion: v1\nkind: Namespace\nmetadata: {name: x}\n")
    result = _run("--from", POD, "1.2.3.4:80", str(empty))
    assert isinstance(result.exception, ConfigError)
    assert str(result.exception) == "--node: say which node is meant; the files hold none"
    named = _run("--node", "n1", "--from", POD, "1.2.3.4:80", str(empty))
    assert named.exit_code == 0
    assert "no Node 'n1' in the files" in named.stderr


def test_problems_of_objects_are_told_and_do_not_stop(cluster: str, tmp_path: Path) -> None:
    hostile = tmp_path / "hostile.yaml"
    slice_ = next(
        b for row in ROWS if row.id == "C25" for b in row.steps[0].objects if b.api["kind"] == "EndpointSlice"
    )
    hostile.write_text(json.dumps(slice_.api | {"metadata": slice_.api["metadata"] | {"name": "hostile"}}))
    result = _run("--from", POD, "ns1/svc1", cluster, str(hostile))
    assert result.exit_code == 0
    assert "EndpointSlice ns1/hostile" in result.stderr
    assert "127.0.0.1" in result.stderr


def test_outcomes_of_a_large_service_are_counted(tmp_path: Path) -> None:
    row = next(row for row in ROWS if row.id == "U17")
    path = tmp_path / "large.yaml"
    path.write_text(yaml.safe_dump_all([b.api for b in (*row.steps[0].objects, row.steps[0].node)]))
    result = _run("--from", POD, "ns1/filler7", str(path))
    assert "51 outcomes, chosen at random" in result.output
    assert "and 39 more (-o json shows all)" in result.output
    assert "then as in the first outcome" in result.output


def test_a_missing_detector_is_said(cluster: str) -> None:
    assert "no way to tell pods' packets from others" in _run("--from", POD, "ns1/svc1", cluster).stderr
    told = _run("--from", POD, "ns1/svc1", cluster, "--cluster-cidr", "10.0.0.0/8")
    assert told.stderr == ""


def test_the_program_itself_with_objects_from_standard_input(cluster: str) -> None:
    words = [sys.executable, "-m", "kproxy", "trace", "--from", POD, "-", "-o", "json"]
    with Path(cluster).open() as objects:
        done = subprocess.run(
            [*words[:6], "ns1/svc1", *words[6:]], stdin=objects, capture_output=True, text=True, timeout=30
        )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["outcomes"][0]["to"] == "10.180.0.1:80"
    with Path(cluster).open() as objects:
        wrong = subprocess.run(
            [*words[:6], "ns1/nobody", *words[6:]], stdin=objects, capture_output=True, text=True, timeout=30
        )
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert wrong.stderr.startswith("kproxy: DEST: no Service ns1/nobody in the files")
