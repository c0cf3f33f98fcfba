"""Which variant is used, by what evidence; and what a machine without the right tools says."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from kproxy.backends.iptables.failures import FamilyUnusableError
from kproxy.backends.iptables.settings import IptablesSettings
from kproxy.backends.iptables.tools import Machine, Tools
from kproxy.backends.iptables.variant import Found, Variant, VariantChoice, choose
from kproxy.errors import UnsupportedError
from kproxy.model.names import Family

HERE, NOT_HERE = Found(installed=True), Found()
KUBELET = Found(installed=True, kubelet_chains=("KUBE-IPTABLES-HINT",))
LEGACY, NFT = Variant.LEGACY, Variant.NFT


@pytest.mark.parametrize(
    ("nft", "legacy", "default", "variant", "evidence"),
    [
        (KUBELET, Found(installed=True, rules=900), LEGACY, NFT, "the kubelet's chain KUBE-IPTABLES-HINT is in iptables-nft"),
        (Found(installed=True, rules=900), KUBELET, NFT, LEGACY, "the kubelet's chain KUBE-IPTABLES-HINT is in iptables-legacy"),
        (KUBELET, KUBELET, LEGACY, NFT, "the kubelet's chain KUBE-IPTABLES-HINT is in iptables-nft"),
        (Found(installed=True, rules=3), Found(installed=True, rules=7), NFT, LEGACY, "rules in iptables-nft: 3, in iptables-legacy: 7"),
        (HERE, HERE, LEGACY, LEGACY, "the command iptables is iptables-legacy here"),
        (HERE, NOT_HERE, NFT, NFT, "the command iptables is iptables-nft here"),
        (NOT_HERE, HERE, None, LEGACY, "only iptables-legacy is installed"),
    ],
)  # fmt: skip
def test_evidence(nft: Found, legacy: Found, default: Variant | None, variant: Variant, evidence: str) -> None:
    choice = choose(nft, legacy, default)
    assert choice is not None
    assert choice.variant is variant
    assert evidence in choice.evidence
    assert choice.warnings == ()


def test_the_configuration_is_obeyed() -> None:
    choice = choose(KUBELET, HERE, NFT, LEGACY)
    assert choice is not None
    assert (choice.variant, choice.evidence) == (LEGACY, "chosen by the configuration")


def test_rules_in_the_other_variant_are_warned_of() -> None:
    choice = choose(KUBELET, Found(installed=True, has_services=True), None)
    assert choice is not None
    assert "iptables-legacy holds Service rules" in choice.warnings[0]
    assert "kproxy cleanup --variant legacy" in choice.warnings[0]


def test_nothing_installed() -> None:
    assert choose(NOT_HERE, NOT_HERE, None) is None
    assert choose(HERE, NOT_HERE, NFT, LEGACY) is None


def _programs(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).write_text("#!/bin/sh\n")
        (folder / name).chmod(0o755)


@pytest.fixture
def bin_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("kproxy.backends.iptables.tools._SBIN", str(tmp_path))
    return tmp_path


def test_a_machine_with_plain_names_only(bin_folder: Path) -> None:
    _programs(bin_folder, "iptables", "iptables-save", "iptables-restore")

    def ask(command: Sequence[str]) -> str:
        return "iptables v1.4.21" if command[-1] == "--version" else ""

    tools = Machine(ask).tools()
    assert tools.variant is LEGACY
    assert tools.version == (1, 4, 21)
    assert tools.program(Family.IPV4, "restore") == (str(bin_folder / "iptables-restore"),)
    assert not tools.settings_for(IptablesSettings()).random_fully
    with pytest.raises(FamilyUnusableError, match="ip6tables-legacy-save is not installed"):
        tools.program(Family.IPV6, "save")


def test_a_machine_with_both(bin_folder: Path) -> None:
    names = [
        f"{tool}-{variant.value}-{verb}"
        for tool in ("iptables", "ip6tables")
        for variant in Variant
        for verb in ("save", "restore")
    ]
    _programs(bin_folder, "iptables", "iptables-nft", *names)
    said = {
        "iptables": "iptables v1.8.9 (nf_tables)",
        "iptables-nft": "iptables v1.8.9 (nf_tables)",
        "iptables-nft-save": "*mangle\n:KUBE-KUBELET-CANARY - [0:0]\nCOMMIT\n*nat\n:KUBE-SERVICES - [0:0]\n-A X -j Y\nCOMMIT\n",
    }

    def ask(command: Sequence[str]) -> str:
        return said.get(Path(command[0]).name, "")

    tools = Machine(ask).tools()
    assert tools.variant is NFT
    assert "KUBE-KUBELET-CANARY" in tools.choice.evidence
    assert tools.settings_for(IptablesSettings()).random_fully


def test_a_machine_without_iptables_says_what_to_install(bin_folder: Path) -> None:
    with pytest.raises(UnsupportedError, match="apt-get install iptables"):
        Machine(lambda command: "").tools()
    with pytest.raises(UnsupportedError, match="iptables-legacy-restore is not installed"):
        Machine(lambda command: "").tools(LEGACY)


def test_tools_without_a_version_are_trusted() -> None:
    tools = Tools(choice=VariantChoice(variant=NFT, evidence=""))
    assert tools.settings_for(IptablesSettings()).random_fully
