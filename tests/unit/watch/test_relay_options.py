"""The annotations `kproxy.io/*`: from JSON to the Target that a worker obeys. Wrong ones cost themselves, and the Service works."""

from __future__ import annotations

import json

import pytest

from kproxy.model.names import NamespacedName, ServicePortName
from kproxy.model.objects import Decoded, Kind, RelayOptions, Service
from kproxy.model.resolve import resolve
from kproxy.relay.targets import BALANCINGS
from kproxy.watch.decode import decode
from kproxy.watch.relay_options import MAX_DRAIN_S
from tests.support.builders import Built, svc
from tests.support.flows import SETTINGS, Step


def _decoded(annotations: dict[str, object], top: dict[str, object] | None = None) -> Decoded:
    body = svc().api | (top or {})
    body = body | {"metadata": body["metadata"] | {"annotations": annotations}}
    found = decode(Kind.SERVICE, json.dumps(body).encode())
    assert decode(Kind.SERVICE, body) == found
    return found


def _options(found: Decoded) -> RelayOptions | None:
    assert isinstance(found.object, Service)
    assert found.object.ports and found.object.cluster_ips
    return found.object.relay


@pytest.mark.parametrize(
    ("name", "text", "options"),
    [
        *(("balancing", known, RelayOptions(balancing=known)) for known in BALANCINGS),
        ("proxy-protocol", "v1", RelayOptions(proxy_protocol=1)),
        ("proxy-protocol", "v2", RelayOptions(proxy_protocol=2)),
        ("preserve-source-address", "true", RelayOptions(preserve_source=True)),
        ("preserve-source-address", "false", RelayOptions(preserve_source=False)),
        ("drain-seconds", "0", RelayOptions(drain_s=0.0)),
        ("drain-seconds", "30", RelayOptions(drain_s=30.0)),
        ("drain-seconds", "0.5", RelayOptions(drain_s=0.5)),
        ("drain-seconds", str(int(MAX_DRAIN_S)), RelayOptions(drain_s=MAX_DRAIN_S)),
    ],
)
def test_what_can_be_said(name: str, text: str, options: RelayOptions) -> None:
    found = _decoded({f"kproxy.io/{name}": text, "other.example.com/thing": "x"})
    assert (_options(found), found.problems) == (options, ())


@pytest.mark.parametrize(
    ("name", "text", "why"),
    [
        ("balancing", "roundrobin", "'roundrobin' is none of RandomTwoChoices, RoundRobin, LeastConnections"),
        ("balancing", "", "'' is none of"),
        ("proxy-protocol", "2", "'2' is none of v1, v2"),
        ("preserve-source-address", "yes", "'yes' is none of true, false"),
        ("preserve-source-address", True, "is"),
        ("drain-seconds", "-1", "'-1' is no number of seconds between 0 and 86400"),
        ("drain-seconds", "86401", "no number of seconds"),
        ("drain-seconds", "1e3", "no number of seconds"),
        ("drain-seconds", "nan", "no number of seconds"),
        ("drain-seconds", "٣", "no number of seconds"),
        ("drain-seconds", 30, "is"),
        ("drain-seconds", "9" * 5_000, "no number of seconds"),
    ],
)
def test_what_cannot_be_read_is_told_and_ignored(name: str, text: object, why: str) -> None:
    found = _decoded({f"kproxy.io/{name}": text, "kproxy.io/proxy-protocol" if name != "proxy-protocol" else "x": "v1"})
    (problem,) = found.problems
    assert why in problem.reason and "kproxy.io/" in problem.reason and len(problem.reason) < 250
    assert _options(found) == (RelayOptions(proxy_protocol=1) if name != "proxy-protocol" else None)


def test_nothing_said_is_nothing() -> None:
    assert _options(_decoded({"kproxy.io/other": "x"})) is None


def test_they_reach_the_service_port_and_app_protocol_changes_nothing() -> None:
    found = _decoded({"kproxy.io/drain-seconds": "7"})
    ports = [{**port, "appProtocol": "kubernetes.io/h2c"} for port in svc().api["spec"]["ports"]]
    spoken = _decoded({"kproxy.io/drain-seconds": "7"}, {"spec": svc().api["spec"] | {"ports": ports}})
    assert spoken.object == found.object
    assert found.object is not None
    desired = resolve(Step((Built({}, found.object),)).snapshot(), SETTINGS)
    (name,) = desired.ipv4.service_ports
    assert (name.service, name.port) == (NamespacedName("ns1", "svc1"), "p80")
    assert isinstance(name, ServicePortName) and desired.ipv4.service_ports[name].relay == RelayOptions(drain_s=7.0)
