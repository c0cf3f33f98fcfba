"""Walks the iptables rules of one family for one packet, in the kernel's order, and enumerates every random choice.

    arrives:  raw, mangle, nat PREROUTING ─▶ routing ─▶ mangle, filter INPUT                               (an address of this node)
                                                    └─▶ mangle, filter FORWARD ─▶ mangle, nat POSTROUTING  (any other)
    local:    raw, mangle, nat, filter OUTPUT ─▶ mangle, nat POSTROUTING, and for an address of this node on through the loopback
              interface: raw, mangle PREROUTING ─▶ mangle, filter INPUT (nat has spoken already)

The packet is the first of its connection: conntrack says NEW, and DNAT once a rule has translated it. A packet that raw exempts from
tracking passes nat by. Rules that do not match are shown in the chains of one ServicePort, where they answer "why not?"; the dispatch
chains, with a rule for every Service, show the match only.

What must not happen here: knowing what kproxy meant by a rule. The tracer reads rules as the kernel does; that is what makes it an
independent witness for the compiler.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import Enum
from fractions import Fraction
from typing import assert_never

from kproxy.backends.iptables import names
from kproxy.backends.iptables.matches import (
    Accept,
    Chance,
    DestinationNat,
    Drop,
    Jump,
    MasqueradeTarget,
    NoTrack,
    OtherTarget,
    Recent,
    Reject,
    Return,
    SetMark,
)
from kproxy.backends.iptables.rules import Rule, RuleParts
from kproxy.backends.iptables.ruleset import BUILT_IN, FamilyRuleset
from kproxy.explain.match_iptables import NO, YES, PacketNow, holds, is_local
from kproxy.explain.trace import EVERY_PACKET, Branch, Fate, Hop, KernelView, Origin, Packet, Trace

_MAX_DEPTH = 32  # jumps within jumps; the kernel refuses loops, a text read from a file may hold one
_MAX_SHOWN = 16  # rules of a chain that is told in full


class TraceError(ValueError):
    """Rules that the kernel would not take: a jump to nowhere, or in circles."""


class _Verdict(Enum):
    """What a chain says in the end; CONTINUE: nothing, the caller goes on."""

    CONTINUE = "continue"
    ACCEPT = "accept"
    DROP = "drop"
    REJECT = "reject"


@dataclass(frozen=True, slots=True)
class _Trail:
    """Hops as a chain of references, so that a thousand branches share their beginning."""

    hop: Hop
    before: _Trail | None

    def hops(self) -> list[Hop]:
        found: list[Hop] = []
        at: _Trail | None = self
        while at is not None:
            found.append(at.hop)
            at = at.before
        return found[::-1]


@dataclass(frozen=True, slots=True)
class _Way:
    """One of the possible packets: how it looks, how likely it is, and where it has been."""

    packet: PacketNow
    probability: Fraction
    trail: _Trail | None = None

    def seen(self, hop: Hop) -> _Way:
        return _Way(self.packet, self.probability, _Trail(hop, self.trail))


_Ended = list[tuple[_Way, _Verdict]]


def trace(ruleset: FamilyRuleset, packet: Packet, kernel: KernelView) -> Trace:
    """What becomes of `packet` under `ruleset`. Raises TraceError for rules that no kernel would hold."""
    now = PacketNow(
        source=packet.source,
        source_port=packet.source_port,
        destination=packet.destination,
        port=packet.port,
        protocol=packet.protocol.lower,
        in_interface=packet.in_interface if packet.origin is Origin.ARRIVES else "",
    )
    walk = _Walk(ruleset, kernel)
    start = _Way(now, YES)
    ended = walk.arriving(start) if packet.origin is Origin.ARRIVES else walk.leaving(start)
    trails = [way.trail.hops() if way.trail else [] for way, _ in ended]
    shared = _shared(trails)
    branches = [_branch(way, verdict, hops[shared:]) for (way, verdict), hops in zip(ended, trails, strict=True)]
    return Trace(packet=packet, hops=tuple(trails[0][:shared]), branches=tuple(branches))


def _shared(trails: list[list[Hop]]) -> int:
    shared = min(len(trail) for trail in trails)
    for trail in trails[1:]:
        shared = next((i for i in range(shared) if trail[i] is not trails[0][i]), shared)
    return shared


def _branch(way: _Way, verdict: _Verdict, hops: list[Hop]) -> Branch:
    packet, to = way.packet, ""
    if verdict is _Verdict.DROP:
        fate = Fate.DROPPED
    elif verdict is _Verdict.REJECT:
        fate = Fate.REJECTED
    else:
        fate = Fate.REACHES if packet.translated else Fate.UNTOUCHED
        to = (
            f"[{packet.destination}]:{packet.port}"
            if ":" in packet.destination
            else f"{packet.destination}:{packet.port}"
        )
    return Branch(
        probability=way.probability,
        fate=fate,
        to=to,
        masqueraded=packet.masqueraded,
        entered=packet.entered,
        hops=tuple(hops),
    )


class _Walk:
    """One trace: the rules, the kernel around them, and the hooks in order."""

    def __init__(self, ruleset: FamilyRuleset, kernel: KernelView) -> None:
        self.ruleset = ruleset
        self.kernel = kernel

    # hooks

    def arriving(self, way: _Way) -> _Ended:
        ended: _Ended = []
        for routed in self._hook("PREROUTING", ("raw", "mangle", "nat"), [way], ended):
            local = is_local(routed.packet.destination, self.kernel)
            what = "an address of this node: delivered here" if local else "not an address of this node: forwarded"
            at = routed.seen(Hop(table="", chain="routing", why=f"{routed.packet.destination} is {what}"))
            if local:
                ways = self._hook("INPUT", ("mangle", "filter", "nat"), [at], ended)
            else:
                ways = self._hook("FORWARD", ("mangle", "filter"), [at], ended)
                ways = self._hook("POSTROUTING", ("mangle", "nat"), ways, ended)
            ended += [(passed, _Verdict.ACCEPT) for passed in ways]
        return ended

    def leaving(self, way: _Way) -> _Ended:
        ended: _Ended = []
        ways = self._hook("OUTPUT", ("raw", "mangle", "nat", "filter"), [way], ended)
        for gone in self._hook("POSTROUTING", ("mangle", "nat"), ways, ended):
            if not is_local(gone.packet.destination, self.kernel):
                ended.append((gone, _Verdict.ACCEPT))
                continue
            why = f"{gone.packet.destination} is an address of this node: comes back by the loopback interface"
            source = gone.packet.destination if gone.packet.masqueraded else gone.packet.source
            looped = replace(gone.packet, in_interface="lo", source=source)
            back = _Way(looped, gone.probability, gone.trail).seen(Hop(table="", chain="routing", why=why))
            ways = self._hook("PREROUTING", ("raw", "mangle"), [back], ended)
            ended += [(in_, _Verdict.ACCEPT) for in_ in self._hook("INPUT", ("mangle", "filter"), ways, ended)]
        return ended

    def _hook(self, chain: str, tables: Iterable[str], ways: Iterable[_Way], ended: _Ended) -> list[_Way]:
        """The ways that leave the hook; those that end in it go to `ended`."""
        passing = list(ways)
        for table in tables:
            after: list[_Way] = []
            for way in passing:
                if table == "nat" and way.packet.untracked:
                    after.append(way)
                    continue
                for result, verdict in self._built_in(table, chain, way):
                    if verdict in (_Verdict.DROP, _Verdict.REJECT):
                        ended.append((result, verdict))
                    else:
                        after.append(result)
            passing = after
        return passing

    def _built_in(self, table: str, chain: str, way: _Way) -> _Ended:
        results = self._chain(table, chain, way, 0) if self.ruleset.chain(table, chain) is not None else []
        results = results or [(way, _Verdict.CONTINUE)]
        if table != "filter" or self.kernel.policies.get(chain, "ACCEPT") != "DROP":
            return results
        hop = Hop(table=table, chain=chain, why="no rule decided: the chain's policy is DROP")
        return [(w.seen(hop), _Verdict.DROP) if v is _Verdict.CONTINUE else (w, v) for w, v in results]

    # chains and rules

    def _chain(self, table: str, chain: str, way: _Way, depth: int) -> _Ended:
        rules = self.ruleset.chain(table, chain)
        if rules is None or depth > _MAX_DEPTH:
            reason = "does not exist" if rules is None else f"is more than {_MAX_DEPTH} jumps deep"
            raise TraceError(f"chain {chain} of table {table} {reason}")
        shows_misses = chain not in BUILT_IN and not names.is_dispatch(table, chain) and len(rules) <= _MAX_SHOWN
        going = [way]
        ended: _Ended = []
        for rule in rules:
            going = self._rule(table, chain, rule, going, ended, depth, shows_misses)
            if not going:
                break
        return [*ended, *((left, _Verdict.CONTINUE) for left in going)]

    def _rule(
        self, table: str, chain: str, rule: Rule, going: list[_Way], ended: _Ended, depth: int, shows_misses: bool
    ) -> list[_Way]:
        """The ways that go on to the next rule of the chain; those that leave the chain here go to `ended`."""
        after: list[_Way] = []
        for way in going:
            if _is_for_another(rule, way.packet):
                after.append(way)
                continue
            parts = rule.parts
            share, why = self._share(parts, way.packet)
            hop = Hop(table=table, chain=chain, why=why, rule=rule.text, comment=parts.comment, matched=share != NO)
            if share == NO:
                after.append(way.seen(hop) if shows_misses and not _is_choice(parts) else way)
                continue
            if share != YES:
                after.append(_Way(way.packet, way.probability * (1 - share), way.trail))
            chosen = _Way(_remembered(parts, way.packet), way.probability * share, way.trail).seen(hop)
            for result, verdict in self._target(table, parts, chosen, depth):
                if verdict is None:
                    after.append(result)
                else:
                    ended.append((result, verdict))
        return after

    def _share(self, parts: RuleParts, packet: PacketNow) -> tuple[Fraction, str]:
        share, reasons = YES, []
        for match in parts.matches:
            each, why = holds(match, packet, self.kernel)
            if each == NO:
                return NO, why
            share *= each
            if why and why not in reasons:
                reasons.append(why)
        return share, "; ".join(reasons) or EVERY_PACKET

    def _target(self, table: str, parts: RuleParts, way: _Way, depth: int) -> list[tuple[_Way, _Verdict | None]]:
        """What the target makes of the packet; None: go on with the next rule of this chain."""
        packet = way.packet
        match parts.target:
            case None | OtherTarget():
                return [(way, None)]
            case Jump(chain, goto):
                results = self._chain(table, chain, way, depth + 1)
                back = _Verdict.CONTINUE if goto else None
                return [(w, back if v is _Verdict.CONTINUE else v) for w, v in results]
            case Accept():
                return [(way, _Verdict.ACCEPT)]
            case Drop():
                return [(way, _Verdict.DROP)]
            case Reject():
                return [(way, _Verdict.REJECT)]
            case Return():
                return [(way, _Verdict.CONTINUE)]
            case SetMark(value, mask):
                marked = replace(packet, mark=(packet.mark & ~mask & 0xFFFFFFFF) ^ value)
                return [(_Way(marked, way.probability, way.trail), None)]
            case MasqueradeTarget():
                return [(_Way(replace(packet, masqueraded=True), way.probability, way.trail), _Verdict.ACCEPT)]
            case DestinationNat(to):
                address, _, port = to.rpartition(":")
                there = replace(packet, destination=address.strip("[]"), port=int(port), translated=True)
                return [(_Way(there, way.probability, way.trail), _Verdict.ACCEPT)]
            case NoTrack():
                return [(_Way(replace(packet, untracked=True), way.probability, way.trail), None)]
            case _:
                assert_never(parts.target)


def _is_for_another(rule: Rule, packet: PacketNow) -> bool:
    """A cheap look that spares parsing: most rules of a dispatch chain name another single destination."""
    text = rule.text
    if not text.startswith("-d "):
        return False
    network = text[3 : text.find(" ", 3)]
    return network.endswith(("/32", "/128")) and network.partition("/")[0] != packet.destination


def _remembered(parts: RuleParts, packet: PacketNow) -> PacketNow:
    """The packet after a rule that holds: `recent --set` enters its sender into a list."""
    lists = {match.name for match in parts.matches if isinstance(match, Recent) and match.seconds is None}
    return replace(packet, entered=packet.entered | lists) if lists else packet


def _is_choice(parts: RuleParts) -> bool:
    """A rule that picks among endpoints; that it did not pick this one needs no telling."""
    return any(isinstance(match, Chance | Recent) for match in parts.matches)
