"""`kproxy render`: the rules that a node would get for the objects in files, or that the kproxy of this node wants.

In: manifests and a node, or nothing. Out: input for `iptables-restore --noflush` (and `ip6tables-restore`) with the jumps as inserts,
or JSON with every rule taken apart; in mode userspace input for `nft -f`, or JSON with the elements. On files it needs neither cluster
nor root: files → snapshot → resolve → compile → text, all of it pure.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields

import click

from kproxy.backends.iptables.compile import compile_ruleset
from kproxy.backends.iptables.matches import Match, Target
from kproxy.backends.iptables.rules import Rule
from kproxy.backends.iptables.ruleset import FamilyRuleset, Ruleset, render
from kproxy.backends.userspace.compile import compile_family, frame_of
from kproxy.backends.userspace.plan import render as render_table
from kproxy.backends.userspace.settings import UserspaceSettings
from kproxy.cli.options import NodeView, files_argument, node_options, output_option, read_node, report
from kproxy.model.desired import DesiredState
from kproxy.model.names import Family
from kproxy.model.resolve import resolve_with_problems

_TOOLS = {Family.IPV4: "iptables", Family.IPV6: "ip6tables"}


@click.command("render", context_settings={"help_option_names": ["-h", "--help"]})
@files_argument
@click.option(
    "--family",
    type=click.Choice(["auto", "ipv4", "ipv6", "both"]),
    default="auto",
    show_default=True,
    help="auto: those that the Services have addresses in.",
)
@output_option
@node_options
def command(files: Sequence[str], family: str, output: str, **flags: object) -> None:
    """The rules for manifests, without cluster or root; without a FILE, those of the kproxy that runs here.

    \b
    Examples:
      kproxy render --node node-1 my-service.yaml
      kubectl get svc,endpointslices,nodes -A -o yaml | kproxy render --node node-1 -
      kproxy render --node node-1 --family ipv6 cluster.yaml -o json
      kproxy render
    """
    node = read_node(files, flags)
    resolved = resolve_with_problems(node.snapshot, node.settings)
    families = _families(family, resolved.desired)
    report(node, resolved.problems)
    if node.mode == "userspace":
        _userspace(node, resolved.desired, families, as_json=output == "json")
        return
    ruleset = compile_ruleset(resolved.desired, node.iptables)
    if output == "json":
        click.echo(json.dumps(as_json(node.settings.name, ruleset, families), indent=2))
        return
    for each in families:
        click.echo(f"# {_TOOLS[each]}-restore --noflush: node {node.settings.name}, {each.value}")
        click.echo(render(ruleset.of(each)), nl=False)


def _userspace(node: NodeView, desired: DesiredState, families: Sequence[Family], *, as_json: bool) -> None:
    """The tables that lead to the relay, with the listeners' ports as they are before workers have told theirs."""
    chosen = node.userspace
    settings = UserspaceSettings(mark_bit=chosen.mark_bit, routing_table=chosen.routing_table, notrack=chosen.notrack)
    rulesets = {}
    for family in families:
        state = desired.of(family)
        rulesets[family] = compile_family(state, frame_of(state, settings, settings.ports))
    if as_json:
        found = {
            family.value: {
                name: [{"key": key, **element._asdict()} for key, element in sorted(elements.items())]
                for name, elements in ruleset.elements.items()
            }
            for family, ruleset in rulesets.items()
        }
        click.echo(json.dumps({"node": node.settings.name, "families": found}, indent=2))
        return
    for family, ruleset in rulesets.items():
        click.echo(f"# nft -f: node {node.settings.name}, {family.value}")
        click.echo(render_table(ruleset), nl=False)


def _families(wanted: str, desired: DesiredState) -> tuple[Family, ...]:
    match wanted:
        case "ipv4":
            return (Family.IPV4,)
        case "ipv6":
            return (Family.IPV6,)
        case "both":
            return (Family.IPV4, Family.IPV6)
        case _:
            served = tuple(family for family in Family if desired.of(family).service_ports)
            return served or (Family.IPV4,)


def as_json(node: str, ruleset: Ruleset, families: Sequence[Family]) -> Mapping[str, object]:
    """The rules as JSON: node, family, table, chain, and each rule as text and taken apart."""
    return {"node": node, "families": {family.value: _tables(ruleset.of(family)) for family in families}}


def _tables(rules: FamilyRuleset) -> Mapping[str, object]:
    return {
        table: {chain: [_rule(rule) for rule in chains[chain]] for chain in sorted(chains)}
        for table, chains in sorted(rules.tables.items())
    }


def _rule(rule: Rule) -> Mapping[str, object]:
    parts = rule.parts
    return {
        "text": rule.text,
        "matches": [_part(match) for match in parts.matches],
        "target": None if parts.target is None else _part(parts.target),
    }


def _part(part: Match | Target) -> Mapping[str, object]:
    values = {each.name: getattr(part, each.name) for each in fields(part)}
    return {"kind": type(part).__name__, **{name: value for name, value in values.items() if value not in ("", False)}}
