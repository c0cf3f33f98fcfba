"""The lab's node agent: does for all nodes what a kubelet does for one, as far as Services and DNS can tell. One process.

    API ── pods of our nodes ─▶ start / stop (pods.py) ─▶ status ─▶ API
    API ── Services ─▶ environment variables of pods that start later
    agent ─▶ Node objects with addresses and pod CIDR, leases, the kube-dns Service and the kproxy pods (system.py)
    agent ─▶ the outside world's resolver and web pages (outside.py)

It prints one JSON object per line on stdout for what a person may want to see; the first process passes them on. What must not happen
here: Service rules or DNS for the cluster; that is kproxy's business, and if kproxy fails, the lab must show it.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import uvloop

from kproxy.errors import SourceError
from kproxy.lab import addressing, outside, pods, probes, system
from kproxy.lab.addressing import LabNode
from kproxy.lab.client import ApiClient, ApiError
from kproxy.lab.follow import follow
from kproxy.lab.namespaces import NETNS_DIR, open_netns, own_netns, remove_netns
from kproxy.lab.pods import RunningPod
from kproxy.process import settle

Raw = dict[str, Any]
_LEASE_EVERY_S = 20.0
_LEASE_TTL_S = 40


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def emit(event: str, text: str, **more: object) -> None:
    """One line for people, by way of the first process."""
    print(json.dumps({"event": event, "text": text, **more}), flush=True)


@dataclass(slots=True, kw_only=True)
class Agent:
    """All nodes' pods. One event loop owns it; nothing here is shared with a thread but what `pods` hands over."""

    api: ApiClient
    nodes: dict[str, LabNode]
    linger_s: float
    group: asyncio.TaskGroup
    running: dict[str, RunningPod] = field(default_factory=dict)  # by uid
    services: dict[tuple[str, str], Raw] = field(default_factory=dict)
    services_known: asyncio.Event = field(default_factory=asyncio.Event)
    told: frozenset[str] = (
        frozenset()
    )  # addresses that pods had at the last list: theirs, also before they are started again
    last_index: dict[str, int] = field(default_factory=dict)  # per node, for pod_address
    tasks: dict[str, asyncio.Task[None]] = field(default_factory=dict)  # the start of a pod, by uid

    def services_replaced(self, items: list[Raw]) -> None:
        self.services = {_key(item): item for item in items}
        self.services_known.set()

    def service_changed(self, event: str, obj: Raw) -> None:
        if event == "DELETED":
            self.services.pop(_key(obj), None)
        elif event in {"ADDED", "MODIFIED"}:
            self.services[_key(obj)] = obj

    def pods_replaced(self, items: list[Raw]) -> None:
        present = {item["metadata"]["uid"] for item in items}
        self.told = frozenset((item.get("status") or {}).get("podIP", "") for item in items)
        for uid in [uid for uid in self.running if uid not in present]:
            self._spawn(self._vanished(uid))
        for item in items:
            self._look_at(item)

    def pod_changed(self, event: str, obj: Raw) -> None:
        if event == "DELETED":
            self._spawn(self._vanished(obj["metadata"]["uid"]))
        elif event in {"ADDED", "MODIFIED"}:
            self._look_at(obj)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        return self.group.create_task(work)

    def _look_at(self, raw: Raw) -> None:
        meta = raw["metadata"]
        uid = meta["uid"]
        node = self.nodes.get(raw["spec"].get("nodeName", ""))
        if node is None:
            return
        known = self.running.get(uid)
        if known is not None:
            known.raw = raw
            if meta.get("deletionTimestamp") and not known.stopping:
                known.stopping = True
                self._spawn(self._stop(known))
            elif uid not in self.tasks and (raw.get("status") or {}).get("podIP") != known.address:
                self._spawn(self._report(known))  # it was told while the API server was away
            elif probes.probe_of(raw) is None:
                self._spawn(self._set_ready(known, not pods.switched_off(raw)))
        elif meta.get("deletionTimestamp"):
            self._spawn(self._forget(raw))  # stopped in an agent's former life, or never started
        elif raw.get("status", {}).get("phase") not in {"Succeeded", "Failed"}:
            self._begin(raw, node)

    def _begin(self, raw: Raw, node: LabNode) -> None:
        meta, status = raw["metadata"], raw.get("status") or {}
        address = node.ip if raw["spec"].get("hostNetwork") else self._address(node, status.get("podIP", ""))
        if address is None:
            emit("pod", f"{meta['namespace']}/{meta['name']}: {node.name} has no free pod address")
            return
        restarts = 1 + max((c.get("restartCount", 0) for c in status.get("containerStatuses") or ()), default=-1)
        pod = RunningPod(
            namespace=meta["namespace"], name=meta["name"], uid=meta["uid"], node=node, raw=raw, address=address,
            started_at=_now(), restarts=restarts,
        )  # fmt: skip
        self.running[pod.uid] = pod
        self.tasks[pod.uid] = self._spawn(self._start(pod))

    def _address(self, node: LabNode, wished: str) -> str | None:
        """The address the pod had before the agent was restarted, when it is free; else the next free one."""
        taken = frozenset(pod.address for pod in self.running.values())
        if wished and wished not in taken and addressing.is_pod_address(node, wished):
            return wished
        found = addressing.pod_address(node, taken | self.told, self.last_index.get(node.name, 1))
        if found is None:
            return None
        self.last_index[node.name] = found[1]
        return found[0]

    async def _start(self, pod: RunningPod) -> None:
        await self.services_known.wait()
        try:
            await pods.start(pod, list(self.services.values()))
        except (
            Exception
        ) as error:  # one pod that cannot be started must not end the others; the reason stands in its status
            pod.problem = f"{type(error).__name__}: {error}"
        finally:
            self.tasks.pop(pod.uid, None)
        probe = probes.probe_of(pod.raw)
        pod.ready = probe is None and not pods.switched_off(pod.raw)
        await self._report(pod)
        emit(
            "pod",
            f"{pod.namespace}/{pod.name} runs on {pod.node.name} at {pod.address}"
            + (f" ({pod.problem})" if pod.problem else ""),
        )
        if probe is not None:
            await self._probe(pod, probe)

    async def _probe(self, pod: RunningPod, probe: Raw) -> None:
        await asyncio.sleep(float(probe.get("initialDelaySeconds") or 0))
        period = max(0.2, float(probe.get("periodSeconds") or 1))
        failures = 0
        while pod.uid in self.running and not pod.stopping:
            good = not pods.switched_off(pod.raw) and await probes.probe(pod.node.name, pod.address, probe)
            failures = 0 if good else failures + 1
            if good or failures >= int(probe.get("failureThreshold") or 3) or not pod.ready:
                await self._set_ready(pod, good)
            await asyncio.sleep(period if pod.ready else min(period, 0.3))

    async def _set_ready(self, pod: RunningPod, ready: bool) -> None:
        if pod.uid not in self.tasks and ready != pod.ready and not pod.stopping:
            pod.ready = ready
            await self._report(pod)
            emit(
                "pod",
                f"{pod.namespace}/{pod.name} is {'ready' if ready else 'not ready'}",
                pod=f"{pod.namespace}/{pod.name}",
                ready=ready,
            )

    async def _report(self, pod: RunningPod) -> None:
        path = f"/api/v1/namespaces/{pod.namespace}/pods/{pod.name}/status"
        body = {"metadata": {"uid": pod.uid}, "status": pods.status_of(pod, _now())}
        for attempt in range(5):
            try:
                await self.api.merge(path, body)
                return
            except ApiError as error:
                if error.code in {404, 409, 422}:  # gone, or another pod of that name by now
                    return
            except SourceError:
                pass
            await asyncio.sleep(0.2 * 2**attempt)

    async def _stop(self, pod: RunningPod) -> None:
        if task := self.tasks.get(pod.uid):
            await asyncio.wait([task])
        await asyncio.sleep(pods.linger_s(pod.raw, self.linger_s))
        await self._take_down(pod)
        await self._forget(pod.raw)

    async def _forget(self, raw: Raw) -> None:
        meta = raw["metadata"]
        try:
            await self.api.delete(
                f"/api/v1/namespaces/{meta['namespace']}/pods/{meta['name']}", grace_s=0, uid=meta["uid"]
            )
        except SourceError as error:
            emit("problem", f"{meta['namespace']}/{meta['name']} could not be deleted: {error}")

    async def _vanished(self, uid: str) -> None:
        pod = self.running.get(uid)
        if pod is not None and not pod.stopping:  # deleted by force
            pod.stopping = True
            if task := self.tasks.get(uid):
                await asyncio.wait([task])
            await self._take_down(pod)

    async def _take_down(self, pod: RunningPod) -> None:
        await pods.stop(pod)
        self.running.pop(pod.uid, None)
        emit("pod", f"{pod.namespace}/{pod.name} has ended on {pod.node.name}")


def _key(obj: Raw) -> tuple[str, str]:
    return obj["metadata"]["namespace"], obj["metadata"]["name"]


async def _ready(api: ApiClient) -> None:
    """Waits for the API server; the lab's first process gives up for all of us."""
    while True:
        try:
            await api.get("/readyz")
            return
        except SourceError:
            await asyncio.sleep(0.05)


async def _keep_nodes(api: ApiClient, nodes: list[LabNode]) -> None:
    while True:
        await asyncio.sleep(_LEASE_EVERY_S)
        for node in nodes:
            try:
                await system.renew_lease(api, node, _LEASE_TTL_S, datetime.now(UTC))
            except SourceError as error:
                emit("problem", f"lease of {node.name}: {error}")


def _remove_old_pods(nodes: list[LabNode]) -> None:
    """Namespaces of pods that a former life of this process left; their links go with them."""
    standing = {node.name for node in nodes} | {addressing.CLIENT, addressing.OUTSIDE}
    for entry in NETNS_DIR.iterdir():
        if entry.name not in standing:
            remove_netns(entry.name)


async def run(kubeconfig: Path, nodes: list[LabNode], linger_s: float, proxy: str) -> None:
    """The agent until SIGTERM."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    _remove_old_pods(nodes)
    await outside.open_world(own_netns(), open_netns(addressing.OUTSIDE))
    async with ApiClient.from_kubeconfig(kubeconfig) as api:
        await _ready(api)
        await system.register(api, nodes, datetime.now(UTC))
        emit("nodes", f"{len(nodes)} nodes registered", nodes=[node.name for node in nodes])
        await system.create_dns(api, nodes if proxy == "kproxy" else [])
        async with asyncio.TaskGroup() as group:
            agent = Agent(api=api, nodes={node.name: node for node in nodes}, linger_s=linger_s, group=group)
            kinds: tuple[tuple[str, Callable[[list[Raw]], None], Callable[[str, Raw], None]], ...] = (
                ("services", agent.services_replaced, agent.service_changed),
                ("pods", agent.pods_replaced, agent.pod_changed),
            )
            for plural, replaced, changed in kinds:
                group.create_task(follow(api, f"/api/v1/{plural}", replaced, changed))
            group.create_task(_keep_nodes(api, nodes))
            emit("agent", "the node agent watches pods", watching=True)
            await stop.wait()
            raise SystemExit(0)


def main() -> None:
    """`python -m kproxy.lab.agent JSON`, started by the first process."""
    settings = json.loads(sys.argv[1])
    settle("lab-agent", parent_pid=None)
    nodes = list(addressing.nodes(settings["nodes"]))
    uvloop.run(run(Path(settings["kubeconfig"]), nodes, settings["linger_s"], settings["proxy"]))


if __name__ == "__main__":
    main()
