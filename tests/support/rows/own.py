"""What kproxy does beyond upstream: rows O, for executors of our own data planes.

O01: the node holds the cluster DNS address and answers port 53 there itself, untracked; the Service keeps its other ports.
"""

from __future__ import annotations

from dataclasses import replace

from tests.support.builders import ep, port, slice_, svc
from tests.support.flows import LOCAL_ADDRESSES, PASS, SETTINGS, H, P, X, flow, keep, row

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
)
