"""Laws of the dispatch trees: whatever the set of entries, each is reached; whatever the way between two sets, at every moment of it."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_address, ip_network

from hypothesis import given, settings
from hypothesis import strategies as st

from kproxy.backends.iptables import names, tree
from kproxy.backends.iptables.changes import Section, render_section
from kproxy.backends.iptables.compile import compile_ruleset
from kproxy.backends.iptables.matches import Destination, Jump, Ports
from kproxy.backends.iptables.plan import ours, plan
from kproxy.backends.iptables.rules import Rule, rule
from kproxy.backends.iptables.ruleset import Chain, FamilyRuleset, Ruleset, parse
from kproxy.backends.iptables.settings import IptablesSettings
from kproxy.model.desired import DesiredState, Endpoint, FamilyState, Route, ServicePort, VirtualIP, VirtualIPKind
from kproxy.model.names import Family, NamespacedName, Protocol, ServicePortName
from tests.support.fake_iptables import FakeIptables

_DEEPEST = tree._DEEPEST
_SPACES = {Family.IPV4: tree.ADDRESSES[Family.IPV4], Family.IPV6: tree.ADDRESSES[Family.IPV6], None: tree.NODE_PORTS}


def _numbers(width: int) -> st.SearchStrategy[list[int]]:
    """Sets that are dense, spread, or nested so that a tree gets deep; several entries may share a number."""
    anywhere = st.integers(0, 2**width - 1)
    dense = st.builds(lambda start, count: [min(start + n, 2**width - 1) for n in range(count)], anywhere, _COUNT)
    nested = st.builds(lambda value: [value ^ (1 << bit) for bit in range(width)], anywhere)
    return st.lists(dense | nested | st.lists(anywhere, max_size=6), max_size=4).map(
        lambda groups: sorted(number for group in groups for number in group)
    )


_COUNT = st.integers(0, 70)
_WIDTHS = st.sampled_from([(space, _SPACES[space]) for space in _SPACES])
_LIMITS = st.sampled_from([0, 1, 2, 5, 32])


@st.composite
def planted(draw: st.DrawFn) -> tuple[tree.Space, list[tuple[int, Rule]], int]:
    """A space, entries in it, a limit."""
    kind, space = draw(_WIDTHS)
    numbers = draw(_numbers(space.width if kind is not None else 17))
    return space, [(number, Rule(f"-j E{i}")) for i, number in enumerate(numbers)], draw(_LIMITS)


def _found(grown: tree.Tree, space: tree.Space, number: int) -> Iterator[Rule]:
    """The entries that a packet with `number` comes by."""
    width = space.width
    parts = {
        space.jump(number >> (width - length) << (width - length), length)[1] for length in range(2, width + 1)
    }  # of all parts of the space, those that hold the number

    def walk(chain: Chain) -> Iterator[Rule]:
        for each in chain:
            if not names.is_branch(each.jump):
                yield each
            elif each in parts:
                yield from walk(grown.branches[each.jump])

    return walk(grown.root)


@given(planted())
def test_every_entry_is_reached_once_and_by_its_number(case: tuple[tree.Space, list[tuple[int, Rule]], int]) -> None:
    space, entries, limit = case
    grown = tree.grow(entries, space, limit)
    for number, entry in entries[:: max(1, len(entries) // 12)]:
        met = list(_found(grown, space, number))
        assert met.count(entry) == 1
    in_chains = [r for chain in (grown.root, *grown.branches.values()) for r in chain if not names.is_branch(r.jump)]
    assert sorted(in_chains, key=str) == sorted((entry for _, entry in entries), key=str)


@given(planted())
def test_trees_are_flat_branches_come_after_what_they_jump_to_and_names_fit(
    case: tuple[tree.Space, list[tuple[int, Rule]], int],
) -> None:
    space, entries, limit = case
    grown = tree.grow(entries, space, limit)
    depth: dict[str, int] = {}
    for name, chain in grown.branches.items():
        assert names.is_branch(name) and names.is_hashed(name) and len(name) <= names.CHAIN_NAME_LIMIT
        depth[name] = 1 + max([depth[r.jump] for r in chain if names.is_branch(r.jump)], default=0)
    assert max(depth.values(), default=0) <= 8
    referred = [r.jump for chain in (grown.root, *grown.branches.values()) for r in chain if names.is_branch(r.jump)]
    assert sorted(referred) == sorted(grown.branches)
    if len(entries) <= limit:
        assert grown.branches == {}


@given(planted(), st.integers(0, 200))
def test_one_entry_less_changes_few_chains(case: tuple[tree.Space, list[tuple[int, Rule]], int], gone: int) -> None:
    """Its leaf; or, where the leaf or its parent goes as well, these and what led to them.

    Not where a tree is as deep as it may be: a step less, and what was one long leaf at its end is divided.
    """
    space, entries, limit = case
    if not entries:
        return
    less = [entry for n, entry in enumerate(entries) if n != gone % len(entries)]
    before, after = tree.grow(entries, space, limit), tree.grow(less, space, limit)
    if _DEEPEST in (_depth(before), _depth(after)):
        return
    changed = [name for name in before.branches.keys() | after.branches.keys()
               if before.branches.get(name) != after.branches.get(name)]  # fmt: skip
    assert (
        len(changed) <= 11
    )  # a group that just fits into one leaf has at most 8 below it; its new and old name; its parent


def _depth(grown: tree.Tree) -> int:
    """How many branches follow one another at most; each stands after those that it jumps to."""
    depths: dict[str, int] = {}
    for name, chain in grown.branches.items():
        depths[name] = 1 + max((depths[each.jump] for each in chain if names.is_branch(each.jump)), default=0)
    return max(depths.values(), default=0)


# From one set to the next, batch by batch


def _service_port(number: int, family: Family, generation: int) -> ServicePort:
    address = f"10.96.{number // 256}.{number % 256}" if family is Family.IPV4 else f"fd00::{number:x}"
    endpoint = Endpoint(address=f"10.0.0.{generation}" if family is Family.IPV4 else f"fd01::{generation}", port=80)
    route = Route(endpoints=(endpoint,))
    return ServicePort(
        name=ServicePortName(NamespacedName("ns", f"s{number:05}"), "", Protocol.TCP),
        family=family,
        port=80,
        virtual_ips=(VirtualIP(address=address, kind=VirtualIPKind.CLUSTER),),
        node_port=30000 + number % 2768,
        internal=route,
        external=route,
        short_circuit=route,
        reachable=(endpoint,),
    )


_SETS = st.sets(st.integers(0, 700), max_size=5).flatmap(
    lambda few: st.builds(
        lambda start, count: sorted(few | set(range(start, start + count))), st.integers(0, 600), st.integers(0, 12)
    )
)


def _desired(numbers: list[int], family: Family, generation: int) -> DesiredState:
    ports = [_service_port(number, family, generation) for number in numbers]
    state = FamilyState(family=family, service_ports={port.name: port for port in ports})
    return DesiredState(ipv4=state) if family is Family.IPV4 else DesiredState(ipv6=state)


def _within(each: Rule, entry: Rule) -> bool:
    """Whether the part that a jump to a branch names holds what an entry is about."""
    for match in each.parts.matches:
        for wanted in entry.parts.matches:
            if isinstance(match, Destination) and isinstance(wanted, Destination):
                return ip_address(wanted.network.partition("/")[0]) in ip_network(match.network)
            if isinstance(match, Ports) and isinstance(wanted, Ports):
                first, _, last = match.destination.partition(":")
                return int(first) <= int(wanted.destination) <= int(last or first)
    return False


def _entries(chains: dict[str, list[str]], root: str) -> list[tuple[str, bool]]:
    """The texts of all entries below a root, and whether the chain that they lead to has rules."""
    found: list[tuple[str, bool]] = []

    def walk(chain: str, path: tuple[Rule, ...]) -> None:
        for text in chains[chain]:
            each = Rule(text)
            if names.is_branch(each.jump):
                walk(each.jump, (*path, each))
            elif each.jump.startswith(names.HASHED_PREFIXES) and all(_within(jump, each) for jump in path):
                found.append((text, bool(chains[each.jump])))

    walk(root, ())
    return found


def _reached(fake: FakeIptables) -> set[str]:
    chains = fake.tables.get("nat", {})
    found = [e for root in (names.SERVICES, names.NODE_PORTS) if root in chains for e in _entries(chains, root)]
    texts = [text for text, _ in found]
    assert len(texts) == len(set(texts)), "an entry is met twice"
    assert all(leads for _, leads in found), "an entry leads to an empty chain"
    return set(texts)


@settings(max_examples=60)
@given(
    st.sampled_from(list(Family)),
    st.lists(st.tuples(_SETS, st.sampled_from([0, 2, 5, 1000]), st.integers(1, 2)), min_size=2, max_size=4),
    st.sampled_from([10, 40, 1_000_000]),
    st.booleans(),
)
def test_between_two_sets_no_entry_of_both_is_out_of_reach(
    family: Family, steps: list[tuple[list[int], int, int]], lines: int, restarts: bool
) -> None:
    """Whatever the sets and the limits (1000: one line, as kube-proxy and older versions write it), after every single commit."""
    fake, applied, before = FakeIptables(), Ruleset(), set[str]()
    for numbers, limit, generation in steps:
        wanted = compile_ruleset(_desired(numbers, family, generation), IptablesSettings(leaf_entries=limit), applied)
        goal = _wanted_entries(wanted.of(family))
        for batch in plan(_seen(fake, family) if restarts else applied, wanted, lines).batches:
            for section in Section if batch.family is family else ():
                if text := render_section(section, batch.changes):
                    fake.restore(text)
                    if section is Section.NAT:
                        assert before & goal <= _reached(fake)
        assert _reached(fake) == goal
        assert not [b for b in plan(_seen(fake, family), wanted, lines).batches if b.family is family]
        applied, before = wanted, goal


def _seen(fake: FakeIptables, family: Family) -> Ruleset:
    seen = ours(parse(fake.save(), family))
    return Ruleset(ipv4=seen) if family is Family.IPV4 else Ruleset(ipv6=seen)


def _wanted_entries(ruleset: FamilyRuleset) -> set[str]:
    return {e.rule.text for f in ruleset.fragments.values() for e in f.entries if e.place.table == "nat"}


def test_two_networks_with_one_name_stand_in_their_parent() -> None:
    """A hash that two parts share: never two meanings for one chain."""
    chain = rule(Jump("KUBE-SVC-NET-AAAAAAAAAAAAAAA"))
    space = tree.Space(8, lambda start, length: ("KUBE-SVC-NET-AAAAAAAAAAAAAAA", chain))
    entries = [(number, Rule(f"-j E{number}")) for number in range(24)]
    grown = tree.grow(entries, space, 5)
    assert len(grown.branches) == 1
    met = [r for c in (grown.root, *grown.branches.values()) for r in c if r != chain]
    assert sorted(met, key=str) == sorted((e for _, e in entries), key=str)
