"""`kproxy render` and the parts of `kproxy cleanup` that need no kernel."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from kproxy.cli.cleanup import command as cleanup
from kproxy.cli.main import main
from kproxy.cli.render import command as render

CLUSTER = Path(__file__).resolve().parents[2] / "golden" / "scenarios" / "dual-stack" / "cluster.yaml"


def test_both_families_are_shown_when_services_use_both() -> None:
    text = CliRunner().invoke(render, [str(CLUSTER)], catch_exceptions=False).stdout
    assert "# iptables-restore --noflush: node node-1, IPv4" in text
    assert "# ip6tables-restore --noflush: node node-1, IPv6" in text


def test_one_family_can_be_asked_for() -> None:
    text = CliRunner().invoke(render, ["--family", "ipv6", str(CLUSTER)], catch_exceptions=False).stdout
    assert text.startswith("# ip6tables-restore")
    assert "10.96.0.40" not in text


def test_json_has_every_rule_taken_apart() -> None:
    told = json.loads(CliRunner().invoke(render, ["-o", "json", str(CLUSTER)], catch_exceptions=False).stdout)
    assert told["node"] == "node-1"
    (entry,) = [rule for rule in told["families"]["IPv4"]["nat"]["KUBE-SERVICES"] if "cluster IP" in rule["text"]]
    assert {"kind": "Destination", "network": "10.96.0.40/32"} in entry["matches"]
    assert entry["target"]["kind"] == "Jump"
    assert set(told["families"]) == {"IPv4", "IPv6"}


def test_a_bad_manifest_ends_with_2_and_names_line_and_field(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text("apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec:\n  clusterIP: nonsense\n  ports: []\n")
    with pytest.raises(SystemExit) as ended:
        main(["render", "--node", "node-1", str(file)])
    assert ended.value.code == 2
    assert f"{file}:5: spec.clusterIP" in capsys.readouterr().err


def test_cleanup_without_iptables_ends_with_3(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("kproxy.backends.iptables.tools._SBIN", str(tmp_path))
    with pytest.raises(SystemExit) as ended:
        main(["cleanup"])
    assert ended.value.code == 3
    assert "apt-get install iptables" in capsys.readouterr().err


def test_help_names_the_options() -> None:
    assert "--variant" in CliRunner().invoke(cleanup, ["--help"]).stdout
    assert "--family" in CliRunner().invoke(render, ["--help"]).stdout
