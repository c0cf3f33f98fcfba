"""From the wanted state to elements: each destination of a ServicePort and the way that its packets take. Pure.

    cluster IP                              relay-inside, whoever asks
    other virtual IPs, node port            relay-by-source: pods and this node INSIDE (`short_circuit`), others OUTSIDE (`external`)
      no endpoint for those outside         relay-inside-only, and a refusal for whom that leaves over
      with source ranges (load-balancer IP) relay-guarded…, and a SOURCES element for each range
    no endpoint at all                      a refusal: ICMP port unreachable, or silence
    health check node port                  the mark and nothing else

Each ServicePort compiles alone into a `Fragment`, used again for as long as its ServicePort is the same object; one change among 10,000
costs a look at who is not the same object any more, and a layer on the maps (model/layered.py). Where two ServicePorts claim a
destination the first has all of it (cluster IPs before others, then by name), as relay/table.py and the other data planes decide. SCTP is
not relayed and has no fragment.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from ipaddress import IPv4Network, IPv6Network, collapse_addresses, ip_network

from kproxy.backends.userspace import names
from kproxy.backends.userspace.ruleset import Element, Elements, Entry, FamilyRuleset, Fragment, Frame, Memo
from kproxy.backends.userspace.settings import UserspaceSettings
from kproxy.model.desired import FamilyState, ServicePort, Verdict, VirtualIP, VirtualIPKind
from kproxy.model.layered import Draft, Layered
from kproxy.model.names import Protocol, ServicePortName
from kproxy.model.objects import Problem
from kproxy.model.ordering import alike

_IN_SET = Element("", "")
_FEW = 200  # ServicePorts that are renewed one by one; with more it is quicker to begin anew
_EVERYBODY = ("0.0.0.0/0", "::/0")


def frame_of(state: FamilyState, settings: UserspaceSettings, ports: tuple[int, int]) -> Frame:
    """What the constant rules of this family follow from. ports: the listeners."""
    return Frame(
        family=state.family,
        mark=settings.mark,
        ports=ports,
        notrack=settings.notrack,
        detector=state.local_detector,
        node_ports=state.node_port_addresses,
        dns=state.untracked_dns,
    )


def compile_family(
    state: FamilyState,
    frame: Frame,
    previous: FamilyRuleset | None = None,
    refused: Mapping[ServicePortName, ServicePort] | None = None,
) -> FamilyRuleset:
    """The ruleset of one family. refused: ServicePorts (these very objects) that the kernel would not take; left out until they change."""
    refused = refused or {}
    if previous is not None and previous.memo is not None and previous.memo.refused == refused:
        if previous.memo.ports is state.service_ports:
            return previous if previous.frame == frame else replace(previous, frame=frame)
        renewed = _renewed(state, previous.elements, previous.memo)
    else:
        renewed = None
    elements, memo = renewed if renewed is not None else _gathered(state, refused, previous)
    return FamilyRuleset(family=state.family, frame=frame, elements=elements, memo=memo)


def unrelayed(ruleset: FamilyRuleset) -> list[Problem]:
    """ServicePorts that this mode does not serve."""
    reason = f"{ruleset.family.value}: SCTP is not relayed; its packets pass untouched"
    names_of = ruleset.memo.unrelayed if ruleset.memo is not None else ()
    return [Problem("Service", str(name), reason) for name in names_of]


def _gathered(
    state: FamilyState, refused: Mapping[ServicePortName, ServicePort], previous: FamilyRuleset | None
) -> tuple[Elements, Memo]:
    """All elements, with the first of those that claim a destination. previous: whose fragments may be used again."""
    known = previous.memo.fragments if previous is not None and previous.memo is not None else {}
    fragments: dict[ServicePortName, Fragment] = {}
    for name, port in state.service_ports.items():
        old = known.get(name)
        if name.protocol is not Protocol.SCTP and refused.get(name) is not port:
            fragments[name] = old if old is not None and old.service_port is port else fragment_of(port)
    elements: dict[str, dict[str, Element]] = {name: {} for name in names.SETS}
    owners: dict[str, ServicePortName] = {}
    contested: set[str] = set()
    for first in (True, False):
        for name, fragment in fragments.items():
            for entry in fragment.entries:
                if entry.first is not first:
                    continue
                if entry.key in owners:
                    contested.add(entry.key)
                    continue
                owners[entry.key] = name
                for place, key, element in entry.elements:
                    elements[place][key] = element
    return {name: Layered.of(found) for name, found in elements.items()}, Memo(
        ports=state.service_ports,
        refused=refused,
        fragments=Layered.of(fragments),
        owners=Layered.of(owners),
        contested=frozenset(contested),
        unrelayed=frozenset(name for name in state.service_ports if name.protocol is Protocol.SCTP),
    )


def _renewed(state: FamilyState, before: Elements, memo: Memo) -> tuple[Elements, Memo] | None:
    """What `_gathered` would find, from what it found before; None when somebody's claims meet somebody else's, or much has changed."""
    was, now = list(memo.ports.values()), list(state.service_ports.values())
    head, tail = alike(was, now)
    gone = {port.name: port for port in was[head : len(was) - tail]}
    new = {port.name: port for port in now[head : len(now) - tail]}
    same = {name for name, port in new.items() if gone.get(name) is port}
    if len(gone) + len(new) - 2 * len(same) > _FEW:
        return None
    fragments, owners = Draft(memo.fragments), Draft(memo.owners)
    elements = {name: Draft(found) for name, found in before.items()}
    for name in gone.keys() - same:
        if name not in fragments:
            continue
        for entry in fragments.pop(name).entries:
            if entry.key in memo.contested:
                return None
            owners.pop(entry.key)
            for place, key, _ in entry.elements:
                elements[place].pop(key)
    for name in new.keys() - same:
        if name.protocol is Protocol.SCTP:
            continue
        fragment = fragments[name] = fragment_of(new[name])
        for entry in fragment.entries:
            if entry.key in owners:
                return None
            owners[entry.key] = name
            for place, key, element in entry.elements:
                elements[place][key] = element
    return {name: found.finish() for name, found in elements.items()}, replace(
        memo,
        ports=state.service_ports,
        fragments=fragments.finish(),
        owners=owners.finish(),
        unrelayed=(memo.unrelayed - gone.keys()) | {name for name in new if name.protocol is Protocol.SCTP},
    )


# One ServicePort


def fragment_of(port: ServicePort) -> Fragment:
    """All that one ServicePort adds."""
    entries = [_virtual_ip(port, virtual_ip) for virtual_ip in port.virtual_ips]
    if port.node_port is not None:
        entries.append(_node_port(port, port.node_port))
    if port.health_check_node_port is not None:
        key = f"tcp . {port.health_check_node_port}"
        way = Element(f"goto {names.HEALTH_CHECK}", names.comment(str(port.name)))
        entries.append(Entry(key, False, ((names.NODE_PORTS, key, way),)))
    return Fragment(service_port=port, entries=tuple(entries))


def _virtual_ip(port: ServicePort, virtual_ip: VirtualIP) -> Entry:
    key = f"{virtual_ip.address} . {port.name.protocol.lower} . {port.port}"
    called = names.comment(str(port.name))
    cluster = virtual_ip.kind is VirtualIPKind.CLUSTER
    sources: tuple[str, ...] = ()
    if cluster:
        way = names.INSIDE if port.internal.endpoints else ""
        refusal = None if way else port.internal.when_empty
    else:
        way, refusal = _from_both(port)
        if way and virtual_ip.kind is VirtualIPKind.LOAD_BALANCER and port.source_ranges is not None:
            sources = _sources(port, virtual_ip.address)
            if sources:
                way = names.GUARDED if way == names.BY_SOURCE else names.GUARDED_INSIDE_ONLY
    elements = [(names.SOURCES, f"{key} . {network}", _IN_SET) for network in sources]
    if way:
        elements.append((names.DESTINATIONS, key, Element(f"goto {way}", called)))
        elements.append((names.RELAYED, key, _IN_SET))
    if refusal is not None:
        verdict = names.DROP if refusal is Verdict.DROP else f"goto {names.REFUSE}"
        elements.append((names.REFUSALS, key, Element(verdict, called)))
    return Entry(key, cluster, tuple(elements))


def _node_port(port: ServicePort, number: int) -> Entry:
    key = f"{port.name.protocol.lower} . {number}"
    called = names.comment(str(port.name))
    way, refusal = _from_both(port)
    elements = []
    if way:
        chain = names.NODE_PORT_BY_SOURCE if way == names.BY_SOURCE else names.NODE_PORT_INSIDE_ONLY
        elements.append((names.NODE_PORTS, key, Element(f"goto {chain}", called)))
    if refusal is not None:
        chain = names.NODE_PORT_DROP if refusal is Verdict.DROP else names.NODE_PORT_REFUSE
        elements.append((names.REFUSED_NODE_PORTS, key, Element(f"goto {chain}", called)))
    return Entry(key, False, tuple(elements))


def _from_both(port: ServicePort) -> tuple[str, Verdict | None]:
    """The way to a destination that may be asked from outside, "" for none, and what happens to those whom it does not take in."""
    if not port.short_circuit.endpoints:
        return "", port.external.when_empty
    if not port.external.endpoints:
        return names.INSIDE_ONLY, port.external.when_empty
    return names.BY_SOURCE, None


def _sources(port: ServicePort, own: str) -> tuple[str, ...]:
    """Who may use a load-balancer IP, without overlaps, which a set of ranges refuses; () for everybody."""
    ranges = port.source_ranges
    if ranges is None or any(network in _EVERYBODY for network in ranges.networks):
        return ()
    texts = [*ranges.networks, own] if ranges.allow_own_virtual_ip else list(ranges.networks)
    networks = [ip_network(text) for text in texts]
    four = collapse_addresses([n for n in networks if isinstance(n, IPv4Network)])
    six = collapse_addresses([n for n in networks if isinstance(n, IPv6Network)])
    return tuple(str(network) for network in (*four, *six))
