"""Load-balancer and external IPs: rows L."""

from __future__ import annotations

from dataclasses import replace

from kproxy.model.external_ips import ExternalIPSettings
from tests.support.addressing import CLUSTER_IP, EXTERNAL_IP, NODE_IP, VIP, VIP_2, six
from tests.support.builders import ep, port, slice_, svc
from tests.support.flows import (
    DROP,
    IPT,
    LOCAL_ADDRESSES,
    NFT,
    PASS,
    REJECT,
    SETTINGS,
    XB,
    H,
    P,
    Place,
    Source,
    X,
    flow,
    host,
    keep,
    row,
    scenario,
    snat,
    step,
)

_E1 = "10.180.0.1"
_RANGES = ["192.168.0.0/24", " 203.0.113.0/25"]
_PORTS = [port(node=3001)]
_LB = svc(ports=_PORTS, lb=[VIP, VIP_2], ranges=_RANGES)
_SLICE = slice_(ep(_E1))
_ONE = [_LB, _SLICE]
_REACHED = snat(f"{_E1}:80")
_DUAL = [
    svc([CLUSTER_IP, six(CLUSTER_IP)], ports=_PORTS, lb=[VIP, six(VIP)]),
    _SLICE,
    slice_(ep(six(_E1)), family="IPv6"),
]

ROWS = (
    row("L01", "cluster IP of a load balancer", _ONE, flow(P, CLUSTER_IP, 80, keep(f"{_E1}:80"))),
    row("L02", "its node port", _ONE, flow(X, NODE_IP, 3001, _REACHED)),
    row("L03", "source ranges do not guard node ports", _ONE, flow(XB, NODE_IP, 3001, _REACHED)),
    row("L04", "both load-balancer IPs", _ONE, flow(X, VIP, 80, _REACHED), flow(X, VIP_2, 80, _REACHED)),
    row("L05", "outside the source ranges", _ONE, flow(XB, VIP, 80, DROP)),
    row("L06", "a pod outside the source ranges", _ONE, flow(P, VIP, 80, DROP)),
    row("L07", "the node lies in a range", _ONE, flow(H, VIP, 80, _REACHED)),
    row(
        "L08",
        "the load-balancer IP itself is the source",
        _ONE,
        flow(host(VIP), VIP, 80, _REACHED),
        local_addresses=LOCAL_ADDRESSES | {VIP},
    ),
    row(
        "L09",
        "ipMode Proxy",
        [svc(ports=_PORTS, lb=[{"ip": VIP, "ipMode": "Proxy"}]), _SLICE],
        flow(X, VIP, 80, PASS),
        flow(P, VIP, 80, PASS),
        flow(P, CLUSTER_IP, 80, keep(f"{_E1}:80")),
        flow(X, NODE_IP, 3001, _REACHED),
    ),
    row(
        "L10",
        "ingress with a hostname only",
        [svc(ports=_PORTS, lb=[{"hostname": "lb.example.org"}]), _SLICE],
        flow(X, VIP, 80, PASS),
        flow(P, CLUSTER_IP, 80, keep(f"{_E1}:80")),
        flow(X, NODE_IP, 3001, _REACHED),
    ),
    row(
        "L11",
        "no endpoints: refused even outside the ranges",
        [_LB],
        flow(X, VIP, 80, REJECT),
        flow(XB, VIP, 80, REJECT, mode=IPT),
        flow(P, VIP, 80, REJECT, mode=IPT),
        flow(XB, VIP, 80, DROP, mode=NFT),
        flow(P, VIP, 80, DROP, mode=NFT),
    ),
    row("L12", "external IP without endpoints", [svc(external=[EXTERNAL_IP])], flow(X, EXTERNAL_IP, 80, REJECT)),
    row(
        "L13",
        "external IP with endpoints",
        [svc(external=[EXTERNAL_IP]), _SLICE],
        flow(P, EXTERNAL_IP, 80, _REACHED),
        flow(X, EXTERNAL_IP, 80, _REACHED),
    ),
    scenario(
        "L14",
        "source ranges removed",
        step(_ONE, flow(XB, VIP, 80, DROP)),
        step([svc(ports=_PORTS, lb=[VIP, VIP_2]), _SLICE], flow(XB, VIP, 80, _REACHED)),
    ),
    scenario(
        "L15",
        "load-balancer IP taken away",
        step(_ONE, flow(X, VIP, 80, _REACHED)),
        step(
            [svc(ports=_PORTS, type="LoadBalancer"), _SLICE], flow(X, VIP, 80, PASS), flow(X, NODE_IP, 3001, _REACHED)
        ),
    ),
    row(
        "L16",
        "dual stack: each load-balancer IP has its family's endpoints",
        _DUAL,
        flow(X, VIP, 80, _REACHED),
        flow(Source(Place.OUTSIDE, six(X.address)), six(VIP), 80, snat(six(f"{_E1}:80"))),
        ipv4_only=True,
    ),
    # Not upstream's: ranges guard load-balancer IPs only, an external IP of the same Service stays open.
    row(
        "L17",
        "source ranges do not guard external IPs",
        [svc(ports=_PORTS, lb=[VIP], ranges=_RANGES, external=[EXTERNAL_IP]), _SLICE],
        flow(XB, EXTERNAL_IP, 80, _REACHED),
        flow(XB, VIP, 80, DROP),
    ),
    # Not upstream's number, but its behaviour: in iptables mode nothing refuses the node's own packets to an address outside, as the chain
    # of those refusals hangs below INPUT and FORWARD only. They go where the address really is.
    row(
        "L18",
        "no endpoints: the node's own packets",
        [_LB],
        flow(H, VIP, 80, PASS, mode=IPT),
        flow(H, VIP, 80, REJECT, mode=NFT),
        flow(H, CLUSTER_IP, 80, REJECT),
        flow(H, NODE_IP, 3001, REJECT),
    ),
    # Not upstream's number, but its behaviour.
    row(
        "L19",
        "external IPs switched off by their feature gate",
        [svc(ports=_PORTS, external=[EXTERNAL_IP], external_policy="Local"), _SLICE],
        flow(X, EXTERNAL_IP, 80, PASS),
        flow(P, EXTERNAL_IP, 80, PASS),
        flow(P, CLUSTER_IP, 80, keep(f"{_E1}:80")),
        settings=replace(SETTINGS, external_ips=ExternalIPSettings(enabled=False)),
    ),
)
