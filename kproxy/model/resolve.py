"""`resolve`: from what the API says to what this node must do. The only place that knows what Services mean.

In: a Snapshot, the node's settings, and the DesiredState before. Out: the DesiredState now, in which "reject", "drop" and "masquerade"
are fields; and the Problems met on the way. No packet facility, no clock, no I/O. A bad object costs its own ports and gives a
Problem, never an exception: every other Service still works.

How one Service port is decided (kube-proxy 1.36; the order matters):
1. The Service counts at all: proxied (no label that hands it to another proxy), not ExternalName, and a cluster IP of the family (else
   the whole Service is skipped in this family, node port included).
2. `topology.usable` gives the Cluster set, the Local set, and whether anything could answer.
3. Internal traffic (to the cluster IP) takes the Local set under internalTrafficPolicy Local, else the Cluster set.
4. External traffic (external and load-balancer IPs, node port) takes the Local set under externalTrafficPolicy Local, which counts
   only for Services reachable from outside by their spec. Pods and the node itself are then short-circuited to the Cluster set: they
   need no load balancer to find a node that has endpoints.
5. An empty set is REJECT if nothing could answer anywhere, and DROP if only the Local set is empty: a load balancer that has
   not noticed yet retries elsewhere.

Work is proportional to what changed: a Service whose object and slices are the very ones of last time (`is`) keeps its ServicePorts, and
a recomputed ServicePort that equals the old one is the old one. What that needs travels in `DesiredState.memo`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from operator import is_

from kproxy.model.addresses import contains, family_of, of_family, special_class
from kproxy.model.conflicts import conflicts
from kproxy.model.desired import (
    ClientIPAffinity,
    DesiredState,
    Endpoint,
    FamilyState,
    Masquerade,
    NodeFacts,
    NodeSettings,
    ResolveMemo,
    Route,
    ServiceMemo,
    ServicePort,
    SourceRanges,
    Verdict,
    VirtualIP,
    VirtualIPKind,
)
from kproxy.model.endpoints import Candidates, candidates_of
from kproxy.model.external_ips import Guard, claimants, guard_of, guard_sources
from kproxy.model.names import Family, NamespacedName, Protocol, ServicePortName
from kproxy.model.node import at_local_dns, local_detector, node_facts, node_ip, node_port_addresses, untracked_dns
from kproxy.model.objects import EndpointSlice, PortSpec, Problem, Service, TrafficPolicy
from kproxy.model.ordering import in_order, in_order_again
from kproxy.model.snapshot import Snapshot, differing
from kproxy.model.topology import Candidate, Usable, place_of, usable

_FAMILIES = (Family.IPV4, Family.IPV6)
_NOTHING = Usable()


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolved:
    """The wanted state, and what was wrong with the objects it comes from (sorted)."""

    desired: DesiredState
    problems: tuple[Problem, ...] = ()


def resolve(snapshot: Snapshot, settings: NodeSettings, previous: DesiredState | None = None) -> DesiredState:
    """The wanted state of the node. Equal inputs give equal results, whatever `previous` is; it only saves work."""
    return resolve_with_problems(snapshot, settings, previous).desired


def resolve_with_problems(snapshot: Snapshot, settings: NodeSettings, previous: DesiredState | None = None) -> Resolved:
    """`resolve`, together with the Problems of all Services and slices."""
    old = previous.memo if previous is not None else None
    memo, turned = _remember(snapshot, settings, old)
    states = {
        family: _family_state(family, snapshot, settings, memo, turned, previous if old is not None else None)
        for family in _FAMILIES
    }
    four, six = (_conflicts(states[family], turned, previous) for family in _FAMILIES)
    if memo.conflicts != (four, six):
        memo = replace(memo, conflicts=(four, six))
    desired = DesiredState(ipv4=states[Family.IPV4], ipv6=states[Family.IPV6], memo=memo)
    return Resolved(desired=desired, problems=tuple(sorted({*memo.problems, *four, *six})))


# What one Service resolved to, before and now; None where it was not or is no more. Services that stayed as they were are not listed.
_Turnover = list[tuple[ServiceMemo | None, ServiceMemo | None]]


def _remember(snapshot: Snapshot, settings: NodeSettings, old: ResolveMemo | None) -> tuple[ResolveMemo, _Turnover]:
    facts = node_facts(snapshot, settings)
    before: Mapping[NamespacedName, ServiceMemo] = old.resolved if old is not None else {}
    if old is not None and old.services is snapshot.services:
        claiming = old.claimants
    else:
        claiming = claimants(snapshot.services)
    sources = guard_sources(snapshot)
    if (
        old is not None
        and old.facts == facts
        and old.guard.settings == settings.external_ips
        and all(map(is_, old.guard_sources, sources))
    ):
        guard = old.guard
    else:
        guard = guard_of(snapshot, settings.external_ips, settings.node_ips, claiming)
    names: Iterable[NamespacedName]
    if old is None or old.facts != facts:
        names = before.keys() | snapshot.services.keys()
    else:
        names = differing(old.services, snapshot.services) | differing(old.slices_of, snapshot.slices_of)
        if old.guard != guard:
            names |= claiming
    resolved, turned = dict(before), _Turnover()
    for name in names:
        service, was = snapshot.services.get(name), before.get(name)
        if service is not None:
            now = _resolve_service(service, snapshot.slices_of.get(name, ()), facts, guard, was)
            resolved[name] = now
            turned.append((was, now))
        elif was is not None:
            del resolved[name]
            turned.append((was, None))
    problems = old.problems if old is not None else ()
    if any(known.problems for pair in turned for known in pair if known is not None):
        problems = tuple(sorted({problem for known in resolved.values() for problem in known.problems}))
    memo = ResolveMemo(facts, snapshot.services, snapshot.slices_of, resolved, guard, sources, claiming, problems)
    return memo, turned


def _conflicts(state: FamilyState, turned: _Turnover, previous: DesiredState | None) -> tuple[Problem, ...]:
    """The conflicts of a family; those of before when no claim of this family has changed."""
    if previous is not None and previous.memo is not None:
        family = state.family
        if all(_claims(was, family) == _claims(now, family) for was, now in turned):
            return previous.memo.conflicts[_FAMILIES.index(family)]
    return conflicts(state.service_ports)


def _claims(known: ServiceMemo | None, family: Family) -> list[object]:
    ports = known.service_ports if known is not None else ()
    return [(p.name, p.port, p.node_port, p.virtual_ips) for p in ports if p.family is family]


def _family_state(
    family: Family,
    snapshot: Snapshot,
    settings: NodeSettings,
    memo: ResolveMemo,
    turned: _Turnover,
    previous: DesiredState | None,
) -> FamilyState:
    before = previous.of(family) if previous is not None else None
    if before is None:
        every = [p for known in memo.resolved.values() for p in known.service_ports if p.family is family]
        ports: Mapping[ServicePortName, ServicePort] = in_order({p.name: p for p in every})
    else:
        ports = _renewed(before.service_ports, turned, family)
    state = FamilyState(
        family=family,
        service_ports=ports,
        node_ip=node_ip(snapshot, settings, family),
        local_detector=local_detector(snapshot, settings, family),
        node_port_addresses=node_port_addresses(snapshot, settings, family),
        untracked_dns=untracked_dns(settings, family),
    )
    if before is not None and before.service_ports is ports and before == state:
        return before
    return state


def _renewed(
    before: Mapping[ServicePortName, ServicePort], turned: _Turnover, family: Family
) -> Mapping[ServicePortName, ServicePort]:
    """`before` after the turnover, in order; the very same mapping when this family has no part in it."""
    gone: set[ServicePortName] = set()
    new: dict[ServicePortName, ServicePort] = {}
    for was, known in turned:
        old = {p.name: p for p in was.service_ports if p.family is family} if was is not None else {}
        now = {p.name: p for p in known.service_ports if p.family is family} if known is not None else {}
        gone |= old.keys() - now.keys()
        new.update({name: p for name, p in now.items() if old.get(name) is not p})
    if not gone and not new:
        return before
    ports = dict(before)
    for name in gone:
        ports.pop(name, None)
    kept = len(ports)
    ports.update(new)
    return in_order_again(ports, len(ports) - kept)


# One Service


def _resolve_service(
    service: Service,
    slices: tuple[EndpointSlice, ...],
    facts: NodeFacts,
    guard: Guard,
    before: ServiceMemo | None,
) -> ServiceMemo:
    problems: list[Problem] = []
    ports: list[ServicePort] = []
    if not unserved(service):
        addresses = (*service.cluster_ips, *service.external_ips, *service.load_balancer_ips)
        here = {family_of(address) for address in addresses}  # mostly one
        for family in _FAMILIES:
            if family in here:
                ports += _ports_of_family(service, slices, family, facts, guard, problems)
    if before is not None:
        old = {(p.family, p.name): p for p in before.service_ports}
        ports = [was if (was := old.get((p.family, p.name))) == p and was is not None else p for p in ports]
    return ServiceMemo(service, slices, tuple(ports), tuple(problems))


def unserved(service: Service) -> str:
    """Why no node serves this Service at all, "" when they do. An ExternalName may still bear an old cluster IP: `type` decides."""
    if service.type == "ExternalName":
        return "type ExternalName: an alias in DNS, there is nothing to route"
    if service.headless:
        return "headless (clusterIP: None): DNS answers with the endpoints themselves"
    if not service.proxied:
        return "the label service.kubernetes.io/service-proxy-name hands it to another proxy"
    return "" if service.cluster_ips else "it has no cluster IP (yet)"


def _ports_of_family(
    service: Service,
    slices: tuple[EndpointSlice, ...],
    family: Family,
    facts: NodeFacts,
    guard: Guard,
    problems: list[Problem],
) -> list[ServicePort]:
    virtual_ips = _virtual_ips(service, family, guard, problems)
    if not virtual_ips or virtual_ips[0].kind is not VirtualIPKind.CLUSTER:
        return []
    candidates, refused = candidates_of(slices, family, facts.name)
    problems += refused
    ranges = _source_ranges(service, virtual_ips, family, facts)
    seen: set[tuple[str, Protocol]] = set()
    ports: list[ServicePort] = []
    for port in service.ports:
        key = (port.name, port.protocol)
        if key in seen:
            problems.append(
                _problem(service, f"spec.ports: {port.name!r} {port.protocol.value} twice; the first is used")
            )
            continue
        seen.add(key)
        known = candidates.get(key, ())
        found = usable(known, place_of(port.port, service.cluster_ips, facts)) if known else _NOTHING
        reached_at = _virtual_ips_of_port(service, port, virtual_ips, guard, problems)
        made = _service_port(service, port, family, reached_at, found, ranges, facts)
        if port.protocol is Protocol.UDP:
            made = _with_serving(made, (c for c in known if c.serving), found)
        elif port.protocol is Protocol.TCP and facts.follows_tcp:
            made = _with_serving(made, known, found)
        ports.append(at_local_dns(made, facts))
    if _health_check_node_port(service):
        local = _local_ready(candidates)
        ports = [replace(port, local_ready=local) for port in ports] if local else ports
    return ports


def _local_ready(candidates: Candidates) -> int:
    """Distinct addresses: 10.0.0.1:80 and 10.0.0.1:443 are one pod. Draining ones do not count, so that a load balancer goes elsewhere."""
    ready = (c for known in candidates.values() for c in known if c.ready and c.endpoint.is_local)
    return len({candidate.endpoint.address for candidate in ready})


def _service_port(
    service: Service,
    port: PortSpec,
    family: Family,
    virtual_ips: tuple[VirtualIP, ...],
    found: Usable,
    ranges: SourceRanges | None,
    facts: NodeFacts,
) -> ServicePort:
    detects = facts.detects[0 if family is Family.IPV4 else 1]
    local_internally = service.internal_policy is TrafficPolicy.LOCAL
    off_cluster = Masquerade.OFF_CLUSTER_SOURCES if detects else Masquerade.NEVER
    internal = _route(found, local_internally, Masquerade.ALWAYS if facts.masquerade_all else off_cluster)
    external = short_circuit = Route()
    if port.node_port or len(virtual_ips) > 1:
        if _external_policy_is_local(service):
            external = _route(found, True, Masquerade.NEVER)
            short_circuit = _route(found, False, Masquerade.OFF_CLUSTER_SOURCES)
        else:
            # The endpoint may be on another node, and the reply has to come back through this one: always masqueraded.
            external = short_circuit = _route(found, False, Masquerade.ALWAYS)
    return ServicePort(
        name=ServicePortName(service.name, port.name, port.protocol),
        family=family,
        port=port.port,
        virtual_ips=virtual_ips,
        node_port=port.node_port or None,
        internal=internal,
        external=external,
        short_circuit=short_circuit,
        reachable=_union(internal, external, short_circuit),
        source_ranges=ranges,
        affinity=None if service.affinity_timeout_s is None else ClientIPAffinity(timeout_s=service.affinity_timeout_s),
        health_check_node_port=_health_check_node_port(service),
        relay=service.relay,
    )


def _with_serving(port: ServicePort, known: Iterable[Candidate], found: Usable) -> ServicePort:
    serving = tuple(candidate.endpoint for candidate in known)
    return replace(port, serving=found.cluster if found.cluster == serving else serving)


def _route(found: Usable, local_only: bool, masquerade: Masquerade) -> Route:
    endpoints = found.local if local_only else found.cluster
    dropped = not endpoints and found.any_anywhere
    verdict = Verdict.DROP if dropped else Verdict.REJECT
    return Route(endpoints=endpoints, when_empty=verdict, masquerade=masquerade, local_only=local_only)


def _union(*routes: Route) -> tuple[Endpoint, ...]:
    longest = max((route.endpoints for route in routes), key=len)
    if all(not route.endpoints or route.endpoints is longest for route in routes):
        return longest  # nearly always, and every endpoint's hash is some Python
    every = {endpoint for route in routes for endpoint in route.endpoints}
    return tuple(sorted(every, key=lambda e: e.text)) if len(every) > len(longest) else longest


def _external_policy_is_local(service: Service) -> bool:
    """externalTrafficPolicy counts only where the spec, not the status, makes the Service reachable from outside."""
    reachable = service.type in ("LoadBalancer", "NodePort") or bool(service.external_ips)
    return reachable and service.external_policy is TrafficPolicy.LOCAL


def _health_check_node_port(service: Service) -> int | None:
    wanted = service.type == "LoadBalancer" and service.external_policy is TrafficPolicy.LOCAL
    return service.health_check_node_port or None if wanted else None


def _virtual_ips(service: Service, family: Family, guard: Guard, problems: list[Problem]) -> tuple[VirtualIP, ...]:
    """The addresses of `family`, cluster IP first. Those of the other family are passed over without a word, as they are normal."""
    found: list[VirtualIP] = []
    if not service.external_ips and not service.load_balancer_ips and len(service.cluster_ips) == 1:
        address = service.cluster_ips[0]
        if family_of(address) is family and not special_class(address, link_local=False):
            return (VirtualIP(address=address, kind=VirtualIPKind.CLUSTER),)
    for kind, path, addresses in (
        (VirtualIPKind.CLUSTER, "spec.clusterIPs", of_family(service.cluster_ips, family)[:1]),
        (VirtualIPKind.EXTERNAL, "spec.externalIPs", sorted(set(of_family(service.external_ips, family)))),
        (
            VirtualIPKind.LOAD_BALANCER,
            "status.loadBalancer.ingress[].ip",
            sorted(set(of_family(service.load_balancer_ips, family))),
        ),
    ):
        for address in addresses:
            if reason := special_class(address, link_local=False):
                problems.append(_problem(service, f"{path}: {address} ({reason}) cannot be a virtual IP; ignored"))
            elif kind is VirtualIPKind.EXTERNAL and (reason := guard.refusal(address)):
                problems.append(_problem(service, f"{path}: {address} refused: {reason}"))
            else:
                found.append(VirtualIP(address=address, kind=kind))
    return tuple(found)


def _virtual_ips_of_port(
    service: Service, port: PortSpec, virtual_ips: tuple[VirtualIP, ...], guard: Guard, problems: list[Problem]
) -> tuple[VirtualIP, ...]:
    """`virtual_ips` without those external ones on which this port is somebody else's."""
    if not service.external_ips:
        return virtual_ips
    found: list[VirtualIP] = []
    for virtual_ip in virtual_ips:
        reason = ""
        if virtual_ip.kind is VirtualIPKind.EXTERNAL:
            reason = guard.port_refusal(virtual_ip.address, port.port, port.protocol)
        if reason:
            where = f"{virtual_ip.address} port {port.port}/{port.protocol.value}"
            problems.append(_problem(service, f"spec.externalIPs: {where} refused: {reason}"))
        else:
            found.append(virtual_ip)
    return tuple(found)


def _source_ranges(
    service: Service, virtual_ips: tuple[VirtualIP, ...], family: Family, facts: NodeFacts
) -> SourceRanges | None:
    networks = tuple(sorted(set(of_family(service.source_ranges, family)))) if service.source_ranges else ()
    if not networks or all(v.kind is not VirtualIPKind.LOAD_BALANCER for v in virtual_ips):
        return None
    own = facts.node_ips[0 if family is Family.IPV4 else 1]
    return SourceRanges(networks=networks, allow_own_virtual_ip=any(contains(n, own) for n in networks))


def _problem(service: Service, reason: str) -> Problem:
    return Problem("Service", str(service.name), reason)
