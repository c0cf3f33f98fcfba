"""Upstream kube-proxy behind the same executor as our own data planes: rows become API objects, kube-proxy writes the rules.

    row ─▶ API objects ─▶ kube-apiserver ─▶ kube-proxy ─▶ rules on the bed's node ─▶ real packets, judged as everywhere

etcd, kube-apiserver and kube-proxy run inside the bed's node namespace and talk over its loopback; one bed and one control plane serve
all modes, one after the other, with empty tables in between. A step is in force when the rules of a marker Service are there, which is
written after everything else: both of kube-proxy's watches (Services, EndpointSlices) keep order. What kube-proxy does after its rules
(flows of UDP) is waited for by asking again.
"""

from __future__ import annotations

import http.client
import json
import os
import ssl
import subprocess
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from kproxy.backends.iptables.variant import Variant
from kproxy.lab.controlplane import ADMIN, ControlPlane, ControlPlaneSettings, find_program
from kproxy.model.desired import NodeSettings
from tests.packet.executor import PATIENCE_S, SILENCE_S, Executor
from tests.support.bed import Bed
from tests.support.builders import Built
from tests.support.control_plane import running
from tests.support.flows import IPT, NFT, Flow, Outcome, Row, Step
from tests.support.netns import run, sysctl
from tests.support.probing import Lasting
from tests.support.tables import empty

PLACES = {"Service": "services", "EndpointSlice": "endpointslices", "Node": "nodes", "Namespace": "namespaces"}
MARKER_NAMESPACE = "peers"
SYNC_S = 30.0  # for kube-proxy to write a step's rules
AFTERWARDS_S = 3.0  # for what it does once they are written
TOOLS = ("iptables", "iptables-save", "iptables-restore", "ip6tables", "ip6tables-save", "ip6tables-restore")

Manifest = dict[str, Any]


class Mode(Enum):
    """What kube-proxy writes: its iptables mode through either tool, or its nftables mode."""

    LEGACY = "legacy"
    NFT = "nft"
    NFTABLES = "nftables"

    @property
    def flows(self) -> str:
        """Which flows of the table hold."""
        return NFT if self is Mode.NFTABLES else IPT

    @property
    def variant(self) -> Variant:
        """The iptables that shares the kernel's facility with it."""
        return Variant.LEGACY if self is Mode.LEGACY else Variant.NFT


class Api:
    """The real API server, told what the cluster is. One connection, opened inside the node's namespace."""

    def __init__(self, bed: Bed, plane: ControlPlane) -> None:
        address, _, port = plane.server.removeprefix("https://").rpartition(":")
        tls = ssl.create_default_context(cafile=plane.keys.authority)
        self._headers = {"Authorization": f"Bearer {plane.users[ADMIN].token}", "Content-Type": "application/json"}
        self._connection = http.client.HTTPSConnection(address, int(port), context=tls, timeout=30)
        self._bed = bed
        self._there: dict[str, Manifest] = {}  # path of an object → its manifest as it was written
        self._namespaces: set[str] = set()

    def close(self) -> None:
        """Gives the connection up."""
        self._connection.close()

    def become(self, objects: list[Manifest]) -> None:
        """Makes the cluster hold exactly these objects, of those written here."""
        wanted = {_path(o): o for o in objects}
        for path in [path for path in self._there if path not in wanted]:
            self._call("DELETE", path)
            del self._there[path]
        for path, manifest in wanted.items():
            if self._there.get(path) != manifest:
                self._write(path, manifest)
                self._there[path] = manifest

    def tried(self, built: Built) -> int:
        """The status that an attempt to create this object ends with; it is gone again afterwards."""
        path = _path(built.api)
        self._make_namespace(built.api["metadata"]["namespace"])
        status, _ = self._request("POST", path.rpartition("/")[0], built.api)
        if status < 300:
            self._call("DELETE", path)
        return status

    def _make_namespace(self, namespace: str) -> None:
        if namespace in self._namespaces:
            return
        made = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}}
        status, answer = self._request("POST", "/api/v1/namespaces", made)
        assert status in (201, 409), f"namespace {namespace}: {status} {answer.get('message', '')}"
        self._namespaces.add(namespace)

    def _write(self, path: str, manifest: Manifest) -> None:
        namespace = manifest["metadata"].get("namespace")
        if namespace:
            self._make_namespace(namespace)
        if path in self._there and not self._changed(path, manifest):
            self._call("DELETE", path)  # an immutable field (a cluster IP, an address type): written anew
            del self._there[path]
        if path not in self._there:
            self._call("POST", path.rpartition("/")[0], manifest)
        if "status" in manifest or "status" in self._there.get(path, {}):
            body = self._call("GET", path)
            body["status"] = manifest.get("status", {})
            self._call("PUT", f"{path}/status", body)

    def _changed(self, path: str, manifest: Manifest) -> bool:
        version = self._call("GET", path)["metadata"]["resourceVersion"]
        body = {**manifest, "metadata": {**manifest["metadata"], "resourceVersion": version}}
        status, _ = self._request("PUT", path, body)
        return status == 200

    def _call(self, method: str, path: str, body: Manifest | None = None) -> Manifest:
        status, answer = self._request(method, path, body)
        assert status < 300, f"{method} {path}: {status} {answer.get('message', '')} for {json.dumps(body)}"
        return answer

    def _request(self, method: str, path: str, body: Manifest | None) -> tuple[int, Manifest]:
        try:
            return self._asked(method, path, body)
        except (
            OSError,
            http.client.HTTPException,
        ):  # a server that hung up or took too long: once more, on a connection of its own
            status, answer = self._asked(method, path, body)
        done = {"DELETE": 404, "POST": 409}.get(method)  # the first request may have had its effect
        return (200, answer) if status == done else (status, answer)

    def _asked(self, method: str, path: str, body: Manifest | None) -> tuple[int, Manifest]:
        try:
            if self._connection.sock is None:
                with self._bed.node.entered():
                    self._connection.connect()
            self._connection.request(method, path, json.dumps(body) if body else None, self._headers)
            reply = self._connection.getresponse()
            answer: Manifest = json.loads(reply.read())
        except BaseException:
            self._connection.close()  # else every later request would fail with this one's state
            raise
        return reply.status, answer


def _path(manifest: Manifest) -> str:
    version, kind, meta = manifest["apiVersion"], manifest["kind"], manifest["metadata"]
    root = "/api/v1" if version == "v1" else f"/apis/{version}"
    inside = f"/namespaces/{meta['namespace']}" if meta.get("namespace") else ""
    return f"{root}{inside}/{PLACES[kind]}/{meta['name']}"


class UpstreamExecutor(Executor):
    """kube-proxy's rules on one bed."""

    def __init__(self, cluster: Cluster, mode: Mode, scratch: Path) -> None:
        super().__init__(cluster.bed, mode.variant)
        self.mode = mode.flows
        self.kind = mode
        self._cluster, self._scratch = cluster, scratch
        self._clients: dict[tuple[str, tuple[str, int]], Lasting] = {}
        self._proxy: subprocess.Popen[bytes] | None = None
        self._running: tuple[NodeSettings, Manifest] | None = None
        self._tools = _tools(scratch, mode.variant)

    def run_row(self, row: Row) -> list[str]:
        try:
            return super().run_row(row)
        finally:
            for client in self._clients.values():
                client.close()
            self._clients.clear()

    def sync(self, row: Row, step: Step) -> None:
        """Tells the API server, then waits until kube-proxy's rules say so."""
        node = step.node.api
        self._cluster.marker += 1
        objects = (*step.objects, *self._cluster.beside)
        self._cluster.api.become([node, *(built.api for built in objects), *marker(self._cluster.marker)])
        if self._running != (row.settings, node):
            self.start(row.settings)  # its configuration is read at start, and so are its own addresses
            self._running = (row.settings, node)
        self.wait()

    def wait(self) -> None:
        """Returns when the rules of the marker are there.

        v1.36.3 panics now and then in its start, when the Node comes while its handlers are being made (one of 5,000 starts here, in
        NodeConfig.handleChangeNode); whoever runs it starts it again, and so is it here, once.
        """
        deadline = time.monotonic() + SYNC_S
        may_panic = True
        while not self._in_force():
            assert self._proxy is not None
            if may_panic and self._running is not None and self._proxy.poll() is not None and "panic.go" in self._log():
                may_panic = False
                self.start(self._running[0])
            assert self._proxy.poll() is None, f"kube-proxy ended: {self._log()}"
            assert time.monotonic() < deadline, (
                f"kube-proxy wrote no rules for the marker in {SYNC_S:g} s: {self._log()}"
            )
            time.sleep(0.02)

    def close(self) -> None:
        """Ends kube-proxy."""
        if self._proxy is not None:
            self._proxy.kill()
            self._proxy.wait(timeout=10)
            self._proxy = None

    def _leftover(self) -> list[str]:
        return []  # whether kube-proxy's rules are what it wants is its own business

    def _flow(self, flow: Flow, landed: defaultdict[str, set[str]]) -> list[str]:
        """A flow with a socket is asked until it is where it should be: kube-proxy looks after such flows when its rules are written."""
        if not flow.socket:
            return super()._flow(flow, landed)
        key = (flow.socket, flow.to)
        if key not in self._clients:
            with self.bed.at(flow.source):
                self._clients[key] = Lasting(flow.source.address, flow.to)
        deadline = time.monotonic() + AFTERWARDS_S
        while True:
            wrong = self._judge(
                flow, [self._clients[key].ask(SILENCE_S if flow.expect.outcome is Outcome.DROP else PATIENCE_S)]
            )
            if not wrong or time.monotonic() > deadline:
                return wrong
            time.sleep(0.05)

    def _in_force(self) -> bool:
        number = 1000 + self._cluster.marker
        if self.kind is Mode.NFTABLES:
            tables = run(self.bed.node, "nft", "list", "tables")
            return all(
                f"table {family} kube-proxy" in tables
                and f"{address} . {number} }}" in run(self.bed.node, "nft", "list", "table", family, "kube-proxy")
                for family, address in (("ip", "10.255.255.254"), ("ip6", "fd00:10:ffff::1"))
            )
        target = f":{number}"
        return all(
            f"{address}{target}" in run(self.bed.node, f"{tool}-{self.variant.value}-save", "-t", "nat")
            for tool, address in (("iptables", "10.255.255.254"), ("ip6tables", "[fd00:10:ffff::1]"))
        )

    def start(self, settings: NodeSettings) -> None:
        """A new process with these settings."""
        self.close()
        config = self._scratch / "kube-proxy.yaml"
        config.write_text(json.dumps(_configuration(settings, self.kind, self._kubeconfig())))
        program = find_program("kube-proxy", os.environ)
        with (self._scratch / "kube-proxy.log").open("wb") as log, self.bed.node.entered():
            self._proxy = subprocess.Popen(
                [
                    "setpriv",
                    "--pdeathsig",
                    "KILL",
                    "--",
                    str(program),
                    f"--config={config}",
                    f"--hostname-override={settings.name}",
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "PATH": f"{self._tools}:{os.environ['PATH']}"},
            )

    def _kubeconfig(self) -> Path:
        return self._cluster.plane.kubeconfig

    def _log(self) -> str:
        return "\n".join((self._scratch / "kube-proxy.log").read_text(errors="replace").splitlines()[-15:])


def _configuration(settings: NodeSettings, mode: Mode, kubeconfig: Path) -> Manifest:
    pause = {"minSyncPeriod": "10ms"}  # its default of 1 s would pass between every two steps
    return {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "nftables" if mode is Mode.NFTABLES else "iptables",
        "featureGates": {"AllowServiceExternalIPs": settings.external_ips.enabled},
        "clientConnection": {"kubeconfig": str(kubeconfig)},
        "clusterCIDR": ",".join(settings.cluster_cidrs),
        "detectLocalMode": settings.detect_mode.value,
        "detectLocal": {"bridgeInterface": settings.bridge_interface, "interfaceNamePrefix": settings.interface_prefix},
        "nodePortAddresses": list(settings.node_port_addresses),
        "iptables": {
            "masqueradeAll": settings.masquerade_all,
            "localhostNodePorts": settings.localhost_node_ports,
            **pause,
        },
        "nftables": {"masqueradeAll": settings.masquerade_all, **pause},
        "conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
        "healthzBindAddress": "127.0.0.1:10256",
        "metricsBindAddress": "127.0.0.1:10249",
    }


def marker(number: int) -> list[Manifest]:
    """A Service in both families whose endpoints have a port of this number only."""
    meta = {"name": f"marker-{number}", "namespace": MARKER_NAMESPACE}
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": meta,
        "spec": {
            "ipFamilyPolicy": "RequireDualStack",
            "ipFamilies": ["IPv4", "IPv6"],
            "ports": [{"name": "m", "port": 7, "protocol": "TCP"}],
        },
    }
    slices = [
        {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                **meta,
                "name": f"marker-{number}-{family.lower()}",
                "labels": {"kubernetes.io/service-name": meta["name"]},
            },
            "addressType": family,
            "endpoints": [{"addresses": [address], "conditions": {"ready": True}, "nodeName": "elsewhere"}],
            "ports": [{"name": "m", "port": 1000 + number, "protocol": "TCP"}],
        }
        for family, address in (("IPv4", "10.255.255.254"), ("IPv6", "fd00:10:ffff::1"))
    ]
    return [service, *slices]


def _tools(scratch: Path, variant: Variant) -> Path:
    """A folder whose `iptables` … are one variant's: kube-proxy takes what it finds first on PATH."""
    folder = scratch / f"tools-{variant.value}"
    folder.mkdir(exist_ok=True)
    for tool in TOOLS:
        family, _, rest = tool.partition("-")
        real = run(None, "sh", "-c", f"command -v {family}-{variant.value}{'-' + rest if rest else ''}").strip()
        (folder / tool).symlink_to(real)
    return folder


@dataclass
class Cluster:
    """One bed and one control plane, for all modes. `beside`: objects that are there besides those of a row."""

    bed: Bed
    plane: ControlPlane
    api: Api
    marker: int = 0
    beside: tuple[Built, ...] = ()

    def clean(self) -> None:
        """Empties every table that a mode has written, and what it set besides."""
        empty(self.bed.node)
        sysctl(self.bed.node, ipv4__conf__all__route_localnet=0)


@contextmanager
def cluster_for(rows: tuple[Row, ...], scratch: Path) -> Iterator[Cluster]:
    """The bed of these rows, with a control plane on its node."""
    bed = Bed(rows)
    settings = ControlPlaneSettings(
        data_dir=scratch / "control-plane",
        advertise_address="192.168.0.2",  # of the bed's node; default/kubernetes gets it
        secure_port=0,
        service_cidr="172.30.0.0/16,fd00:172:30::/112",
        service_node_port_range="1-32767",
        controllers=False,  # the rows' slices are written by hand
        scheduler=False,
    )
    try:
        with running(settings, bed.node.entered) as plane:
            api = Api(bed, plane)
            try:
                yield Cluster(bed, plane, api)
            finally:
                api.close()
    finally:
        bed.close()


@contextmanager
def upstream(cluster: Cluster, mode: Mode, scratch: Path) -> Iterator[UpstreamExecutor]:
    """An executor whose rules are upstream kube-proxy's."""
    executor = UpstreamExecutor(cluster, mode, scratch)
    try:
        yield executor
    finally:
        executor.close()
        cluster.clean()
