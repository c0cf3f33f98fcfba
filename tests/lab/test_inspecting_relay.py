"""What a node in mode userspace tells its own command line: open connections, one Service, packets, endpoints that are left out."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.support.lab import LabUnderTest

SERVICE = "10.96.200.1"
HALF = "10.96.200.2"  # a Service with one endpoint that refuses
OBJECTS = f"""
apiVersion: v1
kind: Pod
metadata: {{name: web, labels: {{app: web}}}}
spec: {{nodeName: node-1, containers: [{{name: c, image: "registry.k8s.io/e2e-test-images/agnhost:2.39", args: [netexec]}}]}}
---
apiVersion: v1
kind: Service
metadata: {{name: web}}
spec: {{clusterIP: {SERVICE}, selector: {{app: web}}, ports: [{{name: http, port: 80, targetPort: 8080}}]}}
---
apiVersion: v1
kind: Service
metadata: {{name: half}}
spec: {{clusterIP: {HALF}, ports: [{{name: http, port: 80, targetPort: 8080}}]}}
"""
SLICE = """
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: half-1, labels: {kubernetes.io/service-name: half}}
addressType: IPv4
ports: [{name: http, port: 8080, protocol: TCP}]
endpoints: [{addresses: [ADDRESS], nodeName: node-1}, {addresses: [192.168.200.21], nodeName: node-1}]
"""
LIMIT_S = 30.0


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabUnderTest]:
    made = LabUnderTest(tmp_path_factory.mktemp("lab"))
    try:
        made.ok("up", "--detach", "--mode", "userspace", "--nodes", "1")
        made.ok("apply", "-f", "-", stdin=OBJECTS)
        made.until(
            "200", "node-1", "curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "-m", "2", f"http://{SERVICE}/"
        )
        yield made
    finally:
        made.run("down")


def _json(lab: LabUnderTest, *words: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(lab.at("node-1", "kproxy", *words, "-o", "json"))
    return found


def _flows(lab: LabUnderTest, *words: str) -> list[dict[str, Any]]:
    return [
        json.loads(text) for text in lab.at("node-1", "kproxy", "observe", "--flows", "-o", "json", *words).splitlines()
    ]


def _until(wanted: Callable[[], bool], lab: LabUnderTest) -> None:
    end = time.monotonic() + LIMIT_S
    while not wanted():
        assert time.monotonic() < end, lab.logs()
        time.sleep(0.1)


@contextmanager
def _held(lab: LabUnderTest, place: str, address: str) -> Iterator[None]:
    """A connection from a place of the lab to port 80 of an address, for as long as this lasts."""
    words = f"exec 3<>/dev/tcp/{address}/80; echo held; read -r _"
    with subprocess.Popen(
        lab.argv("exec", place, "--", "bash", "-c", words),
        env=lab.environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None and process.stdout.readline() == "held\n"
            yield
        finally:
            process.kill()


def test_an_open_connection_with_both_ends_named_until_it_ends(lab: LabUnderTest) -> None:
    here = ("--service", "default/web", "--pod", "default/web")
    with _held(lab, "web", SERVICE):
        _until(lambda: bool(_flows(lab, *here)), lab)
        (flow,) = _flows(lab, *here)
        assert (flow["service"], flow["virtual"], flow["endpointPod"], flow["state"], flow["protocol"]) == (
            "default/web:http", f"{SERVICE}:80", "default/web", "open", "TCP",
        )  # fmt: skip
        assert flow["client"].startswith("10.244.0.") and flow["endpoint"].endswith(":8080") and flow["worker"] > 0
        assert flow["source"].rpartition(":")[0] != flow["client"].rpartition(":")[0], (
            "the node's address is seen there"
        )
        text = lab.at("node-1", "kproxy", "observe", "--flows", "--protocol", "tcp")
        assert "default/web:http" in text and "default/web 10.244.0." in text
        assert not _flows(lab, "--service", "default/web", "--endpoint", "default/nobody")
    _until(lambda: not _flows(lab, *here), lab)


def test_a_service_explained_live_with_what_the_kernel_holds_and_workers_counted(lab: LabUnderTest) -> None:
    _until(lambda: _json(lab, "explain", "web")["ports"][0]["relay"]["counted"].get("received", 0) > 0, lab)
    told = _json(lab, "explain", "web", "--from", "node")
    (port,) = told["ports"]
    assert told["drift"] is False
    assert all(rule["kernel"]["present"] for rule in port["rules"] if rule["part"] == "entry")
    (way,) = port["relay"]["ways"]
    assert way["listenerPort"] == _json(lab, "status")["relay"]["ports"][0]
    assert port["relay"]["countedByEndpoint"].keys() == set(way["endpoints"])
    assert {o["outcome"] for o in told["from"]["ways"][0]["outcomes"]} == {"reaches"}
    assert "the kernel holds exactly these" in lab.at("node-1", "kproxy", "explain", "web")
    told = _json(lab, "trace", "--from", "node", "default/web:http")
    assert [hop["chain"] for hop in told["hops"]][-1] == "relay" and told["outcomes"][0]["to"] == way["endpoints"][0]


def test_an_element_that_is_gone_is_found_missing(lab: LabUnderTest) -> None:
    # kproxy mends within a second or two: both run in one breath, and again when the look came late.
    broken = (
        f"nft delete element ip kproxy-userspace destinations '{{ {SERVICE} . tcp . 80 }}'; kproxy explain web -o json"
    )
    for _ in range(10):
        done = lab.run("exec", "node-1", "--", "sh", "-c", broken)
        rules = json.loads(done.stdout)["ports"][0]["rules"]
        missing = [r["chain"] for r in rules if r["kernel"] is not None and not r["kernel"]["present"]]
        if missing:
            break
        lab.until("the kernel holds exactly these", "node-1", "kproxy", "explain", "web")
    assert (done.returncode, missing) == (1, ["destinations"]), done.stdout
    lab.until("the kernel holds exactly these", "node-1", "kproxy", "explain", "web")


def test_an_endpoint_that_refuses_is_left_out_and_people_hear_of_it(lab: LabUnderTest) -> None:
    address = _json(lab, "explain", "web")["ports"][0]["endpoints"][0]["address"]
    lab.ok("apply", "-f", "-", stdin=SLICE.replace("ADDRESS", address))
    lab.until("2 endpoints", "node-1", "kproxy", "explain", "half")
    many = f"for i in $(seq 60); do curl -s -o /dev/null -m 5 http://{HALF}/ || echo failed; done"

    def is_left_out() -> bool:
        assert lab.at("node-1", "bash", "-c", many) == "", "no client saw the endpoint that refuses"
        ejected = _json(lab, "explain", "half")["ports"][0]["relay"]["ejected"]
        return [one["endpoint"] for one in ejected] == ["192.168.200.21:8080"]

    _until(is_left_out, lab)
    told = lab.at("node-1", "curl", "-s", "http://127.0.0.1:10249/metrics").splitlines()
    values = {
        line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in told if line.startswith("kproxy_relay_")
    }
    labels = 'namespace="default",port="http",service="half"'
    assert (
        values[f"kproxy_relay_retries_total{{{labels}}}"]
        >= 3
        <= values[f"kproxy_relay_failed_connects_total{{{labels}}}"]
    )
    assert values[f"kproxy_relay_gave_up_total{{{labels}}}"] == 0 < values["kproxy_relay_ejections_total"]
    assert "kproxy_relay_endpoint_connections_total" not in "".join(told), "nobody asked for series of endpoints"
    log = lab.directory / "logs" / "kproxy-node-1.log"
    _until(lambda: "Connections to an endpoint fail: it is left out" in log.read_text(), lab)
    events = "http://192.168.200.1:6443/api/v1/namespaces/default/events"
    _until(lambda: "EndpointLeftOut" in lab.at("node-1", "curl", "-s", events), lab)
