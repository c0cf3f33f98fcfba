"""`fold`, case by case; its laws are in tests/property."""

from __future__ import annotations

from kproxy.model.events import AddressesChanged, Applied, Removed, Replaced
from kproxy.model.names import NamespacedName
from kproxy.model.objects import Decoded, Kind, ObjectKey, Problem, key_of
from kproxy.model.snapshot import Snapshot, fold
from tests.support.builders import applied, ep, node, slice_, snapshot, svc

_SERVICE = NamespacedName("ns1", "svc1")


def test_a_list_makes_its_kind_synced_even_when_empty() -> None:
    found = fold(Snapshot(), [Replaced(Kind.SERVICE, ())])
    assert found.synced == {Kind.SERVICE}
    assert fold(found, applied(svc())).synced == {Kind.SERVICE}


def test_a_list_removes_what_it_does_not_name() -> None:
    cluster = snapshot(svc(), svc("172.30.0.42", name="svc2"), slice_(ep("10.0.0.1")))
    found = fold(cluster, [Replaced(Kind.SERVICE, (svc().decoded,))])
    assert set(found.services) == {_SERVICE}
    assert found.slices is cluster.slices


def test_a_list_that_is_the_same_keeps_every_object() -> None:
    cluster = snapshot(svc(), slice_(ep("10.0.0.1")))
    found = fold(cluster, [Replaced(Kind.ENDPOINT_SLICE, (slice_(ep("10.0.0.1")).decoded,))])
    assert found.slices_of is cluster.slices_of
    assert found.slices[NamespacedName("ns1", "svc1-ipv4")] is cluster.slices[NamespacedName("ns1", "svc1-ipv4")]


def test_a_slice_that_changes_its_owner_leaves_the_old_one() -> None:
    moved = slice_(ep("10.0.0.1"), of="svc2", name="svc1-ipv4")
    found = fold(snapshot(slice_(ep("10.0.0.1"))), applied(moved))
    assert set(found.slices_of) == {NamespacedName("ns1", "svc2")}


def test_an_object_that_became_unusable_is_gone_and_its_problem_stays() -> None:
    key, problem = key_of(svc().object), Problem("Service", "ns1/svc1", "broken")
    found = fold(snapshot(svc()), [Applied(Decoded(key=key, object=None, problems=(problem,)))])
    assert not found.services
    assert found.problems == {key: (problem,)}
    assert fold(found, [Removed(key)]).problems == {}


def test_removing_what_is_not_there_changes_nothing() -> None:
    cluster = snapshot(svc())
    assert fold(cluster, [Removed(ObjectKey(Kind.SERVICE, NamespacedName("no", "such")))]) is cluster


def test_addresses() -> None:
    found = fold(Snapshot(), [AddressesChanged(frozenset({"10.0.0.1"}))])
    assert found.local_addresses == {"10.0.0.1"}
    assert fold(found, [AddressesChanged(frozenset({"10.0.0.1"}))]) is found
    back = fold(found, [AddressesChanged(frozenset()), AddressesChanged(frozenset({"10.0.0.1"}))])
    assert back == found


def test_nodes_and_namespaces_are_found_by_name() -> None:
    found = snapshot(node("n1"))
    assert found.node("n1") is not None
    assert found.node("n2") is None
    assert not found.has_namespace("n1")


def test_many_slices_in_one_list_are_indexed_by_service() -> None:
    built = [slice_(ep("10.0.0.1"), of=f"svc{n}", name=f"s{n}-{m}") for n in range(12) for m in (2, 1)]
    found = snapshot(*built)
    assert [s.name.name for s in found.slices_of[NamespacedName("ns1", "svc7")]] == ["s7-1", "s7-2"]


def test_slices_that_change_by_the_dozen_are_indexed_by_service() -> None:
    before = snapshot(*(slice_(ep("10.0.0.1"), of=f"svc{n}", name=f"s{n}-{m}") for n in range(60) for m in (2, 1)))
    moved = [slice_(ep("10.0.0.2"), of=f"svc{n + 1}", name=f"s{n}-1") for n in range(12)]
    gone = Removed(slice_(ep("10.0.0.1"), of="svc40", name="s40-1").decoded.key)
    after = fold(before, [*(Applied(each.decoded) for each in moved), gone])
    held = {name.name: [s.name.name for s in items] for name, items in after.slices_of.items()}
    assert held["svc0"] == ["s0-2"]
    assert held["svc5"] == ["s4-1", "s5-2"]
    assert held["svc12"] == ["s11-1", "s12-1", "s12-2"]
    assert held["svc40"] == ["s40-2"]
    assert held["svc59"] == ["s59-1", "s59-2"]
    assert after.slices_of[NamespacedName("ns1", "svc50")] is before.slices_of[NamespacedName("ns1", "svc50")]
