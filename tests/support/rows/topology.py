"""Topology hints: rows H. The node is testnode in zone z1, unless the row says otherwise."""

from __future__ import annotations

from tests.support.addressing import CLUSTER_IP, NODE, OTHER_NODE, VIP
from tests.support.builders import draining, ep, node, port, slice_, svc, unready
from tests.support.flows import Expect, Flow, P, X, flow, keep, row, scenario, step

_A, _B, _C = "10.180.0.1", "10.180.1.1", "10.180.2.1"
_Z1 = node(zone="z1")


def _to(expect: Expect) -> Flow:
    return flow(P, CLUSTER_IP, 80, expect)


def _reached(*addresses: str) -> Expect:
    return keep(*(f"{a}:80" for a in addresses))


_HINTED = slice_(ep(_A, zones=["z1"]), ep(_B, zones=["z2"]), ep(_C, zones=["z3"], local=True))

ROWS = (
    row("H01", "the zone's endpoints", [svc(), _HINTED], _to(_reached(_A)), node=_Z1),
    row(
        "H02",
        "one ready endpoint lacks hints",
        [svc(), slice_(ep(_A, zones=["z1"]), ep(_B, zones=["z2"]), ep(_C))],
        _to(_reached(_A, _B, _C)),
        node=_Z1,
    ),
    row(
        "H03",
        "hints for another zone only",
        [svc(), slice_(ep(_A, zones=["z2"]), ep(_B, zones=["z2"]))],
        _to(_reached(_A, _B)),
        node=_Z1,
    ),
    row("H04", "the node has no zone", [svc(), _HINTED], _to(_reached(_A, _B, _C))),
    row(
        "H05",
        "the node's endpoints",
        [
            svc(),
            slice_(ep(_A, nodes=[OTHER_NODE], zones=["z1"]), ep(_B, nodes=[NODE], zones=["z1"], local=True)),
        ],
        _to(_reached(_B)),
        node=_Z1,
    ),
    row(
        "H06",
        "no endpoint for the node, one for the zone",
        [svc(), slice_(ep(_A, nodes=[OTHER_NODE], zones=["z1"]), ep(_B, nodes=["third"], zones=["z2"]))],
        _to(_reached(_A)),
        node=_Z1,
    ),
    scenario(
        "H07",
        "the zone's only endpoint turns unready",
        step(
            [svc(), slice_(ep(_A, zones=["z1"]), ep(_B, zones=["z2"]), ep(_C, zones=["z2"]))],
            _to(_reached(_A)),
            node=_Z1,
        ),
        step([svc(), slice_(unready(_A), ep(_B, zones=["z2"]), ep(_C, zones=["z2"]))], _to(_reached(_B, _C)), node=_Z1),
    ),
    row(
        "H08",
        "hints of draining endpoints are ignored",
        [svc(), slice_(draining(_A), draining(_B))],
        _to(_reached(_A, _B)),
        node=_Z1,
    ),
    row(
        "H09",
        "external policy Local: local for outside, hinted for pods",
        [
            svc(ports=[port(node=3001)], lb=[VIP], external_policy="Local"),
            slice_(ep(_A, zones=["z1"]), ep(_B, zones=["z2"]), ep(_C, zones=["z3"], local=True)),
        ],
        flow(X, VIP, 80, _reached(_C)),
        flow(P, VIP, 80, _reached(_A)),
        node=_Z1,
    ),
    scenario(
        "H10",
        "the node's zone changes",
        step([svc(), _HINTED], _to(_reached(_A)), node=_Z1),
        step([svc(), _HINTED], _to(_reached(_B)), node=node(zone="z2")),
        step([svc(), _HINTED], _to(_reached(_A, _B, _C))),
    ),
    row("H11", "hints count without any annotation", [svc(), _HINTED], _to(_reached(_A)), node=_Z1),
    # Not upstream's number: one endpoint without node hints turns these off, the zone's still count.
    row(
        "H12",
        "node hints on some only, zone hints on all",
        [svc(), slice_(ep(_A, nodes=[NODE], zones=["z2"], local=True), ep(_B, zones=["z1"]), ep(_C, zones=["z1"]))],
        _to(_reached(_B, _C)),
        node=_Z1,
    ),
)
