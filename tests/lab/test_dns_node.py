"""A node's DNS beside other things: a strict firewall, an address that no Service has, the pages that a Corefile asks for."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import pytest

from tests.lab.test_dns_handover import (
    CONTROLLER,
    DNS,
    IN_HAND_S,
    LOAD,
    NAME,
    RATE,
    SUPERVISOR,
    WORKER,
    _is_back,
    _signal,
    service,
)
from tests.support.lab import LabUnderTest

__all__ = ["service"]  # the fixture that makes the pods

LOCAL = "169.254.20.10"
COREFILE = """\
.:53 {
    errors
    health :8080 {
        lameduck 3s
    }
    ready :8181
    kubernetes cluster.local in-addr.arpa ip6.arpa {
        pods insecure
        fallthrough in-addr.arpa ip6.arpa
    }
    prometheus :9253
    forward . 192.168.200.1
    cache 30
    loadbalance
    reload 2s 1s
}
"""
GET = "import sys, urllib.request as r; print(r.urlopen(sys.argv[1], timeout=2).read().decode())"
# In a mixture of cases that nobody has asked for before: the kernel has no answer to it, whatever was asked a second ago.
ASK = f"""
import random, socket, sys
name = "".join(random.choice((c.lower(), c.upper())) for c in "{NAME}")
q = bytes.fromhex("abcd01000001000000000000") + b"".join(bytes([len(p)]) + p.encode() for p in name.split(".")) + b"\\0\\0\\1\\0\\1"
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(1.0); s.connect((sys.argv[1], 53)); s.send(q)
try:
    print("rcode", s.recv(999)[3] & 15)
except OSError as error:
    print("nothing", error)
"""


def _ask(lab: LabUnderTest, address: str = DNS) -> str:
    return lab.at("nettool-1", sys.executable, "-c", ASK, address).strip()


def _load(lab: LabUnderTest, address: str, seconds: float) -> subprocess.Popen[str]:
    words = (sys.executable, str(LOAD), "query", address, NAME, "--rate", str(RATE), "--seconds", str(seconds))
    argv = lab.argv("exec", "nettool-1", "--", *words)
    return subprocess.Popen(argv, env=lab.environment, stdout=subprocess.PIPE, text=True)


def test_a_firewall_that_knows_connections_lets_dns_in(lab: LabUnderTest) -> None:
    """What is untracked is no connection that it knows. Without our rules the query is dropped."""
    _is_back(lab)
    ours = ("INPUT", "-m", "comment", "--comment", "kproxy: cluster DNS", "-j", "KPROXY-DNS-INPUT")
    known = ("INPUT", "-m", "conntrack", "--ctstate", "ESTABLISHED,RELATED,NEW", "-j", "ACCEPT")
    lab.at("node-1", "iptables", "-A", *known)
    lab.at("node-1", "iptables", "-P", "INPUT", "DROP")
    try:
        assert _ask(lab) == "rcode 0"
        for _ in range(5):  # healing may come between these two: then the rule is there to be taken away again
            lab.at("node-1", "iptables", "-D", *ours)
            if (told := _ask(lab)) != "rcode 0":
                break
        assert told.startswith("nothing")
        end = time.monotonic() + 15  # and what somebody took away is put back
        while _ask(lab) != "rcode 0":
            assert time.monotonic() < end
    finally:
        lab.at("node-1", "iptables", "-P", "INPUT", "ACCEPT")
        lab.at("node-1", "iptables", "-D", *known)


@pytest.fixture(scope="module")
def with_corefile(lab: LabUnderTest) -> None:
    """node-1 with a Corefile and a node-local address: its configuration file changes, so it starts over by itself."""
    _is_back(lab)
    script = f"""
import pathlib
pathlib.Path("/run/kproxy-node/Corefile").write_text({COREFILE!r})
file = pathlib.Path("/run/kproxy-node/config.yaml")
text = file.read_text().replace("dns:\\n", "dns:\\n  corefile: /run/kproxy-node/Corefile\\n  localAddresses: [{LOCAL}]\\n")
file.write_text(text.replace("  upstreams:\\n  - 192.168.200.1\\n", ""))
"""
    lab.at("node-1", sys.executable, "-c", script)
    lab.until(LOCAL, "node-1", sys.executable, "-m", "kproxy", "status", limit_s=40)
    lab.until("OK", "node-1", sys.executable, "-c", GET, "http://127.0.0.1:8181/ready", limit_s=20)


def test_pages_of_the_corefile(lab: LabUnderTest, with_corefile: None) -> None:
    assert lab.at("node-1", sys.executable, "-c", GET, "http://127.0.0.1:8080/health").strip() == "OK"
    assert _ask(lab) == "rcode 0"
    lab.until("coredns_dns_requests_total{", "node-1", sys.executable, "-c", GET, "http://127.0.0.1:9253/metrics")
    text = lab.at("node-1", sys.executable, "-c", GET, "http://127.0.0.1:9253/metrics")
    assert 'coredns_plugin_enabled{name="kubernetes",server="dns://:53",view="",zone="."} 1.0' in text


def test_the_node_local_address_is_held_and_leads_elsewhere_too(lab: LabUnderTest, with_corefile: None) -> None:
    assert _ask(lab, LOCAL) == "rcode 0"
    time.sleep(2.0)
    load = _load(lab, LOCAL, 4)
    time.sleep(1.0)
    assert _signal(lab, "SIGKILL", WORKER) == 2
    told = json.loads(load.communicate(timeout=60)[0])
    assert told["failed"] == 0 or told["last"] - told["failures"][0] < IN_HAND_S, json.dumps(told)


def test_p34_a_changed_corefile_is_followed_without_a_loss(lab: LabUnderTest, with_corefile: None) -> None:
    """A new one is taken, a wrong one is not; queries are answered meanwhile."""
    read = (sys.executable, "-c", GET, "http://127.0.0.1:9253/metrics")
    before = _version(lab.at("node-1", *read))
    assert before
    load = _load(lab, DNS, 14)
    for text, wanted in ((COREFILE.replace("cache 30", "cache 10"), "changed"), ("nonsense {", "refused")):
        write = f"import pathlib; pathlib.Path('/run/kproxy-node/Corefile').write_text({text!r})"
        lab.at("node-1", sys.executable, "-c", write)
        end = time.monotonic() + 20
        while True:
            page = lab.at("node-1", *read)
            if (wanted == "changed" and _version(page) != before) or "coredns_reload_failed_total 1.0" in page:
                break
            assert time.monotonic() < end, page[-2000:]
            time.sleep(0.2)
    told = json.loads(load.communicate(timeout=60)[0])
    assert told["failed"] == 0, json.dumps(told)
    write = f"import pathlib; pathlib.Path('/run/kproxy-node/Corefile').write_text({COREFILE!r})"
    lab.at("node-1", sys.executable, "-c", write)


def _version(metrics: str) -> str:
    return next((line for line in metrics.splitlines() if line.startswith("coredns_reload_version_info{")), "")


def test_p33_lameduck_answers_go_on_while_health_stays_good(lab: LabUnderTest, with_corefile: None) -> None:
    """For three seconds after the signal; the addresses are handed over afterwards, and the next life takes them again."""
    lab.until(LOCAL, "node-1", sys.executable, "-m", "kproxy", "status", limit_s=40)
    time.sleep(1.0)
    load = _load(lab, DNS, 7)
    time.sleep(1.0)
    assert _signal(lab, "SIGTERM", SUPERVISOR) == 1
    began = time.monotonic()
    while time.monotonic() - began < 2.0:
        assert lab.at("node-1", sys.executable, "-c", GET, "http://127.0.0.1:8080/health").strip() == "OK"
    assert _signal(lab, "SIGCONT", CONTROLLER) == 1, "it is still there"
    told = json.loads(load.communicate(timeout=60)[0])
    assert told["failed"] == 0, json.dumps(told)
