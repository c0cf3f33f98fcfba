"""From the wanted state to iptables rules, chain by chain as kube-proxy writes them.

In: `DesiredState` (every decision taken) and `IptablesSettings`. Out: a `Ruleset`. A packet's way through it:

    nat PREROUTING/OUTPUT ─▶ KUBE-SERVICES ─▶ KUBE-SVC-… (cluster IP) ───────────────┬─▶ KUBE-SEP-… ─▶ DNAT to one endpoint
                                  │      └──▶ KUBE-FW-… (source ranges) ─▶ KUBE-EXT-… ┤
                                  └─▶ KUBE-NODEPORTS ─▶ KUBE-EXT-… ─▶ KUBE-SVC-… / KUBE-SVL-… (endpoints of this node only)
    With more than a few entries KUBE-SERVICES and KUBE-NODEPORTS in nat are trees of chains (tree.py).
    filter … ─▶ KUBE-SERVICES, KUBE-EXTERNAL-SERVICES: what has no endpoint is rejected or dropped; DNATed packets match nothing there
    nat POSTROUTING ─▶ KUBE-POSTROUTING: whatever KUBE-MARK-MASQ marked leaves with this node's address
    raw ─▶ KPROXY-DNS-…: the cluster DNS address that this node answers itself is not tracked, in both directions. (Untracked packets
    pass nat and KUBE-FORWARD by; a node whose filter INPUT policy is DROP has to accept port 53 itself, as for any local server.)

Each ServicePort compiles alone into a `Fragment`, and a fragment is used again for as long as its ServicePort is the same object. Where
two entries would catch the same packets only the first is written (cluster IPs before others, then by name): the second could never be
reached, and without it the order of entries has no meaning, which makes one change among ten thousand cheap.

What must not happen here: asking for a policy.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from operator import itemgetter

from kproxy.backends.iptables import names, tree
from kproxy.backends.iptables.base_chains import base_tables
from kproxy.backends.iptables.matches import (
    Accept,
    AddressType,
    Chance,
    Comment,
    Destination,
    DestinationNat,
    Drop,
    InInterface,
    Jump,
    Match,
    Ports,
    Recent,
    Reject,
    Source,
    Spelled,
    Target,
    TransportProtocol,
)
from kproxy.backends.iptables.rules import Rule, rule, spelled
from kproxy.backends.iptables.ruleset import (
    Chain,
    Entry,
    FamilyRuleset,
    Fragment,
    Fragments,
    Place,
    Ruleset,
    differing,
)
from kproxy.backends.iptables.settings import IptablesSettings
from kproxy.model.desired import (
    DesiredState,
    Endpoint,
    FamilyState,
    LocalDetector,
    Masquerade,
    Route,
    ServicePort,
    Verdict,
    VirtualIP,
    VirtualIPKind,
)
from kproxy.model.names import Family, Protocol, ServicePortName

_ALL_ONES = {Family.IPV4: "255.255.255.255", Family.IPV6: "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"}
_PREFIX = {Family.IPV4: "/32", Family.IPV6: "/128"}
_REJECT = {Family.IPV4: Reject("icmp-port-unreachable"), Family.IPV6: Reject("icmp6-port-unreachable")}
_TO_MASQUERADE = spelled(Jump(names.MARK_MASQ))
_TRANSPORTS = {protocol: spelled(TransportProtocol(protocol.lower)) for protocol in Protocol}
_BARE = {protocol: spelled(Ports(protocol.lower)) for protocol in Protocol}

_NAT_SERVICES = Place("nat", names.SERVICES)
_NAT_NODE_PORTS = Place("nat", names.NODE_PORTS)
_FILTER_SERVICES = Place("filter", names.SERVICES)
_FILTER_EXTERNAL = Place("filter", names.EXTERNAL_SERVICES)
_FILTER_NODE_PORTS = Place("filter", names.NODE_PORTS)
_FILTER_FIREWALL = Place("filter", names.PROXY_FIREWALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """What besides the ServicePort itself shapes a fragment."""

    family: Family
    detector: LocalDetector | None
    affinity: bool  # the kernel can remember clients
    comments: bool  # per-endpoint comments; left out in large clusters, which makes the text 40 % shorter


@dataclass(frozen=True, slots=True, kw_only=True)
class _Memo:
    """What the next compilation may take over: what the dispatch chains hold, and the branches of their trees."""

    context: Context
    leaf_entries: int
    entries: Mapping[Place, Chain]
    branches: Mapping[str, Chain]


def compile_ruleset(
    desired: DesiredState,
    settings: IptablesSettings,
    previous: Ruleset | None = None,
    refused: Mapping[tuple[Family, ServicePortName], ServicePort] | None = None,
) -> Ruleset:
    """The rules that give `desired`.

    previous: the last compiled ruleset, whose fragments are reused. refused: ServicePorts (these very objects) that the kernel would
    not take; they are left out until they change.
    """
    compiled = [
        compile_family(desired.of(family), settings, previous.of(family) if previous else None, refused or {})
        for family in (Family.IPV4, Family.IPV6)
    ]
    return Ruleset(ipv4=compiled[0], ipv6=compiled[1])


def context_of(state: FamilyState, settings: IptablesSettings) -> Context:
    """What shapes every fragment of one family."""
    endpoints = sum([len(port.reachable) for port in state.service_ports.values()])
    return Context(
        family=state.family,
        detector=state.local_detector,
        affinity=settings.affinity,
        comments=endpoints <= settings.max_endpoints_with_comments,
    )


def compile_family(
    state: FamilyState,
    settings: IptablesSettings,
    previous: FamilyRuleset | None = None,
    refused: Mapping[tuple[Family, ServicePortName], ServicePort] | None = None,
    made: Fragments | None = None,
) -> FamilyRuleset:
    """One family of `compile_ruleset`. made: fragments of this very state, compiled already, where there is no previous ruleset."""
    context = context_of(state, settings)
    memo = previous.memo if previous is not None and isinstance(previous.memo, _Memo) else None
    if previous is None or memo is None or memo.context != context or memo.leaf_entries != settings.leaf_entries:
        previous, memo = FamilyRuleset(family=state.family), None
    known_fragments = made if made is not None and memo is None else previous.fragments
    fragments = _fragments(state, context, known_fragments, refused or {})
    gone, new = differing(previous.fragments, fragments)
    tables = {table: dict(chains) for table, chains in base_tables(state, settings).items()}
    known = memo.branches if memo is not None else {}
    if memo is not None and _same_entries(gone, new):
        entries, branches = memo.entries, known
    else:
        entries, branches = _planted(_dispatch(fragments.values()), state.family, settings.leaf_entries, known)
    tables["nat"] = _nat(previous.tables.get("nat", {}), gone, new, tables["nat"])
    if branches is not known:
        for chain in known:  # all of them, since they are written in this order: each after those that it jumps to
            del tables["nat"][chain]
        tables["nat"].update(branches)
    for place, rules in entries.items():
        tail = tables[place.table][place.chain]
        old = previous.chain(place.table, place.chain)
        keeps = old is not None and memo is not None and memo.entries is entries and old[len(rules) :] == tail
        tables[place.table][place.chain] = old if keeps and old is not None else (*rules, *tail)
    return FamilyRuleset(
        family=state.family,
        tables=tables,
        fragments=fragments,
        memo=_Memo(context=context, leaf_entries=settings.leaf_entries, entries=entries, branches=branches),
    )


def _fragments(
    state: FamilyState,
    context: Context,
    known: Mapping[ServicePortName, Fragment],
    refused: Mapping[tuple[Family, ServicePortName], ServicePort],
) -> Mapping[ServicePortName, Fragment]:
    """The fragments of all ServicePorts in order, known ones where the ServicePort is the same object."""
    ports = state.service_ports
    if not refused and len(known) == len(ports):  # mostly the same names: see `differing`
        pairs = zip(known.values(), ports.values(), strict=True)
        changed = [(old, port) for old, port in pairs if old.service_port is not port]
        if all(old.service_port.name == port.name for old, port in changed):
            return {**known, **{port.name: fragment_of(port, context) for _, port in changed}} if changed else known
    fragments: dict[ServicePortName, Fragment] = {}
    for name, port in ports.items():
        if refused and refused.get((state.family, name)) is port:
            continue
        old = known.get(name)
        fragments[name] = old if old is not None and old.service_port is port else fragment_of(port, context)
    return fragments


def _nat(previous: Mapping[str, Chain], gone: Fragments, new: Fragments, base: Mapping[str, Chain]) -> dict[str, Chain]:
    """The nat table: what was there, without the chains of fragments that went, with those of new ones."""
    nat = dict(previous)
    for fragment in gone.values():
        for chain in fragment.chains:
            nat.pop(chain, None)
    for fragment in new.values():
        nat.update(fragment.chains)
    nat.update(base)
    return nat


def _same_entries(gone: Fragments, new: Fragments) -> bool:
    """Whether the dispatch chains stay as they are: same ServicePorts, reached in the same ways."""
    return gone.keys() == new.keys() and all(gone[name].entries == new[name].entries for name in new)


def _planted(
    found: Mapping[Place, list[Entry]], family: Family, limit: int, known: Mapping[str, Chain]
) -> tuple[dict[Place, Chain], dict[str, Chain]]:
    """What each dispatch chain holds, and the branches of the trees. known: branches, taken again where they are the same."""
    spaces = {_NAT_SERVICES: tree.ADDRESSES[family], _NAT_NODE_PORTS: tree.NODE_PORTS}
    chains: dict[Place, Chain] = {}
    branches: dict[str, Chain] = {}
    for place, entries in found.items():
        if place not in spaces or len(entries) <= limit:
            chains[place] = tuple([entry.rule for entry in entries])
            continue
        grown = tree.grow(sorted([(e.at, e.rule) for e in entries], key=_number), spaces[place], limit)
        chains[place] = grown.root
        for name, rules in grown.branches.items():
            old = known.get(name)
            branches[name] = old if old == rules and old is not None else rules
    return chains, branches


def _dispatch(fragments: Iterable[Fragment]) -> dict[Place, list[Entry]]:
    """All entries by chain, without those that another one before them hides."""
    found: dict[Place, list[Entry]] = {
        place: []
        for place in (
            _NAT_SERVICES,
            _NAT_NODE_PORTS,
            _FILTER_SERVICES,
            _FILTER_EXTERNAL,
            _FILTER_NODE_PORTS,
            _FILTER_FIREWALL,
        )
    }
    seen: set[tuple[Place, str]] = set()
    every = list(fragments)
    clusters = {fragment.cluster_key: fragment for fragment in reversed(every)}  # the first of each
    services = found[_NAT_SERVICES]
    for fragment in every:
        entries = fragment.entries
        if len(entries) == 1 and entries[0].place is _NAT_SERVICES and clusters.get(entries[0].key) is fragment:
            services.append(entries[0])  # nine in ten; nobody else can have its key, whoever comes before
            continue
        for entry in entries:
            owner = clusters.get(entry.key)
            mark = (entry.place, entry.key)
            if (owner is None or owner is fragment) and mark not in seen:
                seen.add(mark)
                found[entry.place].append(entry)
    return found


_number = itemgetter(0)


# One ServicePort


def fragment_of(service_port: ServicePort, context: Context) -> Fragment:
    """All that one ServicePort adds to the ruleset."""
    return _Compiler(service_port, context).fragment()


class _Compiler:
    """The names and texts that the rules of one ServicePort share."""

    def __init__(self, service_port: ServicePort, context: Context) -> None:
        self.port = service_port
        self.context = context
        self.name = str(service_port.name)
        hashed = names.service_hash(service_port.name)
        self.cluster_chain = names.CLUSTER_PREFIX + hashed
        self.local_chain = names.LOCAL_PREFIX + hashed
        self.external_chain = names.EXTERNAL_PREFIX + hashed
        self.firewall_chain = names.FIREWALL_PREFIX + hashed
        self.transport = _TRANSPORTS[service_port.name.protocol]
        self.protocol = service_port.name.protocol.lower
        self.ports = spelled(Ports(self.protocol, str(service_port.port)))
        self.comment = (spelled(Comment(self.name)),) if context.comments else ()
        self.prefix = _PREFIX[context.family]
        self.affinity = service_port.affinity if context.affinity else None
        self.endpoint_chains = names.endpoint_chains(service_port.name, service_port.reachable)

    def fragment(self) -> Fragment:
        chains: dict[str, Chain] = {}
        port = self.port
        serves_outside = port.externally_reachable and bool(port.short_circuit.endpoints)
        for route in (port.internal, port.short_circuit, port.external):
            chain = self._chain_of(route)
            if route.endpoints and chain not in chains:
                chains[chain] = self._balance(chain, route.endpoints)
        if serves_outside:
            chains[self.external_chain] = tuple(self._external())
        if self._is_firewalled:
            chains[self.firewall_chain] = tuple(self._firewall())
        for endpoint in port.reachable:
            chain = self.endpoint_chains[endpoint.text]
            chains[chain] = self._endpoint(endpoint, chain)
        return Fragment(
            service_port=port,
            chains=chains,
            entries=tuple(self._entries()),
            cluster_key=next((self._key(v) for v in port.virtual_ips if v.kind is VirtualIPKind.CLUSTER), ""),
        )

    def _key(self, virtual_ip: VirtualIP) -> str:
        return f"{virtual_ip.address} {self.protocol} {self.port.port}"

    def _chain_of(self, route: Route) -> str:
        return self.local_chain if route.local_only else self.cluster_chain

    @property
    def _is_firewalled(self) -> bool:
        return self.port.source_ranges is not None and bool(self.port.short_circuit.endpoints)

    # dispatch

    def _entries(self) -> Iterable[Entry]:
        port = self.port
        for virtual_ip in port.virtual_ips:
            if virtual_ip.kind is VirtualIPKind.CLUSTER:
                yield self._cluster_entry(virtual_ip)
            else:
                yield from self._external_entries(virtual_ip)
        if port.node_port is not None:
            yield from self._node_port_entries(port.node_port)
        if port.health_check_node_port is not None:
            number = str(port.health_check_node_port)
            comment = Comment(f"{self.name} health check node port")
            yield Entry(
                place=_FILTER_NODE_PORTS,
                key=f"{number} {self.name}",
                rule=rule(TransportProtocol("tcp"), comment, Ports("tcp", number), Accept()),
            )

    def _to(self, virtual_ip: VirtualIP, comment: str, target: Target) -> Rule:
        where = Destination(virtual_ip.address + self.prefix)
        return rule(where, self.transport, Comment(comment), self.ports, target)

    def _refusal(self, route: Route) -> tuple[str, Target]:
        if route.when_empty is Verdict.DROP:
            return f"{self.name} has no local endpoints", Drop()
        return f"{self.name} has no endpoints", _REJECT[self.context.family]

    def _cluster_entry(self, virtual_ip: VirtualIP) -> Entry:
        internal = self.port.internal
        if internal.endpoints:
            return self._nat_entry(virtual_ip, self._chain_of(internal))
        comment, target = self._refusal(internal)
        return Entry(place=_FILTER_SERVICES, key=self._key(virtual_ip), rule=self._to(virtual_ip, comment, target))

    def _nat_entry(self, virtual_ip: VirtualIP, chain: str) -> Entry:
        made = self._to(virtual_ip, f"{self.name} {virtual_ip.kind.value}", Jump(chain))
        number = tree.number_of_address(virtual_ip.address)
        return Entry(place=_NAT_SERVICES, key=self._key(virtual_ip), rule=made, at=number)

    def _external_entries(self, virtual_ip: VirtualIP) -> Iterable[Entry]:
        port, key = self.port, self._key(virtual_ip)
        firewalled = self._is_firewalled and virtual_ip.kind is VirtualIPKind.LOAD_BALANCER
        if port.short_circuit.endpoints:
            chain = self.firewall_chain if firewalled else self.external_chain
            yield self._nat_entry(virtual_ip, chain)
        if firewalled:
            made = self._to(virtual_ip, f"{self.name} traffic not accepted by {self.firewall_chain}", Drop())
            yield Entry(place=_FILTER_FIREWALL, key=key, rule=made)
        if not port.external.endpoints:
            comment, target = self._refusal(port.external)
            yield Entry(place=_FILTER_EXTERNAL, key=key, rule=self._to(virtual_ip, comment, target))

    def _node_port_entries(self, node_port: int) -> Iterable[Entry]:
        ports, key = Ports(self.protocol, str(node_port)), f"{node_port} {self.protocol}"
        if self.port.short_circuit.endpoints:
            made = rule(self.transport, Comment(self.name), ports, Jump(self.external_chain))
            number = tree.number_of_node_port(self.port.name.protocol, node_port)
            yield Entry(place=_NAT_NODE_PORTS, key=key, rule=made, at=number)
        if not self.port.external.endpoints:
            comment, target = self._refusal(self.port.external)
            made = rule(self.transport, Comment(comment), AddressType(destination="LOCAL"), ports, target)
            yield Entry(place=_FILTER_EXTERNAL, key=key, rule=made)

    # chains

    def _balance(self, chain: str, endpoints: tuple[Endpoint, ...]) -> Chain:
        rules = list(self._cluster_ip_masquerade()) if chain == self._chain_of(self.port.internal) else []
        targets = [self._way_to(endpoint) for endpoint in endpoints]
        if self.affinity is not None:
            seconds, mask = self.affinity.timeout_s, _ALL_ONES[self.context.family]
            rules += [rule(*comment, Recent(to.chain, mask, seconds), to) for comment, to in targets]
        for i, (comment, to) in enumerate(targets[:-1]):
            rules.append(rule(*comment, _chance(len(targets) - i), to))
        comment, to = targets[-1]
        rules.append(rule(*comment, to))
        return tuple(rules)

    def _way_to(self, endpoint: Endpoint) -> tuple[tuple[Match, ...], Jump]:
        text = endpoint.text
        comment = (Comment(f"{self.name} -> {text}"),) if self.context.comments else ()
        return comment, Jump(self.endpoint_chains[text])

    def _cluster_ip_masquerade(self) -> Iterable[Rule]:
        """Who is masqueraded on the way to the cluster IP; the full match is repeated because external traffic shares the chain."""
        internal = self.port.internal
        clusters = [v for v in self.port.virtual_ips if v.kind is VirtualIPKind.CLUSTER]
        if internal.masquerade is Masquerade.NEVER or not internal.endpoints:
            return
        source: tuple[Match, ...] = ()
        interface: tuple[Match, ...] = ()
        if internal.masquerade is Masquerade.OFF_CLUSTER_SOURCES:
            if self.context.detector is None:
                return
            source, interface = _detects(self.context.detector, negated=True)
        for virtual_ip in clusters:
            where = Destination(virtual_ip.address + self.prefix)
            comment = Comment(f"{self.name} {virtual_ip.kind.value}")
            yield rule(*source, where, *interface, self.transport, comment, self.ports, _TO_MASQUERADE)

    def _external(self) -> Iterable[Rule]:
        port = self.port
        if not port.external.local_only:
            yield rule(Comment(f"masquerade traffic for {self.name} external destinations"), _TO_MASQUERADE)
            yield rule(Jump(self.cluster_chain))
            return
        if self.context.detector is not None:
            source, interface = _detects(self.context.detector, negated=False)
            comment = Comment(f"pod traffic for {self.name} external destinations")
            yield rule(*source, *interface, comment, Jump(self.cluster_chain))
        own = AddressType(source="LOCAL")
        yield rule(Comment(f"masquerade LOCAL traffic for {self.name} external destinations"), own, _TO_MASQUERADE)
        comment = Comment(f"route LOCAL traffic for {self.name} external destinations")
        yield rule(comment, own, Jump(self.cluster_chain))
        if port.external.endpoints:
            yield rule(Jump(self.local_chain))

    def _firewall(self) -> Iterable[Rule]:
        ranges = self.port.source_ranges
        if ranges is None:
            return
        comment = Comment(f"{self.name} loadbalancer IP")
        sources = list(ranges.networks)
        if ranges.allow_own_virtual_ip:
            balancers = (v for v in self.port.virtual_ips if v.kind is VirtualIPKind.LOAD_BALANCER)
            sources += [v.address + self.prefix for v in balancers]
        for source in sources:
            # The tools leave a source out that is everything (`-s 0.0.0.0/0`), so the rule is written without it.
            network = () if source in ("0.0.0.0/0", "::/0") else (Source(source),)
            yield rule(*network, comment, Jump(self.external_chain))
        yield rule(Comment(f"other traffic to {self.name} will be dropped by KUBE-PROXY-FIREWALL"))

    def _endpoint(self, endpoint: Endpoint, chain: str) -> Chain:
        remember: tuple[Match, ...] = ()
        if self.affinity is not None:
            remember = (Recent(chain, _ALL_ONES[self.context.family]),)
        ports = _BARE[self.port.name.protocol]
        return (
            rule(Source(endpoint.address + self.prefix), *self.comment, _TO_MASQUERADE),
            rule(self.transport, *self.comment, *remember, ports, DestinationNat(endpoint.text)),
        )


@lru_cache(maxsize=1024)
def _chance(of: int) -> Spelled:
    return spelled(Chance.of(1 / of))


@lru_cache(maxsize=16)
def _detects(detector: LocalDetector, *, negated: bool) -> tuple[tuple[Match, ...], tuple[Match, ...]]:
    """The detector's match, as (source, interface): they stand at different places in a rule."""
    if detector.source:
        return (Source(detector.source, negated),), ()
    return (), (InInterface(detector.interface or f"{detector.interface_prefix}+", negated),)
