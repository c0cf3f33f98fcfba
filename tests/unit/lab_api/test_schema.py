"""Shapes: unknown fields, wrong types, what Go's encoder would leave out, and protobuf."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kproxy.lab.api import kinds
from kproxy.lab.api.intake import take
from kproxy.lab.api.openapi import document, index
from kproxy.lab.api.protobuf import MalformedProtobuf, read_object
from kproxy.lab.api.schema import conform, structure_of
from kproxy.lab.api.status import ApiError
from kproxy.lab.api.values import decode


def service(**spec: Any) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "s"}, "spec": spec}


def test_unknown_fields_are_named_by_their_path_and_dropped() -> None:
    value = service(ports=[{"port": 80, "prot": "TCP"}], selektor={"a": "b"})
    obj, warnings = take(kinds.SERVICES, value, "Warn")
    assert sorted(warnings) == ['unknown field "spec.ports[0].prot"', 'unknown field "spec.selektor"']
    assert (
        obj["spec"]
        == {
            "ports": [{"port": 80, "targetPort": 0}],
        }
        or "selektor" not in obj["spec"]
    )
    with pytest.raises(ApiError) as caught:
        take(kinds.SERVICES, service(foo=1), "Strict")
    assert caught.value.message == (
        'Service in version "v1" cannot be handled as a Service: strict decoding error: unknown field "spec.foo"'
    )


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            {"ports": [{"port": "x"}]},
            "cannot unmarshal string into Go struct field ServicePort.spec.ports.port of type int32",
        ),
        ({"ports": {}}, "cannot unmarshal object into Go struct field ServiceSpec.spec.ports of type []v1.ServicePort"),
        ({"type": 7}, "cannot unmarshal number into Go struct field ServiceSpec.spec.type of type v1.ServiceType"),
        (
            {"selector": {"a": 1}},
            "cannot unmarshal number into Go struct field ServiceSpec.spec.selector.a of type string",
        ),
        ({"publishNotReadyAddresses": "yes"}, "cannot unmarshal string into Go struct field"),
    ],
)
def test_wrong_types(spec: dict[str, Any], message: str) -> None:
    with pytest.raises(ApiError) as caught:
        take(kinds.SERVICES, service(**spec), "Ignore")
    assert message in caught.value.message


def test_zero_values_are_absent_and_pointers_are_not() -> None:
    unknown: list[str] = []
    obj = conform(
        structure_of(kinds.DEPLOYMENTS),
        {"metadata": {"name": "d", "labels": {}}, "spec": {"replicas": 0, "paused": False, "minReadySeconds": 0}},
        unknown,
    )
    assert obj["spec"]["replicas"] == 0, "a pointer: zero was said"
    assert not {"paused", "minReadySeconds"} & set(obj["spec"])
    assert "labels" not in obj["metadata"]
    assert obj["status"] == {}, "an embedded structure is always there"


# What kubectl v1.36 sends for `create namespace foo`.
NAMESPACE = bytes.fromhex(
    "6b387300"  # the magic
    "0a0f0a02763112094e616d657370616365"  # v1 Namespace
    "121b0a130a03666f6f12001a0022002a00320038004200"  # metadata: the name, and every zero value there is
    "12001a020a001a002200"
)


def test_protobuf_of_a_namespace() -> None:
    obj = read_object(NAMESPACE)
    assert (obj["apiVersion"], obj["kind"], obj["metadata"]["name"]) == ("v1", "Namespace", "foo")
    assert set(obj["metadata"]) <= {"name", "creationTimestamp"}, "Go writes every zero value; JSON has none"


def varint(number: int) -> bytes:
    out = b""
    while number > 0x7F:
        out += bytes([number & 0x7F | 0x80])
        number >>= 7
    return out + bytes([number])


def part(number: int, body: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(body)) + body


def test_protobuf_of_ports_selectors_and_target_ports() -> None:
    by_number = (
        part(1, b"http")
        + varint(3 << 3)
        + varint(80)
        + part(4, varint(1 << 3) + varint(0) + varint(2 << 3) + varint(8080))
    )
    by_name = part(1, b"n") + varint(3 << 3) + varint(81) + part(4, varint(1 << 3) + varint(1) + part(3, b"web"))
    spec = part(1, by_number) + part(1, by_name) + part(2, part(1, b"app") + part(2, b"x"))
    message = part(1, part(1, b"s")) + part(2, spec)
    body = b"k8s\x00" + part(1, part(1, b"v1") + part(2, b"Service")) + part(2, message)
    obj = read_object(body)
    assert obj["spec"]["ports"] == [
        {"name": "http", "port": 80, "targetPort": 8080},
        {"name": "n", "port": 81, "targetPort": "web"},
    ]
    assert obj["spec"]["selector"] == {"app": "x"}


@given(st.binary(max_size=200))
def test_any_protobuf_is_read_or_refused(body: bytes) -> None:
    envelope = part(1, part(1, b"v1") + part(2, b"Pod")) + part(2, body)
    try:
        read_object(b"k8s\x00" + envelope)
    except MalformedProtobuf:
        pass


def test_openapi_tells_kubectl_what_it_asks() -> None:
    core = decode(document(""))
    patch = core["paths"]["/api/v1/namespaces/{namespace}/services/{name}"]["patch"]
    assert {"fieldValidation", "fieldManager", "dryRun"} <= {p["name"] for p in patch["parameters"]}
    ports = core["components"]["schemas"]["io.k8s.api.core.v1.ServiceSpec"]["properties"]["ports"]
    assert ports["x-kubernetes-patch-merge-key"] == "port"
    assert set(decode(index())["paths"]) >= {"api/v1", "apis/apps/v1"}
