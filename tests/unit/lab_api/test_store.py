"""The store: revisions, snapshots of the past, the bounded log."""

from __future__ import annotations

import pytest

from kproxy.lab.api import kinds
from kproxy.lab.api.status import ApiError
from kproxy.lab.api.store import Store


def put(store: Store, name: str, **data: str) -> int:
    obj = {"metadata": {"name": name, "namespace": "default"}, "data": data}
    return store.put(kinds.CONFIG_MAPS, obj).revision


def names(store: Store, revision: int) -> list[str]:
    return [record.key[1] for record in store.snapshot(kinds.CONFIG_MAPS, "default", revision)]


def test_every_write_has_a_revision_of_its_own() -> None:
    store = Store(first_revision=100)
    assert [put(store, "a"), put(store, "b"), put(store, "a", x="1")] == [101, 102, 103]
    assert store.get(kinds.CONFIG_MAPS, "default", "a").object["metadata"]["resourceVersion"] == "103"


def test_a_snapshot_shows_the_past() -> None:
    store = Store()
    first = put(store, "b")
    second = put(store, "a")
    store.remove(kinds.CONFIG_MAPS, "default", "b")
    third = put(store, "c", x="1")
    assert names(store, first) == ["b"]
    assert names(store, second) == ["a", "b"]
    assert names(store, third) == ["a", "c"]


def test_a_snapshot_shows_old_contents() -> None:
    store = Store()
    old = put(store, "a", x="1")
    put(store, "a", x="2")
    assert store.snapshot(kinds.CONFIG_MAPS, "", old)[0].object["data"] == {"x": "1"}


def test_a_forgotten_past_is_expired() -> None:
    store = Store(history=2)
    old = put(store, "a")
    for number in range(3):
        put(store, f"b{number}")
    with pytest.raises(ApiError) as caught:
        store.snapshot(kinds.CONFIG_MAPS, "", old)
    assert (caught.value.code, caught.value.reason) == (410, "Expired")


def test_compacting_forgets_everything_and_keeps_the_objects() -> None:
    store = Store()
    old = put(store, "a")
    put(store, "b")
    store.compact()
    log = store.log(kinds.CONFIG_MAPS)
    assert old < log.compacted == store.revision
    assert names(store, store.revision) == ["a", "b"]


def test_a_reader_that_fell_off_the_log_is_told() -> None:
    store = Store(history=2)
    log = store.log(kinds.CONFIG_MAPS)
    position = log.end
    put(store, "a")
    assert [change.type for change in log.read(position)] == ["ADDED"]
    put(store, "a", x="1")
    put(store, "a", x="2")
    assert log.read(position) is None


def test_a_deleted_object_is_shown_under_the_revision_of_its_deletion() -> None:
    store = Store()
    put(store, "a")
    record = store.remove(kinds.CONFIG_MAPS, "default", "a")
    assert record.object["metadata"]["resourceVersion"] == str(store.revision)
    assert store.get(kinds.CONFIG_MAPS, "default", "a") is None
