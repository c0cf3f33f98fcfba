"""What leads to the relay: the elements of each ServicePort, and the constant rules. That packets obey them is the packet lane's matter."""

from __future__ import annotations

from dataclasses import replace

import pytest

from kproxy.backends.userspace import names
from kproxy.backends.userspace.compile import compile_family, frame_of, unrelayed
from kproxy.backends.userspace.rules import CHAINS, chains, frame_text, set_kinds
from kproxy.backends.userspace.ruleset import Element, FamilyRuleset, Frame
from kproxy.backends.userspace.settings import UserspaceSettings, own_mark
from kproxy.model.desired import DesiredState, LocalDetector, NodePortAddresses, NodeSettings
from kproxy.model.names import Family
from kproxy.model.resolve import resolve
from tests.support.addressing import CLUSTER_IP, EXTERNAL_IP, VIP, six, twin
from tests.support.builders import Built, ep, port, slice_, svc
from tests.support.flows import SETTINGS, Step

_SETTINGS = UserspaceSettings()
_FRAME = Frame(family=Family.IPV4, mark=0x2000, ports=(10270, 10271))
_PORTS = [port(80, node=3001)]
_CALLED = "ns1/svc1:p80"


def _desired(*objects: Built, settings: NodeSettings = SETTINGS, before: DesiredState | None = None) -> DesiredState:
    return resolve(Step(tuple(objects)).snapshot(), settings, before)


def _compiled(*objects: Built, family: Family = Family.IPV4, previous: FamilyRuleset | None = None) -> FamilyRuleset:
    state = _desired(*objects).of(family)
    return compile_family(state, frame_of(state, _SETTINGS, (10270, 10271)), previous)


def _told(ruleset: FamilyRuleset) -> dict[str, dict[str, str]]:
    """What is in each set, without the empty ones: key → verdict."""
    return {name: {k: e.verdict for k, e in found.items()} for name, found in ruleset.elements.items() if found}


def _to(chain: str, *keys: str) -> dict[str, str]:
    return dict.fromkeys(keys, f"goto {chain}" if chain else "")


_C, _V, _X, _N = f"{CLUSTER_IP} . tcp . 80", f"{VIP} . tcp . 80", f"{EXTERNAL_IP} . tcp . 80", "tcp . 3001"


def test_policy_cluster() -> None:
    found = _compiled(svc(ports=_PORTS, lb=[VIP], external=[EXTERNAL_IP]), slice_(ep("10.180.0.1")))
    assert _told(found) == {
        names.DESTINATIONS: _to(names.INSIDE, _C) | _to(names.BY_SOURCE, _X, _V),
        names.RELAYED: _to("", _C, _X, _V),
        names.NODE_PORTS: _to(names.NODE_PORT_BY_SOURCE, _N),
    }
    assert found.elements[names.DESTINATIONS][_V].comment == _CALLED
    assert found.elements[names.RELAYED][_V] == Element("", "")


def test_policy_local_without_an_endpoint_here_takes_in_pods_and_the_node_and_drops_the_rest() -> None:
    found = _compiled(
        svc(ports=_PORTS, lb=[VIP], external_policy="Local", ranges=["203.0.113.0/24"]), slice_(ep("10.180.0.1"))
    )
    assert _told(found) == {
        names.DESTINATIONS: _to(names.INSIDE, _C) | _to(names.GUARDED_INSIDE_ONLY, _V),
        names.RELAYED: _to("", _C, _V),
        names.SOURCES: _to("", f"{_V} . 203.0.113.0/24"),
        names.REFUSALS: {_V: "drop"},
        names.NODE_PORTS: _to(names.NODE_PORT_INSIDE_ONLY, _N),
        names.REFUSED_NODE_PORTS: _to(names.NODE_PORT_DROP, _N),
    }


def test_no_endpoint_anywhere_is_refused() -> None:
    """Whatever the source ranges are: nothing is there that they could guard."""
    found = _compiled(svc(ports=_PORTS, lb=[VIP], ranges=["203.0.113.0/24"]))
    assert _told(found) == {
        names.REFUSALS: _to(names.REFUSE, _C, _V),
        names.REFUSED_NODE_PORTS: _to(names.NODE_PORT_REFUSE, _N),
    }


def test_a_health_check_node_port_is_marked_once_for_a_service_with_and_without_endpoints() -> None:
    ports = [port(80, "a", node=3001), port(81, "b", node=3002)]
    for members in ((), (ep("10.180.0.1"),)):
        found = _compiled(svc(ports=ports, lb=[VIP], external_policy="Local", health=30000), slice_(*members))
        assert _told(found)[names.NODE_PORTS]["tcp . 30000"] == f"goto {names.HEALTH_CHECK}"
        gone = _compiled(svc(ports=ports, lb=[VIP]), slice_(*members), previous=found)
        assert "tcp . 30000" not in gone.elements[names.NODE_PORTS]


def test_internal_policy_local_without_an_endpoint_here_drops() -> None:
    found = _compiled(svc(internal_policy="Local"), slice_(ep("10.180.0.1")))
    assert _told(found) == {names.REFUSALS: {_C: "drop"}}


@pytest.mark.parametrize(
    ("ranges", "expected"),
    [
        (["203.0.113.0/25"], ["203.0.113.0/25"]),
        (
            ["203.0.113.0/25", "203.0.113.128/25", "203.0.113.7/32"],
            ["203.0.113.0/24"],
        ),  # a set of ranges takes no overlaps
        (["192.168.0.0/24"], [f"{VIP}/32", "192.168.0.0/24"]),  # the node's own: the address itself may use itself
        (["203.0.113.0/25", "0.0.0.0/0"], []),
    ],
)
def test_source_ranges(ranges: list[str], expected: list[str]) -> None:
    found = _compiled(svc(lb=[VIP], ranges=ranges), slice_(ep("10.180.0.1")))
    assert sorted(found.elements[names.SOURCES]) == sorted(f"{_V} . {network}" for network in expected)
    way = names.GUARDED if expected else names.BY_SOURCE
    assert found.elements[names.DESTINATIONS][_V].verdict == f"goto {way}"


def test_ipv6_has_the_same_ways() -> None:
    objects = twin((svc(ports=_PORTS, lb=[VIP], ranges=["203.0.113.0/25"]), slice_(ep("10.180.0.1"))))
    found = _compiled(*objects, family=Family.IPV6)
    virtual = f"{six(VIP)} . tcp . 80"
    assert found.elements[names.DESTINATIONS][virtual].verdict == f"goto {names.GUARDED}"
    assert list(found.elements[names.SOURCES]) == [f"{virtual} . {six('203.0.113.0/25')}"]


def test_of_two_claims_the_cluster_ip_wins_and_then_the_name() -> None:
    """All of a destination has one owner: its refusal, its ranges, its way."""
    objects = (
        svc(name="b"),
        svc("172.30.0.42", name="a", lb=[CLUSTER_IP, VIP], ranges=["203.0.113.0/25"]),
        svc("172.30.0.43", name="c", lb=[VIP]),
        *(slice_(ep("10.180.0.1"), of=of) for of in "ac"),
    )
    found = _compiled(*objects)
    assert found.elements[names.REFUSALS][_C] == Element(f"goto {names.REFUSE}", "ns1/b:p80")
    assert _C not in found.elements[names.DESTINATIONS]
    assert found.elements[names.DESTINATIONS][_V] == Element(f"goto {names.GUARDED}", "ns1/a:p80")
    assert list(found.elements[names.SOURCES]) == [f"{_V} . 203.0.113.0/25"]
    without = _compiled(*(o for o in objects if "a" not in str(getattr(o.object, "name", ""))[4:]), previous=found)
    assert without.elements[names.DESTINATIONS][_V] == Element(f"goto {names.BY_SOURCE}", "ns1/c:p80")
    assert not without.elements[names.SOURCES]


def test_sctp_is_said_not_to_be_served() -> None:
    found = _compiled(
        svc(ports=[port(80, "p80", "SCTP"), port(81, "q")]), slice_(ep("10.180.0.1"), ports=[("q", 81, "TCP")])
    )
    assert list(found.owners) == [f"{CLUSTER_IP} . tcp . 81"]
    (problem,) = unrelayed(found)
    assert (problem.name, "SCTP" in problem.reason) == ("ns1/svc1:p80", True)


def test_what_did_not_change_is_the_same_object() -> None:
    objects = [svc(), slice_(ep("10.180.0.1")), svc("172.30.0.42", name="other")]
    first = _desired(*objects)
    frame = frame_of(first.ipv4, _SETTINGS, (1, 2))
    one = compile_family(first.ipv4, frame)
    assert compile_family(first.ipv4, frame, one) is one
    moved = compile_family(first.ipv4, replace(frame, ports=(3, 4)), one)
    assert moved.elements is one.elements and moved != one
    second = _desired(*objects, slice_(ep("10.180.0.2"), of="other"), before=first)
    two = compile_family(second.ipv4, frame, one)
    name = list(first.ipv4.service_ports)[1]  # other, svc1
    assert two.fragments[name] is one.fragments[name]
    assert two.elements[names.NODE_PORTS] is one.elements[names.NODE_PORTS]
    assert two == compile_family(second.ipv4, frame)
    third = _desired(*objects, slice_(ep("10.180.0.2"), ep("10.180.0.3"), of="other"), before=second)
    assert (
        compile_family(third.ipv4, frame, two).elements == two.elements
    )  # which endpoints there are is the relay's matter


def test_refused_service_ports_are_left_out_until_they_change() -> None:
    state = _desired(svc(), slice_(ep("10.180.0.1")), svc("172.30.0.42", name="other")).ipv4
    name = next(iter(state.service_ports))
    frame = frame_of(state, _SETTINGS, (1, 2))
    whole = compile_family(state, frame)
    less = compile_family(state, frame, whole, {name: state.service_ports[name]})
    assert name in whole.fragments and name not in less.fragments and len(less.fragments) == 1
    assert compile_family(state, frame, less, {name: replace(state.service_ports[name], port=81)}) == whole
    assert compile_family(state, frame, less) == whole


# The frame


def test_every_chain_and_set_is_made_before_rules_name_it() -> None:
    lines = frame_text(_FRAME).splitlines()
    first_rule = next(n for n, line in enumerate(lines) if line.startswith("flush"))
    made = {line.split()[4] for line in lines[:first_rule] if line.split()[1] in ("map", "set", "chain")}
    assert made == {*CHAINS, *set_kinds(Family.IPV4)}
    for rules in chains(_FRAME).values():
        for rule in rules:
            words = rule.replace("@", " @").split()
            assert {w[1:] for w in words if w.startswith("@")} <= made
            assert {words[n + 1] for n, w in enumerate(words) if w in ("goto", "jump")} <= made


def test_mark_and_ports_are_settings() -> None:
    found = chains(replace(_FRAME, mark=0x80, ports=(7, 8)))
    assert found[names.INSIDE] == (
        "meta l4proto { tcp, udp } tproxy to 127.0.0.1:7 meta mark set meta mark | 0x80 accept",
        "drop",
    )
    assert "tproxy to [::1]:8" in chains(replace(_FRAME, family=Family.IPV6, ports=(7, 8)))[names.OUTSIDE][0]
    text = frame_text(replace(_FRAME, mark=0x80))
    assert "0x2000" not in text and "0x40" in text and (own_mark(0x80), own_mark(1)) == (0x40, 2)


@pytest.mark.parametrize(
    ("detector", "rule"),
    [
        (LocalDetector(source="10.0.0.0/8"), "ip saddr 10.0.0.0/8 goto relay-inside"),
        (LocalDetector(interface="cni0"), 'iifname "cni0" goto relay-inside'),
        (LocalDetector(interface_prefix="veth"), 'iifname "veth*" goto relay-inside'),
        (None, "fib saddr type local goto relay-inside"),
    ],
)
def test_who_is_inside(detector: LocalDetector | None, rule: str) -> None:
    found = chains(replace(_FRAME, detector=detector))
    assert found[names.BY_SOURCE][0] == found[names.INSIDE_ONLY][0] == rule
    assert found[names.BY_SOURCE][-1] == "goto relay-outside"


@pytest.mark.parametrize(
    ("addresses", "rules"),
    [
        (NodePortAddresses(loopback=True), ["fib daddr type local drop"]),
        (NodePortAddresses(listener=True), ["fib daddr type local drop"]),
        (NodePortAddresses(), ["ip daddr 127.0.0.0/8 return", "fib daddr type local drop"]),
        (NodePortAddresses(everywhere=False, addresses=("192.168.0.2",)), ["ip daddr { 192.168.0.2 } drop"]),
        (
            NodePortAddresses(everywhere=False, addresses=("127.0.0.1", "192.168.0.2"), loopback=True),
            ["ip daddr 127.0.0.0/8 drop", "ip daddr { 127.0.0.1, 192.168.0.2 } drop"],
        ),
        (NodePortAddresses(everywhere=False), []),
    ],
)
def test_where_node_ports_answer(addresses: NodePortAddresses, rules: list[str]) -> None:
    assert list(chains(replace(_FRAME, node_ports=addresses))[names.NODE_PORT_DROP]) == rules


def test_dns_and_tracking_cost_no_rule_where_they_are_not_asked_for() -> None:
    bare, full = chains(_FRAME), chains(replace(_FRAME, dns=("10.96.0.10", "169.254.20.10"), notrack=True))
    assert len(bare["output-raw"]) == 1 and len(full["output-raw"]) == 4
    assert not bare["prerouting-raw"] and len(chains(replace(_FRAME, dns=("10.96.0.10",)))["prerouting-raw"]) == 1
    assert not any("notrack" in rule for name, rules in bare.items() if name != "own-dns" for rule in rules)
    assert full["arrivals"][1].startswith(
        "meta l4proto { tcp, udp } ip daddr { 10.96.0.10, 169.254.20.10 } th dport 53"
    )


def test_names_fit() -> None:
    assert all(len(name) < 256 for name in (*CHAINS, *names.SETS, names.TABLE))
    assert len(names.comment("x" * 200)) == names.COMMENT_LIMIT
