"""The iptables rules of one ServicePort in the order in which a packet meets them, each with a line that says what it is for.

In: a compiled family ruleset and a ServicePortName. Out: `RuleSeen`s: the way from the built-in chains to the ServicePort's entries
(dispatch chains, branches of a tree), the entries, and its own chains behind them. Found by following jumps, so any layout of the
dispatch chains will do.

What must not happen here: saying what becomes of a packet (trace_iptables.py does), or why an endpoint is in a chain (endpoints.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from kproxy.backends.iptables import names
from kproxy.backends.iptables.matches import (
    AddressType,
    Chance,
    Destination,
    DestinationNat,
    Drop,
    InInterface,
    Jump,
    Ports,
    Recent,
    Reject,
    Source,
)
from kproxy.backends.iptables.rules import Rule, RuleParts
from kproxy.backends.iptables.ruleset import BUILT_IN, Chain, FamilyRuleset, Fragment, Place
from kproxy.explain.rules import Part, RuleSeen
from kproxy.model.desired import ServicePort
from kproxy.model.names import ServicePortName

_HOOKS = {
    "PREROUTING": "every packet that arrives",
    "INPUT": "every packet for an address of this node",
    "FORWARD": "every packet that this node passes on",
    "OUTPUT": "every packet that this node sends",
    "POSTROUTING": "every packet on its way out",
}
_DEEPEST = 32


def explain_rules(ruleset: FamilyRuleset, name: ServicePortName) -> tuple[RuleSeen, ...]:
    """The rules that concern `name`: nat first, filter after. Empty when the ruleset does not hold it."""
    fragment = ruleset.fragments.get(name)
    return tuple(_Reader(ruleset, fragment).rules()) if fragment is not None else ()


class _Reader:
    def __init__(self, ruleset: FamilyRuleset, fragment: Fragment) -> None:
        self.ruleset = ruleset
        self.fragment = fragment
        self.port: ServicePort = fragment.service_port
        owned = {chain for each in ruleset.fragments.values() for chain in each.chains}
        self.frame = {
            table: {chain: rules for chain, rules in chains.items() if table != "nat" or chain not in owned}
            for table, chains in ruleset.tables.items()
        }
        self.parents = {table: _parents(chains) for table, chains in self.frame.items()}
        self.targets = {
            chain: parts.target.to
            for chain, rules in fragment.chains.items()
            for rule in rules
            if isinstance((parts := rule.parts).target, DestinationNat)
        }
        self.seen: set[tuple[str, str, str]] = set()

    def rules(self) -> Iterator[RuleSeen]:
        entries = [(place, rule) for table in ("nat", "filter") for place, rule in self._entries(table)]
        for place, rule in entries:
            yield from self._way_to(place, 0)
            yield from self._once(place, rule, self._entry_reason(place, rule.parts), Part.ENTRY)
            if place.table == "nat":
                yield from self._own_chain(rule.jump, 0)

    def _entries(self, table: str) -> Iterator[tuple[Place, Rule]]:
        """This ServicePort's entries and where they stand; one that another Service hides stands nowhere."""
        wanted = {entry.rule.text: entry.rule for entry in self.fragment.entries if entry.place.table == table}
        for chain, rules in self.frame.get(table, {}).items():
            for rule in rules:
                if rule.text in wanted:
                    yield Place(table, chain), rule

    def _way_to(self, place: Place, depth: int) -> Iterator[RuleSeen]:
        """The jumps that lead from the built-in chains to a chain."""
        for chain, rule in self.parents[place.table].get(place.chain, ()) if depth < _DEEPEST else ():
            if chain not in BUILT_IN:
                yield from self._way_to(Place(place.table, chain), depth + 1)
            yield from self._once(Place(place.table, chain), rule, _frame_reason(chain, rule.parts), Part.WAY)

    def _own_chain(self, chain: str, depth: int) -> Iterator[RuleSeen]:
        rules = self.fragment.chains.get(chain)
        if rules is None or depth > _DEEPEST or ("nat", chain, "") in self.seen:
            return
        self.seen.add(("nat", chain, ""))
        below = []
        for number, rule in enumerate(rules):
            parts = rule.parts
            yield from self._once(
                Place("nat", chain), rule, self._own_reason(chain, parts, rules[number:]), Part.OWN_CHAIN
            )
            if isinstance(parts.target, Jump):
                below.append(parts.target.chain)
        for target in below:
            yield from self._own_chain(target, depth + 1)

    def _once(self, place: Place, rule: Rule, why: str, part: Part) -> Iterator[RuleSeen]:
        mark = (place.table, place.chain, rule.text)
        if mark not in self.seen:
            self.seen.add(mark)
            yield RuleSeen(table=place.table, chain=place.chain, text=rule.text, why=why, part=part)

    # reasons

    def _entry_reason(self, place: Place, parts: RuleParts) -> str:
        to = _destination(parts)
        match parts.target:
            case Reject():
                return f"{to}: no endpoint exists anywhere, so the client is told at once"
            case Drop() if place.chain == names.PROXY_FIREWALL:
                return f"{to}: whoever {names.FIREWALL_PREFIX}… did not let in ends here"
            case Drop():
                return f"{to}: endpoints exist, but none on this node and the policy is Local: dropped, the client tries another node"
            case Jump(chain):
                return f"{to} goes on in {chain}{self._chain_words(chain)}"
            case _:
                return f"{to}: let through, it is the health check of the load balancer"

    def _chain_words(self, chain: str) -> str:
        if chain in self.targets:
            return f" = {self.targets[chain]}"
        for prefix, words in (
            (names.CLUSTER_PREFIX, "all endpoints that this node may use"),
            (names.LOCAL_PREFIX, "endpoints of this node only"),
            (names.EXTERNAL_PREFIX, "what comes to external addresses"),
            (names.FIREWALL_PREFIX, "who may use the load-balancer address"),
        ):
            if chain.startswith(prefix):
                return f" ({words})"
        return ""

    def _own_reason(self, chain: str, parts: RuleParts, rest: Sequence[Rule]) -> str:
        target = parts.target
        if isinstance(target, DestinationNat):
            return f"the destination becomes {target.to}"
        if not isinstance(target, Jump):
            return "who comes here is not let in: the filter table drops it"
        if target.chain == names.MARK_MASQ:
            return _masquerade_reason(chain, parts)
        to = self.targets.get(target.chain, target.chain + self._chain_words(target.chain))
        for match in parts.matches:
            match match:
                case Recent(_, _, seconds) if seconds is not None:
                    return f"session affinity: who came to {to} within {seconds} s goes there again"
                case Chance():
                    return f"one of {len(rest)} left, chance 1 in {len(rest)}: {to}"
                case Source(network, False):
                    return f"sources in {network} go on to {to}"
                case InInterface(interface, False):
                    return f"pods (they come in by {interface}) go on to {to}"
                case AddressType(source="LOCAL"):
                    return f"this node's own packets go on to {to}"
        if len(rest) > 1:
            return f"goes on to {to}"
        return f"the only endpoint: {to}" if self._is_single(chain) else f"everything else: {to}"

    def _is_single(self, chain: str) -> bool:
        """Whether a chain leads to one endpoint."""
        return len({rule.jump for rule in self.fragment.chains[chain]} & self.targets.keys()) == 1


def _masquerade_reason(chain: str, parts: RuleParts) -> str:
    if chain.startswith(names.ENDPOINT_PREFIX):
        return "the endpoint talks to itself: it gets this node's address as the source, or it would answer itself directly"
    for match in parts.matches:
        match match:
            case Source(network, True):
                return f"sources outside of {network} get this node's address, so that replies come back through it"
            case InInterface(interface, True):
                return f"what did not come in by {interface} gets this node's address, so that replies come back through it"
            case AddressType(source="LOCAL"):
                return "this node's own packets get the address of the interface they leave by"
    return "every source gets this node's address: the endpoint may be on another node, and replies must come back through this one"


def _frame_reason(chain: str, parts: RuleParts) -> str:
    if chain in _HOOKS:
        new = " when it begins a connection" if any("ctstate" in m.text for m in parts.matches) else ""
        return f"{_HOOKS[chain]} is looked at here{new}"
    to = _destination(parts)
    return (
        f"{to} is looked for further down"
        if to
        else "node ports: packets to an address of this node are looked at there"
    )


def _destination(parts: RuleParts) -> str:
    """`10.96.0.1 port 80/tcp`, as far as the rule says it; "" when it says nothing."""
    address = next((m.network for m in parts.matches if isinstance(m, Destination)), "")
    ports = next((m for m in parts.matches if isinstance(m, Ports)), None)
    single = address.removesuffix("/32").removesuffix("/128") if address else ""
    if ports is None or not ports.destination:
        return single
    where = f"{single} port" if single else "node port"
    return f"{where} {ports.destination}/{ports.protocol}"


def _parents(chains: Mapping[str, Chain]) -> Mapping[str, list[tuple[str, Rule]]]:
    """Chain → who jumps to it, and by which rule."""
    found: dict[str, list[tuple[str, Rule]]] = {}
    for chain, rules in chains.items():
        for rule in rules:
            if rule.jump in chains:
                found.setdefault(rule.jump, []).append((chain, rule))
    return found
