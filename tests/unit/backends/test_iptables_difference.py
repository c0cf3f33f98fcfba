"""What is told about rules that are not as wanted: the right chain, the right words, and nothing when there is nothing to write."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from kproxy.backends.iptables.compile import compile_ruleset
from kproxy.backends.iptables.difference import ChainDifference, differences
from kproxy.backends.iptables.plan import plan
from kproxy.backends.iptables.rules import Rule
from kproxy.backends.iptables.ruleset import Chain, Place, Ruleset
from kproxy.backends.iptables.settings import IptablesSettings
from kproxy.model.desired import NodeSettings
from kproxy.model.names import Family
from kproxy.model.resolve import resolve
from kproxy.watch.manifests import load, snapshot_of

CLUSTER = Path(__file__).resolve().parents[2] / "golden" / "scenarios" / "load-balancer-local" / "cluster.yaml"
EXTRA = Rule("-s 192.0.2.1/32 -j RETURN")


@pytest.fixture(scope="module")
def wanted() -> Ruleset:
    snapshot = snapshot_of(load([CLUSTER]))
    return compile_ruleset(resolve(snapshot, NodeSettings(name="node-1")), IptablesSettings())


def _with(ruleset: Ruleset, place: Place, chain: Chain | None) -> Ruleset:
    """IPv4 with one chain replaced, or without it."""
    chains = {name: rules for name, rules in ruleset.ipv4.tables[place.table].items() if name != place.chain}
    if chain is not None:
        chains[place.chain] = chain
    return replace(ruleset, ipv4=replace(ruleset.ipv4, tables={**ruleset.ipv4.tables, place.table: chains}))


def _one(observed: Ruleset, wanted: Ruleset) -> ChainDifference:
    (found,) = differences(observed, wanted)
    return found


def _balancing(ruleset: Ruleset) -> Place:
    """A chain of a ServicePort with two endpoints."""
    chain = next(c for c, rules in ruleset.ipv4.tables["nat"].items() if c.startswith("KUBE-SVC-") and len(rules) == 2)
    return Place("nat", chain)


def test_nothing_differs_when_nothing_would_be_written(wanted: Ruleset) -> None:
    assert differences(wanted, wanted) == ()
    chain = wanted.ipv4.tables["nat"]["KUBE-SERVICES"]
    shuffled = _with(wanted, Place("nat", "KUBE-SERVICES"), (*reversed(chain[:-1]), chain[-1]))
    assert not plan(shuffled, wanted).batches
    assert differences(shuffled, wanted) == ()


def test_a_rule_that_is_missing_and_one_too_many(wanted: Ruleset) -> None:
    place = _balancing(wanted)
    rules = wanted.ipv4.tables[place.table][place.chain]
    lost = _one(_with(wanted, place, rules[1:]), wanted)
    assert (lost.place, lost.missing, lost.extra, lost.absent) == (place, rules[:1], (), False)
    assert str(lost) == f"IPv4 nat {place.chain}: 1 missing"
    more = _one(_with(wanted, place, (EXTRA, *rules)), wanted)
    assert (more.missing, more.extra) == ((), (EXTRA,))
    other = _one(_with(wanted, place, (EXTRA, rules[1])), wanted)
    assert str(other) == f"IPv4 nat {place.chain}: 1 missing, 1 extra"


def test_rules_in_another_order_where_order_has_a_meaning(wanted: Ruleset) -> None:
    place = _balancing(wanted)
    rules = wanted.ipv4.tables[place.table][place.chain]
    moved = _one(_with(wanted, place, rules[::-1]), wanted)
    assert (moved.moved, moved.missing, moved.extra) == (True, (), ())
    assert "another order" in str(moved)


def test_a_jump_and_an_entry_of_a_dispatch_chain(wanted: Ruleset) -> None:
    for place in (Place("nat", "PREROUTING"), Place("nat", "KUBE-SERVICES")):
        rules = wanted.ipv4.tables[place.table][place.chain]
        found = _one(_with(wanted, place, rules[1:]), wanted)
        assert (found.place, found.missing, found.extra) == (place, rules[:1], ())


def test_chains_that_are_missing_or_not_wanted(wanted: Ruleset) -> None:
    place = _balancing(wanted)
    rules = wanted.ipv4.tables[place.table][place.chain]
    gone = _one(_with(wanted, place, None), wanted)
    assert (gone.absent, gone.missing) == (True, rules)
    assert "chain is missing" in str(gone)
    stale = Place("nat", "KUBE-SVC-AAAAAAAAAAAAAAAA")
    left = _one(_with(wanted, stale, (EXTRA,)), wanted)
    assert (left.unwanted, left.extra, left.place) == (True, (EXTRA,), stale)
    assert "chain is not wanted" in str(left)


def test_other_peoples_chains_and_other_spellings_are_no_difference(wanted: Ruleset) -> None:
    theirs = _with(wanted, Place("nat", "CNI-HOSTPORT"), (EXTRA,))
    assert differences(theirs, wanted) == ()
    place = Place("nat", "KUBE-MARK-MASQ")
    assert wanted.ipv4.tables["nat"]["KUBE-MARK-MASQ"] == (Rule("-j MARK --set-xmark 0x4000/0x4000"),)
    assert differences(_with(wanted, place, (Rule("-j MARK --or-mark 0x4000"),)), wanted) == ()


def test_an_empty_kernel_lacks_everything(wanted: Ruleset) -> None:
    found = differences(Ruleset(), wanted)
    assert sum(len(each.missing) for each in found) == wanted.rule_count
    assert {each.family for each in found} == set(Family)
