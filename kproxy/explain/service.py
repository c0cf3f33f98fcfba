"""One Service on one node, explained: what is served, on which addresses, by which endpoints and why, by which rules.

In: a snapshot, the node's facts, what `resolve` and the compiler made of them. Out: an `Explanation`, all facts and reasons as values;
the command line lays it out. What must not happen here: a decision. Everything that was decided is read from the `DesiredState`; the
reasons for it come from the functions that decided (model.resolve.unserved, explain/endpoints.py) or from the Problems they noted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from kproxy.explain.endpoints import EndpointSeen, explain_endpoints, explain_hints
from kproxy.explain.relay import RelaySeen
from kproxy.explain.rules import RuleSeen
from kproxy.model.addresses import family_of
from kproxy.model.desired import DesiredState, Masquerade, NodeFacts, NodePortAddresses, Route, ServicePort, Verdict
from kproxy.model.endpoints import candidates_of
from kproxy.model.names import Family, NamespacedName, ServicePortName
from kproxy.model.objects import PortSpec, Problem, Service
from kproxy.model.resolve import unserved
from kproxy.model.snapshot import Snapshot
from kproxy.model.topology import place_of


@dataclass(frozen=True, slots=True, kw_only=True)
class AddressSeen:
    """One address of the Service. kind: `cluster IP`, `external IP`, `load-balancer IP`. why: the reason when it is not served."""

    address: str
    kind: str
    served: bool
    why: str = ""
    ip_mode: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteSeen:
    """Where one class of traffic goes. endpoints: how many it may use."""

    traffic: str
    to: str
    policy: str
    endpoints: int
    when_empty: str
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PlaneSeen:
    """What a data plane does for one ServicePort. rules: in the order a packet meets them. relay: what follows them, in mode userspace."""

    rules: tuple[RuleSeen, ...]
    relay: RelaySeen | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PortSeen:
    """One port in one family. hints: what became of topology hints."""

    service_port: ServicePort
    spec: PortSpec
    hints: str
    routes: tuple[RouteSeen, ...]
    endpoints: tuple[EndpointSeen, ...]
    rules: tuple[RuleSeen, ...]
    relay: RelaySeen | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """A Service on a node. unserved: why there are no rules for it at all, "" when there are."""

    service: Service
    node: str
    zone: str
    unserved: str
    addresses: tuple[AddressSeen, ...]
    node_port_addresses: tuple[str, ...]
    ports: tuple[PortSeen, ...]
    problems: tuple[Problem, ...]


def explain(
    name: NamespacedName,
    snapshot: Snapshot,
    facts: NodeFacts,
    desired: DesiredState,
    plane: Callable[[ServicePort], PlaneSeen],
    problems: Iterable[Problem],
) -> Explanation:
    """What the node does for Service `name`, which must be in the snapshot; KeyError otherwise. plane: what its data plane does."""
    service = snapshot.services[name]
    slices = snapshot.slices_of.get(name, ())
    slice_names = {str(item.name) for item in slices}
    about = tuple(sorted({p for p in problems if p.name == str(name) or p.name in slice_names}))
    ports = [
        _port(service_port, spec, snapshot, facts, plane)
        for family in Family
        for spec in service.ports
        if (service_port := desired.of(family).service_ports.get(_name(service, spec))) is not None
    ]
    node_ports = [p for p in ports if p.service_port.node_port is not None]
    families = sorted({p.service_port.family for p in node_ports}, key=list(Family).index)
    return Explanation(
        service=service,
        node=facts.name,
        zone=facts.zone,
        unserved=unserved(service),
        addresses=tuple(_addresses(service, [p.service_port for p in ports], about)),
        node_port_addresses=tuple(_node_port_text(desired.of(f).node_port_addresses, f) for f in families),
        ports=tuple(ports),
        problems=about,
    )


def _name(service: Service, spec: PortSpec) -> ServicePortName:
    return ServicePortName(service.name, spec.name, spec.protocol)


def _port(
    service_port: ServicePort,
    spec: PortSpec,
    snapshot: Snapshot,
    facts: NodeFacts,
    plane: Callable[[ServicePort], PlaneSeen],
) -> PortSeen:
    slices = snapshot.slices_of.get(service_port.name.service, ())
    candidates, _ = candidates_of(slices, service_port.family, facts.name)
    known = candidates.get((spec.name, spec.protocol), ())
    seen = plane(service_port)
    return PortSeen(
        service_port=service_port,
        spec=spec,
        hints=explain_hints(known, place_of(spec.port, [v.address for v in service_port.virtual_ips], facts)),
        routes=tuple(_routes(service_port, seen.relay)),
        endpoints=explain_endpoints(slices, spec, service_port, facts),
        rules=seen.rules,
        relay=seen.relay,
    )


def _routes(port: ServicePort, relay: RelaySeen | None) -> Iterable[RouteSeen]:
    yield _route("internal", "the cluster IP", port.internal, relay)
    if not port.externally_reachable:
        return
    elsewhere = "external and load-balancer IPs and the node port"
    yield _route("external", f"{elsewhere}, from outside", port.external, relay)
    yield _route("short-circuit", f"{elsewhere}, from pods and this node", port.short_circuit, relay)


_SOURCES = {
    Masquerade.NEVER: "the client's source address is kept",
    Masquerade.OFF_CLUSTER_SOURCES: "pods keep their source address, everybody else gets this node's",
    Masquerade.ALWAYS: "the source becomes this node's address",
}


def _route(traffic: str, to: str, route: Route, relay: RelaySeen | None) -> RouteSeen:
    empty = ""
    if not route.endpoints:
        dropped = route.when_empty is Verdict.DROP
        empty = "dropped: endpoints exist, but none that it may use" if dropped else "refused: no endpoint exists"
    return RouteSeen(
        traffic=traffic,
        to=to,
        policy="Local" if route.local_only else "Cluster",
        endpoints=len(route.endpoints),
        when_empty=empty,
        source=_SOURCES[route.masquerade] if relay is None else relay.source_in_short,
    )


def _addresses(service: Service, ports: Sequence[ServicePort], problems: Sequence[Problem]) -> Iterable[AddressSeen]:
    served = {virtual_ip.address for port in ports for virtual_ip in port.virtual_ips}
    for kind, addresses in (
        ("cluster IP", service.cluster_ips),
        ("external IP", service.external_ips),
        ("load-balancer IP", service.load_balancer_ips),
    ):
        for address in addresses:
            told = _told(address, problems)
            if address in served:
                why = (
                    told if "comes first" in told else ""
                )  # another Service's claim on the same address and port is older
            else:
                why = told or _why_not(service, address)
            yield AddressSeen(
                address=address,
                kind=kind,
                served=address in served,
                why=why,
                ip_mode="VIP" if kind == "load-balancer IP" else "",
            )
    for address in service.load_balancer_proxy_ips:
        why = "the load balancer sends to the nodes themselves, so there is nothing to catch here"
        yield AddressSeen(address=address, kind="load-balancer IP", served=False, why=why, ip_mode="Proxy")


def _told(address: str, problems: Sequence[Problem]) -> str:
    """What a Problem says about the address, if one does."""
    return next((problem.reason for problem in problems if address in problem.reason.replace(",", " ").split()), "")


def _why_not(service: Service, address: str) -> str:
    if reason := unserved(service):
        return reason
    if not service.ports:
        return "the Service has no port"
    return f"the Service has no {family_of(address).value} cluster IP, and is not served in that family"


def _node_port_text(where: NodePortAddresses, family: Family) -> str:
    loopback = " (loopback by a listener of kproxy)" if where.listener else "" if where.loopback else " but loopback"
    if where.everywhere:
        return f"{family.value}: every address of this node{loopback}"
    listener = loopback if where.listener else ""
    return f"{family.value}: {', '.join(where.addresses) or 'no address of this node'}{listener}"
