"""Every iptables row of the behaviour table: resolve → compile → tracer, step by step, as a node would live through it.

The tracer stands for a kernel that sees first packets only. NOT_TRACEABLE lists the rows of which it cannot show all, and why.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from kproxy.backends.iptables.compile import compile_ruleset
from kproxy.backends.iptables.ruleset import Ruleset
from kproxy.backends.iptables.settings import IptablesSettings
from kproxy.explain.trace import Branch, Fate, KernelView, Origin, Packet, Trace
from kproxy.explain.trace_iptables import trace
from kproxy.model.addresses import family_of
from kproxy.model.desired import DesiredState
from kproxy.model.resolve import resolve
from tests.support.flows import IPT, POD_INTERFACE, Flow, Outcome, Place, Row, Seen, Step
from tests.support.packets import OWN_ROWS, ROWS

# Rows with flows that only a kernel can show; all their other flows are run here.
_KNOWN_CONNECTION = "a packet of a connection that conntrack knows: rules are not asked"
NOT_TRACEABLE = dict.fromkeys(("X06", "X06-v6", "X07", "X07-v6", "X10", "X10-v6"), _KNOWN_CONNECTION)

_FATES = {
    Outcome.REACH: Fate.REACHES,
    Outcome.REJECT: Fate.REJECTED,
    Outcome.DROP: Fate.DROPPED,
    Outcome.PASS: Fate.UNTOUCHED,
}
_ROWS = [row for row in (*ROWS, *OWN_ROWS) if any(IPT in f.modes for s in row.steps for f in s.flows)]


# In a line, as small clusters have their entries; and every entry in a leaf of its own below KUBE-SERVICES and KUBE-NODEPORTS.
_IN_LINE, _IN_TREES = IptablesSettings(), IptablesSettings(leaf_entries=0)


def _steps(row: Row, settings: IptablesSettings = _IN_LINE) -> Iterator[tuple[Step, DesiredState, Ruleset]]:
    """The states of a node that lives through the row, every one made from the one before."""
    desired: DesiredState | None = None
    ruleset: Ruleset | None = None
    for step in row.steps:
        desired = resolve(step.snapshot(), row.settings, desired)
        ruleset = compile_ruleset(desired, settings, ruleset)
        yield step, desired, ruleset


def _trace(ruleset: Ruleset, step: Step, flow: Flow, remembered: dict[str, frozenset[str]] | None = None) -> Trace:
    packet = Packet(
        source=flow.source.address,
        destination=flow.to[0],
        port=flow.to[1],
        protocol=flow.protocol,
        origin=Origin.LOCAL if flow.source.place is Place.HOST else Origin.ARRIVES,
        in_interface={Place.POD: POD_INTERFACE, Place.OUTSIDE: "eth0", Place.HOST: ""}[flow.source.place],
    )
    policies = {"INPUT": "DROP"} if flow.input_drop else {}
    kernel = KernelView(local_addresses=step.local_addresses, policies=policies, remembered=remembered or {})
    return trace(ruleset.of(family_of(flow.to[0])), packet, kernel)


def _verify(flow: Flow, found: Trace) -> None:
    wanted = flow.expect
    assert {b.fate for b in found.branches} == {_FATES[wanted.outcome]}, flow
    assert sum(b.probability for b in found.branches) == 1
    if wanted.outcome is not Outcome.REACH:
        return
    assert sorted(b.to for b in found.branches) == sorted(wanted.endpoints), flow
    for branch in found.branches:
        assert float(branch.probability) == pytest.approx(1 / len(wanted.endpoints), abs=1e-6)
        seen = wanted.endpoints[branch.to]
        assert seen is Seen.EITHER or branch.masqueraded is (seen is Seen.SNAT), (flow, branch.to)


def _known(branch: Branch, flow: Flow) -> dict[str, frozenset[str]]:
    """The kernel's affinity lists after a connection that took this branch."""
    return {name: frozenset({flow.source.address}) for name in branch.entered}


@pytest.mark.parametrize("settings", [_IN_LINE, _IN_TREES], ids=["line", "trees"])
@pytest.mark.parametrize("row", _ROWS, ids=lambda row: row.id)
def test_row(row: Row, settings: IptablesSettings) -> None:
    for step, desired, ruleset in _steps(row, settings):
        fresh = resolve(step.snapshot(), row.settings)
        assert desired == fresh, "an incremental resolve differs from a fresh one"
        assert ruleset == compile_ruleset(fresh, settings), "an incremental compile differs from a fresh one"
        for flow in step.flows:
            if IPT not in flow.modes or flow.established:
                continue
            found = _trace(ruleset, step, flow)
            _verify(flow, found)
            if flow.sticky:
                _verify_sticky(flow, found, step, ruleset)


def _verify_sticky(flow: Flow, found: Trace, step: Step, ruleset: Ruleset) -> None:
    """Whatever endpoint a client was given, its next connection gets that one only."""
    for branch in found.branches:
        again = _trace(ruleset, step, flow, _known(branch, flow))
        assert [(b.to, b.probability) for b in again.branches] == [(branch.to, 1)], flow
        stranger = {name: frozenset({"192.0.2.1"}) for name in branch.entered}
        assert len(_trace(ruleset, step, flow, stranger).branches) == len(found.branches)


def test_flows_sharing_affinity_use_the_same_lists() -> None:
    """A05: a client known from the node port is sent to the same endpoint when it uses the cluster IP."""
    row = next(row for row in ROWS if row.id == "A05")
    (step, _, ruleset), *_ = _steps(row)
    by_node_port, by_cluster_ip = step.flows
    for branch in _trace(ruleset, step, by_node_port).branches:
        again = _trace(ruleset, step, by_cluster_ip, _known(branch, by_node_port))
        assert [b.to for b in again.branches] == [branch.to]


def test_only_established_flows_and_other_modes_are_left_out() -> None:
    left_out = {row.id for row in ROWS for s in row.steps for f in s.flows if f.established}
    assert left_out == set(NOT_TRACEABLE)
    assert {row.id for row in (*ROWS, *OWN_ROWS)} - {row.id for row in _ROWS} == {"C10", "C10-v6", "N03", "N03-v6"}
