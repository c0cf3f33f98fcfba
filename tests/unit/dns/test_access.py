"""`acl`: on the final name, behind aliases and walks, and never remembered for others."""

from __future__ import annotations

from dataclasses import replace

from kproxy.dns import chain, names, wire
from kproxy.dns.answer import Dropped, Forward, Outcome
from kproxy.dns.blocks import Acl, AclAction, AclRule, Autopath, Kubernetes, Rewrite, ServerBlock, Template
from kproxy.dns.clients import Client, SearchList
from kproxy.dns.finishing import next_of
from tests.unit.dns.test_chain import ONWARD, addresses, hosts, rcode, say, served_by

OUTSIDE = Client(address="10.2.0.9", packed=b"\x0a\2\0\x09")


def test_acl_decides_on_the_final_name() -> None:
    """CVE-2026-26017."""
    closed = (Acl(zones=("inner.test",), rules=(AclRule(action=AclAction.BLOCK),)),)
    rule = Rewrite(what="name", pattern="x.test.", to="a.inner.test.")
    served = served_by(ServerBlock(rewrites=(rule,), acl=closed, hosts=hosts()))
    assert rcode(say(served, "x.test")) == 5
    assert rcode(say(served, "a.test")) == 0


def test_acl_holds_behind_an_alias() -> None:
    closed = (Acl(zones=("test",), rules=(AclRule(action=AclAction.BLOCK),)),)
    served = served_by(ServerBlock(zones=("test",), acl=closed, hosts=hosts()), ServerBlock(kubernetes=Kubernetes()))
    said = say(served, "out.shop.svc.cluster.local")
    assert rcode(said) == 2 and not addresses(said)


def test_acl_holds_for_every_candidate_of_a_walk() -> None:
    closed = (Acl(zones=("test",), rules=(AclRule(action=AclAction.BLOCK),)),)
    heads = (names.encode("shop.svc.cluster.local"), names.encode("test"))
    pod = Client(address="10.1.0.9", packed=b"\x0a\1\0\x09", lists=(SearchList(heads),), heads=frozenset({heads[0]}))
    block = ServerBlock(autopath=Autopath(), acl=closed, hosts=hosts(fallthrough=(".",)), kubernetes=Kubernetes())
    assert not addresses(say(served_by(block), "a.shop.svc.cluster.local", client=pod))
    assert addresses(say(served_by(replace(block, acl=())), "a.shop.svc.cluster.local", client=pod)) == {"192.0.2.7"}


def test_acl_makes_every_reply_of_its_block_personal() -> None:
    rule = AclRule(action=AclAction.FILTER, networks=("10.1.0.0/16",))
    block = ServerBlock(
        acl=(Acl(rules=(rule,)),), kubernetes=Kubernetes(), hosts=hosts(fallthrough=(".",)), forwards=ONWARD
    )
    served = served_by(block)
    assert chain.places_of(served.settings) == (("10.1.0.0/16",),)
    inside = Client(address="10.1.0.9", packed=b"\x0a\1\0\x09", view=1)
    outside = Client(address="10.2.0.9", packed=b"\x0a\2\0\x09")
    for name in ("a.test", "web.shop.svc.cluster.local", "nothing.shop.svc.cluster.local", "example"):
        filtered, let = say(served, name, client=inside), say(served, name, client=outside)
        assert filtered.personal and let.personal
        assert rcode(filtered) == 0 and not addresses(filtered)
    assert not say(served_by(replace(block, acl=())), "a.test").personal


def test_acl_makes_what_an_alias_is_led_to_personal_as_well() -> None:
    rule = AclRule(action=AclAction.FILTER, networks=("10.1.0.0/16",))
    led = Rewrite(what="cname", pattern="x.test.", to="y.test.")
    pending = say(
        served_by(ServerBlock(acl=(Acl(rules=(rule,)),), rewrites=(led,), forwards=ONWARD)), "a.test", client=OUTSIDE
    )
    assert isinstance(pending, Forward) and pending.personal
    alias = wire.record(wire.OWNER, 5, 60, names.encode("x.test"))
    again = next_of(pending, wire.build(pending.query, answer=(alias,), size=wire.MAX_TCP))
    assert isinstance(again, Forward) and again.name == names.encode("y.test") and again.personal
    ended = next_of(pending, wire.build(pending.query, size=wire.MAX_TCP))
    assert isinstance(ended, Outcome) and ended.personal


def test_what_one_client_alone_may_see_is_remembered_for_nobody() -> None:
    named = Template(qtype="TXT", answers=("{{ .Name }} 60 IN TXT {{ .Remote }}",))
    network = Rewrite(what="edns0", arguments=("subnet", "set", "24", "56"))
    client = Client(address="10.1.0.9", packed=b"\x0a\1\0\x09")
    assert say(served_by(ServerBlock(templates=(named,))), "a.test", "TXT", client).single
    assert say(served_by(ServerBlock(rewrites=(network,), forwards=ONWARD)), "a.test", client=client).single
    assert say(served_by(ServerBlock(whoami=True)), "a.test", client=client).single
    assert not say(served_by(ServerBlock(forwards=ONWARD)), "a.test", client=client).single


def test_acl_drops() -> None:
    served = served_by(ServerBlock(acl=(Acl(rules=(AclRule(action=AclAction.DROP),)),), hosts=hosts()))
    assert say(served, "a.test") == Dropped(0, 'coredns_acl_dropped_requests_total{server="%s",zone=".",view=""}')


def test_a_client_without_address_is_blocked_where_addresses_count() -> None:
    rule = AclRule(action=AclAction.ALLOW, networks=("10.0.0.0/8",))
    assert rcode(say(served_by(ServerBlock(acl=(Acl(rules=(rule,)),), hosts=hosts())), "a.test")) == 5


def test_what_was_done_is_counted() -> None:
    rules = (AclRule(action=AclAction.BLOCK, types=("A",)), AclRule(action=AclAction.FILTER, types=("AAAA",)))
    served = served_by(ServerBlock(acl=(Acl(zones=("in.test",), rules=rules),), hosts=hosts(), forwards=ONWARD))
    allowed = 'coredns_acl_allowed_requests_total{server="%s",view=""}'
    assert say(served, "a.in.test").events == (
        'coredns_acl_blocked_requests_total{server="%s",zone="in.test.",view=""}',
    )
    assert say(served, "a.in.test", "AAAA").events == (
        'coredns_acl_filtered_requests_total{server="%s",zone="in.test.",view=""}',
    )
    assert say(served, "a.test").events == (allowed,)
    assert say(served_by(ServerBlock(hosts=hosts())), "a.test").events == ()


def test_templates_that_fit_are_counted() -> None:
    made = Template(qtype="ANY", zones=("in.test",), answers=("{{ .Name }} 60 IN TXT x",))
    served = served_by(ServerBlock(templates=(made,), hosts=hosts()))
    said = say(served, "a.in.test", "AAAA")
    assert said.plugin == "template" and said.events == (
        'coredns_template_matches_total{server="%s",zone="in.test.",view="",class="IN",type="AAAA"}',
    )
    assert say(served, "a.test").plugin == "hosts" and not say(served, "a.test").events
