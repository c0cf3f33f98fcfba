"""Effects: which iptables programs this machine has, what they hold, and hence which variant to use.

Out: `Tools`, the programs of one variant with the evidence for it. Asking is done once, at start, with short-lived tools (apply.py runs
them); what a legacy table holds is only asked if the kernel already has that table, because `iptables-legacy` creates the tables it is
asked about.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from kproxy.backends.iptables import names
from kproxy.backends.iptables.failures import FamilyUnusableError
from kproxy.backends.iptables.settings import IptablesSettings
from kproxy.backends.iptables.variant import Found, Variant, VariantChoice, choose
from kproxy.errors import UnsupportedError
from kproxy.model.names import Family

_BASE = {Family.IPV4: "iptables", Family.IPV6: "ip6tables"}
_LEGACY_TABLES = {
    Family.IPV4: Path("/proc/net/ip_tables_names"),
    Family.IPV6: Path("/proc/net/ip6_tables_names"),
}
_IPV6 = Path("/proc/net/if_inet6")
_SBIN = "/usr/local/sbin:/usr/sbin:/sbin"  # not on everybody's PATH
_RANDOM_FULLY_SINCE = (1, 6, 2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tools:
    """The programs of one variant.

    lock_wait_s: how long a legacy tool waits for the xtables lock. timeout_s: after which a tool is ended; the largest input measured
    (160,000 rules, legacy) takes 3 s.
    """

    choice: VariantChoice
    programs: dict[tuple[Family, str], str] = field(default_factory=dict)
    version: tuple[int, ...] = ()
    has_ipv6: bool = True
    lock_wait_s: int = 5
    timeout_s: float = 120.0

    @property
    def variant(self) -> Variant:
        """Which variant these are."""
        return self.choice.variant

    def program(self, family: Family, verb: str) -> tuple[str, ...]:
        """The command for `restore` or `save`. Raises FamilyUnusableError when it is not installed."""
        if family is Family.IPV6 and not self.has_ipv6:
            raise FamilyUnusableError(f"this kernel runs without IPv6 (there is no {_IPV6})")
        path = self.programs.get((family, verb))
        if path is None:
            name = f"{_BASE[family]}-{self.variant.value}-{verb}"
            raise FamilyUnusableError(f"{name} is not installed (Debian, Ubuntu: apt-get install iptables)")
        return (path,)

    def settings_for(self, settings: IptablesSettings) -> IptablesSettings:
        """`settings` without what these tools do not know."""
        known = not self.version or self.version >= _RANDOM_FULLY_SINCE
        return settings if known else replace(settings, random_fully=False)


class Machine:
    """What is installed here and what it says; each program is asked once. ask: runs a command and returns its standard output."""

    def __init__(self, ask: Callable[[Sequence[str]], str]) -> None:
        self._ask = ask
        self._default: Variant | None = self._read_default()

    def choice(self, wanted: Variant | None = None) -> VariantChoice:
        """Which variant this node uses, with the evidence. wanted: the configuration's word. Raises UnsupportedError."""
        found = {variant: self._found(variant, hints=wanted is None) for variant in Variant}
        if wanted is None and not any(facts.kubelet_chains for facts in found.values()):
            # Only now: printing 80,000 rules to count them takes 0.7 s (nft variant).
            found = {variant: replace(facts, rules=self._count(variant)) for variant, facts in found.items()}
        choice = choose(found[Variant.NFT], found[Variant.LEGACY], self._default, wanted)
        if choice is not None:
            # Only of the other one: the legacy tool reads the whole table to show one chain, 0.1 s at 10,000 Services.
            other = choice.variant.other
            found[other] = replace(found[other], has_services=self._has_services(other))
            choice = choose(found[Variant.NFT], found[Variant.LEGACY], self._default, wanted)
        if choice is None:
            what = f"iptables-{wanted.value}-restore" if wanted is not None else "iptables-restore"
            raise UnsupportedError(
                f"{what} is not installed; kproxy needs it to write rules (Debian, Ubuntu: apt-get install iptables)"
            )
        return choice

    def tools(self, wanted: Variant | None = None) -> Tools:
        """The tools to use on this machine. Raises UnsupportedError when there are none."""
        choice = self.choice(wanted)
        programs: dict[tuple[Family, str], str] = {}
        for family in Family:
            for verb in ("restore", "save"):
                path = self._program(family, choice.variant, verb)
                if path:
                    programs[family, verb] = path
        version = self._version(choice.variant)
        return Tools(choice=choice, programs=programs, version=version, has_ipv6=_IPV6.exists())

    def _program(self, family: Family, variant: Variant, verb: str = "") -> str | None:
        """`iptables-legacy-restore`; or plain `iptables-restore` where the system has only one variant, under the plain name."""
        suffix = f"-{verb}" if verb else ""
        exact = _which(f"{_BASE[family]}-{variant.value}{suffix}")
        if exact:
            return exact
        return _which(f"{_BASE[family]}{suffix}") if self._default is variant else None

    def _read_default(self) -> Variant | None:
        """What the command `iptables` is here; before 1.8 there was only one, and it did not say."""
        path = _which("iptables")
        if path is None:
            return None
        return Variant.NFT if "nf_tables" in self._ask((path, "--version")) else Variant.LEGACY

    def _version(self, variant: Variant) -> tuple[int, ...]:
        path = _which(f"iptables-{variant.value}") or _which("iptables")
        found = re.search(r" v(\d+)\.(\d+)\.(\d+)", self._ask((path, "--version"))) if path else None
        return tuple(int(part) for part in found.groups()) if found else ()

    def _found(self, variant: Variant, *, hints: bool) -> Found:
        if self._program(Family.IPV4, variant, "restore") is None:
            return Found()
        told = (self._told(family, variant, "save", "-t", "mangle") for family in Family if hints)
        declared = {line.split(" ", 1)[0][1:] for lines in told for line in lines if line.startswith(":")}
        return Found(
            installed=True,
            kubelet_chains=tuple(chain for chain in names.KUBELET_CANARIES if chain in declared),
        )

    def _has_services(self, variant: Variant) -> bool:
        """Whether somebody's Services are there, by a short chain that every proxy writes."""
        return any(self._told(family, variant, "", "-t", "nat", "-S", names.MARK_MASQ) for family in Family)

    def _count(self, variant: Variant) -> int:
        """How many rules a variant holds."""
        return sum(line.startswith("-A ") for family in Family for line in self._told(family, variant, "save"))

    def _told(self, family: Family, variant: Variant, verb: str, *arguments: str) -> list[str]:
        """What one of the tools prints; nothing of tables that the kernel does not have yet."""
        program = self._program(family, variant, verb)
        table = arguments[1] if arguments else ""
        if program is None or (variant is Variant.LEGACY and not _has_legacy(family, table)):
            return []
        return self._ask((program, *arguments)).splitlines()


def _which(name: str) -> str | None:
    return shutil.which(name) or shutil.which(name, path=_SBIN)


def _has_legacy(family: Family, table: str) -> bool:
    """Whether the kernel has this legacy table already; `""`: any at all."""
    try:
        there = _LEGACY_TABLES[family].read_text().split()
    except OSError:
        return False
    return table in there if table else bool(there)
