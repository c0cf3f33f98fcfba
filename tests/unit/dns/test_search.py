"""The walk along a pod's search list, as values: rows T230-T244, and what each candidate must say to be taken."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import dns.message
import dns.rcode
import dns.rdatatype
import pytest

from kproxy.dns import names, search, wire
from kproxy.dns.answer import Forward, Missed, Outcome, answer_query, respond, special_name
from kproxy.dns.clients import Client, Clients, PodView, SearchList
from kproxy.dns.resolver import wire_searches
from kproxy.dns.search import ALWAYS_LAST, Found, Walk, Wanted
from kproxy.dns.settings import DnsSettings
from kproxy.dns.wire import Query, Transport
from kproxy.dns.zone import Zone
from tests.support.queries import zone_of

HOST = ("internal",)
SETTINGS = DnsSettings(fallthrough=())
OUTSIDE = {
    ("foo.example.net.", "A"): "A 10.10.10.11",
    ("six.example.net.", "AAAA"): "AAAA 2001:db8::6",
    ("both.example.net.", "A"): "CNAME a.cdn.test.",
    ("web.internal.", "A"): "A 192.0.2.1",
    ("text.example.net.", "TXT"): 'TXT "x"',
}


def searches(namespace: str, host: Sequence[str] = HOST) -> tuple[bytes, ...]:
    """The list of a pod of `namespace`."""
    return wire_searches((f"{namespace}.svc.cluster.local", "svc.cluster.local", "cluster.local", *host))


def client_of(namespace: str, *, ndots: int = 5, host: Sequence[str] = HOST) -> Client:
    """A pod of `namespace`, beside one of test-1 and one of test-2."""
    address = "10.244.0.9"
    views = [PodView(address=f"10.244.0.{i}", name=f"test-{i}/x", searches=searches(f"test-{i}")) for i in (1, 2)]
    mine = PodView(address=address, name=f"{namespace}/pod", searches=searches(namespace, host), ndots=ndots)
    return Clients((), [*views, mine]).find(address)


class Asked:
    """A server for one query: `say` runs the walk to its end, playing the upstream from a table, and notes who was asked."""

    def __init__(self, zone: Zone, outside: Mapping[tuple[str, str], str] = OUTSIDE) -> None:
        self.zone = zone
        self.outside = outside
        self.questions: list[tuple[str, str]] = []
        self.found: Found | None = None

    def say(
        self, name: str, qtype: str, client: Client | None, static: SearchList | None = None
    ) -> dns.message.Message:
        """The reply over UDP."""
        data = dns.message.make_query(name, qtype, use_edns=0, payload=1232).to_wire()
        query = wire.parse_query(data)
        assert isinstance(query, Query)
        first = respond(self.zone, data, Transport.UDP)
        assert isinstance(first, Outcome | Forward)
        self.outcome: Outcome | Forward | Walk = first
        if client is not None:
            self.outcome = search.intercept(query, client, first, self._ask(query), Transport.UDP)
        elif static is not None:
            at = len(query.lowered) - len(static.suffixes[0])
            if names.is_below(query.lowered, static.suffixes[0]):
                self.outcome = search.walk(query, at, static, first, self._ask(query), Transport.UDP)
        outcome = self.outcome
        if isinstance(outcome, Walk):
            outcome = self._to_its_end(outcome)
        if isinstance(outcome, Forward):
            return dns.message.from_wire(self._upstream(outcome.name, outcome.qtype))
        self.saved = outcome.saved
        assert outcome.reply[:2] == data[:2] and outcome.reply[12 : 12 + len(query.question)] == query.question
        return dns.message.from_wire(outcome.reply)

    def _ask(self, query: Query) -> search.Ask:
        def ask(name: bytes, qtype: int) -> Outcome | Forward | None:
            asked = search.about(query, name, qtype)
            said = answer_query(self.zone, asked, Transport.TCP)
            if isinstance(said, Missed):
                return special_name(self.zone, asked, wire.MAX_TCP) or Forward(asked, asked.lowered, qtype)
            return said

        return ask

    def _to_its_end(self, walk: Walk, verdict: bytes = b"") -> Outcome:
        replies: dict[tuple[int, int], bytes] = {}
        wildcards: dict[bytes, frozenset[bytes]] = {}
        for _ in range(20):
            decided = search.decide(walk, replies, wildcards, verdict)
            if isinstance(decided, Found):
                self.found = decided
                return search.finish(walk, decided, replies, Transport.UDP)
            if decided.suffix:
                probe = names.label(b"surely-nobody") + decided.suffix
                seen = search.read_seen(self._upstream(probe, 1), 1)
                wildcards[decided.suffix] = seen.data
            for kind in decided.types:
                replies[(decided.index, kind)] = self._upstream(walk.steps[decided.index].name, kind)
        raise AssertionError("the walk does not end")

    def _upstream(self, name: bytes, qtype: int) -> bytes:
        text, kind = names.decode(name.lower()), dns.rdatatype.to_text(dns.rdatatype.RdataType(qtype))
        self.questions.append((text, kind))
        query = dns.message.make_query(text, kind)
        reply = dns.message.make_response(query)
        for pattern in (text, "*." + text.partition(".")[2]):
            said = self.outside.get((pattern, kind))
            exists = said or any(key[0] == pattern for key in self.outside)
            if said == "SERVFAIL":
                reply.set_rcode(dns.rcode.SERVFAIL)
                return reply.to_wire()
            if said:
                reply.answer.append(dns.rrset.from_text(text, 60, "IN", *said.split(" ", 1)))
            if exists:
                return reply.to_wire()
        reply.set_rcode(dns.rcode.NXDOMAIN)
        return reply.to_wire()


def told(message: dns.message.Message) -> str:
    """rcode and answer in one line, owners included."""
    lines = [f"{r.name} {dns.rdatatype.to_text(r.rdtype)} {d.to_text()}" for r in message.answer for d in r]
    return "; ".join([dns.rcode.to_text(message.rcode()), *lines])


ZONE = zone_of("C", SETTINGS)
TEST_1 = client_of("test-1")
FIRST = "test-1.svc.cluster.local."
FQDN = "svc-1-a.test-1.svc.cluster.local. A 10.96.0.100"
FOO = "foo.example.net. A 10.10.10.11"

ROWS = [
    ("T230", "svc-1-a", "A", f"NOERROR; {FQDN}", 0),
    ("T231", "svc-1-a.test-1", "A", f"NOERROR; @ CNAME svc-1-a.{FIRST}; {FQDN}", 1),
    ("T232", "svc-1-a.test-1.svc", "A", f"NOERROR; @ CNAME svc-1-a.{FIRST}; {FQDN}", 2),
    ("T233", f"svc-1-a.{FIRST[:-1]}", "A", f"NOERROR; @ CNAME svc-1-a.{FIRST}; {FQDN}", 4),
    ("T234", "foo.example.net", "A", f"NOERROR; @ CNAME foo.example.net.; {FOO}", 4),
    ("T234", "FOO.Example.net", "A", "NOERROR; @ CNAME FOO.Example.net.; FOO.Example.net. A 10.10.10.11", 4),
    ("T235", "nosuch.example.net", "A", "NXDOMAIN", 0),
    ("T235", "nosuch.example.net", "AAAA", "NXDOMAIN", 0),
    ("T236", "foo.example.net", "AAAA", "NOERROR", 4),
    ("T236", "six.example.net", "A", "NOERROR", 4),
    ("T236", "svc-1-a.test-1", "AAAA", "NOERROR", 1),
    ("IPv4-only", "svc-1-a", "AAAA", "NOERROR", 0),
    ("host suffix", "web", "A", "NOERROR; @ CNAME web.internal.; web.internal. A 192.0.2.1", 3),
    ("host suffix", "web", "AAAA", "NOERROR", 3),
    ("SRV", "_http._tcp.svc-1-b", "SRV", "NOERROR; @ SRV 0 100 80 svc-1-b.test-1.svc.cluster.local.", 0),
    (
        "SRV",
        "_http._tcp.svc-1-b.test-1",
        "SRV",
        f"NOERROR; @ CNAME _http._tcp.svc-1-b.{FIRST}; _http._tcp.svc-1-b.{FIRST} SRV 0 100 80 svc-1-b.{FIRST}",
        1,
    ),
    ("namespace", "test-2", "A", "NXDOMAIN", 0),
    ("text only", "text.example.net", "A", "NOERROR", 4),
    (
        "text only",
        "text.example.net",
        "TXT",
        "; ".join(["NOERROR", "@ CNAME text.example.net.", 'text.example.net. TXT "x"']),
        4,
    ),
]


@pytest.mark.parametrize(("row", "base", "qtype", "expected", "saved"), ROWS, ids=lambda v: str(v)[:40])
def test_row(row: str, base: str, qtype: str, expected: str, saved: int) -> None:
    asked = Asked(ZONE)
    name = f"{base}.{FIRST}"
    assert told(asked.say(name, qtype, TEST_1)).replace(name, "@", 1 if "@" in expected else 0) == expected
    assert asked.saved == saved


def test_t237_a_whole_name_outside_is_not_touched() -> None:
    asked = Asked(ZONE)
    assert told(asked.say("foo.example.net.", "A", TEST_1)) == f"NOERROR; {FOO}"
    assert isinstance(asked.outcome, Forward)


def test_t238_the_first_suffix_itself_is_an_ordinary_name() -> None:
    asked = Asked(ZONE)
    assert told(asked.say(FIRST, "A", TEST_1)) == "NOERROR"
    assert isinstance(asked.outcome, Outcome) and asked.questions == []


def test_t239_nobody_walks_for_an_address_that_is_no_pod() -> None:
    asked = Asked(ZONE)
    assert told(asked.say(f"foo.example.net.{FIRST}", "A", Clients().find("10.244.0.9"))) == "NXDOMAIN"
    assert isinstance(asked.outcome, Outcome) and not asked.outcome.personal, (
        "nobody here has a list: everybody gets this"
    )
    beside = Clients((), [PodView(address="10.244.0.1", name="test-1/x", searches=searches("test-1"))])
    assert told(asked.say(f"foo.example.net.{FIRST}", "A", beside.find("10.244.0.9"))) == "NXDOMAIN"
    assert asked.outcome.personal, "pods of test-1 get another reply to the same bytes"


STATIC = SearchList(wire_searches(("example.org", "example.com", "com")), ALWAYS_LAST)
STATIC_OUTSIDE = {
    ("b.com.", "A"): "A 10.0.0.2",
    ("a.example.com.", "A"): "A 10.0.0.1",
    ("a.example.org.", "A"): "A 10.0.0.3",
}


@pytest.mark.parametrize(
    ("row", "name", "expected"),
    [
        ("T240", "b.example.org.", "NOERROR; b.example.org. CNAME b.com.; b.com. A 10.0.0.2"),
        ("T240", "a.example.org.", "NOERROR; a.example.org. A 10.0.0.3"),
        ("T241", "a.example.com.", "NOERROR; a.example.com. A 10.0.0.1"),
        ("T235", "c.example.org.", "NXDOMAIN"),
    ],
)
def test_a_static_list_is_walked_for_everybody(row: str, name: str, expected: str) -> None:
    assert told(Asked(ZONE, STATIC_OUTSIDE).say(name, "A", None, STATIC)) == expected


def test_t242_servfail_when_no_candidate_can_be_asked() -> None:
    ends = ("c.example.org.", "c.example.com.", "c.com.", "c.")
    failing = {(name, kind): "SERVFAIL" for name in ends for kind in ("A", "AAAA")}
    assert told(Asked(ZONE, failing).say("c.example.org.", "A", None, STATIC)) == "SERVFAIL"


def test_a_candidate_that_cannot_be_asked_does_not_hide_a_later_one() -> None:
    outside = OUTSIDE | {("foo.example.net.internal.", kind): "SERVFAIL" for kind in ("A", "AAAA")}
    assert told(Asked(ZONE, outside).say(f"foo.example.net.{FIRST}", "A", TEST_1)).endswith(FOO)
    outside |= {("nosuch.example.net.internal.", kind): "SERVFAIL" for kind in ("A", "AAAA")}
    assert told(Asked(ZONE, outside).say(f"nosuch.example.net.{FIRST}", "A", TEST_1)) == "SERVFAIL", "it may exist"


@pytest.mark.parametrize(("namespace", "address"), [("test-1", "10.96.0.115"), ("test-2", "10.96.0.120")])
def test_t243_each_namespace_has_its_own(namespace: str, address: str) -> None:
    name = f"svc-c.{namespace}.svc.cluster.local."
    assert told(Asked(ZONE).say(name, "A", client_of(namespace))) == f"NOERROR; {name} A {address}"
    other = {"test-1": "test-2", "test-2": "test-1"}[namespace]
    asked = Asked(ZONE)
    assert told(asked.say(f"foo.example.net.{other}.svc.cluster.local.", "A", client_of(namespace))) == "NXDOMAIN"
    assert isinstance(asked.outcome, Outcome) and asked.outcome.personal


def test_t244_an_address_of_two_namespaces_walks_each_ones_own_list() -> None:
    views = [PodView(address="10.244.0.5", name=f"{ns}/pod", searches=searches(ns)) for ns in ("test-1", "test-2")]
    client = Clients((), views).find("10.244.0.5")
    for namespace in ("test-1", "test-2"):
        name = f"foo.example.net.{namespace}.svc.cluster.local."
        assert told(Asked(ZONE).say(name, "A", client)).endswith(FOO)


def test_a_name_with_as_many_dots_as_ndots_was_asked_as_it_stands_already() -> None:
    asked = Asked(ZONE)
    assert told(asked.say(f"foo.example.net.{FIRST}", "A", client_of("test-1", ndots=2))) == "NXDOMAIN"
    assert "foo.example.net." not in [name for name, _ in asked.questions]
    assert told(Asked(ZONE).say(f"foo.example.net.{FIRST}", "A", client_of("test-1", ndots=3))).endswith(FOO)


def test_the_root_in_a_list_is_the_name_itself_in_its_place() -> None:
    asked = Asked(ZONE, OUTSIDE | {("foo.example.net.internal.", "A"): "A 192.0.2.9"})
    assert told(asked.say(f"foo.example.net.{FIRST}", "A", client_of("test-1", host=(".", "internal")))).endswith(FOO)


def test_both_families_stop_at_the_same_candidate() -> None:
    """coredns #3765: the host's domain has the one family of the name, the outside world the other."""
    outside = {("w.corp.", "A"): "A 192.0.2.1", ("w.", "AAAA"): "AAAA 2001:db8::1", ("w.", "A"): "A 192.0.2.2"}
    client = client_of("test-1", host=("corp",))
    assert told(Asked(ZONE, outside).say(f"w.{FIRST}", "A", client)).endswith("w.corp. A 192.0.2.1")
    assert told(Asked(ZONE, outside).say(f"w.{FIRST}", "AAAA", client)) == "NOERROR"


def test_an_upstream_that_denies_one_family_of_a_name_is_corrected() -> None:
    class Broken(Asked):
        def _upstream(self, name: bytes, qtype: int) -> bytes:
            reply = dns.message.from_wire(super()._upstream(name, qtype))
            if qtype == 28:
                reply.set_rcode(dns.rcode.NXDOMAIN)
            return reply.to_wire()

    assert told(Broken(ZONE).say(f"foo.example.net.{FIRST}", "AAAA", TEST_1)) == "NOERROR"
    assert told(Broken(ZONE).say(f"nosuch.example.net.{FIRST}", "AAAA", TEST_1)) == "NXDOMAIN"


def test_complaint_15_a_wildcard_below_a_hosts_suffix_takes_no_name() -> None:
    client = client_of("test-1", host=("corp",))
    outside = OUTSIDE | {("*.example.net.corp.", "A"): "A 198.51.100.1", ("*.corp.", "A"): "A 198.51.100.1"}
    outside[("own.corp.", "A")] = "A 192.0.2.7"
    assert told(Asked(ZONE, outside).say(f"foo.example.net.{FIRST}", "A", client)).endswith(FOO)
    assert told(Asked(ZONE, outside).say(f"own.{FIRST}", "A", client)).endswith("own.corp. A 192.0.2.7")
    assert told(Asked(ZONE, outside).say(f"nosuch.{FIRST}", "A", client)) == "NXDOMAIN", "the client walks on by itself"


def test_a_zone_that_is_not_listed_yet_is_told_at_once() -> None:
    asked = Asked(zone_of("C", SETTINGS, False))
    assert told(asked.say(f"foo.example.net.{FIRST}", "A", TEST_1)) == "SERVFAIL" and asked.questions == []


def test_names_of_the_cluster_are_never_asked_outside() -> None:
    asked = Asked(ZONE)
    asked.say(f"nosuch.example.net.{FIRST}", "A", TEST_1)
    assert {name for name, _ in asked.questions} == {"nosuch.example.net.internal.", "nosuch.example.net."}


def test_a_candidate_too_long_is_left_out() -> None:
    base = ".".join(["a" * 60] * 3) + ".bb"
    asked = Asked(ZONE)
    assert told(asked.say(f"{base}.{FIRST}", "A", client_of("test-1", host=("x" * 60 + ".internal",)))) == "NXDOMAIN"
    assert [name for name, _ in asked.questions if name.endswith("internal.")] == []


def test_the_verdict_of_one_family_binds_the_other() -> None:
    asked = Asked(ZONE)
    asked.say(f"foo.example.net.{FIRST}", "AAAA", TEST_1)
    walk = asked.outcome
    assert isinstance(walk, Walk)
    decided = search.decide(walk, {}, verdict=walk.steps[-1].name.lower())
    assert decided == Wanted(len(walk.steps) - 1, (28,)), (
        "neither the host's suffix nor the other family is asked again"
    )
    assert isinstance(search.decide(walk, {}, verdict=b"\x05other\0"), Wanted), (
        "a verdict on no candidate of the walk is none"
    )


def test_a_name_without_the_type_asked_is_not_missing_before_the_other_family_is_known() -> None:
    asked = Asked(ZONE)
    asked.say(f"six.example.net.{FIRST}", "A", TEST_1)
    walk = asked.outcome
    assert isinstance(walk, Walk)
    missing = dns.message.make_response(dns.message.make_query("x.", "A"))
    missing.set_rcode(dns.rcode.NXDOMAIN)
    assert search.decide(walk, {(3, 1): missing.to_wire()}) == Wanted(3, (28,))


def test_one_query_asks_others_for_so_many_names_and_no_more() -> None:
    asked = Asked(ZONE)
    many = client_of("test-1", host=tuple(f"n{i}.example" for i in range(29)))
    assert told(asked.say(f"nosuch.{FIRST}", "A", many)) == "NXDOMAIN", "the client goes on by itself"
    assert len({name for name, _ in asked.questions}) == search.OUTSIDE


def test_the_services_that_a_walk_depends_on() -> None:
    asked = Asked(ZONE)
    asked.say(f"foo.example.net.{FIRST}", "A", TEST_1)
    assert isinstance(asked.outcome, Walk)
    assert search.keys_of(asked.outcome) == {b"\x03net\x06test-1", b"\x07example\x03net"}
