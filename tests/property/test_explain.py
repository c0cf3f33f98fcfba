"""Explanations held to account: they say what `resolve` did, and what they blame is what was to blame.

The second half is counterfactual: change the one thing that a reason names, resolve again, and the endpoint's lot has to change.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from kproxy.backends.iptables.compile import compile_ruleset
from kproxy.backends.iptables.ruleset import Place
from kproxy.backends.iptables.settings import IptablesSettings
from kproxy.explain.endpoints import EndpointSeen, Reason, explain_endpoints, explain_hints
from kproxy.explain.rules import Part
from kproxy.explain.rules_iptables import explain_rules
from kproxy.model.desired import NodeSettings, Route, ServicePort
from kproxy.model.endpoints import candidates_of
from kproxy.model.events import Applied, Event
from kproxy.model.names import Family
from kproxy.model.node import node_facts
from kproxy.model.objects import Decoded, EndpointSlice, PortSpec, SliceEndpoint, key_of
from kproxy.model.resolve import resolve
from kproxy.model.snapshot import Snapshot, fold
from kproxy.model.topology import Place as Standpoint
from tests.support.addressing import NODE
from tests.support.strategies import clusters, events, settings


@dataclass(frozen=True)
class Explained:
    """One ServicePort and what was said about it."""

    snapshot: Snapshot
    node: NodeSettings
    spec: PortSpec
    port: ServicePort
    seen: tuple[EndpointSeen, ...]


def _explained(snapshot: Snapshot, node: NodeSettings) -> Iterator[Explained]:
    desired, facts = resolve(snapshot, node), node_facts(snapshot, node)
    for family in Family:
        for name, port in desired.of(family).service_ports.items():
            service = snapshot.services[name.service]
            spec = next(p for p in service.ports if (p.name, p.protocol) == (name.port, name.protocol))
            slices = snapshot.slices_of.get(name.service, ())
            yield Explained(snapshot, node, spec, port, explain_endpoints(slices, spec, port, facts))


def _routes(each: Explained) -> Iterator[tuple[str, Route]]:
    yield "internal", each.port.internal
    if each.port.externally_reachable:
        yield "external", each.port.external
        yield "short_circuit", each.port.short_circuit


@given(st.one_of(clusters(), events), settings)
def test_an_endpoint_is_said_to_be_used_exactly_when_it_is(happened: list[Event], node: NodeSettings) -> None:
    for each in _explained(fold(Snapshot(), happened), node):
        members = sum(
            len(item.endpoints)
            for item in each.snapshot.slices_of.get(each.port.name.service, ())
            if item.family is each.port.family
        )
        assert len(each.seen) >= members, "nobody is passed over in silence"
        for name, route in _routes(each):
            used = [seen.endpoint for seen in each.seen if getattr(seen, name).used]
            assert sorted(used, key=lambda e: e.text if e else "") == list(route.endpoints), name
        if not each.port.externally_reachable:
            assert not any(seen.external.used or seen.short_circuit.used for seen in each.seen)


def _now(each: Explained, changed: dict[tuple[str, int], SliceEndpoint | None]) -> Explained:
    """The same after some members of its slices have changed, or are gone."""
    snapshot = each.snapshot
    for item in snapshot.slices_of[each.port.name.service]:
        members = [changed.get((item.name.name, i), member) for i, member in enumerate(item.endpoints)]
        made = replace(item, endpoints=tuple(member for member in members if member is not None))
        snapshot = fold(snapshot, [Applied(Decoded(key=key_of(made), object=made))])
    return next(
        e
        for e in _explained(snapshot, each.node)
        if e.port.name == each.port.name and e.port.family is each.port.family
    )


def _members(each: Explained) -> Iterator[tuple[EndpointSlice, int, SliceEndpoint]]:
    for item in each.snapshot.slices_of[each.port.name.service]:
        if item.family is each.port.family:
            for index, member in enumerate(item.endpoints):
                yield item, index, member


def _bare(member: SliceEndpoint) -> SliceEndpoint:
    return replace(member, hint_zones=(), hint_nodes=())


@given(clusters(), settings, st.randoms(use_true_random=False))
def test_what_a_reason_blames_is_to_blame(happened: list[Event], node: NodeSettings, chance: Random) -> None:
    told = [
        (each, seen, name)
        for each in _explained(fold(Snapshot(), happened), node)
        for seen in each.seen
        for name, _ in _routes(each)
        if getattr(seen, name).reason not in (Reason.READY, Reason.LOCAL)
    ]
    for each, seen, name in chance.sample(told, min(4, len(told))):
        _verify(each, seen, name)


def _verify(each: Explained, seen: EndpointSeen, name: str) -> None:
    use = getattr(seen, name)
    everyone = {(item.name.name, i): member for item, i, member in _members(each)}
    mine = {key for key, member in everyone.items() if member.address == seen.member.address}
    changed: dict[tuple[str, int], SliceEndpoint | None]
    match use.reason:
        case Reason.NOT_READY:
            assert not seen.member.ready
            changed = {key: _bare(replace(m, ready=True) if key in mine else m) for key, m in everyone.items()}
        case Reason.TERMINATING:
            assert (seen.member.terminating, seen.member.serving, seen.member.ready) == (True, True, False)
            changed = {key: m for key, m in everyone.items() if key in mine}
            changed |= {key: None for key, m in everyone.items() if key not in mine}
        case Reason.OTHER_NODE:
            assert seen.member.node_name != NODE
            changed = {key: replace(everyone[key], node_name=NODE, ready=True) for key in mine}
        case Reason.OTHER_ZONE | Reason.OTHER_HINTED_NODE:
            changed = {key: _bare(everyone[key]) for key in mine}
        case Reason.DUPLICATE:
            # Left alone, one copy counts and no copy is a duplicate.
            alone = min(key for key in mine if key[0] == seen.slice)
            now = _now(each, dict.fromkeys(mine - {alone}))
            same = [s for s in now.seen if s.member.address == seen.member.address]
            assert all(getattr(s, name).reason is not Reason.DUPLICATE for s in same)
            return
        case Reason.HINTED_ZONE | Reason.HINTED_NODE:
            counted = [
                s for s in each.seen if getattr(s, name).reason is not Reason.DUPLICATE and s.endpoint is not None
            ]
            assert all(s.member.hint_zones or s.member.hint_nodes for s in counted if s.member.ready)
            return
        case _:
            return
    after = [s for s in _now(each, changed).seen if s.member.address == seen.member.address and s.port == seen.port]
    assert any(getattr(s, name).used for s in after), (use, after)


@given(clusters(), settings)
def test_hints_are_ignored_for_the_reason_given(happened: list[Event], node: NodeSettings) -> None:
    snapshot = fold(Snapshot(), happened)
    facts = node_facts(snapshot, node)
    place = Standpoint(facts.name, facts.zone)
    for each in _explained(snapshot, node):
        known, _ = candidates_of(snapshot.slices_of.get(each.port.name.service, ()), each.port.family, facts.name)
        candidates = known.get((each.spec.name, each.spec.protocol), [])
        said = explain_hints(candidates, place)
        used = {s.internal.reason for s in each.seen} | {s.short_circuit.reason for s in each.seen}
        followed = {Reason.HINTED_ZONE, Reason.HINTED_NODE} & used
        assert not followed or said.startswith("followed")
        if "bears none" in said:
            by_zone = any(c.hint_zones for c in candidates if c.ready)
            hinted = [c for c in candidates if not c.ready or (c.hint_zones if by_zone else c.hint_nodes)]
            assert "bears none" not in explain_hints(hinted, place)
        if "no label" in said:
            assert "no label" not in explain_hints(candidates, Standpoint(place.node, "z1"))


@given(clusters(), settings)
def test_the_rules_listed_are_the_rules_there_are(happened: list[Event], node: NodeSettings) -> None:
    ruleset = compile_ruleset(resolve(fold(Snapshot(), happened), node), IptablesSettings(leaf_entries=0))
    for family in Family:
        rules = ruleset.of(family)
        written = {
            (t, c, rule.text) for t, chains in rules.tables.items() for c, chain in chains.items() for rule in chain
        }
        told: set[tuple[str, str, str]] = set()
        for name, fragment in rules.fragments.items():
            listed = explain_rules(rules, name)
            marks = [(rule.table, rule.chain, rule.text) for rule in listed]
            assert len(marks) == len(set(marks)), "no rule twice"
            assert set(marks) <= written
            assert all(rule.why for rule in listed)
            own = {("nat", c, rule.text) for c, chain in fragment.chains.items() for rule in chain}
            assert {m for m, rule in zip(marks, listed, strict=True) if rule.part is Part.OWN_CHAIN} <= own
            told |= set(marks)
            entered = {rule.chain for rule in listed if rule.part is Part.ENTRY and rule.table == "nat"}
            if any(
                entry.place == Place("nat", "KUBE-SERVICES") and entry.rule.text in {m[2] for m in marks}
                for entry in fragment.entries
            ):
                assert entered
                assert any(rule.part is Part.WAY and rule.chain == "PREROUTING" for rule in listed)
        owned = {c for fragment in rules.fragments.values() for c in fragment.chains}
        reached = {rule.jump for c, chain in rules.tables["nat"].items() if c not in owned for rule in chain} & owned
        while further := {rule.jump for c in reached for rule in rules.tables["nat"][c]} & owned - reached:
            reached |= further
        assert {m for m in written if m[0] == "nat" and m[1] in reached} <= told, (
            "every chain that a packet can enter is told"
        )
