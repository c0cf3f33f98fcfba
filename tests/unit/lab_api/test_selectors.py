"""Label and field selectors."""

from __future__ import annotations

import pytest

from kproxy.lab.api import kinds
from kproxy.lab.api.selectors import (
    label_selector,
    matches_labels,
    parse_label_selector,
    selection,
    selector_text,
)
from kproxy.lab.api.status import ApiError


@pytest.mark.parametrize(
    ("text", "labels", "matches"),
    [
        ("a=b", {"a": "b"}, True),
        ("a==b", {"a": "c"}, False),
        ("a!=b", {}, True),
        ("a!=b", {"a": "b"}, False),
        ("a", {"a": ""}, True),
        ("!a", {"a": ""}, False),
        ("!a", {}, True),
        ("a in (b, c)", {"a": "c"}, True),
        ("a in (b,c),d=e", {"a": "c", "d": "f"}, False),
        ("a notin (b,c)", {}, True),
        ("a notin (b,c)", {"a": "b"}, False),
        ("app.kubernetes.io/name=x,tier", {"app.kubernetes.io/name": "x", "tier": "y"}, True),
        ("a=", {"a": ""}, True),
        ("", {"any": "thing"}, True),
    ],
)
def test_label_selector(text: str, labels: dict[str, str], matches: bool) -> None:
    assert matches_labels(parse_label_selector(text), labels) is matches


@pytest.mark.parametrize("text", ["a=b=c", "a in b", "=", "a,,b", "a in (b", "a b"])
def test_nonsense_is_refused(text: str) -> None:
    with pytest.raises(ApiError) as caught:
        parse_label_selector(text)
    assert caught.value.code == 400


def test_selector_object_and_its_text() -> None:
    terms = label_selector(
        {"matchLabels": {"b": "1"}, "matchExpressions": [{"key": "a", "operator": "In", "values": ["y", "x"]}]}
    )
    assert selector_text(terms) == "a in (x,y),b=1"
    assert matches_labels(terms, {"a": "x", "b": "1"})


def test_field_selector_reads_fields_and_their_absence() -> None:
    pod = {"metadata": {"name": "p"}, "spec": {"nodeName": "node-1"}}
    assert selection(kinds.PODS, {"fieldSelector": "spec.nodeName=node-1,metadata.name!=q"}).matches(pod)
    assert selection(kinds.PODS, {"fieldSelector": "status.phase="}).matches(pod)
    assert not selection(kinds.PODS, {"fieldSelector": "spec.nodeName=node-2"}).matches(pod)


@pytest.mark.parametrize(
    ("resource", "message"),
    [
        (kinds.PODS, "field label not supported: spec.foo"),
        (kinds.CONFIG_MAPS, '"spec.foo" is not a known field selector: only "metadata.name", "metadata.namespace"'),
    ],
)
def test_unknown_fields_are_refused(resource: kinds.Resource, message: str) -> None:
    with pytest.raises(ApiError) as caught:
        selection(resource, {"fieldSelector": "spec.foo=1"})
    assert caught.value.message == message
