"""Exercise S18: the two modes of kproxy, and the change from one to the other on a node that is being used.

Which mode a node runs is told by its page, and by what the kernel holds: in mode iptables a chain of the Service that leads to its pods; in
mode userspace an element of a set, no chain, and processes that listen.
"""

from __future__ import annotations

import asyncio
import re
import sys
from typing import Any

from kproxy.lab.check.report import Line
from kproxy.lab.check.rig import Rig, Said, address_of
from kproxy.lab.check.services import reaches_all
from kproxy.lab.nodeconfig import CONFIG

Raw = dict[str, Any]
_PAGE = "http://127.0.0.1:10249/proxyMode"
_DESTINATIONS = ("nft", "list", "map", "ip", "kproxy-userspace", "destinations")
_CHANGE_S = 60.0  # of a machine that is busy with other things


async def s18(rig: Rig, line: Line) -> None:
    """Both proxy modes: the lab's own on every node, then the other one on the last node, and back, under load."""
    await rig.apply("s18-proxy-modes.yaml")
    pods = await rig.ready_pods("app=my-modes", 2)
    await rig.endpoints("my-modes", {address_of(pod) for pod in pods})
    address = await rig.cluster_ip("my-modes")
    for node in rig.nodes:
        await reaches_all(rig, line, node, f"http://{address}", pods, f"{node}: curl http://{address}")
        await _runs(rig, line, node, rig.mode, address, pods)
    node = rig.nodes[-1]
    for mode in ("userspace" if rig.mode == "iptables" else "iptables", rig.mode):
        await _change(rig, line, node, mode, f"http://{address}")
        await reaches_all(rig, line, node, f"http://{address}", pods, f"{node}, now {mode}: curl http://{address}")
        await _runs(rig, line, node, mode, address, pods)


async def _runs(rig: Rig, line: Line, node: str, mode: str, address: str, pods: list[Raw]) -> None:
    said = await rig.until(lambda: rig.run(node, "curl", "-s", "-S", "-m", "5", _PAGE), lambda s: s.out.strip() == mode)
    line.step(f"{node}: curl {_PAGE}", mode, said.out, said.out.strip() == mode)
    if mode == "iptables":
        await _by_rules(rig, line, node, address, pods)
    else:
        await _by_relay(rig, line, node, address)


async def _change(rig: Rig, line: Line, node: str, mode: str, url: str) -> None:
    """Edits the node's configuration, as a person would; meanwhile the node and a pod on it ask the Service all the time."""
    other = "iptables" if mode == "userspace" else "userspace"
    async with (
        rig.running(node, sys.executable, "-m", "kproxy.lab.probe", "steady", f"{url}/hostname") as of_node,
        rig.running("nettool-3", sys.executable, "-m", "kproxy.lab.probe", "steady", f"{url}/hostname") as of_pod,
    ):
        await rig.run(node, "sed", "-i", f"s/^mode: {other}$/mode: {mode}/", str(CONFIG))
        said = await rig.until(
            lambda: rig.run(node, "curl", "-s", "-S", "-m", "1", _PAGE), lambda s: s.out.strip() == mode, _CHANGE_S
        )
        await rig.until(lambda: _page(rig, node), lambda s: s.code == 0, _CHANGE_S)
        await asyncio.sleep(1.0)  # whatever the other mode left is removed behind its back now
    did = f"{node}: `mode: {mode}` in its configuration; curl {_PAGE}"
    line.step(did, mode, said.out, said.out.strip() == mode)
    for place, told in ((node, of_node.said), ("nettool-3", of_pod.said)):
        passed = bool(re.fullmatch(r"[1-9]\d* answers, 0 failures", told.out.strip()))
        line.step(f"{place}: curl {url} meanwhile, all the time", "answers, 0 failures", told.out, passed)


async def _page(rig: Rig, node: str) -> Said:
    return await rig.python(node, "-m", "kproxy", "status")


async def _by_rules(rig: Rig, line: Line, node: str, address: str, pods: list[Raw]) -> None:
    """The kernel's own listing shows the Service and its endpoints, in whichever of the two iptables the node uses."""

    async def listed() -> Said:
        return Said(code=0, out=await _saved(rig, node))

    wanted = {address_of(pod) for pod in pods}
    found = (await rig.until(listed, lambda s: _targets(s.out) == wanted and bool(_jumps(s.out, address)))).out
    used = {words[1] for text in found.splitlines() if (words := text.split())[:1] == ["#"]}
    jumps, targets = _jumps(found, address), _targets(found)
    right = used == {rig.variant} if rig.variant != "auto" else len(used) == 1
    passed = right and len(jumps) == 1 and targets == wanted
    seen = f"iptables-{'+'.join(sorted(used))}: {', '.join(jumps) or 'no jump'}, DNAT to {', '.join(sorted(targets)) or 'nothing'}"
    line.step(
        f"{node}: iptables-save -t nat | grep my-modes",
        f"in iptables-{rig.variant} alone: KUBE-SVC-…, DNAT to both pods",
        seen,
        passed,
    )
    key = f"{address} . tcp . 80"
    left = await rig.until(lambda: rig.run(node, *_DESTINATIONS), lambda s: key not in s.out)
    seen = f"{key} is there" if key in left.out else "not there"
    line.step(f"{node}: {' '.join(_DESTINATIONS)}", f"no {key}: nothing leads to the relay", seen, key not in left.out)


def _jumps(rules: str, address: str) -> list[str]:
    """In KUBE-SERVICES itself or, with more than 32 entries there, in a branch of its."""
    return re.findall(rf"-A KUBE-(?:SERVICES|SVC-\S+) -d {re.escape(address)}/32 .*-j (KUBE-SVC-\w+)", rules)


def _targets(rules: str) -> set[str]:
    return set(re.findall(r"--to-destination (\S+):80", rules))


async def _saved(rig: Rig, node: str) -> str:
    """The Service's rules in both variants, each part with a line `# VARIANT`."""
    found = []
    for variant in ("nft", "legacy"):
        # Without its warnings about the other variant, which get into the middle of a rule.
        said = await rig.run(node, "sh", "-c", f"iptables-{variant}-save -t nat 2>/dev/null")
        rules = [rule for rule in said.out.splitlines() if "default/my-modes:http" in rule]
        found += [f"# {variant}", *rules] if rules else []
    return "\n".join(found)


async def _by_relay(rig: Rig, line: Line, node: str, address: str) -> None:
    """A destination in our table, a process that listens, and none of the other mode's rules."""
    key = f"{address} . tcp . 80"
    said = await rig.until(lambda: rig.run(node, *_DESTINATIONS), lambda s: key in s.out)
    seen = next((text.strip() for text in said.out.splitlines() if key in text), "no such element")
    line.step(f"{node}: {' '.join(_DESTINATIONS)}", f"{key} among them", seen, key in said.out)
    said = await rig.run(node, "ss", "-ltnpH")
    relays = sorted(set(re.findall(r'127\.0\.0\.1:(\d+).*"kproxy-relay', said.out)))
    line.step(f"{node}: ss -ltnp", "kproxy-relay on two ports of 127.0.0.1", ", ".join(relays), len(relays) == 2)

    async def left() -> Said:
        return Said(code=0, out=await _saved(rig, node))

    rules = await rig.until(left, lambda s: not s.out, 30.0)
    line.step(f"{node}: iptables-save -t nat | grep my-modes", "no rule", rules.out or "no rule", not rules.out)
