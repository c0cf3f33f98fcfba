"""The three patch languages."""

from __future__ import annotations

from typing import Any

import pytest

from kproxy.lab.api import kinds
from kproxy.lab.api.patch import PatchError, json_patch, merge_patch, strategic_merge
from kproxy.lab.api.schema import structure_of

SERVICE = structure_of(kinds.SERVICES)
POD = structure_of(kinds.PODS)


# The examples of RFC 7386, appendix A.
@pytest.mark.parametrize(
    ("target", "patch", "result"),
    [
        ({"a": "b"}, {"a": "c"}, {"a": "c"}),
        ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
        ({"a": "b"}, {"a": None}, {}),
        ({"a": "b", "b": "c"}, {"a": None}, {"b": "c"}),
        ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
        ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
        ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}),
        ({"e": None}, {"a": 1}, {"e": None, "a": 1}),
        ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
    ],
)
def test_merge_patch(target: Any, patch: Any, result: Any) -> None:
    assert merge_patch(target, patch) == result


# From RFC 6902, appendix A.
@pytest.mark.parametrize(
    ("target", "operations", "result"),
    [
        ({"foo": "bar"}, [{"op": "add", "path": "/baz", "value": "qux"}], {"baz": "qux", "foo": "bar"}),
        ({"foo": ["a", "c"]}, [{"op": "add", "path": "/foo/1", "value": "b"}], {"foo": ["a", "b", "c"]}),
        ({"foo": ["a"]}, [{"op": "add", "path": "/foo/-", "value": "b"}], {"foo": ["a", "b"]}),
        ({"a": 1, "b": 2}, [{"op": "remove", "path": "/a"}], {"b": 2}),
        ({"foo": ["a", "b"]}, [{"op": "remove", "path": "/foo/0"}], {"foo": ["b"]}),
        ({"a": 1}, [{"op": "replace", "path": "/a", "value": 2}], {"a": 2}),
        ({"a": {"b": 1}, "c": {}}, [{"op": "move", "from": "/a/b", "path": "/c/d"}], {"a": {}, "c": {"d": 1}}),
        ({"a": [1]}, [{"op": "copy", "from": "/a", "path": "/b"}], {"a": [1], "b": [1]}),
        ({"a~b/c": 1}, [{"op": "test", "path": "/a~0b~1c", "value": 1}], {"a~b/c": 1}),
    ],
)
def test_json_patch(target: Any, operations: Any, result: Any) -> None:
    assert json_patch(target, operations) == result


@pytest.mark.parametrize(
    "operations",
    [
        [{"op": "remove", "path": "/absent"}],
        [{"op": "replace", "path": "/absent", "value": 1}],
        [{"op": "test", "path": "/a", "value": 2}],
        [{"op": "add", "path": "/a/b/c", "value": 1}],
        [{"op": "add", "path": "/list/9", "value": 1}],
        [{"op": "fly", "path": "/a"}],
        [{"path": 7}],
        {"op": "add"},
        ["add"],
    ],
)
def test_json_patch_refuses(operations: Any) -> None:
    with pytest.raises(PatchError):
        json_patch({"a": 1, "list": []}, operations)


PORTS = [{"name": "a", "port": 80, "targetPort": 1}, {"name": "b", "port": 81, "targetPort": 2}]


@pytest.mark.parametrize(
    ("patch", "ports"),
    [
        ([{"port": 80, "targetPort": 9}], [{"name": "a", "port": 80, "targetPort": 9}, PORTS[1]]),
        ([{"port": 82}], [*PORTS, {"port": 82}]),
        ([{"port": 80, "$patch": "delete"}], [PORTS[1]]),
        ([{"$patch": "replace"}, {"port": 99}], [{"port": 99}]),
        ([{"port": 80, "name": None}], [{"port": 80, "targetPort": 1}, PORTS[1]]),
    ],
)
def test_strategic_merge_of_ports(patch: Any, ports: Any) -> None:
    live = {"spec": {"ports": [dict(port) for port in PORTS]}}
    assert strategic_merge(live, {"spec": {"ports": patch}}, SERVICE)["spec"]["ports"] == ports


def test_strategic_merge_orders_as_asked_and_keeps_others_in_place() -> None:
    live = {"spec": {"ports": [{"port": 1}, {"port": 2}, {"port": 3}]}}
    patch = {"spec": {"$setElementOrder/ports": [{"port": 3}, {"port": 1}], "ports": [{"port": 1, "name": "x"}]}}
    ports = strategic_merge(live, patch, SERVICE)["spec"]["ports"]
    assert [port["port"] for port in ports].index(3) < [port["port"] for port in ports].index(1)
    assert {port["port"] for port in ports} == {1, 2, 3}


def test_strategic_merge_of_plain_lists_and_maps() -> None:
    live = {
        "metadata": {"finalizers": ["a", "b"], "labels": {"x": "1", "y": "2"}},
        "spec": {"externalIPs": ["1.1.1.1"]},
    }
    patch = {
        "metadata": {
            "$deleteFromPrimitiveList/finalizers": ["a"],
            "finalizers": ["c"],
            "labels": {"x": None, "z": "3"},
        },
        "spec": {"externalIPs": ["2.2.2.2"]},
    }
    merged = strategic_merge(live, patch, SERVICE)
    assert merged["metadata"] == {"finalizers": ["b", "c"], "labels": {"y": "2", "z": "3"}}
    assert merged["spec"]["externalIPs"] == ["2.2.2.2"], "a list that is no set is replaced"


def test_strategic_merge_replaces_and_retains_keys() -> None:
    live = {"spec": {"volumes": [{"name": "v", "emptyDir": {}}], "containers": [{"name": "c", "image": "1"}]}}
    patch = {
        "spec": {
            "volumes": [{"$retainKeys": ["name", "configMap"], "name": "v", "configMap": {"name": "cm"}}],
            "containers": [{"name": "c", "image": "2"}],
        }
    }
    merged = strategic_merge(live, patch, POD)["spec"]
    assert merged["volumes"] == [{"name": "v", "configMap": {"name": "cm"}}]
    assert merged["containers"] == [{"name": "c", "image": "2"}]


def test_strategic_merge_needs_the_merge_key() -> None:
    with pytest.raises(PatchError) as caught:
        strategic_merge({"spec": {"ports": []}}, {"spec": {"ports": [{"name": "x"}]}}, SERVICE)
    assert caught.value.malformed


def test_json_patch_must_leave_an_object() -> None:
    with pytest.raises(PatchError):
        json_patch({"a": 1}, [{"op": "remove", "path": ""}])
