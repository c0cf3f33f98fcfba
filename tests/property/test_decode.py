"""Whatever the other side sends, decoding answers: with an object, with Problems, or with Malformed. It never raises."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from kproxy.model.names import NamespacedName
from kproxy.model.objects import Decoded, Kind, ObjectKey
from kproxy.watch import wire
from kproxy.watch.decode import ListPage, Malformed, decode, decode_line, decode_page
from kproxy.watch.wire import MAX_NOTES

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=20),
    st.sampled_from(
        [
            "10.0.0.1",
            "fd00::1",
            "10.0.0.0/8",
            "None",
            "TCP",
            "UDP",
            "IPv4",
            "IPv6",
            "Local",
            "ClientIP",
            "web",
            "LoadBalancer",
        ]
    ),
)
ANY_JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
STRUCTS = {
    Kind.SERVICE: wire.WireService,
    Kind.ENDPOINT_SLICE: wire.WireSlice,
    Kind.NODE: wire.WireNode,
    Kind.NAMESPACE: wire.WireNamespace,
    Kind.POD: wire.WirePod,
    Kind.SERVICE_IMPORT: wire.WireImport,
}


def field_names(struct: Any, seen: set[str]) -> set[str]:
    """Every field name below `struct`, so that random objects hit the fields that are read."""
    for item in msgspec.structs.fields(struct):
        seen.add(item.encode_name)
        for arm in (item.type, *getattr(item.type, "__args__", ())):
            for leaf in (arm, *getattr(arm, "__args__", ())):
                if isinstance(leaf, type) and issubclass(leaf, msgspec.Struct):
                    field_names(leaf, seen)
    return seen


@cache
def mangled(struct: type[msgspec.Struct]) -> st.SearchStrategy[Any]:
    """Objects of about the right shape, any part of which may be anything."""

    def value(wanted: Any) -> st.SearchStrategy[Any]:
        arms = [
            leaf for arm in (wanted, *getattr(wanted, "__args__", ())) for leaf in (arm, *getattr(arm, "__args__", ()))
        ]
        shapes = [mangled(arm) for arm in arms if isinstance(arm, type) and issubclass(arm, msgspec.Struct)]
        return st.one_of(
            SCALARS,
            ANY_JSON,
            *shapes,
            *[st.lists(shape, max_size=3) for shape in shapes],
            st.lists(SCALARS, max_size=3),
        )

    return st.deferred(
        lambda: st.fixed_dictionaries(
            {}, optional={f.encode_name: value(f.type) for f in msgspec.structs.fields(struct)}
        )
    )


KINDS = st.sampled_from(list(Kind))
OBJECTS = KINDS.flatmap(lambda kind: st.tuples(st.just(kind), mangled(STRUCTS[kind])))
META = {"name": "web", "namespace": "shop", "labels": {"kubernetes.io/service-name": "web"}}


@given(OBJECTS, st.booleans())
def test_any_object_of_about_the_right_shape(drawn: tuple[Kind, Any], named: bool) -> None:
    kind, body = drawn
    if named and isinstance(body, dict):
        body = {"addressType": "IPv4"} | body | {"metadata": META}
    result = decode(kind, json.dumps(body).encode())
    assert isinstance(result, Decoded)
    assert result.object is not None or result.problems or kind is Kind.ENDPOINT_SLICE
    assert len(result.problems) <= MAX_NOTES + 1
    assert all(str(p).isprintable() for p in result.problems), "one line, no control bytes"
    hash(result)
    if named and kind in (Kind.SERVICE, Kind.POD):
        assert result.key == ObjectKey(kind, NamespacedName("shop", "web"))
        assert result.object is not None


@given(KINDS, ANY_JSON)
def test_any_json(kind: Kind, body: Any) -> None:
    raw = json.dumps(body).encode()
    assert isinstance(decode(kind, raw), Decoded)
    assert isinstance(decode_page(kind, raw), ListPage | Malformed)
    decode_line(kind, raw)


@given(KINDS, st.binary(max_size=60))
def test_any_bytes(kind: Kind, raw: bytes) -> None:
    assert decode(kind, raw).object is None
    assert isinstance(decode_page(kind, raw), Malformed)
    assert isinstance(decode_line(kind, raw), Malformed)


@given(OBJECTS)
def test_the_tolerant_way_reads_good_objects_as_the_strict_one(drawn: tuple[Kind, Any]) -> None:
    kind, body = drawn
    notes = wire.Notes()
    tolerant = wire.salvage(STRUCTS[kind], body, "", notes)
    if not notes.remarks:
        again = msgspec.json.decode(msgspec.json.encode(tolerant), type=STRUCTS[kind])
        assert again == tolerant
