"""The tracer of mode userspace: every row of the behaviour table, with the mode's own list of differences, and what it says in words.

The same rows go through real rules, real workers and real packets in tests/packet/test_userspace_rows.py.
"""

from __future__ import annotations

import pytest

from kproxy.backends.userspace.compile import compile_family, frame_of
from kproxy.backends.userspace.rules import chains
from kproxy.backends.userspace.ruleset import Frame
from kproxy.backends.userspace.settings import UserspaceSettings
from kproxy.config.config import UserspaceConfig
from kproxy.explain.match_userspace import parts
from kproxy.explain.relay import RelayFacts
from kproxy.explain.trace import Fate, KernelView, Origin, Packet, Trace
from kproxy.explain.trace_iptables import TraceError
from kproxy.explain.trace_userspace import choice, trace
from kproxy.model.addresses import family_of
from kproxy.model.desired import LocalDetector, NodePortAddresses
from kproxy.model.names import Family
from kproxy.model.resolve import resolve
from kproxy.relay.chooser import Chooser
from kproxy.relay.table import table_of
from kproxy.relay.targets import Target
from tests.packet.userspace_differences import Case, difference
from tests.support.flows import IPT, POD_INTERFACE, Expect, Flow, Outcome, Place, Row, Seen, Step
from tests.support.packets import OWN_ROWS, ROWS

_FATES = {
    Outcome.REACH: Fate.REACHES,
    Outcome.REJECT: Fate.REJECTED,
    Outcome.DROP: Fate.DROPPED,
    Outcome.PASS: Fate.UNTOUCHED,
}
_ROWS = [row for row in (*ROWS, *OWN_ROWS) if any(IPT in f.modes for s in row.steps for f in s.flows)]
_END = ("10.0.0.1", 80)


class Prepared:
    """A node in one step of a row."""

    def __init__(self, row: Row, step: Step) -> None:
        self.step = step
        self.desired = resolve(step.snapshot(), row.settings)
        states = {family: self.desired.of(family) for family in Family}
        self.rulesets = {
            family: compile_family(state, frame_of(state, UserspaceSettings(), (10270, 10271)))
            for family, state in states.items()
        }

    def trace(self, flow: Flow, config: UserspaceConfig) -> Trace:
        """Where the flow goes."""
        packet = Packet(
            source=flow.source.address,
            destination=flow.to[0],
            port=flow.to[1],
            protocol=flow.protocol,
            origin=Origin.LOCAL if flow.source.place is Place.HOST else Origin.ARRIVES,
            in_interface={Place.POD: POD_INTERFACE, Place.OUTSIDE: "eth0", Place.HOST: ""}[flow.source.place],
        )
        policies = {"INPUT": "DROP"} if flow.input_drop else {}
        kernel = KernelView(local_addresses=self.step.local_addresses, policies=policies)
        table = table_of(self.desired, config.relay_options)
        return trace(self.rulesets[family_of(flow.to[0])], table, RelayFacts(config=config), packet, kernel)


def _verify(flow: Flow, wanted: Expect, found: Trace) -> None:
    assert {branch.fate for branch in found.branches} == {_FATES[wanted.outcome]}, flow
    assert sum(branch.probability for branch in found.branches) == 1
    if wanted.outcome is not Outcome.REACH:
        return
    reached = {branch.to for branch in found.branches}
    if flow.sticky:
        assert len(reached) == 1 and reached <= set(wanted.endpoints), flow
    else:
        assert reached == set(wanted.endpoints), flow
    for branch in found.branches:
        seen = wanted.endpoints[branch.to]
        assert seen is Seen.EITHER or branch.masqueraded is (seen is Seen.SNAT), (flow, branch)


@pytest.mark.parametrize("row", _ROWS, ids=lambda row: row.id)
def test_row(row: Row) -> None:
    for step in row.steps:
        node = Prepared(row, step)
        for flow in step.flows:
            if IPT not in flow.modes or flow.established:
                continue
            for preserves in (False, True):
                known = difference(Case(row, step, flow, preserves))
                found = node.trace(flow, UserspaceConfig(preserve_source_address=preserves))
                _verify(flow, flow.expect if known is None else known[1], found)


def _target(**other: object) -> Target:
    ends = tuple((f"10.0.0.{n}", 80) for n in range(1, 5))
    return Target(**{"name": "a/b", "family": "IPv4", "protocol": "TCP", "endpoints": ends, **other})  # type: ignore[arg-type]


def test_who_may_be_chosen_and_why() -> None:
    facts = RelayFacts(config=UserspaceConfig())
    everybody, why = choice(_target(), "10.9.9.9", facts)
    assert len(everybody) == 4 and why.startswith("RandomTwoChoices")
    assert "take turns" in choice(_target(balancing="RoundRobin"), "10.9.9.9", facts)[1]
    assert choice(_target(endpoints=(_END,)), "10.9.9.9", facts) == ((_END,), "the only endpoint")
    sick = RelayFacts(config=UserspaceConfig(), ejected={_END: 3.0})
    left, why = choice(_target(), "10.9.9.9", sick)
    assert _END not in left and len(left) == 3 and "1 left out at the moment" in why
    all_sick = RelayFacts(config=UserspaceConfig(), ejected=dict.fromkeys(_target().endpoints, 1.0))
    assert len(choice(_target(), "10.9.9.9", all_sick)[0]) == 4, "never all of them"


def test_affinity_names_one_endpoint_and_another_while_that_is_left_out() -> None:
    facts = RelayFacts(config=UserspaceConfig())
    target = _target(affinity_s=60)
    chosen = {client: choice(target, client, facts)[0] for client in (f"10.9.9.{n}" for n in range(40))}
    assert {len(ends) for ends in chosen.values()} == {1} and len(set(chosen.values())) == 4
    client, (own,) = next(iter(chosen.items()))
    (other,), why = choice(target, client, RelayFacts(config=UserspaceConfig(), ejected={own: 1.0}))
    assert other != own and "unless it was elsewhere within 60 s" in why
    assert Chooser(lambda: 0.0).order(target, client, 0.0).__next__() == own, "as the workers choose"


@pytest.mark.parametrize("family", list(Family))
@pytest.mark.parametrize("detector", [None, LocalDetector(source="10.0.0.0/8"), LocalDetector(interface_prefix="veth")])
@pytest.mark.parametrize(
    "node_ports", [NodePortAddresses(), NodePortAddresses(everywhere=False, listener=True, addresses=("10.1.1.1",))]
)
def test_every_rule_is_understood(
    family: Family, detector: LocalDetector | None, node_ports: NodePortAddresses
) -> None:
    frame = Frame(
        family=family,
        mark=0x2000,
        ports=(1, 2),
        notrack=True,
        detector=detector,
        node_ports=node_ports,
        dns=("10.96.0.10",),
    )
    assert all(parts(rule) for rules in chains(frame).values() for rule in rules)


def test_a_chain_that_was_jumped_to_goes_back_and_one_that_was_gone_to_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    row = next(row for row in _ROWS if row.steps[0].flows[0].expect.outcome is Outcome.REACH)
    for verb, fate in (("jump", Fate.DROPPED), ("goto", Fate.UNTOUCHED)):
        made = {"prerouting": (f"{verb} refuse", "drop"), "refuse": ("return",)}
        monkeypatch.setattr("kproxy.explain.trace_userspace.chains", lambda frame, made=made: {**chains(frame), **made})
        found = Prepared(row, row.steps[0]).trace(row.steps[0].flows[0], UserspaceConfig())
        assert [branch.fate for branch in found.branches] == [fate]


def test_a_rule_that_is_not_known_is_no_guess(monkeypatch: pytest.MonkeyPatch) -> None:
    row = _ROWS[0]
    made = {"prerouting": ("meta nonsense 5 drop",)}
    monkeypatch.setattr("kproxy.explain.trace_userspace.chains", lambda frame: {**chains(frame), **made})
    with pytest.raises(TraceError, match="meta nonsense 5 drop"):
        Prepared(row, row.steps[0]).trace(row.steps[0].flows[0], UserspaceConfig())
