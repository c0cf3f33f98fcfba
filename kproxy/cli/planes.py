"""The data plane of a node as `kproxy explain` and `kproxy trace` ask about it, whichever it is.

In: a `NodeView` and what `resolve` decided. Out: a `PlaneView`: the rules of a ServicePort, the way of a packet through all of them, and
what the kernel holds of them. What must not happen here: a word for people about a rule; `kproxy.explain` has those.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from typing import Protocol

import click

from kproxy.backends.iptables.apply import find_tools
from kproxy.backends.iptables.compile import compile_ruleset
from kproxy.backends.iptables.failures import FamilyUnusableError
from kproxy.backends.iptables.tool_runs import run_tool
from kproxy.backends.iptables.variant import Variant
from kproxy.cli.options import NodeView
from kproxy.errors import UnsupportedError
from kproxy.explain import trace_iptables
from kproxy.explain.kernel import KernelRules
from kproxy.explain.kernel_iptables import read_counters
from kproxy.explain.rules import RuleSeen
from kproxy.explain.rules_iptables import explain_rules
from kproxy.explain.service import PlaneSeen
from kproxy.explain.trace import KernelView, Packet, Trace
from kproxy.model.addresses import family_of
from kproxy.model.desired import DesiredState, ServicePort
from kproxy.model.names import Family

_LOOK_S = 60.0  # at 100,000 rules iptables-nft-save takes 8 s


class PlaneView(Protocol):
    """What is asked of a data plane."""

    def seen(self, port: ServicePort) -> PlaneSeen:
        """The rules of one ServicePort, and what else there is to say about it."""

    def trace(self, packet: Packet, kernel: KernelView) -> Trace:
        """Where a packet goes."""

    def kernel(self, rules: Mapping[Family, Iterable[RuleSeen]]) -> dict[Family, KernelRules]:
        """What the kernel of this machine holds of `rules`; a family that cannot be asked is left out with a word on stderr."""


class IptablesView:
    """Rules do the work."""

    def __init__(self, node: NodeView, desired: DesiredState) -> None:
        self._node = node
        self._ruleset = compile_ruleset(desired, node.iptables)

    def seen(self, port: ServicePort) -> PlaneSeen:
        """The rules of the ServicePort."""
        return PlaneSeen(rules=explain_rules(self._ruleset.of(port.family), port.name))

    def trace(self, packet: Packet, kernel: KernelView) -> Trace:
        """Chain by chain."""
        return trace_iptables.trace(self._ruleset.of(family_of(packet.destination)), packet, kernel)

    def kernel(self, rules: Mapping[Family, Iterable[RuleSeen]]) -> dict[Family, KernelRules]:
        """By iptables-save."""
        assert self._node.live is not None
        seen: dict[Family, KernelRules] = {}
        try:
            tools = find_tools(Variant(self._node.live.header.variant))
            for family, wanted in rules.items():
                command_line = (*tools.program(family, "save"), "-c")
                done = asyncio.run(run_tool(command_line, "", _LOOK_S))
                if done is None or done.exit_code != 0:
                    why = done.stderr.strip() if done is not None else "it did not end in time"
                    click.echo(f"kproxy: the kernel's {family.value} rules are not known: {why}", err=True)
                    continue
                seen[family] = read_counters(done.stdout, wanted)
        except (UnsupportedError, FamilyUnusableError) as error:
            click.echo(f"kproxy: the kernel's rules are not known: {error}", err=True)
        return seen


def plane_of(node: NodeView, desired: DesiredState) -> PlaneView:
    """The data plane of the node's mode."""
    return IptablesView(node, desired)
