"""What kubeadm makes for kube-proxy, word for word, with kproxy in the image: its ConfigMap, its ServiceAccount and rights, its arguments.

tests/support/installers holds what `kubeadm init phase addon kube-proxy --print-manifest` of v1.36.3 says; only the API server's address in
it is the one of this run, as kubeadm would have written it. The process gets the mounts that the DaemonSet gives it, in a mount
namespace of its own; the network namespace is this run's.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import yaml

from kproxy.lab.controlplane import ControlPlane
from tests.support.control_plane import Kubectl

ROOT = Path(__file__).resolve().parents[2]
NODE = "drop-in-node"
# The container: its own /run with the machine's lock, the ServiceAccount's files, the ConfigMap, and a root that nothing is written to.
POD = """\
set -e
mount --make-rprivate /
mount -t tmpfs tmpfs /run
touch /run/xtables.lock
mkdir -p /run/secrets/kubernetes.io /run/kproxy
mount -t tmpfs -o "$3" tmpfs /run/kproxy
if [ "$3" != size=100% ]; then head -c 1000000 /dev/zero >/run/kproxy/full 2>/dev/null || true; fi
cp -r "$1" /run/secrets/kubernetes.io/serviceaccount
mount -t tmpfs tmpfs /var/lib
mkdir /var/lib/kube-proxy
mount --bind "$2" /var/lib/kube-proxy
mount -o remount,bind,ro / 2>/dev/null || { mount --bind / / && mount -o remount,bind,ro /; }
shift 3
exec "$@"
"""


@dataclass(frozen=True, slots=True)
class Pod:
    """A process with the DaemonSet's mounts. `volume` is the ConfigMap's folder, as the kubelet makes it."""

    process: subprocess.Popen[bytes]
    log: Path
    volume: Path

    def said(self) -> str:
        return self.log.read_text()

    def until(self, holds: Callable[[], bool], what: str, limit_s: float = 30) -> None:
        deadline = time.monotonic() + limit_s
        while not holds():
            assert self.process.poll() is None, f"it ended with {self.process.returncode}:\n{self.said()}"
            assert time.monotonic() < deadline, f"not after {limit_s:g} s: {what}\n{self.said()[-3000:]}"
            time.sleep(0.05)


def _page(port: int, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
    except OSError:
        return 0, ""


def _rules() -> str:
    return "".join(
        subprocess.run([f"iptables-{variant}-save"], capture_output=True, text=True, check=True, timeout=30).stdout
        for variant in ("legacy", "nft")
    )


def _swap(volume: Path, data: dict[str, str]) -> None:
    """A new version of a ConfigMap's volume: a new folder, and one rename of the link to it."""
    version = volume / f"..version{time.monotonic_ns()}"
    version.mkdir()
    for name, text in data.items():
        (version / name).write_text(text)
        if not (volume / name).is_symlink():
            (volume / name).symlink_to(f"..data/{name}")
    (volume / "..data_tmp").symlink_to(version.name)
    (volume / "..data_tmp").rename(volume / "..data")


@pytest.fixture(scope="module")
def installed(control_plane: ControlPlane, kubectl: Kubectl) -> Iterator[dict[str, dict[str, Any]]]:
    """kubeadm's objects in the API, by kind, and a Node; after the tests neither the Node nor a chain of this network namespace is left."""
    text = (ROOT / "tests/support/installers/kubeadm.yaml").read_text()
    kubectl.succeed("apply", "-f", "-", stdin=text.replace("https://192.168.200.1:6443", control_plane.server))
    kubectl.succeed(
        "apply", "-f", "-", stdin=yaml.safe_dump({"apiVersion": "v1", "kind": "Node", "metadata": {"name": NODE}})
    )
    address = {"status": {"addresses": [{"type": "InternalIP", "address": "192.168.200.1"}]}}
    kubectl.succeed("patch", "node", NODE, "--subresource=status", "--type=merge", "-p", json.dumps(address))
    found = {}
    for kind in ("ConfigMap", "DaemonSet"):
        found[kind] = json.loads(kubectl.succeed("get", kind, "kube-proxy", "-n", "kube-system", "-o", "json"))
    yield found
    kubectl.succeed("delete", "node", NODE)
    for variant, table, option in product(("legacy", "nft"), ("nat", "filter", "mangle"), ("-F", "-X")):
        # KUBE-FIREWALL is the kubelet's as well, so cleanup leaves it; here is no kubelet
        subprocess.run([f"iptables-{variant}", "-w", "-t", table, option], check=True, timeout=20)


@pytest.fixture
def service(kubectl: Kubectl, fresh_namespace: str) -> str:
    """Namespace and name of a Service with one endpoint."""
    objects: list[dict[str, Any]] = [
        {"apiVersion": "v1", "kind": "Service", "spec": {"ports": [{"port": 80}]}},
        {
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "endpoints": [{"addresses": ["10.244.7.7"]}], "ports": [{"name": "", "port": 8080, "protocol": "TCP"}],
        },
    ]  # fmt: skip
    for item in objects:
        item["metadata"] = {
            "name": "web",
            "namespace": fresh_namespace,
            "labels": {"kubernetes.io/service-name": "web"},
        }
        kubectl.succeed("apply", "-f", "-", stdin=json.dumps(item))
    return f"{fresh_namespace}/web"


Start = Callable[..., Pod]


@pytest.fixture
def start(
    control_plane: ControlPlane, kubectl: Kubectl, installed: dict[str, dict[str, Any]], tmp_path: Path
) -> Iterator[Start]:
    account = tmp_path / "serviceaccount"
    account.mkdir()
    (account / "token").write_text(kubectl.succeed("create", "token", "kube-proxy", "-n", "kube-system"))
    shutil.copy(control_plane.keys.authority, account / "ca.crt")
    volume = tmp_path / "configmap"
    volume.mkdir()
    _swap(volume, installed["ConfigMap"]["data"])
    started: list[subprocess.Popen[bytes]] = []

    def run(*command: str, run_directory: str = "size=100%", config: str = "") -> Pod:
        if config:
            _swap(volume, {**installed["ConfigMap"]["data"], "config.conf": config})
        log = tmp_path / "log"
        environment = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(ROOT),
            "PYTHONDONTWRITEBYTECODE": "1",
            "NODE_NAME": NODE,
        }
        with log.open("wb") as output:
            process = subprocess.Popen(
                ["unshare", "--mount", "sh", "-c", POD, "pod", str(account), str(volume), run_directory, *command],
                stdout=output, stderr=subprocess.STDOUT, env=environment,
            )  # fmt: skip
        started.append(process)
        return Pod(process, log, volume)

    yield run
    for process in started:
        if process.poll() is None:
            process.terminate()
        process.wait(timeout=20)
    subprocess.run([sys.executable, *AS_KUBE_PROXY, "--cleanup"], check=True, timeout=60, capture_output=True, cwd=ROOT)
    assert "KUBE-SVC" not in _rules()


AS_KUBE_PROXY = ("-c", "from kproxy.cli.kube_proxy import main; main()")


def _daemon_sets_arguments(installed: dict[str, dict[str, Any]]) -> list[str]:
    (container,) = installed["DaemonSet"]["spec"]["template"]["spec"]["containers"]
    program, *arguments = container["command"]
    assert program == "/usr/local/bin/kube-proxy"  # the image has it there
    return [argument.replace("$(NODE_NAME)", NODE) for argument in arguments]


def test_kubeadms_daemon_set_runs_kproxy_unchanged(
    installed: dict[str, dict[str, Any]], start: Start, service: str
) -> None:
    pod = start(sys.executable, *AS_KUBE_PROXY, *_daemon_sets_arguments(installed))
    pod.until(lambda: f'"{service} -> 10.244.7.7:8080"' in _rules(), "the rules of the Service")
    pod.until(lambda: _page(10256, "/healthz")[0] == 200, "health")
    pod.until(lambda: _page(10256, "/readyz")[0] == 200, "the end of the first sync")
    assert [_page(10256, path)[0] for path in ("/healthz", "/livez", "/readyz")] == [200, 200, 200]
    assert _page(10249, "/proxyMode") == (200, "iptables")
    configuration = json.loads(_page(10249, "/configz")[1])["kubeproxy.config.k8s.io"]
    assert (configuration["clusterCIDR"], configuration["hostnameOverride"]) == ("10.244.0.0/16", NODE)
    assert "hostname-override=" + NODE in _page(10249, "/flagz")[1]
    assert "orbidden" not in pod.said()
    assert [line for line in pod.said().splitlines() if line.startswith(("E", "kproxy: "))] == []


def test_z11_a_new_version_of_the_config_map_ends_it_and_the_rules_stay(
    installed: dict[str, dict[str, Any]], start: Start, service: str
) -> None:
    pod = start(sys.executable, *AS_KUBE_PROXY, *_daemon_sets_arguments(installed))
    pod.until(lambda: f'"{service} -> 10.244.7.7:8080"' in _rules(), "the rules of the Service")
    data = installed["ConfigMap"]["data"]
    _swap(pod.volume, {**data, "config.conf": data["config.conf"].replace("masqueradeBit: null", "masqueradeBit: 32")})
    pod.until(
        lambda: "The configuration file changed and is wrong: going on with the old" in pod.said(),
        "the refusal is told",
    )
    _swap(pod.volume, {**data, "config.conf": data["config.conf"].replace("masqueradeBit: null", "masqueradeBit: 15")})
    assert pod.process.wait(timeout=30) == 1
    assert "the configuration file /var/lib/kube-proxy/config.conf has changed: starting anew" in pod.said()
    assert f'"{service} -> 10.244.7.7:8080"' in _rules()


def test_kproxy_run_with_kube_proxys_rights_alone_is_a_healthy_proxy(
    installed: dict[str, dict[str, Any]], start: Start, service: str
) -> None:
    """DNS is on there and may not list Namespaces: that is told, and the proxy does not suffer."""
    pod = start(sys.executable, "-m", "kproxy", "run", *_daemon_sets_arguments(installed), "-v=2")
    pod.until(lambda: f'"{service} -> 10.244.7.7:8080"' in _rules(), "the rules of the Service")
    pod.until(
        lambda: "namespaces is forbidden" in pod.said() or "orbidden" in _page(10256, "/statusz")[1],
        "the refusal is told",
    )
    assert [_page(10256, path)[0] for path in ("/healthz", "/livez")] == [200, 200]


def test_fault_18_it_runs_from_a_read_only_root_with_a_full_run_directory(
    installed: dict[str, dict[str, Any]], start: Start, service: str
) -> None:
    pod = start(sys.executable, *AS_KUBE_PROXY, *_daemon_sets_arguments(installed), run_directory="size=4k")
    pod.until(lambda: f'"{service} -> 10.244.7.7:8080"' in _rules(), "the rules of the Service")
    pod.until(lambda: _page(10256, "/healthz")[0] == 200, "health")
    assert pod.process.poll() is None
    assert "started, pid" in pod.said()
    assert "starting again" not in pod.said()


def _sysctl(name: str) -> Path:
    return Path("/proc/sys/net/netfilter") / name


@pytest.fixture
def kernel_as_it_was() -> Iterator[None]:
    """The parameters of connection tracking of this network namespace, put back."""
    paths = [path for path in Path("/proc/sys/net/netfilter").glob("nf_conntrack_*") if path.stat().st_mode & 0o200]
    before = {path: path.read_text() for path in paths if path.name != "nf_conntrack_helper"}
    yield
    for path, value in before.items():
        if path.read_text() != value:
            path.write_text(value)


def _family(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(found for child in children for found in _family(int(child)))]


def test_x09_z15_what_the_file_says_of_the_kernel_is_set_and_rules_follow_it(
    installed: dict[str, dict[str, Any]], start: Start, service: str, kernel_as_it_was: None
) -> None:
    _sysctl("nf_conntrack_tcp_timeout_close_wait").write_text("60")
    text = installed["ConfigMap"]["data"]["config.conf"]
    for old, new in (
        ("maxPerCore: null", "maxPerCore: 0"), ("tcpBeLiberal: false", "tcpBeLiberal: true"),
        ("tcpEstablishedTimeout: null", "tcpEstablishedTimeout: 0s"), ("udpTimeout: 0s", "udpTimeout: 45s"),
        ("oomScoreAdj: null", "oomScoreAdj: 500"),
    ):  # fmt: skip
        assert old in text
        text = text.replace(old, new)
    established = _sysctl("nf_conntrack_tcp_timeout_established").read_text()
    pod = start(sys.executable, *AS_KUBE_PROXY, *_daemon_sets_arguments(installed), config=text)
    pod.until(lambda: f'"{service} -> 10.244.7.7:8080"' in _rules(), "the rules of the Service")
    assert _sysctl("nf_conntrack_tcp_timeout_close_wait").read_text() == "3600\n"
    assert _sysctl("nf_conntrack_tcp_timeout_established").read_text() == established
    assert _sysctl("nf_conntrack_udp_timeout").read_text() == "45\n"
    assert _sysctl("nf_conntrack_tcp_be_liberal").read_text() == "1\n"
    assert "--ctstate INVALID" not in _rules()
    assert "nf_conntrack_max" not in pod.said()
    processes = _family(pod.process.pid)
    assert len(processes) >= 2
    assert {Path(f"/proc/{pid}/oom_score_adj").read_text() for pid in processes} == {"500\n"}
