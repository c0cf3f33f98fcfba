"""The ways of packets from one sender to every address of a Service, told by the tracer.

In: an explained Service, a node, the tracer of its data plane, a sender. Out: one `Journey` for each address and port: what becomes of the
packet with which probability, and what becomes of its source address and why. The reason is read off the trace: it is the rule that marked
the packet, or what the trace says itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from kproxy.backends.iptables import names
from kproxy.cli.options import NodeView
from kproxy.cli.senders import address_of, node_address
from kproxy.errors import ConfigError
from kproxy.explain.match_iptables import is_local
from kproxy.explain.service import Explanation, PortSeen
from kproxy.explain.trace import EVERY_PACKET, Branch, Fate, Hop, KernelView, Origin, Packet, Trace
from kproxy.model.addresses import family_of
from kproxy.model.names import Family


@dataclass(frozen=True, slots=True, kw_only=True)
class Journey:
    """What becomes of packets from `trace.packet.source` to one address. kind: which address of the Service it is."""

    kind: str
    trace: Trace


def journeys(
    found: Explanation, node: NodeView, trace: Callable[[Packet, KernelView], Trace], source: str
) -> tuple[Journey, ...]:
    """The ways to every address of the Service. Raises ConfigError when there is no such sender."""
    kernel = KernelView(local_addresses=node.snapshot.local_addresses)
    told: list[Journey] = []
    unknown: ConfigError | None = None
    for port in found.ports:
        family = port.service_port.family
        try:
            sender = address_of(source, family is Family.IPV6, node)
            if family_of(sender) is not family:
                continue
            for kind, address, number in _destinations(port, node):
                packet = Packet(
                    source=sender,
                    destination=address,
                    port=number,
                    protocol=port.spec.protocol,
                    origin=Origin.LOCAL if is_local(sender, kernel) else Origin.ARRIVES,
                    in_interface=_interface(source, node, family),
                )
                told.append(Journey(kind=kind, trace=trace(packet, kernel)))
        except ConfigError as error:
            unknown = error
    if unknown is not None and not told:
        raise unknown
    return tuple(told)


def _destinations(port: PortSeen, node: NodeView) -> Iterator[tuple[str, str, int]]:
    service_port = port.service_port
    for virtual_ip in service_port.virtual_ips:
        yield virtual_ip.kind.value, virtual_ip.address, service_port.port
    if service_port.node_port is not None:
        yield "node port", node_address(node, service_port.family), service_port.node_port


def _interface(source: str, node: NodeView, family: Family) -> str:
    """The interface a pod's packets come in by, where the way to tell pods is the interface."""
    if "/" not in source:
        return ""
    settings = node.settings
    return settings.bridge_interface or (f"{settings.interface_prefix}0" if settings.interface_prefix else "")


def outcome(branch: Branch) -> str:
    """What becomes of the packet, in a few words."""
    match branch.fate:
        case Fate.REACHES:
            return branch.to
        case Fate.REJECTED:
            return "refused at once (ICMP port unreachable)"
        case Fate.DROPPED:
            return "dropped: no answer, the client times out"
        case Fate.UNTOUCHED:
            return "goes on as it was sent: no rule of a Service is about it"


def source_fate(branch: Branch, shared: tuple[Hop, ...]) -> str:
    """What becomes of the packet's source address, and why; "" when the packet ends before that matters."""
    if branch.fate in (Fate.REJECTED, Fate.DROPPED):
        return ""
    if branch.seen_as:
        return branch.seen_as
    if not branch.masqueraded:
        return "source kept"
    for hop in (*shared, *branch.hops):
        if hop.matched and hop.rule.endswith(f"-j {names.MARK_MASQ}"):
            why = hop.comment if hop.why == EVERY_PACKET else hop.why
            return f"source becomes this node's ({hop.chain}: {why or 'every packet'})"
    return "source becomes this node's"
