"""Which endpoint a new connection goes to, and which one after that if it cannot be reached. Pure: chance and the moment are arguments.

In: a Target and a client's address. Out: its endpoints in the order in which to try them, made as they are asked for: nearly always the
first one serves. With affinity the client's own (`affinity`); else

    RandomTwoChoices   of two taken by chance the one with fewer open connections (Mitzenmacher 2001): no herd, and 1.1 µs at any size
    RoundRobin         one after the other, each worker from a place of its own
    LeastConnections   the one with the fewest, of equals one by chance; of more than `_LOOKED_AT` a part is looked at

Endpoints that are ejected come last; if all are, none counts as ejected. One that is due for its probe comes first, once. Connections are
counted by endpoint, whatever Service they came by: it is the same server. What must not happen here: anything that is slow with
many Targets; one connection costs one call of `order`, `began`, `worked` and `ended` each.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import NamedTuple

from kproxy.relay.affinity import Affinity, Remembered, ranked, score
from kproxy.relay.ejection import Ejections
from kproxy.relay.targets import LEAST_CONNECTIONS, ROUND_ROBIN, End, Table, Target

_LOOKED_AT = 256
_PROTOCOLS = ("TCP", "UDP")


class Ejected(NamedTuple):
    """An endpoint that a worker leaves out at present. wait_s: until it is probed; times: how often it was put out of late."""

    protocol: str
    address: str
    port: int
    times: int
    wait_s: float


class Chooser:
    """The choices of one worker. random: a number from 0 up to and without 1."""

    def __init__(self, random: Callable[[], float]) -> None:
        self.affinity = Affinity()
        self._random = random
        self._open: dict[str, dict[End, int]] = {protocol: {} for protocol in _PROTOCOLS}
        self._ejections = {protocol: Ejections() for protocol in _PROTOCOLS}
        self._turns: dict[int, tuple[Target, list[int]]] = {}  # by identity of the Target, which is kept alive by this
        self._table = Table()
        self._swept: Table | None = None

    def use(self, table: Table) -> None:
        """What counts from now on. What is known of endpoints stays known."""
        self._table = table
        self.affinity.use()
        if self._turns:
            alive = {id(target) for target in table.targets.values()}
            self._turns = {key: turn for key, turn in self._turns.items() if key in alive}

    def order(self, target: Target, client: str, now: float) -> Iterator[End]:
        """The endpoints, each once, the one to try first in front. client: its address, canonical."""
        first = self.first(target)
        if first is not None:
            yield first
            yield from self.after(target, first)
        elif target.affinity_s:
            out = self._ejections[target.protocol].out
            yield from self._by_affinity(target, client, now, not out or out.keys().isdisjoint(target.endpoints))
        else:
            yield from self._around(target, now)

    def first(self, target: Target) -> End | None:
        """The endpoint in front, where neither the client nor anybody's failure decides; else None, and `order` tells. Nearly every
        connection is over with this one, so it is had without a generator's price.
        """
        endpoints = target.endpoints
        if len(endpoints) == 1:
            return endpoints[0]
        out = self._ejections[target.protocol].out
        if target.affinity_s or (out and not out.keys().isdisjoint(endpoints)):
            return None
        return self._pick(target, endpoints)

    def after(self, target: Target, first: End) -> Iterator[End]:
        """Those that come after what `first` has told."""
        return self._further(target, [end for end in target.endpoints if end != first])

    def ahead(self, target: Target, client: str, now: float, count: int) -> list[End]:
        """The endpoints of the next so many connections of a client, as far as it is known now: as if all of them were opened at once and
        stayed. Nobody is probed by them. Empty where every endpoint is ejected.
        """
        out = self._ejections[target.protocol].out
        well = [end for end in target.endpoints if end not in out] if out else target.endpoints
        if not well:
            return []
        if target.affinity_s:
            had = self.affinity.had(target, client, now)
            first = had if had is not None else max(target.endpoints, key=lambda end: score(client, end))
            return [first] * count if first in well else []
        picked: list[End] = []
        for _ in range(count):
            end = self._pick(target, well) if len(well) > 1 else well[0]
            self.began(target, end)
            picked.append(end)
        for end in picked:
            self.ended(target, end)
        return picked

    def _around(self, target: Target, now: float) -> Iterator[End]:
        """While some are ejected: a probe if one is due, those that are well, and the others after all."""
        ejections = self._ejections[target.protocol]
        well = [end for end in target.endpoints if end not in ejections.out]
        if not well:
            yield from self._further(target, target.endpoints)
            return
        ill = sorted((end for end in target.endpoints if end in ejections.out), key=ejections.until)
        for end in ill:
            if ejections.due(end, now):
                ejections.probe(end, now)
                ill.remove(end)
                yield end
                break
        yield from self._further(target, well)
        yield from ill

    def _further(self, target: Target, endpoints: Sequence[End]) -> Iterator[End]:
        left = [*endpoints]
        while left:
            end = self._pick(target, left) if len(left) > 1 else left[0]
            left.remove(end)
            yield end

    def _pick(self, target: Target, among: Sequence[End]) -> End:
        """One of two or more."""
        random, opened, balancing = self._random, self._open[target.protocol], target.balancing
        size = len(among)
        if balancing == LEAST_CONNECTIONS:
            return self._least(among, opened)
        if balancing == ROUND_ROBIN:
            return among[self._turn(target) % size]
        first = int(random() * size)
        second = int(random() * (size - 1))
        one, other = among[first], among[second if second < first else second + 1]
        return other if opened and opened.get(other, 0) < opened.get(one, 0) else one

    def _least(self, among: Sequence[End], opened: dict[End, int]) -> End:
        size = len(among)
        if size > _LOOKED_AT:
            start = int(self._random() * size)
            among = [*among[start : start + _LOOKED_AT], *among[: max(0, start + _LOOKED_AT - size)]]
        counts = [opened.get(end, 0) for end in among]
        least = min(counts)
        best = [end for end, count in zip(among, counts, strict=True) if count == least]
        return best[int(self._random() * len(best))]

    def _turn(self, target: Target) -> int:
        found = self._turns.get(id(target))
        if found is None:
            found = self._turns[id(target)] = target, [int(self._random() * len(target.endpoints))]
        found[1][0] += 1
        return found[1][0]

    def _by_affinity(self, target: Target, client: str, now: float, fine: bool) -> Iterator[End]:
        had = self.affinity.had(target, client, now)
        if fine:
            if had is not None:
                yield had
            yield from (end for end in ranked(client, target.endpoints) if end != had)
            return
        ejections = self._ejections[target.protocol]
        wanted = ranked(client, target.endpoints)
        if had is not None:
            wanted.remove(had)
            wanted.insert(0, had)
        last: list[End] = []
        for number, end in enumerate(wanted):
            if end in ejections.out:
                # Only a client that belongs to it is its probe: any other would move there.
                if number or not ejections.due(end, now):
                    last.append(end)
                    continue
                ejections.probe(end, now)
            yield end
        yield from last

    def began(self, target: Target, end: End) -> None:
        """A connection to it is being opened, or a session: it counts as open."""
        opened = self._open[target.protocol]
        opened[end] = opened.get(end, 0) + 1

    def ended(self, target: Target, end: End) -> None:
        """One that began is over, or was never accepted."""
        self.opened(target, end, -1)

    def opened(self, target: Target, end: End, more: int) -> None:
        """So many connections to it, or sessions, are open besides; fewer, if that is negative."""
        opened = self._open[target.protocol]
        left = opened.get(end, 0) + more
        if left > 0:
            opened[end] = left
        else:
            opened.pop(end, None)

    def worked(self, target: Target, end: End, now: float) -> bool:
        """The endpoint accepted (UDP: answered); whether that brought it back."""
        ejections = self._ejections[target.protocol]
        return ejections.worked(end, now) if ejections.failing else False

    def failed(self, target: Target, end: End, now: float) -> bool:
        """It refused, could not be reached, or did not answer in time; whether it is ejected by that."""
        return self._ejections[target.protocol].failed(end, now)

    def took(self, target: Target, client: str, end: End, now: float) -> None:
        """The client has a new connection with it: from now on it belongs there, where the Service has affinity."""
        if target.affinity_s:
            self.affinity.took(target, client, end, now)

    def open_to(self, end: End, protocol: str = "TCP") -> int:
        """How many connections or sessions with it are open."""
        return self._open[protocol].get(end, 0)

    def ejected(self, now: float) -> tuple[Ejected, ...]:
        """The endpoints that are left out at present."""
        return tuple(
            Ejected(protocol, *end, ejections.times(end), max(0.0, ejections.until(end) - now))
            for protocol, ejections in self._ejections.items()
            for end in ejections.out
        )

    @property
    def ejections(self) -> int:
        """How many there were since the start."""
        return sum(ejections.count for ejections in self._ejections.values())

    def news(self) -> list[Remembered]:
        """What affinity the other workers should know of; call it about once a second."""
        return self.affinity.news()

    def learn(self, entries: Iterable[Remembered], now: float) -> None:
        """What other workers told, or one before this."""
        self.affinity.learn(entries, now)

    def sweep(self, now: float) -> None:
        """Forgets what is over; call it every few seconds."""
        self.affinity.sweep(now)
        for protocol, ejections in self._ejections.items():
            if ejections.failing:
                ejections.sweep(self._known(protocol) if self._swept is not self._table else None, now)
        self._swept = self._table

    def _known(self, protocol: str) -> Collection[End]:
        targets = {id(target): target for target in self._table.targets.values() if target.protocol == protocol}
        return {end for target in targets.values() for end in target.endpoints}
