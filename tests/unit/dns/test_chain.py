"""The chain's own decisions: which block, what may be remembered for whom, what holds behind walks and aliases, and that nothing raises."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import dns.message
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kproxy.dns import chain, names, wire
from kproxy.dns.answer import Forward, Outcome
from kproxy.dns.blocks import (
    Acl,
    AclAction,
    AclRule,
    Autopath,
    Cache,
    External,
    HostLine,
    Hosts,
    Kubernetes,
    LoadBalance,
    Rewrite,
    ServerBlock,
    Template,
    Transfer,
)
from kproxy.dns.blocks import Forward as ForwardDirective
from kproxy.dns.chain import Served
from kproxy.dns.clients import ANYBODY, Client, SearchList
from kproxy.dns.corefile.parse import parse
from kproxy.dns.directives import zone_settings
from kproxy.dns.settings import DnsSettings
from kproxy.dns.wire import Transport
from kproxy.dns.zone import RecordKind, ServiceRecords, Zone, ZoneDelta, empty_zone, with_changes
from tests.support.directives import corefile

ONWARD = (ForwardDirective(to=("192.0.2.1",)),)
OUTSIDE = HostLine("192.0.2.7", ("a.test", "b.test", "a.inner.test"))


def hosts(*lines: HostLine, **options: Any) -> Hosts:
    return Hosts(file="", lines=lines or (OUTSIDE,), **options)


def served_by(*blocks: ServerBlock, zones: tuple[Zone, ...] | None = None, **settings: Any) -> Served:
    made = DnsSettings(blocks=blocks, **settings)
    return chain.serve(made, zones if zones is not None else [cluster(flat) for flat in zone_settings(made)])


def cluster(settings: DnsSettings) -> Zone:
    """Service `web` 10.0.0.1 and external name `out`, both in namespace `shop`."""
    web = ServiceRecords(b"\x03web\x04shop", RecordKind.CLUSTER, (b"\x0a\0\0\1",))
    out = ServiceRecords(b"\x03out\x04shop", RecordKind.EXTERNAL, target=names.encode("a.test"))
    far = ServiceRecords(b"\x03far\x04shop", RecordKind.EXTERNAL, target=names.encode("far.example"))
    delta = ZoneDelta(serial=7, synced=True, namespaces=frozenset({b"shop"}), changed=(web, out, far))
    return with_changes(empty_zone(settings), delta)


def say(
    served: Served,
    name: str,
    kind: str = "A",
    client: Client = ANYBODY,
    transport: Transport = Transport.UDP,
    **options: Any,
) -> Any:
    return chain.respond(served, dns.message.make_query(name, kind, **options).to_wire(), transport, client)


def rcode(outcome: Any) -> int:
    assert isinstance(outcome, Outcome)
    return outcome.reply[3] & 15


def addresses(outcome: Any) -> set[str]:
    assert isinstance(outcome, Outcome)
    return {
        item.to_text() for rrset in dns.message.from_wire(outcome.reply).answer for item in rrset if rrset.rdtype == 1
    }


@pytest.mark.parametrize("fallthrough", [("cluster.local",), (".",)])
def test_t200_t201_names_missing_in_the_cluster_go_on_where_fallthrough_holds(fallthrough: tuple[str, ...]) -> None:
    cluster = Kubernetes(zones=("cluster.local",), fallthrough=fallthrough)
    served = served_by(ServerBlock(kubernetes=cluster, forwards=ONWARD))
    for name in ("foo.cluster.local", "f.b.svc.cluster.local"):
        said = say(served, name)
        assert isinstance(said, Forward) and said.name == names.encode(name)


def test_t202_t203_fallthrough_for_some_names_only() -> None:
    cluster = Kubernetes(zones=("cluster.local",), fallthrough=("svc.cluster.local",))
    served = served_by(ServerBlock(kubernetes=cluster, forwards=ONWARD))
    assert isinstance(say(served, "f.b.svc.cluster.local"), Forward)
    assert rcode(say(served, "foo.cluster.local")) == 3


def test_t204_an_existing_name_without_such_records_never_falls_through() -> None:
    cluster = Kubernetes(zones=("cluster.local",), fallthrough=(".",))
    said = say(served_by(ServerBlock(kubernetes=cluster, forwards=ONWARD)), "web.shop.svc.cluster.local", "AAAA")
    assert rcode(said) == 0 and said.reply[8:10] == b"\0\1"  # an SOA


def test_t207_the_longest_zone_has_the_name_whatever_the_order_of_blocks() -> None:
    inner = ServerBlock(zones=("inner.test",), templates=(Template(rcode="NXDOMAIN"),))
    outer = ServerBlock(zones=("test",), hosts=hosts())
    for blocks in ((inner, outer), (outer, inner)):
        served = served_by(*blocks)
        assert rcode(say(served, "a.inner.test")) == 3
        assert addresses(say(served, "a.test")) == {"192.0.2.7"}
        assert rcode(say(served, "ainner.test")) == 2  # no label boundary: the outer block's


def test_t208_nobody_has_the_name() -> None:
    said = say(served_by(ServerBlock(zones=("test",), hosts=hosts())), "a.example")
    assert rcode(said) == 5 and said.reply[6:12] == b"\0\0\0\0\0\0" and said.block == -1


def test_ds_belongs_to_the_parent() -> None:
    child = ServerBlock(zones=("inner.test",), hosts=hosts())
    parent = ServerBlock(zones=("test",), forwards=ONWARD)
    said = say(served_by(child, parent), "inner.test", "DS")
    assert isinstance(said, Forward) and said.block == 1


def test_ports_tell_blocks_apart() -> None:
    here = ServerBlock(zones=("test",), hosts=hosts())
    there = ServerBlock(zones=("test",), port=5353, hosts=hosts(HostLine("192.0.2.8", ("a.test",))))
    served = served_by(here, there)
    query = dns.message.make_query("a.test", "A").to_wire()
    assert served.ports == (53, 5353)
    assert addresses(chain.respond(served, query, Transport.UDP)) == {"192.0.2.7"}
    assert addresses(chain.respond(served, query, Transport.UDP, port=5353)) == {"192.0.2.8"}
    assert rcode(chain.respond(served, query, Transport.UDP, port=9999)) == 5


def test_bind_tells_blocks_apart() -> None:
    first = ServerBlock(zones=("test",), bind=("127.0.0.1",), hosts=hosts())
    second = ServerBlock(zones=("test",), bind=("127.0.0.2",), hosts=hosts(HostLine("192.0.2.8", ("a.test",))))
    served = served_by(first, second)
    query = dns.message.make_query("a.test", "A").to_wire()
    assert served.addressed
    for address, expected in (("127.0.0.1", "192.0.2.7"), ("127.0.0.2", "192.0.2.8")):
        assert addresses(chain.respond(served, query, Transport.UDP, address=address)) == {expected}


def test_an_outcome_names_its_block() -> None:
    served = served_by(ServerBlock(zones=("other",), hosts=hosts()), ServerBlock(kubernetes=Kubernetes(), hosts=None))
    assert say(served, "web.shop.svc.cluster.local").block == 1
    plain = served_by(ServerBlock(zones=("other",), whoami=True), ServerBlock(zones=("test",), hosts=hosts()))
    assert say(plain, "a.test").block == 1


def test_stub_domains_below_local_go_out_and_other_local_names_do_not() -> None:
    stub = ServerBlock(zones=("acme.local",), forwards=ONWARD)
    rest = ServerBlock(
        kubernetes=Kubernetes(), forwards=(*ONWARD, ForwardDirective(origin="corp.local", to=("192.0.2.2",)))
    )
    served = served_by(stub, rest)
    assert isinstance(say(served, "x.acme.local"), Forward)
    assert rcode(say(served, "printer.local")) == 3
    own = served_by(
        ServerBlock(kubernetes=Kubernetes(), forwards=(ForwardDirective(origin="corp.local", to=("192.0.2.2",)),))
    )
    assert isinstance(say(own, "x.corp.local"), Forward)


def test_the_first_forward_that_a_name_goes_to() -> None:
    forwards = (
        ForwardDirective(origin="a.test"),
        ForwardDirective(origin="test", excepted=("b.test",)),
        ForwardDirective(),
    )
    served = served_by(ServerBlock(forwards=forwards))
    for name, first in (("x.a.test", 0), ("x.c.test", 1), ("x.b.test", 2), ("example", 2)):
        assert say(served, name).first == first


def test_an_external_name_is_resolved_by_the_whole_server() -> None:
    served = served_by(
        ServerBlock(zones=("test",), hosts=hosts()), ServerBlock(kubernetes=Kubernetes(), forwards=ONWARD)
    )
    said = say(served, "out.shop.svc.cluster.local")
    reply = dns.message.from_wire(said.reply)
    assert [rrset.name.to_text() for rrset in reply.answer] == ["out.shop.svc.cluster.local.", "a.test."]
    assert said.owner == b"", "it depends on more than one Service"
    there = served_by(
        ServerBlock(kubernetes=Kubernetes(), forwards=ONWARD), ServerBlock(zones=("test",), hosts=hosts())
    )
    assert say(there, "out.shop.svc.cluster.local").block == 0, "of the block that was asked"
    far = say(served, "far.shop.svc.cluster.local")
    assert isinstance(far, Forward) and far.after is None and far.prefix and far.block == 1


def test_aliases_that_go_round_end() -> None:
    loop = ServerBlock(
        zones=("test",),
        templates=(Template(qtype="A", answers=("{{ .Name }} 60 IN CNAME x{{ .Name }}",)),),
    )
    assert rcode(say(served_by(loop), "a.test")) == 2


def test_what_an_alias_leads_to_is_not_the_only_thing_its_reply_depends_on() -> None:
    alias = Template(qtype="A", matches=("^go[.]",), answers=("{{ .Name }} 60 IN CNAME web.shop.svc.cluster.local.",))
    served = served_by(ServerBlock(zones=("test",), templates=(alias,)), ServerBlock(kubernetes=Kubernetes()))
    said = say(served, "go.test")
    assert addresses(said) == {"10.0.0.1"} and said.owner == b""


def test_an_alias_is_not_walked_along_a_search_list() -> None:
    alias = Template(
        qtype="A",
        matches=("^go[.]",),
        answers=("{{ .Name }} 60 IN CNAME a.shop.svc.cluster.local.",),
        fallthrough=(".",),
    )
    heads = (names.encode("shop.svc.cluster.local"), names.encode("test"))
    pod = Client(address="10.1.0.9", packed=b"\x0a\1\0\x09", lists=(SearchList(heads),), heads=frozenset({heads[0]}))
    block = ServerBlock(
        autopath=Autopath(), templates=(alias,), hosts=hosts(fallthrough=(".",)), kubernetes=Kubernetes()
    )
    assert not addresses(say(served_by(block), "go.example", client=pod))


def test_an_extended_error_keeps_within_the_size() -> None:
    long = Template(qtype="A", answers=("{{ .Name }} 60 IN A 192.0.2.1",) * 40, extended_error=(21, "x" * 200))
    said = say(served_by(ServerBlock(templates=(long,))), "a.test", use_edns=0, payload=512)
    reply = dns.message.from_wire(said.reply)
    assert len(said.reply) <= 512 and reply.flags & 0x0200 and len(reply.options) == 1


def test_a_template_that_knows_the_client_is_personal() -> None:
    made = Template(qtype="TXT", answers=("{{ .Name }} 60 IN TXT {{ .Remote }}",))
    assert say(served_by(ServerBlock(templates=(made,))), "a.test", "TXT", Client(address="10.0.0.1")).personal
    assert not say(served_by(ServerBlock(templates=(Template(qtype="AAAA"),))), "a.test", "AAAA").personal


def test_a_template_that_knows_the_pod() -> None:
    made = Template(qtype="TXT", answers=('{{ .Name }} 60 IN TXT "{{ .Meta "kubernetes/client-namespace" }}"',))
    said = say(
        served_by(ServerBlock(templates=(made,))), "a.test", "TXT", Client(address="10.0.0.1", name="shop/web-1")
    )
    assert b"\x04shop" in said.reply


def test_hosts_go_round_only_with_loadbalance() -> None:
    lines = tuple(HostLine(f"192.0.2.{n}", ("a.test",)) for n in range(3))
    query = dns.message.make_query("a.test", "A").to_wire()
    for balance, orders in ((LoadBalance(), 3), (None, 1)):
        served = served_by(ServerBlock(loadbalance=balance, hosts=hosts(*lines)))
        said = [chain.respond(served, query, Transport.UDP, turn=turn) for turn in range(6)]
        assert len({one.reply for one in said if isinstance(one, Outcome)}) == orders


def test_services_go_round_only_with_loadbalance() -> None:
    web = ServiceRecords(b"\x03web\x04shop", RecordKind.CLUSTER, (b"\x0a\0\0\1", b"\x0a\0\0\2"))
    for balance, orders in ((LoadBalance(), 2), (None, 1)):
        settings = DnsSettings(blocks=(ServerBlock(loadbalance=balance, kubernetes=Kubernetes()),))
        delta = ZoneDelta(serial=7, synced=True, namespaces=frozenset({b"shop"}), changed=(web,))
        served = chain.serve(settings, [with_changes(empty_zone(zone_settings(settings)[0]), delta)])
        query = dns.message.make_query("web.shop.svc.cluster.local", "A").to_wire()
        said = [chain.respond(served, query, Transport.UDP, turn=turn) for turn in range(4)]
        assert len({one.reply for one in said if isinstance(one, Outcome)}) == orders


def test_transfers_are_for_those_who_may_have_them() -> None:
    block = ServerBlock(kubernetes=Kubernetes(), transfers=(Transfer(to=("10.0.0.0/8",)),))
    inside = Client(address="10.0.0.9", packed=b"\x0a\0\0\x09")
    served = served_by(block)
    assert isinstance(say(served, "cluster.local", "AXFR", inside, Transport.TCP), chain.Transfer)
    assert rcode(say(served, "cluster.local", "AXFR", ANYBODY, Transport.TCP)) == 5
    assert rcode(say(served, "cluster.local", "AXFR", inside, Transport.UDP)) == 5
    assert rcode(say(served_by(replace(block, transfers=())), "cluster.local", "AXFR", inside, Transport.TCP)) == 5


def test_k8s_external_comes_before_kubernetes() -> None:
    web = ServiceRecords(b"\x03web\x04shop", RecordKind.CLUSTER, (b"\x0a\0\0\1",), external=(b"\xc0\0\2\x63",))
    settings = DnsSettings(blocks=(ServerBlock(kubernetes=Kubernetes(), external=External(zones=("ext.test",))),))
    delta = ZoneDelta(serial=7, synced=True, namespaces=frozenset({b"shop"}), changed=(web,))
    served = chain.serve(settings, [with_changes(empty_zone(zone_settings(settings)[0]), delta)])
    assert addresses(say(served, "web.shop.ext.test")) == {"192.0.2.99"}
    assert addresses(say(served, "web.shop.svc.cluster.local")) == {"10.0.0.1"}


def test_without_a_corefile_the_settings_are_the_block() -> None:
    settings = DnsSettings(upstreams=("192.0.2.1",), forward_cache_ttl_s=12)
    (block,) = chain.default_blocks(settings)
    assert block.kubernetes is not None and block.kubernetes.zones == ("cluster.local", "in-addr.arpa", "ip6.arpa")
    assert [directive.to for directive in block.forwards] == [("192.0.2.1",)]
    assert block.autopath == Autopath() and block.loadbalance == LoadBalance() and block.loop
    assert block.cache is not None and block.cache.success_ttl_s == 12
    assert block.cache.success_entries == settings.forward_cache_entries != Cache().success_entries
    (without,) = chain.default_blocks(replace(settings, search_path=False))
    assert without.autopath is None


def test_what_has_not_changed_is_not_compiled_again() -> None:
    served = served_by(ServerBlock(hosts=hosts(), kubernetes=Kubernetes()))
    zones = tuple(replace(zone, serial=9) for zone in served.zones)
    again = chain.serve(served.settings, zones, {}, served)
    assert again.compiled is served.compiled and again.zones == zones
    assert chain.serve(served.settings, zones, {"/etc/hosts": ""}, served).compiled is not served.compiled


@pytest.mark.parametrize(
    "block",
    [
        ServerBlock(rewrites=(Rewrite(what="name", match="regex", pattern="(", to="a."),)),
        ServerBlock(rewrites=(Rewrite(what="name", match="regex", pattern="a", to="{1}."),)),
        ServerBlock(rewrites=(Rewrite(what="ttl", pattern="a.", to="x"),)),
        ServerBlock(rewrites=(Rewrite(what="edns0", arguments=("local", "set", "0xffee", "{some/label}")),)),
        ServerBlock(templates=(Template(answers=("{{ .Nam }} 60 IN A 1.2.3.4",)),)),
        ServerBlock(
            templates=(
                Template(
                    matches=("(a",),
                ),
            )
        ),
        ServerBlock(acl=(Acl(rules=(AclRule(action=AclAction.BLOCK, networks=("10.0.0.0/99",)),)),)),
        ServerBlock(zones=("a..b",), whoami=True),
    ],
)
def test_what_cannot_be_compiled_is_refused_when_it_is_loaded(block: ServerBlock) -> None:
    with pytest.raises(ValueError, match=r"."):
        served_by(block)


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Served:
    text = corefile(53, "192.0.2.1", tmp_path_factory.mktemp("files"))
    return chain.serve(DnsSettings(blocks=parse(text, "Corefile", {}, lambda *_: []).blocks), [])


_LABELS = st.one_of(
    st.sampled_from([b"a", b"x", b"old", b"wild", b"real", b"ip-10-0-0-1", b"in", b"svc", b"n255", b"*"]),
    st.binary(min_size=1, max_size=63),
)


@given(
    labels=st.lists(_LABELS, max_size=4),
    number=st.integers(0, 95),
    qtype=st.integers(0, 65535) | st.sampled_from([1, 28, 16, 33, 255, 252, 12]),
    qclass=st.sampled_from([1, 1, 1, 3, 255]),
    tail=st.sampled_from([b"", b"\0\0\x29\x04\xd0\0\0\0\0\0\0", b"\0\0\x29\x02\0\0\0\0\0\0\x04\xff\xee\0\0"]),
)
def test_nothing_that_can_be_asked_raises(
    everything: Served, labels: list[bytes], number: int, qtype: int, qclass: int, tail: bytes
) -> None:
    zone = names.encode(f"c{number}.test")
    name = b"".join(bytes((len(label),)) + label for label in labels) + zone
    question = name + qtype.to_bytes(2, "big") + qclass.to_bytes(2, "big")
    head = b"\0\7\1\0\0\1\0\0\0\0" + (b"\0\1" if tail else b"\0\0")
    for transport in Transport:
        said = chain.respond(
            everything, head + question + tail, transport, Client(address="10.0.0.1", packed=b"\x0a\0\0\1")
        )
        if isinstance(said, Forward):
            whole = wire.build(said.query, answer=(wire.record(wire.OWNER, qtype, 60, b"\1a\0"),), size=wire.MAX_TCP)
            made = said.after(whole, transport) if said.after is not None else whole
            followed = said.then(whole) if said.then is not None else None
            assert followed is None or isinstance(followed, Outcome | Forward)
        elif isinstance(said, Outcome):
            made = said.reply
        else:
            continue
        assert made[:2] == b"\0\7" and made[2] & 0x80
        if len(name) <= names.MAX_NAME:
            assert made[12 : 12 + len(question)] == question
        limit = 65535 if transport is Transport.TCP else 1232 if tail else 512
        assert len(made) <= limit


def test_files_that_have_not_been_read_are_empty(tmp_path: Any) -> None:
    files: Mapping[str, str] = {"/hosts": "192.0.2.1 a.test"}
    settings = DnsSettings(blocks=(ServerBlock(hosts=Hosts(file="/hosts")),))
    assert rcode(say(chain.serve(settings, []), "a.test")) == 2
    assert addresses(say(chain.serve(settings, [], files), "a.test")) == {"192.0.2.1"}
