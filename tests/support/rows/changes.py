"""Updates, step by step, and flows that outlive them: rows U and X."""

from __future__ import annotations

from collections.abc import Callable

from tests.support.addressing import CLUSTER_IP, NODE_IP
from tests.support.builders import Built, draining, ep, port, slice_, svc
from tests.support.flows import (
    DROP,
    IPT,
    NFT,
    PASS,
    REJECT,
    Expect,
    Flow,
    H,
    Need,
    P,
    Row,
    Source,
    X,
    flow,
    keep,
    row,
    scenario,
    snat,
    step,
)
from tests.support.rows.basic import unknown

_A, _B = "10.180.0.1", "10.180.2.1"
_TO = (CLUSTER_IP, 80)
_REACHED = flow(P, *_TO, keep(f"{_A}:80"))
_FIFTY = [f"10.180.3.{n}" for n in range(1, 51)]
_RENAMED = [svc(ports=[port(80, "web")]), slice_(ep(_A), ports=[("web", 80, "TCP")])]


def _two_ports(*numbers: int) -> list[Built]:
    return [
        svc(ports=[port(n, f"p{n}") for n in numbers]),
        slice_(ep(_A), ports=[(f"p{n}", n, "TCP") for n in numbers]),
    ]


def _ports_flows(open_ports: set[int]) -> list[Flow]:
    reached = [flow(P, CLUSTER_IP, n, keep(f"{_A}:{n}")) for n in sorted(open_ports)]
    closed = sorted({80, 81, 82} - open_ports)
    untouched = [flow(P, CLUSTER_IP, n, PASS, mode=IPT) for n in closed]
    return reached + untouched + [flow(P, CLUSTER_IP, n, REJECT, mode=NFT) for n in closed]


def _filler(n: int) -> list[Built]:
    """A Service with 51 endpoints of its own."""
    name = f"filler{n}"
    return [svc(f"172.30.2.{n}", name=name), slice_(*(ep(f"10.180.{n + 10}.{m}") for m in range(1, 52)), of=name)]


_UPDATE_ROWS = (
    scenario(
        "U01",
        "Service first, then slice",
        step([svc()], flow(P, *_TO, REJECT)),
        step([svc(), slice_(ep(_A))], _REACHED),
    ),
    scenario(
        "U02",
        "slice first, then Service",
        step([slice_(ep(_A))], *unknown()),
        step([svc(), slice_(ep(_A))], _REACHED),
    ),
    scenario(
        "U03",
        "port renamed in Service and slice",
        step([svc(), slice_(ep(_A))], _REACHED),
        step([_RENAMED[0], slice_(ep(_A))], flow(P, *_TO, REJECT), label="the slice still has the old name"),
        step(_RENAMED, _REACHED),
    ),
    scenario(
        "U04",
        "endpoint port renumbered",
        step([svc(), slice_(ep(_A), ports=[("p80", 11, "TCP")])], flow(P, *_TO, keep(f"{_A}:11"))),
        step([svc(), slice_(ep(_A), ports=[("p80", 22, "TCP")])], flow(P, *_TO, keep(f"{_A}:22"))),
    ),
    scenario(
        "U05",
        "endpoint moves to another slice",
        step([svc(), slice_(ep(_A), name="a"), slice_(name="b")], _REACHED),
        step([svc(), slice_(ep(_A), name="a"), slice_(ep(_A), name="b")], _REACHED, label="in both for a moment"),
        step([svc(), slice_(name="a"), slice_(ep(_A), name="b")], _REACHED),
    ),
    scenario(
        "U06",
        "ports come and go",
        step(_two_ports(80), *_ports_flows({80})),
        step(_two_ports(80, 81), *_ports_flows({80, 81})),
        step(_two_ports(81, 82), *_ports_flows({81, 82})),
        step(_two_ports(80, 81, 82), *_ports_flows({80, 81, 82})),
        step(_two_ports(80), *_ports_flows({80})),
    ),
    scenario(
        "U07",
        "1, 50, 1 endpoints",
        step([svc(), slice_(ep(_FIFTY[0]))], flow(P, *_TO, keep(f"{_FIFTY[0]}:80"))),
        step([svc(), slice_(*map(ep, _FIFTY))], flow(P, *_TO, keep(*(f"{a}:80" for a in _FIFTY)), connections=900)),
        step([svc(), slice_(ep(_FIFTY[7]))], flow(P, *_TO, keep(f"{_FIFTY[7]}:80"))),
        needs=[Need.MANY],
    ),
    scenario(
        "U08",
        "Service deleted",
        step([svc(), slice_(ep(_A))], _REACHED),
        step([slice_(ep(_A))], *unknown()),
    ),
    row(
        "U17",
        "more than 1,000 endpoints: comments go, nothing else",
        [svc(), slice_(ep(_A)), *(built for n in range(1, 21) for built in _filler(n))],
        _REACHED,
        flow(P, "172.30.2.7", 80, keep(*(f"10.180.17.{m}:80" for m in range(1, 52))), connections=900),
        needs=[Need.MANY],
    ),
)

_UDP = svc(ports=[port(80, "u80", "UDP", node=3001)])


_IP2 = "172.30.0.42"
_SECOND_UDP = [
    svc(_IP2, name="svc2", ports=[port(80, "u80", "UDP")]),
    slice_(ep(_A), of="svc2", ports=[("u80", 80, "UDP")]),
]


def _udp_slice(address: str, number: int = 80, **rest: object) -> Built:
    return slice_(ep(address, **rest), ports=[("u80", number, "UDP")])  # type: ignore[arg-type]


def _datagram(source: Source, to: str, number: int, expect: Expect, **rest: object) -> Flow:
    return flow(source, to, number, expect, "UDP", socket="client", **rest)


def _moves(id: str, title: str, source: Source, to: str, number: int, outcome: Callable[..., Expect]) -> Row:
    """One client socket; the backend is replaced; the socket's next datagram reaches the new one."""
    return scenario(
        id,
        title,
        step([_UDP, _udp_slice(_A)], _datagram(source, to, number, outcome(f"{_A}:80"))),
        step([_UDP, _udp_slice(_B)], _datagram(source, to, number, outcome(f"{_B}:80"))),
    )


_CONNTRACK_ROWS = (
    _moves("X01", "UDP client of a node port follows the new backend", X, NODE_IP, 3001, snat),
    _moves("X02", "UDP client of a cluster IP follows the new backend", P, CLUSTER_IP, 80, keep),
    _moves("X03", "UDP client on the host follows the new backend", H, CLUSTER_IP, 80, snat),
    scenario(
        "X04",
        "UDP client that started before there was an endpoint",
        step([_UDP], _datagram(P, CLUSTER_IP, 80, REJECT)),
        step([_UDP, _udp_slice(_A)], _datagram(P, CLUSTER_IP, 80, keep(f"{_A}:80"))),
    ),
    scenario(
        "X05",
        "UDP target port changed",
        step([_UDP, _udp_slice(_A, 81)], _datagram(P, CLUSTER_IP, 80, keep(f"{_A}:81"))),
        step([_UDP, _udp_slice(_A, 82)], _datagram(P, CLUSTER_IP, 80, keep(f"{_A}:82"))),
    ),
    scenario(
        "X06",
        "UDP flow to an endpoint that drains is not cut",
        step([_UDP, _udp_slice(_A)], _datagram(P, CLUSTER_IP, 80, keep(f"{_A}:80"))),
        step(
            [_UDP, slice_(draining(_A), ep(_B), ports=[("u80", 80, "UDP")])],
            _datagram(P, CLUSTER_IP, 80, keep(f"{_A}:80"), established=True),
            flow(P, CLUSTER_IP, 80, keep(f"{_B}:80"), "UDP", label="a new socket"),
        ),
    ),
    scenario(
        "X07",
        "TCP connection outlives its endpoint's removal",
        step([svc(), slice_(ep(_A))], flow(P, *_TO, keep(f"{_A}:80"), socket="tcp")),
        step(
            [svc(), slice_(ep(_B))],
            flow(P, *_TO, keep(f"{_A}:80"), socket="tcp", established=True),
            flow(P, *_TO, keep(f"{_B}:80"), label="a new connection"),
        ),
    ),
    scenario(
        "X10",
        "two UDP Services share an endpoint, one goes",
        step(
            [_UDP, _udp_slice(_A), *_SECOND_UDP],
            _datagram(P, CLUSTER_IP, 80, keep(f"{_A}:80")),
            flow(P, _IP2, 80, keep(f"{_A}:80"), "UDP", socket="second"),
        ),
        step(
            [_UDP, _udp_slice(_A)],
            _datagram(P, CLUSTER_IP, 80, keep(f"{_A}:80"), established=True),
            flow(P, _IP2, 80, PASS, "UDP", mode=IPT, socket="second"),
            flow(P, _IP2, 80, DROP, "UDP", mode=NFT, socket="second"),
        ),
    ),
)

ROWS = (*_UPDATE_ROWS, *_CONNTRACK_ROWS)
