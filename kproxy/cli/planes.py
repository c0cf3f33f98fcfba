"""The data plane of a node as `kproxy explain` and `kproxy trace` ask about it, whichever it is.

In: a `NodeView` and what `resolve` decided. Out: a `PlaneView`: the rules of a ServicePort, the way of a packet through all of them, and
what the kernel holds of them. What must not happen here: a word for people about a rule; `kproxy.explain` has those.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Protocol
from urllib.parse import urlencode

import click

from kproxy.backends.iptables.apply import find_tools
from kproxy.backends.iptables.compile import compile_ruleset
from kproxy.backends.iptables.failures import FamilyUnusableError
from kproxy.backends.iptables.tool_runs import run_tool
from kproxy.backends.iptables.variant import Variant
from kproxy.backends.userspace.compile import compile_family, frame_of
from kproxy.backends.userspace.kernel import elements
from kproxy.backends.userspace.rules import set_kinds
from kproxy.backends.userspace.settings import UserspaceSettings
from kproxy.cli.options import NodeView
from kproxy.errors import UnsupportedError
from kproxy.explain import rules_userspace, trace_iptables, trace_userspace
from kproxy.explain.kernel import Counted, KernelRules
from kproxy.explain.kernel_iptables import read_counters
from kproxy.explain.relay import RelayFacts, explain_relay
from kproxy.explain.rules import RuleSeen
from kproxy.explain.rules_iptables import explain_rules
from kproxy.explain.rules_userspace import element_text
from kproxy.explain.service import PlaneSeen
from kproxy.explain.trace import KernelView, Packet, Trace
from kproxy.model.addresses import family_of
from kproxy.model.desired import DesiredState, ServicePort
from kproxy.model.names import Family
from kproxy.relay.table import table_of
from kproxy.telemetry.relaypage import service_of_bytes

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


class UserspaceView:
    """Rules lead to relay workers, which do the work."""

    def __init__(self, node: NodeView, desired: DesiredState) -> None:
        """Asks the daemon, where there is one, for the workers' listeners."""
        self._node, config = node, node.userspace
        relay = node.live.daemon.status().relay if node.live is not None else None
        listeners = (relay.ports[0], relay.ports[1]) if relay is not None and len(relay.ports) == 2 else None
        self._facts = RelayFacts(config=config, ports=listeners)
        self._asked: set[str] = set()
        settings = UserspaceSettings(
            mark_bit=config.mark_bit, routing_table=config.routing_table, notrack=config.notrack
        )
        self._rulesets = {
            family: compile_family(
                desired.of(family), frame_of(desired.of(family), settings, listeners or settings.ports)
            )
            for family in Family
        }
        self._table = table_of(desired, config.relay_options)

    def seen(self, port: ServicePort) -> PlaneSeen:
        """Elements, the rules around them, and what the relay does."""
        rules = rules_userspace.explain_rules(self._rulesets[port.family], port.name)
        return PlaneSeen(rules=rules, relay=explain_relay(port, self._table, self._known(str(port.name.service))))

    def trace(self, packet: Packet, kernel: KernelView) -> Trace:
        """Through the rules, then through the relay."""
        ruleset = self._rulesets[family_of(packet.destination)]
        return trace_userspace.trace(ruleset, self._table, self._known(""), packet, kernel)

    def kernel(self, rules: Mapping[Family, Iterable[RuleSeen]]) -> dict[Family, KernelRules]:
        """By netlink: elements of the sets that the rules stand in. Nobody counts how often an element was found."""
        seen: dict[Family, KernelRules] = {}
        for family, wanted in rules.items():
            kinds = set_kinds(family)
            asked = dict.fromkeys((rule.table, rule.chain) for rule in wanted if rule.chain in kinds)
            try:
                counted = {
                    (table, name, element_text(key, element)): Counted()
                    for table, name in asked
                    for key, element in elements(family, name, kinds[name]).items()
                }
            except (OSError, ValueError) as error:
                click.echo(f"kproxy: the kernel's {family.value} rules are not known: {error}", err=True)
                continue
            # Constant rules are not compared: nft spells them otherwise than they were written. `kproxy diff` looks at them.
            seen[family] = KernelRules(counted=counted, order={}, asked=asked)
        return seen

    def _known(self, service: str) -> RelayFacts:
        """What the workers say, with what they counted of one Service; asked once for each."""
        live = self._node.live
        if live is not None and service not in self._asked:
            self._asked.add(service)
            page = service_of_bytes(live.daemon.get(f"/relay/service?{urlencode({'name': service or '-'})}"))
            self._facts = replace(
                self._facts,
                ejected={(address, port): seconds for address, port, seconds in page.ejected},
                counted={**self._facts.counted, **page.ports},
                counted_by_end={**self._facts.counted_by_end, **page.endpoints},
            )
        return self._facts


def plane_of(node: NodeView, desired: DesiredState) -> PlaneView:
    """The data plane of the node's mode."""
    return UserspaceView(node, desired) if node.mode == "userspace" else IptablesView(node, desired)
