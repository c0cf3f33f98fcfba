"""A control plane that starts with thousands of objects in it: they are written into etcd's data before the API server runs.

    objects ─▶ etcd (transactions of 100) ─▶ its data directory ─▶ ControlPlane.start on that directory

Ten thousand Services with their slices take some three seconds this way; through the API server the same took a minute and a half, because
the creation of a Service gets dearer with their number. The API server reads JSON from its storage as it reads protobuf, applies its
defaults and serves the objects as if it had stored them. Cluster IPs get their IPAddress objects as well, else the API server's repair loop
would write ten thousand of them in the first minute of the measurement.
"""

from __future__ import annotations

import base64
import http.client
import itertools
import json
import os
import socket
import subprocess
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kproxy.lab.controlplane import ControlPlane, ControlPlaneSettings, find_program
from tests.support import one_node
from tests.support.control_plane import running
from tests.support.one_node import OneNode, endpoint_address, service_address

Manifest = dict[str, Any]

MADE = "2026-01-01T00:00:00Z"
_AT_ONCE = 100  # of the 128 operations that etcd takes in a transaction
_START_LIMIT_S = 30.0


def service(
    name: str, address: str, ports: Iterable[tuple[object, ...]] = (("http", "TCP", 80, 8080),), **spec: object
) -> Manifest:
    """A Service in namespace default as the API server would have stored it. Ports: name, protocol, port, target port, node port."""
    keys = ("name", "protocol", "port", "targetPort", "nodePort")
    listed = [dict(zip(keys, port, strict=False)) for port in ports]
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {
            "clusterIP": address,
            "clusterIPs": [address],
            "type": "ClusterIP",
            "sessionAffinity": "None",
            "internalTrafficPolicy": "Cluster",
            "ipFamilies": ["IPv4"],
            "ipFamilyPolicy": "SingleStack",
            "ports": listed,
            **spec,
        },
    }


def endpoint_slice(
    name: str,
    addresses: Iterable[str],
    ports: Iterable[tuple[str, str, int]] = (("http", "TCP", 8080),),
    annotations: dict[str, str] | None = None,
) -> Manifest:
    """The slice of Service `name`; its endpoints are ready and on the node. Ports: name, protocol, port."""
    conditions = {"ready": True, "serving": True, "terminating": False}
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": f"{name}-s",
            "namespace": "default",
            "labels": {
                "kubernetes.io/service-name": name,
                "endpointslice.kubernetes.io/managed-by": "kproxy-tests",
            },
            **({"annotations": annotations} if annotations else {}),
        },
        "addressType": "IPv4",
        "endpoints": [{"addresses": [a], "conditions": conditions, "nodeName": one_node.NODE_NAME} for a in addresses],
        "ports": [{"name": n, "protocol": p, "port": port} for n, p, port in ports],
    }


def node() -> Manifest:
    """The Node of `one_node`."""
    name = one_node.NODE_NAME
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}},
        "spec": {"podCIDR": one_node.POD_NETWORK, "podCIDRs": [one_node.POD_NETWORK]},
        "status": {
            "addresses": [
                {"type": "InternalIP", "address": one_node.NODE},
                {"type": "Hostname", "address": name},
            ],
            "conditions": [{"type": "Ready", "status": "True", "reason": "x", "message": "x"}],
        },
    }


def service_name(number: int) -> str:
    """The name of Service `number` of `services`."""
    return f"svc-{number:05}"


def services(count: int, endpoints: int) -> Iterator[Manifest]:
    """`count` Services with a slice of `endpoints` endpoints each."""
    for number in range(count):
        name = service_name(number)
        yield service(name, service_address(number))
        yield endpoint_slice(name, (endpoint_address(number * endpoints + n) for n in range(endpoints)))


def _stored(manifest: Manifest) -> Iterator[tuple[str, Manifest]]:
    """Keys and values as they stand in etcd."""
    meta = {**manifest["metadata"], "uid": str(uuid.uuid4()), "creationTimestamp": MADE, "generation": 1}
    value = {**manifest, "metadata": meta}
    where = f"{meta.get('namespace', '')}/{meta['name']}".lstrip("/")
    match manifest["kind"]:
        case "Service":
            yield f"/registry/services/specs/{where}", value
            address = manifest["spec"]["clusterIP"]
            yield f"/registry/ipaddresses/{address}", _address(address, meta)
        case "EndpointSlice":
            yield f"/registry/endpointslices/{where}", value
        case "Node":
            yield f"/registry/minions/{where}", value
        case "Namespace":
            yield f"/registry/namespaces/{where}", value
        case "Pod":
            yield f"/registry/pods/{where}", value
        case other:
            raise ValueError(f"{other}: nobody said where etcd has these")


def _address(address: str, parent: Manifest) -> Manifest:
    labels = {
        "ipaddress.kubernetes.io/ip-family": "IPv4",
        "ipaddress.kubernetes.io/managed-by": "ipallocator.k8s.io",
    }
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "IPAddress",
        "metadata": {"name": address, "uid": str(uuid.uuid4()), "creationTimestamp": MADE, "labels": labels},
        "spec": {
            "parentRef": {
                "group": "",
                "resource": "services",
                "namespace": parent["namespace"],
                "name": parent["name"],
            }
        },
    }


def fill(data_dir: Path, manifests: Iterable[Manifest]) -> int:
    """Writes the objects into a new etcd data directory below `data_dir`; returns how many. Call it where loopback is up."""
    program = find_program("etcd", os.environ)
    assert program is not None, "tests/peers/build makes etcd, and distributions have it (etcd-server)"
    data_dir.mkdir(parents=True, exist_ok=True)
    client, peer = (f"http://127.0.0.1:{_free_port()}" for _ in range(2))
    words = [
        "setpriv", "--pdeathsig", "KILL", "--", str(program), f"--data-dir={data_dir / 'etcd'}", "--unsafe-no-fsync",
        f"--listen-client-urls={client}", f"--advertise-client-urls={client}", f"--listen-peer-urls={peer}",
        f"--initial-advertise-peer-urls={peer}", f"--initial-cluster=default={peer}",
    ]  # fmt: skip
    with (data_dir / "filling.log").open("wb") as log:
        etcd = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        connection = _connected(client.removeprefix("http://"), etcd)
        count = 0
        pairs = itertools.chain.from_iterable(_stored(manifest) for manifest in manifests)
        while group := list(itertools.islice(pairs, _AT_ONCE)):
            _put(connection, group)
            count += len(group)
        connection.close()
        return count
    finally:
        etcd.terminate()
        etcd.wait(timeout=20)


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def _connected(address: str, etcd: subprocess.Popen[bytes]) -> http.client.HTTPConnection:
    deadline = time.monotonic() + _START_LIMIT_S
    while True:
        connection = http.client.HTTPConnection(address, timeout=30)
        try:
            connection.request("GET", "/health")
            reply = connection.getresponse()
            reply.read()
            if reply.status == 200:
                return connection
        except OSError:
            pass
        connection.close()
        assert etcd.poll() is None, "etcd ended; its log is filling.log"
        assert time.monotonic() < deadline, f"etcd does not answer after {_START_LIMIT_S:g} s"
        time.sleep(0.02)


def _put(connection: http.client.HTTPConnection, group: list[tuple[str, Manifest]]) -> None:
    operations = [
        {"request_put": {"key": _text(key), "value": _text(json.dumps(value, separators=(",", ":")))}}
        for key, value in group
    ]
    connection.request("POST", "/v3/kv/txn", json.dumps({"success": operations}))
    reply = connection.getresponse()
    answer = reply.read()
    assert reply.status == 200, f"etcd refused a transaction: {answer[:300]!r}"


def _text(value: str) -> str:
    return base64.b64encode(value.encode()).decode()


@contextmanager
def prefilled(bed: OneNode, data_dir: Path, manifests: Iterable[Manifest]) -> Iterator[ControlPlane]:
    """A running API server in the bed's `plane` namespace that holds these objects, reachable from the node at PLANE."""
    with bed.plane.entered():
        fill(data_dir, manifests)
    settings = ControlPlaneSettings(
        data_dir=data_dir,
        bind_address=one_node.PLANE,
        service_cidr=one_node.SERVICE_NETWORK,
        controllers=False,  # slices and the Node are written by hand
        scheduler=False,
    )
    with running(settings, bed.plane.entered) as plane:
        yield plane
