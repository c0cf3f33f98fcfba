"""Session affinity: rows A. Flows of one `sticky` group must all land on one endpoint; the set says which ones may be it."""

from __future__ import annotations

from tests.support.addressing import CLUSTER_IP, NODE_IP
from tests.support.builders import Built, ep, port, slice_, svc
from tests.support.flows import P2, Flow, Need, P, X, flow, keep, pod, row, scenario, snat, step

_A, _B, _C = "10.180.0.1", "10.180.1.1", "10.180.2.1"
_ALL = (f"{_A}:80", f"{_B}:80", f"{_C}:80")
_THREE = slice_(ep(_A), ep(_B), ep(_C, local=True))
_TO = (CLUSTER_IP, 80)
_CLIENTS = [pod(f"10.0.1.{n}") for n in range(1, 151)]


def _sticky(timeout_s: int = 10800) -> Built:
    return svc(affinity_s=timeout_s)


def _many(source: object, group: str, **rest: object) -> Flow:
    return flow(source, *_TO, keep(*_ALL), connections=30, sticky=group, **rest)  # type: ignore[arg-type]


ROWS = (
    row("A01", "one client, one endpoint", [_sticky(), _THREE], _many(P, "pod")),
    row("A02", "each client its own", [_sticky(), _THREE], _many(P, "pod"), _many(P2, "pod-2")),
    scenario(
        "A03",
        "None, ClientIP, None",
        step([svc(), _THREE], flow(P, *_TO, keep(*_ALL))),
        step([_sticky(), _THREE], _many(P, "pod")),
        step([svc(), _THREE], flow(P, *_TO, keep(*_ALL))),
    ),
    scenario(
        "A04",
        "the timeout runs from the last new connection",
        step([_sticky(3), _THREE], _many(P, "first")),
        step([_sticky(3), _THREE], flow(P, *_TO, keep(*_ALL), sticky="first", wait_s=1.5)),
        step(
            [_sticky(3), _THREE],
            flow(P, *_TO, keep(*_ALL), sticky="first", wait_s=2.0),
            label="refreshed by the one before",
        ),
        step([_sticky(3), _THREE], flow(P, *_TO, keep(*_ALL), sticky="later", wait_s=5.0), label="may be another one"),
    ),
    row(
        "A05",
        "node port and cluster IP share the memory of a port",
        [svc(ports=[port(node=3001)], affinity_s=10800), _THREE],
        flow(X, NODE_IP, 3001, snat(*_ALL), connections=30, sticky="outside"),
        flow(X, *_TO, snat(*_ALL), connections=30, sticky="outside"),
    ),
    scenario(
        "A06",
        "the endpoint goes, the client moves at once",
        step([_sticky(), slice_(ep(_A))], flow(P, *_TO, keep(f"{_A}:80"))),
        step(
            [_sticky(), slice_(ep(_A), ep(_B))], flow(P, *_TO, keep(f"{_A}:80", f"{_B}:80"), connections=30, sticky="a")
        ),
        step([_sticky(), slice_(ep(_B))], flow(P, *_TO, keep(f"{_B}:80"), sticky="b")),
        needs=[Need.AFFINITY],
    ),
    row(
        "A07",
        "each port remembers for itself",
        [
            svc(ports=[port(), port(81, "p81")], affinity_s=10800),
            slice_(ep(_A), ep(_B), ep(_C), ports=[("p80", 80, "TCP"), ("p81", 81, "TCP")]),
        ],
        _many(P, "p80"),
        flow(P, CLUSTER_IP, 81, keep(f"{_A}:81", f"{_B}:81", f"{_C}:81"), connections=30, sticky="p81"),
    ),
    row(
        "A08",
        "sticky among the local ones",
        [
            svc(ports=[port(node=3001)], external_policy="Local", affinity_s=10800),
            slice_(ep(_A), ep(_B, local=True), ep(_C, local=True)),
        ],
        flow(X, NODE_IP, 3001, keep(f"{_B}:80", f"{_C}:80"), connections=30, sticky="outside"),
    ),
    row(
        "A09",
        "150 clients",
        [_sticky(), _THREE],
        *(flow(client, *_TO, keep(*_ALL), connections=3, sticky=client.address) for client in _CLIENTS),
        needs=[Need.MANY],
    ),
    row(
        "A10",
        "UDP",
        [
            svc(ports=[port(53, "dns", "UDP")], affinity_s=10800),
            slice_(ep(_A), ep(_B), ep(_C), ports=[("dns", 53, "UDP")]),
        ],
        flow(P, CLUSTER_IP, 53, keep(f"{_A}:53", f"{_B}:53", f"{_C}:53"), "UDP", connections=30, sticky="pod"),
    ),
)
