"""A namespace's iptables as text: saved, compared, emptied."""

from __future__ import annotations

from kproxy.backends.iptables.variant import Variant
from tests.support.netns import Namespace, run

# What a proxy writes to. Other tables are left alone: looking at one makes it.
_CHAINS = {
    "filter": ("INPUT", "FORWARD", "OUTPUT"),
    "nat": ("PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"),
    "mangle": ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"),
}
_EMPTY = "".join(
    f"*{table}\n{''.join(f':{chain} ACCEPT [0:0]' + chr(10) for chain in chains)}COMMIT\n"
    for table, chains in _CHAINS.items()
)


def empty(namespace: Namespace) -> None:
    """Empties every table that a proxy writes to, of both variants and of nftables."""
    for family in ("iptables", "ip6tables"):
        for variant in Variant:
            run(namespace, f"{family}-{variant.value}-restore", "-w", "5", text=_EMPTY)
    run(namespace, "nft", "flush", "ruleset")


def saved(namespace: Namespace, variant: Variant) -> list[str]:
    """Every rule and chain of both families, without counters, sorted by table and chain; rules of a chain in their order."""
    found: list[str] = []
    for family in ("iptables", "ip6tables"):
        table = ""
        rules: dict[str, list[str]] = {}
        for line in run(namespace, f"{family}-{variant.value}-save").splitlines():
            if line.startswith("*"):
                table = line
            elif line.startswith(":"):
                rules.setdefault(f"{family} {table} {line.split(' [')[0]}", [])
            elif line.startswith("-A"):
                chain = line.split()[1]
                place = next(key for key in rules if key.startswith(f"{family} {table} :{chain} "))
                rules[place].append(line)
        found += [line for key in sorted(rules) for line in (key, *rules[key])]
    return found
