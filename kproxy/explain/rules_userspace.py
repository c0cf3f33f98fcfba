"""The nft elements and rules of one ServicePort in mode userspace, in the order in which a packet meets them, each with what it is for.

In: a compiled family ruleset and a ServicePortName. Out: `RuleSeen`s: the constant rules that look at sets, the ServicePort's own elements,
and the constant rules behind them. Elements that another Service holds are left out, as in the kernel. What must not happen here: saying
what becomes of a packet (trace_userspace.py does).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from kproxy.backends.userspace import names
from kproxy.backends.userspace.rules import HOOKS, chains
from kproxy.backends.userspace.ruleset import Element, FamilyRuleset
from kproxy.explain.rules import Part, RuleSeen
from kproxy.model.names import ServicePortName

# Where each set is asked, in a packet's order.
_ORDER = (
    (names.RELAYED, "output"),
    (names.DESTINATIONS, "arrivals"),
    (names.SOURCES, ""),
    (names.NODE_PORTS, "arrivals"),
    (names.REFUSALS, "filter-forward"),
    (names.REFUSED_NODE_PORTS, "filter-input"),
)
_ASKED = {
    names.RELAYED: "what this node itself sends to a Service gets the mark, and with it the route that leads back in",
    names.DESTINATIONS: "first packets and datagrams: is their destination an address of a Service? If so, this way",
    names.NODE_PORTS: "is it a node port? If so, this way",
    names.SOURCES: "only these networks may use a load-balancer address with source ranges",
    names.REFUSALS: "what was not taken in: is it for a Service that refuses?",
    names.REFUSED_NODE_PORTS: "what was not taken in: is it for a node port that refuses?",
}
_WAYS = {
    names.INSIDE: "whoever asks is taken in by the listener inside",
    names.BY_SOURCE: "pods and this node are taken in by the listener inside, others by the one outside",
    names.INSIDE_ONLY: "pods and this node are taken in; who else comes is refused or dropped, for want of an endpoint",
    names.GUARDED: "senders of its source ranges are taken in, others dropped",
    names.GUARDED_INSIDE_ONLY: "pods and this node are taken in, if its source ranges name them; all others dropped",
    names.NODE_PORT_BY_SOURCE: "on addresses where node ports answer, pods and this node are taken in inside, others outside",
    names.NODE_PORT_INSIDE_ONLY: "on addresses where node ports answer, pods and this node are taken in; no endpoint for others",
    names.HEALTH_CHECK: "marked and let through, it is the health check of the load balancer",
    names.REFUSE: "no endpoint exists anywhere, so the client is told at once",
    names.NODE_PORT_REFUSE: "on addresses where node ports answer, the client is told at once that there is no endpoint",
    names.NODE_PORT_DROP: "endpoints exist, but none on this node and the policy is Local: dropped, the client tries another node",
    names.DROP: "endpoints exist, but none on this node and the policy is Local: dropped, the client tries another node",
}
# What a constant rule is for, by what it says.
_REASONS: tuple[tuple[str, str], ...] = (
    (
        r"tproxy to \S+:(\d+)",
        "the relay workers' listener on port {0} takes it, with its destination as it is; the mark routes it to this node",
    ),
    (r"^drop$", "nobody else comes through here: dropped"),
    (r"reject with", "the client is told at once"),
    (r"@sources goto", "senders of the source ranges go on"),
    (r"^ip6? saddr (\S+) goto", "pods: their addresses are in {0}"),
    (r"^iifname \"(\S+)\" goto", "pods: they come in by {0}"),
    (r"^fib saddr type local goto", "this node's own packets"),
    (r"^fib daddr type local (?:goto|drop)", "every address of this node answers on node ports"),
    (r"^fib daddr type local meta mark set", "who lets marked packets past a closed INPUT lets this one in"),
    (r"^ip6? daddr (.+) return", "node ports do not answer on {0}"),
    (r"^ip6? daddr (.+) (?:goto|drop)", "node ports answer on {0}"),
    (r"^goto " + names.OUTSIDE, "everybody else"),
    (r"notrack$", "conntrack need not know it (userspace.notrack)"),
)
_NOBODY_LISTENS = "no worker listens at present: dropped, and a SYN is sent again a second later"
_DEEPEST = 8


def element_text(key: str, element: Element) -> str:
    """An element as it stands in a set or map of nft."""
    called = f' comment "{element.comment}"' if element.comment else ""
    return f"{key}{called} : {element.verdict}" if element.verdict else f"{key}{called}"


def explain_rules(ruleset: FamilyRuleset, name: ServicePortName) -> tuple[RuleSeen, ...]:
    """What concerns `name`. Empty when the ruleset does not hold it."""
    if name not in ruleset.fragments or ruleset.frame is None:
        return ()
    return tuple(_Reader(ruleset, name).rules())


class _Reader:
    def __init__(self, ruleset: FamilyRuleset, name: ServicePortName) -> None:
        assert ruleset.frame is not None
        self.table = f"{names.NFT_FAMILY[ruleset.family]} {names.TABLE}"
        self.chains = chains(ruleset.frame)
        entries = [e for e in ruleset.fragments[name].entries if ruleset.owners.get(e.key) == name]
        self.elements: dict[str, list[tuple[str, Element]]] = {}
        for entry in entries:
            for place, key, element in entry.elements:
                self.elements.setdefault(place, []).append((key, element))
        self.told: set[str] = set()

    def rules(self) -> Iterator[RuleSeen]:
        for place, chain in _ORDER:
            mine = self.elements.get(place, [])
            if not mine:
                continue
            yield from self._asking(place, chain)
            for key, element in mine:
                why = self._element_reason(place, key, element)
                yield self._seen(place, element_text(key, element), why, Part.ENTRY)
            for way in dict.fromkeys(element.verdict.removeprefix("goto ") for _, element in mine if element.verdict):
                yield from self._chain(way, 0)

    def _asking(self, place: str, chain: str) -> Iterator[RuleSeen]:
        """The constant rule that looks into a set."""
        for rule in self.chains.get(chain, ()):
            if rule.endswith(f"@{place}") or f"@{place} " in rule:
                yield self._seen(chain, rule, _ASKED[place], Part.WAY)

    def _chain(self, name: str, depth: int) -> Iterator[RuleSeen]:
        rules = self.chains.get(name, ())
        if name in self.told or name in HOOKS or depth > _DEEPEST:
            return
        self.told.add(name)
        below = []
        for number, rule in enumerate(rules):
            yield self._seen(name, rule, reason_of(rule, rules[:number]), Part.WAY)
            below += re.findall(r"goto (\S+)", rule)
        for target in below:
            yield from self._chain(target, depth + 1)

    def _seen(self, chain: str, text: str, why: str, part: Part) -> RuleSeen:
        return RuleSeen(table=self.table, chain=chain, text=text, why=why, part=part)

    def _element_reason(self, place: str, key: str, element: Element) -> str:
        parts = key.split(" . ")
        if place == names.SOURCES:
            return f"senders in {parts[3]} may use {parts[0]} port {parts[2]}/{parts[1]}"
        where = f"{parts[0]} port {parts[2]}/{parts[1]}" if len(parts) == 3 else f"node port {parts[1]}/{parts[0]}"
        if place == names.RELAYED:
            return f"{where}: asked from this node as well"
        return f"{where}: {_WAYS.get(element.verdict.removeprefix('goto '), element.verdict)}"


def reason_of(rule: str, before: Sequence[str]) -> str:
    """What a constant rule of a way is for; `before`: those above it in its chain."""
    if rule == "drop" and before and "tproxy" in before[-1]:
        return _NOBODY_LISTENS
    for pattern, words in _REASONS:
        found = re.search(pattern, rule)
        if found is not None:
            return words.format(*found.groups())
    return "goes on"
