"""Runs the chosen lines at the same time, and turns whatever stops one into a step of its own."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from kproxy.errors import ConfigError, KproxyError
from kproxy.lab.check import discovery, modes, services
from kproxy.lab.check.report import Line
from kproxy.lab.check.rig import Rig
from kproxy.lab.client import ApiClient
from kproxy.lab.statefile import LabState

Exercise = Callable[[Rig, Line], Awaitable[None]]
EXERCISES: dict[str, tuple[str, Exercise]] = {
    "S1": ("a ClusterIP is reached from every node and pod, and spreads over its pods", services.s01),
    "S2": ("the address stays while pods come and go", services.s02),
    "S3": ("port and targetPort differ; TCP and UDP", services.s03),
    "S4": ("several ports, named ports, named targetPort", services.s04),
    "S5": ("session affinity by client IP", services.s05),
    "S6": ("a node port answers on every node, also without a pod there", services.s06),
    "S7": ("a LoadBalancer answers at its outside address, node port and cluster IP", services.s07),
    "S8": ("externalIPs patched on a Service answer from outside", services.s08),
    "S9": ("ExternalName: an alias and the target's address", discovery.s09),
    "S10": ("headless: one address per ready pod", discovery.s10),
    "S11": ("a Service without selector and hand-made Endpoints", services.s11),
    "S12": ("a chosen cluster IP, and none", services.s12),
    "S13": ("discovery by environment variables", discovery.s13),
    "S14": ("discovery by DNS: four forms of the name", discovery.s14),
    "S15": ("the odd form name.ns.services.cluster.local", discovery.s15),
    "S16": ("kube-dns at 10.96.0.10 and its own name", discovery.s16),
    "S17": ("resolv.conf of pods", discovery.s17),
    "S18": ("iptables mode and userspace mode", modes.s18),
    "S19": ("changes take effect within a second", discovery.s19),
    "S21": ("the ingress controller's node ports and external IPs", services.s21),
}
LEFT_OUT = (("S20", "Ingress rules need kproxy's own ingress controller, which does not exist yet"),)
_LINE_LIMIT_S = 200.0
# S18 changes the mode of a node, S19 measures times: they run when the others no longer need the node and keep this machine busy.
_ALONE = ("S18", "S19")
_NODES_NEEDED = 3  # the notes' 192.168.200.21-23; more do no harm


def chosen(ids: Sequence[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """The lines to run and those left out, for what was asked (nothing: all). ConfigError for a line that does not exist."""
    wanted = [name.upper() for name in ids]
    left = [(name, why) for name, why in LEFT_OUT if not wanted or name in wanted]
    for name in wanted:
        if name not in EXERCISES and name not in dict(LEFT_OUT):
            raise ConfigError(f"there is no line {name}; the lines are S1 to S21")
    return [name for name in EXERCISES if not wanted or name in wanted], left


async def check(
    kubeconfig: Path, examples: Path, state: LabState, ids: Sequence[str], done: Callable[[Line], None]
) -> list[Line]:
    """Runs the lines; `done` is called for each as it ends. What the check created is removed afterwards."""
    if len(state.nodes) < _NODES_NEEDED:
        raise ConfigError(f"the exercises need {_NODES_NEEDED} nodes, this lab has {len(state.nodes)}")
    lines = {name: Line(id=name, title=EXERCISES[name][0]) for name in ids}
    async with ApiClient.from_kubeconfig(kubeconfig) as api:
        rig = Rig(api=api, examples=examples, nodes=state.nodes, mode=state.mode, variant=state.variant)
        try:
            await rig.apply("clients.yaml")
            await asyncio.gather(*(rig.ready_pod(name) for name in services.CLIENTS))
            together = [_one(rig, lines[name], done) for name in ids if name not in _ALONE]
            await asyncio.gather(*together)
            for name in _ALONE:
                if name in lines:
                    await _one(rig, lines[name], done)
        finally:
            await rig.remove()
    return list(lines.values())


async def _one(rig: Rig, line: Line, done: Callable[[Line], None]) -> None:
    began = time.monotonic()
    try:
        async with asyncio.timeout(_LINE_LIMIT_S):
            await EXERCISES[line.id][1](rig, line)
    except TimeoutError:
        line.step("the whole line", f"an end within {_LINE_LIMIT_S:g} s", "it took longer", False)
    except KproxyError as error:
        line.step("getting ready", "no error", str(error), False)
    line.seconds = time.monotonic() - began
    done(line)
