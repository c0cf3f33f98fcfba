"""Dual stack, single-stack IPv6, FQDN slices and SCTP: rows D and S."""

from __future__ import annotations

from tests.support.addressing import CLUSTER_IP, NODE_IP, six
from tests.support.builders import Built, ep, port, slice_, svc
from tests.support.flows import IPT, NFT, PASS, REJECT, P, Source, X, flow, keep, row, snat

_A = "10.180.0.1"
_E4, _E6 = f"{_A}:80", six(f"{_A}:80")
_IP6 = six(CLUSTER_IP)
_P6, _X6 = Source(P.place, six(P.address)), Source(X.place, six(X.address))
_FOUR, _SIX = slice_(ep(_A)), slice_(ep(six(_A)), family="IPv6")
_BOTH_WAYS = (flow(P, CLUSTER_IP, 80, keep(_E4)), flow(_P6, _IP6, 80, keep(_E6)))


def _fqdn() -> Built:
    """An FQDN slice beside the IPv4 one. The decoder drops it, so the model's half is a slice without endpoints."""
    four = slice_(name="fqdn")
    return Built({**four.api, "addressType": "FQDN", "endpoints": [{"addresses": ["example.org"]}]}, four.object)


ROWS = (
    row("D01", "dual stack", [svc([CLUSTER_IP, _IP6]), _FOUR, _SIX], *_BOTH_WAYS, ipv4_only=True),
    row("D02", "dual stack, IPv6 first", [svc([_IP6, CLUSTER_IP]), _FOUR, _SIX], *_BOTH_WAYS, ipv4_only=True),
    row(
        "D03",
        "single stack IPv6",
        [svc(_IP6, ports=[port(node=3001)]), _FOUR, _SIX],
        flow(_P6, _IP6, 80, keep(_E6)),
        flow(X, NODE_IP, 3001, PASS),
        ipv4_only=True,
    ),
    row(
        "D04",
        "IPv4 slice only",
        [svc([CLUSTER_IP, _IP6]), _FOUR],
        flow(P, CLUSTER_IP, 80, keep(_E4)),
        flow(_P6, _IP6, 80, REJECT),
        ipv4_only=True,
    ),
    row(
        "D05",
        "node port in both families",
        [svc([CLUSTER_IP, _IP6], ports=[port(node=3001)]), _FOUR, _SIX],
        flow(X, NODE_IP, 3001, snat(_E4)),
        flow(_X6, six(NODE_IP), 3001, snat(_E6)),
        ipv4_only=True,
    ),
    row("D06", "FQDN slice", [svc(), _FOUR, _fqdn()], flow(P, CLUSTER_IP, 80, keep(_E4)), ipv4_only=True),
    row(
        "S01",
        "SCTP",
        [svc(ports=[port(80, "s80", "SCTP")]), slice_(ep(_A), ports=[("s80", 80, "SCTP")])],
        flow(P, CLUSTER_IP, 80, keep(_E4), "SCTP"),
        flow(P, CLUSTER_IP, 80, PASS, "TCP", mode=IPT),
        flow(P, CLUSTER_IP, 80, REJECT, "TCP", mode=NFT),
    ),
)
