"""`forward` and `cache` on kproxy's worker and on real CoreDNS: one Corefile, one timetable of questions, two upstreams each that behave
alike.

Each server block is a case with a zone of its own. What the upstreams do stands in the first label of a name (`_upstream`); compared are
the replies (code, addresses, TTLs, SOA) and how often, and by what transport, each upstream was asked. A case in DIFFERENT differs on
purpose: what kproxy does instead stands there with its reason, and is checked.
"""

from __future__ import annotations

import os
import socket
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import dns.edns
import dns.message
import dns.rcode
import dns.rdatatype
import dnslib
import pytest

from kproxy.dns.corefile.parse import parse
from kproxy.dns.settings import DnsSettings
from kproxy.lab.controlplane import find_program
from tests.support.dns_worker import Outside, Workers, failing, framed, missing, read_frame, records, silent, wait_until

ADDRESS, PORT, PEER_PORT = "127.0.0.1", 5320, 5321


@dataclass(frozen=True)
class Case:
    """A server block's directives, and when which of its names is asked: (seconds after the start, name, `tcp` or `udp`)."""

    id: str
    directives: str
    asks: tuple[tuple[float, str], ...]
    tcp: bool = False

    @property
    def any_transport(self) -> bool:
        """Whether upstream's transport is not compared: CoreDNS refreshes by TCP, kproxy as if a client had asked by UDP."""
        return "prefetch" in self.directives or "serve_stale" in self.directives


FORWARD = "forward . {one} {two} {{\n policy sequential\n{options}\n}}"


def _sequential(options: str = "") -> str:
    return FORWARD.replace("{options}", options)


TWICE = ((0.0, "{}"), (0.3, "{}"))


def _twice(name: str) -> tuple[tuple[float, str], ...]:
    return tuple((at, text.format(name)) for at, text in TWICE)


CASES = (
    Case("sequential", _sequential(), ((0.0, "ok-a"), (0.1, "ok-b"), (0.2, "ok-c"))),
    Case("round-robin", "forward . {one} {two} {{\n policy round_robin\n}}", tuple((n / 10, f"ok-{n}") for n in range(6))),
    Case("missing-is-final", _sequential(), ((0.0, "nx1"),)),
    Case("refused-1", _sequential(), ((0.0, "refused1"),)),
    Case("servfail-1", _sequential(), ((0.0, "fail1"),)),
    Case("servfail-both", _sequential(), ((0.0, "fail"),)),
    Case("silent-1", _sequential(" read_timeout 300ms"), ((0.0, "silent1"),)),
    Case("failover", _sequential(" failover NXDOMAIN REFUSED"), ((0.0, "nx1"), (0.2, "refused1"), (0.4, "nx"))),
    Case("next", "forward . {one} {{\n next NXDOMAIN\n}}\nforward . {two}", ((0.0, "nx1"), (0.1, "ok-a"), (0.2, "nx"))),
    Case("next-servfail", "forward . {one} {{\n next SERVFAIL\n}}\nforward . {two}", ((0.0, "fail1"), (0.1, "nx1"))),
    Case("next-nodata", "forward . {one} {{\n next_on_nodata\n}}\nforward . {two}", ((0.0, "nodata1"), (0.1, "nx1"))),
    Case("except", "forward . {one} {{\n except priv.except.test\n}}\nforward . {two}", ((0.0, "ok-a.priv"), (0.1, "ok-b"))),
    Case("from", "forward sub.from.test {one}\nforward . {two}", ((0.0, "ok-a.sub"), (0.1, "ok-b"))),
    Case("force-tcp", _sequential(" force_tcp"), ((0.0, "ok-a"), (0.1, "ok-b"))),
    Case("as-the-client", _sequential(), ((0.0, "ok-a"),), tcp=True),
    Case("prefer-udp", _sequential(" prefer_udp"), ((0.0, "ok-a"),), tcp=True),
    Case("cut-prefer-udp", _sequential(" prefer_udp"), ((0.0, "cut"),)),
    Case("cut", _sequential(), ((0.0, "cut"),)),
    Case("no-edns-there", _sequential(), ((0.0, "old"),)),
    Case("another-question", _sequential(" read_timeout 300ms"), ((0.0, "wrong"),)),
    Case("another-id-first", _sequential(" read_timeout 300ms"), ((0.0, "ids"),)),
    Case("chain", _sequential() + "\ncache", _twice("chain")),
    Case("ttl-falls", _sequential() + "\ncache", ((0.0, "ok"), (0.3, "ok"), (1.4, "ok"), (2.5, "ok"))),
    Case("ttl-most", _sequential() + "\ncache 7", ((0.0, "ok"), (1.2, "ok"))),
    Case("ttl-least", _sequential() + "\ncache", ((0.0, "ttl1"), (1.4, "ttl1"))),
    Case("ttl-least-set", _sequential() + "\ncache {{\n success 100 20 12\n denial 100 9 8\n}}", ((0.0, "ttl1"), (0.1, "ok"), (0.2, "nx"))),
    Case("several-ttls", _sequential() + "\ncache", _twice("ttls")),
    Case("keepttl", _sequential() + "\ncache {{\n keepttl\n}}", ((0.0, "ok"), (1.3, "ok"))),
    Case("denials", _sequential() + "\ncache", ((0.0, "nx"), (0.3, "nx"), (1.4, "nx"), (1.5, "nodata"), (1.6, "nodata"))),
    Case("denials-most", _sequential() + "\ncache {{\n denial 100 6\n}}", _twice("nx")),
    Case("no-soa", _sequential() + "\ncache", _twice("nxbare")),
    Case("alias-to-nothing", _sequential() + "\ncache", _twice("dangling")),
    Case("nodata-without-soa", _sequential() + "\ncache", _twice("nodatabare")),
    Case("refusals", _sequential() + "\ncache", _twice("refused")),
    Case("failures", _sequential() + "\ncache", _twice("fail")),
    Case("failures-0", _sequential() + "\ncache {{\n servfail 0\n}}", _twice("fail")),
    Case("disable-success", _sequential() + "\ncache {{\n disable success disable-success.test\n}}", (*_twice("ok"), *_twice("nx"))),
    Case("disable-denial", _sequential() + "\ncache {{\n disable denial\n}}", (*_twice("ok"), *_twice("nx"))),
    Case("cache-zones", _sequential() + "\ncache 30 sub.cache-zones.test", (*_twice("ok"), *_twice("ok.sub"))),
    Case("upper-case", _sequential() + "\ncache", ((0.0, "OK-a"), (0.2, "ok-A"))),
    Case("stale", "forward . {one}\ncache {{\n success 100 1 1\n serve_stale 1h\n}}", ((0.0, "once"), (1.4, "once"), (1.7, "once"))),
    Case("stale-verify", "forward . {one}\ncache {{\n success 100 1 1\n serve_stale 1h verify\n}}", ((0.0, "once"), (1.4, "once"))),
    Case("stale-verified", "forward . {one}\ncache {{\n success 100 1 1\n serve_stale 1h verify\n}}", ((0.0, "ok"), (1.4, "ok"))),
    Case("stale-too-old", "forward . {one}\ncache {{\n success 100 1 1\n serve_stale 1s verify\n}}", ((0.0, "once"), (2.6, "once"))),
    Case("prefetch", "forward . {one}\ncache {{\n success 100 4 4\n prefetch 2 1m 50%\n}}",
         ((0.0, "ok"), (0.3, "ok"), (0.5, "ok"), (3.2, "ok"), (3.6, "ok"))),
    Case("max-concurrent", _sequential(" max_concurrent 2\n read_timeout 400ms\n max_connect_attempts 1\n"),
         ((0.0, "silent-a"), (0.05, "silent-b"), (0.1, "silent-c"), (0.15, "silent-d"), (1.2, "ok"))),
)  # fmt: skip

_NEXT = "SERVFAIL and REFUSED say that this upstream could not or would not; the next one is asked, as libc does with its list"
_OTHER = "a reply to another question is somebody else's or a forgery: the right one is waited for, and nobody is told FORMERR"
# case → (what kproxy does, what CoreDNS does, why)
DIFFERENT: dict[str, tuple[list[str], list[str], str]] = {
    "servfail-1": (
        ["fail1: NOERROR fail1.servfail-1.test. 60 IN A 192.0.2.2", "asked: udp 1 | udp 1"],
        ["fail1: SERVFAIL ", "asked: udp 1 | "],
        _NEXT,
    ),
    "refused-1": (
        ["refused1: NOERROR refused1.refused-1.test. 60 IN A 192.0.2.2", "asked: udp 1 | udp 1"],
        ["refused1: REFUSED ", "asked: udp 1 | "],
        _NEXT,
    ),
    "servfail-both": (["fail: SERVFAIL ", "asked: udp 1 | udp 1"], ["fail: SERVFAIL ", "asked: udp 1 | "], _NEXT),
    "failures": (["fail: SERVFAIL "] * 2 + ["asked: udp 1 | udp 1"], ["fail: SERVFAIL "] * 2 + ["asked: udp 1 | "], _NEXT),
    "failures-0": (["fail: SERVFAIL "] * 2 + ["asked: udp 2 | udp 2"], ["fail: SERVFAIL "] * 2 + ["asked: udp 2 | "], _NEXT),
    "refusals": (["refused: REFUSED "] * 2 + ["asked: udp 2 | udp 2"], ["refused: REFUSED "] * 2 + ["asked: udp 2 | "], _NEXT),
    "cut": (
        ["cut: NOERROR " + ", ".join(f"cut.cut.test. 60 IN A 192.0.2.{n}" for n in range(100, 105)), "asked: tcp 1 udp 1 | "],
        ["cut: NOERROR TC cut.cut.test. 60 IN A 192.0.2.100", "asked: udp 1 | "],
        "what was cut is fetched by TCP for everybody, not only with prefer_udp",
    ),
    "no-edns-there": (
        ["old: NOERROR old.no-edns-there.test. 60 IN A 192.0.2.1", "asked: udp 2 | "],
        ["old: FORMERR ", "asked: udp 1 | "],
        "FORMERR to EDNS is asked once more without: RFC 6891 section 7",
    ),
    "another-question": (["wrong: SERVFAIL ", "asked: udp 2 | udp 2"], ["wrong: FORMERR ", "asked: udp 1 | "], _OTHER),
    "upper-case": (
        [f"{name}: NOERROR {name}.upper-case.test. 60 IN A 192.0.2.1" for name in ("OK-a", "ok-A")] + ["asked: udp 1 | "],
        [f"{name}: NOERROR OK-a.upper-case.test. 60 IN A 192.0.2.1" for name in ("OK-a", "ok-A")] + ["asked: udp 1 | "],
        "the owner of an answer is spelled as the question is, not as the first client's was",
    ),
    "stale": (
        ["once: NOERROR once.stale.test. 1 IN A 192.0.2.1"] + ["once: NOERROR once.stale.test. 0 IN A 192.0.2.1"] * 2 + ["asked: all 2 | "],
        ["once: NOERROR once.stale.test. 1 IN A 192.0.2.1"] + ["once: NOERROR once.stale.test. 0 IN A 192.0.2.1"] * 2 + ["asked: all 3 | "],
        "a refresh that has failed is not tried again by every client, but after `servfail` (RFC 8767 section 5)",
    ),
    "nodata-without-soa": (
        ["nodatabare: NOERROR "] * 2 + ["asked: udp 2 | "],
        ["nodatabare: NOERROR "] * 2 + ["asked: udp 1 | "],
        "RFC 2308 section 5: without SOA a denial is not remembered",
    ),
}  # fmt: skip
ROUNDS = 4


class Upstreams:
    """Two resolvers that do what a name's first label says."""

    def __init__(self, first: str, second: str) -> None:
        self.servers = [Outside(address=first, concurrent=True), Outside(address=second, concurrent=True)]
        self._times: Counter[str] = Counter()  # of both together
        for number, server in enumerate(self.servers):
            server.otherwise = lambda query, number=number: self._upstream(number, query)  # type: ignore[misc]

    def _upstream(self, number: int, query: dnslib.DNSRecord) -> Sequence[bytes]:
        name = str(query.q.qname)
        word = name.lower().split(".")[0].split("-")[0]
        self._times[name.lower()] += word == "once"
        own = word.endswith("1") and not word.startswith("ttl")
        if own and number == 1:
            return records(f"{name} A 192.0.2.2")(query)
        address = records(f"{name} A 192.0.2.{number + 1}")
        match word.rstrip("1") if own else word:
            case "ok":
                return address(query)
            case "nx":
                return missing(query)
            case "nxbare":
                return records(rcode="NXDOMAIN")(query)
            case "nodata":
                return _with_soa(records()(query))
            case "nodatabare":
                return records()(query)
            case "fail":
                return failing(query)
            case "refused":
                return records(rcode="REFUSED")(query)
            case "silent":
                return silent(query)
            case "ttl1":
                return [_with_ttl(address(query)[0], 1)]
            case "ttls":
                reply = dnslib.DNSRecord.parse(
                    records(f"{name} CNAME web.example.net.", "web.example.net. A 192.0.2.9")(query)[0]
                )
                reply.rr[1].ttl = 22
                return [reply.pack()]
            case "chain":
                return records(
                    f"{name} CNAME web.example.net.", "web.example.net. A 192.0.2.9", "web.example.net. A 192.0.2.8"
                )(query)
            case "dangling":
                return records(f"{name} CNAME web.example.net.")(query)
            case "once":
                return [_with_ttl(address(query)[0], 1)] if self._times[name.lower()] == 1 else failing(query)
            case "old":
                return records(rcode="FORMERR")(query) if query.ar else address(query)
            case "wrong":
                other = dnslib.DNSRecord.parse(address(query)[0])
                other.q.qname = dnslib.DNSLabel("wrong.example.org")
                return [other.pack()]
            case "ids":
                good = address(query)[0]
                return [bytes((good[0] ^ 1,)) + good[1:], good]
            case "cut":
                return records(*(f"{name} A 192.0.2.{n}" for n in range(100, 105)))(query)
        return missing(query)

    def _cut(self, query: dnslib.DNSRecord) -> Sequence[bytes]:
        return records(f"{query.q.qname} A 192.0.2.100", truncated=True)(query)

    def __enter__(self) -> Upstreams:
        for server in self.servers:
            server.__enter__()
            for case, number in product(CASES, range(ROUNDS)):
                key = (f"cut-r{number}.{case.id}.test.", "A")
                server.says[key] = self._cut
                server.says_by_tcp[key] = server.otherwise
        return self

    def __exit__(self, *ignored: object) -> None:
        for server in self.servers:
            server.__exit__(None, None, None)

    def asked(self, case: Case, mark: str) -> str:
        """How often each was asked for names of that case and round, by transport."""
        found = [
            Counter(
                "all" if case.any_transport else kind
                for kind, name, _ in s.seen
                if name.endswith(f".{case.id}.test.") and mark in name
            )
            for s in self.servers
        ]
        return " | ".join(" ".join(f"{kind} {count}" for kind, count in sorted(one.items())) for one in found)


def _with_ttl(data: bytes, ttl: int) -> bytes:
    reply = dnslib.DNSRecord.parse(data)
    for record in reply.rr:
        record.ttl = ttl
    return reply.pack()


def _with_soa(replies: Sequence[bytes]) -> Sequence[bytes]:
    reply = dnslib.DNSRecord.parse(replies[0])
    reply.add_auth(*dnslib.RR.fromZone(". 60 IN SOA a.root. b.root. 1 2 3 4 60"))
    return [reply.pack()]


def _corefile(port: int, upstreams: Upstreams) -> str:
    one, two = (server.upstream for server in upstreams.servers)
    return "\n".join(f"{case.id}.test:{port} {{\n{case.directives.format(one=one, two=two)}\n}}\n" for case in CASES)


def _ask(port: int, case: Case, name: str) -> str:
    query = dns.message.make_query(f"{name}.{case.id}.test.", "A", use_edns=0, payload=1232).to_wire()
    try:
        if case.tcp:
            with socket.create_connection((ADDRESS, port), 7) as stream:
                stream.sendall(framed(query))
                reply = dns.message.from_wire(read_frame(stream))
        else:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                sock.settimeout(7)
                sock.connect((ADDRESS, port))
                sock.send(query)
                reply = dns.message.from_wire(sock.recv(65535))
    except (OSError, EOFError) as error:
        return f"{name}: {type(error).__name__}"
    lines = sorted(line for rrset in reply.answer for line in rrset.to_text().splitlines())
    lines += sorted(f"soa {rrset.ttl}" for rrset in reply.authority if rrset.rdtype == dns.rdatatype.SOA)
    return f"{name}: {dns.rcode.to_text(reply.rcode())} {'TC ' if reply.flags & 0x0200 else ''}{', '.join(lines)}"


def _observe(port: int, upstreams: Upstreams, cases: Sequence[Case], number: int) -> dict[str, list[str]]:
    """Every case's replies, in order of their times, and who was asked. Cases run side by side; names are new in every round."""
    found: dict[str, list[str]] = {case.id: [""] * len(case.asks) for case in cases}
    mark = f"-r{number}"

    def one(case: Case, place: int, at: float, name: str) -> None:
        time.sleep(max(0.0, begun + at - time.monotonic()))
        first, dot, rest = name.partition(".")
        found[case.id][place] = _ask(port, case, f"{first}{mark}{dot}{rest}").replace(mark, "")

    begun = time.monotonic() + 0.3
    threads = [
        threading.Thread(target=one, args=(case, place, late * 0.03 + at, name))
        for late, case in enumerate(cases)
        for place, (at, name) in enumerate(case.asks)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    time.sleep(0.3)
    return {case.id: [*found[case.id], f"asked: {upstreams.asked(case, mark)}"] for case in cases}


@contextmanager
def _kproxy(upstreams: Upstreams) -> Iterator[int]:
    blocks = parse(_corefile(PORT, upstreams), "Corefile", {}, lambda *_: []).blocks
    settings = DnsSettings(listen=(ADDRESS,), port=PORT, blocks=blocks)
    with Workers(settings, address=ADDRESS, port=PORT) as workers:
        workers.ready()
        yield PORT


@contextmanager
def _coredns(upstreams: Upstreams, scratch: Path) -> Iterator[int]:
    program = find_program("coredns", os.environ)
    assert program is not None  # the lane's prerequisite
    file = scratch / "Corefile"
    file.write_text(_corefile(PEER_PORT, upstreams))
    with (scratch / "coredns.log").open("wb") as log:
        command = ["setpriv", "--pdeathsig", "KILL", "--", str(program), "-conf", str(file)]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:

        def answers() -> bool:
            assert process.poll() is None, (scratch / "coredns.log").read_text()
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                sock.settimeout(0.2)
                try:
                    sock.connect((ADDRESS, PEER_PORT))
                    sock.send(dns.message.make_query("elsewhere.", "A").to_wire())
                    return bool(sock.recv(512))
                except OSError:
                    return False

        wait_until(answers, "CoreDNS answers", timeout_s=20)
        yield PEER_PORT
    finally:
        process.kill()
        process.wait(timeout=10)


@pytest.fixture(scope="module")
def observed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[list[str], list[str]]]:
    """What each case came to on both. Times matter here, so cases that are not as they should be are given further rounds."""
    found: dict[str, tuple[list[str], list[str]]] = {}
    with ExitStack() as stack:
        ours = stack.enter_context(Upstreams("127.0.0.21", "127.0.0.22"))
        theirs = stack.enter_context(Upstreams("127.0.0.23", "127.0.0.24"))
        places = {
            "kproxy": (stack.enter_context(_kproxy(ours)), ours),
            "CoreDNS": (stack.enter_context(_coredns(theirs, tmp_path_factory.mktemp("coredns"))), theirs),
        }
        left: Sequence[Case] = CASES
        for number in range(ROUNDS):
            seen: dict[str, dict[str, list[str]]] = {}
            for who, (port, upstreams) in places.items():
                seen[who] = _observe(port, upstreams, left, number)
            found |= {case.id: (seen["kproxy"][case.id], seen["CoreDNS"][case.id]) for case in left}
            left = [case for case in left if not _as_it_should_be(case, *found[case.id])]
            if not left:
                break
    return found


def _as_it_should_be(case: Case, ours: list[str], theirs: list[str]) -> bool:
    if case.id not in DIFFERENT:
        return ours == theirs
    wanted_ours, wanted_theirs, _ = DIFFERENT[case.id]
    return ours == wanted_ours and theirs == wanted_theirs


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_both_do_the_same(observed: dict[str, tuple[list[str], list[str]]], case: Case) -> None:
    ours, theirs = observed[case.id]
    if case.id in DIFFERENT:
        wanted_ours, wanted_theirs, why = DIFFERENT[case.id]
        assert (ours, theirs) == (wanted_ours, wanted_theirs), why
    else:
        assert ours == theirs
