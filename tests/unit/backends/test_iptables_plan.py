"""Plans: only what differs, nothing split, nothing foreign, in an order the kernel accepts."""

from __future__ import annotations

from dataclasses import replace

import pytest

from kproxy.backends.iptables import names
from kproxy.backends.iptables.changes import Plan, Section, render_batch, render_section
from kproxy.backends.iptables.compile import compile_ruleset
from kproxy.backends.iptables.plan import cleanup_plan, ours, plan
from kproxy.backends.iptables.rules import Rule
from kproxy.backends.iptables.ruleset import FamilyRuleset, Ruleset, parse, render
from kproxy.backends.iptables.settings import IptablesSettings
from kproxy.model.names import Family
from kproxy.model.resolve import resolve
from tests.support.builders import Built, ep, port, slice_, svc
from tests.support.flows import SETTINGS, Step

EMPTY = Ruleset()


def _rules(*objects: Built, before: Ruleset | None = None) -> Ruleset:
    return compile_ruleset(resolve(Step(tuple(objects)).snapshot(), SETTINGS), IptablesSettings(), before)


def _many(count: int, endpoints: int = 2) -> list[Built]:
    objects: list[Built] = []
    for n in range(count):
        objects.append(svc(f"172.30.{n // 200}.{n % 200 + 1}", name=f"svc{n:04}"))
        objects.append(slice_(*(ep(f"10.180.{n % 250}.{m + 1}") for m in range(endpoints)), of=f"svc{n:04}"))
    return objects


def _seen(ruleset: Ruleset) -> Ruleset:
    """The same rules as a look at the kernel gives them: without owners."""
    families = [parse(render(ruleset.of(f)), f) for f in Family]
    return Ruleset(ipv4=families[0], ipv6=families[1])


def _text(made: Plan, family: Family = Family.IPV4) -> str:
    return "".join(render_batch(batch) for batch in made.batches if batch.family is family)


ONE = [svc(), slice_(ep("10.180.0.1"), ep("10.180.0.2"))]


def test_nothing_to_do() -> None:
    wanted = _rules(*ONE)
    assert plan(wanted, wanted).batches == ()
    assert plan(_seen(wanted), wanted).batches == ()
    assert plan(wanted, _rules(*ONE)).batches == ()


def test_the_first_plan_of_nobody_knows_what_is_blind() -> None:
    assert plan(None, _rules(*ONE)).blind
    assert not plan(EMPTY, _rules(*ONE)).blind


def test_u10_one_endpoint_among_many_services_writes_its_chains_only() -> None:
    objects = _many(50)
    before = _rules(*objects)
    objects[21] = slice_(ep("10.180.10.1"), ep("10.180.200.9"), of="svc0010")
    made = plan(before, _rules(*objects, before=before))
    assert [{str(change.owner) for change in batch.changes} for batch in made.batches] == [{"ns1/svc0010:p80"}]
    text = _text(made)
    lines = text.splitlines()
    assert [line for line in lines if line.startswith("*")] == ["*nat"]
    assert len([line for line in lines if line.startswith(":")]) == 3  # the Service, its new endpoint, its old one
    assert sum(line.startswith("-X KUBE-SEP-") for line in lines) == 1
    assert "KUBE-SERVICES" not in text


def test_one_more_service_writes_its_chains_and_then_the_leaf_with_its_entry() -> None:
    before = _rules(*_many(20))
    lines = _text(plan(before, _rules(*_many(21), before=before))).splitlines()
    rules = [line for line in lines if line.startswith("-")]
    leaf = [line for line in rules if line.startswith("-A KUBE-SERVICES ")]
    assert len(leaf) == 21 + 1
    assert rules[-len(leaf) :] == leaf
    assert sum("-A KUBE-SERVICES -d 172.30.0.21/32 -p tcp " in line for line in leaf) == 1


def test_one_more_service_among_many_writes_one_leaf() -> None:
    before = _rules(*_many(398))
    lines = _text(plan(before, _rules(*_many(399), before=before))).splitlines()
    written = [line for line in lines if line.startswith(":") and names.is_dispatch("nat", line[1:].split(" ")[0])]
    assert written == [":KUBE-SVC-172.30.1.192/27 - [0:0]"]
    assert len(lines) < 50


def test_a_service_that_goes_loses_its_entry_before_its_chains() -> None:
    before = _rules(*_many(3))
    text = _text(plan(before, _rules(*_many(2), before=before)))
    lines = text.splitlines()
    entries = [i for i, line in enumerate(lines) if line.startswith("-A KUBE-SERVICES")]
    assert len(entries) == 2 + 1
    assert all(i > entries[-1] for i, line in enumerate(lines) if line.startswith("-X"))
    assert sum(line.startswith("-X") for line in lines) == 3


def test_rejecting_begins_before_the_endpoints_go_and_ends_after_they_came() -> None:
    with_endpoints, without = _rules(*ONE), _rules(svc())
    going = _text(plan(with_endpoints, without)).splitlines()
    assert [line for line in going if line.startswith("*")] == ["*filter", "*nat"]
    coming = _text(plan(without, with_endpoints)).splitlines()
    assert [line for line in coming if line.startswith("*")] == ["*nat", "*filter"]


def test_batches_are_bounded_and_split_no_service_port() -> None:
    made = plan(EMPTY, _rules(*_many(300)), batch_lines=500)
    owners = [change.owner for batch in made.batches for change in batch.changes if change.owner is not None]
    assert len(owners) == len(set(owners)) == 300
    assert all(sum(change.lines for change in batch.changes) <= 500 for batch in made.batches)
    assert len([batch for batch in made.batches if batch.family is Family.IPV4]) > 3


def test_a_change_bigger_than_a_batch_stays_whole() -> None:
    huge = [svc(), slice_(*(ep(f"10.180.{n // 250}.{n % 250 + 1}") for n in range(400)))]
    made = plan(EMPTY, _rules(*huge), batch_lines=100)
    assert sum(len(batch.changes) == 1 and batch.changes[0].owner is not None for batch in made.batches) == 1


def test_stale_chains_of_kube_proxy_go_last_and_referrers_first() -> None:
    old = _rules(
        *_many(5),
        svc("172.30.9.9", name="ext", ports=[port(node=3001)], lb=["1.2.3.4"], ranges=["10.0.0.0/8"]),
        slice_(ep("10.180.7.7"), of="ext"),
    )
    made = plan(_seen(old), _rules(*ONE))
    removals = [line.split(" ")[1] for line in _text(made).splitlines() if line.startswith("-X")]
    kinds = [chain.split("-")[1] for chain in removals]
    assert kinds == sorted(kinds, key=["FW", "EXT", "SVC", "SEP"].index)
    assert kinds.count("SVC") == 6
    nat = [line for batch in made.batches for line in render_section(Section.NAT, batch.changes).splitlines()]
    last_entry = max(i for i, line in enumerate(nat) if line.startswith("-A KUBE-SERVICES "))
    assert all(i > last_entry for i, line in enumerate(nat) if line.startswith("-X"))


def test_observing_keeps_foreign_rules_out() -> None:
    text = """\
*nat
:PREROUTING ACCEPT [0:0]
:KUBE-SERVICES - [0:0]
:KUBE-SVC-XPGD46QRK7WJZT7O - [0:0]
:CNI-HOSTPORT-DNAT - [0:0]
:KUBE-HOSTPORTS - [0:0]
-A PREROUTING -j CNI-HOSTPORT-DNAT
-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
COMMIT
*mangle
:KUBE-KUBELET-CANARY - [0:0]
:KUBE-IPTABLES-HINT - [0:0]
COMMIT
"""
    seen = ours(parse(text, Family.IPV4))
    assert set(seen.tables) == {"nat"}
    assert set(seen.tables["nat"]) == {"PREROUTING", "KUBE-SERVICES", "KUBE-SVC-XPGD46QRK7WJZT7O"}
    assert len(seen.tables["nat"]["PREROUTING"]) == 1


def _without(ruleset: Ruleset, table: str, chain: str, position: int) -> Ruleset:
    chains = dict(ruleset.ipv4.tables[table])
    rules = list(chains[chain])
    del rules[position]
    chains[chain] = tuple(rules)
    return replace(ruleset, ipv4=replace(ruleset.ipv4, tables={**ruleset.ipv4.tables, table: chains}))


@pytest.mark.parametrize(
    ("table", "chain", "position", "line"),
    [
        ("nat", "PREROUTING", 0, '-I PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES'),
        ("filter", "FORWARD", 1, '-I FORWARD -m comment --comment "kubernetes forwarding rules" -j KUBE-FORWARD'),
        ("nat", "KUBE-MARK-MASQ", 0, "-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000"),
        ("nat", "KUBE-SERVICES", -1, "-A KUBE-SERVICES -m comment"),
        ("filter", "KUBE-FIREWALL", 0, "-A KUBE-FIREWALL ! -s 127.0.0.0/8"),
    ],
)
def test_one_lost_rule_is_put_back(table: str, chain: str, position: int, line: str) -> None:
    wanted = _rules(*ONE)
    made = plan(_seen(_without(wanted, table, chain, position)), wanted)
    assert sum(found.startswith(line) for found in _text(made).splitlines()) == 1
    assert len(made.batches) == 1
    assert made.batches[0].rules_written <= 1 + len(wanted.ipv4.tables[table][chain])


def test_a_second_copy_of_a_jump_goes() -> None:
    wanted = _rules(*ONE)
    chains = dict(wanted.ipv4.tables["nat"])
    chains["PREROUTING"] *= 2
    seen = replace(wanted, ipv4=replace(wanted.ipv4, tables={**wanted.ipv4.tables, "nat": chains}))
    assert [line for line in _text(plan(seen, wanted)).splitlines() if line[0] == "-"] == [
        '-D PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES'
    ]


def test_the_way_to_the_node_ports_stays_last() -> None:
    wanted = _rules(*ONE)
    chains = dict(wanted.ipv4.tables["nat"])
    *entries, last = chains["KUBE-SERVICES"]
    chains["KUBE-SERVICES"] = (last, *entries)
    seen = replace(wanted, ipv4=replace(wanted.ipv4, tables={**wanted.ipv4.tables, "nat": chains}))
    lines = [line for line in _text(plan(seen, wanted)).splitlines() if line[0] == "-"]
    assert lines == [f"-A KUBE-SERVICES {rule.text}" for rule in (*entries, last)]


def test_the_order_of_node_port_addresses_has_no_meaning() -> None:
    settings = replace(SETTINGS, node_port_addresses=("192.168.0.0/16",))
    wanted = compile_ruleset(resolve(Step(tuple(ONE)).snapshot(), settings), IptablesSettings())
    chains = dict(wanted.ipv4.tables["nat"])
    *entries, first, second = chains["KUBE-SERVICES"]
    chains["KUBE-SERVICES"] = (*entries, second, first)
    seen = replace(wanted, ipv4=replace(wanted.ipv4, tables={**wanted.ipv4.tables, "nat": chains}))
    assert plan(seen, wanted).batches == ()


def test_the_kubelets_firewall_chain_keeps_its_other_rules() -> None:
    wanted = _rules(*ONE)
    chains = dict(wanted.ipv4.tables["filter"])
    chains["KUBE-FIREWALL"] = (Rule("-m mark --mark 0x8000/0x8000 -j DROP"),)
    seen = replace(wanted, ipv4=replace(wanted.ipv4, tables={**wanted.ipv4.tables, "filter": chains}))
    lines = _text(plan(seen, wanted)).splitlines()
    assert [line[:18] for line in lines] == ["*filter", "-A KUBE-FIREWALL !", "COMMIT"]


def test_spelling_is_no_difference() -> None:
    wanted = _rules(*ONE)
    chains = dict(wanted.ipv4.tables["nat"])
    chains["KUBE-MARK-MASQ"] = (Rule("-j MARK --or-mark 0x004000"),)
    chains["KUBE-SERVICES"] = tuple(
        Rule(rule.text.replace("-d 172.30.0.41/32 -p tcp", "-p tcp -d 172.30.0.41")) for rule in chains["KUBE-SERVICES"]
    )
    seen = replace(wanted, ipv4=replace(wanted.ipv4, tables={**wanted.ipv4.tables, "nat": chains}))
    assert plan(seen, wanted).batches == ()


def test_cleanup_leaves_only_what_is_the_kubelets() -> None:
    observed = _seen(_rules(*ONE))
    text = _text(cleanup_plan(observed))
    removed = {line.split(" ")[1] for line in text.splitlines() if line.startswith("-X")}
    assert "KUBE-FIREWALL" not in text
    assert {c for chains in observed.ipv4.tables.values() for c in chains if c.startswith("KUBE")} - removed == {
        "KUBE-FIREWALL"
    }


def test_sections_of_a_batch_make_the_whole() -> None:
    (batch,) = (b for b in plan(EMPTY, _rules(*ONE)).batches if b.family is Family.IPV4)
    assert render_batch(batch) == "".join(render_section(section, batch.changes) for section in Section)
    assert batch.rules_written == _rules(*ONE).ipv4.rule_count
    assert FamilyRuleset(family=Family.IPV4) == EMPTY.ipv4
