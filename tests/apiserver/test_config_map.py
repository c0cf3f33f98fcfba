"""One ConfigMap followed on the real kube-apiserver: made, changed, deleted, made again, and the others left alone."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Mapping

from kproxy.config.config import ClientSettings
from kproxy.lab.controlplane import KPROXY, ControlPlane
from kproxy.watch.client import connect
from kproxy.watch.configmap import follow_config_map
from tests.support.control_plane import Kubectl


def test_a_config_map_is_followed(control_plane: ControlPlane, kubectl: Kubectl, fresh_namespace: str) -> None:
    def put(name: str, text: str) -> None:
        data = {"metadata": {"name": name, "namespace": fresh_namespace}, "data": {"Corefile": text}}
        kubectl.succeed("apply", "-f", "-", stdin=json.dumps({"apiVersion": "v1", "kind": "ConfigMap", **data}))

    may_read = ["--resource=configmaps", "--verb=list,watch", "--resource-name=names"]
    kubectl.succeed("create", "role", "reader", "-n", fresh_namespace, *may_read)
    kubectl.succeed(
        "create", "rolebinding", "reader", "-n", fresh_namespace, "--role=reader", "--serviceaccount=kube-system:kproxy"
    )

    async def follow() -> list[str | None]:
        told: asyncio.Queue[str | None] = asyncio.Queue()
        heard: list[str | None] = []

        async def tell(data: Mapping[str, str] | None) -> None:
            await told.put(data["Corefile"] if data is not None else None)

        async def hear() -> None:
            assert not task.done(), task.exception()
            heard.append(await asyncio.wait_for(told.get(), 20))

        settings = ClientSettings(kubeconfig=str(control_plane.kubeconfig_of(KPROXY)))
        async with connect(settings) as api:
            work = follow_config_map(
                api, fresh_namespace, "names", tell, sleep=lambda _: asyncio.sleep(0.1), random=random.random
            )
            task = asyncio.ensure_future(work)
            try:
                await hear()
                for step in (
                    lambda: put("names", "one"),
                    lambda: (put("other", "nothing"), put("names", "two")),
                    lambda: kubectl.succeed("delete", "configmap", "names", "-n", fresh_namespace),
                    lambda: put("names", "three"),
                ):
                    await asyncio.to_thread(step)
                    await hear()
            finally:
                task.cancel()
        return heard

    assert asyncio.run(follow()) == [None, "one", "two", None, "three"]
