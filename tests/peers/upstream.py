"""Upstream kube-proxy behind the same executor as our own data planes: rows become API objects, kube-proxy writes the rules.

    row ─▶ API objects ─▶ kube-apiserver ─▶ kube-proxy ─▶ rules on the bed's node ─▶ real packets, judged as everywhere

etcd, kube-apiserver and kube-proxy run inside the bed's node namespace and talk over its loopback. A step is in force when the rules of
a marker Service are there, which is written after everything else: both of kube-proxy's watches (Services, EndpointSlices) keep order.
"""

from __future__ import annotations

import http.client
import json
import os
import ssl
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kproxy.backends.iptables.variant import Variant
from kproxy.lab.controlplane import ADMIN, ControlPlane, ControlPlaneSettings, find_program
from kproxy.model.desired import NodeSettings
from tests.packet.executor import Executor
from tests.support.bed import Bed
from tests.support.control_plane import running
from tests.support.flows import Row, Step
from tests.support.netns import run

PLACES = {"Service": "services", "EndpointSlice": "endpointslices", "Node": "nodes", "Namespace": "namespaces"}
MARKER_NAMESPACE = "peers"
PATIENCE_S = 30.0
TOOLS = ("iptables", "iptables-save", "iptables-restore", "ip6tables", "ip6tables-save", "ip6tables-restore")

Manifest = dict[str, Any]


class Api:
    """The real API server, told what the cluster is. One connection, opened inside the node's namespace."""

    def __init__(self, bed: Bed, plane: ControlPlane) -> None:
        address, _, port = plane.server.removeprefix("https://").rpartition(":")
        tls = ssl.create_default_context(cafile=plane.keys.authority)
        self._headers = {"Authorization": f"Bearer {plane.users[ADMIN].token}", "Content-Type": "application/json"}
        self._connection = http.client.HTTPSConnection(address, int(port), context=tls, timeout=30)
        with bed.node.entered():
            self._connection.connect()
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

    def _write(self, path: str, manifest: Manifest) -> None:
        namespace = manifest["metadata"].get("namespace")
        if namespace and namespace not in self._namespaces:
            self._call(
                "POST", "/api/v1/namespaces", {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}}
            )
            self._namespaces.add(namespace)
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
        self._connection.request(method, path, json.dumps(body) if body else None, self._headers)
        reply = self._connection.getresponse()
        answer: Manifest = json.loads(reply.read())
        return reply.status, answer


def _path(manifest: Manifest) -> str:
    version, kind, meta = manifest["apiVersion"], manifest["kind"], manifest["metadata"]
    root = "/api/v1" if version == "v1" else f"/apis/{version}"
    inside = f"/namespaces/{meta['namespace']}" if meta.get("namespace") else ""
    return f"{root}{inside}/{PLACES[kind]}/{meta['name']}"


class UpstreamExecutor(Executor):
    """kube-proxy's rules on one bed."""

    def __init__(self, bed: Bed, variant: Variant, api: Api, plane: ControlPlane, scratch: Path) -> None:
        super().__init__(bed, variant)
        self._api, self._plane, self._scratch = api, plane, scratch
        self._proxy: subprocess.Popen[bytes] | None = None
        self._running: tuple[NodeSettings, Manifest] | None = None
        self._marker = 0
        self._tools = _tools(scratch, variant)

    def sync(self, row: Row, step: Step) -> None:
        """Tells the API server, then waits until kube-proxy's rules say so."""
        node = step.node.api
        self._marker += 1
        self._api.become([node, *(built.api for built in step.objects), *_marker(self._marker)])
        if self._running != (row.settings, node):
            self._start(row.settings)  # its configuration is read at start, and so are its own addresses
            self._running = (row.settings, node)
        deadline = time.monotonic() + PATIENCE_S
        while not self._in_force():
            assert self._proxy is not None
            assert self._proxy.poll() is None, f"kube-proxy ended: {self._log()}"
            assert time.monotonic() < deadline, (
                f"kube-proxy wrote no rules for the marker in {PATIENCE_S:g} s: {self._log()}"
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

    def _in_force(self) -> bool:
        target = f":{1000 + self._marker}"
        return all(
            f"{address}{target}" in run(self.bed.node, f"{tool}-{self.variant.value}-save", "-t", "nat")
            for tool, address in (("iptables", "10.255.255.254"), ("ip6tables", "[fd00:10:ffff::1]"))
        )

    def _start(self, settings: NodeSettings) -> None:
        self.close()
        config = self._scratch / "kube-proxy.yaml"
        config.write_text(json.dumps(_configuration(settings, self._plane)))
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

    def _log(self) -> str:
        return "\n".join((self._scratch / "kube-proxy.log").read_text(errors="replace").splitlines()[-15:])


def _configuration(settings: NodeSettings, plane: ControlPlane) -> Manifest:
    return {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "iptables",
        "clientConnection": {"kubeconfig": str(plane.kubeconfig)},
        "clusterCIDR": ",".join(settings.cluster_cidrs),
        "detectLocalMode": settings.detect_mode.value,
        "detectLocal": {"bridgeInterface": settings.bridge_interface, "interfaceNamePrefix": settings.interface_prefix},
        "nodePortAddresses": list(settings.node_port_addresses),
        "iptables": {
            "masqueradeAll": settings.masquerade_all,
            "localhostNodePorts": settings.localhost_node_ports,
            "minSyncPeriod": "10ms",  # its default of 1 s would pass between every two steps
        },
        "conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
        "healthzBindAddress": "127.0.0.1:10256",
        "metricsBindAddress": "127.0.0.1:10249",
    }


def _marker(number: int) -> list[Manifest]:
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


@contextmanager
def upstream(rows: tuple[Row, ...], variant: Variant, scratch: Path) -> Iterator[UpstreamExecutor]:
    """An executor whose rules are upstream kube-proxy's."""
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
            executor = UpstreamExecutor(bed, variant, api, plane, scratch)
            try:
                yield executor
            finally:
                executor.close()
                api.close()
    finally:
        bed.close()
