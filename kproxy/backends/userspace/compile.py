"""From the wanted state to elements: each destination of a ServicePort and the way that its packets take. Pure.

    cluster IP                              relay-inside, whoever asks
    other virtual IPs, node port            relay-by-source: pods and this node INSIDE (`short_circuit`), others OUTSIDE (`external`)
      no endpoint for those outside         relay-inside-only, and a refusal for whom that leaves over
      with source ranges (load-balancer IP) relay-guarded…, and a SOURCES element for each range
    no endpoint at all                      a refusal: ICMP port unreachable, or silence

Each ServicePort compiles alone into a `Fragment`, used again for as long as its ServicePort is the same object; a change costs a few
elements and a copy of the maps that they are in. Where two ServicePorts claim a destination the first has all of it (cluster IPs before
others, then by name), as relay/table.py and the other data planes decide. SCTP is not relayed and has no fragment.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from ipaddress import IPv4Network, IPv6Network, collapse_addresses, ip_network

from kproxy.backends.userspace import names
from kproxy.backends.userspace.ruleset import Element, Elements, Entry, FamilyRuleset, Fragment, Frame, Owners
from kproxy.backends.userspace.settings import UserspaceSettings
from kproxy.model.desired import FamilyState, ServicePort, Verdict, VirtualIP, VirtualIPKind
from kproxy.model.names import Protocol, ServicePortName
from kproxy.model.objects import Problem

_IN_SET = Element("", "")
_Fragments = Mapping[ServicePortName, Fragment]
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
    old = previous.fragments if previous is not None else {}
    fragments = _fragments(state, old, refused or {})
    if previous is not None and fragments is old:
        elements, owners, contested = previous.elements, previous.owners, previous.contested
    else:
        renewed = _renewed(previous, fragments) if previous is not None else None
        elements, owners, contested = renewed if renewed is not None else _gathered(fragments.values())
    return FamilyRuleset(
        family=state.family,
        frame=frame,
        elements=elements,
        fragments=fragments,
        owners=owners,
        contested=contested,
    )


def unrelayed(state: FamilyState) -> Iterator[Problem]:
    """ServicePorts that this mode does not serve."""
    for name in state.service_ports:
        if name.protocol is Protocol.SCTP:
            reason = f"{state.family.value}: SCTP is not relayed; its packets pass untouched"
            yield Problem("Service", str(name), reason)


def _fragments(state: FamilyState, known: _Fragments, refused: Mapping[ServicePortName, ServicePort]) -> _Fragments:
    """Those of all ServicePorts in order, known ones where the ServicePort is the same object; `known` itself when nothing changed."""
    fragments: dict[ServicePortName, Fragment] = {}
    fresh = False
    for name, port in state.service_ports.items():
        if name.protocol is Protocol.SCTP or (refused and refused.get(name) is port):
            continue
        old = known.get(name)
        if old is None or old.service_port is not port:
            fresh, old = True, fragment_of(port)
        fragments[name] = old
    return fragments if fresh or len(fragments) != len(known) else known


def _gathered(fragments: Iterable[Fragment]) -> tuple[Elements, Owners, frozenset[str]]:
    """All elements, with the first of those that claim a destination."""
    every = [(entry, fragment) for fragment in fragments for entry in fragment.entries]
    elements: dict[str, dict[str, Element]] = {name: {} for name in names.SETS}
    owners: dict[str, ServicePortName] = {}
    contested: set[str] = set()
    for first in (True, False):
        for entry, fragment in every:
            if entry.first is not first:
                continue
            if entry.key in owners:
                contested.add(entry.key)
                continue
            owners[entry.key] = fragment.service_port.name
            for place, key, element in entry.elements:
                elements[place][key] = element
    return elements, owners, frozenset(contested)


def _renewed(previous: FamilyRuleset, fragments: _Fragments) -> tuple[Elements, Owners, frozenset[str]] | None:
    """What `_gathered` would find, from what it found before; None when somebody's claims meet somebody else's."""
    old = previous.fragments
    gone = [was for name, was in old.items() if fragments.get(name) is not was]
    new = [now for name, now in fragments.items() if old.get(name) is not now]
    if len(gone) + len(new) > len(fragments) // 4 + 16:
        return None  # as much work as all of it
    owners = dict(previous.owners)
    touched: dict[str, dict[str, Element]] = {}

    def place_of(name: str) -> dict[str, Element]:
        if name not in touched:
            touched[name] = dict(previous.elements.get(name, {}))
        return touched[name]

    for fragment in gone:
        for entry in fragment.entries:
            if entry.key in previous.contested:
                return None
            owners.pop(entry.key, None)
            for place, key, _ in entry.elements:
                place_of(place).pop(key, None)
    for fragment in new:
        for entry in fragment.entries:
            if entry.key in owners:
                return None
            owners[entry.key] = fragment.service_port.name
            for place, key, element in entry.elements:
                place_of(place)[key] = element
    return {**previous.elements, **touched}, owners, previous.contested


# One ServicePort


def fragment_of(port: ServicePort) -> Fragment:
    """All that one ServicePort adds."""
    entries = [_virtual_ip(port, virtual_ip) for virtual_ip in port.virtual_ips]
    if port.node_port is not None:
        entries.append(_node_port(port, port.node_port))
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
