"""Layered maps are dicts that do not change, whatever is done to later versions; and they know what lies between two of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kproxy.dns.order import Order
from kproxy.model import layered
from kproxy.model.layered import Draft, Layered, changeable, finished, touched_between

keys = st.integers(0, 12)
steps = st.lists(st.lists(st.tuples(keys, st.none() | st.integers(0, 2)), max_size=4), max_size=10)


@pytest.fixture(autouse=True, scope="module")
def small() -> Iterator[None]:
    """A few entries are many here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layered, "LAYER", 5)
        patch.setattr(layered, "JOURNAL", 6)
        yield


def _changed(before: dict[int, object], step: list[tuple[int, int | None]]) -> dict[int, object]:
    after = dict(before)
    for key, value in step:
        if value is None:
            after.pop(key, None)
        else:
            after[key] = [value]
    return after


@given(first=st.dictionaries(keys, st.integers(0, 2).map(lambda n: [n])), happened=steps, chance=st.data())
def test_every_version_is_the_dict_it_should_be(
    first: dict[int, object], happened: list[list[tuple[int, int | None]]], chance: st.DataObject
) -> None:
    made: list[tuple[Mapping[int, object], dict[int, object]]] = [(first, first)]
    for step in happened:
        # Mostly the newest is changed, sometimes an older one: its line is another one then.
        before, plain = made[chance.draw(st.sampled_from([-1, -1, -1, 0]))]
        after = _changed(plain, step)
        draft = changeable(before, chance.draw(st.sampled_from([1, 9])))
        for key in plain.keys() | after.keys():
            if key not in after:
                assert draft.pop(key) is plain[key]
            elif after[key] is not plain.get(key):
                draft[key] = after[key]
            assert draft.get(key) is after.get(key)
        assert len(draft) == len(after) and dict(draft.items()) == after and set(draft) == set(after)
        made.append((finished(draft), after))
        if chance.draw(st.booleans()) and isinstance(made[-1][0], Layered):
            made[-1][0].whole()
    for version, plain in made:
        assert version == plain and len(version) == len(plain)
        for key in range(13):
            assert version.get(key) is plain.get(key) and (key in version) == (key in plain)
        if isinstance(version, Layered):
            assert list(version.values()) == [version[key] for key in version] and repr(version) == repr(
                version.whole()
            )
    for one, old in made:
        for other, new in made:
            touched = touched_between(one, other)
            differing = {key for key in old.keys() | new.keys() if old.get(key) is not new.get(key)}
            assert touched is None or differing <= touched


def test_neighbours_of_a_line_know_what_was_touched() -> None:
    versions: list[Mapping[int, int]] = [Layered.of({n: n for n in range(100)})]
    for n in range(20):
        draft = Draft(versions[-1])
        draft[n] = -n
        versions.append(draft.finish())
    assert touched_between(versions[-2], versions[-1]) == {19} == touched_between(versions[-1], versions[-2])
    assert touched_between(versions[-4], versions[-1]) == {17, 18, 19}
    assert touched_between(versions[0], versions[-1]) is None  # forgotten: the journal is bounded
    with pytest.raises(KeyError):
        Draft(versions[-1]).pop(1000)
    gone = Draft(versions[-1])
    del gone[3]
    for mapping in (gone, gone.finish()):
        assert 3 not in mapping
        with pytest.raises(KeyError):
            mapping[3]


addresses = st.one_of(st.binary(min_size=4, max_size=4), st.integers(0, 40).map(lambda n: bytes((10, 0, 0, n))),
                      st.integers(0, 9).map(lambda n: bytes(15) + bytes((n,))))  # fmt: skip


@given(
    first=st.sets(addresses),
    turns=st.lists(st.sets(addresses, max_size=6), max_size=8),
    ends=st.tuples(addresses, addresses),
)
def test_order_finds_what_lies_between(first: set[bytes], turns: list[set[bytes]], ends: tuple[bytes, bytes]) -> None:
    order, now = Order.of(first), set(first)
    low, high = sorted(ends)
    for turn in turns:  # each address of a turn goes when it is there, and comes when it is not
        order = order.after(turn & now, turn - now)
        now ^= turn
        assert order.every() == now and order == Order.of(now)
        if len(low) == len(high):
            between = sorted(address for address in now if len(address) == len(low) and low <= address <= high)
            assert order.between(low, high) == between
            assert order.holds(low, high) == bool(between)


def test_order_is_sorted_anew_when_much_has_changed() -> None:
    first = [bytes((10, 0, n, m)) for n in range(24) for m in range(250)]
    order = Order.of(first)
    for n in range(7):
        order = order.after(first[n * 500 : n * 500 + 500], [bytes((11, n, 0, m)) for m in range(250)])
    assert 0 < len(order.came) + len(order.went) == 750 and order.four != Order.of(first).four
    assert order.between(bytes((10, 0, 0, 0)), bytes((12, 0, 0, 0))) == sorted(order.every())
    assert len(order.every()) == 24 * 250 - 7 * 250 and not order.holds(bytes((10, 0, 0, 0)), bytes((10, 0, 0, 9)))
