"""What `resolve` decided is what packets meet: random clusters, compiled to iptables rules and walked by the tracer.

`_promised` reads one ServicePort as its docstring says it is to be read; the rules and the tracer know nothing of it. Addresses that two
ServicePorts claim are left out here (test_conflicts.py).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from kproxy.backends.iptables.compile import compile_ruleset
from kproxy.backends.iptables.settings import IptablesSettings
from kproxy.explain.trace import Fate, KernelView, Origin, Packet
from kproxy.explain.trace_iptables import trace
from kproxy.model.addresses import contains, in_any
from kproxy.model.desired import FamilyState, Masquerade, NodeSettings, Route, ServicePort, Verdict, VirtualIPKind
from kproxy.model.events import Event
from kproxy.model.names import Family
from kproxy.model.resolve import resolve
from kproxy.model.snapshot import Snapshot, fold
from tests.support.addressing import NODE_IP, OUTSIDE, POD, six
from tests.support.strategies import clusters, settings

_CLIENTS = (POD, OUTSIDE, NODE_IP, "10.180.0.1", "203.0.113.130", "192.168.0.9", "1.2.3.4")
_LOCAL = frozenset({NODE_IP, six(NODE_IP), "127.0.0.1", "::1"})
_VERDICTS = {Verdict.REJECT: Fate.REJECTED, Verdict.DROP: Fate.DROPPED}


@dataclass(frozen=True)
class _Asked:
    """A packet, and the ServicePort and field that it is about."""

    port: ServicePort
    kind: VirtualIPKind | None  # None: the node port
    packet: Packet


_Answer = tuple[Fate, frozenset[tuple[str, bool]]]  # what happens; endpoints reached, each with whether masqueraded


@given(clusters(), settings, st.lists(st.sampled_from(_CLIENTS), min_size=2, max_size=3, unique=True))
def test_packets_meet_what_was_decided(happened: list[Event], node: NodeSettings, clients: list[str]) -> None:
    desired = resolve(fold(Snapshot(), happened), node)
    ruleset = compile_ruleset(desired, IptablesSettings())
    kernel = KernelView(local_addresses=_LOCAL)
    for family in Family:
        state = desired.of(family)
        for asked in _questions(state, clients):
            found = trace(ruleset.of(family), asked.packet, kernel)
            shares = {b.probability for b in found.branches}
            assert max(shares) - min(shares) < 1e-6, (shares, asked)
            fates = {b.fate for b in found.branches}
            reached = frozenset((b.to, b.masqueraded) for b in found.branches if b.fate is Fate.REACHES)
            assert len(fates) == 1, (asked, fates)
            assert (fates.pop(), reached) == _promised(asked, state), asked


def _questions(state: FamilyState, clients: list[str]) -> Iterator[_Asked]:
    """Every destination of every ServicePort that nobody else claims, from each client; DNS that the node answers itself is not meant."""
    claims: Counter[tuple[str, int, str]] = Counter()
    destinations = []
    for port in state.service_ports.values():
        for ip in port.virtual_ips:
            destinations.append((port, ip.kind, ip.address, port.port))
        if port.node_port is not None:
            own = NODE_IP if state.family is Family.IPV4 else six(NODE_IP)
            destinations.append((port, None, own, port.node_port))
    for port, _, address, number in destinations:
        claims[address, number, port.name.protocol.value] += 1
    for port, kind, address, number in destinations:
        if claims[address, number, port.name.protocol.value] > 1 or address in state.untracked_dns:
            continue
        for client in clients:
            source = client if state.family is Family.IPV4 else six(client)
            origin = Origin.LOCAL if source in _LOCAL else Origin.ARRIVES
            interface = {POD: "cni0", "10.180.0.1": "veth7"}.get(client, "eth0") if origin is Origin.ARRIVES else ""
            packet = Packet(
                source=source,
                destination=address,
                port=number,
                protocol=port.name.protocol,
                origin=origin,
                in_interface=interface,
            )
            yield _Asked(port, kind, packet)


def _promised(asked: _Asked, state: FamilyState) -> _Answer:
    port, packet = asked.port, asked.packet
    pod, here = _is_pod(packet, state), packet.source in _LOCAL
    if asked.kind is VirtualIPKind.CLUSTER:
        off_cluster = port.internal.masquerade is Masquerade.OFF_CLUSTER_SOURCES and not pod
        return _through(port.internal, packet, off_cluster or port.internal.masquerade is Masquerade.ALWAYS)
    if asked.kind is None and not _answers(state, packet.destination):
        # The rules that refuse do not look at which of the node's addresses is meant, as upstream's do not.
        return (
            (_VERDICTS[port.external.when_empty], frozenset())
            if not port.external.endpoints
            else (Fate.UNTOUCHED, frozenset())
        )
    if asked.kind is VirtualIPKind.LOAD_BALANCER and port.short_circuit.endpoints and not _admitted(port, packet):
        return Fate.DROPPED, frozenset()
    if here and asked.kind is not None and not port.short_circuit.endpoints:
        return (
            Fate.UNTOUCHED,
            frozenset(),
        )  # upstream's gap, row L18: filter OUTPUT does not lead to KUBE-EXTERNAL-SERVICES
    if port.external.local_only and (pod or here):
        return _through(port.short_circuit, packet, not pod)
    return _through(port.external, packet, port.external.masquerade is Masquerade.ALWAYS)


def _through(route: Route, packet: Packet, masquerade: bool) -> _Answer:
    if not route.endpoints:
        return _VERDICTS[route.when_empty], frozenset()
    return Fate.REACHES, frozenset((e.text, masquerade or e.address == packet.source) for e in route.endpoints)


def _admitted(port: ServicePort, packet: Packet) -> bool:
    ranges = port.source_ranges
    if ranges is None or in_any(ranges.networks, packet.source):
        return True
    own = {ip.address for ip in port.virtual_ips if ip.kind is VirtualIPKind.LOAD_BALANCER}
    return ranges.allow_own_virtual_ip and packet.source in own


def _is_pod(packet: Packet, state: FamilyState) -> bool:
    detector = state.local_detector
    if detector is None:
        return False
    if detector.source:
        return contains(detector.source, packet.source)
    if detector.interface:
        return packet.in_interface == detector.interface
    return packet.in_interface.startswith(detector.interface_prefix)


def _answers(state: FamilyState, address: str) -> bool:
    where = state.node_port_addresses
    return where.everywhere or address in where.addresses
