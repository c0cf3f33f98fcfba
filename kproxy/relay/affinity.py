"""Which endpoint a client address belongs to, where a Service has affinity. Pure: the moment is an argument.

The first choice is a rendezvous hash of client and endpoint, so all workers of all nodes agree without a word, and when an endpoint goes
only its own clients move (Thaler and Ravishankar, "Using name-based mappings to increase hit rates", 1998). The choice is then remembered
until `affinity_s` after the last new connection: an endpoint that is added takes no client away. What is remembered is told to the other
workers (`news` → `learn`) and outlives them in the controller.

Moments are seconds of CLOCK_MONOTONIC, which all processes of a machine share. Tables are bounded (`MOST` clients); when they are full, the
client unseen for longest leaves: of its own group if that has its fair part, so that a flood to one Service costs the others nothing.
Who is forgotten gets the hash's answer again.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import islice
from typing import NamedTuple

from kproxy.relay.targets import End, Target

Group = tuple[str, str, str]  # family, protocol, name: `Target.group`
MOST = 100_000
MAX_AFFINITY_S = 86_400  # the longest that the API allows
_MANY = 16  # endpoints, above which membership is looked up in a set
_FUTURE_S = 1.0  # clocks of processes are one clock; what is further ahead was made up or is from before a reboot


class Remembered(NamedTuple):
    """A client's endpoint, as told between processes. last: its last new connection, seconds of CLOCK_MONOTONIC; it holds `timeout_s`."""

    family: str
    protocol: str
    name: str
    client: str
    address: str
    port: int
    last: float
    timeout_s: int


@dataclass(slots=True)
class _Client:
    end: End
    last: float
    told: float = float("-inf")  # which `last` the others know


@dataclass(slots=True)
class _Group:
    clients: OrderedDict[str, _Client] = field(default_factory=OrderedDict)  # the one unseen for longest in front
    timeout_s: int = 0


def ranked(client: str, endpoints: Iterable[End]) -> list[End]:
    """The endpoints in the order in which this client prefers them: the same everywhere, and for two clients independent."""
    return sorted(endpoints, key=lambda end: score(client, end), reverse=True)


def score(client: str, end: End) -> bytes:
    """How much a client prefers an endpoint; 0.9 µs."""
    return blake2b(f"{client} {end[0]} {end[1]}".encode(), digest_size=8).digest()


class Affinity:
    """What is remembered. most: clients of all groups together."""

    def __init__(self, most: int = MOST) -> None:
        self._most = most
        self._count = 0
        self._groups: dict[Group, _Group] = {}
        self._news: dict[tuple[Group, str], None] = {}
        self._members: dict[int, tuple[tuple[End, ...], frozenset[End]]] = {}

    def __len__(self) -> int:
        return self._count

    def had(self, target: Target, client: str, now: float) -> End | None:
        """The endpoint it belongs to, if that time is not over and the endpoint still takes new connections."""
        group = self._groups.get(target.group)
        if group is None:
            return None
        group.timeout_s = target.affinity_s
        found = group.clients.get(client)
        if found is None or now - found.last >= target.affinity_s or not self._has(target, found.end):
            return None
        return found.end

    def took(self, target: Target, client: str, end: End, now: float) -> None:
        """It has a new connection with `end`."""
        key = target.group
        group = self._groups.setdefault(key, _Group())
        group.timeout_s = target.affinity_s
        found = self._put(group, client, end, now)
        if found.told < now - max(1.0, target.affinity_s / 100):
            self._news[key, client] = None

    def _put(self, group: _Group, client: str, end: End, last: float) -> _Client:
        found = group.clients.get(client)
        if found is None:
            if self._count >= self._most:
                self._make_room(group)
            found = group.clients[client] = _Client(end, last)
            self._count += 1
            return found
        if found.end != end:
            found.end, found.told = end, float("-inf")
        found.last = last
        group.clients.move_to_end(client)
        return found

    def _make_room(self, group: _Group) -> None:
        """One client leaves: of this group, or of the largest if this one has less than its part."""
        if len(group.clients) * len(self._groups) < self._most:
            group = max(self._groups.values(), key=lambda one: len(one.clients))
        group.clients.popitem(last=False)
        self._count -= 1

    def news(self, limit: int = 5_000) -> list[Remembered]:
        """What others should know and were not told; at most `limit` at a time, the rest next time.

        A client that comes again and again is told of again once its last connection is 1 s (or a hundredth of the Service's time, if
        that is longer) younger than what was told: by that much its time may be over too early with other workers.
        """
        told: list[Remembered] = []
        for key, client in [*islice(self._news, limit)]:
            del self._news[key, client]
            group = self._groups.get(key)
            found = group.clients.get(client) if group is not None else None
            if group is not None and found is not None:
                found.told = found.last
                told.append(Remembered(*key, client, *found.end, found.last, group.timeout_s))
        return told

    def learn(self, entries: Iterable[Remembered], now: float) -> None:
        """What others told. The later connection of a client counts; of two at the same moment the one whose endpoint sorts first."""
        for entry in entries:
            last = entry.last if entry.last <= now + _FUTURE_S else now
            end = (entry.address, entry.port)
            group = self._groups.setdefault(
                (entry.family, entry.protocol, entry.name), _Group(timeout_s=entry.timeout_s)
            )
            found = group.clients.get(entry.client)
            if found is None or last > found.last or (last == found.last and end < found.end):
                self._put(group, entry.client, end, last).told = last

    def everything(self) -> Iterator[Remembered]:
        """All that is remembered, for who comes anew."""
        for key, group in self._groups.items():
            for client, found in group.clients.items():
                yield Remembered(*key, client, *found.end, found.last, group.timeout_s)

    def sweep(self, now: float) -> None:
        """Forgets clients whose time is over; call it every few seconds. Those learnt out of order leave when they come to the front."""
        for key, group in [*self._groups.items()]:
            while group.clients:
                client, found = next(iter(group.clients.items()))
                if now - found.last < group.timeout_s:
                    break
                del group.clients[client]
                self._count -= 1
            if not group.clients:
                del self._groups[key]

    def use(self) -> None:
        """The table is another: which endpoints a Target has is looked at again."""
        self._members.clear()

    def _has(self, target: Target, end: End) -> bool:
        endpoints = target.endpoints
        if len(endpoints) <= _MANY:
            return end in endpoints
        known = self._members.get(id(endpoints))
        if known is None or known[0] is not endpoints:
            known = self._members[id(endpoints)] = endpoints, frozenset(endpoints)
        return end in known[1]
