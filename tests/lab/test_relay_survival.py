"""Mode userspace while everything is exchanged: pods, kproxy itself, its configuration. Clients notice nothing.

500 new connections a second from a pod, each with a request, through a cluster IP; and one connection that stays open.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import pytest

from tests.support.lab import EXAMPLES, REPOSITORY, LabUnderTest

LOAD = REPOSITORY / "tests" / "support" / "load.py"
NAME = "my-nginx.default.svc.cluster.local"
RATE, SECONDS, TIMEOUT_S = 500, 6, 15
IN_HAND_S = 0.5  # connections that a worker had when it died began this shortly before, on a busy machine
CUT = {
    "ConnectionResetError",
    "no HTTP",
}  # what a client sees of a worker that died: with words of it unread, or without
CONFIG = "/run/kproxy-node/config.yaml"
SUPERVISOR, WORKER = "kproxy.supervisor", "kproxy.relay.worker"

# Runs on the node: the processes of its network namespace whose command line has the word, the oldest first; and signals the first one.
SEEN = """
import os, signal, sys
here, found = os.readlink("/proc/self/ns/net"), []
for pid in filter(str.isdigit, os.listdir("/proc")):
    try:
        words = open(f"/proc/{pid}/cmdline", "rb").read().split(b"\\0")
        same = os.readlink(f"/proc/{pid}/ns/net") == here
        began = int(open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()[19])
    except OSError:
        continue
    if same and sys.argv[1].encode() in words and int(pid) != os.getpid():
        found.append((began, int(pid)))
if sys.argv[2:]:
    os.kill(min(found)[1], getattr(signal, sys.argv[2]))
print(*(pid for _, pid in sorted(found)))
"""

# Runs in a pod: one connection, a request every quarter of a second, until its standard input ends. Says how many were answered.
STAYS = """
import http.client, select, sys
connection, count = http.client.HTTPConnection(sys.argv[1], 80, timeout=5), 0
connection.connect()
port = connection.sock.getsockname()[1]
while True:
    connection.request("GET", "/hostname")
    answer = connection.getresponse()
    assert answer.status == 200 and answer.read()
    assert connection.sock is not None and connection.sock.getsockname()[1] == port, "it was opened anew"
    count += 1
    if count == 1:
        print("open", flush=True)
    if select.select([sys.stdin], [], [], 0.25)[0]:
        break
print("answered", count, flush=True)
"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabUnderTest]:
    made = LabUnderTest(tmp_path_factory.mktemp("lab"))
    try:
        made.ok("up", "--detach", "--mode", "userspace")
        made.ok("apply", "-f", str(EXAMPLES / "clients.yaml"), "-f", str(EXAMPLES / "s01-clusterip.yaml"))
        yield made
    finally:
        made.run("down")


def _address(lab: LabUnderTest) -> str:
    """Waits until the Service answers by name in the pod; its cluster IP."""
    ask = f"import socket; a = socket.gethostbyname('{NAME}'); socket.create_connection((a, 80), 2); print('at', a)"
    lab.until("at ", "nettool-1", sys.executable, "-c", ask, limit_s=30)
    return lab.at("nettool-1", sys.executable, "-c", ask).removeprefix("at ").strip()


def _load(lab: LabUnderTest, address: str, seconds: float = SECONDS) -> subprocess.Popen[str]:
    words = [sys.executable, str(LOAD), "connect", address, "80", "--rate", str(RATE)]
    words += ["--seconds", str(seconds), "--timeout", str(TIMEOUT_S)]
    argv = lab.argv("exec", "nettool-1", "--", *words)
    return subprocess.Popen(argv, env=lab.environment, stdout=subprocess.PIPE, text=True)


def _nothing_failed(load: subprocess.Popen[str], seconds: float = SECONDS) -> None:
    told = json.loads(load.communicate(timeout=90)[0])
    print(json.dumps(told))
    assert told["sent"] == RATE * seconds
    assert told["failed"] == 0, json.dumps(told)


def _processes(lab: LabUnderTest, word: str, *also: str) -> list[int]:
    return [int(pid) for pid in lab.at("node-1", sys.executable, "-c", SEEN, word, *also).split()]


def _until(lab: LabUnderTest, holds: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + 90
    while not holds():
        assert time.monotonic() < end, what + lab.logs()
        time.sleep(0.1)


def _pods(lab: LabUnderTest) -> set[str]:
    """Who answers."""
    ask = "import urllib.request as r, sys; print(*(r.urlopen('http://' + sys.argv[1] + '/hostname').read().decode() for _ in '12345678'))"
    return set(lab.at("nettool-2", sys.executable, "-c", ask, NAME).split())


def _second_instance(lab: LabUnderTest) -> subprocess.Popen[str]:
    """As a pod of the next version would be; returns when it stands by, with workers of its own."""
    workers = len(_processes(lab, WORKER))
    run = (sys.executable, "-m", "kproxy", "run", "--config", CONFIG, "--run-dir", "/run/kproxy")
    argv = lab.argv("exec", "node-1", "--", *run)
    second = subprocess.Popen(argv, env=lab.environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert second.stderr is not None
    said = [second.stderr.readline()]
    while "Standing by" not in said[-1]:
        assert said[-1], f"the second instance ended: {said}"
        said.append(second.stderr.readline())
    _until(lab, lambda: len(_processes(lab, WORKER)) == 2 * workers, "both have workers")
    return second


def test_fault_11_pods_and_then_kproxy_itself_are_replaced_and_no_request_fails(lab: LabUnderTest) -> None:
    """A rolling update of the Deployment; a second instance of kproxy beside the first, which goes on when that is asked to end."""
    address, pods, workers = _address(lab), _pods(lab), _processes(lab, WORKER)
    second = _second_instance(lab)
    try:
        load = _load(lab, address)
        time.sleep(0.5)
        text = (EXAMPLES / "s01-clusterip.yaml").read_text()
        labels = "      labels: {run: my-nginx}\n    spec:"
        rolled = text.replace(labels, labels.replace("    spec:", "      annotations: {rolled: again}\n    spec:"))
        assert rolled != text
        lab.ok("apply", "-f", "-", stdin=rolled)
        time.sleep(2.0)  # what becomes of pods and of kproxy lies in each other's way on purpose
        _processes(lab, SUPERVISOR, "SIGTERM")
        _nothing_failed(load)
        _until(lab, lambda: not set(workers) & set(_processes(lab, WORKER)), "the old workers end")
        assert pods.isdisjoint(_pods(lab)), "all pods are others"
    finally:
        second.terminate()
        second.communicate(timeout=30)


def test_fault_09_a_killed_controller_costs_nothing_and_a_killed_worker_what_it_had_in_hand(lab: LabUnderTest) -> None:
    address, seconds = _address(lab), 4
    _until(lab, lambda: len(_processes(lab, SUPERVISOR)) == 1, "one instance")
    workers = _processes(lab, WORKER)
    load = _load(lab, address, seconds)
    time.sleep(1.0)
    _processes(lab, "kproxy.app", "SIGKILL")
    time.sleep(1.0)
    _processes(lab, WORKER, "SIGKILL")
    told = json.loads(load.communicate(timeout=90)[0])
    lost = told["failures"]
    assert told["sent"] == RATE * seconds and set(told["reasons"]) <= CUT, json.dumps(told)
    assert not lost or max(lost) - min(lost) < IN_HAND_S, json.dumps(told)
    _until(lab, lambda: len(_processes(lab, WORKER)) == len(workers), "the supervisor has started it again")
    lab.until("ready and healthy", "node-1", sys.executable, "-m", "kproxy", "status", limit_s=30)


def test_a_changed_configuration_fails_no_request_and_leaves_open_connections_alone(lab: LabUnderTest) -> None:
    """The same process begins anew; a connection from before goes on in its old worker for longer than a worker that ends would have."""
    address = _address(lab)
    _until(lab, lambda: len(_processes(lab, SUPERVISOR)) == 1, "one instance")
    (supervisor,), workers = _processes(lab, SUPERVISOR), _processes(lab, WORKER)
    argv = lab.argv("exec", "nettool-1", "--", sys.executable, "-c", STAYS, address)
    stays = subprocess.Popen(argv, env=lab.environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert stays.stdout is not None and stays.stdout.readline() == "open\n"
        load = _load(lab, address)
        time.sleep(1.0)
        change = (
            "import sys; p = sys.argv[1]; t = open(p).read(); open(p, 'w').write(t.replace('Seconds: 5', 'Seconds: 6'))"
        )
        lab.at("node-1", sys.executable, "-c", change, CONFIG)
        _until(lab, lambda: len(set(_processes(lab, WORKER)) - set(workers)) == len(workers), "new workers start")
        _nothing_failed(load)
        assert _processes(lab, SUPERVISOR) == [supervisor], "the process stays"
        _until(lab, lambda: len(set(_processes(lab, WORKER)) & set(workers)) == 1, "who has nothing open ends")
        told = stays.communicate("\n", timeout=20)[0].split()
        assert told[0] == "answered" and int(told[1]) > 10
        _until(lab, lambda: not set(_processes(lab, WORKER)) & set(workers), "the last one of before ends")
    finally:
        stays.kill()
        stays.communicate()
