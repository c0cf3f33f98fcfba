"""Who asks: a table by source address, made from the networks that are served and the pods of this node.

In: networks as text, `PodView`s, and the networks that a Corefile's directives tell apart (`acl`, `transfer`). Out: one `Client` for each
source address, the same object every time. What must not happen here: looking at a query, or growing with the number of addresses that a
forger can write into a packet (the table is emptied when it is full; filling it again costs each address a few microseconds).

Replies that do not depend on who asks are cached for everybody. Those that do are cached by the client's `view`: clients of one view have
the same search list and lie in the same of those networks, so that equal queries of theirs have equal replies.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass

from kproxy.dns import names

CAPACITY = 65536  # addresses remembered: twenty megabytes at most
VIEWS = (
    4096  # different search lists and places; clients beyond them are answered without cache where it depends on them
)
UNCACHED = -1

# Nobody outside of an organisation has these as a source: RFC 1918, RFC 6598 (pods of several clouds), RFC 4193, RFC 3927, RFC 4291.
PRIVATE = (
    "127.0.0.0/8", "::1/128", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "169.254.0.0/16", "fc00::/7", "fe80::/10",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class PodView:
    """One pod of this node, as its queries are seen: where from, whose, and the search list in its resolv.conf.

    address: canonical text. name: `namespace/name`. searches: wire form, lower case, in order; empty when unknown or none. ndots: from so
    many dots on it asks a name as it stands first. host_network: its queries come from the node's address, as those of every other
    process there do.
    """

    address: str
    name: str
    searches: tuple[bytes, ...] = ()
    ndots: int = 5
    host_network: bool = False


@dataclass(frozen=True, slots=True)
class SearchList:
    """A search list in wire form, lower case. The first suffix, its head, is what the first query of a walk is recognised by.

    ndots: names with so many dots were asked as they stand before the list.
    """

    suffixes: tuple[bytes, ...]
    ndots: int = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Client:
    """Whoever sent a query. name: of the pod, "" when it is none of this node's. view: see the module's text; UNCACHED for none.

    lists: the search lists in use at this address; several only where pods share the node's. heads: the first suffixes of everybody's
    lists: a reply to a name below one of them may be another for another client.
    """

    address: str
    packed: bytes = b""
    allowed: bool = True
    view: int = 0
    lists: tuple[SearchList, ...] = ()
    heads: frozenset[bytes] = frozenset()
    name: str = ""


_LOOPBACK = ("127.0.0.0/8", "::1/128")
ANYBODY = Client(address="")  # an allowed client about whom nothing is known


class Networks:
    """A set of networks of both families. `packed in networks` costs one look-up for each different prefix length."""

    def __init__(self, texts: Iterable[str]) -> None:
        """texts: addresses or networks; host bits are ignored. Raises ValueError naming one that is neither."""
        self._by_length: dict[tuple[int, int], set[int]] = {}
        for text in texts:
            network = ipaddress.ip_network(text, strict=False)
            size = network.max_prefixlen // 8
            shift = network.max_prefixlen - network.prefixlen
            self._by_length.setdefault((size, shift), set()).add(int(network.network_address) >> shift)

    def __contains__(self, packed: bytes) -> bool:
        number = int.from_bytes(packed, "big")
        by_length = self._by_length.items()
        return any(size == len(packed) and number >> shift in found for (size, shift), found in by_length)

    def __bool__(self) -> bool:
        return bool(self._by_length)


class Clients:
    """The table. `known` holds the allowed ones and may be read directly: who is missing there is asked of `find`.

    seen: the same by their addresses as the kernel writes them into memory, for the hot loop, which makes no text of them.
    """

    def __init__(
        self,
        allowed: Iterable[str] = (),
        pods: Iterable[PodView] = (),
        places: Sequence[Iterable[str]] = (),
        *,
        capacity: int = CAPACITY,
    ) -> None:
        """allowed: networks that are served; none at all: everybody. places: sets of networks that directives tell apart.

        Raises ValueError for a text that is no network.
        """
        self.known: dict[str, Client] = {}
        self.seen: dict[Hashable, Client] = {}
        self._strangers: dict[str, Client] = {}
        self._allowed = Networks(allowed)
        self._places = tuple(map(Networks, places))
        self._capacity = capacity
        self._views: dict[tuple[tuple[SearchList, ...], int], int] = {((), 0): 0}
        self._pods: dict[str, PodView] = {}
        self._lists: dict[str, tuple[SearchList, ...]] = {}
        for pod in pods:
            if not pod.host_network:
                # Two pods with one address: one is on its way out. Their lists are told apart by how they begin, as on the node's address.
                self._pods[pod.address] = pod
            if pod.searches:
                self._lists[pod.address] = self._joined(pod)
        self.heads = frozenset(one.suffixes[0] for lists in self._lists.values() for one in lists)

    def find(self, address: str) -> Client:
        """The client at a source address in the kernel's spelling; never raises."""
        client = self.known.get(address) or self._strangers.get(address)
        if client is None:
            client = self._make(address)
            table = self.known if client.allowed else self._strangers
            if len(table) >= self._capacity:
                table.clear()
            table[address] = client
        return client

    def see(self, sender: Hashable, address: str) -> None:
        """Whoever sends from `address`, if allowed, is known by `sender` from now on."""
        client = self.find(address)
        if client.allowed:
            if len(self.seen) >= self._capacity:
                self.seen.clear()
            self.seen[sender] = client

    def _joined(self, pod: PodView) -> tuple[SearchList, ...]:
        """The lists at a pod's address with its own. Of two that begin alike and go on differently neither can be told from the other."""
        mine = SearchList(pod.searches, pod.ndots)
        others = self._lists.get(pod.address, ())
        alike = any(other.suffixes[0] == pod.searches[0] and other != mine for other in others)
        kept = tuple(other for other in others if other.suffixes[0] != pod.searches[0])
        return kept if alike else (*kept, mine)

    def _make(self, address: str) -> Client:
        try:
            packed = names.pack(address.partition("%")[0])
        except ValueError:
            return Client(address=address, allowed=False, view=UNCACHED)
        pod = self._pods.get(address)
        lists = self._lists.get(address, ())
        bits = sum(1 << index for index, networks in enumerate(self._places) if packed in networks)
        return Client(
            address=address,
            packed=packed,
            # A pod of this node is a client of the cluster, whatever range its address is from.
            allowed=pod is not None or not self._allowed or packed in self._allowed,
            view=self._view((lists, bits)),
            lists=lists,
            heads=self.heads,
            name=pod.name if pod is not None else "",
        )

    def _view(self, kind: tuple[tuple[SearchList, ...], int]) -> int:
        view = self._views.get(kind)
        if view is None:
            if len(self._views) >= VIEWS:
                return UNCACHED
            view = self._views[kind] = len(self._views)
        return view


def served_networks(configured: Iterable[str], own: Iterable[str], known: Iterable[str]) -> tuple[str, ...]:
    """Who is served: what was configured; else every private range and what is known of the cluster besides. This node in any case.

    own: this node's addresses. known: ranges of pods and Services, networks of this node's links.

    Ranges of pods that the API tells (`spec.podCIDRs`) are not the truth with every network plug-in: Calico and Cilium hand out
    addresses of their own pools, and other nodes are not watched. A pod that is refused has no names at all, while a stranger with a
    private address is at worst somebody of the same organisation. So strictness is for whoever writes the networks down.
    """
    written = tuple(configured)
    return tuple(dict.fromkeys((*_LOOPBACK, *own, *(written or (*PRIVATE, *known)))))
