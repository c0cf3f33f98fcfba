"""What a node's configuration switches on, in a whole kproxy: node ports on loopback by the worker, and the end of TCP connections."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import yaml

from tests.lab.test_survival import KILL, LOAD
from tests.support.lab import WEB, LabUnderTest

_SIX = """---
apiVersion: v1
kind: Service
metadata: {name: six}
spec: {type: NodePort, ipFamilies: [IPv6], selector: {app: web}, ports: [{port: 80, nodePort: 30081}]}
"""
_CONFIG = "/run/kproxy-node/config.yaml"


def test_loopback_by_the_worker_and_resets_when_configured(own_lab: LabUnderTest) -> None:
    """kproxy sees its file change, starts anew with it, and serves 127.0.0.1 and ::1; a connection ends with its endpoint."""
    own_lab.ok("up", "--detach", "--nodes", "1")
    config = yaml.safe_load(own_lab.at("node-1", "cat", _CONFIG))
    config["iptables"]["localhostListener"] = True
    config["conntrack"] = {"endedTCPFlows": "reset"}
    own_lab.ok("exec", "node-1", "--", "sh", "-c", f"cat > {_CONFIG}", stdin=yaml.safe_dump(config))
    own_lab.ok("apply", "-f", "-", stdin=WEB + _SIX)
    own_lab.until("web", "node-1", "curl", "-sm1", "http://127.0.0.1:30080/")
    own_lab.until("web", "node-1", "curl", "-sm1", "http://127.9.9.9:30080/")
    own_lab.until("web", "node-1", "curl", "-sm1", "http://[::1]:30081/")
    assert "kproxy-loopback" in own_lab.at("node-1", "ss", "-ltnp")
    assert "! -d 127.0.0.0/8" in own_lab.at("node-1", "sh", "-c", "iptables-legacy-save; iptables-nft-save")
    _changes_hands(own_lab)
    hold = subprocess.Popen(
        own_lab.argv("exec", "client", "--", sys.executable, "-c", _HOLD),
        env=own_lab.environment, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    with hold:
        assert hold.stdout is not None and hold.stdout.readline() == "open\n"
        own_lab.ok("apply", "-f", "-", stdin=(WEB + _SIX).replace("selector: {app: web}", "selector: {app: other}"))
        assert hold.stdout.readline() == "ConnectionResetError\n"


def _changes_hands(lab: LabUnderTest) -> None:
    """A second instance stands by and listens beside the first one; that one ends, and no connection to loopback is refused."""
    files = ("--config", _CONFIG, "--run-dir", "/run/kproxy")
    second = subprocess.Popen(
        lab.argv("exec", "node-1", "--", sys.executable, "-m", "kproxy", "run", *files),
        env=lab.environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert second.stderr is not None
        while "Standing by" not in (line := second.stderr.readline()):
            assert line, "the second instance ended"
        deadline = time.monotonic() + 20
        while lab.at("node-1", "ss", "-ltnH", "sport", "=", "30080").count("lo:30080") < 2:
            assert time.monotonic() < deadline, "both listen"
        words = (sys.executable, str(LOAD), "connect", "127.0.0.1", "30080", "--rate", "100", "--seconds", "6")
        load = subprocess.Popen(lab.argv("exec", "node-1", "--", *words), env=lab.environment, stdout=subprocess.PIPE)
        time.sleep(2)
        lab.ok("exec", "node-1", "--", sys.executable, "-c", KILL, "kproxy.supervisor", "SIGTERM")
        told = json.loads(load.communicate(timeout=60)[0])
        assert (told["sent"], told["failed"]) == (600, 0), told
    finally:
        second.terminate()
        second.communicate(timeout=30)


# Holds one connection through the node port, says nothing in it, and tells how it ends.
_HOLD = """
import socket
sock = socket.create_connection(("192.168.200.21", 30080), 10)
print("open", flush=True)
sock.settimeout(20)
try:
    print("received", sock.recv(1), flush=True)
except OSError as error:
    print(type(error).__name__, flush=True)
"""
