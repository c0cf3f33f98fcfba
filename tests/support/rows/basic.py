"""ClusterIP, and which Services and slices count at all: rows C and K."""

from __future__ import annotations

from dataclasses import replace

from tests.support.addressing import CLUSTER_IP, EXTERNAL_IP, NODE_IP, OTHER_NODE_IP, POD, VIP
from tests.support.builders import HEADLESS_LABEL, PROXY_NAME_LABEL, ep, port, slice_, svc, terminated, unready
from tests.support.flows import (
    DROP,
    IPT,
    NFT,
    PASS,
    REJECT,
    Flow,
    H,
    Need,
    P,
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


def unknown(address: str = CLUSTER_IP, number: int = 80) -> tuple[Flow, Flow]:
    """A pod asks a cluster IP that no Service has, or none of this proxy's: nftables mode keeps such packets in the cluster."""
    return flow(P, address, number, PASS, mode=IPT), flow(P, address, number, DROP, mode=NFT)


_E1, _E2, _E3 = "10.180.0.1", "10.180.1.1", "10.180.2.1"
_ONE = [svc(), slice_(ep(_E1, local=True))]
_TO = (CLUSTER_IP, 80)
_DNS = [port(53, "dns", "UDP"), port(53, "dns-tcp", "TCP", target=5353), port(53, "dns-sctp", "SCTP")]
_IP2 = "172.30.0.42"

_CLUSTER_IP_ROWS = (
    row("C01", "no slices", [svc()], flow(P, *_TO, REJECT)),
    row("C02", "a slice without endpoints", [svc(), slice_()], flow(P, *_TO, REJECT)),
    row("C03", "one endpoint, not ready", [svc(), slice_(unready(_E1))], flow(P, *_TO, REJECT)),
    row("C04", "one endpoint", _ONE, flow(P, *_TO, keep(f"{_E1}:80"))),
    row("C05", "hairpin: the endpoint calls its own Service", _ONE, flow(pod(_E1), *_TO, snat(f"{_E1}:80"))),
    row(
        "C06",
        "an endpoint calls a Service of two",
        [svc(), slice_(ep(_E1, local=True), ep(_E3))],
        flow(pod(_E1), *_TO, snat(f"{_E1}:80") & keep(f"{_E3}:80")),
    ),
    row(
        "C07",
        "three endpoints get equal shares",
        [svc(), slice_(ep(_E1), ep(_E2), ep(_E3, local=True))],
        flow(P, *_TO, keep(f"{_E1}:80", f"{_E2}:80", f"{_E3}:80"), connections=6000),
    ),
    row(
        "C08",
        "target port differs",
        [svc(_IP2, ports=[port(443, "p443", target=8443)]), slice_(ep(_E1), ports=[("p443", 8443, "TCP")])],
        flow(P, _IP2, 443, keep(f"{_E1}:8443")),
    ),
    row(
        "C09",
        "one number, three protocols, three targets",
        [
            svc(ports=_DNS),
            slice_(ep(_E1), ports=[("dns", 53, "UDP"), ("dns-tcp", 5353, "TCP"), ("dns-sctp", 53, "SCTP")]),
        ],
        flow(P, CLUSTER_IP, 53, keep(f"{_E1}:53"), "UDP"),
        flow(P, CLUSTER_IP, 53, keep(f"{_E1}:5353"), "TCP"),
        flow(P, CLUSTER_IP, 53, keep(f"{_E1}:53"), "SCTP"),
    ),
    row("C10", "a protocol the Service lacks", _ONE, flow(P, *_TO, REJECT, "UDP", mode=NFT)),
    row("C11", "a protocol the Service lacks", _ONE, flow(P, *_TO, PASS, "UDP", mode=IPT)),
    row(
        "C12",
        "another Service's port",
        [
            *_ONE,
            svc(_IP2, name="svc2", ports=[port(443, "p443")]),
            slice_(ep(_E2), of="svc2", ports=[("p443", 443, "TCP")]),
        ],
        flow(P, CLUSTER_IP, 443, REJECT, mode=NFT),
        flow(P, CLUSTER_IP, 443, PASS, mode=IPT),
        flow(P, _IP2, 443, keep(f"{_E2}:443")),
    ),
    row(
        "C13",
        "an address no Service has",
        _ONE,
        *unknown("172.30.0.50"),
    ),
    row(
        "C14",
        "two named ports",
        [svc(ports=[port(), port(443, "p443")]), slice_(ep(_E1), ports=[("p80", 8080, "TCP"), ("p443", 8443, "TCP")])],
        flow(P, CLUSTER_IP, 80, keep(f"{_E1}:8080")),
        flow(P, CLUSTER_IP, 443, keep(f"{_E1}:8443")),
    ),
    row(
        "C15",
        "two slices are one set",
        [svc(), slice_(ep(_E1), ep(_E2), name="a"), slice_(ep(_E3), name="b")],
        flow(P, *_TO, keep(f"{_E1}:80", f"{_E2}:80", f"{_E3}:80")),
    ),
    row(
        "C16",
        "the same endpoint in two slices counts once",
        [svc(), slice_(ep(_E1), name="a"), slice_(ep(_E1), ep(_E2), name="b")],
        flow(P, *_TO, keep(f"{_E1}:80", f"{_E2}:80")),
    ),
    row(
        "C17",
        "a port name with a number of its own in each slice",
        [
            svc(),
            slice_(ep(_E1), name="a", ports=[("p80", 8080, "TCP")]),
            slice_(ep(_E2), name="b", ports=[("p80", 9090, "TCP")]),
        ],
        flow(P, *_TO, keep(f"{_E1}:8080", f"{_E2}:9090")),
    ),
    row(
        "C18",
        "two Services share an endpoint",
        [*_ONE, svc(_IP2, name="svc2"), slice_(ep(_E1, local=True), of="svc2")],
        flow(P, *_TO, keep(f"{_E1}:80")),
        flow(P, _IP2, 80, keep(f"{_E1}:80")),
    ),
    row(
        "C19",
        "endpoint on the host network",
        [svc(), slice_(ep(NODE_IP, local=True))],
        flow(P, *_TO, keep(f"{NODE_IP}:80")),
    ),
    row(
        "C20",
        "host process to a host endpoint",
        [svc(), slice_(ep(NODE_IP, local=True))],
        flow(H, *_TO, either(f"{NODE_IP}:80")),
    ),
    row(
        "C21",
        "host endpoint of another node",
        [svc(), slice_(ep(OTHER_NODE_IP))],
        flow(P, *_TO, keep(f"{OTHER_NODE_IP}:80")),
    ),
    row("C22", "only addresses[0] counts", [svc(), slice_(ep(_E1, _E2))], flow(P, *_TO, keep(f"{_E1}:80"))),
    row(
        "C23",
        "slice ports without name or number",
        [svc(), slice_(ep(_E1), ports=[(None, 80, "TCP"), ("p80", None, "TCP")])],
        flow(P, *_TO, REJECT),
        needs=[Need.FILES_ONLY],
    ),
    row(
        "C24", "no selector, slice by hand", [svc(), slice_(ep(_E1), name="by-hand")], flow(P, *_TO, keep(f"{_E1}:80"))
    ),
    # Not upstream's: addresses that no endpoint may have. The one good endpoint of the slice still serves.
    row(
        "C25",
        "hostile endpoint addresses are refused",
        [
            svc(),
            slice_(
                *(ep(a) for a in ("127.0.0.1", "169.254.169.254", "224.0.0.1", "0.0.0.0", "255.255.255.255")), ep(_E1)
            ),
            svc(_IP2, name="svc2"),
            slice_(ep("127.0.0.1", local=True), of="svc2"),
        ],
        flow(P, *_TO, keep(f"{_E1}:80")),
        flow(P, _IP2, 80, REJECT),
        needs=[Need.FILES_ONLY],
        ipv4_only=True,
    ),
)

_EXTERNAL_NAME = svc(CLUSTER_IP, type="ExternalName", external_name="example.org", ports=[port(node=3001)])
_LABELLED = svc(labels={PROXY_NAME_LABEL: "foo"})
_NODE_PORT = svc(ports=[port(node=3001)])
_SLICE = slice_(ep(_E1))

_SKIPPED_ROWS = (
    row(
        "K01",
        "headless",
        [svc("None", ports=[port()], external=[EXTERNAL_IP]), _SLICE],
        flow(X, EXTERNAL_IP, 80, PASS),
        *unknown(),
    ),
    row(
        "K02",
        "ExternalName with a stale cluster IP",
        [_EXTERNAL_NAME, _SLICE],
        *unknown(),
        flow(X, NODE_IP, 3001, PASS),
        needs=[Need.FILES_ONLY],
    ),
    row("K03", "service-proxy-name from the start", [_LABELLED, _SLICE], *unknown()),
    scenario(
        "K04",
        "service-proxy-name added, then removed",
        step([svc(), _SLICE], flow(P, *_TO, keep(f"{_E1}:80"))),
        step([_LABELLED, slice_(ep(_E1), labels={PROXY_NAME_LABEL: "foo"})], *unknown()),
        step([svc(), _SLICE], flow(P, *_TO, keep(f"{_E1}:80"))),
    ),
    row(
        "K05",
        "headless label: on the Service it says nothing, on the slice it does",
        [svc(labels={HEADLESS_LABEL: ""}), _SLICE, slice_(ep(_E2), name="svc1-headless", labels={HEADLESS_LABEL: ""})],
        flow(P, *_TO, keep(f"{_E1}:80")),
    ),
    scenario(
        "K06",
        "type changes leave nothing behind",
        step([svc(), _SLICE], flow(P, *_TO, keep(f"{_E1}:80")), flow(X, NODE_IP, 3001, PASS)),
        step(
            [svc((), type="ExternalName", external_name="example.org"), _SLICE],
            *unknown(),
            flow(X, NODE_IP, 3001, PASS),
        ),
        step([_NODE_PORT, _SLICE], flow(P, *_TO, keep(f"{_E1}:80")), flow(X, NODE_IP, 3001, snat(f"{_E1}:80"))),
        step([svc(), _SLICE], flow(P, *_TO, keep(f"{_E1}:80")), flow(X, NODE_IP, 3001, PASS)),
    ),
    scenario(
        "K07",
        "recreated with another cluster IP",
        step([svc(), _SLICE], flow(P, *_TO, keep(f"{_E1}:80"))),
        step([_SLICE], *unknown()),
        step([svc(_IP2), _SLICE], *unknown(), flow(P, _IP2, 80, keep(f"{_E1}:80"))),
    ),
)


def _with_broken_fields() -> object:
    """A load balancer whose manifest holds broken entries besides the good ones; the model's object has the good ones only."""
    good = svc(lb=[VIP], ports=[port(node=3001)], ranges=["203.0.113.0/25"], external=[EXTERNAL_IP])
    spec = dict(good.api["spec"])
    spec["externalIPs"] = [EXTERNAL_IP, "not-an-ip", "fd00:192:168:99::77"]
    spec["loadBalancerSourceRanges"] = ["203.0.113.0/25", "10.0.0.0/99", "nonsense"]
    model = replace(good.object, external_ips=(EXTERNAL_IP, "fd00:192:168:99::77"))  # type: ignore[type-var]
    return replace(good, api={**good.api, "spec": spec}, object=model)


# Not upstream's number: a slice cannot be handed to another proxy, only its Service can.
_SLICE_ROWS = (
    row(
        "K09",
        "service-proxy-name on the slice only",
        [svc(), slice_(ep(_E1), labels={PROXY_NAME_LABEL: "foo"})],
        flow(P, *_TO, keep(f"{_E1}:80")),
    ),
)

_BROKEN_ROWS = (
    row(
        "K08",
        "broken entries: the rest of the Service works",
        [_with_broken_fields(), slice_(ep(_E1), terminated(_E2))],  # type: ignore[list-item]
        flow(P, *_TO, keep(f"{_E1}:80")),
        flow(X, NODE_IP, 3001, snat(f"{_E1}:80")),
        flow(X, VIP, 80, snat(f"{_E1}:80")),
        flow(P, EXTERNAL_IP, 80, snat(f"{_E1}:80")),
        needs=[Need.FILES_ONLY],
        ipv4_only=True,
    ),
)

ROWS = (*_CLUSTER_IP_ROWS, *_SKIPPED_ROWS, *_SLICE_ROWS, *_BROKEN_ROWS)
assert POD.startswith("10.")  # pods lie in the cluster CIDR: "keep" in these rows rests on it
