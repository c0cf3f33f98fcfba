"""`kproxy cleanup` as a command, against real tables of both variants."""

from __future__ import annotations

import json
import sys

from tests.packet.node import FULL, Node, desired
from tests.support.netns import run

KPROXY = (sys.executable, "-m", "kproxy")


def test_cleanup_takes_the_rules_of_both_variants(node: Node) -> None:
    node.sync(desired(*FULL))
    shown = run(node.space, *KPROXY, "cleanup", "--dry-run")
    assert "-X KUBE-SERVICES" in shown
    assert f"iptables-{node.variant.value}: would remove" in shown
    assert any("KUBE-SERVICES" in line for line in node.save())

    told = json.loads(run(node.space, *KPROXY, "cleanup", "-o", "json"))
    chains = {each["variant"]: each["chains"] for each in told["variants"]}
    assert chains[node.variant.value] > 10
    assert chains[node.variant.other.value] == 0
    assert {line.split(" ")[0] for line in node.save() if "KUBE" in line} == {":KUBE-FIREWALL", "-A"}
    assert all("KUBE-FIREWALL" in line for line in node.save() if "KUBE" in line)

    assert f"iptables-{node.variant.value}: nothing to remove" in run(node.space, *KPROXY, "cleanup")
