"""Hollow nodes: nodes and pods that exist in the API only, for trying things out and for tests without network namespaces.

A hollow node is Ready; its pods get an address, run at once, and end as soon as they are deleted. Names are node-1, node-2 …, addresses
those of the lab.
"""

from __future__ import annotations

from collections.abc import Iterable

from kproxy.lab.api import kinds, scaling
from kproxy.lab.api.controllers import pods
from kproxy.lab.api.kinds import Resource
from kproxy.lab.api.objects.base import DeleteOptions
from kproxy.lab.api.registry import Registry
from kproxy.lab.api.store import Change, Key
from kproxy.lab.api.values import Object, dig, is_terminating

ZONES = ("zone-a", "zone-b", "zone-c")


def make_nodes(registry: Registry, count: int) -> None:
    """Register hollow nodes."""
    for number in range(1, count + 1):
        name = f"node-{number}"
        address = f"192.168.200.{20 + number}"
        labels = {"kubernetes.io/hostname": name, "topology.kubernetes.io/zone": ZONES[(number - 1) % len(ZONES)]}
        now = registry.now()
        ready = {"type": "Ready", "status": "True", "reason": "KubeletReady", "lastTransitionTime": now}
        status = {
            "addresses": [{"type": "InternalIP", "address": address}, {"type": "Hostname", "address": name}],
            "conditions": [ready],
            "nodeInfo": {"kubeletVersion": "v1.36.3-hollow", "architecture": "amd64"},
            "capacity": {"pods": "250"},
        }
        spec = {"podCIDR": f"10.244.{number - 1}.0/24", "podCIDRs": [f"10.244.{number - 1}.0/24"]}
        registry.create(kinds.NODES, "", {"metadata": {"name": name, "labels": labels}, "spec": spec, "status": status})


class HollowKubelet:
    """What kubelets do, without doing it."""

    def __init__(self, registry: Registry, count: int) -> None:
        self._registry = registry
        self._names = {f"node-{number}": number - 1 for number in range(1, count + 1)}
        self._last = dict.fromkeys(self._names, 1)

    def concerned(self, resource: Resource, change: Change) -> Iterable[Key]:
        """The pods bound to hollow nodes."""
        mine = resource is kinds.PODS and dig(change.record.object, "spec", "nodeName") in self._names
        return (change.record.key,) if mine and change.type != "DELETED" else ()

    def reconcile(self, key: Key) -> None:
        """Start or end one pod."""
        pod = self._registry.find(kinds.PODS, *key)
        if pod is None:
            return
        if is_terminating(pod):
            self._registry.delete(kinds.PODS, key[0], key[1], DeleteOptions(grace_period_s=0))
        elif not pods.addresses(pod) and not pods.has_ended(pod):
            self._registry.update(kinds.PODS, key[0], key[1], self._started, subresource="status")

    def _started(self, pod: Object) -> Object:
        node = pod["spec"]["nodeName"]
        number = self._names[node]
        self._last[node] += 1
        host, address = f"192.168.200.{21 + number}", f"10.244.{number}.{self._last[node]}"
        if pod["spec"].get("hostNetwork"):
            address = host
        now = self._registry.now()
        status = pod.setdefault("status", {})
        running = {"running": {"startedAt": now}}
        status.update(
            phase="Running",
            hostIP=host,
            hostIPs=[{"ip": host}],
            podIP=address,
            podIPs=[{"ip": address}],
            startTime=now,
            containerStatuses=[
                {
                    "name": container["name"],
                    "image": container.get("image", ""),
                    "imageID": "",
                    "ready": True,
                    "started": True,
                    "restartCount": 0,
                    "state": running,
                    "lastState": {},
                }
                for container in pod["spec"]["containers"]
            ],
        )
        for kind in ("PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady"):
            scaling.set_condition(pod, {"type": kind, "status": "True"}, now)
        return pod
