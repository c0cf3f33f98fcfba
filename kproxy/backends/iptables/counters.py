"""Reads the packet counters of our rules out of the kernel, when somebody scrapes them, and not more often than every 10 s.

In: what the tools print with counters. Out: packets dropped as INVALID, and, if asked for, packets and bytes of each Service port. The nat
table sees only the first packet of a connection (or of a UDP flow), so the counters of Services are new connections and the bytes of their
first packets: that is what the kernel counts without a rule more, and without a cost for the packets that follow.

A counter in the kernel starts at nothing whenever its chain is written anew. What is given out only grows: a value smaller than the
last one seen is one that started over. What passed between the last look and the rewriting is lost, at most the time between two looks.

Cost, measured at 10,000 Services × 2. One chain by name: 5 ms in both variants (the whole filter table by iptables-nft-save: 1.7 s, because
that reads all of nat as well). The nat table: 0.9 s (legacy) or 2.2 s (nft) in a process of its own, 0.5 s to read it in a thread. Hence
Services are opt-in, and looked at no more often than a twentieth of a core allows.

What must not happen here: writing, or an exception because a tool failed: then the last values stand.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from kproxy.backends.iptables.failures import FamilyUnusableError
from kproxy.backends.iptables.ruleset import Ruleset
from kproxy.backends.iptables.tool_runs import Runner
from kproxy.backends.iptables.tools import Tools
from kproxy.model.names import Family, ServicePortName
from kproxy.telemetry.logs import fields

log = logging.getLogger("kproxy.iptables")

_LEAST_AGE_S = 10.0  # whoever asks sooner gets the last values
_SHARE = 20.0  # times its own cost that a look at all Services rests
_TIMEOUT_S = 20.0
_DNAT = re.compile(r"^\[(\d+):(\d+)\] -A (\S+) .*-j DNAT --to-destination (\S+)", re.MULTILINE)
_INVALID = re.compile(r"^-A KUBE-FORWARD .*--ctstate INVALID .*-c (\d+) \d+ -j DROP", re.MULTILINE)

Counts = tuple[int, int]  # packets, bytes
ServiceKey = tuple[Family, ServicePortName]


def invalid_dropped(text: str) -> int | None:
    """Packets that KUBE-FORWARD dropped as INVALID, from `iptables -v -S KUBE-FORWARD`; None where there is no such rule."""
    found = _INVALID.search(text)
    return int(found[1]) if found is not None else None


def translated(text: str) -> Iterator[tuple[str, str, Counts]]:
    """Chain, destination and counts of every rule of the nat table that sends to an endpoint."""
    for found in _DNAT.finditer(text):
        yield found[3], found[4], (int(found[1]), int(found[2]))


@dataclass(slots=True)
class Growing:
    """Counters that only grow, out of counters that start over. `seen`: what each rule said last."""

    totals: dict[ServiceKey, Counts] = field(default_factory=dict)
    seen: dict[tuple[Family, str, str], Counts] = field(default_factory=dict)

    def take(
        self, family: Family, rules: Iterator[tuple[str, str, Counts]], owners: Mapping[str, ServicePortName]
    ) -> None:
        """Adds what has passed since the last time. owners: chain → whose; rules of other chains do not count, nor do Services gone."""
        now: dict[tuple[Family, str, str], Counts] = {}
        totals = {(family, name): self.totals.get((family, name), (0, 0)) for name in owners.values()}
        for chain, destination, (packets, octets) in rules:
            owner = owners.get(chain)
            if owner is None:
                continue
            key = (family, chain, destination)
            now[key] = (packets, octets)
            old = self.seen.get(key, (0, 0))
            if packets < old[0]:
                old = (0, 0)
            sums = totals[family, owner]
            totals[family, owner] = (sums[0] + packets - old[0], sums[1] + octets - old[1])
        self.seen = {key: value for key, value in self.seen.items() if key[0] is not family} | now
        self.totals = {key: value for key, value in self.totals.items() if key[0] is not family} | totals


class KernelCounters:
    """The counters of one backend. `services`: whether those of Services are read; `wanted`: the rules as they were compiled last."""

    def __init__(self, tools: Tools, runner: Runner, wanted: Callable[[], Ruleset | None], *, services: bool) -> None:
        self.dropped: int | None = None  # as INVALID, both families
        self._tools, self._runner, self._wanted, self._of_services = tools, runner, wanted, services
        self._growing = Growing()
        self._dropped: dict[Family, int] = {}
        self._due = self._services_due = float("-inf")  # when the next look may be
        self._turn = asyncio.Lock()
        self._told = False

    @property
    def services(self) -> Mapping[ServiceKey, Counts]:
        """Packets and bytes of each Service port; nothing unless they were asked for."""
        return self._growing.totals

    def expire(self) -> None:
        """The rules have been written as a whole: what was read before them says nothing, and the next who asks gets a new look."""
        self._due = self._services_due = float("-inf")

    async def refresh(self) -> None:
        """Looks into the kernel, unless that was done a moment ago. Callers at the same time wait for one look."""
        async with self._turn:
            started = time.monotonic()
            if started >= self._due:
                self._due = started + _LEAST_AGE_S
                for family in Family:
                    await self._read_dropped(family)
            wanted = self._wanted()
            if self._of_services and wanted is not None and started >= self._services_due:
                for family in Family:
                    await self._read_services(family, wanted)
                cost = time.monotonic() - started
                self._services_due = started + max(_LEAST_AGE_S, _SHARE * cost)

    async def _read_dropped(self, family: Family) -> None:
        text = await self._run(family, "", ("-w", "1", "-t", "filter", "-v", "-S", "KUBE-FORWARD"))
        dropped = invalid_dropped(text) if text is not None else None
        if dropped is not None:
            self._dropped[family] = dropped
            self.dropped = sum(self._dropped.values())

    async def _read_services(self, family: Family, wanted: Ruleset) -> None:
        text = await self._run(family, "-save", ("-c", "-t", "nat"))
        if text is not None:
            owners = {
                chain: name for name, fragment in wanted.of(family).fragments.items() for chain in fragment.chains
            }
            await asyncio.to_thread(self._growing.take, family, translated(text), owners)

    async def _run(self, family: Family, verb: str, words: Sequence[str]) -> str | None:
        """What the tool says; None when it says nothing of use. verb: "-save", or "" for the plain `iptables` beside it."""
        try:
            program, *rest = self._tools.program(family, "save")
            done = await self._runner((program.removesuffix("-save") + verb, *rest, *words), "", _TIMEOUT_S)
        except FamilyUnusableError:
            return None
        except OSError as error:
            self._failed(words, str(error))
            return None
        if done is None or done.exit_code:
            self._failed(words, done.stderr.strip()[:300] if done is not None else "no end")
            return None
        return done.stdout

    def _failed(self, words: Sequence[str], why: str) -> None:
        if not self._told and self._wanted() is not None:  # before the first sync there are no such chains
            self._told = True
            log.warning("Counters cannot be read", extra=fields(arguments=" ".join(words), error=why))
