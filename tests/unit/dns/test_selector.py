"""Label selectors: kubectl's grammar, and what is refused with its column."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kproxy.dns.selector import MAX_TEXT, keys_of, parse
from kproxy.dns.settings import DnsSettings
from kproxy.model.objects import Kind, Namespace, Service
from kproxy.watch.decode import decode
from kproxy.watch.reflector import RESOURCES, Demands
from tests.support.query_objects import labelled, namespace, service

LABELS = {"app": "web", "tier": "front", "example.com/part": "", "size": "7"}


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("", True),
        ("app", True),
        ("!app", False),
        ("missing", False),
        ("!missing", True),
        ("app=web", True),
        ("app==web", True),
        ("app = web , tier=front", True),
        ("app=web,tier=back", False),
        ("app!=web", False),
        ("missing!=web", True),
        ("app in (api, web)", True),
        ("app in (api)", False),
        ("app notin (api,db)", True),
        ("app notin (web)", False),
        ("missing notin (web)", True),
        ("missing in ()", False),
        ("example.com/part", True),
        ("example.com/part=", True),
        ("example.com/part in (,x)", True),
        ("size>6", True),
        ("size<7", False),
        ("app>1", False),
        ("in in (in)", False),
    ],
)
def test_what_holds(text: str, holds: bool) -> None:
    assert parse(text).holds(LABELS) is holds


@pytest.mark.parametrize(
    ("text", "column"),
    [
        ("app web", 5),
        (",app", 1),
        ("app,", 5),
        ("=web", 1),
        ("app=web tier", 9),
        ("app in web", 8),
        ("app in (web", 12),
        ("app in (web,", 13),
        ("app>many", 5),
        ("app=-web", 5),
        ("-app", 1),
        ("Example.com/app", 1),
        ("/app", 1),
        ("a/b/c", 1),
        ("!", 2),
        ("app=" + "x" * 64, 5),
    ],
)
def test_what_is_refused_and_where(text: str, column: int) -> None:
    with pytest.raises(ValueError, match=f"column {column}:"):
        parse(text)
    with pytest.raises(ValueError, match=r"^labels: "):
        DnsSettings(labels=text)


def test_a_selector_is_bounded() -> None:
    with pytest.raises(ValueError, match="characters"):
        parse("a" * (MAX_TEXT + 1))
    with pytest.raises(ValueError, match="requirements"):
        parse(",".join(["a"] * 101))


@given(st.text(alphabet="ab/=!<>(), in-.\n\t\0é", max_size=40))
def test_any_text_is_a_selector_or_a_value_error(text: str) -> None:
    try:
        found = parse(text)
    except ValueError:
        return
    found.holds({})
    found.holds(dict.fromkeys(found.keys, "x"))


def test_labels_are_kept_only_where_somebody_asks() -> None:
    manifest = labelled(service("shop/web", "10.0.0.1", "http/tcp/80"), app="web", tier="front", noise="x" * 63)
    wanted = keys_of(["app=web", "!gone"])
    assert wanted == {"app", "gone"}
    plain, kept = decode(Kind.SERVICE, manifest).object, decode(Kind.SERVICE, manifest, wanted).object
    assert isinstance(plain, Service) and plain.labels == ()
    assert isinstance(kept, Service) and kept.labels == (("app", "web"),)
    space = decode(Kind.NAMESPACE, namespace("shop", app="a"), wanted).object
    assert isinstance(space, Namespace) and space.labels == (("app", "a"),)
    odd = decode(Kind.SERVICE, manifest | {"metadata": {**manifest["metadata"], "labels": {"app": 3}}}, wanted)
    assert isinstance(odd.object, Service) and odd.object.labels == ()


def test_pods_of_other_nodes_and_imports_are_watched_only_on_demand() -> None:
    usual = {resource.kind: resource for resource in RESOURCES("n1")}
    assert usual[Kind.POD].params == {"fieldSelector": "spec.nodeName=n1"}
    assert Kind.SERVICE_IMPORT not in usual
    more = {resource.kind: resource for resource in RESOURCES("n1", Demands(all_pods=True, imports=True))}
    assert more[Kind.POD].params == {
        "fieldSelector": "status.phase!=Succeeded,status.phase!=Failed,status.phase!=Unknown"
    }
    assert more[Kind.SERVICE_IMPORT].path == "/apis/multicluster.x-k8s.io/v1alpha1/serviceimports"
