"""Field ownership and server-side apply."""

from __future__ import annotations

from typing import Any

from kproxy.lab.api import kinds
from kproxy.lab.api.managed import find_conflicts, from_fields, path_text, paths_of, to_fields
from kproxy.lab.api.registry import WriteOptions
from kproxy.lab.api.requests import Target
from kproxy.lab.api.schema import structure_of
from kproxy.lab.api.values import encode
from kproxy.lab.api.writing import WriteRequest, write
from tests.unit.lab_api.conftest import World

SERVICE = structure_of(kinds.SERVICES)


def apply(world: World, manager: str, spec: dict[str, Any], *, force: bool = False) -> dict[str, Any]:
    body = encode({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "s"}, "spec": spec})
    query = {"fieldManager": manager, **({"force": "true"} if force else {})}
    request = WriteRequest(
        method="PATCH",
        target=Target(kinds.SERVICES, "default", "s", ""),
        body=body,
        content_type="application/apply-patch+yaml",
        query=query,
        user_agent="test",
    )
    return write(world.cluster.registry, request).body


def ports(*numbers: int, **extra: Any) -> list[dict[str, Any]]:
    return [{"port": number, "protocol": "TCP", "name": f"p{number}", **extra} for number in numbers]


def test_sets_of_fields_survive_their_writing() -> None:
    obj = {
        "metadata": {"labels": {"a": "b"}, "finalizers": ["x/y"]},
        "spec": {"ports": ports(80), "selector": {"a": "b"}},
    }
    paths = set(paths_of(SERVICE, obj))
    assert from_fields(to_fields(paths)) == paths
    assert ("f:spec", "f:selector") in paths, "an atomic map is one field"
    assert ("f:metadata", "f:finalizers", 'v:"x/y"') in paths
    name = ("f:spec", "f:ports", 'k:{"port":80,"protocol":"TCP"}', "f:name")
    assert name in paths
    assert path_text(name) == '.spec.ports[port=80,protocol="TCP"].name'


def test_applying_twice_changes_nothing(empty: World) -> None:
    first = apply(empty, "me", {"ports": ports(80)})
    assert apply(empty, "me", {"ports": ports(80)})["spec"] == first["spec"]


def test_what_is_no_longer_applied_goes(empty: World) -> None:
    apply(empty, "me", {"ports": ports(80, 81), "selector": {"a": "b"}})
    after = apply(empty, "me", {"ports": ports(81)})
    assert [port["port"] for port in after["spec"]["ports"]] == [81]
    assert "selector" not in after["spec"]


def test_what_another_manager_applies_too_stays(empty: World) -> None:
    apply(empty, "me", {"ports": ports(80, 81)})
    apply(empty, "you", {"ports": ports(80)})
    after = apply(empty, "me", {"ports": ports(81)})
    assert [port["port"] for port in after["spec"]["ports"]] == [80, 81]


def test_another_value_of_anothers_field_is_a_conflict(empty: World) -> None:
    apply(empty, "me", {"ports": ports(80, targetPort=1)})
    message = empty.refused(lambda: apply(empty, "you", {"ports": ports(80, targetPort=2)}))
    assert message == 'Apply failed with 1 conflict: conflict with "me": .spec.ports[port=80,protocol="TCP"].targetPort'
    forced = apply(empty, "you", {"ports": ports(80, targetPort=2)}, force=True)
    assert forced["spec"]["ports"][0]["targetPort"] == 2
    mine = empty.refused(lambda: apply(empty, "me", {"ports": ports(80, targetPort=1)}))
    assert 'conflict with "you"' in mine


def test_a_plain_write_takes_fields_over(empty: World) -> None:
    apply(empty, "me", {"ports": ports(80), "sessionAffinity": "None"})
    editor = WriteOptions(manager="editor")

    def change(obj: dict[str, Any]) -> dict[str, Any]:
        obj["spec"]["sessionAffinity"] = "ClientIP"
        return obj

    live = empty.cluster.registry.update(kinds.SERVICES, "default", "s", change, editor)
    wanted = {"spec": {"sessionAffinity": "None"}}
    conflicts = find_conflicts(SERVICE, live, wanted, "me", "")
    assert [conflict.manager for conflict in conflicts] == ['"editor" using v1']


def test_an_applied_port_without_protocol_is_the_tcp_port(empty: World) -> None:
    apply(empty, "me", {"ports": ports(80)})
    after = apply(empty, "me", {"ports": [{"port": 80, "name": "renamed"}]})
    assert [(port["port"], port["name"]) for port in after["spec"]["ports"]] == [(80, "renamed")]
