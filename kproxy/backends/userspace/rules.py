"""The constant rules: the same few dozen lines, whatever the number of Services. Pure; text for `nft`.

A packet's way in (sets and maps in names.py):

    prerouting  raw -300   port 53 of an address of this node's own DNS, and somebody listens ─▶ not ours, not tracked
    prerouting  mangle -150 TCP that is known to have a socket of a relay worker, by its conntrack mark ─▶ mark, in
                           has such a socket? ─▶ conntrack mark (TCP), mark, in: also when its Service is long gone
                           TCP's first packet, or UDP: address . protocol . port in DESTINATIONS,
                           or protocol . port in NODE_PORTS and the address this node's ─▶ way ─▶ TPROXY to a listener, mark, in
                           other TCP that is no flow of DNAT rules (a mode before this one), the same two: SYN cookies, and strays,
                           which the listener answers with a reset
    output      raw -300   what the workers send gets the mark
    output      mangle -150 this node's own packets to RELAYED get a mark of their own, hence another route: through lo, to prerouting;
                           REFUSALS
    prerouting, output  nat -101: first packets of what is taken in keep their destination, whatever other rules of DNAT say
    input, forward  filter 0: REFUSALS, REFUSED_NODE_PORTS

    marked packets: routing.py

Why each is as it is:
- Rules are few where packets are many: each chain costs every packet of the node 50 to 100 ns, whatever is in it, and what is relayed
  passes four, five where we serve DNS; it was six. A round trip of a relayed connection (a packet in, a packet out) costs 0.45 us less, of
  2.0 that rules and conntrack add to it; conntrack's own share is 1.2 (kernel 6.18).
- A relayed TCP connection has the lower of the two bits in its conntrack mark, and not the upper one, from the first packet for which a
  socket was found: 0.25 of those 0.45 us. It only spares the question: where something else writes conntrack marks, sockets are asked.
  UDP is always asked for: a session ends without a word, and its next datagram has to find a listener. A client's own first packet does
  not set it: behind a SYN cookie the next one has no socket, and is the listener's. What a worker opens has it from the first packet.
- A chain that hangs somewhere and would be empty is not there (`shape`): 50 ns of every packet that arrives on a node without our DNS.
- Sockets, and with them TPROXY, are asked for behind conntrack (-200), which `notrack` does not allow: there it is done at -300.
- TCP's first packets are not asked for: what they have would not count (TIME_WAIT, below), and mostly they have none, which takes longest.
- `socket` is asked twice for what is relayed and once for all else: `socket transparent 1` also finds wildcard sockets of other
  transparent proxies, whose port any forwarded packet may have, and `socket wildcard 0` in the same rule would leave out the last packet
  of each handshake: the socket of a connection request has no such property (nft_socket.c, `sk_fullsock`).
- A first packet goes to a listener also when it has a socket: one in TIME_WAIT, which nobody but `tproxy` lets go for a new connection of
  the same client port. The kernel itself finds no listener at the Service's address, answers as to a stray, and the client tries again
  after a second: one client's 8,700 connections a second were 4,100 once it had used all its ports.
- The way to a listener ends in `drop`: without a listener `tproxy` matches nothing, and a dropped SYN is sent again a second later. A
  refused one is not.
- Whatever the workers send is marked as it leaves their sockets, all of which are transparent, and never taken in again: an endpoint that
  is an address of a Service would otherwise make of each connection another, without an end. (A packet with this mark that starts here is
  routed as without, see routing.py.)
- This node's own TCP connections bear a conntrack mark, so that they are still led to lo when the element is gone. In an output hook no
  rule can ask for the socket at the far end. So do the workers' own to an endpoint that is a process of this node: where those bear the
  client's address, the answers would leave for the client.
- An output hook cannot use the maps of prerouting: `tproxy` is not allowed there, and a map is checked with all that it may lead to.
- `notrack` spares conntrack what comes from other machines and pods (setting `notrack`). What this node itself sends is always tracked.
- `dnat to` a packet's own destination changes nothing, and settles the matter: chains behind it (mode iptables before it is cleared away, a
  network plug-in's host ports) are not asked.
- Open TCP connections are not refused, as kube-proxy's rules refuse only first packets; what conntrack does not see is asked always,
  unless a worker sends it.
- A health check node port is a process of this node; its packets, the first ones in `arrivals` and the others in `strays`, get the mark
  all the same. kube-proxy's iptables mode lets them in past a closed INPUT, and no rule of nftables can overrule the drop of another table:
  here they need the one rule more that all that is relayed needs there.
- A marked packet that is forwarded has lost its policy route: it is dropped, as if nobody listened.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from kproxy.backends.userspace import names
from kproxy.backends.userspace.ruleset import Frame
from kproxy.backends.userspace.settings import own_mark
from kproxy.model.desired import LocalDetector
from kproxy.model.names import Family

_NEW_ARRIVALS, _KNOWN, _STRAYS, _OWN_DNS = "arrivals", "known", "strays", "own-dns"
_OF_RELAY, _TO_RELAY = "of-relay", "to-relay"
_TRANSPORT = "meta l4proto { tcp, udp }"
_FIRST, _NOT_FIRST = (f"tcp flags & (fin | syn | rst | ack) {how} syn" for how in ("==", "!="))
_OPEN = "meta l4proto tcp ct state established accept"
_NOT_NEW = "ct state established,related,invalid accept"
_LOOPBACK = {Family.IPV4: "127.0.0.0/8", Family.IPV6: "::1"}
_LISTENS_ON = {Family.IPV4: "127.0.0.1", Family.IPV6: "[::1]"}
_REFUSE = {Family.IPV4: "icmp type port-unreachable", Family.IPV6: "icmpv6 type port-unreachable"}


@dataclass(frozen=True, slots=True)
class Hook:
    """Where a base chain hangs."""

    type: str
    hook: str
    priority: int


# Base chains, in the order in which they are made.
HOOKS = {
    "prerouting-raw": Hook("filter", "prerouting", -300),
    "prerouting": Hook("filter", "prerouting", -150),
    "output-raw": Hook("filter", "output", -300),
    "output": Hook("route", "output", -150),
    "nat-prerouting": Hook("nat", "prerouting", -101),
    "nat-output": Hook("nat", "output", -101),
    "filter-input": Hook("filter", "input", 0),
    "filter-forward": Hook("filter", "forward", 0),
}
_CHAINS = (
    names.INSIDE,
    names.OUTSIDE,
    names.BY_SOURCE,
    names.INSIDE_ONLY,
    names.GUARDED,
    names.GUARDED_INSIDE_ONLY,
    names.NODE_PORT_BY_SOURCE,
    names.NODE_PORT_INSIDE_ONLY,
    names.HEALTH_CHECK,
    names.REFUSE,
    names.NODE_PORT_REFUSE,
    names.NODE_PORT_DROP,
    _NEW_ARRIVALS,
    _KNOWN,
    _STRAYS,
    _OWN_DNS,
    _OF_RELAY,
    _TO_RELAY,
)
CHAINS: dict[str, Hook | None] = {**dict.fromkeys(_CHAINS), **HOOKS}


@dataclass(frozen=True, slots=True)
class SetKind:
    """What a set or map holds: the types of its key's parts, whether keys are ranges, whether verdicts stand behind them."""

    key: tuple[str, ...]
    interval: bool = False
    verdicts: bool = False


def set_kinds(family: Family) -> dict[str, SetKind]:
    """Every set and map of the table."""
    address = "ipv4_addr" if family is Family.IPV4 else "ipv6_addr"
    virtual, node = (address, "inet_proto", "inet_service"), ("inet_proto", "inet_service")
    return {
        names.DESTINATIONS: SetKind(virtual, verdicts=True),
        names.NODE_PORTS: SetKind(node, verdicts=True),
        names.RELAYED: SetKind(virtual),
        names.SOURCES: SetKind((*virtual, address), interval=True),
        names.REFUSALS: SetKind(virtual, verdicts=True),
        names.REFUSED_NODE_PORTS: SetKind(node, verdicts=True),
    }


def frame_text(frame: Frame) -> str:
    """One transaction that brings a table of the same shape, or none, to these rules. Elements stay."""
    place = f"{names.NFT_FAMILY[frame.family]} {names.TABLE}"
    lines = [f"add table {place}"]
    for name, kind in set_kinds(frame.family).items():
        word, value = ("map", " : verdict") if kind.verdicts else ("set", "")
        flags = " flags interval ;" if kind.interval else ""
        lines.append(f"add {word} {place} {name} {{ type {' . '.join(kind.key)}{value} ;{flags} }}")
    for name, hook in CHAINS.items():
        spec = f" {{ type {hook.type} hook {hook.hook} priority {hook.priority} ; policy accept ; }}" if hook else ""
        lines.append(f"add chain {place} {name}{spec}")
    wanted = shape(frame)
    for name, rules in chains(frame).items():
        lines.append(f"flush chain {place} {name}")
        lines += [f"add rule {place} {name} {rule}" for rule in rules]
        if name not in wanted:
            lines.append(f"delete chain {place} {name}")
    return "\n".join(lines) + "\n"


def shape(frame: Frame) -> dict[str, Hook | None]:
    """The chains that are in the kernel afterwards. One that hangs somewhere costs every packet there, whatever is in it."""
    rules = chains(frame)
    return {name: hook for name, hook in CHAINS.items() if hook is None or rules[name]}


def chains(frame: Frame) -> dict[str, tuple[str, ...]]:
    """Chain → rules, every chain of CHAINS."""
    ip, mark, own = names.NFT_FAMILY[frame.family], _Mark(frame.mark), _Mark(own_mark(frame.mark))
    to = f"{ip} daddr . meta l4proto . th dport"
    refused = f"{to} vmap @{names.REFUSALS}"
    found = {
        names.INSIDE: tuple(_listener(frame, frame.ports[0])),
        names.OUTSIDE: tuple(_listener(frame, frame.ports[1])),
        names.BY_SOURCE: (*_from_inside(frame), f"goto {names.OUTSIDE}"),
        names.INSIDE_ONLY: tuple(_from_inside(frame)),
        names.GUARDED: (f"{to} . {ip} saddr @{names.SOURCES} goto {names.BY_SOURCE}", "drop"),
        names.GUARDED_INSIDE_ONLY: (f"{to} . {ip} saddr @{names.SOURCES} goto {names.INSIDE_ONLY}", "drop"),
        names.NODE_PORT_BY_SOURCE: tuple(_on_node(frame, f"goto {names.BY_SOURCE}")),
        names.NODE_PORT_INSIDE_ONLY: tuple(_on_node(frame, f"goto {names.INSIDE_ONLY}")),
        names.HEALTH_CHECK: (f"fib daddr type local {mark.set} accept",),
        names.REFUSE: (f"reject with {_REFUSE[frame.family]}",),
        names.NODE_PORT_REFUSE: tuple(_on_node(frame, f"goto {names.REFUSE}")),
        names.NODE_PORT_DROP: tuple(_on_node(frame, "drop")),
        **_prerouting(frame),
        _KNOWN: (
            f"socket wildcard 1 goto {_NEW_ARRIVALS}",
            *_untracked(frame),
            *_remembered(frame),
            f"{mark.set} accept",
        ),
        _NEW_ARRIVALS: (
            f"{mark.is_set} accept",
            *_dns(frame, "daddr", "dport", f"jump {_OWN_DNS}"),
            f"{_NOT_FIRST} {'accept' if frame.notrack else f'goto {_STRAYS}'}",
            f"{to} vmap @{names.DESTINATIONS}",
            f"meta l4proto . th dport vmap @{names.NODE_PORTS}",
        ),
        _STRAYS: (
            "ct state untracked accept",
            "ct status dnat accept",
            f"{to} vmap @{names.DESTINATIONS}",
            f"meta l4proto . th dport vmap @{names.NODE_PORTS}",
        ),
        # As the DNS workers' sockets are: bound to this very address. Nobody there: the query is relayed to another node's server.
        _OWN_DNS: ("socket wildcard 1 return", "socket transparent 0 notrack accept"),
        "output-raw": (
            *((f'oif != "lo" socket transparent 1 {mark.set} notrack accept',) if frame.notrack else ()),
            f"socket transparent 1 {mark.set}",
            *_dns(frame, "daddr", "dport", "notrack"),
            *_dns(frame, "saddr", "sport", "notrack"),
        ),
        **_output(frame),
        "nat-prerouting": (f"{mark.is_set} dnat to {ip} daddr",),
        "nat-output": (f"{own.is_set} dnat to {ip} daddr",),
        "filter-input": (
            f"{mark.is_set} accept",
            _OPEN,
            refused,
            f"meta l4proto . th dport vmap @{names.REFUSED_NODE_PORTS}",
        ),
        "filter-forward": (f"{mark.is_set} drop", _OPEN, refused),
    }
    return {name: found[name] for name in CHAINS}


class _Mark:
    """What rules say about the mark."""

    def __init__(self, mark: int) -> None:
        self.number = f"0x{mark:x}"
        self.set = f"meta mark set meta mark | {self.number}"
        self.is_set = f"meta mark & {self.number} == {self.number}"


def _prerouting(frame: Frame) -> dict[str, tuple[str, ...]]:
    """The two base chains. With `notrack` the first one decides, for it is conntrack's last chance to be spared; else the second."""
    arrive, mark = f"goto {_NEW_ARRIVALS}", _Mark(frame.mark)
    asked = f"{_FIRST} {arrive}", f"socket transparent 1 goto {_KNOWN}", arrive
    if frame.notrack:
        return {
            "prerouting-raw": asked,
            "prerouting": (f"{mark.is_set} accept", "meta l4proto != tcp accept", f"goto {_STRAYS}"),
        }
    return {
        "prerouting-raw": tuple(_dns(frame, "daddr", "dport", f"jump {_OWN_DNS}")),
        "prerouting": (f"{_flow(frame, own_mark(frame.mark))} {_NOT_FIRST} {mark.set} accept", *asked),
    }


def _output(frame: Frame) -> dict[str, tuple[str, ...]]:
    """What this node's own packets pass behind conntrack, the workers' among them."""
    mark, own = _Mark(frame.mark), _Mark(own_mark(frame.mark))
    to = f"{names.NFT_FAMILY[frame.family]} daddr . meta l4proto . th dport"
    refused = f"{to} vmap @{names.REFUSALS}"
    return {
        "output": (
            f"socket transparent 1 goto {_OF_RELAY}",
            f"ct direction reply ct mark & {mark.number} == {mark.number} {own.set} accept",
            "ct status dnat accept",
            f"ct direction original ct mark & {mark.number} == {mark.number} {own.set} accept",
            f"{to} @{names.RELAYED} goto {_TO_RELAY}",
            _OPEN,
            refused,
        ),
        # To an endpoint that is a process of this node, with a client's address: its answers are led back in.
        _OF_RELAY: (
            _NOT_NEW,
            *((f"{_NOT_FIRST} accept",) if frame.notrack else ()),
            f"fib daddr type local ct mark set ct mark | {mark.number}",
            *_remembered(frame),
            refused,
        ),
        _TO_RELAY: (f"meta l4proto tcp ct mark set ct mark | {mark.number}", f"{own.set} accept"),
    }


def _remembered(frame: Frame) -> Iterator[str]:
    """The connection's mark says from now on that it has a socket of a worker."""
    if not frame.notrack:
        yield f"meta l4proto tcp {_flow(frame, 0)} ct mark set ct mark | 0x{own_mark(frame.mark):x}"


def _flow(frame: Frame, value: int) -> str:
    """Both bits of the connection's mark."""
    return f"ct mark & 0x{frame.mark | own_mark(frame.mark):x} == 0x{value:x}"


def _listener(frame: Frame, port: int) -> Iterator[str]:
    yield from _untracked(frame)
    to = f"{_LISTENS_ON[frame.family]}:{port}"
    yield f"{_TRANSPORT} tproxy to {to} {_Mark(frame.mark).set} accept"
    yield "drop"  # nobody listens at present


def _untracked(frame: Frame) -> Iterator[str]:
    if frame.notrack:
        yield 'iif != "lo" notrack'


def _from_inside(frame: Frame) -> Iterator[str]:
    if frame.detector is not None:
        yield f"{_detects(frame.detector, frame.family)} goto {names.INSIDE}"
    yield f"fib saddr type local goto {names.INSIDE}"


def _detects(detector: LocalDetector, family: Family) -> str:
    if detector.source:
        return f"{names.NFT_FAMILY[family]} saddr {detector.source}"
    return f'iifname "{detector.interface or detector.interface_prefix + "*"}"'


def _on_node(frame: Frame, then: str) -> Iterator[str]:
    """`then`, for packets to addresses where node ports answer; loopback is one where rules or a listener of ours serve it."""
    addresses, to = frame.node_ports, f"{names.NFT_FAMILY[frame.family]} daddr"
    on_loopback = addresses.loopback or addresses.listener
    if addresses.everywhere:
        if not on_loopback:
            yield f"{to} {_LOOPBACK[frame.family]} return"
        yield f"fib daddr type local {then}"
        return
    chosen = [*addresses.addresses]
    if on_loopback:
        yield f"{to} {_LOOPBACK[frame.family]} {then}"
    if chosen:
        yield f"{to} {{ {', '.join(chosen)} }} {then}"


def _dns(frame: Frame, address: str, port: str, then: str) -> Iterator[str]:
    if frame.dns:
        ip = names.NFT_FAMILY[frame.family]
        yield f"{_TRANSPORT} {ip} {address} {{ {', '.join(frame.dns)} }} th {port} 53 {then}"
