"""How an explained Service is shown: a page for a terminal, and the JSON of `kproxy explain -o json`.

In: a `Page`, everything found. Out: text on standard output. What must not happen here: finding something out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from rich.console import Console

from kproxy.cli.journeys import Journey, outcome, source_fate
from kproxy.cli.relayed import relay_json, relay_lines
from kproxy.cli.terminal import console, lasting, plain, table
from kproxy.explain.endpoints import EndpointSeen
from kproxy.explain.kernel import KernelRules
from kproxy.explain.rules import Part, RuleSeen
from kproxy.explain.service import Explanation, PortSeen
from kproxy.model.names import Family
from kproxy.model.objects import Service
from kproxy.telemetry.statepage import Header

_SHOWN_ENDPOINTS = 100
_SHOWN_RULES = 150  # of a port; a Service of a thousand endpoints has four thousand
_SHOWN_OUTCOMES = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """What is shown. live: whose knowledge it is, None on files. kernel: what the kernel holds, by family, where it was asked."""

    explanation: Explanation
    live: Header | None = None
    kernel: Mapping[Family, KernelRules]
    source: str | None = None
    journeys: Sequence[Journey] = ()

    def missing(self, port: PortSeen) -> list[RuleSeen]:
        """Rules of the Service that the kernel lacks."""
        kernel = self.kernel.get(port.service_port.family)
        own = [rule for rule in port.rules if rule.part is not Part.WAY]
        return [rule for rule in own if kernel.of(rule) is None] if kernel is not None else []

    def extra(self, port: PortSeen) -> list[tuple[str, str, str]]:
        """Rules in the Service's own chains that nobody wants there: table, chain, rule."""
        kernel = self.kernel.get(port.service_port.family)
        return kernel.extra(port.rules) if kernel is not None else []

    @property
    def drift(self) -> bool:
        """Whether the kernel holds something else than it should."""
        return any(self.missing(port) or self.extra(port) for port in self.explanation.ports)


# For people


def show(page: Page) -> None:
    """Prints the page."""
    out, found = console(), page.explanation
    where = f"{found.node}, zone {found.zone}" if found.zone else found.node
    _say(out, f"Service {found.service.name} on {where}", style="bold")
    for text in _facts(found.service):
        _say(out, f"  {text}")
    if page.live is not None:
        role = "" if page.live.writer else ", which stands by: another kproxy writes the rules"
        _say(out, f"  as the kproxy here knows it{role}: last word from the API server {_ago(page.live.heard_s)}, "
                  f"last sync of rules {_ago(page.live.synced_s)}")  # fmt: skip
    if found.unserved:
        _say(out, f"  no rules on any node: {found.unserved}")
    for problem in found.problems:
        _say(out, f"  ! {problem}")
    if found.addresses:
        out.print()
        rows = (
            (a.address, a.kind + (f", ipMode {a.ip_mode}" if a.ip_mode else ""), "yes" if a.served else "no", a.why)
            for a in found.addresses
        )
        out.print(table(("ADDRESS", "KIND", "SERVED", "WHY"), rows))
    for text in found.node_port_addresses:
        _say(out, f"node ports answer on {text}")
    for port in found.ports:
        _show_port(out, page, port)
    if page.source is not None:
        _show_journeys(out, page)


def _say(out: Console, text: object, style: str = "") -> None:
    """A line that is not wrapped: chains and rules are to be found by grep."""
    out.print(plain(text), style=style or None, soft_wrap=True)


def _ago(seconds: float | None) -> str:
    return "never" if seconds is None else f"{lasting(seconds)} ago"


def _facts(service: Service) -> Iterator[str]:
    yield f"type {service.type}" + (f" to {service.external_name}" if service.external_name else "")
    yield f"internal traffic policy {service.internal_policy.value}, external traffic policy {service.external_policy.value}"
    if service.affinity_timeout_s is not None:
        yield f"session affinity by client address for {service.affinity_timeout_s} s"
    if service.source_ranges:
        yield f"load-balancer addresses for {', '.join(service.source_ranges)} only"
    if service.health_check_node_port:
        yield f"health check of the load balancer on node port {service.health_check_node_port}"
    if not service.selector and not service.external_name:
        yield "no selector: its endpoints are written by hand or by another controller"


def port_text(port: PortSeen) -> str:
    """`http 80/TCP, node port 30080, IPv4`."""
    spec, service_port = port.spec, port.service_port
    named = f"{spec.name} " if spec.name else ""
    node_port = f", node port {service_port.node_port}" if service_port.node_port else ""
    return f"{named}{spec.port}/{spec.protocol.value}{node_port}, {service_port.family.value}"


def _show_port(out: Console, page: Page, port: PortSeen) -> None:
    out.print()
    _say(out, f"port {port_text(port)}", style="bold")
    out.print()
    rows = ((r.traffic, r.to, r.policy, r.when_empty or r.endpoints, r.source) for r in port.routes)
    out.print(table(("TRAFFIC", "TO", "POLICY", "ENDPOINTS", "SOURCE ADDRESS"), rows))
    out.print()
    if port.endpoints:
        columns = ("ENDPOINT", "NODE", "ZONE", "POD", "CONDITIONS", "HINTS", "USED FOR", "WHY, OR WHY NOT")
        out.print(table(columns, (_endpoint_row(e) for e in port.endpoints[:_SHOWN_ENDPOINTS])))
        _more(out, len(port.endpoints) - _SHOWN_ENDPOINTS, "endpoints")
    else:
        _say(out, "no endpoint: no slice of this Service has one in this family")
    if port.hints:
        _say(out, f"topology hints are {port.hints}")
    _show_rules(out, page, port)
    if port.relay is not None:
        out.print()
        for text in relay_lines(port.relay):
            _say(out, text)


def _endpoint_row(seen: EndpointSeen) -> tuple[str, ...]:
    member = seen.member
    address = seen.endpoint.text if seen.endpoint is not None else member.address
    words = ("ready" if member.ready else "not ready", "serving" if member.serving else "not serving")
    conditions = ", ".join([*words, "terminating"] if member.terminating else words)
    hints = ", ".join([*(f"zone {z}" for z in member.hint_zones), *(f"node {n}" for n in member.hint_nodes)])
    uses = {"internal": seen.internal, "external": seen.external, "short-circuit": seen.short_circuit}
    used = [name for name, use in uses.items() if use.used]
    reasons: dict[str, list[str]] = {}
    for name, use in uses.items():
        reasons.setdefault(str(use), []).append(name)
    if len(reasons) == 1:
        why = next(iter(reasons))
    else:
        why = "; ".join(f"{', '.join(traffic)}: {reason}" for reason, traffic in reasons.items())
    return (address, member.node_name, member.zone, member.pod, conditions, hints, ", ".join(used) or "nothing", why)


def _show_rules(out: Console, page: Page, port: PortSeen) -> None:
    kernel = page.kernel.get(port.service_port.family)
    out.print()
    counts = kernel is not None and any(found.packets is not None for found in kernel.counted.values())
    counted = "; how often each matched since it was written" if counts else ""
    _say(out, f"rules, in the order a packet meets them{counted}" if port.rules else "no rules")
    for (name, chain), group in groupby(port.rules[:_SHOWN_RULES], key=lambda rule: (rule.table, rule.chain)):
        _say(out, f"  {name} {chain}", style="cyan")
        for rule in group:
            _say(out, f"    {rule.text}")
            _say(out, f"        {rule.why}{_counted(kernel, rule)}", style="dim")
    _more(out, len(port.rules) - _SHOWN_RULES, "rules")
    for name, chain, text in page.extra(port):
        _say(out, f"  ! {name} {chain} holds a rule that kproxy did not write: {text}")
    if kernel is not None and not page.missing(port) and not page.extra(port):
        _say(out, "  the kernel holds exactly these")


def _counted(kernel: KernelRules | None, rule: RuleSeen) -> str:
    if kernel is None or not kernel.knows(rule):
        return ""
    found = kernel.of(rule)
    if found is None:
        return "   ! NOT IN THE KERNEL"
    if found.packets is None:
        return ""
    return f"   [{found.packets} packets, {found.octets} bytes]"


def _more(out: Console, count: int, what: str) -> None:
    if count > 0:
        _say(out, f"  … and {count} more {what} (-o json shows all)")


def _show_journeys(out: Console, page: Page) -> None:
    out.print()
    sources = dict.fromkeys(journey.trace.packet.source for journey in page.journeys)
    _say(out, f"from {page.source} ({', '.join(sources) or 'no address of a family that is served'})", style="bold")
    for journey in page.journeys:
        packet, shared = journey.trace.packet, journey.trace.hops
        to = f"[{packet.destination}]" if ":" in packet.destination else packet.destination
        out.print()
        _say(out, f"  to {to}:{packet.port}/{packet.protocol.lower}, {journey.kind}")
        for branch in journey.trace.branches[:_SHOWN_OUTCOMES]:
            fate = source_fate(branch, shared)
            _say(out, f"    {float(branch.probability):7.2%}  {outcome(branch)}{', ' + fate if fate else ''}")
        _more(out, len(journey.trace.branches) - _SHOWN_OUTCOMES, "outcomes")


# For programs


def as_json(page: Page) -> dict[str, object]:
    """The page in plain types. Fields are added, never renamed."""
    found, service = page.explanation, page.explanation.service
    live = page.live
    return {
        "service": {
            "namespace": service.name.namespace,
            "name": service.name.name,
            "type": service.type,
            "internalTrafficPolicy": service.internal_policy.value,
            "externalTrafficPolicy": service.external_policy.value,
            "sessionAffinitySeconds": service.affinity_timeout_s,
            "loadBalancerSourceRanges": list(service.source_ranges),
            "healthCheckNodePort": service.health_check_node_port or None,
        },
        "node": found.node,
        "zone": found.zone,
        "live": None if live is None else {"heardSeconds": live.heard_s, "syncedSeconds": live.synced_s, "writer": live.writer},
        "unserved": found.unserved,
        "addresses": [
            {"address": a.address, "kind": a.kind, "ipMode": a.ip_mode, "served": a.served, "why": a.why}
            for a in found.addresses
        ],
        "nodePortAddresses": list(found.node_port_addresses),
        "ports": [_port_json(page, port) for port in found.ports],
        "problems": [{"kind": p.kind, "name": p.name, "reason": p.reason} for p in found.problems],
        "drift": page.drift,
        "from": None if page.source is None else {"sender": page.source, "ways": [_way_json(j) for j in page.journeys]},
    }  # fmt: skip


def _port_json(page: Page, port: PortSeen) -> dict[str, object]:
    kernel = page.kernel.get(port.service_port.family)
    return {
        "name": port.spec.name,
        "protocol": port.spec.protocol.value,
        "port": port.spec.port,
        "nodePort": port.service_port.node_port,
        "family": port.service_port.family.value,
        "hints": port.hints,
        "traffic": [
            {
                "kind": route.traffic,
                "to": route.to,
                "policy": route.policy,
                "endpoints": route.endpoints,
                "whenEmpty": route.when_empty,
                "source": route.source,
            }
            for route in port.routes
        ],
        "endpoints": [_endpoint_json(seen) for seen in port.endpoints],
        "rules": [_rule_json(kernel, rule) for rule in port.rules],
        "relay": None if port.relay is None else relay_json(port.relay),
        "extraRules": [{"table": t, "chain": c, "rule": text} for t, c, text in page.extra(port)],
    }


def _endpoint_json(seen: EndpointSeen) -> dict[str, object]:
    member = seen.member
    uses = {"internal": seen.internal, "external": seen.external, "shortCircuit": seen.short_circuit}
    return {
        "address": member.address,
        "port": seen.port,
        "slice": seen.slice,
        "node": member.node_name,
        "zone": member.zone,
        "pod": member.pod,
        "ready": member.ready,
        "serving": member.serving,
        "terminating": member.terminating,
        "hintZones": list(member.hint_zones),
        "hintNodes": list(member.hint_nodes),
        **{name: {"used": use.used, "reason": use.reason.name, "why": str(use)} for name, use in uses.items()},
    }


def _rule_json(kernel: KernelRules | None, rule: RuleSeen) -> dict[str, object]:
    found = kernel.of(rule) if kernel is not None else None
    counters = {
        "present": found is not None,
        "packets": found.packets or 0 if found else 0,
        "bytes": found.octets or 0 if found else 0,
    }
    return {
        "table": rule.table,
        "chain": rule.chain,
        "rule": rule.text,
        "part": rule.part.value,
        "why": rule.why,
        "kernel": counters if kernel is not None and kernel.knows(rule) else None,
    }


def _way_json(journey: Journey) -> dict[str, object]:
    told, shared = journey.trace.as_json(), journey.trace.hops
    sources = [source_fate(branch, shared) for branch in journey.trace.branches]
    return {"kind": journey.kind, "sourceFates": sources, **told}
