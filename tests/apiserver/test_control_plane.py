"""The real control plane that other tests stand on: it does the controllers' work, verifies its users, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kproxy.errors import KproxyError, UnsupportedError
from kproxy.lab.controlplane import KPROXY, KUBERNETES_VERSION, ControlPlane, ControlPlaneSettings, find_program
from tests.support.control_plane import ADVERTISED, Kubectl


def until(holds, what: str, limit_s: float = 20) -> None:
    """Waits until `holds()` is true; fails the test with `what` after the limit."""
    deadline = time.monotonic() + limit_s
    while not holds():
        assert time.monotonic() < deadline, f"not after {limit_s:g} s: {what}"
        time.sleep(0.05)


def test_the_server_reports_the_version_that_was_built(kubectl: Kubectl) -> None:
    assert json.loads(kubectl.succeed("get", "--raw", "/version"))["gitVersion"] == KUBERNETES_VERSION


def test_the_service_network_of_kubernetes_itself(kubectl: Kubectl) -> None:
    service = json.loads(kubectl.succeed("get", "service", "kubernetes", "-o", "json"))
    assert service["spec"]["clusterIP"] == "10.96.0.1"
    until(
        lambda: (
            ADVERTISED
            in kubectl("get", "endpointslice", "kubernetes", "-o", "jsonpath={.endpoints[*].addresses}").stdout
        ),
        "the API server's own address is the endpoint of default/kubernetes",
    )


def test_controllers_turn_a_deployment_into_pods_and_an_endpointslice(kubectl: Kubectl, fresh_namespace: str) -> None:
    here = ("--namespace", fresh_namespace)
    kubectl.succeed(*here, "create", "deployment", "web", "--image=nginx", "--replicas=2")
    kubectl.succeed(*here, "expose", "deployment", "web", "--port=80")
    until(
        lambda: len(kubectl.succeed(*here, "get", "pods", "-o", "name").split()) == 2, "two pods made by the ReplicaSet"
    )
    # the pods have no node and no address, so the slice exists and is empty; the agent's part is the lab's test
    until(lambda: kubectl.succeed(*here, "get", "endpointslices", "-o", "name").count("web-") == 1, "one EndpointSlice")


def test_hand_made_endpoints_are_mirrored(kubectl: Kubectl, fresh_namespace: str) -> None:
    objects = {
        "apiVersion": "v1",
        "kind": "List",
        "items": [
            {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "db"}, "spec": {"ports": [{"port": 3306}]}},
            {
                "apiVersion": "v1",
                "kind": "Endpoints",
                "metadata": {"name": "db"},
                "subsets": [{"addresses": [{"ip": "192.168.200.100"}], "ports": [{"port": 3306}]}],
            },
        ],
    }
    kubectl.succeed("--namespace", fresh_namespace, "apply", "-f", "-", stdin=json.dumps(objects))
    get = ("--namespace", fresh_namespace, "get", "endpointslices", "-o", "jsonpath={.items[*].endpoints[*].addresses}")
    until(lambda: "192.168.200.100" in kubectl.succeed(*get), "a mirrored EndpointSlice")


def test_kproxy_has_no_right_that_nobody_granted(kubectl: Kubectl) -> None:
    refused = kubectl("get", "secrets", "--all-namespaces", user=KPROXY)
    assert refused.returncode == 1
    assert 'User "system:serviceaccount:kube-system:kproxy" cannot list resource "secrets"' in refused.stderr


def test_a_wrong_certificate_authority_is_refused(
    control_plane: ControlPlane, kubectl: Kubectl, tmp_path: Path
) -> None:
    text = control_plane.kubeconfig.read_text()
    line = next(line for line in text.splitlines() if "certificate-authority-data" in line)
    without = tmp_path / "kubeconfig"
    without.write_text(text.replace(line + "\n", ""))
    done = subprocess.run(
        [kubectl.program, f"--kubeconfig={without}", "get", "pods"], capture_output=True, text=True, timeout=30
    )
    assert done.returncode != 0
    assert "certificate" in done.stderr


def _running(pids: list[int]) -> list[int]:
    return [pid for pid in pids if Path(f"/proc/{pid}").exists() and " Z " not in Path(f"/proc/{pid}/stat").read_text()]


def test_programs_end_with_their_parent_however_it_ends(tmp_path: Path) -> None:
    program = """
import asyncio, json, sys, time
from pathlib import Path
from kproxy.lab.controlplane import ControlPlane, ControlPlaneSettings
async def main():
    settings = ControlPlaneSettings(data_dir=Path(sys.argv[1]), secure_port=0, controllers=False, scheduler=False)
    plane = await ControlPlane.start(settings)
    print(json.dumps(plane.pids()), flush=True)
    time.sleep(60)
asyncio.run(main())
"""
    parent = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pids = list(json.loads(parent.stdout.readline()).values())
    assert _running(pids) == pids
    parent.send_signal(signal.SIGKILL)
    parent.wait(timeout=10)
    parent.stdout.close()
    until(lambda: not _running(pids), "etcd and kube-apiserver gone with their parent", limit_s=10)


def test_a_program_that_ends_is_named_with_the_end_of_its_log(tmp_path: Path) -> None:
    async def end_one() -> str:
        settings = ControlPlaneSettings(data_dir=tmp_path, secure_port=0, controllers=False, scheduler=False)
        async with await ControlPlane.start(settings) as plane:
            os.kill(plane.pids()["etcd"], signal.SIGKILL)
            async with asyncio.timeout(10):
                return await plane.failure()

    message = asyncio.run(end_one())
    assert message.startswith("etcd ended by itself")
    assert "etcd.log" in message


def test_a_server_that_cannot_start_says_why_and_leaves_no_etcd(tmp_path: Path) -> None:
    async def start() -> None:
        settings = ControlPlaneSettings(
            data_dir=tmp_path, bind_address="127.0.0.1", secure_port=0, service_cidr="10.96.0.0/30"
        )
        await ControlPlane.start(settings)

    with pytest.raises(KproxyError, match="kube-apiserver ended by itself") as failure:
        asyncio.run(start())
    assert "the service cluster IP range must be at least 8 IP addresses" in str(failure.value)
    assert not [p for p in Path("/proc").glob("[0-9]*/cmdline") if str(tmp_path).encode() in _cmdline(p)]


def _cmdline(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:  # gone meanwhile
        return b""


def test_missing_programs_are_named_with_the_remedy(tmp_path: Path) -> None:
    nowhere = {"HOME": str(tmp_path), "PATH": str(tmp_path)}
    assert find_program("etcd", nowhere) is None
    with pytest.raises(
        UnsupportedError, match=r"needs etcd, kube-apiserver, .* Build them once with `tests/peers/build`"
    ):
        asyncio.run(ControlPlane.start(ControlPlaneSettings(data_dir=tmp_path), nowhere))
