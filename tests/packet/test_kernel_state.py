"""The real tools and the real kernel tables, both variants: what stands there before, between and after syncs."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from kproxy.backends.iptables.apply import IptablesBackend, ask_library
from kproxy.backends.iptables.libiptc import Capabilities
from kproxy.backends.iptables.variant import Variant
from kproxy.model.desired import DesiredState, Endpoint
from kproxy.model.names import Family, Protocol
from kproxy.model.resolve import resolve
from tests.packet.node import ONE, Node, desired
from tests.support.bed import Bed
from tests.support.builders import ep, slice_, svc
from tests.support.flows import P
from tests.support.netns import run
from tests.support.packets import ROWS
from tests.support.probing import Answered, probe


def test_jumps_stand_in_kube_proxys_order(node: Node) -> None:
    node.sync(desired(*ONE))
    lines = node.tool("iptables-save", "-t", "filter").splitlines()
    jumps = {
        hook: [line.rsplit(" ", 1)[1] for line in lines if line.startswith(f"-A {hook} ")]
        for hook in ("INPUT", "FORWARD", "OUTPUT")
    }
    assert jumps["INPUT"] == ["KUBE-FIREWALL", "KUBE-PROXY-FIREWALL", "KUBE-NODEPORTS", "KUBE-EXTERNAL-SERVICES"]
    assert jumps["FORWARD"] == ["KUBE-PROXY-FIREWALL", "KUBE-FORWARD", "KUBE-SERVICES", "KUBE-EXTERNAL-SERVICES"]
    assert jumps["OUTPUT"] == ["KUBE-FIREWALL", "KUBE-PROXY-FIREWALL", "KUBE-SERVICES"]


def test_the_canary_is_in_three_tables(node: Node) -> None:
    node.sync(desired())
    assert node.save().count(":KUBE-PROXY-CANARY -") == 3


# What kube-proxy v1.36 writes for ONE and an old Service, in its own spelling and order.
KUBE_PROXY = """\
*mangle
:KUBE-PROXY-CANARY - [0:0]
COMMIT
*filter
:KUBE-PROXY-CANARY - [0:0]
:KUBE-SERVICES - [0:0]
:KUBE-EXTERNAL-SERVICES - [0:0]
:KUBE-FORWARD - [0:0]
:KUBE-NODEPORTS - [0:0]
:KUBE-PROXY-FIREWALL - [0:0]
:KUBE-FIREWALL - [0:0]
-A KUBE-FIREWALL -m comment --comment "block incoming localnet connections" -d 127.0.0.0/8 ! -s 127.0.0.0/8 -m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT -j DROP
-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP
-A KUBE-FORWARD -m comment --comment "kubernetes forwarding rules" -m mark --mark 0x00004000/0x00004000 -j ACCEPT
-A KUBE-FORWARD -m comment --comment "kubernetes forwarding conntrack rule" -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-I INPUT -m conntrack --ctstate NEW -m comment --comment "kubernetes externally-visible service portals" -j KUBE-EXTERNAL-SERVICES
-I FORWARD -m conntrack --ctstate NEW -m comment --comment "kubernetes externally-visible service portals" -j KUBE-EXTERNAL-SERVICES
-I INPUT -m comment --comment "kubernetes health check service ports" -j KUBE-NODEPORTS
-I FORWARD -m conntrack --ctstate NEW -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-I OUTPUT -m conntrack --ctstate NEW -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-I FORWARD -m comment --comment "kubernetes forwarding rules" -j KUBE-FORWARD
-I INPUT -m conntrack --ctstate NEW -m comment --comment "kubernetes load balancer firewall" -j KUBE-PROXY-FIREWALL
-I OUTPUT -m conntrack --ctstate NEW -m comment --comment "kubernetes load balancer firewall" -j KUBE-PROXY-FIREWALL
-I FORWARD -m conntrack --ctstate NEW -m comment --comment "kubernetes load balancer firewall" -j KUBE-PROXY-FIREWALL
-I INPUT -j KUBE-FIREWALL
-I OUTPUT -j KUBE-FIREWALL
COMMIT
*nat
:KUBE-PROXY-CANARY - [0:0]
:KUBE-SERVICES - [0:0]
:KUBE-NODEPORTS - [0:0]
:KUBE-POSTROUTING - [0:0]
:KUBE-MARK-MASQ - [0:0]
:KUBE-SVC-XPGD46QRK7WJZT7O - [0:0]
:KUBE-SEP-SXIVWICOYRO3J4NJ - [0:0]
:KUBE-SEP-LXVODXWDISEETFEF - [0:0]
-A KUBE-POSTROUTING -m mark ! --mark 0x00004000/0x00004000 -j RETURN
-A KUBE-POSTROUTING -j MARK --xor-mark 0x00004000
-A KUBE-POSTROUTING -m comment --comment "kubernetes service traffic requiring SNAT" -j MASQUERADE --random-fully
-A KUBE-MARK-MASQ -j MARK --or-mark 0x00004000
-A KUBE-SERVICES -m comment --comment "ns1/svc1:p80 cluster IP" -m tcp -p tcp -d 172.30.0.41 --dport 80 -j KUBE-SVC-XPGD46QRK7WJZT7O
-A KUBE-SVC-XPGD46QRK7WJZT7O -m comment --comment "ns1/svc1:p80 cluster IP" -m tcp -p tcp -d 172.30.0.41 --dport 80 ! -s 10.0.0.0/8 -j KUBE-MARK-MASQ
-A KUBE-SVC-XPGD46QRK7WJZT7O -m comment --comment "ns1/svc1:p80 -> 10.180.0.1:80" -m statistic --mode random --probability 0.5000000000 -j KUBE-SEP-SXIVWICOYRO3J4NJ
-A KUBE-SVC-XPGD46QRK7WJZT7O -m comment --comment "ns1/svc1:p80 -> 10.180.0.2:80" -j KUBE-SEP-LXVODXWDISEETFEF
-A KUBE-SEP-SXIVWICOYRO3J4NJ -m comment --comment ns1/svc1:p80 -s 10.180.0.1 -j KUBE-MARK-MASQ
-A KUBE-SEP-SXIVWICOYRO3J4NJ -m comment --comment ns1/svc1:p80 -m tcp -p tcp -j DNAT --to-destination 10.180.0.1:80
-A KUBE-SEP-LXVODXWDISEETFEF -m comment --comment ns1/svc1:p80 -s 10.180.0.2 -j KUBE-MARK-MASQ
-A KUBE-SEP-LXVODXWDISEETFEF -m comment --comment ns1/svc1:p80 -m tcp -p tcp -j DNAT --to-destination 10.180.0.2:80
-A KUBE-SERVICES -m comment --comment "kubernetes service nodeports; NOTE: this must be the last rule in this chain" -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS
-I OUTPUT -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-I PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-I POSTROUTING -m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING
COMMIT
"""  # noqa: E501
STALE = """\
*nat
:KUBE-SVC-AAAAAAAAAAAAAAAA - [0:0]
:KUBE-EXT-AAAAAAAAAAAAAAAA - [0:0]
:KUBE-SEP-AAAAAAAAAAAAAAAA - [0:0]
-A KUBE-SEP-AAAAAAAAAAAAAAAA -m comment --comment ns9/gone -m tcp -p tcp -j DNAT --to-destination 10.180.9.9:80
-A KUBE-SVC-AAAAAAAAAAAAAAAA -m comment --comment "ns9/gone -> 10.180.9.9:80" -j KUBE-SEP-AAAAAAAAAAAAAAAA
-A KUBE-EXT-AAAAAAAAAAAAAAAA -j KUBE-SVC-AAAAAAAAAAAAAAAA
-I KUBE-SERVICES -m comment --comment "ns9/gone cluster IP" -m tcp -p tcp -d 172.30.9.9 --dport 80 -j KUBE-SVC-AAAAAAAAAAAAAAAA
-I KUBE-NODEPORTS -m comment --comment ns9/gone -m tcp -p tcp --dport 3009 -j KUBE-EXT-AAAAAAAAAAAAAAAA
COMMIT
"""


def test_kube_proxys_rules_are_taken_over_as_they_are(node: Node) -> None:
    node.tool("iptables-restore", "--noflush", text=KUBE_PROXY)
    before = node.save()
    made = node.backend.plan(node.observe(), node.backend.compile(desired(*ONE)))
    assert [batch for batch in made.batches if batch.family is Family.IPV4] == []
    node.sync(desired(*ONE))
    assert node.save() == before


def test_stale_chains_go_and_nothing_else_changes(node: Node) -> None:
    node.tool("iptables-restore", "--noflush", text=KUBE_PROXY)
    before = node.save()
    node.tool("iptables-restore", "--noflush", text=STALE)
    report = node.sync(desired(*ONE))
    assert report.chains_deleted == 3
    assert node.save() == before


def _foreign() -> str:
    lines = [
        "*nat",
        ":CNI-HOSTPORT-DNAT - [0:0]",
        ":KUBE-HOSTPORTS - [0:0]",
        "-A PREROUTING -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT",
    ]
    lines += [
        f"-A CNI-HOSTPORT-DNAT -p tcp -m tcp --dport {9000 + n} -j DNAT --to-destination 10.244.0.{n % 250 + 1}:80"
        for n in range(500)
    ]
    lines += [
        "-A POSTROUTING -s 10.244.0.0/16 ! -d 10.244.0.0/16 -j MASQUERADE",
        "COMMIT",
        "*filter",
        ":FW - [0:0]",
        ":KUBE-FIREWALL - [0:0]",
    ]
    lines += [f'-A FW -s 198.51.{n // 250}.{n % 250}/32 -m comment --comment "block {n}" -j DROP' for n in range(500)]
    lines += [
        "-A FORWARD -j FW",
        "-A INPUT -j KUBE-FIREWALL",
        "-A KUBE-FIREWALL -m mark --mark 0x8000/0x8000 -j DROP",
        "COMMIT",
    ]
    return "\n".join([*lines, "*mangle", ":KUBE-KUBELET-CANARY - [0:0]", ":KUBE-IPTABLES-HINT - [0:0]", "COMMIT", ""])


def test_the_variant_is_found_by_the_kubelets_chain(node: Node) -> None:
    node.tool("iptables-restore", "--noflush", text=_foreign())
    with node.space.entered():
        choice = IptablesBackend().tools.choice
    assert choice.variant is node.variant
    assert "the kubelet's chain KUBE-" in choice.evidence


def _poisoned(good: DesiredState) -> DesiredState:
    """One ServicePort with an endpoint port that no tool accepts: what a bug of ours, or a kernel that lacks something, looks like."""
    ports = dict(good.ipv4.service_ports)
    name = next(name for name in ports if name.service.name == "s07")
    bad = (Endpoint(address="10.180.7.7", port=99999),)
    ports[name] = replace(ports[name], internal=replace(ports[name].internal, endpoints=bad), reachable=bad)
    return replace(good, ipv4=replace(good.ipv4, service_ports=ports))


def test_a_refused_service_port_does_not_stop_the_others(node: Node) -> None:
    objects = [
        item
        for i in range(20)
        for item in (svc(f"172.30.1.{i + 1}", name=f"s{i:02}"), slice_(ep(f"10.180.1.{i + 1}"), of=f"s{i:02}"))
    ]
    good = desired(*objects)
    poisoned = _poisoned(good)
    report = node.sync(poisoned)
    assert [problem.name for problem in report.problems] == ["ns1/s07:p80"]
    assert sum(line.startswith("-A KUBE-SERVICES -d 172.30.1.") for line in node.save()) == 19
    assert node.left_to_do(poisoned) == 0
    assert node.sync(poisoned).problems == ()
    assert [problem.name for problem in node.backend.refused] == ["ns1/s07:p80"], "known until the Service changes"
    assert node.sync(good).problems == ()
    assert node.backend.refused == ()
    assert node.left_to_do(good) == 0


@pytest.mark.parametrize("variant", list(Variant), ids=lambda variant: variant.value)
def test_u18_packets_pass_untouched_after_cleanup_and_come_back(variant: Variant) -> None:
    """Rows U18 and U14."""
    row = next(row for row in ROWS if row.id == "C04")
    bed = Bed((row,))
    with bed.node.entered():
        backend = IptablesBackend(variant=variant)
    bed.place(row.steps[0])
    wanted = backend.compile(resolve(row.steps[0].snapshot(), row.settings))
    reached, passed = {Answered("10.180.0.1:80", P.address)}, {Answered("172.30.0.41:80", P.address)}
    for step in ("apply", "cleanup", "apply", "flush", "apply"):
        with bed.node.entered():
            if step == "apply":
                asyncio.run(backend.apply(backend.plan(asyncio.run(backend.observe()), wanted)))
            elif step == "cleanup":
                asyncio.run(backend.cleanup())
            else:
                run(None, f"iptables-{variant.value}", "-w", "5", "-t", "nat", "-F")
        with bed.at(P):
            results = probe(Protocol.TCP, P.address, ("172.30.0.41", 80), 3, 2.0)
        assert set(results) == (reached if step == "apply" else passed), step
    bed.close()


def test_this_kernel_has_what_rules_use() -> None:
    """python-iptables asks; the behaviour table has shown that every one of them works."""
    node = Node(Variant.LEGACY)
    with node.space.entered():
        found = asyncio.run(ask_library())
    assert found == Capabilities()
    node.space.close()
