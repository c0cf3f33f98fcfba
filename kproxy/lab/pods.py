"""One pod of the lab from its start to its end: namespace, address, files, servers, readiness.

    start     veth and address → files → sockets → serving → status Running (and Ready)
    stop      goes on serving for a while, as a well-behaved program does after SIGTERM, so that traffic already on its way arrives
              → sockets closed → namespace gone → object deleted

What comes in: the Pod as the API sent it. What goes out: effects on this machine, and the status that the API should hold
(`status_of`, pure). What must not happen here: watching, and talking to the API; the agent does that.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import os
import socket
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from kproxy.lab import addressing, images, network, places, podfiles
from kproxy.lab.addressing import LabNode
from kproxy.lab.namespaces import open_netns
from kproxy.lab.servers import Answering, Face, listening, serve

Raw = dict[str, Any]
READY_ANNOTATION = "kproxy.lab/ready"  # "false" makes a pod not ready, as a failing probe would
LINGER_ANNOTATION = "kproxy.lab/linger-seconds"  # serve this long after being told to stop (at most the grace period)
_PLUMBER = ThreadPoolExecutor(max_workers=1, thread_name_prefix="plumber")  # netlink work: see network.py


@dataclass(slots=True, kw_only=True)
class RunningPod:
    """A pod on one of the lab's nodes."""

    namespace: str
    name: str
    uid: str
    node: LabNode
    raw: Raw
    address: str
    started_at: str  # RFC 3339
    netns: str = ""
    face: Face = field(default_factory=lambda: Face(name="", page=""))
    answering: Answering = field(default_factory=Answering)
    problem: str = ""  # why it does not serve, for its status
    ready: bool = False
    stopping: bool = False
    restarts: int = 0

    @property
    def host_network(self) -> bool:
        return bool(self.raw["spec"].get("hostNetwork"))

    @property
    def addresses(self) -> tuple[str, ...]:
        """One per family, IPv4 first."""
        if not network.has_ipv6():
            return (self.address,)
        return (self.address, self.node.ip6 if self.host_network else self.node.pod_ip6(self.address))

    @property
    def place(self) -> str:
        return place_name(self.namespace, self.name)

    @property
    def link(self) -> str:
        """The node's end of the pod's veth pair."""
        return f"pod{hashlib.sha1(self.uid.encode(), usedforsecurity=False).hexdigest()[:10]}"


def place_name(namespace: str, name: str) -> str:
    """Place and network namespace of a pod: a file name, so bounded."""
    whole = places.pod_place(namespace, name)
    if len(whole) <= 200:
        return whole
    return f"{whole[:180]}-{hashlib.sha1(whole.encode(), usedforsecurity=False).hexdigest()[:12]}"


def facts_of(pod: RunningPod) -> dict[str, str]:
    """Answers for `valueFrom.fieldRef`."""
    return {
        "metadata.name": pod.name,
        "metadata.namespace": pod.namespace,
        "metadata.uid": pod.uid,
        "spec.nodeName": pod.node.name,
        "spec.serviceAccountName": pod.raw["spec"].get("serviceAccountName", "default"),
        "status.hostIP": pod.node.ip,
        "status.podIP": pod.address,
        "status.podIPs": ",".join(pod.addresses),
    }


async def start(pod: RunningPod, services: list[Raw]) -> None:
    """Brings the pod up. A port that cannot be bound becomes `pod.problem`; everything else that fails raises OSError."""
    loop = asyncio.get_running_loop()
    if pod.host_network:
        pod.netns = pod.node.name
    else:
        pod.netns = pod.place
        await loop.run_in_executor(_PLUMBER, network.attach_pod, pod.node, pod.netns, pod.link, pod.address)
    env = podfiles.container_environment(pod.raw, podfiles.service_environment(pod.raw, services), facts_of(pod))
    _write_place(pod, env)
    wanted = images.server_of(pod.raw, env, ip=pod.address, node=pod.node.name)
    pod.face = Face(name=pod.name, page=wanted.page, content_type=wanted.content_type, env=env)
    netns = open_netns(pod.netns)
    bind_to = pod.addresses if pod.host_network else ("0.0.0.0", "::")[: len(pod.addresses)]
    tcp: list[socket.socket] = []
    udp: list[socket.socket] = []
    try:
        for ports, kind, made in ((wanted.tcp, socket.SOCK_STREAM, tcp), (wanted.udp, socket.SOCK_DGRAM, udp)):
            for port, address in itertools.product(ports, bind_to):
                try:
                    made.append(listening(netns, address, port, kind))
                except OSError as error:
                    pod.problem = f"port {port}: {error.strerror}"
    finally:
        os.close(netns)
    pod.answering = await serve(pod.face, tcp, udp)


def _write_place(pod: RunningPod, env: Mapping[str, str]) -> None:
    resolv = podfiles.resolv_conf(
        pod.raw, host_nameservers=(addressing.PARENT_IP,), host_searches=addressing.HOST_SEARCH
    )
    hosts = podfiles.hosts_file([(pod.address, podfiles.own_names(pod.raw))], pod.raw["spec"].get("hostAliases") or ())
    hostname = pod.node.name if pod.host_network else podfiles.pod_hostname(pod.raw)
    places.write(
        pod.place, places.Place(netns=pod.netns, hostname=hostname, env=dict(env)), resolv_conf=resolv, hosts=hosts
    )


async def stop(pod: RunningPod) -> None:
    """Takes the pod down: no connection is answered any more, address and namespace are free afterwards."""
    await pod.answering.close()
    places.remove(pod.place)
    if not pod.host_network and pod.netns:
        await asyncio.get_running_loop().run_in_executor(_PLUMBER, network.detach_pod, pod.node, pod.netns, pod.link)


def linger_s(pod: Raw, default_s: float) -> float:
    """How long a pod that was told to stop goes on serving."""
    grace = float(pod["metadata"].get("deletionGracePeriodSeconds") or 0)
    wished = (pod["metadata"].get("annotations") or {}).get(LINGER_ANNOTATION)
    try:
        seconds = default_s if wished is None else float(wished)
    except ValueError:
        seconds = default_s
    return max(0.0, min(grace, seconds))


def switched_off(pod: Raw) -> bool:
    """True when the annotation says that the pod is not ready."""
    return bool((pod["metadata"].get("annotations") or {}).get(READY_ANNOTATION, "") == "false")


def status_of(pod: RunningPod, now: str) -> Raw:
    """The `status` that the API should hold for this pod."""
    ready = "True" if pod.ready and not pod.problem else "False"
    reason = (
        {}
        if ready == "True"
        else {"reason": "ContainersNotReady", "message": pod.problem or "the readiness probe has not succeeded"}
    )
    conditions = [
        {"type": "PodScheduled", "status": "True", "lastTransitionTime": pod.started_at},
        {"type": "Initialized", "status": "True", "lastTransitionTime": pod.started_at},
        {"type": "ContainersReady", "status": ready, "lastTransitionTime": now, **reason},
        {"type": "Ready", "status": ready, "lastTransitionTime": now, **reason},
    ]
    containers = [
        {
            "name": container["name"],
            "image": container.get("image", ""),
            "imageID": "",
            "containerID": f"lab://{pod.uid}/{container['name']}",
            "ready": ready == "True",
            "started": True,
            "restartCount": pod.restarts,
            "state": {"running": {"startedAt": pod.started_at}},
        }
        for container in pod.raw["spec"].get("containers") or ()
    ]
    return {
        "phase": "Running",
        "conditions": conditions,
        "hostIP": pod.node.ip,
        "hostIPs": [
            {"ip": address} for address in ((pod.node.ip, pod.node.ip6) if network.has_ipv6() else (pod.node.ip,))
        ],
        "podIP": pod.address,
        "podIPs": [{"ip": address} for address in pod.addresses],
        "startTime": pod.started_at,
        "containerStatuses": containers,
    }
