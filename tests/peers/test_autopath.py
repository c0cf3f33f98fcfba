"""The walk of the search list beside CoreDNS's `autopath`, with the same pods, the same outside world and the same questions.

Where the two differ, the difference is written down with its reason, and both sides of it are asserted, so that the list stays true.
"""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import dns.message
import dns.rcode
import dns.rdatatype
import dnslib
import pytest

from kproxy.dns.blocks import Autopath, Cache, Forward, LoadBalance, PodRecords, ServerBlock
from kproxy.dns.chain import kubernetes_of
from kproxy.dns.channel import About
from kproxy.dns.clients import PodView
from kproxy.dns.resolver import wire_searches
from kproxy.dns.settings import DnsSettings
from tests.peers.canned import canned_api
from tests.peers.test_coredns import running_coredns
from tests.support.dns_worker import Outside, Workers, failing, records
from tests.support.netns import Namespace
from tests.support.queries import zone_of
from tests.support.query_objects import FIXTURES, pod

FIRST = "test-1.svc.cluster.local."
POD_1, POD_2, NOBODY = "127.0.1.1", "127.0.1.2", "127.0.1.9"
HOST = "internal"
FQDN = "svc-1-a.test-1.svc.cluster.local. A 10.96.0.100"

# id, asked from, name, type, CoreDNS's answer (and kproxy's, where DIFFERENT does not say otherwise); @ is the name asked
ROWS = [
    ("T230", POD_1, f"svc-1-a.{FIRST}", "A", "NOERROR; @ A 10.96.0.100"),
    ("T231", POD_1, f"svc-1-a.test-1.{FIRST}", "A", f"NOERROR; @ CNAME svc-1-a.{FIRST}; {FQDN}"),
    ("T232", POD_1, f"svc-1-a.test-1.svc.{FIRST}", "A", f"NOERROR; @ CNAME svc-1-a.{FIRST}; {FQDN}"),
    ("T233", POD_1, f"svc-1-a.{FIRST}{FIRST}", "A", f"NOERROR; @ CNAME svc-1-a.{FIRST}; {FQDN}"),
    (
        "T234",
        POD_1,
        f"foo.example.net.{FIRST}",
        "A",
        "NOERROR; @ CNAME foo.example.net.; foo.example.net. A 10.10.10.11",
    ),
    ("T235", POD_1, f"nosuch.example.net.{FIRST}", "A", "NXDOMAIN"),
    ("T236", POD_1, f"foo.example.net.{FIRST}", "AAAA", "NOERROR"),
    ("T236-services", POD_1, f"svc-1-a.test-1.{FIRST}", "AAAA", "NOERROR"),
    ("T237", POD_1, "foo.example.net.", "A", "NOERROR; @ A 10.10.10.11"),
    ("T238", POD_1, FIRST, "A", "SERVFAIL"),
    ("T239", NOBODY, f"foo.example.net.{FIRST}", "A", "NXDOMAIN"),
    ("T243-own", POD_2, "svc-c.test-2.svc.cluster.local.", "A", "NOERROR; @ A 10.96.0.120"),
    ("T243-other", POD_2, f"foo.example.net.{FIRST}", "A", "NXDOMAIN"),
    ("suffix", POD_1, f"web.{FIRST}", "A", "NOERROR; @ CNAME web.internal.; web.internal. A 192.0.2.1"),
    ("namespace", POD_1, f"test-2.{FIRST}", "A", "NOERROR"),
    ("families", POD_1, f"both.{FIRST}", "AAAA", "NOERROR; @ CNAME both.; both. AAAA 2001:db8::9"),
    ("failing", POD_1, f"bar.example.net.{FIRST}", "A", "SERVFAIL"),
]
DIFFERENT = {
    "T238": ("NOERROR", "the first suffix itself is a name like any other"),
    "namespace": ("NXDOMAIN", "the name of a namespace has no records, so it is no host, and must not hide one"),
    "families": ("NOERROR", "both.internal. has an A record: AAAA stops there as well, though that upstream denies it"),
    "failing": (
        "NOERROR; @ CNAME bar.example.net.; bar.example.net. A 10.10.10.13",
        "a suffix whose server fails does not hide the name: glibc would go on, too",
    ),
}
STATIC = [
    ("T240", POD_1, "b.example.org.", "A", "NOERROR; @ CNAME b.com.; b.com. A 10.0.0.2"),
    ("T241", POD_1, "a.example.com.", "A", "NOERROR; @ A 10.0.0.1"),
    ("T242", POD_1, "c.example.org.", "A", "SERVFAIL"),
]


def nodata(query: dnslib.DNSRecord) -> list[bytes]:
    """The name exists, without such a record."""
    reply = query.reply()
    reply.add_auth(*dnslib.RR.fromZone(". 60 IN SOA a.root. b.root. 1 2 3 4 60"))
    return [reply.pack()]


SAYS = {
    ("foo.example.net.", "A"): records("foo.example.net. A 10.10.10.11"),
    ("foo.example.net.", "AAAA"): nodata,
    ("web.internal.", "A"): records("web.internal. A 192.0.2.1"),
    ("both.internal.", "A"): records("both.internal. A 192.0.2.9"),
    ("both.", "AAAA"): records("both. AAAA 2001:db8::9"),
    ("bar.example.net.internal.", "A"): failing,
    ("bar.example.net.internal.", "AAAA"): failing,
    ("bar.example.net.", "A"): records("bar.example.net. A 10.10.10.13"),
    ("b.com.", "A"): records("b.com. A 10.0.0.2"),
    ("a.example.com.", "A"): records("a.example.com. A 10.0.0.1"),
    **{(f"c.{end}", kind): failing for end in ("example.org.", "example.com.", "com.", "") for kind in ("A", "AAAA")},
    **{("c.", kind): failing for kind in ("A", "AAAA")},
}


def ask(server: tuple[str, int], source: str, name: str, qtype: str) -> str:
    """rcode and answer as they come, the name asked as @ where it owns a record."""
    query = dns.message.make_query(name, qtype)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(8)
        sock.bind((source, 0))
        sock.connect(server)
        sock.send(query.to_wire())
        reply = dns.message.from_wire(sock.recv(65535))
    assert reply.question == query.question
    lines = [
        f"{'@' if str(r.name) == name else r.name} {dns.rdatatype.to_text(r.rdtype)} {d.to_text()}"
        for r in reply.answer
        for d in r
    ]
    return "; ".join([dns.rcode.to_text(reply.rcode()), *lines])


@contextmanager
def _node_file(text: str, scratch: Path) -> Iterator[None]:
    """`text` as this mount namespace's /etc/resolv.conf: CoreDNS reads its own."""
    path = scratch / "node-resolv.conf"
    path.write_text(text)
    target = str(Path("/etc/resolv.conf").resolve())
    subprocess.run(["mount", "--bind", str(path), target], check=True, timeout=10)
    try:
        yield
    finally:
        subprocess.run(["umount", target], check=True, timeout=10)


def _settings(upstream: str, source: str) -> DnsSettings:
    block = ServerBlock(
        autopath=Autopath(source=source),
        cache=Cache(),
        loadbalance=LoadBalance(),
        kubernetes=kubernetes_of(DnsSettings(fallthrough=(), pods=PodRecords.VERIFIED, reverse_zones=()))[0],
        forwards=(Forward(to=(upstream,)),),
    )
    return DnsSettings(
        fallthrough=(), pods=PodRecords.VERIFIED, reverse_zones=(), blocks=(block,), listen=("127.0.0.77",), port=5300
    )


def _views() -> tuple[PodView, ...]:
    found = []
    for address, namespace in ((POD_1, "test-1"), (POD_2, "test-2")):
        searches = wire_searches((f"{namespace}.svc.cluster.local", "svc.cluster.local", "cluster.local", HOST))
        found.append(PodView(address=address, name=f"{namespace}/pod", searches=searches))
    return tuple(found)


@pytest.mark.parametrize(
    ("source", "rows"), [("@kubernetes", ROWS), ("/etc/resolv.conf", STATIC)], ids=["pods", "static"]
)
def test_rows(source: str, rows: list[tuple[str, str, str, str, str]], tmp_path: Path) -> None:
    search = HOST if source.startswith("@") else "example.org example.com com"
    wrong = []
    with ExitStack() as stack:
        space = stack.enter_context(Namespace.new())
        stack.enter_context(space.entered())
        stack.enter_context(_node_file(f"nameserver 127.0.0.9\nsearch {search}\n", tmp_path))
        outside = stack.enter_context(Outside())
        outside.says.update(SAYS)
        pods = [pod("test-1/pod", POD_1), pod("test-2/pod", POD_2)]
        api = stack.enter_context(canned_api([*FIXTURES["C"](), *pods]))
        theirs = DnsSettings(fallthrough=(), pods=PodRecords.VERIFIED, reverse_zones=(), upstreams=(outside.upstream,))
        peer = stack.enter_context(running_coredns(theirs, "C", tmp_path, f"autopath {source}", api))
        settings = _settings(outside.upstream, source)
        workers = stack.enter_context(Workers(settings))
        workers.publish(zone_of("C", settings))
        workers.publisher_call(lambda publisher: publisher.tell(About(networks=("127.0.0.0/8",), pods=_views())))
        for row, client, name, qtype, expected in rows:
            said = ask(peer.address, client, name, qtype)
            if said != expected:
                wrong.append(f"{row}: CoreDNS says {said}, not {expected}")
            ours = DIFFERENT.get(row, (expected,))[0]
            said = ask(workers.address, client, name, qtype)
            if said != ours:
                wrong.append(f"{row}: kproxy says {said}, not {ours}")
            if row in DIFFERENT and ours == expected:
                wrong.append(f"{row} is no difference")
    assert wrong == []
