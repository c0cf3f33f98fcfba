"""kproxy as service proxy and DNS of a whole kind cluster, by the steps of deploy/README.md. Needs a container runtime and kind.

Pods run kproxy's own image with Python's web server, so nothing has to be pulled. The cluster is made for the run and deleted after it.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CLUSTER = "kproxy-test"
Kubectl = Callable[..., str]


def run(*command: str, stdin: str | None = None, timeout_s: float = 600) -> str:
    """Runs a command; its standard output, or a failure with everything it said."""
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=timeout_s, cwd=ROOT)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def kubectl(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kubectl]:
    """kubectl against a cluster whose proxy and DNS are kproxy."""
    kubeconfig = str(tmp_path_factory.mktemp("kind") / "kubeconfig")

    def call(*arguments: str, stdin: str | None = None) -> str:
        return run("kubectl", f"--kubeconfig={kubeconfig}", *arguments, stdin=stdin)

    run("deploy/image/build", "--tag", "kproxy:dev")
    run(
        "kind",
        "create",
        "cluster",
        "--name",
        CLUSTER,
        "--config",
        "deploy/kind/cluster.yaml",
        "--kubeconfig",
        kubeconfig,
    )
    try:
        run("kind", "load", "docker-image", "kproxy:dev", "--name", CLUSTER)
        manifest = (ROOT / "deploy/manifests/kproxy.yaml").read_text()
        call("apply", "-f", "-", stdin=manifest.replace("kproxy-control-plane", f"{CLUSTER}-control-plane"))
        call("-n", "kube-system", "rollout", "status", "daemonset/kproxy", "--timeout=180s")
        call("wait", "--for=condition=Ready", "nodes", "--all", "--timeout=180s")
        server = ["--image=kproxy:dev", "--", "python3", "-m", "http.server", "8080", "--directory", "/opt"]
        call("create", "deployment", "web", "--replicas=3", *server)
        call("expose", "deployment", "web", "--port=80", "--target-port=8080", "--type=NodePort")
        call("rollout", "status", "deployment/web", "--timeout=120s")
        yield call
    finally:
        run("kind", "delete", "cluster", "--name", CLUSTER)


def fetch(kubectl: Kubectl, pod: str, url: str) -> str:
    """The status that a pod gets for a URL."""
    program = f"import urllib.request as r; print(r.urlopen({url!r}, timeout=5).status)"
    return kubectl("exec", pod, "--", "python3", "-c", program).strip()


def pods(kubectl: Kubectl) -> list[str]:
    """The names of the web pods."""
    return kubectl("get", "pods", "-l", "app=web", "-o", "jsonpath={.items[*].metadata.name}").split()


@pytest.mark.parametrize("name", ["web", "web.default", "web.default.svc", "web.default.svc.cluster.local"])
def test_a_service_is_found_by_each_form_of_its_name_from_every_pod(kubectl: Kubectl, name: str) -> None:
    assert {fetch(kubectl, pod, f"http://{name}/") for pod in pods(kubectl)} == {"200"}


def test_the_node_port_answers_on_every_node(kubectl: Kubectl) -> None:
    port = kubectl("get", "service", "web", "-o", "jsonpath={.spec.ports[0].nodePort}")
    addresses = kubectl(
        "get", "nodes", "-o", "jsonpath={.items[*].status.addresses[?(@.type=='InternalIP')].address}"
    ).split()
    assert len(addresses) == 3
    for address in addresses:
        run(
            "docker",
            "exec",
            f"{CLUSTER}-control-plane",
            "curl",
            "-sf",
            "-o",
            "/dev/null",
            "-m",
            "5",
            f"http://{address}:{port}/",
        )


def test_an_update_of_the_daemonset_loses_no_connection(kubectl: Kubectl) -> None:
    pod = pods(kubectl)[0]
    kubectl("-n", "kube-system", "rollout", "restart", "daemonset/kproxy")
    deadline = time.monotonic() + 45
    while time.monotonic() < deadline:
        assert fetch(kubectl, pod, "http://web/") == "200"
    kubectl("-n", "kube-system", "rollout", "status", "daemonset/kproxy", "--timeout=180s")
