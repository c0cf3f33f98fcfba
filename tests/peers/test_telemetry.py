"""kube-proxy and kproxy asked the same questions in the same scenario: health, metrics, health check node ports, Events.

Each program runs alone on the node, against the same API server; what it said at each step is kept, and the answers are compared, field by
field where they are meant to be the same. Times, uptimes and counts of work differ; names, types, labels, codes and shapes must not.
"""

from __future__ import annotations

import fcntl
import http.client
import json
import os
import re
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from kproxy.backends.iptables.variant import Variant
from kproxy.lab.controlplane import ControlPlane
from tests.support.cluster_api import SLICES, Api
from tests.support.netns import run
from tests.support.one_node import NODE, NODE_NAME, OneNode, endpoint_address
from tests.support.prefilled import node, prefilled
from tests.support.proxies import Program, Running, Stage

EVENTS = "/apis/events.k8s.io/v1/namespaces/default/events"
NODE_PATH = f"/api/v1/nodes/{NODE_NAME}"
CHECK, TAKEN = 30999, 30998
TAINT = {"key": "ToBeDeletedByClusterAutoscaler", "value": "1", "effect": "NoSchedule"}

# What kube-proxy shows and kproxy does not, each with its reason.
NOT_HERE = {
    "kubeproxy_iptables_localhost_nodeports_accepted_packets_total": "needs one rule more for every node port",
}


@dataclass(frozen=True)
class Answer:
    """One HTTP answer."""

    code: int
    kind: str  # Content-Type
    headers: dict[str, str]
    body: str

    @property
    def shape(self) -> tuple[Any, ...]:
        """What must not differ: code, type, the header that forbids guessing, and the body with its times replaced."""
        text = re.sub(r'"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z"', '"TIME"', self.body)
        return self.code, self.kind, self.headers.get("X-Content-Type-Options"), text


@dataclass
class Told:
    """What one program said."""

    answers: dict[str, Answer] = field(default_factory=dict)
    checks: dict[str, tuple[int, str, str, Any]] = field(default_factory=dict)  # code, weight, type, body
    metrics: str = ""
    events: list[dict[str, Any]] = field(default_factory=list)


def _get(bed: OneNode, port: int, path: str, host: str = "127.0.0.1") -> Answer:
    with bed.node.entered():
        connection = http.client.HTTPConnection(host, port, timeout=5)
        connection.connect()
    try:
        connection.request("GET", path)
        reply = connection.getresponse()
        headers = dict(reply.getheaders())
        return Answer(reply.status, headers.get("Content-Type", ""), headers, reply.read().decode())
    finally:
        connection.close()


def _until(what: str, condition: Callable[[], bool], limit_s: float = 20.0) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {limit_s:g} s: {what}"
        time.sleep(0.05)


def _slice(of: str, ready: bool, where: str, changed: str = "") -> dict[str, Any]:
    made: dict[str, Any] = {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": f"{of}-s", "labels": {"kubernetes.io/service-name": of}},
        "addressType": "IPv4",
        "ports": [{"name": "a", "port": 8080, "protocol": "TCP"}, {"name": "b", "port": 8081, "protocol": "TCP"}],
        "endpoints": [
            {"addresses": [endpoint_address(n)], "nodeName": where, "conditions": {"ready": ready}} for n in (1, 2)
        ],
    }
    if changed:
        made["metadata"]["annotations"] = {"endpoints.kubernetes.io/last-change-trigger-time": changed}
    return made


def _objects() -> Iterator[dict[str, Any]]:
    ports = [{"name": "a", "port": 80, "protocol": "TCP"}, {"name": "b", "port": 81, "protocol": "TCP"}]
    balanced = {"type": "LoadBalancer", "externalTrafficPolicy": "Local", "healthCheckNodePort": CHECK, "ports": ports}
    for name, spec in (("balanced", balanced), ("inner", {"internalTrafficPolicy": "Local", "ports": ports})):
        yield {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec}
    yield from (_slice("balanced", True, NODE_NAME), _slice("inner", True, "elsewhere"))


class _Run:
    """One program through the scenario."""

    def __init__(self, bed: OneNode, api: Api, running: Running) -> None:
        self.bed, self.api, self.running, self.told = bed, api, running, Told()

    def go(self) -> Told:
        self.running.wait_synced()
        _until("the health check node port answers", lambda: self._check()[0] == 200)
        for port, path in ((10256, "/healthz"), (10256, "/livez"), (10249, "/healthz"), (10249, "/proxyMode")):
            self.told.answers[f"{port}{path}"] = _get(self.bed, port, path)
        self.told.answers["10256/livez over IPv6"] = _get(self.bed, 10256, "/livez", "::1")
        self._taken()
        self._endpoints()
        self._node()
        if self.running.program is Program.KPROXY:
            self._drift()
        self.told.metrics = _get(self.bed, 10249, "/metrics").body
        self.told.answers["configz"] = _get(self.bed, 10249, "/configz")
        _until("the Event is there", lambda: bool(self._events()))
        self.told.events = self._events()
        return self.told

    def _check(self, path: str = "/any/path") -> tuple[int, str, str, Any]:
        try:
            answer = _get(self.bed, CHECK, path, NODE)
        except ConnectionRefusedError:
            return 0, "", "", None
        return answer.code, answer.headers["X-Load-Balancing-Endpoint-Weight"], answer.kind, json.loads(answer.body)

    def _events(self) -> list[dict[str, Any]]:
        items = self.api.ok("GET", EVENTS)["items"]
        mine = self.running.program.value
        return [item for item in items if item.get("reportingController") == mine]

    def _endpoints(self) -> None:
        self.told.checks["1"] = self._check()
        for step, ready, code in (("0", False, 503), ("1 again", True, 200)):
            changed = datetime.now(UTC).isoformat().replace("+00:00", "Z")
            self.api.ok("PUT", f"{SLICES}/balanced-s", _slice("balanced", ready, NODE_NAME, changed))
            _until(f"endpoints: {step}", lambda code=code: self._check()[0] == code)  # type: ignore[misc]
            self.told.checks[step] = self._check()

    def _taken(self) -> None:
        """A Service whose health check node port belongs to somebody else."""
        with self.bed.node.entered(), socket.create_server((NODE, TAKEN)):
            spec = {"type": "LoadBalancer", "externalTrafficPolicy": "Local", "healthCheckNodePort": TAKEN}
            ports = [{"name": "a", "port": 80, "protocol": "TCP"}]
            name = f"taken-{self.running.program.name.lower().replace('_', '-')}"
            made = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": {**spec, "ports": ports}}
            self.api.create(made)
            _until(
                "the Event about the port is there", lambda: any(e["regarding"]["name"] == name for e in self._events())
            )
            self.api.remove(name)

    def _drift(self) -> None:
        """Somebody else empties a chain."""
        run(self.bed.node, "iptables-nft", "-t", "nat", "-F", "KUBE-SERVICES")
        mended = "kproxy_drift_mended_total 1.0"
        _until("it is put right", lambda: mended in _get(self.bed, 10249, "/metrics").body)
        _until("the Event about it", lambda: any(event["reason"] == "RulesRestored" for event in self._events()))

    def _node(self) -> None:
        self._change_node({"spec": {"taints": [TAINT]}})
        self._both("tainted", 503)
        self._change_node({"spec": {"taints": None}})
        _until("eligible again", lambda: _get(self.bed, 10256, "/healthz").code == 200)
        self._change_node({"metadata": {"finalizers": ["example.com/waits"]}})
        self.api.ok("DELETE", NODE_PATH)
        self._both("deleted", 503)
        self._change_node({"metadata": {"finalizers": None}})
        self.api.ok("POST", "/api/v1/nodes", node())

    def _both(self, step: str, code: int) -> None:
        _until(step, lambda: _get(self.bed, 10256, "/healthz").code == code)
        for path in ("/healthz", "/livez"):
            self.told.answers[f"{step} {path}"] = _get(self.bed, 10256, path)

    def _change_node(self, change: dict[str, Any]) -> None:
        found = self.api.ok("GET", NODE_PATH)
        for part, values in change.items():
            found[part].update(values)
        self.api.ok("PUT", NODE_PATH, found)


def _without_families(answer: Answer) -> tuple[Any, ...]:
    """kube-proxy syncs the families apart, and here only one has something to write; kproxy writes both together."""
    *rest, body = answer.shape
    shown = json.loads(body)
    assert shown.pop("status").keys() == {"IPv4", "IPv6"}
    return (*rest, shown)


def _stuck(bed: OneNode, plane: ControlPlane, api: Api, program: Program, scratch: Path) -> dict[str, list[Any]]:
    """Another program holds the xtables lock for longer than two sync periods while a change waits; then it lets go."""
    soon = {"syncPeriod": "1s", "minSyncPeriod": "1s"}
    running = Stage(bed, plane, Variant.LEGACY, scratch, {"iptables": soon}).start(program)
    steps = _Run(bed, api, running)
    found: dict[str, list[Any]] = {}

    def look(step: str, code: int, limit_s: float) -> None:
        _until(f"{step}: /livez says {code}", lambda: _get(bed, 10256, "/livez").code == code, limit_s)
        pages = [(page, _without_families(_get(bed, 10256, page))) for page in ("/healthz", "/livez")]
        found[step] = [*pages, steps._check()]

    try:
        running.wait_synced()
        _until("the health check node port answers", lambda: steps._check()[0] == 200)
        with Path("/run/xtables.lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            api.ok("PUT", f"{SLICES}/inner-s", _slice("inner", False, "elsewhere"))
            look("stuck", 503, 15.0)
        look("free again", 200, 15.0)
        if program is Program.KPROXY:
            _until("the Event about the lock", lambda: any(e["reason"] == "SyncFailed" for e in steps._events()))
            found["events"] = [event["note"] for event in steps._events() if event["reason"] == "SyncFailed"]
    except AssertionError as error:
        raise AssertionError(f"{program.value}: {error}\n{running.tail()}") from error
    finally:
        running.stop()
        bed.clean(Variant.LEGACY)
        api.ok("PUT", f"{SLICES}/inner-s", _slice("inner", True, "elsewhere"))
    return found


@dataclass
class Asked:
    """What both programs said, in order and when they were stuck."""

    told: dict[Program, Told] = field(default_factory=dict)
    stuck: dict[Program, dict[str, list[Any]]] = field(default_factory=dict)


@pytest.fixture(scope="module")
def told(asked: Asked) -> dict[Program, Told]:
    return asked.told


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Asked]:
    found = Asked()
    with OneNode() as bed, prefilled(bed, tmp_path_factory.mktemp("plane"), [node()]) as plane:
        api = Api.of(bed.node, plane)
        try:
            for made in _objects():
                api.create(made)
            for program in Program:
                found.told[program] = _one(bed, plane, api, program, tmp_path_factory.mktemp("scratch"))
                found.stuck[program] = _stuck(bed, plane, api, program, tmp_path_factory.mktemp("scratch"))
        finally:
            api.close()
    yield found


def _one(bed: OneNode, plane: ControlPlane, api: Api, program: Program, scratch: Path) -> Told:
    running = Stage(bed, plane, Variant.NFT, scratch, {"healthzBindAddress": "0.0.0.0:10256"}).start(program)
    try:
        return _Run(bed, api, running).go()
    except AssertionError as error:
        raise AssertionError(f"{program.value}: {error}\n{running.tail()}") from error
    finally:
        running.stop()
        bed.clean(Variant.NFT)


def _both(told: dict[Program, Told]) -> tuple[Told, Told]:
    return told[Program.KUBE_PROXY], told[Program.KPROXY]


@pytest.mark.parametrize(
    "page", ["10256/healthz", "10256/livez", "10256/livez over IPv6", "10249/healthz", "10249/proxyMode"]
)
def test_z01_z07_pages_are_the_same_but_for_their_times(told: dict[Program, Told], page: str) -> None:
    theirs, ours = _both(told)
    assert ours.answers[page].shape == theirs.answers[page].shape
    assert ours.answers[page].code == 200


@pytest.mark.parametrize("step", ["tainted", "deleted"])
def test_z03_z04_a_node_that_leaves_is_drained_and_not_restarted(told: dict[Program, Told], step: str) -> None:
    theirs, ours = _both(told)
    for path, code in (("/healthz", 503), ("/livez", 200)):
        assert ours.answers[f"{step} {path}"].code == code
        assert ours.answers[f"{step} {path}"].shape == theirs.answers[f"{step} {path}"].shape
    assert json.loads(ours.answers[f"{step} /healthz"].body)["nodeEligible"] is False


def test_fault_30_z05_health_check_node_port_follows_local_endpoints(told: dict[Program, Told]) -> None:
    theirs, ours = _both(told)
    assert ours.checks == theirs.checks
    assert [(step, found[:2]) for step, found in ours.checks.items()] == [
        ("1", (200, "2")),
        ("0", (503, "0")),
        ("1 again", (200, "2")),
    ]


def test_fault_16_z02_z06_a_sync_that_cannot_happen_turns_health_red_until_it_has(asked: Asked) -> None:
    theirs, ours = asked.stuck[Program.KUBE_PROXY], asked.stuck[Program.KPROXY]
    note, *_ = ours.pop("events")
    assert "xtables.lock" in note
    assert f"process {os.getpid()} " in note  # who holds it
    assert ours == theirs
    _, _, check = ours["stuck"]
    assert check[:2] == (503, "2")
    assert check[3]["serviceProxyHealthy"] is False
    assert ours["free again"][2][0] == 200


def _families(text: str) -> dict[str, str]:
    return dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE))


def _labels(text: str, name: str) -> set[tuple[str, ...]]:
    """The sets of label names and, of those with few values, their values."""
    found = set()
    for line in text.splitlines():
        if matched := re.match(rf"{name}(?:_bucket|_sum|_count)?(?:\{{(.*)\}})? ", line):
            pairs = re.findall(r'(\w+)="([^"]*)"', matched[1] or "")
            found.add(tuple(sorted(key if key in ("le", "table") else f"{key}={value}" for key, value in pairs)))
    return found


def _bounds(text: str, name: str) -> set[float]:
    return {float(bound) for bound in re.findall(rf'^{name}_bucket\{{.*le="([^"]+)"', text, re.MULTILINE)}


def test_z08_every_metric_of_kube_proxy_is_there_with_its_type_labels_and_buckets(told: dict[Program, Told]) -> None:
    theirs, ours = _both(told)
    wanted = {name: kind for name, kind in _families(theirs.metrics).items() if name.startswith("kubeproxy_")}
    found = _families(ours.metrics)
    assert len(wanted) >= 17
    assert wanted.keys() - found.keys() == NOT_HERE.keys()
    for name, kind in wanted.items():
        if name not in NOT_HERE:
            assert (name, found[name]) == (name, kind)
            assert (name, _labels(theirs.metrics, name) - _labels(ours.metrics, name)) == (name, set())
            assert (name, _bounds(ours.metrics, name)) == (name, _bounds(theirs.metrics, name))
    assert {"process_resident_memory_bytes", "rest_client_requests_total", "kubernetes_build_info"} <= found.keys()


def _value(text: str, line: str) -> float:
    (found,) = re.findall(rf"^{re.escape(line)} (\S+)$", text, re.MULTILINE)
    return float(found)


def test_z09_services_without_local_endpoints_are_counted(told: dict[Program, Told]) -> None:
    name = 'kubeproxy_sync_proxy_rules_no_local_endpoints_total{{ip_family="IPv4",traffic_policy="{}"}}'
    for direction, count in (("internal", 2), ("external", 0)):
        for program in Program:
            assert (program, _value(told[program].metrics, name.format(direction))) == (program, count)


def test_programming_latency_is_measured_for_the_same_changes(told: dict[Program, Told]) -> None:
    for program in Program:
        text = told[program].metrics
        name = "kubeproxy_network_programming_duration_seconds"
        assert (program, _value(text, f'{name}_count{{ip_family="IPv4"}}')) == (program, 2)
        assert 0 < _value(text, f'{name}_sum{{ip_family="IPv4"}}') < 20


@pytest.mark.parametrize("reason", ["Starting", "FailedToStartServiceHealthcheck"])
def test_events_have_the_same_shape(told: dict[Program, Told], reason: str) -> None:
    theirs, ours = (_event(found, reason) for found in _both(told))
    if reason == "Starting":  # kubectl describe node shows ours, because it is named as the kubelet names it
        theirs["regarding"]["uid"] = NODE_NAME
    assert ours == theirs | {"reportingController": "kproxy", "reportingInstance": ours["reportingInstance"]}
    assert ours["reportingInstance"].removeprefix("kproxy-") == theirs["reportingInstance"].removeprefix("kube-proxy-")


def _event(found: Told, reason: str) -> dict[str, Any]:
    event, *_ = [event for event in found.events if event["reason"] == reason]
    event = json.loads(json.dumps(event).replace("taken-kube-proxy", "taken").replace("taken-kproxy", "taken"))
    event["metadata"] = {"namespace": event["metadata"]["namespace"], "named": event["metadata"]["name"].split(".")[0]}
    event["eventTime"] = bool(event["eventTime"])
    # Behind the port stand the words of each program's library.
    event["note"] = event.get("note", "").partition(f" on port {TAKEN}")[0]
    return event


def test_rules_that_somebody_else_changed_are_told_by_an_event_and_metrics(told: dict[Program, Told]) -> None:
    ours = told[Program.KPROXY]
    (event,) = [event for event in ours.events if event["reason"] == "RulesRestored"]
    assert "KUBE-SERVICES" in event["note"]
    assert _value(ours.metrics, "kproxy_drift_found_total") == 1
    assert _value(ours.metrics, "kproxy_drift_mended_total") == 1


def test_configz_has_kube_proxys_group_and_kind(told: dict[Program, Told]) -> None:
    theirs, ours = (json.loads(found.answers["configz"].body)["kubeproxy.config.k8s.io"] for found in _both(told))
    assert ours.keys() == theirs.keys()
    assert {key: ours[key] for key in ours if key not in ("logging",)} == {
        k: theirs[k] for k in theirs if k != "logging"
    }
