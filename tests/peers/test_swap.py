"""Swapping proxies on a living node: kube-proxy ends and kproxy starts, and back, under traffic. Nobody notices, nothing is left behind.

A hundred Services of every kind that leads somewhere else in the rules: cluster IPs, node ports with both external traffic policies,
client affinity. While one program follows the other, 500 new connections a second, 200 long-lived TCP flows and 40 UDP flows go on, from a
pod and from outside. Afterwards the kernel holds what the present program writes into an empty one, so no chain of the other is left:
kproxy's dispatch trees and DNS exceptions, kube-proxy's canaries.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from kproxy.backends.iptables import names
from kproxy.backends.iptables.ruleset import parse
from kproxy.backends.iptables.variant import Variant
from kproxy.lab.controlplane import ControlPlane
from kproxy.model.names import Family
from tests.support import echoing
from tests.support.one_node import OneNode, endpoint_address, service_address
from tests.support.prefilled import endpoint_slice, node, prefilled, service, service_name
from tests.support.proxies import Program, Running, Stage
from tests.support.traffic import Outcome, Traffic

COUNT, ENDPOINTS, WITH_NODE_PORT = 100, 3, 40
STICKY, LOCAL = (
    5,
    1,
)  # numbers of Services: the one with affinity; every second node port has externalTrafficPolicy Local
NODE_OUTSIDE = "192.0.2.1"
PORTS = ("TCP", 80, echoing.NAMING), ("TCP", 81, echoing.ECHO), ("UDP", 82, echoing.NAMING)
SWEEP_S = 10.0  # kube-proxy sweeps with its first sync; its next one may be a second later
DISPATCH = {*names.DISPATCH_CHAINS["nat"], *names.DISPATCH_CHAINS["filter"]}

Rules = dict[tuple[str, str, str], list[str]]  # family, table, chain → its rules


def _node_port(number: int, port: int) -> int:
    return 30_000 + 10 * number + port - 80


def _services() -> Iterator[dict[str, Any]]:
    for number in range(COUNT):
        name, exposed = service_name(number), number < WITH_NODE_PORT
        ports = [
            (f"p{port}", protocol, port, target, *((_node_port(number, port),) if exposed else ()))
            for protocol, port, target in PORTS
        ]
        spec: dict[str, object] = {}
        if exposed:
            spec |= {"type": "NodePort", "externalTrafficPolicy": "Local" if number % 2 == LOCAL else "Cluster"}
        if number == STICKY:
            spec |= {"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 600}}}
        yield service(name, service_address(number), ports, **spec)
        addresses = [endpoint_address(number * ENDPOINTS + n) for n in range(ENDPOINTS)]
        yield endpoint_slice(name, addresses, [(f"p{port}", protocol, target) for protocol, port, target in PORTS])


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[OneNode, ControlPlane]]:
    with OneNode() as bed, bed.answers():
        manifests = [node(), *_services()]
        with prefilled(bed, tmp_path_factory.mktemp("swap"), manifests) as plane:
            yield bed, plane


def _rules(stage: Stage) -> Rules:
    """What the kernel holds. Entries of chains that lead to Services exclude each other: their order has no meaning.

    KUBE-FIREWALL is left out: the kubelet makes it as well, so kproxy takes neither it nor a jump to it away, also where it needs none.
    """
    found: Rules = {}
    for family, tool in ((Family.IPV4, "iptables"), (Family.IPV6, "ip6tables")):
        for table, chains in parse(stage.bed.rules(stage.variant, tool), family).tables.items():
            for chain, rules in chains.items():
                if chain == names.KUBELET_FIREWALL:
                    continue
                texts = [rule.text for rule in rules if rule.jump != names.KUBELET_FIREWALL]
                free = chain in DISPATCH or names.is_dispatch(table, chain)
                found[family.value, table, chain] = sorted(texts) if free else texts
    return found


def _difference(one: Rules, other: Rules) -> list[str]:
    return [
        f"{place}: {one.get(place)} → {other.get(place)}"
        for place in sorted({*one, *other})
        if one.get(place) != other.get(place)
    ]


def _started(stage: Stage, program: Program) -> Running:
    running = stage.start(program)
    running.wait_synced(30.0)
    return running


def _at_rest(stage: Stage) -> Rules:
    """The rules once they stay the same for half a second."""
    seen, since = _rules(stage), time.monotonic()
    while time.monotonic() - since < 0.5:
        time.sleep(0.1)
        if (now := _rules(stage)) != seen:
            seen, since = now, time.monotonic()
    return seen


def _alone(stage: Stage, program: Program) -> Rules:
    """What a program writes into an empty kernel."""
    stage.bed.clean(stage.variant)
    running = _started(stage, program)
    try:
        return _at_rest(stage)
    finally:
        running.stop()


@dataclass(slots=True)
class Load:
    """Everything that goes on meanwhile: from a pod, from outside, and from a client that sticks to one endpoint."""

    pod: Traffic
    outside: Traffic
    sticky: Traffic

    def finish(self) -> dict[str, Outcome]:
        return {"pod": self.pod.finish(), "outside": self.outside.finish(), "sticky": self.sticky.finish()}


def _load(bed: OneNode, stack: ExitStack) -> Load:
    numbers = [n for n in range(0, COUNT, 7) if n != STICKY]
    pod = [service_address(n) for n in numbers]
    outside = [n for n in range(8) if n != STICKY]
    from_pod = Traffic(
        bed.pods,
        seconds=60,
        new=[{"address": a, "port": 80, "rate": 380 / len(pod)} for a in pod],
        flows=[{"address": a, "port": 81, "count": 10, "every_s": 0.5} for a in pod[:14]],
        datagrams=[{"address": a, "port": 82, "count": 2, "every_s": 0.1} for a in pod[:13]],
    )
    stack.enter_context(from_pod)
    from_outside = Traffic(
        bed.outside,
        seconds=60,
        new=[{"address": NODE_OUTSIDE, "port": _node_port(n, 80), "rate": 100 / len(outside)} for n in outside],
        flows=[{"address": NODE_OUTSIDE, "port": _node_port(n, 81), "count": 10, "every_s": 0.5} for n in outside[:6]],
        datagrams=[{"address": NODE_OUTSIDE, "port": _node_port(n, 82), "count": 2, "every_s": 0.1} for n in outside],
    )
    stack.enter_context(from_outside)
    sticky = Traffic(bed.pods, seconds=60, new=[{"address": service_address(STICKY), "port": 80, "rate": 20}])
    stack.enter_context(sticky)
    return Load(from_pod, from_outside, sticky)


def _swap(stage: Stage, old: Running, program: Program, alone: Rules, stack: ExitStack) -> Running:
    """One program ends, the other starts; returns once the kernel holds exactly what it would have written alone."""
    old.stop()
    time.sleep(0.3)  # a node without any proxy, as between two DaemonSets
    new = _started(stage, program)
    stack.callback(new.stop)
    deadline = time.monotonic() + SWEEP_S
    while (left := _difference(alone, _rules(stage))) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not left, f"{old.program.value} → {program.value}: " + "\n".join(left)
    time.sleep(0.5)
    return new


@pytest.mark.parametrize("variant", list(Variant), ids=lambda variant: variant.value)
def test_a_swap_under_load_is_not_noticed_and_leaves_nothing(
    cluster: tuple[OneNode, ControlPlane], variant: Variant, tmp_path: Path
) -> None:
    bed, plane = cluster
    stage = Stage(bed, plane, variant, tmp_path, dns=True)
    alone = {program: _alone(stage, program) for program in (Program.KPROXY, Program.KUBE_PROXY)}
    assert alone[Program.KPROXY] != alone[Program.KUBE_PROXY], "the trees and the DNS exceptions are kproxy's alone"
    with ExitStack() as stack:
        running = _started(stage, Program.KUBE_PROXY)
        stack.callback(running.stop)
        load = _load(bed, stack)
        time.sleep(0.5)
        running = _swap(stage, running, Program.KPROXY, alone[Program.KPROXY], stack)
        _swap(stage, running, Program.KUBE_PROXY, alone[Program.KUBE_PROXY], stack)
        seen = load.finish()
    for place, outcome in seen.items():
        assert outcome.failed == 0, f"{place}: {outcome}"
        assert outcome.flows_broken == outcome.flows_stalled == 0, f"{place}: {outcome}"
        assert outcome.moved == outcome.datagrams_lost == 0, f"{place}: {outcome}"
    assert seen["pod"].flows + seen["outside"].flows == 200
    assert len(seen["sticky"].endpoints) == 1, f"affinity is lost: {seen['sticky']}"
