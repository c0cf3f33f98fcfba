"""Exercises S9, S10 and S13 to S19: names, variables, how fast, and by what means."""

from __future__ import annotations

import asyncio
import re
import time
from typing import Any

from kproxy.lab.addressing import CLIENT, DNS_SERVICE_IP, nodes
from kproxy.lab.check.report import Line
from kproxy.lab.check.rig import Rig, Said, address_of, name_of
from kproxy.lab.check.services import one_of

Raw = dict[str, Any]
_ADDRESS = re.compile(r"has address (\S+)")
_SEARCH = "default.svc.cluster.local svc.cluster.local cluster.local lab.internal"
_SOON_S = 1.0  # S19


def addresses_in(said: Said) -> set[str]:
    """The addresses that `host` printed."""
    return set(_ADDRESS.findall(said.out))


async def s09(rig: Rig, line: Line) -> None:
    """ExternalName."""
    await rig.apply("s09-external-name.yaml")
    alias, target = "is an alias for raw.githubusercontent.com.", "raw.githubusercontent.com has address 203.0.113.10"
    said = await rig.until(
        lambda: rig.run("nettool-1", "host", "numbers-api"), lambda s: alias in s.out and target in s.out
    )
    line.step("nettool-1: host numbers-api", f"{alias} {target}", said.out, alias in said.out and target in said.out)
    ask = ("curl", "-s", "-S", "-m", "5", "-H", "Host: raw.githubusercontent.com", "http://numbers-api/")
    said = await rig.until(lambda: rig.run("nettool-2", *ask), lambda s: s.out.strip() == "42")
    line.step(
        "nettool-2: curl -H 'Host: raw.githubusercontent.com' http://numbers-api/",
        "the outside page: 42",
        said.out,
        said.out.strip() == "42",
    )


async def s10(rig: Rig, line: Line) -> None:
    """Headless."""
    await rig.apply("s10-headless.yaml")
    pods = await rig.ready_pods("app=myapp-headless", 3)
    wanted = {address_of(pod) for pod in pods}
    await rig.endpoints("myapp-svc-headless", wanted)
    service = await rig.service("myapp-svc-headless")
    line.step(
        "kubectl get service myapp-svc-headless",
        "CLUSTER-IP None",
        service["spec"]["clusterIP"],
        service["spec"]["clusterIP"] == "None",
    )
    for place in ("nettool-1", "nettool-3"):
        await _shows(rig, line, place, wanted, "")
    said = await rig.until(
        lambda: rig.names("nettool-2", "http://myapp-svc-headless:8080/hostname"), lambda s: s.code == 0
    )
    names = {name_of(pod) for pod in pods}
    line.step(
        "nettool-2: curl http://myapp-svc-headless:8080/hostname",
        "one of the pods, asked directly",
        said.out,
        said.out.strip() in names,
    )
    path = f"/api/v1/namespaces/default/pods/{name_of(pods[0])}"
    await rig.api.merge(path, {"metadata": {"annotations": {"kproxy.lab/ready": "false"}}})
    await _shows(rig, line, "nettool-1", wanted - {address_of(pods[0])}, f"{name_of(pods[0])} is no longer ready; ")
    await rig.api.merge(path, {"metadata": {"annotations": {"kproxy.lab/ready": None}}})
    await _shows(rig, line, "nettool-1", wanted, "it is ready again; ")


async def _shows(rig: Rig, line: Line, place: str, wanted: set[str], before: str) -> None:
    said = await rig.until(
        lambda: rig.run(place, "host", "myapp-svc-headless"), lambda s: addresses_in(s) == wanted, 5.0
    )
    line.step(
        f"{before}{place}: host myapp-svc-headless",
        f"exactly {', '.join(sorted(wanted))}",
        said.out,
        addresses_in(said) == wanted,
    )


async def s13(rig: Rig, line: Line) -> None:
    """Environment variables."""
    await rig.apply("s13-environment.yaml")
    pod = await rig.ready_pod("myapp-env")
    await rig.endpoints("myapp-svc-env", {address_of(pod)})
    address = await rig.cluster_ip("myapp-svc-env")
    said = await rig.run("myapp-env", "env")
    for variable, value in (
        ("MYAPP_SVC_ENV_SERVICE_HOST", address),
        ("MYAPP_SVC_ENV_SERVICE_PORT", "8000"),
        ("MYAPP_SVC_ENV_PORT_8000_TCP", f"tcp://{address}:8000"),
        ("KUBERNETES_SERVICE_HOST", "10.96.0.1"),
        ("GREETING_URL", f"http://{address}:8000/"),
    ):
        found = re.search(rf"^{variable}=(.*)$", said.out, re.MULTILINE)
        line.step(
            f"myapp-env: env | grep {variable}=",
            value,
            found[1] if found else "",
            bool(found) and found is not None and found[1] == value,
        )
    script = "curl -s -S -m 5 http://$MYAPP_SVC_ENV_SERVICE_HOST:$MYAPP_SVC_ENV_SERVICE_PORT/hostname"
    used = await rig.until(lambda: rig.run("myapp-env", "sh", "-c", script), lambda s: s.out == "myapp-env")
    line.step(
        "myapp-env: curl http://$MYAPP_SVC_ENV_SERVICE_HOST:$MYAPP_SVC_ENV_SERVICE_PORT",
        "myapp-env",
        used.out,
        used.out == "myapp-env",
    )


async def _resolves(rig: Rig, place: str, name: str, address: str) -> Said:
    return await rig.until(lambda: rig.run(place, "getent", "ahostsv4", name), lambda s: address in s.words)


async def s14(rig: Rig, line: Line) -> None:
    """Four forms of one name."""
    await rig.apply("s14-dns-names.yaml")
    pods = await rig.ready_pods("app=myapp-clusterip", 2)
    await rig.ready_pod("nettool-b", "team-b")
    await rig.endpoints("myapp-svc-clusterip", {address_of(pod) for pod in pods})
    address = await rig.cluster_ip("myapp-svc-clusterip")
    forms = [f"myapp-svc-clusterip{rest}" for rest in ("", ".default", ".default.svc", ".default.svc.cluster.local")]

    async def resolves(place: str, form: str) -> None:
        said = await _resolves(rig, place, form, address)
        line.step(f"{place}: getent ahostsv4 {form}", address, said.out, address in said.words)

    await asyncio.gather(
        *(resolves("nettool-1", form) for form in forms),
        *(
            one_of(rig, line, "nettool-1", f"http://{form}", pods, f"nettool-1: curl http://{form}/hostname")
            for form in forms
        ),
        *(resolves("team-b/nettool-b", form) for form in forms[1:]),
        one_of(
            rig,
            line,
            "team-b/nettool-b",
            f"http://{forms[1]}",
            pods,
            f"team-b/nettool-b: curl http://{forms[1]}/hostname",
        ),
    )
    said = await rig.run("team-b/nettool-b", "host", forms[0])
    line.step(
        f"team-b/nettool-b: host {forms[0]}",
        "NXDOMAIN: another namespace must be named",
        said.out,
        "NXDOMAIN" in said.out,
    )
    said = await rig.run("team-b/nettool-b", "curl", "-s", "-S", "-m", "5", f"http://{forms[0]}/hostname")
    line.step(f"team-b/nettool-b: curl http://{forms[0]}", "could not resolve host", said.out, said.code == 6)


async def s15(rig: Rig, line: Line) -> None:
    """A name that does not exist."""
    await rig.apply("s15-odd-name.yaml")
    address = await rig.cluster_ip("myapp-svc-odd")
    right, odd = "myapp-svc-odd.default.svc.cluster.local", "myapp-svc-odd.default.services.cluster.local"
    said = await rig.until(lambda: rig.run("nettool-1", "host", right), lambda s: addresses_in(s) == {address})
    line.step(f"nettool-1: host {right}", f"has address {address}", said.out, addresses_in(said) == {address})
    said = await rig.run("nettool-1", "host", odd)
    line.step(f"nettool-1: host {odd}", "NXDOMAIN", said.out, "NXDOMAIN" in said.out)
    said = await rig.run("nettool-2", "getent", "hosts", odd)
    line.step(
        f"nettool-2: getent hosts {odd}", "nothing, exit code 2", f"{said.out} (exit code {said.code})", said.code == 2
    )


async def s16(rig: Rig, line: Line) -> None:
    """kube-dns."""
    await rig.apply("s16-kube-dns.yaml")
    await rig.ready_pod("dns-test")
    service = await rig.service("kube-dns", "kube-system")
    ports = {f"{p['port']}/{p['protocol']}" for p in service["spec"]["ports"]}
    given = service["spec"]["clusterIP"]
    right = given == DNS_SERVICE_IP and ports == {"53/UDP", "53/TCP", "9153/TCP"}
    shown = f"{given} {','.join(sorted(ports))}"
    line.step("kubectl get service -n kube-system kube-dns", "10.96.0.10, 53/UDP,53/TCP,9153/TCP", shown, right)
    await rig.endpoints("kube-dns", {node.ip for node in nodes(len(rig.nodes))}, "kube-system")
    name = "kube-dns.kube-system.svc.cluster.local"
    said = await rig.until(
        lambda: rig.run("dns-test", "nslookup", name), lambda s: s.words.count(DNS_SERVICE_IP) >= 1 and s.code == 0
    )
    shows = re.search(r"Server:\s+10\.96\.0\.10", said.out) and re.search(
        r"Name:\s+" + re.escape(name) + r"\s+Address(?: 1)?:\s+10\.96\.0\.10", said.out
    )
    line.step(f"dns-test: nslookup {name}", "Server: 10.96.0.10, Address: 10.96.0.10", said.out, bool(shows))
    for form in ("kube-dns.kube-system", "kube-dns.kube-system.svc", "kubernetes"):
        wanted = "10.96.0.1" if form == "kubernetes" else DNS_SERVICE_IP
        said = await rig.run("dns-test", "nslookup", form)
        line.step(
            f"dns-test: nslookup {form}",
            f"Address: {wanted}",
            said.out,
            f"Address: {wanted}" in " ".join(said.words[4:]),
        )
    pointer = f"domain name pointer {name}."
    for place in ("dns-test", "nettool-3"):
        said = await rig.run(place, "host", DNS_SERVICE_IP)
        line.step(
            f"{place}: host {DNS_SERVICE_IP} (the server's own name)",
            pointer,
            said.out,
            said.out.strip().endswith(pointer) and said.out.count("pointer") == 1,
        )
    said = await rig.run("dns-test", "host", "-T", name)
    line.step(
        f"dns-test: host -T {name} (over TCP)",
        f"has address {DNS_SERVICE_IP}",
        said.out,
        addresses_in(said) == {DNS_SERVICE_IP},
    )
    said = await rig.until(
        lambda: rig.run("dns-test", "curl", "-s", "-S", "-m", "5", f"http://{DNS_SERVICE_IP}:9153/metrics"),
        lambda s: "# TYPE" in s.out,
    )
    line.step(f"dns-test: curl http://{DNS_SERVICE_IP}:9153/metrics", "metrics", said.out[:120], "# TYPE" in said.out)


async def s17(rig: Rig, line: Line) -> None:
    """resolv.conf."""
    await rig.apply("s17-resolv-conf.yaml")
    await asyncio.gather(*(rig.ready_pod(name) for name in ("dns-default", "dns-of-the-node", "dns-by-hand")))
    wanted = {
        "dns-default": f"nameserver 10.96.0.10 search {_SEARCH} options ndots:5",
        "dns-of-the-node": "nameserver 192.168.200.1 search lab.internal",
        "dns-by-hand": "nameserver 10.96.0.10 search kube-system.svc.cluster.local options ndots:2",
    }
    for pod, text in wanted.items():
        said = await rig.run(pod, "cat", "/etc/resolv.conf")
        line.step(f"{pod}: cat /etc/resolv.conf", text, said.out, " ".join(said.words) == text)
    for pod, name, address in (
        ("dns-default", "kubernetes", "10.96.0.1"),
        ("dns-default", "kube-dns.kube-system", DNS_SERVICE_IP),
        ("dns-default", "example.com", "203.0.113.11"),
        ("dns-default", "outside", "192.168.200.100"),  # by the host's own search domain
        ("dns-of-the-node", "example.com", "203.0.113.11"),
        ("dns-by-hand", "kube-dns", DNS_SERVICE_IP),
    ):
        said = await _resolves(rig, pod, name, address)
        line.step(f"{pod}: getent ahostsv4 {name}", address, said.out, address in said.words)
    said = await rig.run("dns-default", "curl", "-s", "-S", "-m", "5", "http://example.com/")
    line.step(
        "dns-default: curl http://example.com/", "the outside world's page", said.out, "Example Domain" in said.out
    )
    said = await rig.run("dns-of-the-node", "getent", "ahostsv4", "kubernetes.default.svc.cluster.local")
    line.step(
        "dns-of-the-node: getent ahostsv4 kubernetes.default.svc.cluster.local",
        "nothing: the node's resolver knows no cluster",
        said.out,
        said.code == 2,
    )


async def s19(rig: Rig, line: Line) -> None:
    """Changes take effect within a second."""
    await rig.apply("s19-watching.yaml")
    pod = await rig.ready_pod("my-watched")
    await rig.endpoints("my-watched", {address_of(pod)})
    first = await rig.cluster_ip("my-watched")
    await asyncio.gather(
        *(
            one_of(rig, line, node, f"http://{first}", [pod], f"{node}: curl http://{first}/hostname")
            for node in rig.nodes
        )
    )
    collection = "/api/v1/namespaces/default/services"
    spec = {"selector": {"app": "my-watched"}, "ports": [{"port": 8099, "targetPort": 80}]}
    began = time.monotonic()
    made = await rig.api.request(
        "POST", collection, {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "my-new"}, "spec": spec}
    )
    address = made["spec"]["clusterIP"]
    waits = [_answers(rig, node, f"http://{address}:8099/hostname", "my-watched", began) for node in rig.nodes]
    waits += [
        _answers(rig, pod_name, "http://my-new:8099/hostname", "my-watched", began)
        for pod_name in ("nettool-1", "nettool-2", "nettool-3")
    ]
    _quick(line, "create a Service; curl it on every node, and by name in a pod of each", await asyncio.gather(*waits))
    began = time.monotonic()
    await rig.api.delete(f"{collection}/my-new")
    gone = [_answers(rig, node, f"http://{address}:8099/hostname", "", began) for node in rig.nodes]
    _quick(line, "delete it; no node answers any more", await asyncio.gather(*gone))
    path = f"/api/v1/namespaces/default/pods/{name_of(pod)}"
    began = time.monotonic()
    await rig.api.merge(path, {"metadata": {"annotations": {"kproxy.lab/ready": "false"}}})
    gone = [_answers(rig, node, f"http://{first}/hostname", "", began) for node in rig.nodes]
    _quick(line, "its only pod is no longer ready; connections are refused", await asyncio.gather(*gone))
    said = await rig.names(CLIENT, f"http://{first}/hostname")
    line.step("client (outside): curl the cluster IP", "no way there", said.out, said.code != 0)


def _quick(line: Line, did: str, times: list[float | str]) -> None:
    seen = ", ".join(f"after {t:.2f} s" if isinstance(t, float) else t for t in times)
    line.step(did, f"everywhere within {_SOON_S:g} s", seen, all(isinstance(t, float) and t <= _SOON_S for t in times))


async def _answers(rig: Rig, place: str, url: str, wanted: str, began: float) -> float | str:
    """Seconds since `began` until `place` sees `wanted` at `url` ("": refused), or what it saw instead for ten seconds.

    One process that tries again and again by itself: starting a program for each attempt would measure the starting.
    """
    said = await rig.python(place, "-m", "kproxy.lab.probe", "await", url, wanted, str(began + 10.0))
    try:
        return float(said.out) - began
    except ValueError:
        return f"{place}: {said.out.strip()}"
