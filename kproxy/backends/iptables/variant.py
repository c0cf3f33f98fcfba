"""Which iptables is in use on this node: the legacy tables, or those kept in nf_tables. Pure: what was found → a choice with evidence.

Both can be in the kernel at once, and rules in both are both obeyed, so kproxy has to write where everybody else on the node does. The
order of evidence is that of Kubernetes' iptables-wrappers: the kubelet's own chains in mangle (it marks the variant it uses), then who
holds more rules, then what the command `iptables` is on this system.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Variant(Enum):
    """The value is the word in the tools' names: `iptables-legacy-restore`, `iptables-nft-restore`."""

    LEGACY = "legacy"
    NFT = "nft"

    @property
    def other(self) -> Variant:
        """The one that was not chosen."""
        return Variant.NFT if self is Variant.LEGACY else Variant.LEGACY


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What one variant holds, both families together."""

    installed: bool = False
    kubelet_chains: tuple[str, ...] = ()  # KUBE-IPTABLES-HINT, KUBE-KUBELET-CANARY
    rules: int = 0
    has_services: bool = False  # kube-proxy's or kproxy's chains are in nat: somebody proxies there


@dataclass(frozen=True, slots=True, kw_only=True)
class VariantChoice:
    """The variant to use, why, and what is wrong about it."""

    variant: Variant
    evidence: str
    warnings: tuple[str, ...] = ()


def choose(nft: Found, legacy: Found, default: Variant | None, wanted: Variant | None = None) -> VariantChoice | None:
    """The variant to use; None when neither is installed. default: what the command `iptables` is. wanted: a setting, obeyed."""
    found = {Variant.NFT: nft, Variant.LEGACY: legacy}
    choice = (wanted, "chosen by the configuration") if wanted is not None else _evidence(found, default)
    if choice is None:
        return None
    variant, evidence = choice
    warnings = []
    if not found[variant].installed:
        return None
    if found[variant.other].has_services:
        warnings.append(
            f"iptables-{variant.other.value} holds Service rules as well; the kernel obeys both sets. "
            f"Remove them with `kproxy cleanup --variant {variant.other.value}`"
        )
    return VariantChoice(variant=variant, evidence=evidence, warnings=tuple(warnings))


def _evidence(found: dict[Variant, Found], default: Variant | None) -> tuple[Variant, str] | None:
    for variant, facts in found.items():
        if facts.kubelet_chains and facts.installed:
            return variant, f"the kubelet's chain {facts.kubelet_chains[0]} is in iptables-{variant.value}"
    nft, legacy = found[Variant.NFT], found[Variant.LEGACY]
    if nft.installed and legacy.installed and nft.rules != legacy.rules:
        variant = Variant.NFT if nft.rules > legacy.rules else Variant.LEGACY
        return variant, f"rules in iptables-nft: {nft.rules}, in iptables-legacy: {legacy.rules}"
    if default is not None and found[default].installed:
        return default, f"no rules tell; the command iptables is iptables-{default.value} here"
    for variant, facts in found.items():
        if facts.installed:
            return variant, f"only iptables-{variant.value} is installed"
    return None
