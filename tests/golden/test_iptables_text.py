"""Scenarios and the exact iptables text for them: `scenarios/NAME/cluster.yaml`, its flags, and what `kproxy render` prints.

Rewrite with `pytest tests/golden --bless`, then read the difference. Nothing is normalised: a byte is a byte.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from kproxy.backends.iptables.ruleset import parse, render
from kproxy.cli.render import command
from kproxy.model.names import Family

SCENARIOS = sorted(path.parent for path in (Path(__file__).parent / "scenarios").glob("*/cluster.yaml"))
EXPECTED = {Family.IPV4: "iptables.txt", Family.IPV6: "ip6tables.txt"}


def _render(scenario: Path, family: Family) -> str:
    flags = yaml.safe_load((scenario / "flags.yaml").read_text())
    arguments = [part for name, value in flags.items() for part in (f"--{name}", str(value))]
    arguments += ["--family", family.value.lower(), str(scenario / "cluster.yaml")]
    result = CliRunner().invoke(command, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_there_are_scenarios() -> None:
    assert len(SCENARIOS) >= 6


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda path: path.name)
@pytest.mark.parametrize("family", list(Family), ids=lambda family: family.value)
def test_text(scenario: Path, family: Family, bless: bool) -> None:
    text, file = _render(scenario, family), scenario / EXPECTED[family]
    if bless:
        file.write_text(text)
    assert text == file.read_text()


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda path: path.name)
def test_expected_text_is_read_back_as_written(scenario: Path) -> None:
    for family, name in EXPECTED.items():
        comment, _, text = (scenario / name).read_text().partition("\n")
        assert comment.startswith("# ")
        assert render(parse(text, family)) == text
