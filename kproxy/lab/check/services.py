"""Exercises S1 to S8, S11, S12 and S21: addresses, ports, and how traffic gets to pods."""

from __future__ import annotations

import asyncio
from collections import Counter
from ipaddress import IPv4Network
from typing import Any

from kproxy.errors import KproxyError
from kproxy.lab.addressing import CLIENT, DNS_SERVICE_IP, POOL, POOL_FIRST, POOL_LAST, nodes
from kproxy.lab.check.report import Line
from kproxy.lab.check.rig import Rig, Said, address_of, is_ready, name_of

Raw = dict[str, Any]
CLIENTS = ("nettool-1", "nettool-2", "nettool-3")
TRIES_PER_POD = (
    14  # with n pods, n·(1-1/n)^(14·n) is below one in 100,000: a run that misses a pod by chance does not happen
)


def counted(said: Said) -> str:
    """How often each pod answered."""
    tally = Counter(said.words)
    return ", ".join(f"{name} ×{count}" for name, count in sorted(tally.items())) if len(said.words) > 1 else said.out


async def reaches_all(rig: Rig, line: Line, place: str, url: str, pods: list[Raw], did: str) -> None:
    """Fetches /hostname often enough that every pod must have answered."""
    names = {name_of(pod) for pod in pods}
    times = TRIES_PER_POD * len(names)
    # A first answer shows that the change has arrived here; a connection made too early would hang for longer than the change takes.
    await rig.until(lambda: rig.names(place, f"{url}/hostname", limit_s=1), lambda s: s.out.strip() in names, 5.0)
    said = await rig.until(lambda: rig.names(place, f"{url}/hostname", times), lambda s: set(s.words) == names)
    passed = set(said.words) == names and len(said.words) == times
    line.step(f"{did}, {times} times", f"all of {', '.join(sorted(names))}", counted(said), passed)


async def page(rig: Rig, line: Line, place: str, url: str, text: str, did: str) -> None:
    """Fetches a page once and looks for `text` in it."""
    said = await rig.until(lambda: rig.names(place, url), lambda s: text in s.out)
    line.step(did, f"…{text}…", said.out, text in said.out)


async def _until_one_of(rig: Rig, place: str, url: str, names: set[str]) -> Said:
    return await rig.until(lambda: rig.names(place, url), lambda s: s.out.strip() in names)


async def one_of(rig: Rig, line: Line, place: str, url: str, pods: list[Raw], did: str) -> str:
    """Fetches /hostname once; any of the pods may answer. Returns the name that did."""
    names = {name_of(pod) for pod in pods}
    said = await _until_one_of(rig, place, f"{url}/hostname", names)
    line.step(did, f"one of {', '.join(sorted(names))}", said.out, said.out.strip() in names)
    return said.out.strip()


async def s01(rig: Rig, line: Line) -> None:
    """ClusterIP."""
    await rig.apply("s01-clusterip.yaml")
    pods = await rig.ready_pods("run=my-nginx", 2)
    await rig.endpoints("my-nginx", {address_of(pod) for pod in pods})
    address = await rig.cluster_ip("my-nginx")
    full = "my-nginx.default.svc.cluster.local"
    await asyncio.gather(
        *(
            reaches_all(rig, line, node, f"http://{address}", pods, f"{node}: curl http://{address}")
            for node in rig.nodes
        ),
        *(reaches_all(rig, line, pod, f"http://{address}", pods, f"{pod}: curl http://{address}") for pod in CLIENTS),
        *(reaches_all(rig, line, pod, "http://my-nginx", pods, f"{pod}: curl http://my-nginx") for pod in CLIENTS),
        *(_node_asks(rig, line, node, full, address) for node in rig.nodes),
        page(rig, line, "nettool-1", "http://my-nginx/", "Welcome to nginx!", "nettool-1: curl http://my-nginx/"),
    )
    said = await rig.names(CLIENT, f"http://{address}/hostname")
    line.step(
        f"client (outside): curl http://{address}",
        "no way there: a cluster IP is for the inside",
        said.out,
        said.code != 0,
    )


async def _node_asks(rig: Rig, line: Line, node: str, name: str, address: str) -> None:
    said = await rig.until(lambda: rig.run(node, "host", name, DNS_SERVICE_IP), lambda s: address in s.words)
    line.step(f"{node}: host {name} {DNS_SERVICE_IP}", f"has address {address}", said.out, address in said.words)


async def s02(rig: Rig, line: Line) -> None:
    """The address stays while pods are replaced."""
    await rig.apply("s02-replaced-pod.yaml")
    first = (await rig.ready_pods("app=sleep-2", 1))[0]
    before = await rig.cluster_ip("sleep-2")
    await one_of(rig, line, "nettool-1", "http://sleep-2", [first], "nettool-1: curl http://sleep-2/hostname")
    await rig.api.delete(f"/api/v1/namespaces/default/pods/{name_of(first)}")

    async def another() -> Raw | None:
        found = [
            pod for pod in await rig.pods("default", "app=sleep-2") if name_of(pod) != name_of(first) and is_ready(pod)
        ]
        return found[0] if found else None

    second = await rig.wait_for("a new pod of sleep-2", another)
    await rig.endpoints("sleep-2", {address_of(second)})
    after = await rig.cluster_ip("sleep-2")
    line.step(
        "kubectl delete pod; kubectl get service sleep-2", f"cluster IP still {before}", f"{after}", after == before
    )
    changed = f"{name_of(first)} {address_of(first)} → {name_of(second)} {address_of(second)}"
    line.step(
        "kubectl get pod -l app=sleep-2 -o wide",
        "another pod, another address",
        changed,
        address_of(first) != address_of(second),
    )
    for place in ("nettool-1", "node-3"):
        url = f"http://{before}" if place.startswith("node") else "http://sleep-2"
        await one_of(rig, line, place, url, [second], f"{place}: curl {url}/hostname")
    await _relabelled(rig, line, second, before)


async def _relabelled(rig: Rig, line: Line, pod: Raw, address: str) -> None:
    """A pod that loses its label leaves the Service, though it goes on running."""
    path = f"/api/v1/namespaces/default/pods/{name_of(pod)}"
    await rig.api.merge(path, {"metadata": {"labels": {"app": "sleep-2-aside"}}})
    third = (await rig.ready_pods("app=sleep-2", 1))[0]
    await rig.endpoints("sleep-2", {address_of(third)})
    did = f"relabel {name_of(pod)}; nettool-2: curl http://{address}/hostname"
    await one_of(rig, line, "nettool-2", f"http://{address}", [third], did)
    await rig.api.delete(path)  # nothing owns it any more


async def s03(rig: Rig, line: Line) -> None:
    """Service port and target port differ; TCP and UDP."""
    await rig.apply("s03-ports.yaml")
    pods = await rig.ready_pods("name=node-js-custom-port", 2)
    addresses = {address_of(pod) for pod in pods}
    await asyncio.gather(
        *(rig.endpoints(name, addresses) for name in ("node-js-custom-port", "numbers-web-internal", "both-protocols"))
    )
    await asyncio.gather(
        reaches_all(
            rig,
            line,
            "nettool-1",
            "http://node-js-custom-port:90",
            pods,
            "nettool-1: curl node-js-custom-port:90 (→ 80)",
        ),
        reaches_all(
            rig,
            line,
            "nettool-2",
            "http://numbers-web-internal:8080",
            pods,
            "nettool-2: curl numbers-web-internal:8080 (→ 80)",
        ),
        reaches_all(
            rig,
            line,
            "nettool-3",
            "http://both-protocols:5300",
            pods,
            "nettool-3: curl both-protocols:5300 over TCP (→ 80)",
        ),
        *(_talks_udp(rig, line, place, pods) for place in ("nettool-1", "node-2")),
    )
    address = await rig.cluster_ip("node-js-custom-port")
    said = await rig.names("nettool-1", f"http://{address}:80/hostname")
    line.step(
        "nettool-1: curl the pods' port 80 on the cluster IP",
        "refused: the Service has no such port",
        said.out,
        said.code == 7,
    )


async def _talks_udp(rig: Rig, line: Line, place: str, pods: list[Raw]) -> None:
    names = {name_of(pod) for pod in pods}
    target = await rig.cluster_ip("both-protocols") if place.startswith("node") else "both-protocols"
    times = str(TRIES_PER_POD * len(names))
    ask = ("python", "-m", "kproxy.lab.probe", "udp", target, "5300", "hostname", times)
    said = await rig.until(lambda: rig.python(place, *ask[1:]), lambda s: set(s.words) == names)
    line.step(
        f"{place}: `hostname` to {target}:5300 over UDP, {times} times",
        f"all of {', '.join(sorted(names))}",
        counted(said),
        set(said.words) == names,
    )


async def s04(rig: Rig, line: Line) -> None:
    """Several ports, named ports, named target ports."""
    await rig.apply("s04-multi-port.yaml")
    pods = await rig.ready_pods("name=node-js-multi", 2)
    named = await rig.ready_pods("app=myapp-named", 2)
    await rig.endpoints("node-js-multi", {address_of(pod) for pod in pods})
    await rig.endpoints("myapp-svc-named-port", {address_of(pod) for pod in named})
    await asyncio.gather(
        *(
            reaches_all(rig, line, place, f"http://node-js-multi:{port}", pods, f"{place}: curl node-js-multi:{port}")
            for place, port in (("nettool-1", 80), ("nettool-2", 8888))
        ),
        reaches_all(
            rig,
            line,
            "nettool-3",
            "http://myapp-svc-named-port",
            named,
            "nettool-3: curl myapp-svc-named-port (web: 8080 here, 9090 there)",
        ),
        *(
            _srv(rig, line, f"_{port}._tcp.node-js-multi.default.svc.cluster.local", number)
            for port, number in (("http", 80), ("fun", 8888))
        ),
    )


async def _srv(rig: Rig, line: Line, name: str, number: int) -> None:
    said = await rig.until(lambda: rig.run("nettool-1", "host", "-t", "SRV", name), lambda s: str(number) in s.words)
    line.step(
        f"nettool-1: host -t SRV {name}",
        f"port {number} of node-js-multi",
        said.out,
        str(number) in said.words and "node-js-multi" in said.out,
    )


async def s05(rig: Rig, line: Line) -> None:
    """Session affinity."""
    await rig.apply("s05-session-affinity.yaml")
    pods = await rig.ready_pods("app=myapp-affinity", 3)
    await rig.endpoints("myapp-svc-affinity", {address_of(pod) for pod in pods})
    names = {name_of(pod) for pod in pods}
    chosen: list[str] = []
    for place in CLIENTS:
        await _until_one_of(rig, place, "http://myapp-svc-affinity/hostname", names)
        said = await rig.names(place, "http://myapp-svc-affinity/hostname", 30)
        sticks = len(said.words) == 30 and len(set(said.words)) == 1 and set(said.words) <= names
        line.step(
            f"{place}: curl http://myapp-svc-affinity/hostname, 30 times", "one and the same pod", counted(said), sticks
        )
        chosen += said.words[:1]
    line.step(
        "compare the clients", "each has a pod; they need not agree", ", ".join(chosen), len(chosen) == len(CLIENTS)
    )


async def s06(rig: Rig, line: Line) -> None:
    """NodePort on every node."""
    await rig.apply("s06-nodeport.yaml")
    pods = await rig.ready_pods("name=node-js-nodeport", 1)
    await rig.endpoints("node-js-nodeport", {address_of(pods[0])})
    home = pods[0]["spec"]["nodeName"]
    for node in nodes(len(rig.nodes)):
        where = "the pod's node" if node.name == home else "no pod there"
        url = f"http://{node.ip}:30001"
        await one_of(rig, line, CLIENT, url, pods, f"client (outside): curl {url} ({node.name}, {where})")
    address = await rig.cluster_ip("node-js-nodeport")
    await one_of(rig, line, "nettool-2", f"http://{address}", pods, f"nettool-2: curl its cluster IP {address}")
    await one_of(
        rig, line, "nettool-2", "http://192.168.200.21:30001", pods, "nettool-2: curl 192.168.200.21:30001, from a pod"
    )
    listed = await rig.api.get("/api/v1/services")
    ports = [p["nodePort"] for item in listed["items"] for p in item["spec"].get("ports") or () if p.get("nodePort")]
    line.step(
        "all node ports of the cluster",
        "within 30000-32767",
        str(sorted(ports)),
        all(30000 <= port <= 32767 for port in ports),
    )


async def s07(rig: Rig, line: Line) -> None:
    """LoadBalancer."""
    await rig.apply("s07-loadbalancer.yaml")
    pods = await rig.ready_pods("app=numbers-web", 2)
    await rig.endpoints("numbers-web", {address_of(pod) for pod in pods})
    outside = await _outside_address(rig, line)
    service = await rig.service("numbers-web")
    cluster_ip, node_port = service["spec"]["clusterIP"], service["spec"]["ports"][0]["nodePort"]
    await asyncio.gather(
        reaches_all(rig, line, CLIENT, f"http://{outside}:8080", pods, f"client (outside): curl {outside}:8080"),
        reaches_all(
            rig,
            line,
            CLIENT,
            f"http://192.168.200.22:{node_port}",
            pods,
            f"client: curl 192.168.200.22:{node_port}, its node port",
        ),
        reaches_all(
            rig,
            line,
            "nettool-2",
            f"http://{cluster_ip}:8080",
            pods,
            f"nettool-2: curl {cluster_ip}:8080, its cluster IP",
        ),
        reaches_all(
            rig, line, "nettool-3", f"http://{outside}:8080", pods, f"nettool-3: curl {outside}:8080, from a pod"
        ),
    )


async def _outside_address(rig: Rig, line: Line) -> str:
    """The address that somebody outside handed out; where nobody does (a bare control plane), this plays metallb."""

    async def given() -> str | None:
        entries = (await rig.service("numbers-web"))["status"].get("loadBalancer", {}).get("ingress") or ()
        return entries[0]["ip"] if entries else None

    try:
        address = await rig.wait_for("an outside address", given, 1.0)
        did = "kubectl get service numbers-web"
    except KproxyError:
        status = {"status": {"loadBalancer": {"ingress": [{"ip": POOL_FIRST}]}}}
        await rig.api.merge("/api/v1/namespaces/default/services/numbers-web/status", status)
        address = await given() or "none"
        did = f"hand out {POOL_FIRST} as metallb would; kubectl get service numbers-web"
    in_pool = any(address in (str(host) for host in IPv4Network(network)) for network in POOL)
    line.step(did, f"EXTERNAL-IP from {POOL_FIRST} to {POOL_LAST}", address, in_pool)
    return address


async def s08(rig: Rig, line: Line) -> None:
    """externalIPs."""
    await rig.apply("s08-external-ips.yaml")
    pods = await rig.ready_pods("name=node-js-external", 2)
    await rig.endpoints("node-js-external", {address_of(pod) for pod in pods})
    addresses = [node.ip for node in nodes(len(rig.nodes))]
    before = await rig.names(CLIENT, f"http://{addresses[0]}:8088/hostname")
    line.step(f"client: curl {addresses[0]}:8088 before", "refused", before.out, before.code == 7)
    patch = {"spec": {"externalIPs": addresses, "externalTrafficPolicy": "Cluster"}}
    await rig.api.merge("/api/v1/namespaces/default/services/node-js-external", patch)
    for address in addresses:
        await reaches_all(
            rig, line, CLIENT, f"http://{address}:8088", pods, f"patch externalIPs; client: curl {address}:8088"
        )


async def s11(rig: Rig, line: Line) -> None:
    """Endpoints written by hand."""
    await rig.apply("s11-own-endpoints.yaml")
    await rig.endpoints("custom-service", {"192.168.200.100"})
    address = await rig.cluster_ip("custom-service")
    text = "the outside machine"
    await page(rig, line, "nettool-1", "http://custom-service/", text, "nettool-1: curl http://custom-service/")
    await page(rig, line, "node-2", f"http://{address}/", text, f"node-2: curl http://{address}/")


async def s12(rig: Rig, line: Line) -> None:
    """A chosen cluster IP, and none."""
    await rig.apply("s12-chosen-address.yaml")
    pod = await rig.ready_pod("node-js-pod")
    await rig.endpoints("node-js-chosen", {address_of(pod)})
    await rig.endpoints("node-js-none", {address_of(pod)})
    given = await rig.cluster_ip("node-js-chosen")
    line.step("kubectl get service node-js-chosen", "CLUSTER-IP 10.96.100.100", given, given == "10.96.100.100")
    await one_of(rig, line, "nettool-1", "http://10.96.100.100", [pod], "nettool-1: curl http://10.96.100.100/hostname")
    given = await rig.cluster_ip("node-js-none")
    line.step("kubectl get service node-js-none", "CLUSTER-IP None", given, given == "None")
    expected = f"has address {address_of(pod)}"
    said = await rig.until(lambda: rig.run("nettool-1", "host", "node-js-none"), lambda s: expected in s.out)
    line.step("nettool-1: host node-js-none", expected, said.out, expected in said.out)
    await one_of(
        rig, line, "node-js-pod", "http://node-js-none", [pod], "node-js-pod: curl http://node-js-none/hostname"
    )


async def s21(rig: Rig, line: Line) -> None:
    """The ingress controller's ports."""
    await rig.apply("s21-ingress-ports.yaml")
    pods = await rig.ready_pods("app.kubernetes.io/name=ingress-nginx", 1, "ingress-nginx")
    await rig.endpoints("ingress-nginx-controller", {address_of(pods[0])}, "ingress-nginx")
    service = await rig.service("ingress-nginx-controller", "ingress-nginx")
    ports = [(p["port"], p["nodePort"]) for p in service["spec"]["ports"]]
    line.step(
        "kubectl get service -n ingress-nginx",
        "80:32653/TCP,443:31820/TCP",
        str(ports),
        ports == [(80, 32653), (443, 31820)],
    )
    for node in nodes(len(rig.nodes)):
        for port in (32653, 31820, 80, 443):
            how = "node port" if port > 1000 else "external IP"
            url = f"http://{node.ip}:{port}"
            await one_of(rig, line, CLIENT, url, pods, f"client (outside): curl {url} ({how})")
