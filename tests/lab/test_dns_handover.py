"""Whatever becomes of a node's DNS, its pods get answers: from other nodes within a second, and from their own again when it is back.

300 queries a second from a pod of node-1, each from a port of its own, while processes of that node are killed or stopped. Another server
than node-1's answers when its workers are gone, which is seen in what the other nodes count.
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
DNS = "10.96.0.10"
RATE, SECONDS, AT_S, LIMIT_S = 300, 4, 1.0, 1.0
IN_HAND_S = 0.25  # of a worker that dies on a busy machine
WORKER, CONTROLLER, SUPERVISOR = "kproxy.dns.worker", "kproxy.app", "kproxy.supervisor"

# Runs on the node: signals processes of its network namespace whose command line has one of the words; at most `most`.
SIGNAL = """
import os, signal, sys
here = os.readlink("/proc/self/ns/net")
most, words, hit = int(sys.argv[2]), [word.encode() for word in sys.argv[3:]], []
for pid in sorted(filter(str.isdigit, os.listdir("/proc")), key=int):
    try:
        said = open(f"/proc/{pid}/cmdline", "rb").read().split(b"\\0")
        same = os.readlink(f"/proc/{pid}/ns/net") == here
    except OSError:
        continue
    if same and any(word in said for word in words) and int(pid) != os.getpid() and len(hit) < most:
        hit.append(int(pid))
for pid in hit:
    os.kill(pid, getattr(signal, sys.argv[1]))
print(len(hit))
"""


def _signal(lab: LabUnderTest, name: str, *words: str, most: int = 99) -> int:
    return int(lab.at("node-1", sys.executable, "-c", SIGNAL, name, str(most), *words))


def _load(lab: LabUnderTest) -> subprocess.Popen[str]:
    words = (sys.executable, str(LOAD), "query", DNS, NAME, "--rate", str(RATE), "--seconds", str(SECONDS))
    argv = lab.argv("exec", "nettool-1", "--", *words)
    return subprocess.Popen(argv, env=lab.environment, stdout=subprocess.PIPE, text=True)


def _answered_elsewhere(lab: LabUnderTest) -> int:
    """Queries for the name that the servers of the other nodes have answered."""
    found = 0
    for node in ("node-2", "node-3"):
        read = "import urllib.request as r; print(r.urlopen('http://127.0.0.1:10249/metrics').read().decode())"
        text = lab.at(node, sys.executable, "-c", read)
        asked = [line for line in text.splitlines() if line.startswith("coredns_dns_requests_total{")]
        found += int(sum(float(line.split()[-1]) for line in asked if 'type="A"' in line))
    return found


def _is_back(lab: LabUnderTest) -> None:
    lab.until(f"2 workers; {DNS}", "node-1", sys.executable, "-m", "kproxy", "status", limit_s=30)


@pytest.fixture(scope="module", autouse=True)
def service(lab: LabUnderTest) -> None:
    """The Service and the pods of these tests."""
    lab.ok("apply", "-f", str(EXAMPLES / "clients.yaml"), "-f", str(EXAMPLES / "s01-clusterip.yaml"))
    ask = f"import socket; print('at', socket.gethostbyname('{NAME}'))"
    lab.until("at ", "nettool-1", sys.executable, "-c", ask, limit_s=30)


@pytest.mark.parametrize(
    ("signal", "words", "limit_s"),
    [
        ("SIGKILL", (WORKER,), IN_HAND_S),
        ("SIGSTOP", (WORKER,), LIMIT_S),
        ("SIGSTOP", (WORKER, CONTROLLER), LIMIT_S),
        ("SIGKILL", (WORKER, CONTROLLER, SUPERVISOR), IN_HAND_S),
    ],
    ids=["all workers die", "all workers hang", "the controller hangs as well", "everything is killed"],
)
def test_queries_reach_another_node_within_a_second(
    lab: LabUnderTest, signal: str, words: tuple[str, ...], limit_s: float
) -> None:
    """The kernel alone does it for the dead; the hung are ended by the controller, or by the supervisor where that hangs, too."""
    _is_back(lab)
    before = _answered_elsewhere(lab)
    load = _load(lab)
    time.sleep(AT_S)
    assert _signal(lab, signal, *words) >= len(words) + 1
    told = json.loads(load.communicate(timeout=60)[0])
    if CONTROLLER in words and signal == "SIGSTOP":
        _signal(lab, "SIGCONT", CONTROLLER)
    assert told["sent"] == RATE * SECONDS
    assert told["failed"] == 0 or told["last"] - told["failures"][0] < limit_s, json.dumps(told)
    assert _answered_elsewhere(lab) - before > RATE * 0.2, "another node answered meanwhile"
    _is_back(lab)


def test_one_worker_that_hangs_is_replaced(lab: LabUnderTest) -> None:
    """Half of the queries are its; it is found by the questions that nobody answers."""
    _is_back(lab)
    load = _load(lab)
    time.sleep(AT_S)
    assert _signal(lab, "SIGSTOP", WORKER, most=1) == 1
    told = json.loads(load.communicate(timeout=60)[0])
    assert told["failed"] and told["last"] - told["failures"][0] < 3 * LIMIT_S, json.dumps(told)
    _is_back(lab)


# Runs on the node: what one page says, as JSON.
_STATUS = (sys.executable, "-m", "kproxy", "status", "-o", "json")


def _status(lab: LabUnderTest) -> dict[str, object]:
    done = lab.run("exec", "node-1", "--", *_STATUS)
    return dict(json.loads(done.stdout)) if done.stdout else {}


def _until_status(lab: LabUnderTest, key: str, value: object) -> dict[str, object]:
    end = time.monotonic() + 30
    while True:
        page = _status(lab)
        found = page.get("dns", {})
        if isinstance(found, dict) and found.get(key) == value:
            return page
        assert time.monotonic() < end, (page, lab.logs())
        time.sleep(0.2)


def _rules(lab: LabUnderTest) -> list[str]:
    text = lab.at("node-1", "iptables-save", "-t", "nat")
    return sorted(line for line in text.splitlines() if line.startswith("-A"))


def test_fault_01_without_the_api_server_dns_goes_on_and_starts_over_from_disk(lab: LabUnderTest) -> None:
    _is_back(lab)
    cut = ("OUTPUT", "-p", "tcp", "--dport", "6443", "-j", "REJECT", "--reject-with", "tcp-reset")
    before, since = _rules(lab), time.monotonic()
    time.sleep(
        max(0.0, 6.0 - (time.monotonic() - since))
    )  # what was last known is on disk a few seconds after it changed
    lab.at("node-1", "iptables", "-I", *cut)
    try:
        told = json.loads(_load(lab).communicate(timeout=60)[0])
        assert told["failed"] == 0, "nothing changes for clients"
        load = _load(lab)
        time.sleep(AT_S)
        assert _signal(lab, "SIGKILL", WORKER, CONTROLLER, SUPERVISOR) >= 4
        told = json.loads(load.communicate(timeout=60)[0])
        assert told["failed"] == 0 or told["last"] - told["failures"][0] < IN_HAND_S, json.dumps(told)
        page = _until_status(lab, "fromMemory", value=True)
        assert page["health"]["ready"] is False and page["dns"]["memoryAgeSeconds"] is not None  # type: ignore[index]
        assert _rules(lab) == before, "rules stay as they were"
        time.sleep(2.5)  # until the other nodes' workers have told what they counted
        elsewhere = _answered_elsewhere(lab)
        told = json.loads(_load(lab).communicate(timeout=60)[0])
        assert told["failed"] == 0 and _answered_elsewhere(lab) == elsewhere, "this node answers, from its memory"
    finally:
        lab.at("node-1", "iptables", "-D", *cut)
    _until_status(lab, "fromMemory", value=False)
    lab.until("ready and healthy", "node-1", sys.executable, "-m", "kproxy", "status", limit_s=30)
