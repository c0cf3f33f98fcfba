"""What a node's kproxy tells its own command line: state, drift, one Service, packets. Inside of the lab's nodes, as people call it."""

from __future__ import annotations

import json
from typing import Any

from tests.support.lab import EXAMPLES, LabUnderTest

NODES = ("node-1", "node-2", "node-3")
_TRIES = 10


def _json(lab: LabUnderTest, node: str, *words: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(lab.at(node, "kproxy", *words, "-o", "json"))
    return found


def test_every_node_is_ready_and_tells_its_mode_and_watches(lab: LabUnderTest) -> None:
    for node in NODES:
        lab.at(node, "kproxy", "status", "--wait", "20")
        told = _json(lab, node, "status")
        assert (told["node"], told["writer"], told["health"]["ready"]) == (node, True, True)
        assert told["evidence"][0].startswith(f"iptables-{told['variant']}: ")
        assert all(watch["synced"] for watch in told["watches"])
        assert told["sync"]["count"] >= 1
        assert told["rules"] > 50
        assert told["dnsWorkers"] == 2


def test_where_no_kproxy_runs_the_exit_code_is_3(lab: LabUnderTest) -> None:
    done = lab.run("exec", "client", "--", "kproxy", "status")
    assert done.returncode == 3
    assert "no kproxy runs here" in done.stderr


def test_a_service_explained_live_with_the_kernels_own_counters(lab: LabUnderTest) -> None:
    lab.ok("apply", "-f", str(EXAMPLES / "s06-nodeport.yaml"))
    lab.until(
        "200",
        "client",
        "curl",
        "-s",
        "-o",
        "/dev/null",
        "-w",
        "%{http_code}",
        "-m",
        "2",
        "http://192.168.200.21:30001/",
    )
    told = _json(lab, "node-1", "explain", "node-js-nodeport", "--from", "outside")
    assert (told["node"], told["drift"], told["live"]["writer"]) == ("node-1", False, True)
    assert told["live"]["heardSeconds"] < 120
    (port,) = told["ports"]
    rules = port["rules"]
    assert all(rule["kernel"]["present"] for rule in rules)
    reached = [
        r for r in rules if r["chain"].startswith("KUBE-SEP-") and "DNAT" in r["rule"] and r["kernel"]["packets"] > 0
    ]
    assert reached, "the connection just made was counted"
    assert all(use["used"] for e in port["endpoints"] for use in (e["internal"], e["external"]))
    ways = {way["kind"]: way for way in told["from"]["ways"]}
    assert {o["outcome"] for o in ways["node port"]["outcomes"]} == {"reaches"}
    text = lab.at("node-1", "kproxy", "explain", "svc/default/node-js-nodeport")
    assert "the kernel holds exactly these" in text


def test_trace_and_render_live_are_about_the_nodes_own_rules(lab: LabUnderTest) -> None:
    told = _json(lab, "node-2", "trace", "--from", "node", "default/kubernetes:https")
    assert told["node"] == "node-2"
    assert {o["outcome"] for o in told["outcomes"]} == {"reaches"}
    rendered = lab.at("node-2", "kproxy", "render", "--family", "ipv4")
    held = lab.at("node-2", "sh", "-c", "iptables-save -t nat")
    ours = [line for line in rendered.splitlines() if line.startswith("-A KUBE-SVC-")]
    assert ours
    assert set(ours) <= set(held.splitlines()), "what is wanted is what is there, word for word"


def test_drift_is_told_and_gone_once_mended(lab: LabUnderTest) -> None:
    assert lab.run("exec", "node-3", "--", "kproxy", "diff").returncode == 0
    # kproxy mends within a second or two; the look has to come first, so both run in one breath, and again when it did not
    broken = "iptables -t nat -F KUBE-MARK-MASQ; iptables -t filter -I KUBE-FORWARD -s 192.0.2.1 -j RETURN; kproxy diff -o json"
    for _ in range(_TRIES):
        done = lab.run("exec", "node-3", "--", "sh", "-c", broken)
        told = json.loads(done.stdout)
        chains = {chain["chain"]: chain for chain in told["chains"]}
        if len(chains) == 2:
            break
    assert (done.returncode, told["drift"]) == (1, True)
    assert chains["KUBE-MARK-MASQ"]["missing"] == ["-j MARK --set-xmark 0x4000/0x4000"]
    assert chains["KUBE-FORWARD"]["extra"] == ["-s 192.0.2.1/32 -j RETURN"]
    lab.until("the kernel holds what kproxy wants", "node-3", "kproxy", "diff")
    drift = _json(lab, "node-3", "status")["drift"]
    assert drift["found"] >= 1
    assert drift["mended"] == drift["found"]
