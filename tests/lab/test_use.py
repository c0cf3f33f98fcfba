"""What one does with a lab: enter its places, apply manifests, look at it, break things in it."""

from __future__ import annotations

import json
import os
import signal
import time
import urllib.request
from pathlib import Path

import pytest
import yaml

from tests.support.lab import EXAMPLES, LabUnderTest, members

WEB = """
apiVersion: v1
kind: Service
metadata: {name: NAME-svc}
spec: {selector: {app: NAME}, ports: [{port: 80}]}
---
apiVersion: v1
kind: Pod
metadata: {name: NAME, labels: {app: NAME}, annotations: {ANNOTATIONS}}
spec:
  nodeName: node-2
  containers: [{name: c, image: nginx, EXTRA}]
"""


def web(name: str, *, extra: str = "ports: [{containerPort: 80}]", annotations: str = "") -> str:
    return WEB.replace("NAME", name).replace("EXTRA", extra).replace("ANNOTATIONS", annotations)


@pytest.mark.parametrize(
    ("place", "address"),
    [
        ("node-1", "192.168.200.21"),
        ("node-3", "192.168.200.23"),
        ("client", "192.168.200.10"),
        ("outside", "203.0.113.10"),
    ],
)
def test_exec_enters_the_network_of_a_place(lab: LabUnderTest, place: str, address: str) -> None:
    assert address in lab.at(place, "ip", "-4", "addr")
    assert lab.at(place, "hostname").strip() == place


def test_exec_passes_input_output_and_exit_code(lab: LabUnderTest) -> None:
    done = lab.run("exec", "node-1", "--", "sh", "-c", "cat; echo oops >&2; exit 7", stdin="hello")
    assert (done.returncode, done.stdout, done.stderr) == (7, "hello", "oops\n")


def test_exec_names_what_does_not_exist(lab: LabUnderTest) -> None:
    done = lab.run("exec", "node-9", "--", "true")
    assert done.returncode == 1
    assert "node-9" in done.stderr
    assert "client" in done.stderr  # what there is instead
    assert "no such program" in lab.run("exec", "node-1", "--", "no-such-program").stderr


def test_the_client_outside_knows_no_way_to_pods_and_services(lab: LabUnderTest) -> None:
    routes = lab.at("client", "ip", "route")
    assert "10.244" not in routes
    assert "10.96" not in routes
    assert "default" not in routes


def test_the_api_is_reached_from_outside_by_its_one_door(lab: LabUnderTest) -> None:
    config = yaml.safe_load(lab.ok("kubeconfig"))
    server = config["clusters"][0]["cluster"]["server"]
    assert server.startswith(f"http://127.0.0.1:{lab.status()['port']}")
    with urllib.request.urlopen(f"{server}/readyz", timeout=5) as reply:
        assert reply.read() == b"ok"
    path = lab.ok("kubeconfig", "--path").strip()
    assert yaml.safe_load(Path(path).read_text()) == config


def test_status_tells_nodes_and_programs(lab: LabUnderTest) -> None:
    status = lab.status()
    assert status["ready"]
    assert {program["name"] for program in status["programs"]} == {
        "api",
        "agent",
        "kproxy-node-1",
        "kproxy-node-2",
        "kproxy-node-3",
    }
    nodes = {node["name"]: (node["addresses"], node["pod_cidrs"], node["ready"]) for node in status["cluster"]["nodes"]}
    assert nodes["node-2"] == (["192.168.200.22", "fd00:200::22"], ["10.244.1.0/24", "fd00:10:244:1::/64"], True)
    assert "node-2" in lab.ok("status")


def test_apply_creates_then_configures_and_a_pod_answers(lab: LabUnderTest) -> None:
    assert "service/first-svc in default created" in lab.ok("apply", "-f", "-", stdin=web("first"))
    assert "service/first-svc in default configured" in lab.ok("apply", "-f", "-", stdin=web("first"))
    lab.until("Welcome to nginx!", "first", "curl", "-s", "http://127.0.0.1/")
    pod = lab.at("first", "cat", "/etc/resolv.conf")
    assert pod.startswith("nameserver 10.96.0.10\nsearch default.svc.cluster.local ")
    lab.until("first", "first", "curl", "-s", "-m", "2", "http://first-svc/hostname")


def test_apply_names_file_line_and_field(lab: LabUnderTest, tmp_path: Path) -> None:
    broken = tmp_path / "broken.yaml"
    broken.write_text(
        "apiVersion: v1\nkind: Service\nmetadata: {name: x}\n---\napiVersion: v1\nkind: Service\nmetadata: {}\n"
    )
    done = lab.run("apply", "-f", str(broken))
    assert done.returncode == 2
    assert f"{broken}:7: metadata.name" in done.stderr
    broken.write_text("apiVersion: v1\nkind: Service\nmetadata: {name: x}\nspec: {ports: [{port: 99999}]}\n")
    done = lab.run("apply", "-f", str(broken))
    assert done.returncode == 2
    assert f"{broken}:1" in done.stderr
    assert "spec.ports[0].port" in done.stderr


def test_a_pod_that_is_not_ready_is_no_endpoint(lab: LabUnderTest) -> None:
    text = web("shy", annotations='kproxy.lab/ready: "false"')
    lab.ok("apply", "-f", "-", stdin=text)
    lab.until("shy", "shy", "curl", "-s", "http://127.0.0.1/hostname")
    assert lab.run("exec", "shy", "--", "curl", "-s", "-m", "2", "http://shy-svc/hostname").returncode == 7
    lab.ok("apply", "-f", "-", stdin=text.replace('"false"', '"true"'))
    lab.until("shy", "shy", "curl", "-s", "-m", "2", "http://shy-svc/hostname")


def test_a_readiness_probe_is_made_from_the_node(lab: LabUnderTest) -> None:
    probe = "ports: [{containerPort: 80}], readinessProbe: {httpGet: {path: /, port: PORT}, periodSeconds: 1}"
    lab.ok(
        "apply",
        "-f",
        "-",
        stdin=web("well", extra=probe.replace("PORT", "80")) + "---\n" + web("ill", extra=probe.replace("PORT", "81")),
    )
    lab.until("well", "well", "curl", "-s", "-m", "2", "http://well-svc/hostname")
    assert lab.run("exec", "well", "--", "curl", "-s", "-m", "2", "http://ill-svc/hostname").returncode == 7


def test_a_pod_sees_services_in_its_environment(lab: LabUnderTest) -> None:
    lab.ok("apply", "-f", str(EXAMPLES / "s13-environment.yaml"))
    lab.until("MYAPP_SVC_ENV_SERVICE_PORT=8000", "myapp-env", "env")
    assert "KUBERNETES_SERVICE_HOST=10.96.0.1\n" in lab.at("myapp-env", "env")


def test_outside_names_come_from_the_outside_resolver(lab: LabUnderTest) -> None:
    assert "203.0.113.10" in lab.at("node-1", "getent", "ahostsv4", "raw.githubusercontent.com")
    assert lab.at("client", "curl", "-s", "-H", "Host: raw.githubusercontent.com", "http://203.0.113.10/") == "42\n"


def test_programs_that_are_killed_start_again_and_pods_keep_their_addresses(lab: LabUnderTest) -> None:
    lab.ok("apply", "-f", "-", stdin=web("lasting"))
    lab.until("lasting", "lasting", "curl", "-s", "http://127.0.0.1/hostname")
    address = lab.at("lasting", "hostname", "-I").split()[0]
    by_name = {Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[2]: pid for pid in members(lab.status()["pid"])}
    os.kill(by_name[b"kproxy.lab.agent"], signal.SIGKILL)
    lab.until("lasting", "node-3", "curl", "-s", "-m", "1", f"http://{address}/hostname")
    assert [p["restarts"] for p in lab.status()["programs"] if p["name"] == "agent"] == [1]


def test_logs_and_events_can_be_read(lab: LabUnderTest) -> None:
    assert "ynced" in lab.ok("logs", "node-2")
    events = [json.loads(line)["event"] for line in lab.ok("logs", "events").splitlines()]
    assert events[:2] == ["network", "api"]
    assert lab.run("logs", "../lab.json").returncode == 1


def test_a_service_of_both_families_answers_over_both(lab: LabUnderTest) -> None:
    """IPv6 is there for who asks: cluster IP from a pod and from a node, node port from outside, AAAA beside A."""
    spec = "ipFamilyPolicy: RequireDualStack, type: NodePort"
    port = "{port: 80, targetPort: 80, nodePort: 30166}"
    text = web("both").replace("ports: [{port: 80}]", f"ports: [{port}], {spec}", 1)
    lab.ok("apply", "-f", "-", stdin=text)
    lab.until("both", "both", "curl", "-s", "-4", "-m", "2", "http://both-svc/hostname")
    lab.until("both", "both", "curl", "-s", "-6", "-m", "2", "http://both-svc/hostname")
    address = lab.at("both", "getent", "ahostsv6", "both-svc").split()[0]
    assert address.startswith("fd00:10:96::")
    assert lab.at("node-3", "curl", "-s", "-m", "2", f"http://[{address}]/hostname") == "both"
    assert lab.at("client", "curl", "-s", "-m", "2", "http://[fd00:200::21]:30166/hostname") == "both"


def test_an_embedded_api_that_died_comes_back_empty_and_works(lab: LabUnderTest) -> None:
    """The last test of this lab: everything in it is gone afterwards, but for what every lab has."""
    lab.ok("apply", "-f", "-", stdin=web("before"))
    by_name = {Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[2]: pid for pid in members(lab.status()["pid"])}
    os.kill(by_name[b"kproxy.lab.api"], signal.SIGKILL)
    until = time.monotonic() + 20
    while lab.status()["cluster"].get("pods_ready") != 3:
        assert time.monotonic() < until, lab.status()
        time.sleep(0.2)
    lab.ok("apply", "-f", "-", stdin=web("after"))
    lab.until("after", "after", "curl", "-s", "-m", "2", "http://after-svc/hostname", limit_s=20)
    assert lab.run("exec", "before", "--", "true").returncode == 1
