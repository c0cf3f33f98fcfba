"""The compiler: what only it decides. That packets go where they should is the behaviour table's matter (tracer, packet lane)."""

from __future__ import annotations

from dataclasses import replace

import pytest

from kproxy.backends.iptables.compile import compile_ruleset
from kproxy.backends.iptables.matches import Jump
from kproxy.backends.iptables.rules import text_of
from kproxy.backends.iptables.ruleset import BUILT_IN, FamilyRuleset, Ruleset, render
from kproxy.backends.iptables.settings import IptablesSettings
from kproxy.model.desired import DesiredState, NodeSettings
from kproxy.model.names import Family
from kproxy.model.resolve import resolve
from tests.support.builders import Built, ep, port, slice_, svc
from tests.support.flows import SETTINGS, Step
from tests.support.packets import ROWS


def _desired(*objects: Built, settings: NodeSettings = SETTINGS, before: DesiredState | None = None) -> DesiredState:
    return resolve(Step(tuple(objects)).snapshot(), settings, before)


def _compile(*objects: Built, settings: NodeSettings = SETTINGS, **values: object) -> Ruleset:
    return compile_ruleset(_desired(*objects, settings=settings), IptablesSettings(**values))  # type: ignore[arg-type]


def _texts(rules: FamilyRuleset, table: str, chain: str) -> list[str]:
    return [rule.text for rule in rules.tables[table][chain]]


ONE = (svc(), slice_(ep("10.180.0.1")))


def test_unchanged_service_ports_keep_their_fragment() -> None:
    settings = IptablesSettings()
    desired = _desired(*ONE, svc("172.30.0.42", name="svc2"))
    first = compile_ruleset(desired, settings)
    again = compile_ruleset(desired, settings, first)
    assert all(again.ipv4.fragments[name] is first.ipv4.fragments[name] for name in first.ipv4.fragments)
    assert again == first


def test_another_context_compiles_fragments_anew() -> None:
    desired = _desired(*ONE)
    first = compile_ruleset(desired, IptablesSettings())
    bare = compile_ruleset(desired, IptablesSettings(max_endpoints_with_comments=0), first)
    assert "->" in render(first.ipv4)
    assert "->" not in render(bare.ipv4)
    assert bare == compile_ruleset(desired, IptablesSettings(max_endpoints_with_comments=0))


def test_refused_service_ports_are_left_out_until_they_change() -> None:
    desired = _desired(*ONE)
    (name,) = desired.ipv4.service_ports
    service_port = desired.ipv4.service_ports[name]
    first = compile_ruleset(desired, IptablesSettings())
    without = compile_ruleset(desired, IptablesSettings(), first, {(Family.IPV4, name): service_port})
    assert name not in without.ipv4.fragments
    changed = replace(service_port, port=81)
    other = replace(desired, ipv4=replace(desired.ipv4, service_ports={name: changed}))
    assert (
        name in compile_ruleset(other, IptablesSettings(), without, {(Family.IPV4, name): service_port}).ipv4.fragments
    )


def test_masquerade_bit() -> None:
    rules = _compile(*ONE, masquerade_bit=3).ipv4
    assert _texts(rules, "nat", "KUBE-MARK-MASQ") == ["-j MARK --set-xmark 0x8/0x8"]
    assert _texts(rules, "nat", "KUBE-POSTROUTING")[0] == "-m mark ! --mark 0x8/0x8 -j RETURN"
    assert "--mark 0x8/0x8 -j ACCEPT" in _texts(rules, "filter", "KUBE-FORWARD")[1]


def test_random_fully_and_liberal_conntrack_are_settings() -> None:
    rules = _compile(*ONE, random_fully=False, conntrack_tcp_be_liberal=True).ipv4
    assert _texts(rules, "nat", "KUBE-POSTROUTING")[-1].endswith("-j MASQUERADE")
    assert len(_texts(rules, "filter", "KUBE-FORWARD")) == 2


def test_nobody_takes_a_cluster_ip_by_naming_it_external() -> None:
    thief = svc("172.30.0.42", name="a-thief", external=["172.30.0.41"])
    rules = _compile(*ONE, thief, slice_(ep("10.180.9.9"), of="a-thief")).ipv4
    entries = [text for text in _texts(rules, "nat", "KUBE-SERVICES") if "-d 172.30.0.41/32" in text]
    assert len(entries) == 1
    assert "ns1/svc1:p80 cluster IP" in entries[0]


def test_of_two_services_with_one_external_ip_the_first_by_name_has_it() -> None:
    both = [svc(f"172.30.0.4{n}", name=f"svc{n}", external=["192.168.99.11"]) for n in (2, 1)]
    slices = [slice_(ep(f"10.180.0.{n}"), of=f"svc{n}") for n in (1, 2)]
    texts = _texts(_compile(*both, *slices).ipv4, "nat", "KUBE-SERVICES")
    entries = [text for text in texts if "-d 192.168.99.11/32" in text]
    assert [text for text in entries if "ns1/svc1:p80 external IP" in text] == entries


def test_a_source_range_of_everything_is_written_as_the_tools_list_it() -> None:
    texts = render(_compile(svc(lb=["1.2.3.4"], ranges=["0.0.0.0/0"]), slice_(ep("10.180.0.1"))).ipv4)
    assert (
        '-A KUBE-FW-XPGD46QRK7WJZT7O -m comment --comment "ns1/svc1:p80 loadbalancer IP" -j KUBE-EXT-XPGD46QRK7WJZT7O\n'
        in texts
    )


def test_restricted_node_ports_name_their_addresses() -> None:
    settings = replace(SETTINGS, node_port_addresses=("192.168.0.0/16",))
    texts = _texts(_compile(svc(ports=[port(node=3001)]), settings=settings).ipv4, "nat", "KUBE-SERVICES")
    assert [text.split(" ")[1] for text in texts[-2:]] == ["192.168.0.2/32", "192.168.1.2/32"]


def test_cluster_dns_is_untracked_in_both_directions() -> None:
    settings = replace(SETTINGS, dns_addresses=("10.96.0.10", "fd00::a"))
    ruleset = _compile(settings=settings)
    for rules, address in ((ruleset.ipv4, "10.96.0.10/32"), (ruleset.ipv6, "fd00::a/128")):
        for chain, hook in (("KPROXY-DNS-PREROUTING", "PREROUTING"), ("KPROXY-DNS-OUTPUT", "OUTPUT")):
            texts = _texts(rules, "raw", chain)
            assert len(texts) == 4
            assert all(text.endswith("-j CT --notrack") for text in texts)
            assert sum(text.startswith(f"-d {address}") and text.count("--dport 53") == 1 for text in texts) == 2
            assert sum(text.startswith(f"-s {address}") and text.count("--sport 53") == 1 for text in texts) == 2
            assert [rule.jump for rule in rules.tables["raw"][hook]] == [chain]
        for hook in ("INPUT", "OUTPUT"):
            texts = _texts(rules, "filter", f"KPROXY-DNS-{hook}")
            assert len(texts) == 4 and all(t.endswith("-m conntrack --ctstate UNTRACKED -j ACCEPT") for t in texts)
            assert rules.tables["filter"][hook][0].jump == f"KPROXY-DNS-{hook}"
    without = _compile()
    assert "raw" not in without.ipv4.tables and "KPROXY-DNS-INPUT" not in without.ipv4.tables["filter"]


def test_queries_are_untracked_while_somebody_listens_where_the_kernel_can_tell() -> None:
    settings = replace(SETTINGS, dns_addresses=("10.96.0.10",))
    for sockets, count in ((True, 2), (False, 0)):
        raw = _compile(settings=settings, sockets=sockets).ipv4
        asking = [text for text in _texts(raw, "raw", "KPROXY-DNS-PREROUTING") if " -m socket " in text]
        assert len(asking) == count and all("--dport 53" in text for text in asking)
        assert not any("-m socket" in text for text in _texts(raw, "raw", "KPROXY-DNS-OUTPUT")), "no such match there"


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.id)
def test_every_row_compiles_to_rules_in_save_form_that_name_only_declared_chains(row: object) -> None:
    for step in row.steps:  # type: ignore[attr-defined]
        ruleset = compile_ruleset(resolve(step.snapshot(), row.settings), IptablesSettings())  # type: ignore[attr-defined]
        for rules in (ruleset.ipv4, ruleset.ipv6):
            for chains in rules.tables.values():
                for chain in chains.values():
                    for rule in chain:
                        parts = rule.parts
                        assert text_of(parts.matches, parts.target) == rule.text
                        if isinstance(parts.target, Jump):
                            assert parts.target.chain in chains
                            assert parts.target.chain not in BUILT_IN
