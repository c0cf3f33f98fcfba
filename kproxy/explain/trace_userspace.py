"""Walks the nft rules of mode userspace for one packet, in the kernel's order, and then the relay's choice.

    arrives:  prerouting (raw, mangle) ─▶ taken in by `tproxy` ─▶ filter input ─▶ relay ─▶ an endpoint
                                       └▶ routing ─▶ filter input or forward                    (no Service, or refused there)
    local:    output ─▶ filter output ─▶ marked, or to an address of this node: back through lo, to prerouting; else away

The packet is the first of its connection or session. Rules that do not match are shown where they answer "why not?": the tests of who
sends.

In: rules as values (backends/userspace/rules.py), elements, the workers' Table. What must not happen here: knowing what kproxy meant by a
rule. The text of rules is read as the kernel reads it; a word that is not known is an error, and no guess.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from ipaddress import ip_address, ip_network

from kproxy.backends.userspace import names
from kproxy.backends.userspace.rules import HOOKS, chains
from kproxy.backends.userspace.ruleset import FamilyRuleset
from kproxy.explain.flows import end_text
from kproxy.explain.match_iptables import is_local
from kproxy.explain.relay import RelayFacts, balancing_text, source_of
from kproxy.explain.trace import EVERY_PACKET, Branch, Fate, Hop, KernelView, Origin, Packet, Trace
from kproxy.explain.trace_iptables import TraceError
from kproxy.relay.affinity import ranked
from kproxy.relay.targets import INSIDE, OUTSIDE, End, Table, Target

_DEEPEST = 16
_DROP, _REJECT, _RETURN = "drop", "reject", "return"
_GO_ON = "continue"  # of a rule that does something and decides nothing


@dataclass(slots=True)
class _State:
    """The packet as it is at the moment. interface: where it came in."""

    packet: Packet
    interface: str
    marked: int = 0
    untracked: bool = False
    listener: int = 0  # the port of the listener that `tproxy` gave it to
    hops: list[Hop] = field(default_factory=list)

    @property
    def protocol(self) -> str:
        return self.packet.protocol.lower


@dataclass(frozen=True, slots=True)
class _Test:
    """Whether a part of a rule holds, and why; verdict: what a map says."""

    holds: bool
    why: str = ""
    verdict: str = ""
    telling: bool = False  # worth a line when it does not hold


def trace(ruleset: FamilyRuleset, table: Table, facts: RelayFacts, packet: Packet, kernel: KernelView) -> Trace:
    """What becomes of `packet`. Raises TraceError for rules with words that are not known here."""
    walk = _Walk(ruleset, kernel)
    state = _State(packet, packet.in_interface if packet.origin is Origin.ARRIVES else "")
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
        self.dns = frozenset(ruleset.frame.dns)

    def arriving(self, state: _State) -> Fate | None:
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

    def leaving(self, state: _State) -> Fate | None:
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

    def _hooks(self, hook: str, state: _State) -> Fate | None:
        for name, where in sorted(HOOKS.items(), key=lambda item: item[1].priority):
            if where.hook == hook:
                verdict = self._chain(name, state, 0)
                if verdict in (_DROP, _REJECT):
                    return Fate.DROPPED if verdict == _DROP else Fate.REJECTED
        if self.kernel.policies.get(hook.upper(), "ACCEPT") == "DROP":
            state.hops.append(
                Hop(table="filter", chain=hook.upper(), why="no rule decided: the chain's policy is DROP")
            )
            return Fate.DROPPED
        return None

    def _chain(self, name: str, state: _State, depth: int) -> str:
        """accept, drop, reject, or `return` when no rule decided."""
        rules = self.chains.get(name)
        if rules is None or depth > _DEEPEST:
            raise TraceError(f"chain {name} does not exist" if rules is None else "chains lead in circles")
        for rule in rules:
            verdict = self._rule(name, rule, state, depth)
            if verdict:
                return verdict
        return _RETURN

    def _rule(self, chain: str, rule: str, state: _State, depth: int) -> str:
        """What the rule decides, "" for nothing."""
        reasons, verdict = [], ""
        for act, found in parts(rule):
            test = act(self, state, found)
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
            return "" if verdict == _GO_ON else verdict
        below = self._chain(target, state, depth + 1)
        return "" if word == "jump" and below == _RETURN else below

    # what rules ask

    def has_socket(self, state: _State) -> bool:
        """Whether a process listens at the destination itself; only the DNS workers' sockets are known of."""
        return state.packet.port == 53 and state.packet.destination in self.dns

    def key(self, state: _State, *, address: bool) -> str:
        """The key of a map, as nft writes it."""
        packet = state.packet
        return (
            f"{packet.destination} . {state.protocol} . {packet.port}"
            if address
            else f"{state.protocol} . {packet.port}"
        )

    def looked_up(self, state: _State, name: str, *, address: bool) -> _Test:
        """A verdict map."""
        element = self.ruleset.elements.get(name, {}).get(self.key(state, address=address))
        if element is None:
            return _Test(False)
        return _Test(True, f"{self.key(state, address=address)} is in {name}, for {element.comment}", element.verdict)

    def in_sources(self, state: _State) -> _Test:
        """The set of destinations with the networks that may use them."""
        key, source = self.key(state, address=True), ip_address(state.packet.source)
        networks = [
            k[len(key) + 3 :] for k in self.ruleset.elements.get(names.SOURCES, {}) if k.startswith(f"{key} . ")
        ]
        holder = next((n for n in networks if source in ip_network(n)), None)
        if holder is None:
            return _Test(False, f"source {source} is in none of {', '.join(networks) or 'no networks'}", telling=True)
        return _Test(True, f"source {source} is in {holder}")

    def local(self, address: str, what: str) -> _Test:
        """Whether the node holds an address."""
        found = is_local(address, self.kernel)
        return _Test(found, f"{what} {address} is {'an' if found else 'no'} address of this node", telling=True)


_Act = Callable[[_Walk, _State, re.Match[str]], _Test]
_PARTS: list[tuple[re.Pattern[str], _Act]] = []


def parts(rule: str) -> tuple[tuple[_Act, re.Match[str]], ...]:
    """What a rule asks and does, one after the other. Raises TraceError for words that are not known."""
    made, left = [], rule
    while left:
        act, found = next(((act, found) for pattern, act in _PARTS if (found := pattern.match(left))), (None, None))
        if act is None or found is None:
            raise TraceError(f"`{left}` is not understood")
        made.append((act, found))
        left = left[found.end() :].lstrip()
    return tuple(made)


def _reads(pattern: str) -> Callable[[_Act], _Act]:
    def add(act: _Act) -> _Act:
        _PARTS.append((re.compile(pattern + r"(?= |$)"), act))
        return act

    return add


@_reads(r"socket (transparent|wildcard) ([01])")
def _socket(walk: _Walk, state: _State, found: re.Match[str]) -> _Test:
    # The first packet of a connection has no connected socket; a DNS worker's is bound to its address, neither transparent nor a wildcard.
    return _Test(walk.has_socket(state) and found[2] == "0", "a process of this node listens at this very address")


@_reads(r"meta l4proto (!= )?(tcp|udp)")
def _protocol(_walk: _Walk, state: _State, found: re.Match[str]) -> _Test:
    return _Test((state.protocol == found[2]) is not bool(found[1]))


@_reads(r"meta l4proto \{ ([a-z, ]+) \}")
def _protocols(_walk: _Walk, state: _State, found: re.Match[str]) -> _Test:
    return _Test(state.protocol in found[1].split(", "))


@_reads(r"tcp flags & \(fin \| syn \| rst \| ack\) != syn")
def _no_first_packet(_walk: _Walk, _state: _State, _found: re.Match[str]) -> _Test:
    return _Test(False)


@_reads(r"ip6? daddr \. meta l4proto \. th dport vmap @(\S+)")
def _map(walk: _Walk, state: _State, found: re.Match[str]) -> _Test:
    return walk.looked_up(state, found[1], address=True)


@_reads(r"meta l4proto \. th dport vmap @(\S+)")
def _port_map(walk: _Walk, state: _State, found: re.Match[str]) -> _Test:
    return walk.looked_up(state, found[1], address=False)


@_reads(r"ip6? daddr \. meta l4proto \. th dport \. ip6? saddr @sources")
def _sources(walk: _Walk, state: _State, _found: re.Match[str]) -> _Test:
    return walk.in_sources(state)


@_reads(r"ip6? daddr \. meta l4proto \. th dport @(\S+)")
def _set(walk: _Walk, state: _State, found: re.Match[str]) -> _Test:
    key = walk.key(state, address=True)
    return _Test(key in walk.ruleset.elements.get(found[1], {}), f"{key} is in {found[1]}", _GO_ON)


@_reads(r"meta mark & (\S+) == \S+")
def _is_marked(_walk: _Walk, state: _State, found: re.Match[str]) -> _Test:
    return _Test(bool(state.marked & int(found[1], 16)), f"the packet's mark is {state.marked:#x}")


@_reads(r"meta mark set meta mark \| (\S+)")
def _set_mark(_walk: _Walk, state: _State, found: re.Match[str]) -> _Test:
    state.marked |= int(found[1], 16)
    return _Test(True)


@_reads(r"ct mark set ct mark \| \S+")
def _set_flow_mark(_walk: _Walk, _state: _State, _found: re.Match[str]) -> _Test:
    return _Test(True)


@_reads(r"ct state untracked")
def _is_untracked(_walk: _Walk, state: _State, _found: re.Match[str]) -> _Test:
    return _Test(state.untracked, "conntrack does not follow it")


@_reads(r"ct status dnat|ct direction original ct mark & \S+ == \S+")
def _known_flow(_walk: _Walk, _state: _State, _found: re.Match[str]) -> _Test:
    return _Test(False)  # of a connection that is there already


@_reads(r"fib (s|d)addr type local")
def _local(walk: _Walk, state: _State, found: re.Match[str]) -> _Test:
    source = found[1] == "s"
    return walk.local(
        state.packet.source if source else state.packet.destination, "source" if source else "destination"
    )


@_reads(r"ip6? (s|d)addr (\{ [^}]+ \}|\S+)")
def _address(_walk: _Walk, state: _State, found: re.Match[str]) -> _Test:
    source = found[1] == "s"
    address, what = (state.packet.source, "source") if source else (state.packet.destination, "destination")
    networks = found[2].strip("{ }").split(", ")
    holds = any(ip_address(address) in ip_network(network, strict=False) for network in networks)
    return _Test(holds, f"{what} {address} is {'' if holds else 'not '}in {', '.join(networks)}", telling=source)


@_reads(r"th (s|d)port (\d+)")
def _port(_walk: _Walk, state: _State, found: re.Match[str]) -> _Test:
    port = state.packet.source_port if found[1] == "s" else state.packet.port
    return _Test(port == int(found[2]), f"port is {port}")


@_reads(r'iifname "([^"]+)"')
def _interface(_walk: _Walk, state: _State, found: re.Match[str]) -> _Test:
    name, here = found[1], state.interface
    holds = bool(here) and (here.startswith(name[:-1]) if name.endswith("*") else here == name)
    return _Test(holds, f"it came in by {here}" if here else "it came in by no (known) interface", telling=True)


@_reads(r'(iif|oif) != "lo"')
def _not_loopback(_walk: _Walk, state: _State, found: re.Match[str]) -> _Test:
    return _Test(found[1] == "iif" and state.interface != "lo")


@_reads(r"notrack")
def _notrack(_walk: _Walk, state: _State, _found: re.Match[str]) -> _Test:
    state.untracked = True
    return _Test(True)


@_reads(r"tproxy to \S+:(\d+)")
def _tproxy(_walk: _Walk, state: _State, found: re.Match[str]) -> _Test:
    state.listener = int(found[1])
    return _Test(True, "a relay worker takes it, with its destination as it is")


@_reads(r"reject with icmp(v6)? type port-unreachable")
def _reject(_walk: _Walk, _state: _State, _found: re.Match[str]) -> _Test:
    return _Test(True, verdict=_REJECT)


@_reads(r"accept|drop|return|(?:goto|jump) \S+")
def _verdict(_walk: _Walk, _state: _State, found: re.Match[str]) -> _Test:
    return _Test(True, verdict=found[0])


@_reads(r"dnat to ip6? daddr")
def _as_asked(_walk: _Walk, state: _State, _found: re.Match[str]) -> _Test:
    # A translation to what it is: nobody else's rules translate it after that. Untracked packets pass nat by.
    return _Test(not state.untracked, "its destination stays as it is, whatever rules of others say", _GO_ON)


# The relay


def _relayed(ruleset: FamilyRuleset, table: Table, facts: RelayFacts, state: _State) -> Iterator[Branch]:
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
