"""The modes of detectLocalMode besides ClusterCIDR, which all other rows use: rows G. Not upstream's numbers.

Each row asks the two questions that a detector answers: whose packets to a cluster IP keep their source, and who is short-circuited past
policy Local.
"""

from __future__ import annotations

from dataclasses import replace

from kproxy.model.desired import DetectMode, NodeSettings
from tests.support.addressing import CLUSTER_IP, VIP
from tests.support.builders import ep, port, slice_, svc
from tests.support.flows import P2, POD_INTERFACE, SETTINGS, Flow, H, P, Row, X, flow, keep, pod, row, snat

_REMOTE, _LOCAL = "10.180.0.1", "10.180.2.1"
_R, _L = f"{_REMOTE}:80", f"{_LOCAL}:80"
_OBJECTS = [
    svc(ports=[port(node=3001)], lb=[VIP], external_policy="Local"),
    slice_(ep(_REMOTE), ep(_LOCAL, local=True)),
]


def _settings(mode: DetectMode, **inputs: str) -> NodeSettings:
    return replace(SETTINGS, cluster_cidrs=(), detect_mode=mode, **inputs)  # type: ignore[arg-type]


def _pod_flows() -> tuple[Flow, ...]:
    return (
        flow(P, CLUSTER_IP, 80, keep(_R, _L)),
        flow(P2, VIP, 80, keep(_R, _L)),
        flow(X, CLUSTER_IP, 80, snat(_R, _L)),
        flow(X, VIP, 80, keep(_L)),
        flow(H, CLUSTER_IP, 80, snat(_R, _L)),
        flow(H, VIP, 80, snat(_R, _L)),
    )


ROWS: tuple[Row, ...] = (
    row(
        "G01",
        "NodeCIDR: the Node's pod network, which the endpoints lie outside of",
        _OBJECTS,
        *_pod_flows(),
        flow(pod(_LOCAL), CLUSTER_IP, 80, snat(_R, _L)),
        flow(pod(_LOCAL), VIP, 80, snat(_L)),
        settings=_settings(DetectMode.NODE_CIDR),
    ),
    row(
        "G02",
        "BridgeInterface: what comes in by the bridge",
        _OBJECTS,
        *_pod_flows(),
        settings=_settings(DetectMode.BRIDGE_INTERFACE, bridge_interface=POD_INTERFACE),
    ),
    row(
        "G03",
        "InterfaceNamePrefix: what comes in by an interface of such a name",
        _OBJECTS,
        *_pod_flows(),
        settings=_settings(DetectMode.INTERFACE_NAME_PREFIX, interface_prefix=POD_INTERFACE[:4]),
    ),
)
