"""Names that are denied out of a template: whatever it says, the whole chain would have said the same."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import product

import dns.edns
import dns.message
import pytest

from kproxy.dns import blocks
from kproxy.dns.answer import Outcome, respond
from kproxy.dns.blocks import Autopath, Kubernetes, ServerBlock
from kproxy.dns.clients import ANYBODY, UNCACHED, Client, SearchList
from kproxy.dns.denial import ENDS, RESTS, TEMPLATES, Denials, deniable, denying, zones_of
from kproxy.dns.settings import DnsSettings
from kproxy.dns.wire import Rcode, Transport
from tests.support.queries import zone_of

SETTINGS = DnsSettings(own_addresses=("10.0.0.10",))
ZONE = zone_of("U", SETTINGS)
HEAD = b"\x06testns\x03svc\x07cluster\x05local\0"
POD = Client(address="10.0.0.9", view=1, lists=(SearchList((HEAD, b"\x03svc\x07cluster\x05local\0")),))
LABELS = ("svc1", "SVC1", "svc9", "testns", "TestNS", "nobody", "_http", "_tcp", "svc", "a" * 63)
PLAIN = ServerBlock(kubernetes=Kubernetes(), autopath=Autopath())


def query(name: str, qtype: str = "A", **more: object) -> bytes:
    return dns.message.make_query(name, qtype, **more).to_wire()  # type: ignore[arg-type]


def said(data: bytes) -> Outcome:
    outcome = respond(ZONE, data, Transport.UDP)
    assert isinstance(outcome, Outcome)
    return outcome


def learned(*queries: bytes, client: Client = ANYBODY) -> Denials:
    denials = Denials()
    for data in queries:
        denials.learn(data, client, said(data), ZONE, [0, 0])
    return denials


def test_a_name_that_was_never_asked_is_denied_like_one_that_was() -> None:
    denials = learned(query("host1.example.com.testns.svc.cluster.local."))
    for name in ("host2.example.com.testns.svc.cluster.local.", "host2.example.com.nobody.svc.cluster.local."):
        data = query(name)
        assert denials.find(data[2:], ANYBODY) == (said(data).reply[2:], [0, 0]), name


def test_nothing_is_denied_that_exists_or_that_the_zone_would_say_otherwise() -> None:
    denials, denied = Denials(), 0
    for turn in range(2):
        for depth, qtype, edns in product(range(4), ("A", "AAAA", "SRV"), (-1, 0)):
            for labels in product(LABELS, repeat=depth):
                data = query(".".join((*labels, "svc.cluster.local.")), qtype, use_edns=edns)
                outcome, found = said(data), denials.find(data[2:], ANYBODY)
                assert found is None or found[0] == outcome.reply[2:], labels
                denied += found is not None and turn
                denials.learn(data, ANYBODY, outcome, ZONE, [0, 0])
    assert denied > 1000


def test_packets_that_are_no_queries_are_not_denied() -> None:
    choice = random.Random(5)
    seeds = [query(f"host{n}.example.com.testns.svc.cluster.local.", use_edns=0) for n in range(10)]
    denials = learned(*seeds)
    for _ in range(20_000):
        data = bytearray(choice.choice(seeds))
        for _ in range(choice.randrange(1, 4)):
            data[choice.randrange(len(data))] = choice.choice((0, 1, 2, 63, 64, 192, 255, choice.randrange(256)))
        found = denials.find(bytes(data[2:]), ANYBODY)
        if found is not None:
            assert found[0] == said(bytes(data)).reply[2:], data.hex()


def test_a_label_of_64_octets_is_malformed_however_well_it_fits() -> None:
    name = f"{'a' * 31}.{'b' * 32}.example.testns.svc.cluster.local."
    denials = learned(query(name))
    assert denials.find(query(name)[2:], ANYBODY) is not None
    merged = bytearray(query(name))
    assert merged[12] == 31
    merged[12] = 64
    assert denials.find(bytes(merged[2:]), ANYBODY) is None


@pytest.mark.parametrize(
    "data",
    [
        query("host1.example.com.testns.SVC.cluster.local."),  # 0x20: the end will hardly come again
        query("svc.cluster.local."),
        query("testns.svc.cluster.local."),
        query("x.cluster.local."),
        query("10-0-0-1.nobody.pod.cluster.local."),
        query("_x._tcp.svc1.testns.svc.cluster.local.", "SRV"),
        query("host1.example.com.testns.svc.cluster.local.", use_edns=0, options=[dns.edns.GenericOption(10, b"12345678")]),
        query("host1.example.com.testns.svc.cluster.local.") + b"behind",
    ],
)  # fmt: skip
def test_what_is_no_template(data: bytes) -> None:
    assert len(learned(data)) == 0


def test_names_below_the_head_of_a_pods_search_list_are_walked() -> None:
    inside, outside = "host1.com.testns.svc.cluster.local.", "host1.com.nobody.svc.cluster.local."
    assert len(learned(query(inside), client=POD)) == 0
    denials = learned(query(outside), client=POD)
    assert denials.find(query(outside)[2:], POD) is not None
    assert denials.find(query(inside)[2:], POD) is None
    assert denials.find(query(outside)[2:], ANYBODY) is None, "another view"
    assert len(learned(query(outside), client=replace(POD, view=UNCACHED))) == 0


def test_what_stands_behind_the_first_label_is_enough_where_it_lacks_namespace_or_service() -> None:
    """Whatever the first label: a Service, a namespace, no label at all. Equally long, so that one template is for all."""
    tail = "svc.cluster.local."
    for rest, known in (
        (f"com.testns.{tail}", "svc1"),
        (f"testns.{tail}", "svc1"),
        (f"nobody.{tail}", "svc1"),
        (tail, "testns"),
    ):
        missing = "x" * len(known)
        denials = learned(query(f"{missing}.{rest}"))
        for first in (missing, known, missing, "y" * len(known), known.upper(), "z" * len(known) + "z") * 2:
            data = query(f"{first}.{rest}")
            outcome, found = said(data), denials.find(data[2:], ANYBODY)
            assert (found is not None) is (outcome.rcode == Rcode.NXDOMAIN and len(first) == len(known)), data
            assert found is None or found[0] == outcome.reply[2:], data
            for length in range(256):  # another one, with the same octets behind it
                broken = bytearray(data)
                broken[12] = length
                found = denials.find(bytes(broken[2:]), ANYBODY)
                assert (found is None) or length == len(first) or found[0] == said(bytes(broken)).reply[2:]


def test_a_search_list_that_begins_with_the_first_label_is_walked_all_the_same() -> None:
    head = b"\x04here\x06nobody\x03svc\x07cluster\x05local\0"
    pod = replace(POD, lists=(SearchList((head,)),))
    denials = learned(query("away.nobody.svc.cluster.local."), client=pod)
    for first, denied in (("away", True), ("here", False), ("away", True), ("here", False)):
        found = denials.find(query(f"{first}.nobody.svc.cluster.local.")[2:], pod)
        assert (found is not None) is denied, first


def test_what_is_kept_of_rests_is_bounded() -> None:
    denials = learned(query("x.yyyyyy.nobody.svc.cluster.local."))
    for number in range(2 * RESTS):
        assert denials.find(query(f"x.{number:06}.nobody.svc.cluster.local.")[2:], ANYBODY) is not None
        assert len(denials._rests) <= RESTS
    denials.clear()
    assert denials.find(query("x.000001.nobody.svc.cluster.local.")[2:], ANYBODY) is None and not denials._rests


def test_what_is_kept_is_bounded() -> None:
    denials = Denials()
    for size in range(1, 60):
        for view in range(120):
            data = query(f"{'x' * size}.com.nobody.svc.cluster.local.")
            denials.learn(data, replace(ANYBODY, view=view), said(data), ZONE, [0, 0])
            assert len(denials) <= TEMPLATES
    denials.clear()
    assert len(denials) == 0 and denials.find(data[2:], ANYBODY) is None


def test_a_new_kind_of_end_beyond_the_bound_goes_to_the_zone() -> None:
    denials = Denials()
    ends = [query("x.nobody.svc.cluster.local.", use_edns=0, payload=4096) + b"", query("x.nobody.svc.cluster.local.")]
    for data in ends:
        denials.learn(data, ANYBODY, said(data), ZONE, [0, 0])
    assert len(denials._ends) == len(ends) <= ENDS


@pytest.mark.parametrize(
    "block",
    [
        replace(PLAIN, rewrites=(blocks.Rewrite(what="name"),)),
        replace(PLAIN, templates=(blocks.Template(),)),
        replace(PLAIN, hosts=blocks.Hosts()),
        replace(PLAIN, external=blocks.External()),
        replace(PLAIN, acl=(blocks.Acl(),)),
        replace(PLAIN, log=(blocks.Log(),)),
        replace(PLAIN, autopath=Autopath(source="/etc/resolv.conf")),
    ],
)
def test_directives_that_look_at_names_keep_a_block_from_it(block: ServerBlock) -> None:
    assert deniable(PLAIN, ZONE, zones_of([PLAIN]))
    assert not deniable(block, ZONE, zones_of([block]))


def test_zones_below_the_clusters_keep_a_block_from_it() -> None:
    other = ServerBlock(zones=("db.testns.svc.cluster.local",))
    assert not deniable(PLAIN, ZONE, zones_of([PLAIN, other]))
    assert deniable(PLAIN, ZONE, zones_of([PLAIN, ServerBlock(zones=("acme.local", "10.0.0.0/8"))]))
    within = zone_of("U", replace(SETTINGS, fallthrough=("testns.svc.cluster.local",)))
    assert not deniable(PLAIN, within, zones_of([PLAIN]))


def test_each_block_is_denied_by_its_own_zone() -> None:
    other = replace(PLAIN, zones=("example.org",), kubernetes=Kubernetes(zones=("example.org",)))
    hosts, none = replace(PLAIN, hosts=blocks.Hosts()), ServerBlock(zones=("acme.local",))
    second = zone_of("U", replace(SETTINGS, zone="example.org"))
    directives = (Kubernetes(), Kubernetes(zones=("example.org",)))
    found = denying([PLAIN, hosts, none, other], directives, (ZONE, second))
    assert found == (ZONE, None, None, second)
