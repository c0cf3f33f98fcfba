"""kubectl, the real one, against the lab's embedded API server, and the same script against the real kube-apiserver.

Two servers that disagree mean a fault in ours: there are no deliberate differences here but the Go structures that the real server prints
into a few messages (`lines` of a step). The embedded server listens on loopback; its nodes are registered by hand or hollow.
"""

from __future__ import annotations

import json
import os
import select
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from kproxy.lab.controlplane import find_program
from tests.support.control_plane import Kubectl
from tests.support.kubectl_script import run_script
from tests.support.kubectl_steps import SECTIONS

READY_S = 20


@contextmanager
def serving(*flags: str) -> Iterator[str]:
    """An embedded server of its own while the block runs; yields its URL. It must end by itself on SIGTERM."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
        command = [sys.executable, "-m", "kproxy.lab.api", "--listen-fd", str(sock.fileno()), *flags]
        server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, pass_fds=(sock.fileno(),))
    assert server.stdout is not None
    try:
        assert select.select([server.stdout], [], [], READY_S)[0], "the server did not say ready"
        assert server.stdout.readline() == "ready\n"
        yield f"http://127.0.0.1:{port}"
        server.send_signal(signal.SIGTERM)
        assert server.wait(timeout=10) == 0
    finally:
        if server.poll() is None:
            server.kill()
        server.wait()
        server.stdout.close()


def program() -> str:
    """kubectl: built beside the peers, else the machine's."""
    found = find_program("kubectl", os.environ)
    assert found is not None
    return str(found)


class Caller:
    """kubectl bound to one server, without anybody's kubeconfig."""

    def __init__(self, url: str, folder: Path) -> None:
        self.command = [program(), "--kubeconfig=/dev/null", "--server", url]
        self._folder = folder

    def __call__(self, *arguments: str, stdin: str = "") -> str:
        """Run kubectl; its standard output. Fails the test when kubectl fails."""
        done = subprocess.run(
            [*self.command, *arguments], input=stdin, capture_output=True, text=True, timeout=60, cwd=self._folder
        )
        assert done.returncode == 0, f"kubectl {' '.join(arguments)}: {done.stderr}{done.stdout}"
        return done.stdout


@pytest.fixture(scope="module")
def hollow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Caller]:
    """kubectl at a server with three hollow nodes and the lab's pool of load-balancer addresses."""
    with serving("--hollow-nodes", "3", "--lb-pool", "192.168.200.240-192.168.200.250") as url:
        yield Caller(url, tmp_path_factory.mktemp("kubectl"))


@pytest.mark.control_plane
@pytest.mark.parametrize("section", SECTIONS)
def test_both_servers_answer_the_script_alike(
    section: str, kubectl: Kubectl, fresh_namespace: str, tmp_path: Path
) -> None:
    steps = SECTIONS[section]
    real_command = [str(kubectl.program), f"--kubeconfig={kubectl.plane.kubeconfig}"]
    with serving() as url, ThreadPoolExecutor() as pool:
        ours = Caller(url, tmp_path)
        ours("create", "namespace", fresh_namespace)
        there = pool.submit(run_script, real_command, steps, tmp_path, fresh_namespace)
        embedded = run_script(ours.command, steps, tmp_path, fresh_namespace)
        real = there.result()
    if section == "endpoints":
        kubectl.succeed("delete", "node", "node-1", "--wait=false")
    different = [step.name for step in steps if step.compared and real[step.name] != embedded[step.name]]
    report = "\n".join(f"{name}\n  real: {real[name]}\n  ours: {embedded[name]}" for name in different)
    assert not different, report


def test_rollout_to_the_next_image_and_back(hollow: Caller) -> None:
    hollow("create", "deployment", "roll", "--image=nginx:1", "--replicas=4")
    assert "successfully rolled out" in hollow("rollout", "status", "deployment/roll", "--timeout=20s")
    hollow("set", "image", "deployment/roll", "nginx=nginx:2")
    assert "successfully rolled out" in hollow("rollout", "status", "deployment/roll", "--timeout=20s")
    images = hollow("get", "pods", "-l", "app=roll", "-o", "jsonpath={.items[*].spec.containers[0].image}")
    assert images.split() == ["nginx:2"] * 4
    hollow("rollout", "undo", "deployment/roll")
    assert "successfully rolled out" in hollow("rollout", "status", "deployment/roll", "--timeout=20s")
    assert "3" in hollow("rollout", "history", "deployment/roll")
    nodes = hollow("get", "pods", "-l", "app=roll", "-o", "jsonpath={.items[*].spec.nodeName}").split()
    assert sorted(set(nodes)) == ["node-1", "node-2", "node-3"]
    hollow("delete", "deployment", "roll")
    hollow("wait", "--for=delete", "pods", "-l", "app=roll", "--timeout=20s")


def test_the_notes_of_the_first_seed(hollow: Caller) -> None:
    """`kubectl create -f`, a ReplicaSet behind a headless Service, and the ingress controller's Service edited as in the notes."""
    template = {"metadata": {"labels": {"app": "rs"}}, "spec": {"containers": [{"name": "c", "image": "nginx"}]}}
    spec = {"replicas": 3, "selector": {"matchLabels": {"app": "rs"}}, "template": template}
    replica_set = {
        "apiVersion": "apps/v1",
        "kind": "ReplicaSet",
        "metadata": {"name": "myapp-rs-headless"},
        "spec": spec,
    }
    assert "created" in hollow("create", "-f", "-", stdin=json.dumps(replica_set))
    ports = [{"port": 80, "targetPort": 8080}]
    service = {"clusterIP": "None", "selector": {"app": "rs"}, "ports": ports}
    headless = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "myapp-svc-headless"}, "spec": service}
    assert "created" in hollow("create", "-f", "-", stdin=json.dumps(headless))
    lines = hollow("get", "services", "myapp-svc-headless").splitlines()
    assert lines[0].split() == ["NAME", "TYPE", "CLUSTER-IP", "EXTERNAL-IP", "PORT(S)", "AGE"]
    assert lines[1].split()[:5] == ["myapp-svc-headless", "ClusterIP", "None", "<none>", "80/TCP"]
    hollow("wait", "--for=jsonpath={.status.readyReplicas}=3", "replicaset/myapp-rs-headless", "--timeout=20s")
    row = hollow("get", "replicaset", "myapp-rs-headless").splitlines()[1].split()
    assert row[:4] == ["myapp-rs-headless", "3", "3", "3"]
    hollow("wait", "--for=jsonpath={.subsets[0].addresses[2].ip}", "endpoints/myapp-svc-headless", "--timeout=20s")
    endpoints = hollow("get", "endpoints", "myapp-svc-headless").splitlines()[1].split()[1]
    assert [entry.split(":")[1] for entry in endpoints.split(",")] == ["8080"] * 3

    hollow("create", "namespace", "ingress-nginx")
    ports = [{"name": "http", "port": 80, "nodePort": 32653}, {"name": "https", "port": 443, "nodePort": 31820}]
    controller = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "ingress-nginx-controller", "namespace": "ingress-nginx"},
        "spec": {"type": "NodePort", "ports": ports},
    }
    hollow("create", "-f", "-", stdin=json.dumps(controller))
    patch = {"spec": {"externalIPs": ["192.168.200.21", "192.168.200.22", "192.168.200.23"]}}
    hollow("patch", "services", "-n", "ingress-nginx", "ingress-nginx-controller", "-p", json.dumps(patch))
    row = hollow("get", "services", "-n", "ingress-nginx").splitlines()[1].split()
    assert row[1] == "NodePort"
    assert row[3:5] == ["192.168.200.21,192.168.200.22,192.168.200.23", "80:32653/TCP,443:31820/TCP"]


def test_the_notes_on_connecting_applications(hollow: Caller) -> None:
    """`cat <<EOF | kubectl apply -f -`, pods by label with their addresses, a Service described, `expose deployment/my-nginx`."""
    container = {"name": "my-nginx", "image": "nginx", "ports": [{"containerPort": 80}]}
    template = {"metadata": {"labels": {"run": "my-nginx"}}, "spec": {"containers": [container]}}
    spec = {"replicas": 2, "selector": {"matchLabels": {"run": "my-nginx"}}, "template": template}
    deployment = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "my-nginx"}, "spec": spec}
    assert hollow("apply", "-f", "-", stdin=json.dumps(deployment)) == "deployment.apps/my-nginx created\n"
    hollow("rollout", "status", "deployment/my-nginx", "--timeout=20s")
    lines = hollow("get", "pods", "-l", "run=my-nginx", "-o", "wide").splitlines()
    assert lines[0].split()[:7] == ["NAME", "READY", "STATUS", "RESTARTS", "AGE", "IP", "NODE"]
    assert hollow("get", "po", "-l", "run=my-nginx", "-o", "yaml").count("podIP: ") == 2
    assert hollow("expose", "deployment/my-nginx") == "service/my-nginx exposed\n"
    addresses = sorted(line.split()[5] + ":80" for line in lines[1:])
    hollow("wait", "--for=jsonpath={.subsets[0].addresses[1].ip}", "endpoints/my-nginx", "--timeout=20s")
    described = hollow("describe", "svc", "my-nginx")
    facts = dict(line.split(":", 1) for line in described.splitlines() if ":" in line)
    assert facts["Selector"].strip() == "run=my-nginx"
    assert facts["Type"].strip() == "ClusterIP"
    assert facts["Port"].split() == ["<unset>", "80/TCP"]
    assert sorted(facts["Endpoints"].strip().split(",")) == addresses
    assert "my-nginx" in hollow("get", "svc", "-A")


def test_the_notes_on_node_js_services(hollow: Caller) -> None:
    """Replication controllers, a Service on another port, several ports, a node port, and hand-made Endpoints described."""

    def controller(name: str, *ports: int) -> dict[str, object]:
        container = {
            "name": "node-js",
            "image": "jonbaier/node-express-info",
            "ports": [{"containerPort": p} for p in ports],
        }
        template = {"metadata": {"labels": {"name": name}}, "spec": {"containers": [container]}}
        spec = {"replicas": 3, "selector": {"name": name}, "template": template}
        return {"apiVersion": "v1", "kind": "ReplicationController", "metadata": {"name": name}, "spec": spec}

    def service(name: str, **spec: object) -> dict[str, object]:
        return {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": name, "labels": {"name": name}},
            "spec": spec,
        }

    multi = [{"name": "http", "port": 80}, {"name": "fake-admin-http", "port": 8888}]
    custom = [{"port": 90, "targetPort": 80}]
    items = [
        controller("node-js-customport", 80),
        controller("node-js-multi", 80, 8888),
        service("node-js-customport", type="LoadBalancer", ports=custom, selector={"name": "node-js-customport"}),
        service("node-js-multi", ports=multi, selector={"name": "node-js-multi"}),
        service(
            "node-js-nodeport", type="NodePort", ports=[{"port": 80, "nodePort": 30001}], selector={"name": "node-js"}
        ),
        service("node-js-none", clusterIP="None", ports=[{"port": 80}], selector={"name": "node-js-multi"}),
        service("custom-service", type="LoadBalancer", ports=[{"name": "http", "port": 80}]),
    ]
    for item in items:
        assert "created" in hollow("create", "-f", "-", stdin=json.dumps(item))
    subsets = [{"addresses": [{"ip": "35.202.105.209"}], "ports": [{"name": "http", "port": 80}]}]
    endpoints = {"apiVersion": "v1", "kind": "Endpoints", "metadata": {"name": "custom-service"}, "subsets": subsets}
    hollow("create", "-f", "-", stdin=json.dumps(endpoints))
    hollow("wait", "--for=jsonpath={.status.readyReplicas}=3", "rc/node-js-multi", "--timeout=20s")
    rows = {line.split()[0]: line.split() for line in hollow("get", "services").splitlines()}
    assert rows["node-js-customport"][4].startswith("90:")
    assert rows["node-js-multi"][4] == "80/TCP,8888/TCP"
    assert rows["node-js-nodeport"][4] == "80:30001/TCP"
    assert rows["node-js-none"][2] == "None"
    assert hollow("get", "services", "-l", "name=node-js-none", "-o", "name") == "service/node-js-none\n"
    path = "--for=jsonpath={.endpoints[0].addresses[0]}=35.202.105.209"
    hollow("wait", path, "endpointslices", "-l", "kubernetes.io/service-name=custom-service", "--timeout=20s")
    assert "35.202.105.209:80" in hollow("describe", "service/custom-service")
    assert "35.202.105.209:80" in hollow("get", "endpoints")
    assert hollow("get", "rc", "--namespace=kube-sysyem") == "", "the notes' own misspelling: nothing is there"
    hollow("delete", "services,rc", "--all", "--wait=false")


def test_edit_writes_what_the_editor_leaves(hollow: Caller, tmp_path: Path) -> None:
    hollow("create", "service", "clusterip", "edited", "--tcp=80")
    editor = tmp_path / "editor"
    editor.write_text("#!/bin/sh\nsed -i 's/  sessionAffinity: None/  sessionAffinity: ClientIP/' \"$1\"\n")
    editor.chmod(0o755)
    command = [*hollow.command, "edit", "service", "edited"]
    done = subprocess.run(
        command, env={**os.environ, "KUBE_EDITOR": str(editor)}, capture_output=True, text=True, timeout=30
    )
    assert done.stdout == "service/edited edited\n", done.stderr
    path = "jsonpath={.spec.sessionAffinityConfig.clientIP.timeoutSeconds}"
    assert hollow("get", "service", "edited", "-o", path) == "10800"


def test_balancer_address_comes_from_the_pool_and_goes_back(hollow: Caller) -> None:
    for name in ("one", "two"):
        hollow("create", "service", "loadbalancer", name, "--tcp=80")
        path = "--for=jsonpath={.status.loadBalancer.ingress[0].ip}"
        hollow("wait", path, f"service/{name}", "--timeout=20s")
    path = "jsonpath={.status.loadBalancer.ingress[0].ip}"
    assert hollow("get", "service", "one", "-o", path) == "192.168.200.240"
    assert hollow("get", "service", "two", "-o", path) == "192.168.200.241"
    hollow("delete", "service", "one")
    hollow("create", "service", "loadbalancer", "three", "--tcp=80")
    hollow("wait", "--for=" + path + "=192.168.200.240", "service/three", "--timeout=20s")


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Caller, Caller]]:
    """kubectl with and without the key to pods, whose commands run right here with NS and POD in their environment; a pod `p` runs."""
    folder = tmp_path_factory.mktemp("door")
    key = folder / "key"
    key.write_text("open-sesame\n")
    flags = ("--hollow-nodes", "1", "--pod-command", "env NS={namespace} POD={pod}", "--pod-key-file", str(key))
    with serving(*flags) as url:
        with_key = Caller(f"{url}/open-sesame", folder)
        with_key("run", "p", "--image=busybox")
        with_key("wait", "--for=condition=Ready", "pod/p", "--timeout=20s")
        yield with_key, Caller(url, folder)


def run(caller: Caller, *arguments: str, stdin: str = "") -> tuple[int, str]:
    """Exit code and both outputs of kubectl."""
    done = subprocess.run([*caller.command, *arguments], input=stdin, capture_output=True, text=True, timeout=60)
    return done.returncode, done.stdout + done.stderr


def test_exec_passes_output_input_and_exit_code(door: tuple[Caller, Caller]) -> None:
    caller = door[0]
    code, said = run(caller, "exec", "p", "--", "sh", "-c", "echo $NS/$POD; echo wrong >&2; exit 3")
    assert code == 3
    assert "default/p\n" in said
    assert "wrong\n" in said
    assert run(caller, "exec", "-i", "p", "--", "cat", stdin="a" * 100_000) == (0, "a" * 100_000)
    assert "container x is not valid for pod p" in run(caller, "exec", "p", "-c", "x", "--", "ls")[1]


def test_exec_needs_the_key(door: tuple[Caller, Caller]) -> None:
    code, said = run(door[1], "exec", "p", "--", "id")
    assert code == 1
    assert "is forbidden" in said
    assert run(door[1], "get", "pod", "p", "-o", "name") == (0, "pod/p\n"), "everything else is open"


def test_run_interactively_and_remove(door: tuple[Caller, Caller]) -> None:
    """`kubectl run NAME -it --rm --image IMAGE COMMAND`, as the notes do; without a terminal, so `-i` only."""
    caller = door[0]
    code, said = run(
        caller, "run", "tool", "--image=x", "-i", "--rm", "--restart=Never", "--", "sh", stdin="echo in $POD\n"
    )
    assert code == 0
    assert "in tool\n" in said
    assert run(caller, "get", "pod", "tool")[0] == 1


def test_a_terminal_is_one(door: tuple[Caller, Caller]) -> None:
    command = shlex.join([*door[0].command, "exec", "-it", "p", "--", "sh", "-c", "test -t 0 && tty && exit 7"])
    done = subprocess.run(
        ["script", "-qec", command, "/dev/null"], stdin=subprocess.DEVNULL, capture_output=True, timeout=60
    )
    assert done.returncode == 7
    assert b"/dev/pts/" in done.stdout


def test_watch_prints_changes_as_rows(hollow: Caller) -> None:
    hollow("create", "configmap", "watched")
    command = [*hollow.command, "get", "configmap", "watched", "--watch", "--no-headers", "--request-timeout=20s"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as watcher:
        try:
            assert watcher.stdout is not None
            assert watcher.stdout.readline().split()[:2] == ["watched", "0"]
            hollow("patch", "configmap", "watched", "--type=merge", "-p", '{"data":{"a":"1"}}')
            assert watcher.stdout.readline().split()[:2] == ["watched", "1"]
        finally:
            watcher.terminate()


def test_namespace_goes_with_all_it_holds(hollow: Caller) -> None:
    hollow("create", "namespace", "short")
    hollow("create", "deployment", "d", "--image=nginx", "--replicas=2", "-n", "short")
    hollow("expose", "deployment", "d", "--port=80", "-n", "short")
    hollow("delete", "namespace", "short", "--timeout=20s")
    assert hollow("get", "pods,services,endpointslices,endpoints", "-n", "short") == ""


def test_api_resources_and_versions(hollow: Caller) -> None:
    names = {line.split()[0] for line in hollow("api-resources", "--no-headers").splitlines()}
    assert {"pods", "services", "endpointslices", "deployments", "ingresses", "leases"} <= names
    assert "Server Version: v1.36.3" in hollow("version")
    assert "apps/v1" in hollow("api-versions").split()


def test_a_thousand_services_load_in_seconds() -> None:
    """Not a benchmark: a bound so wide that only a mistake in the order of growth breaks it."""
    with serving() as url:
        begun = time.monotonic()
        for number in range(1000):
            spec = {"ports": [{"port": 80}], "selector": {"app": f"a{number}"}}
            body = json.dumps({"metadata": {"name": f"s{number}"}, "spec": spec}).encode()
            request = urllib.request.Request(
                f"{url}/api/v1/namespaces/default/services", body, {"Content-Type": "application/json"}
            )
            with urllib.request.urlopen(request, timeout=10) as answer:
                assert answer.status == 201
        assert time.monotonic() - begun < 60
        with urllib.request.urlopen(f"{url}/api/v1/services", timeout=10) as answer:
            assert len(json.load(answer)["items"]) == 1001
