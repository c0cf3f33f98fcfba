"""Every directive and option of a Corefile on kproxy's workers and on real CoreDNS: the same text, the same questions, the same replies.

All blocks of `directive_cases` are one Corefile. Compared are the response code, AA, TC, and the records of every section with their TTLs;
not RA (kproxy recurses through its upstreams and says so always, CoreDNS copies the upstream's flag), nor the EDNS options and the order of
addresses, but for the cases that are about these.
"""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import dns.edns
import dns.flags
import dns.message
import dns.rdataclass
import dnslib
import pytest

from kproxy.dns.corefile.parse import parse
from kproxy.dns.settings import DnsSettings
from kproxy.lab.controlplane import find_program
from tests.peers.directive_cases import CASES, Ask, Case
from tests.support.dns_worker import Outside, Workers, framed, read_frame, wait_until

PORT, PEER_PORT = 5320, 5321
ADDRESS = "127.0.0.1"


def zone_of(case: Case) -> str:
    """The zone of a case's block, without dot at the end."""
    return f"c{CASES.index(case)}.test"


def corefile(port: int, upstream: str, scratch: Path) -> str:
    """All cases' blocks; the files that they name are made in `scratch`."""
    text = ""
    for case in CASES:
        file = scratch / f"{case.id}.file"
        words = {"z": zone_of(case), "up": upstream, "port": port, "file": str(file)}
        if case.file:
            file.write_text(case.file.format(**words))
        text += f"{words['z']}:{port} {{\n    {case.block.format(**words)}\n}}\n" + case.more.format(**words)
    return text


def _outside(query: dnslib.DNSRecord) -> list[bytes]:
    """What the outside says: by the first label of the name, everything below the rest of it."""
    name = str(query.q.qname).lower()
    label, _, rest = name.partition(".")
    kind = dnslib.QTYPE[query.q.qtype]
    reply = query.reply(aa=0)
    lines, authority, additional = _records(label, kind, name, rest, query)
    for line in lines:
        reply.add_answer(*dnslib.RR.fromZone(line))
    for line in authority:
        reply.add_auth(*dnslib.RR.fromZone(line))
    for line in additional:
        reply.add_ar(*dnslib.RR.fromZone(line))
    if label.startswith("missing"):
        reply.header.rcode = dnslib.RCODE.NXDOMAIN
    return [reply.pack()]


Sections = tuple[list[str], list[str], list[str]]


def _records(label: str, kind: str, name: str, rest: str, query: dnslib.DNSRecord) -> Sections:
    soa = [f"{rest} 60 IN SOA ns.{rest} me.{rest} 1 60 60 60 60"]
    match label, kind:
        case ("real" | "one", "A"):
            return [f"{name} 60 IN A 192.0.2.50"], [], []
        case ("target", "A"):
            return [f"{name} 60 IN A 192.0.2.51"], [], []
        case ("other", "A"):
            return [f"{name} 60 IN A 192.0.2.52"], [], []
        case ("alias", "A"):
            return [f"{name} 60 IN CNAME target.{rest}", f"target.{rest} 60 IN A 192.0.2.51"], [], []
        case ("alias", _):
            return [f"{name} 60 IN CNAME target.{rest}"], soa if kind == "AAAA" else [], []
        case ("srv", "SRV"):
            return [f"{name} 60 IN SRV 1 2 80 real.{rest}"], [], []
        case ("mx", "MX"):
            return [f"{name} 60 IN MX 10 real.{rest}"], [], []
        case ("full", "A"):
            extra = [f"ns.{rest} 60 IN A 192.0.2.53"]
            return [f"{name} 60 IN A 192.0.2.52"], [f"{rest} 60 IN NS ns.{rest}"], extra
        case ("large", "TXT"):
            return [f'{name} 60 IN TXT "{chr(97 + at) * 100}"' for at in range(8)], [], []
        case ("options", "TXT"):
            seen = [o for item in query.ar if item.rtype == dnslib.QTYPE.OPT for o in item.rdata]
            texts = sorted(f'"{option.code} {option.data.hex()}"' for option in seen if option.code != 10)
            return [f"{name} 60 IN TXT {text}" for text in texts or ['"none"']], [], []
    return [], soa, []


class Peer:
    """One server that answers on 127.0.0.1."""

    def __init__(self, port: int) -> None:
        self.port = port

    def ask(self, question: Ask, zone: str) -> dns.message.Message:
        """The reply, read by an independent parser."""
        name = question.name.format(z=f"{zone}") if "{z}" in question.name else question.name
        if not name.endswith("."):
            name = f"{name}." if name.endswith(zone) else f"{name}.{zone}."
        edns = {"use_edns": 0, "payload": question.edns} if question.edns else {}
        query = dns.message.make_query(name, question.kind, question.klass, **edns)
        data = query.to_wire()
        if question.tcp:
            with socket.create_connection((ADDRESS, self.port), 5, (question.source, 0)) as stream:
                stream.sendall(framed(data))
                return dns.message.from_wire(read_frame(stream))
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.settimeout(5)
            sock.bind((question.source, 0))
            sock.connect((ADDRESS, self.port))
            sock.send(data)
            return dns.message.from_wire(sock.recv(65535))


@contextmanager
def _kproxy(upstream: str, scratch: Path) -> Iterator[Peer]:
    blocks = parse(corefile(PORT, upstream, scratch), "Corefile", {}, lambda *_: []).blocks
    settings = DnsSettings(listen=(ADDRESS,), port=PORT, blocks=blocks)
    with Workers(settings, address=ADDRESS, port=PORT) as workers:
        workers.ready()
        yield Peer(PORT)


@contextmanager
def _coredns(upstream: str, scratch: Path) -> Iterator[Peer]:
    program = find_program("coredns", os.environ)
    assert program is not None  # the lane's prerequisite
    file = scratch / "Corefile"
    file.write_text(corefile(PEER_PORT, upstream, scratch))
    with (scratch / "coredns.log").open("wb") as log:
        command = ["setpriv", "--pdeathsig", "KILL", "--", str(program), "-conf", str(file)]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        peer = Peer(PEER_PORT)
        wait_until(lambda: _answers(process, peer, scratch), "CoreDNS answers", timeout_s=20)
        yield peer
    finally:
        process.kill()
        process.wait(timeout=10)


def _answers(process: subprocess.Popen[bytes], peer: Peer, scratch: Path) -> bool:
    assert process.poll() is None, (scratch / "coredns.log").read_text()
    try:
        return bool(peer.ask(Ask("ready."), "test"))
    except OSError:
        return False


@pytest.fixture(scope="module")
def peers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Peer, Peer]]:
    """kproxy and CoreDNS."""
    with Outside(otherwise=_outside) as outside:
        scratch = tmp_path_factory.mktemp("coredns")
        with _kproxy(outside.upstream, scratch) as ours, _coredns(outside.upstream, scratch) as theirs:
            yield ours, theirs


def _said(reply: dns.message.Message, case: Case) -> tuple[object, ...]:
    """What of a reply is compared."""
    sections = []
    for section in (reply.answer, reply.authority, reply.additional):
        lines = [
            f"{rrset.name.to_text().lower()} {rrset.ttl} {item.to_generic().to_text()}"
            if rrset.rdtype > 65000
            else f"{rrset.name.to_text().lower()} {rrset.ttl} {dns.rdatatype.to_text(rrset.rdtype)} {item.to_text()}"
            for rrset in section
            for item in rrset
        ]
        sections.append(lines if case.order else sorted(lines))
    errors = [(option.code, option.text) for option in reply.options if isinstance(option, dns.edns.EDEOption)]
    flags = dns.flags.to_text(reply.flags & (dns.flags.AA | dns.flags.TC | dns.flags.AD | dns.flags.RD))
    if "whoami" in case.block:  # the client's port is another one each time
        sections[2] = [line.rsplit(" ", 2)[0] if " SRV " in line else line for line in sections[2]]
    return (dns.rcode.to_text(reply.rcode()), flags, *sections, errors)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_directive(case: Case, peers: tuple[Peer, Peer]) -> None:
    """The same replies from both; or, where the case says why, another one to at least one question."""
    ours, theirs = peers
    zone = zone_of(case)
    replies = [(ask, ours.ask(ask, zone), theirs.ask(ask, zone)) for ask in case.questions]
    pairs = [(ask, _said(mine, case), _said(other, case)) for ask, mine, other in replies]
    different = [(ask, mine, other) for ask, mine, other in pairs if mine != other]
    if case.differs:
        assert different, f"no difference any more: {case.differs}"
    else:
        assert not different, "\n".join(f"{ask}\n  kproxy  {mine}\n  CoreDNS {other}" for ask, mine, other in different)
    for _, mine, other in replies:
        assert mine.question[0].to_text() == other.question[0].to_text() or not other.question
