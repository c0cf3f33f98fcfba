"""`kproxy dig` and `kproxy dns observe` on a live node: a pod's look-ups as its own node answers them."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from tests.support.lab import EXAMPLES, LabUnderTest

POD = "default/nettool-1"


def _dig(lab: LabUnderTest, *words: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(lab.at("node-1", "kproxy", "dig", *words, "-o", "json"))
    return found


def test_a_pods_look_up_attempt_by_attempt(lab: LabUnderTest) -> None:
    lab.ok("apply", "-f", str(EXAMPLES / "clients.yaml"))
    lab.until("yes", "node-1", "sh", "-c", f"kproxy dig kubernetes --as-pod {POD} >/dev/null 2>&1 && echo yes")
    told = _dig(lab, "www.example.com", "--as-pod", POD)
    assert told["searches"] == ["default.svc.cluster.local", "svc.cluster.local", "cluster.local", "lab.internal"]
    assert [a["rcode"] for a in told["attempts"]] == ["NXDOMAIN"] * 4 + ["NOERROR"]
    assert all(a["seconds"] > 0 for a in told["attempts"])
    assert "there is no namespace com" in told["attempts"][1]["reason"]
    assert told["walked"]["rcode"] == "NOERROR" and "CNAME www.example.com." in told["walked"]["answer"][0]
    assert "its first question already brings the answer" in told["advice"][1]
    own = _dig(lab, "kubernetes", "--as-pod", POD)
    assert len(own["attempts"]) == 1 and own["walked"] is None and own["advice"] == []


def test_exit_codes_and_unknown_pods(lab: LabUnderTest) -> None:
    assert lab.run("exec", "node-1", "--", "kproxy", "dig", "nosuch.default.svc.cluster.local").returncode == 1
    done = lab.run("exec", "node-1", "--", "kproxy", "dig", "web", "--as-pod", "default/nettol-1")
    assert done.returncode == 2 and "did you mean default/nettool-1?" in done.stderr
    assert lab.run("exec", "client", "--", "kproxy", "dig", "web").returncode == 3


def test_answers_are_seen_with_pods_names_and_counted(lab: LabUnderTest) -> None:
    with ThreadPoolExecutor(1) as pool:
        words = ("kproxy", "dns", "observe", "--pod", POD, "-n", "2", "-o", "json")
        looking = pool.submit(lab.at, "node-1", *words)
        while not looking.done():
            lab.at("nettool-1", "getent", "ahosts", "www.example.com")
        seen = [json.loads(line) for line in looking.result().splitlines()]
    assert {one["pod"] for one in seen} == {POD}
    assert {one["name"] for one in seen} == {"www.example.com.default.svc.cluster.local."}
    assert {(one["rcode"], one["saved"]) for one in seen} == {("NOERROR", 4)}
