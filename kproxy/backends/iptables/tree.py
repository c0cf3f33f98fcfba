"""Dispatch trees: how a packet finds its entry among ten thousand in a few steps. Pure.

In: the entries of one dispatch chain of nat, each with its number: a destination address, or a node port. Out: what stands in the
dispatch chain itself, and the branches below it. Up to `limit` entries they all stand in the chain, as kube-proxy writes them. Beyond that
the chain holds one jump for each part of the number space that is in use:

    KUBE-SERVICES            -d 10.96.8.0/21 -j KUBE-SVC-10.96.8.0/21
    KUBE-SVC-10.96.8.0/21    -d 10.96.9.0/24 -j KUBE-SVC-10.96.9.0/24
    KUBE-SVC-10.96.9.0/24    -d 10.96.9.96/27 -j KUBE-SVC-10.96.9.96/27
    KUBE-SVC-10.96.9.96/27   -d 10.96.9.99/32 -p tcp … --dport 80 -j KUBE-SVC-XPGD46QRK7WJZT7O       the entries, word for word as before

It is a radix tree of three bits a step, without chains that would hold a single jump. Its shape follows from the set of entries alone:
equal sets give equal trees, and one entry more or less changes one leaf, now and then its parent and the leaves beside it (more where
addresses were chosen to make it as deep as it may be). A branch is named by the part it covers, and covers *all* entries of that part. So a
branch of one tree may stand in another one: written from the leaves up, every chain can be replaced on its own, and no entry that is in
both trees is out of reach at any moment between.

Rules walked among 10,000 Services: 27 on average and 53 at most, where one chain has 5,000 and 10,000. What a client sees, in microseconds
for a TCP connection through the node (tests/bench/bench_iptables.py; 27 without any rule), with trees and with one line:

                                  legacy            nft
    the last Service              34 and 94         36 and 210
    no Service                    33 and 94         34 and 209
    the node's own port, while    21 and 175        21 and 323
    2,500 node ports are there

What must not happen here: knowing what an entry leads to.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Address, IPv6Network

from kproxy.backends.iptables import names
from kproxy.backends.iptables.matches import Destination, Jump, Ports, TransportProtocol
from kproxy.backends.iptables.rules import Rule, rule
from kproxy.backends.iptables.ruleset import Chain
from kproxy.model.names import Family, Protocol

_STRIDE = 3  # bits of one step: 8 jumps at most in a chain; 4 bits take fewer steps and, at 10,000 Services, six times as many chains
_IN_PARENT = 2  # so few entries stand in the parent rather than in a leaf of their own (http and https of one address)
# The kernel follows 16 jumps within jumps (NFT_JUMP_STACK_SIZE), and a Service takes 6 of them. Addresses chosen to make a deep tree
# (external IPs are for everybody to choose) end in one long leaf instead.
_DEEPEST = 8
_PROTOCOLS = tuple(Protocol)


@dataclass(frozen=True, slots=True)
class Space:
    """The numbers a tree is over. width: in bits. jump: start and prefix length of a part → its branch, and the rule leading there."""

    width: int
    jump: Callable[[int, int], tuple[str, Rule]]


@dataclass(frozen=True, slots=True)
class Tree:
    """root: what stands in the dispatch chain. branches: the chains below it, each after those that it jumps to."""

    root: Chain
    branches: Mapping[str, Chain]


@lru_cache(maxsize=1 << 14)
def _to_ipv4(start: int, length: int) -> tuple[str, Rule]:
    return _to_network(str(IPv4Network((start, length))))


@lru_cache(maxsize=1 << 14)
def _to_ipv6(start: int, length: int) -> tuple[str, Rule]:
    return _to_network(str(IPv6Network((start, length))))


def _to_network(network: str) -> tuple[str, Rule]:
    chain = names.network_chain(network)
    return chain, rule(Destination(network), Jump(chain))


@lru_cache(maxsize=1 << 12)
def _to_ports(start: int, length: int) -> tuple[str, Rule]:
    protocol, first = _PROTOCOLS[start >> 16].lower, start & 0xFFFF
    last = first + (1 << _NODE_PORTS_WIDTH - length) - 1
    chain = names.port_range_chain(protocol, first, last)
    ports = f"{first}:{last}" if first != last else str(first)
    return chain, rule(TransportProtocol(protocol), Ports(protocol, ports), Jump(chain))


_NODE_PORTS_WIDTH = 18  # two bits of protocol, so that no part holds two of them, and sixteen of port
ADDRESSES = {Family.IPV4: Space(32, _to_ipv4), Family.IPV6: Space(128, _to_ipv6)}
NODE_PORTS = Space(_NODE_PORTS_WIDTH, _to_ports)


def number_of_address(address: str) -> int:
    """The number of a canonical address. Four times as fast as ipaddress for IPv4."""
    if ":" in address:
        return int(IPv6Address(address))
    a, b, c, d = address.split(".")
    return int(a) << 24 | int(b) << 16 | int(c) << 8 | int(d)


def number_of_node_port(protocol: Protocol, port: int) -> int:
    """The number of a node port in the space NODE_PORTS."""
    return _PROTOCOLS.index(protocol) << 16 | port


def grow(entries: Sequence[tuple[int, Rule]], space: Space, limit: int) -> Tree:
    """The tree of `entries`, sorted by their numbers. limit: how many entries may stand in a leaf, or in the root without a tree."""
    grower = _Grower(space, limit, [number for number, _ in entries], [rule for _, rule in entries])
    root = tuple(grower.rules) if len(entries) <= limit else grower.fork(0, len(entries), 0)
    return Tree(root, grower.branches)


class _Grower:
    def __init__(self, space: Space, limit: int, numbers: list[int], rules: list[Rule]) -> None:
        self.space = space
        self.limit = limit
        self.numbers = numbers
        self.rules = rules
        self.branches: dict[str, Chain] = {}

    def _level(self, start: int, end: int) -> int:
        """How many leading bits, in whole steps, the entries from `start` to before `end` have in common."""
        shared = self.space.width - (self.numbers[start] ^ self.numbers[end - 1]).bit_length()
        return shared if shared == self.space.width else shared - shared % _STRIDE

    def _is_leaf(self, start: int, end: int, depth: int) -> bool:
        return end - start <= self.limit or self.numbers[start] == self.numbers[end - 1] or depth == _DEEPEST

    def fork(self, start: int, end: int, depth: int) -> Chain:
        """What the chain for these entries holds, when they are too many for a leaf."""
        # Of the parts, which begin at the same bits in all trees: so most parts stay what they are when the set changes.
        length = min(self._level(start, end) + _STRIDE, self.space.width)
        found: list[Rule] = []
        while start < end:
            following = bisect_left(self.numbers, self._beyond(start, length), start, end)
            found += self._part(start, following, length, depth + 1)
            start = following
        return tuple(found)

    def _beyond(self, start: int, length: int) -> int:
        """The first number behind the part that an entry lies in."""
        free = self.space.width - length
        return ((self.numbers[start] >> free) + 1) << free

    def _part(self, start: int, end: int, length: int, depth: int) -> Sequence[Rule]:
        """What leads to all entries of one part: a jump to their branch, or themselves when they are few."""
        if end - start <= min(_IN_PARENT, self.limit):
            return self.rules[start:end]
        is_leaf = self._is_leaf(start, end, depth)
        if not is_leaf:
            length = self._level(start, end)  # a chain with a single jump in it is left out
        free = self.space.width - length
        chain, jump = self.space.jump(self.numbers[start] >> free << free, length)
        if chain in self.branches:  # two networks with one hash
            return self.rules[start:end]
        self.branches[chain] = tuple(self.rules[start:end]) if is_leaf else self.fork(start, end, depth)
        return (jump,)
