"""Changes and abuses that a proxy must come through, with real packets; each test bears the number of its fault."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

import pytest

from kproxy.backends.iptables.variant import Variant
from kproxy.model.external_ips import ExternalIPSettings
from kproxy.model.names import Protocol
from tests.packet.executor import PATIENCE_S, Executor
from tests.support.addressing import CLUSTER_IP, EXTERNAL_IP, NODE_IP, NODE_IP_2, VIP
from tests.support.bed import Bed
from tests.support.builders import Built, ep, port, slice_, svc
from tests.support.flows import (
    DROP,
    PASS,
    SETTINGS,
    Flow,
    H,
    P,
    Row,
    Step,
    X,
    flow,
    keep,
    row,
    scenario,
    snat,
    step,
)
from tests.support.netns import run
from tests.support.probing import Answered, probe
from tests.support.tables import empty, saved

_A, _B, _LOCAL = "10.180.0.1", "10.180.1.1", "10.180.2.1"
_REACHED = (flow(P, CLUSTER_IP, 80, keep(f"{_A}:80")),)
_GONE = (flow(P, CLUSTER_IP, 80, PASS), flow(X, NODE_IP, 3001, PASS))
_KINDS: dict[str, tuple[Built, tuple[Flow, ...]]] = {
    "ExternalName": (svc((), type="ExternalName", external_name="example.org"), _GONE),
    "ClusterIP": (svc(), (*_REACHED, flow(X, NODE_IP, 3001, PASS))),
    "NodePort": (svc(ports=[port(node=3001)]), (*_REACHED, flow(X, NODE_IP, 3001, snat(f"{_A}:80")))),
    "LoadBalancer": (
        svc(ports=[port(node=3001)], lb=[VIP], ranges=["203.0.113.0/24"]),
        (*_REACHED, flow(X, NODE_IP, 3001, snat(f"{_A}:80")), flow(X, VIP, 80, snat(f"{_A}:80"))),
    ),
}
# The four flips of the conformance suite, and those to and from a load balancer.
_FLIPS = [
    ("ExternalName", "ClusterIP"),
    ("ExternalName", "NodePort"),
    ("ClusterIP", "ExternalName"),
    ("NodePort", "ExternalName"),
    ("LoadBalancer", "ClusterIP"),
    ("ExternalName", "LoadBalancer"),
]


def _flip(before: str, after: str) -> Row:
    return scenario(
        f"{before} to {after}", "flip", *(step([_KINDS[k][0], slice_(ep(_A))], *_KINDS[k][1]) for k in (before, after))
    )


_TEN = [f"10.180.3.{n}" for n in range(1, 11)]
_SPREAD = step([svc(ports=[port(node=3001)]), slice_(*map(ep, _TEN))], flow(P, CLUSTER_IP, 80, keep()))
_OPEN = svc(ports=[port(node=3001)], external=[EXTERNAL_IP], lb=[VIP], external_policy="Local")
_LOCAL_ONLY = row(
    "fault 30",
    "policy Local",
    [_OPEN, slice_(ep(_A), ep(_B), ep(_LOCAL, local=True))],
    *(flow(X, *to, keep(f"{_LOCAL}:80"), connections=60) for to in ((EXTERNAL_IP, 80), (VIP, 80), (NODE_IP, 3001))),
)
_NONE_LOCAL = row(
    "fault 30",
    "policy Local, none there",
    [_OPEN, slice_(ep(_A), ep(_B))],
    *(flow(X, *to, DROP) for to in ((EXTERNAL_IP, 80), (VIP, 80), (NODE_IP, 3001))),
)
_HOSTILE = ("127.0.0.1", "169.254.169.254", "224.0.0.1", "239.1.1.1", "0.0.0.0", "255.255.255.255", "::ffff:10.180.0.1")
_AIMED = row(
    "fault 42",
    "endpoints that no Service may have",
    [svc(), slice_(*(ep(a, local=True) for a in _HOSTILE), ep(_A), ep(_A))],
    flow(P, CLUSTER_IP, 80, keep(f"{_A}:80"), connections=40),
)
_CLAIM = [svc(external=[NODE_IP, NODE_IP_2, EXTERNAL_IP]), slice_(ep(_A))]
_TAKEN = {
    "gate off": (ExternalIPSettings(enabled=False), ()),
    "default": (ExternalIPSettings(), (EXTERNAL_IP,)),
    "allow-list": (ExternalIPSettings(allowed_networks=("192.168.1.0/24",)), (NODE_IP_2,)),
    "guard off": (ExternalIPSettings(allow_protected=True), (NODE_IP, NODE_IP_2, EXTERNAL_IP)),
}


def _claimed(name: str) -> Row:
    guard, served = _TAKEN[name]
    flows = [
        flow(source, address, 80, snat(f"{_A}:80") if address in served else PASS)
        for address in (NODE_IP, NODE_IP_2, EXTERNAL_IP)
        for source in (X, P)
    ]
    return row(name, "external IPs", _CLAIM, *flows, settings=replace(SETTINGS, external_ips=guard))


# xt_recent remembers 100 addresses in each list (its parameter ip_list_tot), and a list is one endpoint's: kube-proxy's bound as well.
# Twenty endpoints get 50 clients each of a thousand; none gets 100 (p = 1e-9).
_TWENTY = [f"10.180.4.{n}" for n in range(1, 21)]
_CLIENTS = [f"10.0.{n // 250 + 2}.{n % 250 + 1}" for n in range(1000)]
_STICKY_S = 6


def _sticky(*addresses: str) -> Step:
    return step([svc(affinity_s=_STICKY_S), slice_(*map(ep, addresses))], flow(P, CLUSTER_IP, 80, keep()))


_ROWS = (
    *(_flip(*flip) for flip in _FLIPS),
    scenario("spread", "spread", _SPREAD),
    scenario("sticky", "sticky", _sticky(*_TWENTY)),
    _LOCAL_ONLY,
    _AIMED,
    *map(_claimed, _TAKEN),
)


@pytest.fixture(scope="module", params=list(Variant), ids=lambda variant: variant.value)
def executor(request: pytest.FixtureRequest) -> Iterator[Executor]:
    bed = Bed(_ROWS)
    yield Executor(bed, request.param)
    bed.close()


def _landed(executor: Executor) -> dict[str, tuple[str, float, float]]:
    """By client: the endpoint it reached, and when it began and ended asking (monotonic)."""
    found = {}
    with executor.bed.clients.entered():
        for client in _CLIENTS:
            began = time.monotonic()
            (result,) = probe(Protocol.TCP, client, (CLUSTER_IP, 80), 1, PATIENCE_S)
            assert isinstance(result, Answered), f"{client}: {result}"
            found[client] = (result.by, began, time.monotonic())
    return found


def test_fault_27_a_thousand_clients_stick_and_move_when_they_must(executor: Executor) -> None:
    """For the timeout, less than two seconds of it; over a start over; until the endpoint is gone, and then at once."""
    whole = _sticky(*_TWENTY)
    case = scenario("sticky", "sticky", whole)
    executor.bed.place(whole)
    executor.sync(case, whole)
    first = _landed(executor)
    executor.applied = Executor(
        executor.bed, executor.variant
    ).applied  # another instance, which knows what the kernel tells it
    executor.sync(case, whole)
    again = _landed(executor)
    in_time = [c for c in _CLIENTS if again[c][2] - first[c][1] < _STICKY_S - 2]
    assert len(in_time) > 500, "this machine is too slow to tell"
    assert [c for c in in_time if again[c][0] != first[c][0]] == []
    fewer = _sticky(*_TWENTY[1:])
    executor.sync(case, fewer)
    moved = _landed(executor)
    assert f"{_TWENTY[0]}:80" in {by for by, _, _ in first.values()}
    assert f"{_TWENTY[0]}:80" not in {by for by, _, _ in moved.values()}
    time.sleep(_STICKY_S + 2)
    later = _landed(executor)
    assert sum(later[c][0] != moved[c][0] for c in _CLIENTS) > 500, (
        "whoever comes back after the timeout is nobody's client"
    )


@pytest.mark.parametrize(("before", "after"), _FLIPS)
def test_fault_28_type_flips_leave_no_stale_rule(executor: Executor, before: str, after: str) -> None:
    """One sync for each flip, and then the tables are, rule for rule, those of a node that knows the new type alone."""
    flipped = _flip(before, after)
    assert executor.run_row(flipped) == []
    there = saved(executor.bed.node, executor.variant)
    empty(executor.bed.node)
    with executor.bed.node.entered():
        executor.applied = asyncio.run(executor.backend.observe())
    assert executor.run_row(replace(flipped, steps=flipped.steps[1:])) == []
    assert there == saved(executor.bed.node, executor.variant)


# Chi-square of nine degrees of freedom exceeds this by luck with p = 1.3e-9. (A bound at p = 0.01 fails one run in a hundred, and nobody
# believes it after that.) What a bug does is far beyond: an endpoint without its share, or one whose share is a third off, is found
# practically every time.
_LIMIT = 60.0


@pytest.mark.parametrize("way", ["cluster IP", "node port"])
def test_fault_29_connections_spread_evenly(executor: Executor, way: str) -> None:
    executor.bed.place(_SPREAD)
    executor.sync(scenario("spread", "spread", _SPREAD), _SPREAD)
    source, to = {"cluster IP": (P, (CLUSTER_IP, 80)), "node port": (X, (NODE_IP, 3001))}[way]
    with executor.bed.at(source):
        results = probe(_SPREAD.flows[0].protocol, source.address, to, 10_000, PATIENCE_S)
    hits = Counter(result.by for result in results if isinstance(result, Answered))
    assert hits.total() == 10_000
    assert hits.keys() == {f"{a}:80" for a in _TEN}
    chi_square = sum((count - 1000) ** 2 / 1000 for count in hits.values())
    assert chi_square < _LIMIT, hits


def test_fault_30_policy_local_keeps_the_source_and_the_node(executor: Executor) -> None:
    """Every connection from outside ends on this node with its own source; nothing is sent to the other node, not even an attempt."""
    for wanted in (_LOCAL_ONLY, _NONE_LOCAL):
        sent = _packets_to_other(executor)
        assert executor.run_row(wanted) == []
        assert _packets_to_other(executor) == sent
    short = row("fault 30", "the node itself", list(_LOCAL_ONLY.steps[0].objects), flow(H, VIP, 80, snat(*_every())))
    assert executor.run_row(short) == [], "who needs no load balancer may go anywhere"
    assert _packets_to_other(executor) > sent, "what was counted is what goes there"


def _every() -> list[str]:
    return [f"{a}:80" for a in (_A, _B, _LOCAL)]


def _packets_to_other(executor: Executor) -> int:
    """TCP segments that arrived at the other node since it is there."""
    table = run(executor.bed.other, "nft", "list", "ruleset")
    if "arrived" not in table:
        rule = "table inet arrived { chain segments { type filter hook prerouting priority 0; meta l4proto tcp counter; }; }"
        run(executor.bed.other, "nft", rule)
        return 0
    return int(table.partition("packets ")[2].split()[0])


def test_fault_42_hostile_endpoints_get_no_rule(executor: Executor) -> None:
    assert executor.run_row(_AIMED) == []
    rules = "\n".join(saved(executor.bed.node, executor.variant))
    assert [address for address in _HOSTILE if f"{address}:80" in rules or f"[{address}]:80" in rules] == []


@pytest.mark.parametrize("name", list(_TAKEN))
def test_fault_44_no_external_ip_takes_what_is_somebody_elses(executor: Executor, name: str) -> None:
    assert executor.run_row(_claimed(name)) == []
    rules = "\n".join(saved(executor.bed.node, executor.variant))
    served = [a for a in (NODE_IP, NODE_IP_2, EXTERNAL_IP) if f"-d {a}/32 " in rules]
    assert served == list(_TAKEN[name][1])
