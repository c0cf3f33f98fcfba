"""The chains that do not depend on any Service, and the jumps to them from built-in chains.

In: the family's state without its Services. Out: tables with every fixed chain, dispatch chains holding only what stands at their end.
The jumps stand in the order in which kube-proxy's inserts leave them on a fresh node, from the top.
"""

from __future__ import annotations

from collections.abc import Mapping

from kproxy.backends.iptables import names
from kproxy.backends.iptables.matches import (
    Accept,
    AddressType,
    Comment,
    ConntrackState,
    Destination,
    Drop,
    HasSocket,
    Jump,
    Mark,
    MasqueradeTarget,
    Match,
    NoTrack,
    Ports,
    Return,
    SetMark,
    Source,
    TransportProtocol,
)
from kproxy.backends.iptables.rules import Rule, rule
from kproxy.backends.iptables.ruleset import Chain
from kproxy.backends.iptables.settings import IptablesSettings
from kproxy.model.desired import FamilyState
from kproxy.model.names import Family

_NEW = ConntrackState(("NEW",))
_LOOPBACK = "127.0.0.0/8"


def _jump(chain: str, comment: str, *, new: bool = False) -> Rule:
    state = (_NEW,) if new else ()
    return rule(*state, Comment(comment), Jump(chain))


_EXTERNAL = _jump(names.EXTERNAL_SERVICES, "kubernetes externally-visible service portals", new=True)
_HEALTH_CHECKS = _jump(names.NODE_PORTS, "kubernetes health check service ports")
_PORTALS_IF_NEW = _jump(names.SERVICES, "kubernetes service portals", new=True)
_FORWARD = _jump(names.FORWARD, "kubernetes forwarding rules")
_FIREWALL = _jump(names.PROXY_FIREWALL, "kubernetes load balancer firewall", new=True)
_KUBELET = rule(Jump(names.KUBELET_FIREWALL))
_PORTALS = _jump(names.SERVICES, "kubernetes service portals")
_POSTROUTING = _jump(names.POSTROUTING, "kubernetes postrouting rules")


def base_tables(state: FamilyState, settings: IptablesSettings) -> Mapping[str, Mapping[str, Chain]]:
    """Table → chain → rules for everything that is there even without a Service."""
    addresses = state.node_port_addresses
    # With a listener of ours as well: route_localnet may still be on from a life with rules, or by somebody else's hand.
    guards_loopback = state.family is Family.IPV4 and (addresses.loopback or addresses.listener)
    kubelet = (_KUBELET,) if guards_loopback else ()
    tables: dict[str, dict[str, Chain]] = {
        "mangle": {names.CANARY: ()},
        "filter": {
            "INPUT": (*kubelet, _FIREWALL, _HEALTH_CHECKS, _EXTERNAL),
            "FORWARD": (_FIREWALL, _FORWARD, _PORTALS_IF_NEW, _EXTERNAL),
            "OUTPUT": (*kubelet, _FIREWALL, _PORTALS_IF_NEW),
            names.CANARY: (),
            names.SERVICES: (),
            names.EXTERNAL_SERVICES: (),
            names.NODE_PORTS: (),
            names.PROXY_FIREWALL: (),
            names.FORWARD: _forward(settings),
        },
        "nat": {
            "PREROUTING": (_PORTALS,),
            "OUTPUT": (_PORTALS,),
            "POSTROUTING": (_POSTROUTING,),
            names.CANARY: (),
            names.SERVICES: node_port_jumps(state),
            names.NODE_PORTS: (),
            names.MARK_MASQ: (rule(SetMark(settings.masquerade_mark, settings.masquerade_mark)),),
            names.POSTROUTING: _postrouting(settings),
        },
    }
    if guards_loopback:
        tables["filter"][names.KUBELET_FIREWALL] = (_block_localnet(),)
    if state.untracked_dns:
        tables["raw"] = _untracked(state, settings)
        for hook, name in (("INPUT", names.DNS_INPUT), ("OUTPUT", names.DNS_OUTPUT)):
            tables["filter"][hook] = (_jump(name, "kproxy: cluster DNS"), *tables["filter"][hook])
            tables["filter"][name] = _let_through(state)
    return tables


def node_port_jumps(state: FamilyState) -> Chain:
    """What stands at the end of KUBE-SERVICES in nat: destinations that are this node go on to the node ports."""
    comment = Comment("kubernetes service nodeports; NOTE: this must be the last rule in this chain")
    target, addresses = Jump(names.NODE_PORTS), state.node_port_addresses
    if not addresses.everywhere:
        prefix = "/32" if state.family is Family.IPV4 else "/128"
        return tuple(rule(Destination(address + prefix), comment, target) for address in addresses.addresses)
    local = AddressType(destination="LOCAL")
    if state.family is Family.IPV6:
        return (rule(Destination("::1/128", negated=True), comment, local, target),)
    if not addresses.loopback:
        return (rule(Destination(_LOOPBACK, negated=True), comment, local, target),)
    return (rule(comment, local, target),)


def _forward(settings: IptablesSettings) -> Chain:
    mark = settings.masquerade_mark
    # INVALID packets would reach the client un-NATed and reset its connection (kubernetes issue 74839), unless TCP tracking is liberal.
    invalid = () if settings.conntrack_tcp_be_liberal else (rule(ConntrackState(("INVALID",)), Drop()),)
    established = ConntrackState(("RELATED", "ESTABLISHED"))
    return (
        *invalid,
        rule(Comment("kubernetes forwarding rules"), Mark(mark, mark), Accept()),
        rule(Comment("kubernetes forwarding conntrack rule"), established, Accept()),
    )


def _postrouting(settings: IptablesSettings) -> Chain:
    mark = settings.masquerade_mark
    return (
        rule(Mark(mark, mark, negated=True), Return()),
        # The bit is cleared, so that a packet that passes the stack twice (a tunnel) is not masqueraded twice.
        rule(SetMark(mark, 0)),
        rule(Comment("kubernetes service traffic requiring SNAT"), MasqueradeTarget(settings.random_fully)),
    )


def _block_localnet() -> Rule:
    """The guard for route_localnet (CVE-2020-8558), word for word the kubelet's."""
    state = ConntrackState(("RELATED", "ESTABLISHED", "DNAT"), negated=True)
    outside, inside = Source(_LOOPBACK, negated=True), Destination(_LOOPBACK)
    return rule(outside, inside, Comment("block incoming localnet connections"), state, Drop())


def _untracked(state: FamilyState, settings: IptablesSettings) -> dict[str, Chain]:
    """Queries and replies of the DNS addresses held here; local clients' packets meet both chains in both directions.

    What arrives is left untracked only while somebody listens: when the last DNS worker dies, however it dies, the next query is tracked
    and translated to another node's server, with nobody left here who would have to do that.
    """
    comment, target = Comment("kproxy: cluster DNS is answered on this node, untracked"), NoTrack()
    listening = (HasSocket(),) if settings.sockets else ()
    jump = "kproxy: cluster DNS"
    return {
        "PREROUTING": (_jump(names.DNS_PREROUTING, jump),),
        "OUTPUT": (_jump(names.DNS_OUTPUT, jump),),
        names.DNS_PREROUTING: _both_ways(state, comment, listening, target),
        names.DNS_OUTPUT: _both_ways(state, comment, (), target),
    }


def _let_through(state: FamilyState) -> Chain:
    """Firewalls that let in what conntrack knows would drop what it does not follow: NodeLocal DNSCache has these rules for the same."""
    untracked = (ConntrackState(("UNTRACKED",)),)
    return _both_ways(state, Comment("kproxy: cluster DNS, untracked on purpose"), untracked, Accept())


def _both_ways(state: FamilyState, comment: Comment, asking: tuple[Match, ...], target: Accept | NoTrack) -> Chain:
    """Queries (those with `asking` besides) and, for NoTrack and Accept alike, replies."""
    prefix, rules = "/32" if state.family is Family.IPV4 else "/128", []
    answering = tuple(match for match in asking if not isinstance(match, HasSocket))
    for address in state.untracked_dns:
        for protocol in ("udp", "tcp"):
            to, back = Destination(address + prefix), Source(address + prefix)
            transport = TransportProtocol(protocol)
            rules += [
                rule(to, transport, comment, Ports(protocol, "53"), *asking, target),
                rule(back, transport, comment, Ports(protocol, source="53"), *answering, target),
            ]
    return tuple(rules)
