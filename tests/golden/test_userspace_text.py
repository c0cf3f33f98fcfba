"""The same scenarios in mode userspace: the table as `kproxy render --proxy-mode userspace` prints it, `scenarios/NAME/{ip,ip6}.nft`.

Rewrite with `pytest tests/golden --bless`, then read the difference. Nothing is normalised: a byte is a byte.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from kproxy.cli.render import command
from kproxy.model.names import Family

# Not dispatch-trees: it is about iptables' chains, and adds a hundred lines that say nothing here.
SCENARIOS = sorted(
    path.parent
    for path in (Path(__file__).parent / "scenarios").glob("*/cluster.yaml")
    if path.parent.name != "dispatch-trees"
)
EXPECTED = {Family.IPV4: "ip.nft", Family.IPV6: "ip6.nft"}


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda path: path.name)
@pytest.mark.parametrize("family", list(Family), ids=lambda family: family.value)
def test_text(scenario: Path, family: Family, bless: bool) -> None:
    flags = yaml.safe_load((scenario / "flags.yaml").read_text()) | {"proxy-mode": "userspace"}
    arguments = [part for name, value in flags.items() for part in (f"--{name}", str(value))]
    arguments += ["--family", family.value.lower(), str(scenario / "cluster.yaml")]
    result = CliRunner().invoke(command, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    file = scenario / EXPECTED[family]
    if bless:
        file.write_text(result.stdout)
    assert result.stdout == file.read_text()


def test_there_are_scenarios() -> None:
    assert len(SCENARIOS) >= 6
