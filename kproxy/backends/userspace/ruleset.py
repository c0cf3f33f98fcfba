"""What the kernel shall hold: a frame of constant rules, and the elements of its maps and sets. Values, and their text for `nft`.

In: what compile.py decided. Out: text that `nft -f` takes. Elements are plain text on both sides, key → `Element`, so that what is wanted
and what was read back (messages.py) compare as dictionaries do. The frame is never read back as a value: nft spells rules otherwise than
they were written, and otherwise from version to version. It is written anew when it may differ, in the same transaction as always, so that
no packet meets half of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from kproxy.model.desired import LocalDetector, NodePortAddresses, ServicePort
from kproxy.model.names import Family, ServicePortName
from kproxy.relay.targets import Table


class Element(NamedTuple):
    """What stands behind a key. verdict: `goto CHAIN` or `drop`, "" in sets. comment: the ServicePort's name."""

    verdict: str
    comment: str


Elements = Mapping[str, Mapping[str, Element]]  # set or map → key, as nft writes it → element
Owners = Mapping[str, ServicePortName]  # destination → who has it


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """What the constant rules of one family follow from."""

    family: Family
    mark: int
    ports: tuple[int, int]  # listeners INSIDE and OUTSIDE
    notrack: bool = False
    detector: LocalDetector | None = None
    node_ports: NodePortAddresses = field(default_factory=NodePortAddresses)
    dns: tuple[str, ...] = ()  # addresses whose port 53 this node answers itself


class Entry(NamedTuple):
    """One destination of a ServicePort: who else claims `key` stands back. first: cluster IPs go before all others."""

    key: str
    first: bool
    elements: tuple[tuple[str, str, Element], ...]  # set, key in it, element


@dataclass(frozen=True, slots=True, kw_only=True)
class Fragment:
    """All that one ServicePort adds."""

    service_port: ServicePort
    entries: tuple[Entry, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Memo:
    """What a ruleset was made of, so that the next one costs what has changed. No part of its meaning."""

    ports: Mapping[ServicePortName, ServicePort]
    refused: Mapping[ServicePortName, ServicePort]
    fragments: Mapping[ServicePortName, Fragment]
    owners: Owners
    contested: frozenset[str]  # destinations that two entries claim
    unrelayed: frozenset[ServicePortName]


@dataclass(frozen=True, slots=True, kw_only=True)
class FamilyRuleset:
    """One family's table.

    frame: None when nobody knows which rules are in it. stale: the table is there in another shape (an older version's), so that it has
    to be made anew. memo: of compiled ones, for the next compilation.
    """

    family: Family
    frame: Frame | None = None
    elements: Elements = field(default_factory=dict)
    memo: Memo | None = field(default=None, compare=False, repr=False)
    stale: bool = False

    @property
    def fragments(self) -> Mapping[ServicePortName, Fragment]:
        """What each ServicePort adds; none of an observed ruleset."""
        return self.memo.fragments if self.memo is not None else {}

    @property
    def owners(self) -> Owners:
        """Who has each destination; nobody in an observed ruleset."""
        return self.memo.owners if self.memo is not None else {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Ruleset:
    """Both families, what relay workers are to know, and how packets find them."""

    ipv4: FamilyRuleset = FamilyRuleset(family=Family.IPV4)
    ipv6: FamilyRuleset = FamilyRuleset(family=Family.IPV6)
    table: Table | None = None  # None: as observed; the kernel knows nothing of it
    routed: frozenset[Family] = frozenset(Family)  # families whose policy route is there

    def of(self, family: Family) -> FamilyRuleset:
        """One family."""
        return self.ipv4 if family is Family.IPV4 else self.ipv6

    @property
    def rule_count(self) -> int:
        """How many elements there are."""
        return sum(len(found) for family in Family for found in self.of(family).elements.values())
