"""Walks the nft rules of mode userspace for one packet, in the kernel's order, and then the relay's choice.

    arrives:  prerouting (raw, mangle) ─▶ taken in by `tproxy` ─▶ filter input ─▶ relay ─▶ an endpoint
                                       └▶ routing ─▶ filter input or forward                    (no Service, or refused there)
    local:    output ─▶ marked, or to an address of this node: back through lo, to prerouting; else away

The packet is the first of its connection or session. Rules that do not match are shown where they answer "why not?": the tests of who
sends.

In: rules as values (backends/userspace/rules.py), elements, the workers' Table. What must not happen here: knowing what kproxy meant by a
rule. The text of rules is read as the kernel reads it; a word that is not known is an error, and no guess.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from ipaddress import ip_address

from kproxy.backends.userspace import names
from kproxy.backends.userspace.rules import HOOKS, chains
from kproxy.backends.userspace.ruleset import FamilyRuleset
from kproxy.explain.flows import end_text
from kproxy.explain.match_iptables import is_local
from kproxy.explain.match_userspace import DROP, GO_ON, REJECT, RETURN, Here, State, parts
from kproxy.explain.relay import RelayFacts, balancing_text, source_of
from kproxy.explain.trace import EVERY_PACKET, Branch, Fate, Hop, KernelView, Origin, Packet, Trace
from kproxy.explain.trace_iptables import TraceError
from kproxy.relay.affinity import ranked
from kproxy.relay.targets import INSIDE, OUTSIDE, End, Table, Target

_DEEPEST = 16


def trace(ruleset: FamilyRuleset, table: Table, facts: RelayFacts, packet: Packet, kernel: KernelView) -> Trace:
    """What becomes of `packet`. Raises TraceError for rules with words that are not known here."""
    walk = _Walk(ruleset, kernel)
    state = State(packet, packet.in_interface if packet.origin is Origin.ARRIVES else "")
    fate = walk.arriving(state) if packet.origin is Origin.ARRIVES else walk.leaving(state)
    if fate is not None:
        to = end_text(packet.destination, packet.port) if fate is Fate.UNTOUCHED else ""
        end = Branch(probability=Fraction(1), fate=fate, to=to, masqueraded=False, entered=frozenset(), hops=())
        return Trace(packet=packet, hops=tuple(state.hops), branches=(end,))
    branches = tuple(_relayed(ruleset, table, facts, state))
    return Trace(packet=packet, hops=tuple(state.hops), branches=branches)


class _Walk:
    """One trace. Each hook tells the fate of a packet that ends there; None: it goes on, or was given to a listener."""

    def __init__(self, ruleset: FamilyRuleset, kernel: KernelView) -> None:
        if ruleset.frame is None:
            raise TraceError("the rules of this family are not known")
        self.ruleset, self.kernel = ruleset, kernel
        self.table = f"{names.NFT_FAMILY[ruleset.family]} {names.TABLE}"
        self.chains = chains(ruleset.frame)
        self.here = Here(ruleset, kernel)

    def arriving(self, state: State) -> Fate | None:
        """From the wire, or back through lo. None: a listener has it."""
        ended = self._hooks("prerouting", state)
        if ended is not None:
            return ended
        packet = state.packet
        if state.interface != "lo" and ip_address(packet.destination).is_loopback:
            why = f"{packet.destination} from outside is a martian: the kernel drops it (route_localnet is off)"
            state.hops.append(Hop(table="", chain="routing", why=why))
            return Fate.DROPPED
        if state.listener:
            why = f"marked {state.marked:#x}: the policy route delivers it to this node, to the listener on port {state.listener}"
            state.hops.append(Hop(table="", chain="routing", why=why))
            return self._hooks("input", state)
        here = is_local(packet.destination, self.kernel)
        what = "an address of this node: delivered here" if here else "not an address of this node: forwarded"
        state.hops.append(Hop(table="", chain="routing", why=f"{packet.destination} is {what}"))
        return self._hooks("input" if here else "forward", state) or Fate.UNTOUCHED

    def leaving(self, state: State) -> Fate | None:
        """From a process of this node."""
        ended = self._hooks("output", state)
        if ended is not None:
            return ended
        destination = state.packet.destination
        if state.marked:
            why = f"marked {state.marked:#x}: the policy route leads it through lo, back into this node"
        elif is_local(destination, self.kernel):
            why = f"{destination} is an address of this node: it comes back by the loopback interface"
        else:
            return Fate.UNTOUCHED
        state.hops.append(Hop(table="", chain="routing", why=why))
        state.interface = "lo"
        return self.arriving(state)

    def _hooks(self, hook: str, state: State) -> Fate | None:
        for name, where in sorted(HOOKS.items(), key=lambda item: item[1].priority):
            if where.hook == hook:
                verdict = self._chain(name, state, 0)
                if verdict in (DROP, REJECT):
                    return Fate.DROPPED if verdict == DROP else Fate.REJECTED
        if self.kernel.policies.get(hook.upper(), "ACCEPT") == "DROP":
            state.hops.append(
                Hop(table="filter", chain=hook.upper(), why="no rule decided: the chain's policy is DROP")
            )
            return Fate.DROPPED
        return None

    def _chain(self, name: str, state: State, depth: int) -> str:
        """accept, drop, reject, or `return` when no rule decided."""
        rules = self.chains.get(name)
        if rules is None or depth > _DEEPEST:
            raise TraceError(f"chain {name} does not exist" if rules is None else "chains lead in circles")
        for rule in rules:
            verdict = self._rule(name, rule, state, depth)
            if verdict:
                return verdict
        return RETURN

    def _rule(self, chain: str, rule: str, state: State, depth: int) -> str:
        """What the rule decides, "" for nothing."""
        reasons, verdict = [], ""
        for act, found in parts(rule):
            test = act(self.here, state, found)
            if not test.holds:
                if test.telling:
                    state.hops.append(Hop(table=self.table, chain=chain, why=test.why, rule=rule, matched=False))
                return ""
            if test.why:
                reasons.append(test.why)
            verdict = test.verdict or verdict
        if verdict:
            why = "; ".join(reasons) or EVERY_PACKET
            state.hops.append(Hop(table=self.table, chain=chain, why=why, rule=rule))
        word, _, target = verdict.partition(" ")
        if word not in ("goto", "jump"):
            return "" if verdict == GO_ON else verdict
        below = self._chain(target, state, depth + 1)
        return "" if word == "jump" and below == RETURN else below


# The relay


def _relayed(ruleset: FamilyRuleset, table: Table, facts: RelayFacts, state: State) -> Iterator[Branch]:
    """What can become of a connection that a listener has; the shared hops go to `state`."""
    assert ruleset.frame is not None
    packet = state.packet
    entry = INSIDE if state.listener == ruleset.frame.ports[0] else OUTSIDE
    target = table.find(entry, ruleset.family.value, packet.protocol.value, packet.destination, packet.port)
    if target is None:
        why = f"listener {entry}: the worker knows no such Service, the connection is reset"
        state.hops.append(Hop(table="", chain="relay", why=why))
        yield Branch(
            probability=Fraction(1), fate=Fate.REJECTED, to="", masqueraded=False, entered=frozenset(), hops=()
        )
        return
    ends, why = choice(target, packet.source, facts)
    state.hops.append(Hop(table="", chain="relay", why=f"listener {entry}: {target.name}"))
    state.hops.append(Hop(table="", chain="relay", why=why))
    for end in ends:
        fate = source_of(target, packet.source, end)
        yield Branch(
            probability=Fraction(1, len(ends)),
            fate=Fate.REACHES,
            to=end_text(*end),
            masqueraded=not fate.startswith("source kept"),
            entered=frozenset({target.name}) if target.affinity_s else frozenset(),
            hops=(),
            seen_as=fate,
        )


def choice(target: Target, client: str, facts: RelayFacts) -> tuple[tuple[End, ...], str]:
    """The endpoints that may get a new connection of `client` first, each with the same chance, and why these."""
    well = tuple(end for end in target.endpoints if end not in facts.ejected)
    out = len(target.endpoints) - len(well) if well else 0
    candidates = well or target.endpoints
    left = f"; {out} left out at the moment, because connections to them failed" if out else ""
    if len(candidates) == 1:
        return candidates, ("the only endpoint" if not out else "the only endpoint that is left") + left
    if target.affinity_s:
        why = f"session affinity: {client} belongs to it by hash, unless it was elsewhere within {target.affinity_s} s{left}"
        return (ranked(client, candidates)[0],), why
    return candidates, f"{balancing_text(target)}{left}"
