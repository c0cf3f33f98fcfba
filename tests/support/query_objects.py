"""The objects of the DNS behaviour table: sets U, R, C, E, X, Z, M of the reference's catalogue, as API manifests.

They are complete enough for a real API server, so that CoreDNS can be fed with the same. `BASE` are the settings of the server in each
set of the catalogue, where they differ from ours.
"""

from __future__ import annotations

from typing import Any

from kproxy.dns.blocks import PodRecords

Manifest = dict[str, Any]


def namespace(name: str, **labels: str) -> Manifest:
    """A Namespace."""
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}


def labelled(manifest: Manifest, **labels: str) -> Manifest:
    """The same object with labels."""
    return manifest | {"metadata": manifest["metadata"] | {"labels": labels}}


def pod(name: str, ips: str, phase: str = "Running", **metadata: Any) -> Manifest:
    """A Pod `namespace/name` with its addresses."""
    space, short = name.split("/")
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": short, "namespace": space} | metadata,
        "spec": {"nodeName": "node-1"},
        "status": {"phase": phase, "podIP": ips.split()[0], "podIPs": [{"ip": ip} for ip in ips.split()]},
    }


def balanced(manifest: Manifest, **ingress: str) -> Manifest:
    """A Service with a load balancer's status."""
    spec = manifest["spec"] | {"type": "LoadBalancer"}
    return manifest | {"spec": spec, "status": {"loadBalancer": {"ingress": [ingress]}}}


def imported(name: str, ips: str, ports: str) -> Manifest:
    """A ServiceImport; headless without addresses."""
    space, short = name.split("/")
    return {
        "apiVersion": "multicluster.x-k8s.io/v1alpha1",
        "kind": "ServiceImport",
        "metadata": {"name": short, "namespace": space},
        "spec": {"type": "ClusterSetIP" if ips else "Headless", "ips": ips.split(), "ports": ports_of(ports)},
    }


def ports_of(text: str) -> list[Manifest]:
    """`http/tcp/80 https/tcp/443` as API ports; a dash for a name means none."""
    parts = [entry.split("/") for entry in text.split()]
    return [{"name": "" if n == "-" else n, "protocol": p.upper(), "port": int(number)} for n, p, number in parts]


def service(name: str, ips: str, ports: str = "", **spec: Any) -> Manifest:
    """A Service `namespace/name` with cluster IPs (`None` for headless, "" for none)."""
    space, short = name.split("/")
    body: Manifest = {"type": "ClusterIP", "ports": ports_of(ports)} | spec
    if ips:
        body |= {"clusterIP": ips.split()[0], "clusterIPs": ips.split()}
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": short, "namespace": space}, "spec": body}


def external(name: str, target: str, ports: str = "") -> Manifest:
    """An ExternalName Service."""
    return service(name, "", ports, type="ExternalName", externalName=target)


def slices(name: str, endpoints: str, ports: str = "", suffix: str = "") -> list[Manifest]:
    """The EndpointSlices of Service `namespace/name`, one per family.

    Endpoints are words `address[=hostname][@pod][%zone][!]`; `!` is not ready, `?` leaves that out, `~` is terminating and serving.
    """
    space, short = name.split("/")
    found: dict[str, list[Manifest]] = {}
    for word in endpoints.split():
        conditions: Manifest = {"ready": True}
        if word[-1] in "!?~":
            conditions = {"!": {"ready": False}, "?": {}, "~": {"ready": False, "serving": True, "terminating": True}}[
                word[-1]
            ]
            word = word[:-1]
        word, _, place = word.partition("%")
        word, _, pod = word.partition("@")
        address, _, hostname = word.partition("=")
        entry: Manifest = {"addresses": [address], "conditions": conditions}
        if hostname:
            entry["hostname"] = hostname
        if place:
            entry["zone"] = place
        if pod:
            entry["targetRef"] = {"kind": "Pod", "name": pod, "namespace": space}
        found.setdefault("IPv6" if ":" in address else "IPv4", []).append(entry)
    return [
        {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "name": f"{short}-{family.lower()}{suffix}",
                "namespace": space,
                "labels": {"kubernetes.io/service-name": short},
            },
            "addressType": family,
            "ports": ports_of(ports),
            "endpoints": entries,
        }
        for family, entries in (found or {"IPv4": []}).items()
    ]


def _set_u() -> list[Manifest]:
    six = "5678:abcd::1 5678:abcd::2"
    return [
        namespace("testns", team="red"),
        namespace("podns", team="blue"),
        *map(namespace, ("svcns", "kube-system", "unexposedns")),
        labelled(service("testns/svc1", "10.0.0.1", "http/tcp/80"), tier="front"),
        service("testns/svcempty", "10.0.0.1", "http/tcp/80"),
        service("testns/svc6", "1234:abcd::1", "http/tcp/80"),
        service("testns/svc-dual-stack", "10.0.0.3 10::3", "http/tcp/80"),
        service("testns/hdls1", "None", "http/tcp/80"),
        service("testns/hdlsprtls", "None"),
        external("testns/external", "ext.interwebs.test", "http/tcp/80"),
        external("testns/external-to-service", "svc1.testns.svc.cluster.local."),
        external("testns/homeless", "missing.test"),
        external("testns/failing", "failing.test"),
        external("testns/stubbed", "abc.acme.local"),
        service("unexposedns/svc1", "10.0.0.2", "http/tcp/80"),
        service("kube-system/kubedns", "10.0.0.10", "dns/udp/53"),
        *slices("testns/svc1", "172.0.0.1=ep1a", "http/tcp/80"),
        *slices("testns/svcempty", "", "http/tcp/80"),
        *slices("testns/hdls1", f"172.0.0.2 172.0.0.3 172.0.0.4=dup-name 172.0.0.5=dup-name {six}", "http/tcp/80"),
        *slices("testns/hdlsprtls", "172.0.0.20"),
        *slices("kube-system/kubedns", "172.0.0.100", "dns/udp/53"),
        # beside the catalogue's fixture: what its rows T046, T048, T069-T071, T078, T079, T100, T101 need
        service("testns/node-port", "10.0.0.6", "http/tcp/80", type="LoadBalancer", externalIPs=["203.0.113.6"]),
        service("testns/1kubernetes", "10.0.0.7", "https/tcp/443"),
        service("testns/published", "None", "http/tcp/80", publishNotReadyAddresses=True),
        *slices("testns/published", "172.0.1.1", "http/tcp/80"),
        service("testns/unsaid", "None", "http/tcp/80"),
        *slices("testns/unsaid", "172.0.1.2?", "http/tcp/80"),
        service("testns/leaving", "None", "http/tcp/80"),
        *slices("testns/leaving", "172.0.1.3~", "http/tcp/80"),
        service("testns/six", "None", "http/tcp/80"),
        *slices("testns/six", "fd00::", "http/tcp/80"),
        service("testns/twice", "None", "http/tcp/80"),
        *slices("testns/twice", "172.0.1.4", "http/tcp/80"),
        *slices("testns/twice", "172.0.1.4", "http/tcp/80", suffix="-b"),
        external("testns/literal", "10.1.2.3"),
        external("testns/loop-a", "loop-b.testns.svc.cluster.local"),
        external("testns/loop-b", "loop-a.testns.svc.cluster.local"),
        service("testns/two-ports", "10.0.0.8", "http/tcp/80 dns/udp/53"),
        service("nons/orphan", "10.0.0.9", "http/tcp/80"),
        pod("podns/foo", "10.240.0.1 fd00:240::1"),
        pod("podns/ended", "10.240.0.9", "Succeeded"),
        pod("podns/leaving", "10.240.0.10", deletionTimestamp="2026-01-01T00:00:00Z", deletionGracePeriodSeconds=30),
        pod("podns/beside-1", "10.240.0.11"),
        pod("podns/beside-2", "10.240.0.11"),
    ]


def _set_r() -> list[Manifest]:
    return [
        namespace("testns"),
        service("testns/svc1", "192.168.1.100", "http/tcp/80"),
        service("testns/svc2", "None", "http/tcp/80"),
        *slices("testns/svc1", "10.0.0.100=ep1a 10.0.0.99=double-ep", "http/tcp/80", "-1"),
        *slices(
            "testns/svc1",
            "1234:abcd::1=ep1b fd00:77:30::a=ip6svc1ex fd00:77:30::2:9ba6=ip6svc1in",
            "http/tcp/80",
            "-2",
        ),
        *slices("testns/svc1", "10.0.0.100=ep1a", "http/tcp/80", "-3"),
        *slices("testns/svc2", "10.0.0.99=double-ep", "http/tcp/80", "-1"),
    ]


def _set_c() -> list[Manifest]:
    headless = "172.17.0.255=headless-svc-1 172.17.0.254=headless-svc-2 "
    return [
        *map(namespace, ("test-1", "test-2", "test-3", "test-4", "kube-system")),
        service("kube-system/kube-dns", "10.96.0.10", "dns/udp/53 dns-tcp/tcp/53 metrics/tcp/9153"),
        *slices("kube-system/kube-dns", "172.17.0.2", "dns/udp/53 dns-tcp/tcp/53"),
        service("test-1/svc-1-a", "10.96.0.100", "http/tcp/80 https/tcp/443"),
        *slices("test-1/svc-1-a", "172.17.0.253=svc-1-a", "http/tcp/80 https/tcp/443"),
        service("test-1/svc-1-b", "10.96.0.110", "http/tcp/80"),
        service("test-1/svc-c", "10.96.0.115", "c-port/udp/1234"),
        service("test-2/svc-c", "10.96.0.120", "c-port/udp/1234"),
        service("test-2/svc-d", "10.96.0.121", "http/tcp/80"),
        *slices("test-2/svc-d", "172.17.0.252=svc-d", "http/tcp/80"),
        service("test-1/headless-svc", "None", "c-port/udp/1234"),
        *slices(
            "test-1/headless-svc",
            headless + "1234:abcd::1=headless-svc-3 1234:abcd::2=headless-svc-4",
            "c-port/udp/1234",
        ),
        service("test-1/svc-unready", "None", "http/tcp/80"),
        *slices("test-1/svc-unready", "172.17.0.100!", "http/tcp/80"),
        external("test-1/ext-svc", "example.net"),
        service("test-3/headless-1", "None", "http/tcp/80"),
        *slices("test-3/headless-1", "172.17.0.10@test-name", "http/tcp/80"),
        service("test-3/headless-2", "None", "http/tcp/80"),
        *slices("test-3/headless-2", "172.17.0.11@" + "long-" * 13 + "name", "http/tcp/80"),
    ]


def _set_n() -> list[Manifest]:
    """T114: a name server behind three Services of its own."""
    return [
        namespace("kube-system"),
        service("kube-system/dns-service", "10.0.0.111", "dns/udp/53"),
        service("kube-system/hdls-dns-service", "None", "dns/udp/53"),
        service("kube-system/dns6-service", "10::111", "dns/udp/53"),
        *(
            s
            for n in ("dns-service", "hdls-dns-service", "dns6-service")
            for s in slices(f"kube-system/{n}", "10.244.0.20")
        ),
    ]


def _set_e() -> list[Manifest]:
    return [
        *map(namespace, ("default", "dns-1", "kube-system")),
        service("default/kubernetes", "10.96.0.1", "https/tcp/443"),
        *slices("default/kubernetes", "192.168.200.1", "https/tcp/6443"),
        service("dns-1/dns-test-service-2", "None", "http/tcp/80"),
        *slices("dns-1/dns-test-service-2", "10.244.1.7=dns-querier-2", "http/tcp/80"),
        service("dns-1/dns-test-service", "None", "http/tcp/80"),
        *slices("dns-1/dns-test-service", "10.244.1.8", "http/tcp/80"),
        service("dns-1/test-service-2", "10.96.3.2", "http/tcp/80"),
        service("kube-system/kube-dns", "10.96.0.10", "dns/udp/53 dns-tcp/tcp/53 metrics/tcp/9153"),
    ]


def _set_x() -> list[Manifest]:
    """`k8s_external`."""
    http = "http/tcp/80"
    return [
        *map(namespace, ("testns", "kube-system")),
        service("testns/svc1", "10.0.0.1", http, externalIPs=["1.2.3.4"]),
        service("testns/svc6", "1234:abcd::1", http, externalIPs=["1:2::5"]),
        balanced(service("testns/svc11", "10.0.0.11", http), ip="2.3.4.5"),
        balanced(service("testns/svc12", "10.0.0.12", http), hostname="dummy.hostname"),
        service("testns/plain", "10.0.0.13", http),
        service("testns/svc-headless", "None", http),
        *slices("testns/svc-headless", "1.2.3.4=endpoint-svc-0 1.2.3.5=endpoint-svc-1", http),
    ]


def _set_z() -> list[Manifest]:
    """Zonal names."""
    http = "http/tcp/80"
    return [
        namespace("testns"),
        service("testns/hdls", "None", http),
        *slices("testns/hdls", "172.0.0.1%us-west-2a 172.0.0.2%us-west-2b 172.0.0.3%us-west-2b", http),
        service("testns/webs", "None", http),
        *slices("testns/webs", "172.0.0.9%corp.example.com", http),
        service("testns/clstr", "10.0.0.10", http),
    ]


def _set_m() -> list[Manifest]:
    """Imported Services of a set of clusters, and one Service that is not imported."""
    http = "http/tcp/80"
    six = "5678:abcd::1 5678:abcd::2"
    many = slices("testns/hdls1", f"172.0.0.2 172.0.0.3 172.0.0.4=dup-name 172.0.0.5=dup-name {six}", http)
    prefix = "multicluster.kubernetes.io"
    labels = {f"{prefix}/service-name": "hdls1", f"{prefix}/source-cluster": "cluster1"}
    return [
        namespace("testns"),
        imported("testns/svc1", "10.0.0.1", http),
        imported("testns/svc-dual-stack", "10.0.0.3 10::3", http),
        imported("testns/hdls1", "", http),
        *(item | {"metadata": item["metadata"] | {"labels": labels}} for item in many),
        service("testns/only-here", "10.0.0.4", http),
    ]


def _set_big() -> list[Manifest]:
    """T080: a headless Service of 1,000 endpoints; P21: one of 28."""
    many = [f"10.244.{i // 250}.{i % 250 + 1}" for i in range(1000)]
    return [
        namespace("testns"),
        service("testns/big", "None", "http/tcp/80"),
        *slices("testns/big", " ".join(many), "http/tcp/80"),
        service("testns/fair", "None", "http/tcp/80"),
        *slices("testns/fair", " ".join(many[:28]), "http/tcp/80"),
    ]


FIXTURES = {
    "U": _set_u,
    "R": _set_r,
    "C": _set_c,
    "N": _set_n,
    "E": _set_e,
    "X": _set_x,
    "Z": _set_z,
    "M": _set_m,
    "big": _set_big,
}

# Reverse zones as the catalogue's servers have them; CoreDNS's `pods disabled` is its default, `own` stands for its local address.
BASE: dict[str, dict[str, Any]] = {
    "U": {"reverse_zones": (), "own_addresses": ("127.0.0.1",), "pods": PodRecords.DISABLED},
    "R": {
        "reverse_zones": ("0.10.in-addr.arpa", "168.192.in-addr.arpa", "1234:abcd::/64", "fd00:77:30::/64"),
        "pods": PodRecords.DISABLED,
    },
    "C": {
        "reverse_zones": ("10.96.0.0/24", "172.17.0.0/24", "1234:abcd::/64"),
        "own_addresses": ("10.96.0.10",),
        "pods": PodRecords.DISABLED,
    },
    "N": {"own_addresses": ("10.244.0.20",)},
    "E": {"own_addresses": ("10.96.0.10",), "reverse_zones": ("10.96.0.0/16", "10.244.0.0/16")},
    "X": {
        "own_addresses": ("10.96.0.10",),
        "reverse_zones": (),
        "pods": PodRecords.DISABLED,
        "external_zones": ("example.com", "in-addr.arpa"),
    },
    "Z": {"reverse_zones": (), "pods": PodRecords.DISABLED},
    "M": {
        "reverse_zones": (),
        "pods": PodRecords.DISABLED,
        "further_zones": ("clusterset.local",),
        "multicluster": ("clusterset.local",),
    },
    "big": {},
}
