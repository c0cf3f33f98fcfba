"""Laws of the iptables data plane, for any wanted state: text both ways, references, convergence, plans that the strict fake accepts."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from kproxy.backends.iptables.changes import Plan, Section, render_section
from kproxy.backends.iptables.compile import compile_ruleset
from kproxy.backends.iptables.matches import Jump
from kproxy.backends.iptables.plan import cleanup_plan, ours, plan
from kproxy.backends.iptables.rules import Rule, comparable, parse_rule, text_of
from kproxy.backends.iptables.ruleset import FamilyRuleset, Ruleset, parse, render
from kproxy.backends.iptables.settings import IptablesSettings
from kproxy.model.desired import (
    ClientIPAffinity,
    DesiredState,
    Endpoint,
    FamilyState,
    LocalDetector,
    Masquerade,
    NodePortAddresses,
    Route,
    ServicePort,
    SourceRanges,
    Verdict,
    VirtualIP,
    VirtualIPKind,
)
from kproxy.model.names import Family, NamespacedName, Protocol, ServicePortName
from tests.support.fake_iptables import FakeIptables

_PREFIX = {Family.IPV4: "10.0.0.", Family.IPV6: "fd00::"}
_SMALL = st.integers(1, 4)


@st.composite
def service_ports(draw: st.DrawFn, family: Family) -> ServicePort:
    """A ServicePort as `resolve` might make it; few names and addresses, so that they meet."""
    name = ServicePortName(
        NamespacedName("ns", draw(st.sampled_from(["a", "b", "c", "d"]))),
        draw(st.sampled_from(["", "http"])),
        draw(st.sampled_from(list(Protocol))),
    )
    numbers = draw(st.sets(_SMALL, max_size=4))
    endpoints = tuple(
        sorted(
            (Endpoint(address=f"{_PREFIX[family]}{n}", port=80, is_local=n % 2 == 0) for n in numbers),
            key=lambda e: e.text,
        )
    )
    local = tuple(e for e in endpoints if e.is_local)
    internal_local, external_local = draw(st.booleans()), draw(st.booleans())
    drop = Verdict.DROP if endpoints else Verdict.REJECT
    internal = Route(
        endpoints=local if internal_local else endpoints,
        when_empty=Verdict.REJECT if not internal_local or local else drop,
        masquerade=draw(st.sampled_from(list(Masquerade))),
        local_only=internal_local,
    )
    kinds = draw(st.sets(st.sampled_from([VirtualIPKind.EXTERNAL, VirtualIPKind.LOAD_BALANCER])))
    virtual_ips = [VirtualIP(address=f"{_PREFIX[family]}{draw(st.integers(100, 104))}", kind=VirtualIPKind.CLUSTER)]
    virtual_ips += [
        VirtualIP(address=f"{_PREFIX[family]}{draw(st.integers(100, 108))}", kind=kind)
        for kind in sorted(kinds, key=lambda k: k.value)
    ]
    node_port = draw(st.none() | st.integers(30000, 30002))
    external = short_circuit = Route()
    if node_port is not None or kinds:
        cluster = Route(endpoints=endpoints, masquerade=Masquerade.ALWAYS)
        external = (
            Route(endpoints=local, when_empty=Verdict.REJECT if local else drop, local_only=True)
            if external_local
            else cluster
        )
        short_circuit = (
            Route(endpoints=endpoints, masquerade=Masquerade.OFF_CLUSTER_SOURCES) if external_local else cluster
        )
    ranges = None
    if VirtualIPKind.LOAD_BALANCER in kinds and draw(st.booleans()):
        ranges = SourceRanges(
            networks=("0.0.0.0/0",) if family is Family.IPV4 else ("fd01::/64",),
            allow_own_virtual_ip=draw(st.booleans()),
        )
    named = {e for route in (internal, external, short_circuit) for e in route.endpoints}
    return ServicePort(
        name=name,
        family=family,
        port=draw(st.sampled_from([80, 443])),
        virtual_ips=tuple(virtual_ips),
        node_port=node_port,
        internal=internal,
        external=external,
        short_circuit=short_circuit,
        reachable=tuple(sorted(named, key=lambda e: e.text)),
        source_ranges=ranges,
        affinity=draw(st.none() | st.just(ClientIPAffinity(timeout_s=10800))),
        health_check_node_port=draw(st.none() | st.just(31000)),
    )


@st.composite
def family_states(draw: st.DrawFn, family: Family) -> FamilyState:
    """The wanted state of one family."""
    ports = draw(st.lists(service_ports(family), max_size=3))
    detector = draw(
        st.none()
        | st.sampled_from(
            [
                LocalDetector(source="10.0.0.0/8" if family is Family.IPV4 else "fd00::/8"),
                LocalDetector(interface="br0"),
                LocalDetector(interface_prefix="cali"),
            ]
        )
    )
    everywhere = draw(st.booleans())
    addresses = draw(st.sets(st.integers(200, 203))) if not everywhere else set()
    return FamilyState(
        family=family,
        service_ports={port.name: port for port in sorted(ports, key=lambda p: p.name.sort_key)},
        local_detector=detector,
        node_port_addresses=NodePortAddresses(
            everywhere=everywhere,
            loopback=draw(st.booleans()) and family is Family.IPV4,
            addresses=tuple(sorted(f"{_PREFIX[family]}{n}" for n in addresses)),
        ),
        untracked_dns=draw(st.sampled_from([(), (f"{_PREFIX[family]}250",)])),
    )


@st.composite
def desired_states(draw: st.DrawFn) -> DesiredState:
    """The wanted state of a node."""
    return DesiredState(ipv4=draw(family_states(Family.IPV4)), ipv6=draw(family_states(Family.IPV6)))


SETTINGS = st.builds(
    IptablesSettings,
    masquerade_bit=st.integers(0, 31),
    random_fully=st.booleans(),
    conntrack_tcp_be_liberal=st.booleans(),
    max_endpoints_with_comments=st.sampled_from([0, 1000]),
    leaf_entries=st.sampled_from([0, 1, 2, 32]),
)
FOREIGN = "*nat\n:CNI - [0:0]\n-A PREROUTING -j CNI\nCOMMIT\n*filter\n:KUBE-FIREWALL - [0:0]\n-A INPUT -j KUBE-FIREWALL\nCOMMIT\n"


class Kernel:
    """Both families' fakes, driven by plans as the applier drives the tools."""

    def __init__(self, foreign: str = "") -> None:
        self.of = {family: FakeIptables() for family in Family}
        if foreign:
            for fake in self.of.values():
                fake.restore(foreign)

    def carry_out(self, made: Plan) -> None:
        for batch in made.batches:
            for section in Section:
                text = render_section(section, batch.changes)
                if text:
                    self.of[batch.family].restore(text)

    def seen(self) -> Ruleset:
        found = {family: ours(parse(fake.save(), family)) for family, fake in self.of.items()}
        return Ruleset(ipv4=found[Family.IPV4], ipv6=found[Family.IPV6])


@given(desired_states(), SETTINGS)
def test_text_both_ways(desired: DesiredState, settings: IptablesSettings) -> None:
    ruleset = compile_ruleset(desired, settings)
    for family in Family:
        assert parse(render(ruleset.of(family)), family) == ruleset.of(family)


@given(desired_states(), SETTINGS)
def test_rules_are_in_save_form_and_name_only_declared_chains(
    desired: DesiredState, settings: IptablesSettings
) -> None:
    ruleset = compile_ruleset(desired, settings)
    for family in Family:
        for chains in ruleset.of(family).tables.values():
            for rules in chains.values():
                for rule in rules:
                    parts = rule.parts
                    assert text_of(parts.matches, parts.target) == rule.text
                    assert not isinstance(parts.target, Jump) or parts.target.chain in chains


@given(desired_states(), desired_states(), SETTINGS, st.integers(1, 200))
def test_from_any_state_to_any_other(
    first: DesiredState, second: DesiredState, settings: IptablesSettings, lines: int
) -> None:
    """Applying A then B is applying B; every step is accepted by a kernel that refuses what does not exist yet or is still in use."""
    kernel, fresh = Kernel(FOREIGN), Kernel(FOREIGN)
    wanted_first = compile_ruleset(first, settings)
    kernel.carry_out(plan(Ruleset(), wanted_first, lines))
    wanted = compile_ruleset(second, settings, wanted_first)
    kernel.carry_out(plan(wanted_first, wanted, lines))
    fresh.carry_out(plan(Ruleset(), wanted, lines))
    assert plan(kernel.seen(), wanted, lines).batches == ()
    assert plan(fresh.seen(), wanted, lines).batches == ()
    assert plan(kernel.seen(), fresh.seen(), lines).batches == ()


@given(desired_states(), desired_states(), SETTINGS)
def test_taking_over_is_the_same_as_going_on(
    first: DesiredState, second: DesiredState, settings: IptablesSettings
) -> None:
    """A restart knows only what the kernel holds."""
    kernel = Kernel(FOREIGN)
    kernel.carry_out(plan(Ruleset(), compile_ruleset(first, settings)))
    wanted = compile_ruleset(second, settings)
    kernel.carry_out(plan(kernel.seen(), wanted))
    assert plan(kernel.seen(), wanted).batches == ()


@given(desired_states(), SETTINGS)
def test_u09_a_second_plan_is_empty(desired: DesiredState, settings: IptablesSettings) -> None:
    wanted = compile_ruleset(desired, settings)
    assert plan(wanted, wanted).batches == ()
    assert plan(wanted, compile_ruleset(desired, settings, wanted)).batches == ()
    assert plan(wanted, compile_ruleset(desired, settings)).batches == ()


@given(desired_states(), desired_states(), SETTINGS)
def test_compiling_from_the_last_ruleset_gives_what_compiling_afresh_gives(
    first: DesiredState, second: DesiredState, settings: IptablesSettings
) -> None:
    mixed = {**second.ipv4.service_ports, **first.ipv4.service_ports}
    ports = dict(sorted(mixed.items(), key=lambda item: item[0].sort_key))
    third = replace(second, ipv4=replace(second.ipv4, service_ports=ports))
    made: Ruleset | None = None
    for desired in (first, second, third, third, first):
        made = compile_ruleset(desired, settings, made)
        afresh = compile_ruleset(desired, settings)
        assert made == afresh
        assert list(made.ipv4.fragments) == list(desired.ipv4.service_ports)
        for family in Family:
            assert {n: f.entries for n, f in made.of(family).fragments.items()} == {
                n: f.entries for n, f in afresh.of(family).fragments.items()
            }


@given(desired_states(), SETTINGS)
def test_cleanup_leaves_what_was_there_before(desired: DesiredState, settings: IptablesSettings) -> None:
    kernel = Kernel(FOREIGN)
    kernel.carry_out(plan(Ruleset(), compile_ruleset(desired, settings)))
    kernel.carry_out(cleanup_plan(kernel.seen()))
    for fake in kernel.of.values():
        left = parse(fake.save(), Family.IPV4)
        assert left.chain("nat", "PREROUTING") == (Rule("-j CNI"),)
        assert {c for c in left.tables["nat"] if c not in ("PREROUTING", "INPUT", "OUTPUT", "POSTROUTING")} == {"CNI"}
        assert {rule.jump for rule in left.tables["filter"].get("INPUT", ())} == {"KUBE-FIREWALL"}
        assert {c for c in left.tables["filter"] if c.startswith("KUBE")} == {"KUBE-FIREWALL"}
        assert all(not chains for table, chains in left.tables.items() if table in ("mangle", "raw"))


@given(desired_states(), SETTINGS)
def test_what_a_service_port_gains_and_what_it_loses_is_never_split(
    desired: DesiredState, settings: IptablesSettings
) -> None:
    wanted = compile_ruleset(desired, settings)
    for made in (plan(Ruleset(), wanted, 20), plan(wanted, compile_ruleset(DesiredState(), settings), 20)):
        changes = [(batch.family, change) for batch in made.batches for change in batch.changes]
        owned = [(family, change.owner) for family, change in changes if change.owner is not None]
        assert len(owned) == len(set(owned))
    assert {batch.family for batch in plan(Ruleset(), wanted, 20).batches} == set(Family)


@given(st.text(max_size=60))
def test_any_text_parses_or_is_refused_and_its_comparable_form_is_stable(text: str) -> None:
    line = " ".join(text.split())
    once = comparable(line)
    assert comparable(once) == once
    try:
        parts = parse_rule(line)
    except ValueError:
        return
    again = parse_rule(text_of(parts.matches, parts.target))
    assert again == parts


@given(
    st.lists(
        st.tuples(st.sampled_from(["A", "B", "C"]), st.sampled_from(["-j A", "-j DROP", "", "-s 10.0.0.0/8 -j B"])),
        max_size=20,
    )
)
def test_any_ruleset_survives_its_text(entries: list[tuple[str, str]]) -> None:
    chains: dict[str, list[Rule]] = {"A": [], "B": [], "C": []}
    for chain, text in entries:
        chains[chain].append(Rule(text))
    ruleset = FamilyRuleset(family=Family.IPV4, tables={"nat": {name: tuple(rules) for name, rules in chains.items()}})
    assert parse(render(ruleset), Family.IPV4) == ruleset
