"""`python -m kproxy.lab.realapi`: the real control plane as the lab's API, with the same command line as `kproxy.lab.api`.

In: an address of the lab, the door's descriptor, the state directory. Out: etcd, kube-apiserver, kube-controller-manager and
kube-scheduler (`controlplane`), the relay from the door, both kubeconfigs in the state directory, what kproxy's account may read, and
the line `ready`.
"""

from __future__ import annotations

import asyncio
import shutil
import signal
import socket
import sys
from pathlib import Path
from typing import Any

import click
import yaml

from kproxy.errors import KproxyError
from kproxy.lab import statefile
from kproxy.lab.client import ApiClient, ApiError
from kproxy.lab.controlplane import ADMIN, KPROXY, ControlPlane, ControlPlaneSettings
from kproxy.lab.relay import relay

Raw = dict[str, Any]
# The rules of the ClusterRole in deploy/manifests/kproxy.yaml, word for word (a unit test compares them): what runs here runs there.
RULES = [
    {"apiGroups": [""], "resources": ["services", "namespaces", "pods"], "verbs": ["list", "watch"]},
    {"apiGroups": [""], "resources": ["nodes"], "verbs": ["get", "list", "watch"]},
    {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["list", "watch"]},
    {"apiGroups": ["", "events.k8s.io"], "resources": ["events"], "verbs": ["create", "patch"]},
]
_RBAC = "rbac.authorization.k8s.io"


async def _grant(api: ApiClient) -> None:
    role: Raw = {"apiVersion": f"{_RBAC}/v1", "kind": "ClusterRole", "metadata": {"name": "kproxy"}, "rules": RULES}
    binding: Raw = {
        "apiVersion": f"{_RBAC}/v1",
        "kind": "ClusterRoleBinding",
        "metadata": {"name": "kproxy"},
        "roleRef": {"apiGroup": _RBAC, "kind": "ClusterRole", "name": "kproxy"},
        "subjects": [{"kind": "ServiceAccount", "name": "kproxy", "namespace": "kube-system"}],
    }
    for plural, obj in (("clusterroles", role), ("clusterrolebindings", binding)):
        try:
            await api.request("POST", f"/apis/{_RBAC}/v1/{plural}", obj)
        except ApiError as error:
            if error.reason != "AlreadyExists":
                raise


def _write_kubeconfigs(plane: ControlPlane, directory: Path, door_port: int) -> None:
    """For programs inside, for people outside, and for kproxy with its own small rights."""
    inside = plane.kubeconfig_of(ADMIN).read_text()
    statefile.write_whole(directory / "inside.config", inside)
    statefile.write_whole(directory / "kproxy.config", plane.kubeconfig_of(KPROXY).read_text())
    outside = yaml.safe_load(inside)
    outside["clusters"][0]["cluster"]["server"] = f"https://127.0.0.1:{door_port}"
    statefile.write_whole(directory / "kubeconfig", yaml.safe_dump(outside, sort_keys=False))


async def run(listen: str, door: socket.socket | None, service_cidr: str, directory: Path) -> None:
    """The control plane until SIGTERM or until one of its programs ends, which is an error."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    host, _, port = listen.rpartition(":")
    data = directory / "controlplane"
    shutil.rmtree(data, ignore_errors=True)
    settings = ControlPlaneSettings(
        data_dir=data, bind_address=host, advertise_address=host, secure_port=int(port), service_cidr=service_cidr
    )
    async with await ControlPlane.start(settings) as plane:
        _write_kubeconfigs(plane, directory, door.getsockname()[1] if door is not None else int(port))
        async with ApiClient.from_kubeconfig(plane.kubeconfig) as api:
            await _grant(api)
        relaying = await relay(door, host, int(port)) if door is not None else None
        print("ready", flush=True)
        failing = asyncio.ensure_future(plane.failure())
        stopping = asyncio.ensure_future(stop.wait())
        await asyncio.wait((failing, stopping), return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if failing.done():
            raise KproxyError(failing.result())
        failing.cancel()
        if relaying is not None:
            relaying.close()


@click.command()
@click.option("--listen", required=True, metavar="HOST:PORT", help="Address of the API server.")
@click.option("--listen-fd", type=int, default=-1, metavar="N", help="Inherited listening socket, relayed to it.")
@click.option("--service-cidr", default="10.96.0.0/16", show_default=True)
@click.option("--directory", type=click.Path(path_type=Path), required=True, help="State directory of the lab.")
def main(listen: str, listen_fd: int, service_cidr: str, directory: Path) -> None:
    """A real Kubernetes control plane for the lab."""
    door = socket.socket(fileno=listen_fd) if listen_fd >= 0 else None
    try:
        asyncio.run(run(listen, door, service_cidr, directory))
    except KproxyError as error:
        click.echo(f"kproxy lab: {error}", err=True)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
