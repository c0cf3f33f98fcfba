"""`kproxy diff`: the rules that the kproxy of this node wants, against those that the kernel holds now.

In: the daemon's wanted rules, and a save by the same tools (mode userspace: diff_userspace.py). Out: what is missing, extra or in another
order, chain by chain; exit code 1 on drift, 0 when there is none, 3 when no daemon runs here. Looks only: the daemon mends by itself.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterable, Iterator, Sequence

import click

from kproxy.backends.iptables.apply import IptablesBackend
from kproxy.backends.iptables.difference import ChainDifference, differences
from kproxy.backends.iptables.ruleset import FamilyRuleset, Ruleset, parse
from kproxy.backends.iptables.variant import Variant
from kproxy.cli import diff_userspace
from kproxy.cli.daemon import Daemon, find, run_dir_option
from kproxy.cli.options import output_option
from kproxy.cli.terminal import plain
from kproxy.errors import ExitCode, KproxyError
from kproxy.model.names import Family

_SHOWN_RULES = 20  # of one chain


@click.command("diff", context_settings={"help_option_names": ["-h", "--help"]})
@run_dir_option
@output_option
def command(run_dir: str, output: str) -> None:
    """What the kernel's rules differ in from those that kproxy wants; exit code 1 when they do.

    `-` is a rule that is missing in the kernel, `+` one that is there and should not be. A change that kproxy is
    just about to write shows here for a moment as well; `kproxy status` tells whether one waits.

    \b
    Examples:
      kproxy diff
      kproxy diff -o json | jq '.chains[].missing'
    """
    daemon, page = find(run_dir)
    if not page.writer:
        raise KproxyError("this kproxy stands by and wants nothing of the kernel; another one writes the rules")
    if page.mode == "userspace":
        _userspace(daemon, page.node, output)
        return
    # The kernel is looked at first: what is written in between is then no difference on the next look.
    wanted, observed = asyncio.run(_both(daemon, Variant(page.variant)))
    found = differences(observed, wanted)
    if output == "json":
        click.echo(json.dumps(_as_json(page.node, found), indent=2))
    else:
        click.echo("\n".join(map(plain, _lines(page.node, found))))
    sys.exit(ExitCode.FINDINGS if found else ExitCode.OK)


def _userspace(daemon: Daemon, node: str, output: str) -> None:
    found = diff_userspace.differences({family: daemon.wanted(family.value) for family in Family})
    if output == "json":
        told = [
            {"family": one.family.value, "what": one.what, "missing": list(one.missing), "extra": list(one.extra)}
            for one in found
        ]
        click.echo(json.dumps({"node": node, "drift": bool(found), "sets": told}, indent=2))
    else:
        click.echo("\n".join(map(plain, _userspace_lines(node, found))))
    sys.exit(ExitCode.FINDINGS if found else ExitCode.OK)


def _userspace_lines(node: str, found: Sequence[diff_userspace.Difference]) -> Iterator[str]:
    if not found:
        yield f"{node}: the kernel holds what kproxy wants"
    for one in found:
        yield str(one)
        yield from _signed((("-", one.missing), ("+", one.extra)))


def _signed(parts: Iterable[tuple[str, Sequence[str]]]) -> Iterator[str]:
    for sign, texts in parts:
        for text in texts[:_SHOWN_RULES]:
            yield f"  {sign} {text}"
        if len(texts) > _SHOWN_RULES:
            yield f"  {sign} … and {len(texts) - _SHOWN_RULES} more (-o json shows all)"


async def _both(daemon: Daemon, variant: Variant) -> tuple[Ruleset, Ruleset]:
    backend = IptablesBackend(variant=variant)
    observed = await backend.observe()
    wanted = {
        # A family that this machine cannot do is not written, so nothing of it can be missing.
        family: FamilyRuleset(family=family)
        if family in backend.unserved
        else parse(daemon.wanted(family.value), family)
        for family in Family
    }
    return Ruleset(ipv4=wanted[Family.IPV4], ipv6=wanted[Family.IPV6]), observed


def _lines(node: str, found: Sequence[ChainDifference]) -> Iterator[str]:
    if not found:
        yield f"{node}: the kernel holds what kproxy wants"
        return
    for each in found:
        yield str(each)
        yield from _signed(
            (sign, [rule.text for rule in rules]) for sign, rules in (("-", each.missing), ("+", each.extra))
        )


def _as_json(node: str, found: Sequence[ChainDifference]) -> dict[str, object]:
    chains = [
        {
            "family": each.family.value,
            "table": each.place.table,
            "chain": each.place.chain,
            "absent": each.absent,
            "unwanted": each.unwanted,
            "moved": each.moved,
            "missing": [rule.text for rule in each.missing],
            "extra": [rule.text for rule in each.extra],
        }
        for each in found
    ]
    return {"node": node, "drift": bool(found), "chains": chains}
