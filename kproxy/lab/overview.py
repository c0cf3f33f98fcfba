"""What `lab status` tells about the cluster inside: nodes, pods, Services, as the API has them now."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from kproxy.errors import SourceError
from kproxy.lab.client import ApiClient

Raw = dict[str, Any]
_LIMIT_S = 3.0


def look(kubeconfig: Path) -> Raw:
    """Asks the API from outside; {"problem": why} when it does not answer."""

    async def ask() -> Raw:
        async with asyncio.timeout(_LIMIT_S), ApiClient.from_kubeconfig(kubeconfig) as api:
            nodes, pods, services = [
                (await api.get(f"/api/v1/{kind}"))["items"] for kind in ("nodes", "pods", "services")
            ]
        return {
            "nodes": [_node(node, pods) for node in nodes],
            "pods": len(pods),
            "pods_ready": sum(_is_true(pod, "Ready") for pod in pods),
            "services": len(services),
        }

    try:
        return asyncio.run(ask())
    except (SourceError, TimeoutError, OSError) as error:
        return {"problem": str(error) or "the API server does not answer"}


def _node(node: Raw, pods: list[Raw]) -> Raw:
    name = node["metadata"]["name"]
    addresses = [a["address"] for a in node["status"].get("addresses") or () if a["type"] == "InternalIP"]
    return {
        "name": name,
        "addresses": addresses,
        "pod_cidrs": node["spec"].get("podCIDRs") or [],
        "ready": _is_true(node, "Ready"),
        "pods": sum(pod["spec"].get("nodeName") == name for pod in pods),
    }


def _is_true(obj: Raw, condition: str) -> bool:
    return any(c["type"] == condition and c["status"] == "True" for c in obj.get("status", {}).get("conditions") or ())


def as_text(seen: Raw) -> list[str]:
    """The same for people."""
    if "problem" in seen:
        return [f"  the API does not tell: {seen['problem']}"]
    rows = [
        f"  {node['name']:16} {'ready' if node['ready'] else 'not ready'}, {', '.join(node['addresses'])}, "
        f"pods {', '.join(node['pod_cidrs'])}, {node['pods']} of them"
        for node in seen["nodes"]
    ]
    return [*rows, f"  {seen['pods']} pods ({seen['pods_ready']} ready), {seen['services']} Services"]
