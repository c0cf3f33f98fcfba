"""The objects every lab has from the start: nodes, their leases, the kube-dns Service, and the pods that stand for kproxy.

kproxy runs on each node as a plain process, but a cluster shows its DNS servers as pods, and the kube-dns Service finds its endpoints
by their label. So each node has a hostNetwork pod `kproxy-NODE` whose readiness is kproxy's own health page: while kproxy is down on a
node, that node's DNS is no endpoint.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from kproxy.lab import addressing
from kproxy.lab.addressing import LabNode
from kproxy.lab.client import ApiClient, ApiError
from kproxy.lab.network import has_ipv6

Raw = dict[str, Any]
HEALTH_PORT = 10256
METRICS_PORT = 9153
KPROXY_LABELS = {"k8s-app": "kube-dns", "app.kubernetes.io/name": "kproxy", "component": "kube-proxy"}


async def create(api: ApiClient, collection: str, obj: Raw) -> bool:
    """POST, unless it exists already (from before the agent was restarted): then False.

    Looking first, because an API server may object to a fixed cluster IP before it notices that the very object is there.
    """
    try:
        await api.get(f"{collection}/{obj['metadata']['name']}")
        return False
    except ApiError as error:
        if error.code != 404:
            raise
    try:
        await api.request("POST", collection, obj)
    except ApiError as error:  # a controller of the API server may have been quicker (namespaces)
        if error.reason != "AlreadyExists":
            raise
        return False
    return True


async def register(api: ApiClient, nodes: list[LabNode], now: datetime) -> None:
    """Creates the namespaces and Node objects and reports the nodes ready."""
    for name in ("default", "kube-system", "kube-public", "kube-node-lease"):
        await create(api, "/api/v1/namespaces", {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    for node in nodes:
        await create(api, "/api/v1/nodes", _node_object(node))
        await api.merge(f"/api/v1/nodes/{node.name}/status", {"status": _node_status(node, now)})
        await renew_lease(api, node, 40, now)


def _node_object(node: LabNode) -> Raw:
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": node.name,
            "labels": {
                "kubernetes.io/hostname": node.name,
                "kubernetes.io/os": "linux",
                "topology.kubernetes.io/zone": node.zone,
            },
        },
        "spec": {"podCIDR": node.pod_cidr, "podCIDRs": [node.pod_cidr, *([node.pod_cidr6] if has_ipv6() else [])]},
    }


def _node_status(node: LabNode, now: datetime) -> Raw:
    capacity = {"cpu": "8", "memory": "16Gi", "pods": "250"}
    stamp = now.strftime("%Y-%m-%dT%H:%M:%SZ")
    conditions = [
        {
            "type": kind,
            "status": status,
            "reason": reason,
            "message": "the lab's node agent says so",
            "lastHeartbeatTime": stamp,
            "lastTransitionTime": stamp,
        }
        for kind, status, reason in (
            ("MemoryPressure", "False", "LabHasSufficientMemory"),
            ("DiskPressure", "False", "LabHasNoDiskPressure"),
            ("PIDPressure", "False", "LabHasSufficientPID"),
            ("Ready", "True", "LabReady"),
        )
    ]
    return {
        "addresses": [
            *(
                {"type": "InternalIP", "address": address}
                for address in ((node.ip, node.ip6) if has_ipv6() else (node.ip,))
            ),
            {"type": "Hostname", "address": node.name},
        ],
        "capacity": capacity,
        "allocatable": capacity,
        "conditions": conditions,
        "nodeInfo": {
            "kubeletVersion": "lab",
            "kubeProxyVersion": "",
            "containerRuntimeVersion": "lab://namespaces",
            "osImage": "kproxy lab",
            "kernelVersion": "",
            "operatingSystem": "linux",
            "architecture": "amd64",
            "machineID": "",
            "systemUUID": "",
            "bootID": "",
        },
    }


async def renew_lease(api: ApiClient, node: LabNode, seconds: int, now: datetime) -> None:
    """The node's sign of life, which node controllers look at."""
    collection = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases"
    spec = {
        "holderIdentity": node.name,
        "leaseDurationSeconds": seconds,
        "renewTime": now.strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
    }
    lease = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": node.name}, "spec": spec}
    if not await create(api, collection, lease):
        await api.merge(f"{collection}/{node.name}", {"spec": spec})


async def create_dns(api: ApiClient, nodes: list[LabNode]) -> None:
    """The kube-dns Service at its well-known address, and one pod per node that stands for kproxy."""
    await create(api, "/api/v1/namespaces/kube-system/services", dns_service())
    for node in nodes:
        await create(api, "/api/v1/namespaces/kube-system/pods", kproxy_pod(node))


def dns_service() -> Raw:
    """kube-system/kube-dns as every cluster has it."""
    ports = [
        {"name": "dns", "port": 53, "protocol": "UDP", "targetPort": 53},
        {"name": "dns-tcp", "port": 53, "protocol": "TCP", "targetPort": 53},
        {"name": "metrics", "port": 9153, "protocol": "TCP", "targetPort": METRICS_PORT},
    ]
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": "kube-dns",
            "namespace": "kube-system",
            "labels": {"k8s-app": "kube-dns", "kubernetes.io/name": "CoreDNS", "kubernetes.io/cluster-service": "true"},
        },
        "spec": {"clusterIP": addressing.DNS_SERVICE_IP, "selector": {"k8s-app": "kube-dns"}, "ports": ports},
    }


def kproxy_pod(node: LabNode) -> Raw:
    """The pod that stands for kproxy on `node`; bound there from the start, since it never waits for a scheduler."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": f"kproxy-{node.name}", "namespace": "kube-system", "labels": KPROXY_LABELS},
        "spec": {
            "nodeName": node.name,
            "hostNetwork": True,
            "dnsPolicy": "Default",
            "automountServiceAccountToken": False,
            "tolerations": [{"operator": "Exists"}],
            "containers": [
                {
                    "name": "kproxy",
                    "image": "kproxy",
                    "readinessProbe": {"httpGet": {"path": "/readyz", "port": HEALTH_PORT}, "periodSeconds": 1},
                }
            ],
        },
    }
