"""Node ports: rows N."""

from __future__ import annotations

from dataclasses import replace

from kproxy.model.desired import NodeSettings
from tests.support.addressing import CLUSTER_IP, LOOPBACK, NODE_IP, NODE_IP_2, VIP, six
from tests.support.builders import ep, port, slice_, svc
from tests.support.flows import (
    DROP,
    IPT,
    NFT,
    PASS,
    REJECT,
    SETTINGS,
    L,
    Need,
    P,
    Place,
    Source,
    X,
    flow,
    keep,
    row,
    scenario,
    snat,
    step,
)

_E1, _E2 = "10.180.0.1", "10.180.2.1"
_SVC, _SLICE = svc(ports=[port(node=3001)]), slice_(ep(_E1))
_ONE = [_SVC, _SLICE]
_REACHED = snat(f"{_E1}:80")
_L6 = Source(Place.HOST, "::1")


def _restricted(*entries: str) -> NodeSettings:
    return replace(SETTINGS, node_port_addresses=entries)


_HCNP = {"lb": [VIP], "external_policy": "Local", "health": 30000}


_CHECK = flow(X, NODE_IP, 30000, PASS, mode=IPT, input_drop=True)
_CHECK_CLOSED = flow(X, NODE_IP, 30000, DROP, input_drop=True)


ROWS = (
    row("N01", "from outside to a node port", _ONE, flow(X, NODE_IP, 3001, _REACHED)),
    row("N02", "every local address by default", _ONE, flow(X, NODE_IP_2, 3001, _REACHED, mode=IPT)),
    row("N03", "primary address only by default", _ONE, flow(X, NODE_IP_2, 3001, PASS, mode=NFT)),
    row(
        "N04",
        "restricted to one network",
        _ONE,
        flow(X, NODE_IP, 3001, _REACHED),
        flow(X, NODE_IP_2, 3001, PASS),
        settings=_restricted("192.168.0.0/24"),
    ),
    row(
        "N05",
        "restricted to two networks",
        _ONE,
        flow(X, NODE_IP, 3001, _REACHED),
        flow(X, NODE_IP_2, 3001, _REACHED),
        settings=_restricted("192.168.0.0/24", "192.168.1.0/24"),
    ),
    row(
        "N06",
        "localhost node port on",
        _ONE,
        flow(L, LOOPBACK, 3001, _REACHED, mode=IPT),
        flow(L, LOOPBACK, 3001, PASS, mode=NFT),
        ipv4_only=True,
    ),
    row(
        "N06b",
        "localhost node port on, loopback listed",
        _ONE,
        flow(L, LOOPBACK, 3001, _REACHED, mode=IPT),
        flow(L, LOOPBACK, 3001, PASS, mode=NFT),
        flow(X, NODE_IP, 3001, PASS),
        settings=_restricted("127.0.0.0/8"),
        ipv4_only=True,
    ),
    row(
        "N07",
        "localhost node port off",
        _ONE,
        flow(L, LOOPBACK, 3001, PASS),
        flow(X, NODE_IP, 3001, _REACHED),
        settings=replace(SETTINGS, localhost_node_ports=False),
        ipv4_only=True,
    ),
    row(
        "N08",
        "::1 never answers on a node port",
        [svc(six(CLUSTER_IP), ports=[port(node=3001)]), slice_(ep(six(_E1)), family="IPv6")],
        flow(_L6, "::1", 3001, PASS),
        flow(Source(Place.OUTSIDE, six(X.address)), six(NODE_IP), 3001, snat(six(f"{_E1}:80"))),
        ipv4_only=True,
    ),
    row("N09", "no endpoints", [_SVC], flow(P, NODE_IP, 3001, REJECT), flow(X, NODE_IP, 3001, REJECT)),
    row(
        "N10",
        "a pod uses a node port",
        [_SVC, slice_(ep(_E1), ep(_E2, local=True))],
        flow(P, NODE_IP, 3001, snat(f"{_E1}:80", f"{_E2}:80")),
    ),
    row(
        "N11",
        "one node port number for two protocols",
        [
            svc(ports=[port(node=3001), port(81, "u81", "UDP", node=3001)]),
            slice_(ep(_E1), ports=[("p80", 80, "TCP"), ("u81", 8181, "UDP")]),
        ],
        flow(X, NODE_IP, 3001, snat(f"{_E1}:80")),
        flow(X, NODE_IP, 3001, snat(f"{_E1}:8181"), "UDP"),
    ),
    scenario(
        "N12",
        "node port removed by an update",
        step(_ONE, flow(X, NODE_IP, 3001, _REACHED)),
        step([svc(), _SLICE], flow(X, NODE_IP, 3001, PASS), flow(P, CLUSTER_IP, 80, keep(f"{_E1}:80"))),
    ),
    row(
        "N13",
        "a packet from outside for loopback",
        _ONE,
        flow(X, LOOPBACK, 10249, DROP),
        needs=[Need.CRAFTED_ROUTE],
        ipv4_only=True,
    ),
    scenario(
        "N14",
        "the health check node port is let in while the Service has one",
        step([svc(ports=[port(node=3001)], **_HCNP), _SLICE], _CHECK, replace(_CHECK_CLOSED, modes=frozenset({NFT}))),  # type: ignore[arg-type]
        step([svc(ports=[port(node=3001)], lb=[VIP]), _SLICE], _CHECK_CLOSED),
    ),
    scenario(
        "N15",
        "an address that the node gets later",
        step(_ONE, flow(X, NODE_IP, 3001, _REACHED), flow(X, "192.168.0.77", 3001, PASS), label="before"),
        step(
            _ONE,
            flow(X, NODE_IP, 3001, _REACHED),
            flow(X, "192.168.0.77", 3001, _REACHED, mode=IPT),
            flow(X, "192.168.0.77", 3001, PASS, mode=NFT),
            extra_addresses=["192.168.0.77"],
        ),
        settings=_restricted("192.168.0.0/24"),
    ),
    # Not upstream's number.
    row(
        "N16",
        "primary address only, by its word",
        _ONE,
        flow(X, NODE_IP, 3001, _REACHED),
        flow(X, NODE_IP_2, 3001, PASS),
        settings=_restricted("primary"),
    ),
)
