"""Readiness probes of the lab's pods: httpGet and tcpSocket, made from the pod's node as a kubelet would."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

from kproxy.lab.namespaces import inside

Raw = dict[str, Any]


def probe_of(pod: Raw) -> Raw | None:
    """The readiness probe of the first container that has one of a kind known here (exec and grpc are taken as successful)."""
    for container in pod["spec"].get("containers") or ():
        probe = container.get("readinessProbe")
        if probe and ("httpGet" in probe or "tcpSocket" in probe):
            return {**probe, "_ports": {p.get("name"): p["containerPort"] for p in container.get("ports") or ()}}
    return None


async def probe(node: str, address: str, wanted: Raw) -> bool:
    """One attempt, from the network namespace of `node`. False for refusal, silence or a status of 400 and above."""
    action = wanted.get("httpGet") or wanted["tcpSocket"]
    port = action["port"]
    port = wanted["_ports"].get(port, 0) if isinstance(port, str) else port
    try:
        async with asyncio.timeout(float(wanted.get("timeoutSeconds") or 1)):
            return await _attempt(
                node, action.get("host") or address, port, action.get("path") if "httpGet" in wanted else None
            )
    except (OSError, TimeoutError, asyncio.IncompleteReadError, ValueError):
        return False


async def _attempt(node: str, address: str, port: int, path: str | None) -> bool:
    with open(f"/run/netns/{node}", "rb") as netns, inside(netns.fileno()):
        connection = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM)
    connection.setblocking(False)
    try:
        await asyncio.get_running_loop().sock_connect(connection, (address, port))
        if path is None:
            return True
        reader, writer = await asyncio.open_connection(sock=connection)
        writer.write(
            f"GET {path or '/'} HTTP/1.1\r\nHost: {address}\r\nUser-Agent: kube-probe/lab\r\nConnection: close\r\n\r\n".encode()
        )
        status = (await reader.readuntil(b"\r\n")).split()
        writer.close()
        return len(status) > 1 and status[1].isdigit() and 200 <= int(status[1]) < 400
    finally:
        connection.close()
