"""Laws of `fold`: facts count, not the way they came."""

from __future__ import annotations

import random
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from kproxy.model.events import Applied, Event, Removed, Replaced
from kproxy.model.objects import Decoded, EndpointSlice, Kind
from kproxy.model.snapshot import Snapshot, differing, fold
from tests.support.strategies import distinct_objects, events, histories


def _same_facts(one: Snapshot, other: Snapshot) -> bool:
    """Equal but for the statement that kinds are complete, which only a list can make."""
    return replace(one, synced=frozenset()) == replace(other, synced=frozenset())


def _check_index(snapshot: Snapshot) -> None:
    wanted: dict[object, list[EndpointSlice]] = {}
    for item in sorted(snapshot.slices.values(), key=lambda s: s.name):
        wanted.setdefault(item.service, []).append(item)
    assert dict(snapshot.slices_of) == {service: tuple(items) for service, items in wanted.items()}


@given(distinct_objects, st.randoms(use_true_random=False))
def test_the_order_of_events_about_different_objects_means_nothing(
    objects: tuple[Decoded, ...], chance: random.Random
) -> None:
    shuffled = list(objects)
    chance.shuffle(shuffled)
    assert fold(Snapshot(), map(Applied, objects)) == fold(Snapshot(), map(Applied, shuffled))


@given(distinct_objects)
def test_a_list_equals_its_objects_one_by_one(objects: tuple[Decoded, ...]) -> None:
    lists = [Replaced(kind, tuple(d for d in objects if d.key.kind is kind)) for kind in Kind]
    listed = fold(Snapshot(), lists)
    single = Snapshot()
    for decoded in objects:
        single = fold(single, [Applied(decoded)])
    assert _same_facts(listed, single)
    assert listed.synced == frozenset(Kind)
    assert single.synced == frozenset()


@given(events)
def test_all_at_once_equals_one_by_one(happened: list[Event]) -> None:
    single = Snapshot()
    for event in happened:
        single = fold(single, [event])
        _check_index(single)
    assert fold(Snapshot(), happened) == single


@given(events, events)
def test_a_repeated_event_changes_nothing_at_all(before: list[Event], happened: list[Event]) -> None:
    snapshot = fold(Snapshot(), before)
    for event in happened:
        snapshot = fold(snapshot, [event])
        again = fold(snapshot, [event])
        assert again == snapshot
        assert isinstance(event, Replaced) or again is snapshot
        assert again.services is snapshot.services
        assert again.slices_of is snapshot.slices_of


@given(events, distinct_objects)
def test_a_list_heals_whatever_was_missed(happened: list[Event], objects: tuple[Decoded, ...]) -> None:
    lists = [Replaced(kind, tuple(d for d in objects if d.key.kind is kind)) for kind in Kind]
    healed, fresh = fold(fold(Snapshot(), happened), lists), fold(Snapshot(), lists)
    usable = {d.key for d in objects if d.object is not None}
    assert replace(healed, local_addresses=frozenset()) == fresh
    assert len(usable) == sum(len(m) for m in (healed.services, healed.slices, healed.nodes))


@given(events)
def test_what_is_removed_is_gone(happened: list[Event]) -> None:
    snapshot = fold(Snapshot(), happened)
    keys = {event.object.key for event in happened if isinstance(event, Applied)}
    emptied = fold(
        snapshot, map(Removed, [*keys, *(d.key for e in happened if isinstance(e, Replaced) for d in e.objects)])
    )
    assert not emptied.services and not emptied.slices and not emptied.nodes and not emptied.problems
    assert not emptied.slices_of


@given(histories, st.randoms(use_true_random=False))
def test_what_differs_is_found_whatever_the_order(happened: list[Event], chance: random.Random) -> None:
    """The quick sweep and the slow comparison agree with the definition."""
    middle = chance.randint(0, len(happened))
    one = fold(Snapshot(), happened[:middle])
    for other in (fold(one, happened[middle:]), fold(Snapshot(), happened)):
        for before, now in ((one.services, other.services), (one.slices_of, other.slices_of)):
            wanted = {key for key in before.keys() | now.keys() if before.get(key) is not now.get(key)}
            assert differing(before, now) == wanted
            assert differing(now, before) == wanted
