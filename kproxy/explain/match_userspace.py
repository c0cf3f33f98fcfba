"""What the parts of an nft rule of mode userspace ask of a packet and do to it, one function for each kind of part.

In: a rule's text (backends/userspace/rules.py) and the packet as it is at that moment. Out: whether it holds, why, and what is decided. A
part that is not known raises TraceError: a guess would be worse.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network

from kproxy.backends.userspace import names
from kproxy.backends.userspace.ruleset import FamilyRuleset
from kproxy.explain.match_iptables import is_local
from kproxy.explain.trace import Hop, KernelView, Packet
from kproxy.explain.trace_iptables import TraceError

DROP, REJECT, RETURN = "drop", "reject", "return"
GO_ON = "continue"  # of a rule that does something and decides nothing


@dataclass(slots=True)
class State:
    """The packet as it is at the moment. interface: where it came in."""

    packet: Packet
    interface: str
    marked: int = 0
    untracked: bool = False
    listener: int = 0  # the port of the listener that `tproxy` gave it to
    hops: list[Hop] = field(default_factory=list)

    @property
    def protocol(self) -> str:
        """As nft writes it."""
        return self.packet.protocol.lower


@dataclass(frozen=True, slots=True)
class Found:
    """Whether a part of a rule holds, and why; verdict: what a map says."""

    holds: bool
    why: str = ""
    verdict: str = ""
    telling: bool = False  # worth a line when it does not hold


class Here:
    """What rules may ask of the node: its elements, addresses and sockets."""

    def __init__(self, ruleset: FamilyRuleset, kernel: KernelView) -> None:
        self.ruleset, self.kernel = ruleset, kernel
        self._dns = frozenset(ruleset.frame.dns if ruleset.frame is not None else ())

    def has_socket(self, state: State) -> bool:
        """Whether a process listens at the destination itself; only the DNS workers' sockets are known of."""
        return state.packet.port == 53 and state.packet.destination in self._dns

    def key(self, state: State, *, address: bool) -> str:
        """The key of a map, as nft writes it."""
        packet = state.packet
        return (
            f"{packet.destination} . {state.protocol} . {packet.port}"
            if address
            else f"{state.protocol} . {packet.port}"
        )

    def looked_up(self, state: State, name: str, *, address: bool) -> Found:
        """A verdict map."""
        element = self.ruleset.elements.get(name, {}).get(self.key(state, address=address))
        if element is None:
            return Found(False)
        return Found(True, f"{self.key(state, address=address)} is in {name}, for {element.comment}", element.verdict)

    def in_sources(self, state: State) -> Found:
        """The set of destinations with the networks that may use them."""
        key, source = self.key(state, address=True), ip_address(state.packet.source)
        networks = [
            k[len(key) + 3 :] for k in self.ruleset.elements.get(names.SOURCES, {}) if k.startswith(f"{key} . ")
        ]
        holder = next((n for n in networks if source in ip_network(n)), None)
        if holder is None:
            return Found(False, f"source {source} is in none of {', '.join(networks) or 'no networks'}", telling=True)
        return Found(True, f"source {source} is in {holder}")

    def local(self, address: str, what: str) -> Found:
        """Whether the node holds an address."""
        found = is_local(address, self.kernel)
        return Found(found, f"{what} {address} is {'an' if found else 'no'} address of this node", telling=True)


Act = Callable[[Here, State, re.Match[str]], Found]
_PARTS: list[tuple[re.Pattern[str], Act]] = []


def parts(rule: str) -> tuple[tuple[Act, re.Match[str]], ...]:
    """What a rule asks and does, one after the other. Raises TraceError for words that are not known."""
    made, left = [], rule
    while left:
        act, found = next(((act, found) for pattern, act in _PARTS if (found := pattern.match(left))), (None, None))
        if act is None or found is None:
            raise TraceError(f"`{left}` is not understood")
        made.append((act, found))
        left = left[found.end() :].lstrip()
    return tuple(made)


def _reads(pattern: str) -> Callable[[Act], Act]:
    def add(act: Act) -> Act:
        _PARTS.append((re.compile(pattern + r"(?= |$)"), act))
        return act

    return add


@_reads(r"socket (transparent|wildcard) ([01])")
def _socket(here: Here, state: State, found: re.Match[str]) -> Found:
    # The first packet of a connection has no connected socket; a DNS worker's is bound to its address, neither transparent nor a wildcard.
    return Found(here.has_socket(state) and found[2] == "0", "a process of this node listens at this very address")


@_reads(r"meta l4proto (!= )?(tcp|udp)")
def _protocol(_here: Here, state: State, found: re.Match[str]) -> Found:
    return Found((state.protocol == found[2]) is not bool(found[1]))


@_reads(r"meta l4proto \{ ([a-z, ]+) \}")
def _protocols(_here: Here, state: State, found: re.Match[str]) -> Found:
    return Found(state.protocol in found[1].split(", "))


@_reads(r"tcp flags & \(fin \| syn \| rst \| ack\) (==|!=) syn")
def _first_packet(_here: Here, state: State, found: re.Match[str]) -> Found:
    return Found(state.protocol == "tcp" and found[1] == "==")


@_reads(r"ip6? daddr \. meta l4proto \. th dport vmap @(\S+)")
def _map(here: Here, state: State, found: re.Match[str]) -> Found:
    return here.looked_up(state, found[1], address=True)


@_reads(r"meta l4proto \. th dport vmap @(\S+)")
def _port_map(here: Here, state: State, found: re.Match[str]) -> Found:
    return here.looked_up(state, found[1], address=False)


@_reads(r"ip6? daddr \. meta l4proto \. th dport \. ip6? saddr @sources")
def _sources(here: Here, state: State, _found: re.Match[str]) -> Found:
    return here.in_sources(state)


@_reads(r"ip6? daddr \. meta l4proto \. th dport @(\S+)")
def _set(here: Here, state: State, found: re.Match[str]) -> Found:
    key = here.key(state, address=True)
    return Found(key in here.ruleset.elements.get(found[1], {}), f"{key} is in {found[1]}", GO_ON)


@_reads(r"meta mark & (\S+) == \S+")
def _is_marked(_here: Here, state: State, found: re.Match[str]) -> Found:
    return Found(bool(state.marked & int(found[1], 16)), f"the packet's mark is {state.marked:#x}")


@_reads(r"meta mark set meta mark ([|&]) (\S+)")
def _set_mark(_here: Here, state: State, found: re.Match[str]) -> Found:
    value = int(found[2], 16)
    state.marked = state.marked | value if found[1] == "|" else state.marked & value
    return Found(True)


@_reads(r"ct mark set ct mark \| \S+")
def _set_flow_mark(_here: Here, _state: State, _found: re.Match[str]) -> Found:
    return Found(True)


@_reads(r"ct state untracked")
def _is_untracked(_here: Here, state: State, _found: re.Match[str]) -> Found:
    return Found(state.untracked, "conntrack does not follow it")


@_reads(
    r"ct status dnat|ct state established(?:,related,invalid)?|(?:ct direction (?:original|reply) )?ct mark & \S+ == \S+"
)
def _known_flow(_here: Here, _state: State, _found: re.Match[str]) -> Found:
    return Found(False)  # of a connection that is there already


@_reads(r"fib (s|d)addr type local")
def _local(here: Here, state: State, found: re.Match[str]) -> Found:
    source = found[1] == "s"
    return here.local(
        state.packet.source if source else state.packet.destination, "source" if source else "destination"
    )


@_reads(r"ip6? (s|d)addr (\{ [^}]+ \}|\S+)")
def _address(_here: Here, state: State, found: re.Match[str]) -> Found:
    source = found[1] == "s"
    address, what = (state.packet.source, "source") if source else (state.packet.destination, "destination")
    networks = found[2].strip("{ }").split(", ")
    holds = any(ip_address(address) in ip_network(network, strict=False) for network in networks)
    return Found(holds, f"{what} {address} is {'' if holds else 'not '}in {', '.join(networks)}", telling=source)


@_reads(r"th (s|d)port (\d+)")
def _port(_here: Here, state: State, found: re.Match[str]) -> Found:
    port = state.packet.source_port if found[1] == "s" else state.packet.port
    return Found(port == int(found[2]), f"port is {port}")


@_reads(r'iifname "([^"]+)"')
def _interface(_here: Here, state: State, found: re.Match[str]) -> Found:
    name, here = found[1], state.interface
    holds = bool(here) and (here.startswith(name[:-1]) if name.endswith("*") else here == name)
    return Found(holds, f"it came in by {here}" if here else "it came in by no (known) interface", telling=True)


@_reads(r'iif "lo"')
def _by_loopback(_here: Here, state: State, _found: re.Match[str]) -> Found:
    return Found(state.interface == "lo", "it came in by lo")


@_reads(r'(iif|oif) != "lo"')
def _not_loopback(_here: Here, state: State, found: re.Match[str]) -> Found:
    return Found(found[1] == "iif" and state.interface != "lo")


@_reads(r"notrack")
def _notrack(_here: Here, state: State, _found: re.Match[str]) -> Found:
    state.untracked = True
    return Found(True)


@_reads(r"tproxy to \S+:(\d+)")
def _tproxy(_here: Here, state: State, found: re.Match[str]) -> Found:
    state.listener = int(found[1])
    return Found(True, "a relay worker takes it, with its destination as it is")


@_reads(r"reject with icmp(v6)? type port-unreachable")
def _reject(_here: Here, _state: State, _found: re.Match[str]) -> Found:
    return Found(True, verdict=REJECT)


@_reads(r"accept|drop|return|(?:goto|jump) \S+")
def _verdict(_here: Here, _state: State, found: re.Match[str]) -> Found:
    return Found(True, verdict=found[0])


@_reads(r"dnat to ip6? daddr")
def _as_asked(_here: Here, state: State, _found: re.Match[str]) -> Found:
    # A translation to what it is: nobody else's rules translate it after that. Untracked packets pass nat by.
    return Found(not state.untracked, "its destination stays as it is, whatever rules of others say", GO_ON)
