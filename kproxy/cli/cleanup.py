"""`kproxy cleanup`: takes every service rule of kproxy and kube-proxy from this node, whatever their mode.

In: which variants to look into. Out: the chains and jumps are gone, mode userspace's tables and policy routes, and the tables of
kube-proxy's nftables mode; other people's rules are as they were. KUBE-FIREWALL stays, for the kubelet owns it too. The cluster DNS
addresses that kproxy put on this node go as well. Nothing else is undone (conntrack entries, sysctls), as with `kube-proxy --cleanup`. A
kproxy that still runs would put its rules back.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

import click

from kproxy.backends.iptables.apply import IptablesBackend
from kproxy.backends.iptables.changes import Plan, render_batch
from kproxy.backends.iptables.plan import cleanup_plan
from kproxy.backends.iptables.variant import Variant
from kproxy.backends.userspace import leaving, names
from kproxy.backends.userspace.apply import UserspaceBackend
from kproxy.cli.options import output_option
from kproxy.dns.node import release
from kproxy.errors import ExitCode, KproxyError, UnsupportedError


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What was found and done in one variant. error: what could not be removed, empty when all is well."""

    variant: Variant
    chains: int
    plan: Plan
    error: str = ""


@dataclass(slots=True)
class Tables:
    """nf_tables of mode userspace and of kube-proxy: those that were there, and what could not be removed."""

    found: list[str] = field(default_factory=list)
    error: str = ""


@click.command("cleanup", context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--variant",
    type=click.Choice(["all", *(variant.value for variant in Variant)]),
    default="all",
    show_default=True,
    help="Where to look: everywhere, or in one set of iptables' tables alone.",
)
@click.option("--dry-run", is_flag=True, help="Only print what would be written.")
@output_option
def command(variant: str, dry_run: bool, output: str) -> None:
    """Remove all service rules of kproxy and kube-proxy from this node, whichever mode they are of.

    Other rules are not touched, and KUBE-FIREWALL stays (it is the kubelet's too). The cluster DNS
    addresses that kproxy holds here are given back. Stop kproxy and kube-proxy first.

    \b
    Examples:
      kproxy cleanup --dry-run
      kproxy cleanup --variant legacy
    """
    backends = _backends(list(Variant) if variant == "all" else [Variant(variant)])
    outcomes = [asyncio.run(_clean(backend, dry_run)) for backend in backends]
    tables = asyncio.run(_clean_tables(dry_run)) if variant == "all" else Tables()
    if not dry_run:
        asyncio.run(release())
    if output == "json":
        told = {"dryRun": dry_run, "variants": [_as_json(outcome) for outcome in outcomes]}
        click.echo(json.dumps({**told, "tables": tables.found, "tablesError": tables.error}, indent=2))
    else:
        for outcome in outcomes:
            _tell(outcome, dry_run)
        if variant == "all":
            _tell_tables(tables, dry_run)
    sys.exit(ExitCode.FINDINGS if tables.error or any(outcome.error for outcome in outcomes) else ExitCode.OK)


def _backends(variants: Sequence[Variant]) -> list[IptablesBackend]:
    """The backends that exist here. Raises UnsupportedError when none does."""
    found: list[IptablesBackend] = []
    missing: UnsupportedError | None = None
    for variant in variants:
        try:
            found.append(IptablesBackend(variant=variant))
        except UnsupportedError as error:
            missing = error
    if not found and missing is not None:
        raise missing
    return found


async def _clean(backend: IptablesBackend, dry_run: bool) -> Outcome:
    plan = cleanup_plan(await backend.observe())
    chains = sum(batch.chains_deleted for batch in plan.batches)
    error = ""
    if not dry_run and plan.batches:
        try:
            await backend.cleanup()
        except UnsupportedError:
            raise
        except KproxyError as failure:
            error = str(failure)
    return Outcome(variant=backend.tools.variant, chains=chains, plan=plan, error=error)


async def _clean_tables(dry_run: bool) -> Tables:
    tables = Tables()
    try:
        of_kproxy, of_kube_proxy = leaving.left_behind(), leaving.kube_proxy_tables()
    except (OSError, ValueError):  # a kernel without nf_tables: nothing can be there
        return tables
    tables.found += [f"{names.NFT_FAMILY[family]} {names.TABLE}" for family in of_kproxy] + of_kube_proxy
    if dry_run:
        return tables
    try:
        backend = UserspaceBackend()
    except UnsupportedError as error:  # no nft: then nothing of it is there, unless it was removed meanwhile
        tables.error = str(error) if tables.found else ""
        return tables
    try:
        await backend.cleanup()  # policy routes may be there without a table
        await leaving.remove_kube_proxy_tables()
    except (KproxyError, OSError, ValueError) as error:
        tables.error = str(error)
    return tables


def _tell_tables(tables: Tables, dry_run: bool) -> None:
    if dry_run:
        for name in tables.found:
            click.echo(f"# nft\ndelete table {name}")
    if tables.error:
        click.echo(f"kproxy: nft: {tables.error}", err=True)
    elif not tables.found:
        click.echo("nft: nothing to remove")
    else:
        click.echo(f"nft: {'would remove' if dry_run else 'removed'} tables {', '.join(tables.found)}")


def _tell(outcome: Outcome, dry_run: bool) -> None:
    name = f"iptables-{outcome.variant.value}"
    if dry_run:
        for batch in outcome.plan.batches:
            click.echo(f"# {name}, {batch.family.value}")
            click.echo(render_batch(batch), nl=False)
    if outcome.error:
        click.echo(f"kproxy: {name}: {outcome.error}", err=True)
    elif not outcome.plan.batches:
        click.echo(f"{name}: nothing to remove")
    else:
        click.echo(f"{name}: {'would remove' if dry_run else 'removed'} {outcome.chains} chains and the jumps to them")


def _as_json(outcome: Outcome) -> dict[str, object]:
    return {"variant": outcome.variant.value, "chains": outcome.chains, "error": outcome.error}
