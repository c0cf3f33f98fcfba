"""Nothing is lost when a part of a node dies: queries and connections go on while workers and controllers are killed.

1,000 queries and 200 new connections a second from a pod, through the cluster DNS address and a cluster IP, while one process of its
node gets SIGKILL. A worker may lose the queries it had in hand, all sent within the moment of its death; a controller loses nothing.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time

import pytest

from tests.support.lab import EXAMPLES, REPOSITORY, LabUnderTest

LOAD = REPOSITORY / "tests" / "support" / "load.py"
NAME = "my-nginx.default.svc.cluster.local"
RATE_Q, RATE_C, SECONDS, KILL_AT = 1000, 200, 8, 3.0
IN_HAND_S = 0.25  # queries sent this long before a worker's death may lie in its socket on a busy machine

# Runs on the node: signals the first process of its own network namespace whose command line has the word, prints how many there were.
KILL = """
import os, signal, sys
here = os.readlink("/proc/self/ns/net")
found = []
for pid in sorted(filter(str.isdigit, os.listdir("/proc")), key=int):
    try:
        words = open(f"/proc/{pid}/cmdline", "rb").read().split(b"\\0")
        same = os.readlink(f"/proc/{pid}/ns/net") == here
    except OSError:
        continue
    if same and sys.argv[1].encode() in words and int(pid) != os.getpid():
        found.append(int(pid))
if sys.argv[2:]:
    os.kill(found[0], getattr(signal, sys.argv[2]))
print(len(found))
"""


def _load(lab: LabUnderTest, what: str, address: str, target: str, rate: float) -> subprocess.Popen[str]:
    """Starts a load in the pod nettool-1."""
    words = (sys.executable, str(LOAD), what, address, target, "--rate", str(rate), "--seconds", str(SECONDS))
    argv = lab.argv("exec", "nettool-1", "--", *words)
    return subprocess.Popen(argv, env=lab.environment, stdout=subprocess.PIPE, text=True)


def _processes(lab: LabUnderTest, word: str, *also: str) -> int:
    return int(lab.at("node-1", sys.executable, "-c", KILL, word, *also))


@pytest.fixture(scope="module", autouse=True)
def service(lab: LabUnderTest) -> None:
    """The Service and the pods of these tests."""
    lab.ok("apply", "-f", str(EXAMPLES / "clients.yaml"), "-f", str(EXAMPLES / "s01-clusterip.yaml"))
    _answers(lab)


def _answers(lab: LabUnderTest) -> str:
    """Waits until the Service answers by name in the pod; its cluster IP."""
    ask = f"import socket; a = socket.gethostbyname('{NAME}'); socket.create_connection((a, 80), 2); print('at', a)"
    lab.until("at ", "nettool-1", sys.executable, "-c", ask, limit_s=30)
    return lab.at("nettool-1", sys.executable, "-c", ask).removeprefix("at ").strip()


@pytest.mark.parametrize("word", ["kproxy.dns.worker", "kproxy.app"], ids=["a DNS worker", "the controller"])
def test_fault_09_a_killed_process_takes_nothing_with_it(lab: LabUnderTest, word: str) -> None:
    address = _answers(lab)
    before = _processes(lab, word)
    assert before >= 1
    queries = _load(lab, "query", "10.96.0.10", NAME, RATE_Q)
    connections = _load(lab, "connect", address, "80", RATE_C)
    time.sleep(KILL_AT)
    assert _processes(lab, word, "SIGKILL") == before
    told = {"queries": queries.communicate(timeout=60)[0], "connections": connections.communicate(timeout=60)[0]}
    result = {what: json.loads(text) for what, text in told.items()}
    assert result["queries"]["sent"] == RATE_Q * SECONDS
    assert result["connections"]["sent"] == RATE_C * SECONDS
    assert result["connections"]["failed"] == 0, json.dumps(result)
    lost = result["queries"]["failures"]
    if word == "kproxy.app":
        assert lost == [], json.dumps(result)
    else:
        assert not lost or max(lost) - min(lost) < IN_HAND_S, json.dumps(result)
    assert _processes(lab, word) == before, "the supervisor has started it again"


def test_fault_11_an_upgrade_changes_hands_and_nothing_else(lab: LabUnderTest) -> None:
    """A second instance starts beside the first, stands by, and goes on when the first is asked to end."""
    address = _answers(lab)
    files = ("--config", "/run/kproxy-node/config.yaml", "--run-dir", "/run/kproxy")
    run = lab.argv("exec", "node-1", "--", sys.executable, "-m", "kproxy", "run", *files)
    second = subprocess.Popen(run, env=lab.environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        assert second.stderr is not None
        seen = ""
        while "Standing by" not in seen:
            seen = second.stderr.readline()
            assert seen, "the second instance ended"
        time.sleep(2.0)  # its workers have a zone and their sockets
        queries = _load(lab, "query", "10.96.0.10", NAME, RATE_Q)
        connections = _load(lab, "connect", address, "80", RATE_C)
        time.sleep(KILL_AT)
        _processes(lab, "kproxy.supervisor", "SIGTERM")
        told = [json.loads(load.communicate(timeout=60)[0]) for load in (queries, connections)]
        lost = told[0]["failures"]
        assert told[1]["failed"] == 0, json.dumps(told)
        assert not lost or max(lost) - min(lost) < IN_HAND_S, json.dumps(told)
    finally:
        second.terminate()
        second.communicate(timeout=30)
