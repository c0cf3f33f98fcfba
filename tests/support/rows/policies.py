"""Traffic policies, the masquerade matrix and terminating endpoints: rows E, I, M, T."""

from __future__ import annotations

from dataclasses import replace

from kproxy.model.desired import NodeSettings
from tests.support.addressing import CLUSTER_IP, EXTERNAL_IP, LOOPBACK, NODE_IP, VIP, VIP_2, VIP_3
from tests.support.builders import Built, draining, ep, port, slice_, svc, terminated
from tests.support.flows import (
    DROP,
    IPT,
    REJECT,
    SETTINGS,
    Expect,
    Flow,
    H,
    L,
    Need,
    P,
    Row,
    Source,
    X,
    either,
    flow,
    keep,
    pod,
    row,
    scenario,
    snat,
    step,
)

_REMOTE, _LOCAL = "10.180.0.1", "10.180.2.1"
_R, _L = f"{_REMOTE}:80", f"{_LOCAL}:80"
_BOTH = slice_(ep(_REMOTE), ep(_LOCAL, local=True))
_ONLY_REMOTE = slice_(ep(_REMOTE))


def _open(policy: str) -> Built:
    """A Service with every kind of way in."""
    return svc(ports=[port(node=3001)], external=[EXTERNAL_IP], lb=[VIP], external_policy=policy)


def _ways_in(source: Source, expect: Expect) -> tuple[Flow, ...]:
    return (
        flow(source, EXTERNAL_IP, 80, expect, label="external IP"),
        flow(source, VIP, 80, expect, label="load balancer"),
        flow(source, NODE_IP, 3001, expect, label="node port"),
    )


_EXTERNAL_ROWS = (
    row("E01", "Local: cluster IP is not concerned", [_open("Local"), _BOTH], flow(P, CLUSTER_IP, 80, keep(_R, _L))),
    row("E02", "Local: pods are short-circuited", [_open("Local"), _BOTH], *_ways_in(P, keep(_R, _L))),
    row("E03", "Local: outside reaches local endpoints", [_open("Local"), _BOTH], *_ways_in(X, keep(_L))),
    row("E04", "Local: the node reaches all, masqueraded", [_open("Local"), _BOTH], *_ways_in(H, snat(_R, _L))),
    row("E05", "Local, only remote: outside is dropped", [_open("Local"), _ONLY_REMOTE], *_ways_in(X, DROP)),
    row("E06", "Local, only remote: pods reach it", [_open("Local"), _ONLY_REMOTE], *_ways_in(P, keep(_R))),
    row("E07", "Local, only remote: the node reaches it", [_open("Local"), _ONLY_REMOTE], *_ways_in(H, snat(_R))),
    row("E08", "Cluster: pods are masqueraded", [_open("Cluster"), _BOTH], *_ways_in(P, snat(_R, _L))),
    row("E09", "Cluster: outside reaches all", [_open("Cluster"), _BOTH], *_ways_in(X, snat(_R, _L))),
    row(
        "E10",
        "Local: an endpoint calls its own node port",
        [_open("Local"), _BOTH],
        flow(pod(_LOCAL), NODE_IP, 3001, snat(_L) & keep(_R)),
    ),
    row(
        "E11",
        "Local on a ClusterIP Service with an external IP",
        [svc(external=[EXTERNAL_IP], external_policy="Local"), _BOTH],
        flow(X, EXTERNAL_IP, 80, keep(_L)),
    ),
    row(
        "E12",
        "Local without any way in has no effect",
        [svc(external_policy="Local"), _BOTH],
        flow(X, CLUSTER_IP, 80, snat(_R, _L)),
        needs=[Need.FILES_ONLY],
    ),
)

_IP = "172.30.1.1"
_I1, _I2, _I3 = "10.180.0.1", "10.180.1.1", "10.180.2.1"


def _three(local: int) -> Built:
    """Three endpoints, the first `local` of them on this node."""
    return slice_(*(ep(a, local=n < local) for n, a in enumerate((_I1, _I2, _I3))))


_INTERNAL = svc(_IP, internal_policy="Local")
_LOCAL_BOTH_WAYS = svc(ports=[port(node=3001)], lb=[VIP], internal_policy="Local", external_policy="Local")

_INTERNAL_ROWS = (
    row("I01", "Cluster: all", [svc(_IP), _three(1)], flow(P, _IP, 80, keep(f"{_I1}:80", f"{_I2}:80", f"{_I3}:80"))),
    row("I02", "Local: the local one", [_INTERNAL, _three(1)], flow(P, _IP, 80, keep(f"{_I1}:80"))),
    row("I03", "Local: the two local ones", [_INTERNAL, _three(2)], flow(P, _IP, 80, keep(f"{_I1}:80", f"{_I2}:80"))),
    row("I04", "Local: none local", [_INTERNAL, _three(0)], flow(P, _IP, 80, DROP)),
    scenario(
        "I05",
        "Local: slice deleted",
        step([_INTERNAL, _three(1)], flow(P, _IP, 80, keep(f"{_I1}:80"))),
        step([_INTERNAL], flow(P, _IP, 80, REJECT)),
    ),
    row(
        "I06",
        "Local: host process and host endpoint",
        [_INTERNAL, slice_(ep(NODE_IP, local=True), ep(_I2))],
        flow(H, _IP, 80, either(f"{NODE_IP}:80")),
    ),
    row(
        "I07",
        "internal Local does not concern the ways in",
        [svc(ports=[port(node=3001)], lb=[VIP], internal_policy="Local"), _BOTH],
        flow(X, VIP, 80, snat(_R, _L)),
        flow(X, NODE_IP, 3001, snat(_R, _L)),
        flow(P, CLUSTER_IP, 80, keep(_L)),
    ),
    row(
        "I08",
        "both Local, only remote endpoints",
        [_LOCAL_BOTH_WAYS, _ONLY_REMOTE],
        flow(P, CLUSTER_IP, 80, DROP),
        flow(P, VIP, 80, keep(_R)),
        flow(X, VIP, 80, DROP),
    ),
)

# The masquerade matrix: three Services, each with a local and a remote endpoint.
_M_SERVICES = (
    ("svc1", CLUSTER_IP, 3001, VIP, "Cluster", "Cluster"),
    ("svc2", "172.30.0.42", 3002, VIP_2, "Cluster", "Local"),
    ("svc3", "172.30.0.43", 3003, VIP_3, "Local", "Cluster"),
)
_M_LOCAL = [f"10.180.0.{n}:80" for n in (1, 2, 3)]
_M_REMOTE = [f"10.180.1.{n}:80" for n in (1, 2, 3)]


def _matrix_objects() -> list[Built]:
    objects = []
    for n, (name, ip, node_port, vip, internal, external) in enumerate(_M_SERVICES, start=1):
        objects += [
            svc(
                ip,
                name=name,
                ports=[port(node=node_port)],
                lb=[vip],
                internal_policy=internal,
                external_policy=external,
            ),
            slice_(ep(f"10.180.0.{n}", local=True), ep(f"10.180.1.{n}"), of=name),
        ]
    return objects


# Per flow kind what happens for svc1, svc2, svc3: set (both, local) and source (keep, snat).
_BK, _BS, _LK, _LS = "both keep", "both snat", "local keep", "local snat"
_MATRIX: dict[str, tuple[Source, str, tuple[str, str, str]]] = {
    "M01": (P, "cluster IP", (_BK, _BK, _LK)),
    "M02": (P, "node port", (_BS, _BK, _BS)),
    "M03": (P, "load balancer", (_BS, _BK, _BS)),
    "M04": (H, "cluster IP", (_BS, _BS, _LS)),
    "M05": (H, "node port", (_BS, _BS, _BS)),
    "M06": (L, "localhost", (_BS, _BS, _BS)),
    "M07": (H, "load balancer", (_BS, _BS, _BS)),
    "M08": (X, "cluster IP", (_BS, _BS, _LS)),
    "M09": (X, "node port", (_BS, _LK, _BS)),
    "M10": (X, "load balancer", (_BS, _LK, _BS)),
}
_NO_DETECTOR: dict[str, tuple[str, str, str]] = {
    "M02": (_BS, _LK, _BS),
    "M03": (_BS, _LK, _BS),
    "M04": (_BK, _BK, _LK),
    "M08": (_BK, _BK, _LK),
}
_MASQUERADE_ALL: dict[str, tuple[str, str, str]] = {"M01": (_BS, _BS, _LS)}
_BOTH_SETTINGS: dict[str, tuple[str, str, str]] = {
    "M01": (_BS, _BS, _LS),
    "M02": (_BS, _LK, _BS),
    "M03": (_BS, _LK, _BS),
}


def _matrix_flows(id: str, outcomes: tuple[str, str, str]) -> list[Flow]:
    source, way, _ = _MATRIX[id]
    flows = []
    for n, ((name, ip, node_port, vip, _, _), outcome) in enumerate(zip(_M_SERVICES, outcomes, strict=True)):
        which, seen = outcome.split()
        endpoints = [_M_LOCAL[n]] if which == "local" else [_M_LOCAL[n], _M_REMOTE[n]]
        expect = keep(*endpoints) if seen == "keep" else snat(*endpoints)
        to = {
            "cluster IP": (ip, 80),
            "node port": (NODE_IP, node_port),
            "localhost": (LOOPBACK, node_port),
            "load balancer": (vip, 80),
        }[way]
        flows.append(flow(source, *to, expect, mode=IPT if way == "localhost" else "", label=f"{id} {name} {way}"))
    return flows


def _whole_matrix(id: str, title: str, settings: NodeSettings, changed: dict[str, tuple[str, str, str]]) -> Row:
    flows = [f for m, (_, _, usual) in _MATRIX.items() for f in _matrix_flows(m, changed.get(m, usual))]
    return row(id, title, _matrix_objects(), *flows, settings=settings)


_MATRIX_ROWS = (
    *(
        row(
            id,
            f"{source.place.value} to {way}",
            _matrix_objects(),
            *_matrix_flows(id, usual),
            ipv4_only=way == "localhost",
        )
        for id, (source, way, usual) in _MATRIX.items()
    ),
    _whole_matrix("M11", "no local detector", replace(SETTINGS, cluster_cidrs=()), _NO_DETECTOR),
    _whole_matrix("M12", "masqueradeAll", replace(SETTINGS, masquerade_all=True), _MASQUERADE_ALL),
    _whole_matrix(
        "M13",
        "no local detector and masqueradeAll",
        replace(SETTINGS, cluster_cidrs=(), masquerade_all=True),
        _BOTH_SETTINGS,
    ),
)

_T = {n: f"10.180.0.{n}" for n in range(1, 6)}


def _t(*numbers: int) -> list[str]:
    return [f"{_T[n]}:80" for n in numbers]


def _terminating(policy: str) -> Built:
    return svc(_IP, ports=[port(node=3001)], lb=[VIP], external_policy=policy)


_GONE = [terminated(_T[4], local=True), terminated(_T[5])]
_T01 = slice_(
    *(ep(_T[n], local=True) for n in (1, 2)), draining(_T[3], local=True), terminated(_T[4], local=True), ep(_T[5])
)
_TERMINATING_ROWS = (
    row(
        "T01",
        "Local: ready ones only, while there are some",
        [_terminating("Local"), _T01],
        flow(P, _IP, 80, keep(*_t(1, 2, 5))),
        flow(X, VIP, 80, keep(*_t(1, 2))),
    ),
    row(
        "T02",
        "Local: the local ones drain",
        [
            _terminating("Local"),
            slice_(draining(_T[2], local=True), draining(_T[3], local=True), terminated(_T[4], local=True), ep(_T[5])),
        ],
        flow(P, _IP, 80, keep(*_t(5))),
        flow(X, VIP, 80, keep(*_t(2, 3))),
    ),
    row(
        "T03",
        "Local: only a remote one drains",
        [_terminating("Local"), slice_(draining(_T[5]))],
        flow(P, _IP, 80, keep(*_t(5))),
        flow(X, VIP, 80, DROP),
    ),
    row(
        "T04",
        "Local: none serves",
        [_terminating("Local"), slice_(*_GONE)],
        flow(P, _IP, 80, REJECT),
        flow(X, VIP, 80, REJECT),
    ),
    row(
        "T05",
        "Cluster: ready ones only, while there are some",
        [
            _terminating("Cluster"),
            slice_(*(ep(_T[n], local=True) for n in (1, 2)), draining(_T[3]), terminated(_T[4]), ep(_T[5])),
        ],
        flow(P, _IP, 80, keep(*_t(1, 2, 5))),
        flow(X, VIP, 80, snat(*_t(1, 2, 5))),
    ),
    row(
        "T06",
        "Cluster: all drain",
        [
            _terminating("Cluster"),
            slice_(draining(_T[2], local=True), draining(_T[3], local=True), terminated(_T[4]), draining(_T[5])),
        ],
        flow(P, _IP, 80, keep(*_t(2, 3, 5))),
        flow(X, VIP, 80, snat(*_t(2, 3, 5))),
    ),
    row(
        "T07",
        "Cluster: a remote one drains",
        [_terminating("Cluster"), slice_(draining(_T[5]))],
        flow(P, _IP, 80, keep(*_t(5))),
        flow(X, VIP, 80, snat(*_t(5))),
    ),
    row(
        "T08",
        "Cluster: none serves",
        [_terminating("Cluster"), slice_(*_GONE)],
        flow(P, _IP, 80, REJECT),
        flow(X, VIP, 80, REJECT),
    ),
    scenario(
        "T09",
        "slice deleted",
        step([_terminating("Local"), _T01], flow(X, VIP, 80, keep(*_t(1, 2)))),
        step([_terminating("Local")], flow(P, _IP, 80, REJECT), flow(X, VIP, 80, REJECT)),
        step([_terminating("Cluster")], flow(P, _IP, 80, REJECT), flow(X, VIP, 80, REJECT)),
    ),
    row(
        "T12",
        "internal Local: the local one drains",
        [
            svc(_IP, ports=[port(node=3001)], lb=[VIP], internal_policy="Local"),
            slice_(draining(_T[1], local=True), ep(_T[5])),
        ],
        flow(P, _IP, 80, keep(*_t(1))),
        flow(X, VIP, 80, snat(*_t(5))),
    ),
    row(
        "T13",
        "ready and terminating (publishNotReadyAddresses) stays in use",
        [_terminating("Cluster"), slice_(ep(_T[5], ready=True, serving=False, terminating=True))],
        flow(P, _IP, 80, keep(*_t(5))),
        flow(X, VIP, 80, snat(*_t(5))),
    ),
)

ROWS = (*_EXTERNAL_ROWS, *_INTERNAL_ROWS, *_MATRIX_ROWS, *_TERMINATING_ROWS)
