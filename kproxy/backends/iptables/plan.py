"""The way from the rules that are there to the rules that are wanted, as ordered batches of bounded size.

In: the ruleset last applied (or observed) and the wanted one. Out: a `Plan` (changes.py), whose batches become input for
`iptables-restore --noflush`. Only what differs is written, so every sync is a partial one; observing first makes taking over from
kube-proxy the same thing.

1. A ServicePort becomes reachable only by its entry, and stays reachable as long as something leads to the entry. Hence the order:
   first what does not belong to a ServicePort; then, ServicePort by ServicePort, what each gains; then the dispatch chains of nat from
   the leaves up (tree.py says why no entry is out of reach meanwhile), emptying what nobody jumps to any more; then what each loses.
2. Chains of nat are written whole: a leaf has few entries, and within one commit nobody sees it half filled. Dispatch chains of filter are
   long lists of entries that exclude each other: new ones go in at the head by `-I` and old ones out by `-D`.
3. iptables-nft-restore needs more than linear time (10,000 Services of 2 endpoints: 48-57 s in one piece, 2.8 s in batches of 250), while
   each legacy restore passes over the whole table (0.7 s in one piece, 6.6 s in batches of 250). So the caller, who knows the variant,
   says how long a batch may be.
4. filter gains before nat changes, and filter loses after: no packet to a Service slips through unhandled in between.
5. What nobody wants any more (stale chains of ours or of kube-proxy) goes last, referring chains before the ones they refer to.

What must not happen here: knowing why a rule is wanted; touching a chain or rule that names.py does not call ours.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

from kproxy.backends.iptables import names
from kproxy.backends.iptables.changes import Batch, Change, Plan, batches_of
from kproxy.backends.iptables.rules import Rule, comparable
from kproxy.backends.iptables.ruleset import BUILT_IN, Chain, FamilyRuleset, Place, Ruleset, differing
from kproxy.model.names import Family, ServicePortName

NFT_BATCH_LINES = 4000
LEGACY_BATCH_LINES = 1_000_000
_REMOVALS_PER_CHANGE = 200
_ROOTS = (names.SERVICES, names.NODE_PORTS)  # of the trees in nat, referring to each other in this order


def plan(applied: Ruleset | None, wanted: Ruleset, batch_lines: int = NFT_BATCH_LINES) -> Plan:
    """The way from `applied` to `wanted`; no batches when they mean the same. None: nothing is known (see `Plan.blind`)."""
    known = applied if applied is not None else Ruleset()
    batches: list[Batch] = []
    for family in (Family.IPV4, Family.IPV6):
        changes = changes_between(known.of(family), wanted.of(family))
        batches.extend(batches_of(family, changes, batch_lines))
    return Plan(batches=tuple(batches), wanted=wanted, blind=applied is None)


def changes_between(applied: FamilyRuleset, wanted: FamilyRuleset) -> Iterator[Change]:
    """What leads from one to the other, in the order of the module's text."""
    return _Difference(applied, wanted).changes()


def same_rules(one: Chain | None, other: Chain) -> bool:
    """Whether two chains hold the same rules in the same order, however they are spelled."""
    if one is None or len(one) != len(other):
        return False
    return _same_texts(one, other) or all(
        a.text == b.text or comparable(a.text) == comparable(b.text) for a, b in zip(one, other, strict=True)
    )


def _same_texts(one: Chain, other: Chain) -> bool:
    """Whether two chains are spelled alike. Strings rather than rules: there are tens of thousands, and nearly all are equal."""
    return [rule.text for rule in one] == [rule.text for rule in other]


def _same_entries(one: Chain | None, other: Chain) -> bool:
    """Whether two dispatch chains hold the same entries in whatever order, and the same tail."""
    if one is None or len(one) != len(other):
        return False
    tails = _tail(one), _tail(other)
    return _texts(tails[0]) == _texts(tails[1]) and _texts(one) == _texts(other)


def _texts(chain: Chain) -> list[str]:
    return sorted(comparable(rule.text) for rule in chain)


@dataclass(slots=True)
class _Draft:
    """A change while it is being collected."""

    written: list[tuple[Place, Chain]] = field(default_factory=list)
    appended: list[tuple[Place, Rule]] = field(default_factory=list)
    inserted: list[tuple[Place, Rule]] = field(default_factory=list)
    deleted: list[tuple[Place, Rule]] = field(default_factory=list)
    removed: list[Place] = field(default_factory=list)

    def finish(self, owner: ServicePortName | None) -> Change:
        """Everything in one change."""
        return replace(self.gains(owner), deleted=tuple(self.deleted), removed=tuple(self.removed))

    def gains(self, owner: ServicePortName | None) -> Change:
        """What is added."""
        return Change(
            owner=owner,
            written=tuple(self.written),
            appended=tuple(self.appended),
            inserted=tuple(self.inserted),
        )

    def losses(self, owner: ServicePortName | None) -> Change:
        """What goes."""
        return Change(owner=owner, deleted=tuple(self.deleted), removed=tuple(self.removed))


class _Difference:
    """One family's difference, sorted into the changes of ServicePorts, what comes before them and what comes after."""

    def __init__(self, applied: FamilyRuleset, wanted: FamilyRuleset) -> None:
        self.applied = applied
        self.wanted = wanted
        self.base = _Draft()
        self.dispatch: list[tuple[Place, Chain]] = []
        self.leftovers = _Draft()
        self.drafts: dict[ServicePortName, _Draft] = {}

    # Only asked for where something differs: a restart over its own rules is spared half of the comparison.

    @cached_property
    def chain_owners(self) -> Mapping[str, ServicePortName]:
        """Whose chains those of changed fragments are."""
        changed = differing(self.applied.fragments, self.wanted.fragments)
        return {c: name for fragments in changed for name, fragment in fragments.items() for c in fragment.chains}

    @cached_property
    def rule_owners(self) -> Mapping[tuple[Place, str], ServicePortName]:
        """Whose entries in filter those of changed fragments are."""
        changed = differing(self.applied.fragments, self.wanted.fragments)
        every = ((name, e) for fragments in changed for name, fragment in fragments.items() for e in fragment.entries)
        return {(entry.place, entry.rule.text): name for name, entry in every if entry.place.table == "filter"}

    def changes(self) -> Iterator[Change]:
        """In the order that the module docstring tells."""
        for table in self.wanted.tables:
            self._compare_table(table)
        for table, chains in self.applied.tables.items():
            wanted = self.wanted.tables.get(table, {})
            for chain in [chain for chain in chains if chain not in wanted]:
                self._unwanted(Place(table, chain))
        if self.base != _Draft():
            yield self.base.finish(None)
        drafts = [(name, self.drafts[name]) for name in sorted(self.drafts, key=lambda n: n.sort_key)]
        yield from (change for name, draft in drafts if (change := draft.gains(name)).lines)
        yield from self._paths()
        yield from (change for name, draft in drafts if (change := draft.losses(name)).lines)
        yield from self._last()

    def _paths(self) -> Iterator[Change]:
        """The dispatch chains of nat: branches as the compiler has them (after what they jump to), roots, and what is then on no path."""
        self.dispatch.sort(key=lambda written: written[0].chain in _ROOTS)  # keeps the order of the branches
        for written in self.dispatch:
            yield Change(written=(written,))
        stale = [place for place in self.leftovers.removed if place.table == "nat" and names.is_branch(place.chain)]
        for start in range(0, len(stale), _REMOVALS_PER_CHANGE):
            yield Change(written=tuple((place, ()) for place in stale[start : start + _REMOVALS_PER_CHANGE]))

    def _draft(self, owner: ServicePortName | None, default: _Draft) -> _Draft:
        return default if owner is None else self.drafts.setdefault(owner, _Draft())

    def _compare_table(self, table: str) -> None:
        there = self.applied.tables.get(table, {})
        chains = self.wanted.tables[table]
        for chain in [chain for chain, rules in chains.items() if there.get(chain) is not rules]:
            rules, old = chains[chain], there.get(chain)
            if old is not None and _same_texts(old, rules):
                continue
            place = Place(table, chain)
            if chain in BUILT_IN:
                self._compare_unordered(place, old or (), rules)
            elif names.is_dispatch(table, chain):
                self._compare_dispatch(place, old, rules)
            elif chain == names.KUBELET_FIREWALL:
                self._compare_shared(place, old, rules)
            elif not same_rules(old, rules):
                self._draft(self.chain_owners.get(chain), self.base).written.append((place, rules))

    def _compare_dispatch(self, place: Place, old: Chain | None, rules: Chain) -> None:
        if old is None and place.chain in names.DISPATCH_CHAINS[place.table]:
            self.base.written.append((place, ()))  # built-in chains jump to it, and they come first
            old = ()
        if place.table != "nat":
            self._compare_unordered(place, old or (), rules)
        elif not _same_entries(old, rules):
            self.dispatch.append((place, rules))

    def _compare_shared(self, place: Place, old: Chain | None, rules: Chain) -> None:
        """The kubelet's chain: its own rules stay, ours is added where it is missing."""
        if old is None:
            self.base.written.append((place, rules))
            return
        there = {comparable(rule.text) for rule in old}
        for rule in rules:
            if comparable(rule.text) not in there:
                self.base.appended.append((place, rule))

    def _compare_unordered(self, place: Place, old: Iterable[Rule], rules: Iterable[Rule]) -> None:
        """Rules whose order has no meaning: what is new goes to the head, what is old is deleted rule by rule."""
        wanted = {rule.text: rule for rule in rules}
        surplus: Counter[str] = Counter()
        for rule in old:
            if wanted.pop(rule.text, None) is None:
                surplus[rule.text] += 1
        if surplus and wanted:
            spelled = {comparable(text): text for text in surplus}
            for text in list(wanted):
                twin = spelled.get(comparable(text))
                if twin is not None and surplus[twin] > 0:
                    surplus[twin] -= 1
                    del wanted[text]
        # Head inserts come out in reverse, so they are written in reverse to stand in the wanted order.
        for rule in reversed(wanted.values()):
            owner = self.rule_owners.get((place, rule.text))
            self._draft(owner, self.base).inserted.append((place, rule))
        for text in surplus.elements():
            if place.chain in BUILT_IN and Rule(text).jump == names.KUBELET_FIREWALL:
                continue
            owner = self.rule_owners.get((place, text))
            self._draft(owner, self.leftovers).deleted.append((place, Rule(text)))

    def _unwanted(self, place: Place) -> None:
        if place.chain in BUILT_IN:
            self._compare_unordered(place, self.applied.tables[place.table][place.chain], ())
        elif names.is_removable(place.table, place.chain):
            owner = self.chain_owners.get(place.chain) if place.table == "nat" else None
            self._draft(owner, self.leftovers).removed.append(place)

    def _last(self) -> Iterator[Change]:
        deleted = self.leftovers.deleted
        for start in range(0, len(deleted), _REMOVALS_PER_CHANGE):
            yield Change(deleted=tuple(deleted[start : start + _REMOVALS_PER_CHANGE]))
        removed = sorted(self.leftovers.removed, key=lambda place: (_depth(place.chain), place.table, place.chain))
        for start in range(0, len(removed), _REMOVALS_PER_CHANGE):
            yield Change(removed=tuple(removed[start : start + _REMOVALS_PER_CHANGE]))


def _tail(chain: Chain) -> Chain:
    """What stands behind the entries: the way on to the node ports. Misplaced among the entries it counts as one of them, and goes."""
    start = len(chain)
    while start and chain[start - 1].jump == names.NODE_PORTS:
        start -= 1
    return chain[start:]


def _depth(chain: str) -> int:
    """Chains refer only to chains of greater depth."""
    order = (
        names.FIREWALL_PREFIX,
        names.EXTERNAL_PREFIX,
        names.CLUSTER_PREFIX,
        names.LOCAL_PREFIX,
        names.ENDPOINT_PREFIX,
        names.MARK_MASQ,
    )
    if chain in _ROOTS:
        return _ROOTS.index(chain) - len(_ROOTS) - 1
    if names.is_branch(chain):
        return -1
    return next((i for i, prefix in enumerate(order) if chain.startswith(prefix)), len(order))


def ours(observed: FamilyRuleset) -> FamilyRuleset:
    """What of an observed ruleset is kproxy's or kube-proxy's; the rest is none of our business."""
    tables: dict[str, dict[str, Chain]] = {}
    for table, chains in observed.tables.items():
        kept: dict[str, Chain] = {}
        for chain, rules in chains.items():
            if chain in BUILT_IN:
                jumps = tuple(rule for rule in rules if names.is_entered(table, rule.jump))
                if jumps:
                    kept[chain] = jumps
            elif names.is_known(table, chain):
                kept[chain] = rules
        if kept:
            tables[table] = kept
    return FamilyRuleset(family=observed.family, tables=tables)


def cleanup_plan(observed: Ruleset, batch_lines: int = NFT_BATCH_LINES) -> Plan:
    """Takes away everything that is kproxy's or kube-proxy's; KUBE-FIREWALL and its jumps stay, the kubelet owns them too."""
    return plan(observed, Ruleset(), batch_lines)
