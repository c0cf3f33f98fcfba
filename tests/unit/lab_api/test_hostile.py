"""Whatever a client sends is answered: stored, or refused with an ApiError. Nothing raises, and the controllers survive what was stored."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from kproxy.lab.api import kinds
from kproxy.lab.api.kinds import RESOURCES, Resource
from kproxy.lab.api.patch import JSON_PATCH, MERGE_PATCH, STRATEGIC_PATCH
from kproxy.lab.api.requests import Target, parse_path
from kproxy.lab.api.schema import Field, Type, structure_of, structures
from kproxy.lab.api.selectors import selection
from kproxy.lab.api.status import ApiError
from kproxy.lab.api.writing import WriteRequest, write
from tests.unit.lab_api.conftest import World, make_world

scalars = st.one_of(
    st.none(), st.booleans(), st.integers(-5, 70_000), st.floats(allow_nan=False, width=16), st.text(max_size=8),
    st.sampled_from(["10.96.0.9", "fd00::1", "None", "10.0.0.0/8", "25%", "TCP", "ClientIP", "NodePort", "LoadBalancer", "a=b", "é"]),
)  # fmt: skip
anything = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=6), inner, max_size=3)),
    max_leaves=8,
)


def shaped(kind: Type, depth: int = 4) -> st.SearchStrategy[Any]:
    """Values of a type's shape, mostly: now and then anything at all."""
    if depth == 0:
        return anything
    if kind.kind == "struct":
        fields = structures()[kind.structure].fields
        return st.one_of(
            structure(list(fields.values()), depth - 1), structure(list(fields.values()), depth - 1), anything
        )
    if kind.kind == "list" and kind.item is not None:
        return st.lists(shaped(kind.item, depth - 1), max_size=2)
    if kind.kind == "map" and kind.item is not None:
        return st.dictionaries(
            st.sampled_from(["a", "b/c", "app", "", "A B"]), shaped(kind.item, depth - 1), max_size=2
        )
    return scalars


def structure(fields: list[Field], depth: int) -> st.SearchStrategy[dict[str, Any]]:
    """A few fields of a structure."""
    chosen = st.lists(st.sampled_from(fields), max_size=5, unique_by=lambda item: item.name) if fields else st.just([])
    return chosen.flatmap(lambda items: st.fixed_dictionaries({i.name: shaped(i.type, depth) for i in items}))


def objects(resource: Resource) -> st.SearchStrategy[dict[str, Any]]:
    """Objects of a kind, with a name that may be one."""
    fields = [f for f in structure_of(resource).fields.values() if f.name not in ("metadata", "apiVersion", "kind")]
    name = st.one_of(st.just("x"), st.text(max_size=4))
    metadata = st.fixed_dictionaries(
        {"name": name}, optional={"labels": anything, "annotations": anything, "finalizers": anything}
    )
    whole = st.fixed_dictionaries({"metadata": st.one_of(metadata, metadata, anything)})
    return st.tuples(whole, structure(fields, 5)).map(lambda parts: {**parts[1], **parts[0]})


def send(world: World, method: str, resource: Resource, name: str, body: Any, content_type: str, **query: str) -> None:
    namespace = "default" if resource.namespaced else ""
    request = WriteRequest(
        method=method,
        target=Target(resource, namespace, name, ""),
        body=json.dumps(body).encode(),
        content_type=content_type,
        query=query,
        user_agent="fuzz",
    )
    try:
        answer = write(world.cluster.registry, request)
    except ApiError as error:
        assert error.status()["code"] >= 400
        return
    assert json.dumps(answer.body)


@given(st.data())
def test_any_object_is_stored_or_refused(data: st.DataObject) -> None:
    world = make_world(hollow_nodes=1)
    resource = data.draw(st.sampled_from(RESOURCES), label="resource")
    send(world, "POST", resource, "", data.draw(objects(resource), label="object"), "application/json")
    world.settle()


@given(st.data())
def test_any_patch_is_applied_or_refused(data: st.DataObject) -> None:
    world = make_world(hollow_nodes=1)
    world.service("x", selector={"app": "a"}, type="LoadBalancer")
    template = {"metadata": {"labels": {"app": "a"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}
    world.create(kinds.DEPLOYMENTS, "x", {"selector": {"matchLabels": {"app": "a"}}, "template": template})
    world.settle()
    resource = data.draw(st.sampled_from((kinds.SERVICES, kinds.DEPLOYMENTS)), label="resource")
    language = data.draw(st.sampled_from((MERGE_PATCH, STRATEGIC_PATCH, JSON_PATCH, "application/apply-patch+yaml")))
    if language == JSON_PATCH:
        operation = st.fixed_dictionaries(
            {"op": st.sampled_from(("add", "remove", "replace", "move", "copy", "test")), "value": anything},
            optional={"from": st.sampled_from(("/spec", "/spec/ports/0", "/x"))},
        )
        path = st.sampled_from(
            ("/spec/ports/0/port", "/spec/ports/-", "/spec", "", "/metadata/labels/a~1b", "/spec/template")
        )
        patch: Any = data.draw(st.lists(st.tuples(operation, path).map(lambda p: {**p[0], "path": p[1]}), max_size=3))
    else:
        patch = data.draw(st.one_of(objects(resource), anything), label="patch")
    if language.startswith("application/apply") and isinstance(patch, dict):
        patch = {"apiVersion": resource.api_version, "kind": resource.kind, **patch}
    send(world, "PATCH", resource, "x", patch, language, fieldManager="fuzz", force="true")
    world.settle()


@given(st.text(max_size=60))
def test_any_path_and_selector_is_read_or_refused(text: str) -> None:
    for attempt in (
        lambda: parse_path("/" + text),
        lambda: parse_path("/api/v1/namespaces/" + text),
        lambda: selection(kinds.PODS, {"labelSelector": text, "fieldSelector": ""}),
        lambda: selection(kinds.PODS, {"fieldSelector": text}),
    ):
        try:
            attempt()
        except ApiError as error:
            assert error.code in (400, 404)
