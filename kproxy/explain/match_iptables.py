"""Whether one match of an iptables rule holds for a packet, and why, in words.

In: a match (backends/iptables/matches.py) and the packet as it is at that moment. Out: the share of packets for which it holds (0, 1,
or in between for `statistic`), and the reason. Matches that other programs' rules use and kproxy's never do are taken not to hold, and
the reason says so: a guess would be worse.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from ipaddress import ip_address, ip_network

from kproxy.backends.iptables.matches import (
    AddressType,
    Chance,
    Comment,
    ConntrackState,
    Destination,
    HasSocket,
    InInterface,
    Mark,
    Match,
    OtherMatch,
    OutInterface,
    Ports,
    Recent,
    Source,
    TransportProtocol,
)
from kproxy.explain.trace import KernelView

YES, NO = Fraction(1), Fraction(0)


@dataclass(frozen=True, slots=True, kw_only=True)
class PacketNow:
    """A packet on its way: what earlier rules have made of it."""

    source: str
    source_port: int
    destination: str
    port: int
    protocol: str  # tcp, udp, sctp
    in_interface: str = ""
    mark: int = 0
    translated: bool = False  # its destination was changed
    masqueraded: bool = False
    untracked: bool = False
    entered: frozenset[str] = frozenset()  # affinity lists that know its sender from now on

    @property
    def states(self) -> frozenset[str]:
        """What conntrack says of it: always the first packet of a connection here."""
        if self.untracked:
            return frozenset({"UNTRACKED"})
        states = {"NEW"} | ({"DNAT"} if self.translated else set()) | ({"SNAT"} if self.masqueraded else set())
        return frozenset(states)


def holds(match: Match, packet: PacketNow, kernel: KernelView) -> tuple[Fraction, str]:
    """The share of such packets for which `match` holds, and why."""
    match match:
        case Comment():
            return YES, ""
        case Source(network, negated):
            return _in_network("source", packet.source, network, negated)
        case Destination(network, negated):
            return _in_network("destination", packet.destination, network, negated)
        case InInterface(name, negated):
            return _interface(packet.in_interface, name, negated)
        case TransportProtocol(protocol, negated):
            found = (protocol in (packet.protocol, "all")) is not negated
            return _answer(found, f"protocol is {packet.protocol}")
        case Ports():
            return _ports(match, packet)
        case Mark(value, mask, negated):
            found = ((packet.mark & mask) == value) is not negated
            return _answer(found, f"the packet's mark is {packet.mark:#x}")
        case ConntrackState(states, negated):
            found = bool(packet.states & set(states)) is not negated
            return _answer(found, f"conntrack state is {','.join(sorted(packet.states))}")
        case HasSocket():
            # Which sockets there are is not asked for: that the address is held says that the DNS workers have theirs.
            return _answer(is_local(packet.destination, kernel), f"a process of this node has {packet.destination}")
        case AddressType():
            return _address_type(match, packet, kernel)
        case Chance(numerator):
            share = Fraction(numerator, 0x80000000)
            return share, f"chance had it so (share {float(share):.4f})"
        case Recent():
            return _recent(match, packet, kernel)
        case OutInterface() | OtherMatch():
            return NO, f"`{match.text}` cannot be evaluated here; taken as not matching"


def _answer(found: bool, why: str) -> tuple[Fraction, str]:
    return (YES if found else NO), why


def _in_network(what: str, address: str, network: str, negated: bool) -> tuple[Fraction, str]:
    inside = network.partition("/")[0] == address or ip_address(address) in ip_network(network, strict=False)
    single = network.endswith(("/32", "/128"))
    if single:
        why = f"{what} is {address}" if inside else f"{what} {address} is not {network.partition('/')[0]}"
    else:
        why = f"{what} {address} is {'in' if inside else 'not in'} {network}"
    return _answer(inside is not negated, why)


def _interface(actual: str, wanted: str, negated: bool) -> tuple[Fraction, str]:
    found = actual.startswith(wanted[:-1]) if wanted.endswith("+") else actual == wanted
    found = found and bool(actual)
    return _answer(found is not negated, f"it came in by {actual}" if actual else "it came in by no (known) interface")


def _ports(match: Ports, packet: PacketNow) -> tuple[Fraction, str]:
    if match.protocol != packet.protocol:
        return NO, f"protocol is {packet.protocol}"
    for wanted, negated, port, what in (
        (match.destination, match.destination_negated, packet.port, "port"),
        (match.source, match.source_negated, packet.source_port, "source port"),
    ):
        if wanted and _in_range(port, wanted) is negated:
            return NO, f"{what} {port} is {'in' if negated else 'not'} {wanted}"
    return YES, f"port is {packet.port}" if match.destination else ""


def _in_range(port: int, wanted: str) -> bool:
    low, colon, high = wanted.partition(":")
    return int(low or 0) <= port <= int(high or 65535) if colon else port == int(wanted)


def _address_type(match: AddressType, packet: PacketNow, kernel: KernelView) -> tuple[Fraction, str]:
    reasons = []
    for wanted, address, what in (
        (match.source, packet.source, "source"),
        (match.destination, packet.destination, "destination"),
    ):
        if not wanted:
            continue
        if wanted != "LOCAL":
            return NO, f"address type {wanted} cannot be evaluated here; taken as not matching"
        local = is_local(address, kernel)
        reason = f"{what} {address} is {'an' if local else 'no'} address of this node"
        if not local:
            return NO, reason
        reasons.append(reason)
    return YES, "; ".join(reasons)


def is_local(address: str, kernel: KernelView) -> bool:
    """Whether the routing table `local` holds `address`: the node's own ones, and all of loopback."""
    return address in kernel.local_addresses or ip_address(address).is_loopback


def _recent(match: Recent, packet: PacketNow, kernel: KernelView) -> tuple[Fraction, str]:
    if match.seconds is None:
        return YES, f"{packet.source} is remembered for this endpoint"
    found = packet.source in kernel.remembered.get(match.name, frozenset())
    known = f"came here within {match.seconds} s" if found else "is not remembered for this endpoint"
    return _answer(found, f"{packet.source} {known}")
