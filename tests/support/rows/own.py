"""What kproxy does beyond upstream: rows O. Those that upstream answers otherwise stand in tests/peers/differences.py with the reason.

O01, O02: the node holds the cluster DNS address and answers port 53 there itself, untracked; the Service keeps its other ports.
O03-O07: external IPs and endpoint addresses that would take somebody's traffic away.
"""

from __future__ import annotations

from dataclasses import replace

from kproxy.model.desired import NodeSettings
from kproxy.model.external_ips import ExternalIPSettings
from tests.support.addressing import CLUSTER_IP, EXTERNAL_IP, NODE_IP, NODE_IP_2
from tests.support.builders import ep, port, slice_, svc
from tests.support.flows import IPT, LOCAL_ADDRESSES, NFT, PASS, REJECT, SETTINGS, H, P, X, flow, keep, row, snat

_DNS = "172.30.0.10"
_EP = "10.180.0.1"
_PORTS = [port(53, "dns", "UDP"), port(53, "dns-tcp"), port(9153, "metrics")]
_OBJECTS = [
    svc(_DNS, name="kube-dns", namespace="kube-system", ports=_PORTS),
    slice_(
        ep(_EP),
        of="kube-dns",
        namespace="kube-system",
        ports=[("dns", 53, "UDP"), ("dns-tcp", 53, "TCP"), ("metrics", 9153, "TCP")],
    ),
]
_CLAIM = [svc(external=[NODE_IP, NODE_IP_2, EXTERNAL_IP]), slice_(ep(_EP))]
_REACHED = snat(f"{_EP}:80")
_IP2 = "172.30.0.42"


def _guard(**rules: object) -> NodeSettings:
    return replace(SETTINGS, external_ips=ExternalIPSettings(**rules))  # type: ignore[arg-type]


ROWS = (
    row(
        "O01",
        "cluster DNS is answered on the node",
        _OBJECTS,
        flow(P, _DNS, 53, PASS, "UDP"),
        flow(P, _DNS, 53, PASS, "TCP"),
        flow(H, _DNS, 53, PASS, "UDP"),
        flow(X, _DNS, 53, PASS, "UDP"),
        flow(P, _DNS, 9153, keep(f"{_EP}:9153")),
        settings=replace(SETTINGS, dns_addresses=(_DNS,)),
        local_addresses=LOCAL_ADDRESSES | {_DNS},
    ),
    row(
        "O02",
        "without holding it, DNS is a Service like any other",
        _OBJECTS,
        flow(P, _DNS, 53, keep(f"{_EP}:53"), "UDP"),
        flow(P, _DNS, 53, keep(f"{_EP}:53"), "TCP"),
    ),
    row(
        "O03",
        "an external IP that is the node's own is not served",
        _CLAIM,
        flow(X, NODE_IP, 80, PASS),
        flow(X, NODE_IP_2, 80, PASS),
        flow(P, NODE_IP, 80, PASS),
        flow(X, EXTERNAL_IP, 80, _REACHED),
        flow(P, CLUSTER_IP, 80, keep(f"{_EP}:80")),
    ),
    row(
        "O04",
        "an external IP that is another Service's cluster IP is not served",
        [
            svc(),
            slice_(ep("10.180.1.1")),
            svc(_IP2, name="a-thief", external=[CLUSTER_IP], ports=[port(), port(8080, "p8080")]),
            slice_(ep(_EP), of="a-thief", ports=[("p80", 80, "TCP"), ("p8080", 8080, "TCP")]),
        ],
        flow(P, CLUSTER_IP, 80, keep("10.180.1.1:80")),
        flow(P, CLUSTER_IP, 8080, PASS, mode=IPT),
        flow(P, CLUSTER_IP, 8080, REJECT, mode=NFT),
        flow(P, _IP2, 8080, keep(f"{_EP}:8080")),
    ),
    row(
        "O05",
        "an endpoint that no connection can have is not used",
        [svc(), slice_(ep("239.1.1.1"), ep("255.255.255.255"), ep(_EP))],
        flow(P, CLUSTER_IP, 80, keep(f"{_EP}:80"), connections=20),
        ipv4_only=True,
    ),
    row(
        "O06",
        "the operator gives the node's address away, by its network",
        _CLAIM,
        flow(X, NODE_IP, 80, _REACHED),
        flow(X, NODE_IP_2, 80, PASS),
        flow(X, EXTERNAL_IP, 80, PASS),
        settings=_guard(allowed_networks=("192.168.0.0/24", "fd00:192:168::/64")),
    ),
    row(
        "O07",
        "the guard is off, as kube-proxy is",
        _CLAIM,
        flow(X, NODE_IP, 80, _REACHED),
        flow(X, NODE_IP_2, 80, _REACHED),
        flow(X, EXTERNAL_IP, 80, _REACHED),
        settings=_guard(allow_protected=True),
    ),
)
