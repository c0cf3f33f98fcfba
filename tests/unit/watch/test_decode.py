"""Rows: JSON of one object → the model object and the Problems. Ids 5, 6, 42 are the faults of the same numbers in the reliability list."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from kproxy.model.events import Applied, Removed
from kproxy.model.names import Family, NamespacedName, Protocol
from kproxy.model.objects import (
    Decoded,
    EndpointSlice,
    Kind,
    Namespace,
    Node,
    ObjectKey,
    Pod,
    PortSpec,
    Service,
    SliceEndpoint,
    SlicePort,
    TrafficPolicy,
)
from kproxy.watch.decode import Bookmark, Change, ListPage, Malformed, Refusal, decode, decode_line, decode_page

WEB = NamespacedName("shop", "web")


def service_json(spec: dict[str, Any] | None = None, **top: Any) -> dict[str, Any]:
    body = {"clusterIP": "10.96.0.7", "ports": [{"name": "http", "port": 80, "targetPort": "web"}]}
    return {"metadata": {"name": "web", "namespace": "shop", "resourceVersion": "7"}, "spec": body | (spec or {})} | top


def slice_json(**top: Any) -> dict[str, Any]:
    return {
        "metadata": {"name": "web-1", "namespace": "shop", "labels": {"kubernetes.io/service-name": "web"}},
        "addressType": "IPv4",
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
        "endpoints": [{"addresses": ["10.244.0.5"]}],
    } | top


def decoded(kind: Kind, body: dict[str, Any]) -> Decoded:
    """Both ways in, from bytes and from a mapping, say the same."""
    result = decode(kind, json.dumps(body).encode())
    assert decode(kind, body) == result
    return result


PLAIN = Service(name=WEB, cluster_ips=("10.96.0.7",), ports=(PortSpec(name="http", protocol=Protocol.TCP, port=80),))
SERVICE_ROWS: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("nothing but a port", {}, {}),
    ("null lists", {"externalIPs": None, "clusterIPs": None, "loadBalancerSourceRanges": None}, {}),
    ("headless", {"clusterIP": "None", "clusterIPs": ["None"]}, {"cluster_ips": (), "headless": True}),
    ("not yet allocated", {"clusterIP": ""}, {"cluster_ips": ()}),
    (
        "dual stack, in the API's order",
        {"clusterIPs": ["fd00:0::7", "10.96.0.7"], "ipFamilies": ["IPv6", "IPv4"]},
        {"cluster_ips": ("fd00::7", "10.96.0.7")},
    ),
    (
        "ExternalName keeps no stale cluster IP",
        {"type": "ExternalName", "externalName": "Db.Example.com."},
        {"type": "ExternalName", "cluster_ips": (), "external_name": "Db.Example.com."},
    ),
    (
        "blanks around source ranges, host bits",
        {"loadBalancerSourceRanges": [" 203.0.113.77/25 ", "2001:DB8::/32"]},
        {"source_ranges": ("203.0.113.0/25", "2001:db8::/32")},
    ),
    ("affinity default", {"sessionAffinity": "ClientIP"}, {"affinity_timeout_s": 10800}),
    (
        "affinity timeout",
        {"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 30}}},
        {"affinity_timeout_s": 30},
    ),
    (
        "policies, node port, health check",
        {
            "type": "LoadBalancer",
            "internalTrafficPolicy": "Local",
            "externalTrafficPolicy": "Local",
            "healthCheckNodePort": 30999,
            "ports": [{"port": 53, "protocol": "UDP", "nodePort": 30053}],
            "selector": {"b": "2", "a": "1"},
        },
        {
            "type": "LoadBalancer",
            "internal_policy": TrafficPolicy.LOCAL,
            "external_policy": TrafficPolicy.LOCAL,
            "health_check_node_port": 30999,
            "ports": (PortSpec(name="", protocol=Protocol.UDP, port=53, node_port=30053),),
            "selector": (("a", "1"), ("b", "2")),
        },
    ),
    (
        "same number, two protocols",
        {"ports": [{"name": "dns", "port": 53, "protocol": "UDP"}, {"name": "dns", "port": 53, "protocol": "TCP"}]},
        {
            "ports": (
                PortSpec(name="dns", protocol=Protocol.UDP, port=53),
                PortSpec(name="dns", protocol=Protocol.TCP, port=53),
            )
        },
    ),
    ("external IPs, each once", {"externalIPs": ["192.0.2.1", "192.0.2.1"]}, {"external_ips": ("192.0.2.1",)}),
]


@pytest.mark.parametrize(("spec", "differs"), [row[1:] for row in SERVICE_ROWS], ids=[row[0] for row in SERVICE_ROWS])
def test_service(spec: dict[str, Any], differs: dict[str, Any]) -> None:
    result = decoded(Kind.SERVICE, service_json(spec))
    assert result == Decoded(
        key=ObjectKey(Kind.SERVICE, WEB), object=replace(PLAIN, **differs), problems=(), resource_version="7"
    )


@pytest.mark.parametrize(
    ("label", "of_service", "of_slice"),
    [("service.kubernetes.io/service-proxy-name", False, True), ("service.kubernetes.io/headless", True, False)],
)
def test_the_mere_presence_of_a_label_takes_the_object_from_the_proxy(
    label: str, of_service: bool, of_slice: bool
) -> None:
    """As kube-proxy 1.36 selects: Services by the first label, slices by the second."""
    marked = service_json(metadata={"name": "web", "namespace": "shop", "labels": {label: ""}})
    assert decoded(Kind.SERVICE, marked).object == replace(PLAIN, proxied=of_service)
    labels = {"kubernetes.io/service-name": "web", label: ""}
    body = slice_json(metadata={"name": "web-1", "namespace": "shop", "labels": labels})
    found = decoded(Kind.ENDPOINT_SLICE, body).object
    assert isinstance(found, EndpointSlice)
    assert found.proxied is of_slice


def test_load_balancer_addresses_are_those_the_balancer_leaves_on_the_packet() -> None:
    ingress = [
        {"ip": "192.0.2.9"},
        {"ip": "192.0.2.10", "ipMode": "VIP"},
        {"ip": "192.0.2.11", "ipMode": "Proxy"},
        {"hostname": "lb.example.com"},
    ]
    found = decoded(Kind.SERVICE, service_json(status={"loadBalancer": {"ingress": ingress}}))
    assert found.problems == ()
    assert isinstance(found.object, Service)
    assert found.object.load_balancer_ips == ("192.0.2.9", "192.0.2.10")
    assert found.object.load_balancer_proxy_ips == ("192.0.2.11",)


BROKEN_SERVICES: list[tuple[str, dict[str, Any], dict[str, Any], list[str]]] = [
    (
        "type error in one port costs that port",
        {"ports": [{"name": "a", "port": "80"}, {"name": "b", "port": 81}]},
        {"ports": (PortSpec(name="b", protocol=Protocol.TCP, port=81),)},
        ["spec.ports[0].port: is the text '80', not a whole number"],
    ),
    (
        "type error of a whole list costs the list",
        {"externalIPs": "192.0.2.1"},
        {},
        ["spec.externalIPs: is the text, not a list"],
    ),
    (
        "a bad address costs itself",
        {"externalIPs": ["192.0.2.300", "192.0.2.1"]},
        {"external_ips": ("192.0.2.1",)},
        ["spec.externalIPs[0]: '192.0.2.300' is not an IP address; it is ignored"],
    ),
    (
        "leading zeros are decimal, as the API reads them",
        {"clusterIP": "010.096.000.007"},
        {"cluster_ips": ("10.96.0.7",)},
        [],
    ),
    (
        "IPv4 in IPv6 clothes",
        {"externalIPs": ["::ffff:192.0.2.1"]},
        {},
        ["spec.externalIPs[0]: '::ffff:192.0.2.1' is an IPv4 address in IPv6 clothes; it is ignored"],
    ),
    (
        "special external IPs",
        {"externalIPs": ["127.0.0.1", "169.254.169.254", "224.0.0.1", "::1", "0.0.0.0"]},
        {},
        [
            "spec.externalIPs[0]: 127.0.0.1 is refused (loopback); it is ignored",
            "spec.externalIPs[1]: 169.254.169.254 is refused (link-local); it is ignored",
            "spec.externalIPs[2]: 224.0.0.1 is refused (multicast); it is ignored",
            "spec.externalIPs[3]: ::1 is refused (loopback); it is ignored",
            "spec.externalIPs[4]: 0.0.0.0 is refused (unspecified); it is ignored",
        ],
    ),
    (
        "unknown enum values fall back to the API's defaults",
        {"type": "Magic", "externalTrafficPolicy": "Near", "sessionAffinity": "Cookie"},
        {},
        [
            "spec.type: 'Magic' is unknown; treated as ClusterIP",
            "spec.sessionAffinity: 'Cookie' is unknown; there is none",
            "spec.externalTrafficPolicy: 'Near' is unknown; treated as Cluster",
        ],
    ),
    (
        "unreadable source ranges close instead of open",
        {"loadBalancerSourceRanges": ["10.0.0.0/33"]},
        {"source_ranges": ("0.0.0.0/32", "::/128")},
        [
            "spec.loadBalancerSourceRanges[0]: '10.0.0.0/33' is not a network (address/prefix length); it is ignored",
            "spec.loadBalancerSourceRanges: has no range that can be read; nobody is let in",
        ],
    ),
    (
        "source ranges of the wrong type close too",
        {"loadBalancerSourceRanges": "10.0.0.0/8"},
        {"source_ranges": ("0.0.0.0/32", "::/128")},
        [
            "spec.loadBalancerSourceRanges: is the text, not a list",
            "spec.loadBalancerSourceRanges: has no range that can be read; nobody is let in",
        ],
    ),
    (
        "ports out of range, unknown protocol, illegal and repeated names",
        {
            "ports": [
                {"name": "a", "port": 0},
                {"name": "b", "port": 65536},
                {"name": "c", "port": 1, "protocol": "QUIC"},
                {"name": 'x"\n*/', "port": 1},
                {"name": "d", "port": 1, "nodePort": 70000},
                {"name": "d", "port": 2},
            ]
        },
        {"ports": (PortSpec(name="d", protocol=Protocol.TCP, port=1),)},
        [
            "spec.ports[0].port: '0' is not between 1 and 65535; the port is ignored",
            "spec.ports[1].port: '65536' is not between 1 and 65535; the port is ignored",
            "spec.ports[2].protocol: 'QUIC' is unknown; the port is ignored",
            "spec.ports[3].name: 'x\"\\n*/' is no legal port name; the port is ignored",
            "spec.ports[4].nodePort: '70000' is not between 0 and 65535; there is none",
            "spec.ports[5].name: 'd' TCP is there already; the port is ignored",
        ],
    ),
    (
        "cluster IP of another family than ipFamilies says",
        {"clusterIPs": ["fd00::7"], "ipFamilies": ["IPv4"]},
        {"cluster_ips": ()},
        ["spec.clusterIPs[0]: fd00::7 is IPv6, but spec.ipFamilies[0] says IPv4; it is ignored"],
    ),
]


@pytest.mark.parametrize(
    ("spec", "differs", "reasons"), [row[1:] for row in BROKEN_SERVICES], ids=[row[0] for row in BROKEN_SERVICES]
)
def test_broken_service_keeps_its_good_parts(spec: dict[str, Any], differs: dict[str, Any], reasons: list[str]) -> None:
    result = decoded(Kind.SERVICE, service_json(spec))
    assert result.object == replace(PLAIN, **differs)
    assert [p.reason for p in result.problems] == reasons
    assert {(p.kind, p.name) for p in result.problems} <= {("Service", "shop/web")}


BARE_SLICE = EndpointSlice(
    name=NamespacedName("shop", "web-1"),
    service=WEB,
    family=Family.IPV4,
    ports=(SlicePort(name="http", protocol=Protocol.TCP, port=8080),),
    endpoints=(SliceEndpoint(address="10.244.0.5"),),
)
SLICE_ROWS: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("nil conditions mean ready and serving", {}, {}),
    ("null lists", {"ports": None, "endpoints": None}, {"ports": (), "endpoints": ()}),
    (
        "a port without name or number is none; an empty name is the unnamed port; protocol defaults to TCP",
        {"ports": [{"port": 1}, {"name": "x"}, {"name": "y", "port": 0}, {"name": "", "port": 9}]},
        {"ports": (SlicePort(name="", protocol=Protocol.TCP, port=9),)},
    ),
    (
        "everything an endpoint can say",
        {
            "endpoints": [
                {
                    "addresses": ["10.244.0.5", "10.244.0.6"],
                    "conditions": {"ready": False, "serving": True, "terminating": True},
                    "hostname": "db-0",
                    "nodeName": "node-1",
                    "zone": "a",
                    "hints": {"forZones": [{"name": "a"}, {"name": "b"}], "forNodes": [{"name": "node-1"}]},
                    "targetRef": {"kind": "Pod", "name": "db-0", "namespace": "shop"},
                },
                {"addresses": ["10.244.0.7"], "targetRef": {"kind": "VirtualMachine", "name": "vm"}},
            ]
        },
        {
            "endpoints": (
                SliceEndpoint(
                    address="10.244.0.5",
                    ready=False,
                    serving=True,
                    terminating=True,
                    hostname="db-0",
                    node_name="node-1",
                    zone="a",
                    hint_zones=("a", "b"),
                    hint_nodes=("node-1",),
                    pod="db-0",
                ),
                SliceEndpoint(address="10.244.0.7"),
            )
        },
    ),
]


@pytest.mark.parametrize(("top", "differs"), [row[1:] for row in SLICE_ROWS], ids=[row[0] for row in SLICE_ROWS])
def test_slice(top: dict[str, Any], differs: dict[str, Any]) -> None:
    result = decoded(Kind.ENDPOINT_SLICE, slice_json(**top))
    assert result.problems == ()
    assert result.object == replace(BARE_SLICE, **differs)


def test_slices_of_names_are_nobodys_and_nobodys_problem() -> None:
    result = decoded(Kind.ENDPOINT_SLICE, slice_json(addressType="FQDN", endpoints=[{"addresses": ["a.example"]}]))
    assert (result.object, result.problems) == (None, ())


@pytest.mark.parametrize(
    ("top", "reason"),
    [
        (
            {"metadata": {"name": "web-1", "namespace": "shop"}},
            "metadata.labels[kubernetes.io/service-name]: is missing; the slice is ignored",
        ),
        ({"addressType": "IPX"}, "addressType: 'IPX' is not IPv4, IPv6 or FQDN; the slice is ignored"),
        ({"metadata": {"name": "", "namespace": "shop"}}, "metadata.name: is missing; the object is ignored"),
        (
            {"metadata": {"name": "a\nb", "namespace": "shop"}},
            "metadata.name: 'a\\nb' is no legal name; the object is ignored",
        ),
        (
            {"metadata": {"name": "web-1", "namespace": "../x"}},
            "metadata.namespace: '../x' is no legal namespace; the object is ignored",
        ),
    ],
)
def test_slice_that_belongs_nowhere(top: dict[str, Any], reason: str) -> None:
    result = decoded(Kind.ENDPOINT_SLICE, slice_json(**top))
    assert result.object is None
    assert [p.reason for p in result.problems] == [reason]


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("127.0.0.1", "127.0.0.1 is refused (loopback); it is ignored"),
        ("169.254.169.254", "169.254.169.254 is refused (link-local); it is ignored"),
        ("239.1.1.1", "239.1.1.1 is refused (multicast); it is ignored"),
        ("0.0.0.0", "0.0.0.0 is refused (unspecified); it is ignored"),
        ("::ffff:10.0.0.1", "'::ffff:10.0.0.1' is an IPv4 address in IPv6 clothes; it is ignored"),
        ("fd00::5", "fd00::5 is not IPv4; the endpoint is ignored"),
        ("fe80::1%eth0", "'fe80::1%eth0' is not an IP address; it is ignored"),
        ("10.0.0.1\nCOMMIT", "'10.0.0.1\\nCOMMIT' is not an IP address; it is ignored"),
    ],
)
def test_fault_42_hostile_endpoint_addresses_are_refused_one_by_one(address: str, why: str) -> None:
    body = slice_json(endpoints=[{"addresses": [address]}, {"addresses": ["10.244.0.5"]}], unknown={"field": 1})
    result = decoded(Kind.ENDPOINT_SLICE, body)
    assert result.object == BARE_SLICE
    assert [p.reason for p in result.problems] == [f"endpoints[0].addresses[0]: {why}"]


def test_fault_42_ten_thousand_endpoints_are_bounded_and_so_are_the_problems() -> None:
    endpoints = [{"addresses": [f"10.{i >> 8}.{i & 255}.1"]} for i in range(10_000)]
    result = decoded(Kind.ENDPOINT_SLICE, slice_json(endpoints=endpoints))
    assert isinstance(result.object, EndpointSlice)
    assert len(result.object.endpoints) == 1000
    assert [p.reason for p in result.problems] == ["endpoints: has 10000 entries; only the first 1000 are used"]
    bad = decoded(Kind.ENDPOINT_SLICE, slice_json(endpoints=[{"addresses": ["127.0.0.1"]}] * 900))
    assert len(bad.problems) == 17
    assert bad.problems[-1].reason == "and 884 more like these"


def test_an_endpoint_with_a_condition_of_the_wrong_type_is_left_out() -> None:
    body = slice_json(
        endpoints=[{"addresses": ["10.0.0.9"], "conditions": {"ready": "no"}}, {"addresses": ["10.244.0.5"]}]
    )
    result = decoded(Kind.ENDPOINT_SLICE, body)
    assert result.object == BARE_SLICE
    assert [p.reason for p in result.problems] == ["endpoints[0].conditions.ready: is the text 'no', not true or false"]


def test_node() -> None:
    body = {
        "metadata": {
            "name": "node-1",
            "labels": {"topology.kubernetes.io/zone": "a"},
            "deletionTimestamp": "2026-01-01T00:00:00Z",
        },
        "spec": {
            "podCIDR": "10.244.0.0/24",
            "podCIDRs": ["10.244.0.0/24", "fd00:1::/64"],
            "taints": [{"key": "ToBeDeletedByClusterAutoscaler"}],
        },
        "status": {
            "addresses": [
                {"type": "Hostname", "address": "node-1"},
                {"type": "ExternalIP", "address": "192.0.2.5"},
                {"type": "InternalIP", "address": "192.168.200.21"},
            ]
        },
    }
    assert decoded(Kind.NODE, body).object == Node(
        name="node-1",
        addresses=("192.168.200.21", "192.0.2.5"),
        pod_cidrs=("10.244.0.0/24", "fd00:1::/64"),
        zone="a",
        deleting=True,
        leaving=True,
    )


def test_namespace_and_pod() -> None:
    assert decoded(Kind.NAMESPACE, {"metadata": {"name": "shop"}}).object == Namespace(name="shop")
    body = {
        "metadata": {"name": "p", "namespace": "shop"},
        "spec": {
            "hostNetwork": True,
            "dnsPolicy": "None",
            "dnsConfig": {
                "nameservers": ["10.96.0.10"],
                "searches": ["a.b", "x y"],
                "options": [{"name": "ndots", "value": "2"}],
            },
        },
        "status": {"phase": "Failed", "podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}, {"ip": "FD00::1"}]},
    }
    result = decoded(Kind.POD, body)
    assert result.object == Pod(
        name=NamespacedName("shop", "p"),
        ips=("10.0.0.1", "fd00::1"),
        host_network=True,
        dns_policy="None",
        nameservers=("10.96.0.10",),
        searches=("a.b",),
        options=(("ndots", "2"),),
        finished=True,
    )
    assert [p.reason for p in result.problems] == ["spec.dnsConfig.searches[1]: 'x y' is no DNS name; it is ignored"]


@pytest.mark.parametrize("raw", [b"", b"{", b"\xff", b"[" * 100_000, b'{"metadata":' + b"[" * 100_000, b"null", b"3"])
def test_what_is_no_object_is_a_problem_and_no_exception(raw: bytes) -> None:
    for kind in Kind:
        result = decode(kind, raw)
        assert result.object is None
        assert result.problems


def test_watch_lines() -> None:
    def line(word: str, body: object) -> bytes:
        return json.dumps({"type": word, "object": body}).encode() + b"\n"

    for word in ("ADDED", "MODIFIED"):
        change = decode_line(Kind.SERVICE, line(word, service_json()))
        assert isinstance(change, Change)
        assert isinstance(change.event, Applied)
        assert (change.event.object.object, change.resource_version) == (PLAIN, "7")
    gone = Change(Removed(ObjectKey(Kind.SERVICE, WEB)), "7")
    assert decode_line(Kind.SERVICE, line("DELETED", service_json())) == gone
    marker: dict[str, Any] = {"kind": "Service", "metadata": {"resourceVersion": "99"}, "spec": {}}
    assert decode_line(Kind.SERVICE, line("BOOKMARK", marker)) == Bookmark("99", False)
    marker["metadata"]["annotations"] = {"k8s.io/initial-events-end": "true"}
    assert decode_line(Kind.SERVICE, line("BOOKMARK", marker)) == Bookmark("99", True)
    status = {
        "kind": "Status",
        "code": 410,
        "reason": "Expired",
        "message": "too old",
        "details": {"retryAfterSeconds": 3},
    }
    assert decode_line(Kind.SERVICE, line("ERROR", status)) == Refusal(410, "Expired", "too old", 3.0)


@pytest.mark.parametrize(
    "raw", [b"", b"}", b'{"type":"ADDED"', b'{"type":"ODD","object":{}}', b"[]", b'{"type":"BOOKMARK","object":7}']
)
def test_fault_06_truncated_or_invalid_lines_are_malformed(raw: bytes) -> None:
    assert isinstance(decode_line(Kind.SERVICE, raw), Malformed)


def test_fault_05_a_three_mebibyte_event_is_read() -> None:
    body = slice_json()
    body["metadata"]["annotations"] = {"big": "x" * (3 << 20)}
    change = decode_line(Kind.ENDPOINT_SLICE, json.dumps({"type": "ADDED", "object": body}).encode())
    assert isinstance(change, Change)
    assert isinstance(change.event, Applied)
    assert change.event.object.object == BARE_SLICE


def test_page() -> None:
    page = decode_page(
        Kind.SERVICE,
        json.dumps(
            {
                "kind": "ServiceList",
                "metadata": {"resourceVersion": "12", "continue": "tok"},
                "items": [service_json(), 7, service_json({"externalIPs": 5})],
            }
        ).encode(),
    )
    assert isinstance(page, ListPage)
    assert (page.resource_version, page.continue_token) == ("12", "tok")
    assert [item.object for item in page.items] == [PLAIN, None, PLAIN]
    assert [len(item.problems) for item in page.items] == [0, 2, 1]
    empty = decode_page(Kind.SERVICE, b'{"metadata":{"resourceVersion":"1"},"items":null}')
    assert empty == ListPage((), "1", "")
    assert isinstance(decode_page(Kind.SERVICE, b'{"items":[]}'), Malformed)
