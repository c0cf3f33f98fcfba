"""Every directive and option of a Corefile on kproxy's workers and on real CoreDNS: the same text, the same questions, the same replies.

All blocks of `directive_cases` are one Corefile. Compared are the response code, AA, TC, and the records of every section with their TTLs;
not RA (kproxy recurses through its upstreams and says so always, CoreDNS copies the upstream's flag), nor the EDNS options and the order of
addresses, but for the cases that are about these.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import dns.message
import pytest

from kproxy.dns.corefile.parse import parse
from kproxy.dns.settings import DnsSettings
from kproxy.lab.controlplane import find_program
from tests.peers.directive_cases import CASES, Ask, Case
from tests.support.directives import RECORDED, corefile, outside, query_for, recorded, said, zone_of
from tests.support.dns_worker import Outside, Workers, framed, read_frame, wait_until

PORT, PEER_PORT = 5320, 5321
ADDRESS = "127.0.0.1"
RECORDING = "KPROXY_RECORD" in os.environ  # writes anew what CoreDNS says; tests/unit/dns/test_directives.py reads it


class Peer:
    """One server that answers on 127.0.0.1."""

    def __init__(self, port: int) -> None:
        self.port = port

    def ask(self, question: Ask, zone: str) -> dns.message.Message:
        """The reply, read by an independent parser."""
        data = query_for(question, zone)
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
    with Outside(otherwise=outside) as world:
        scratch = tmp_path_factory.mktemp("coredns")
        with _kproxy(world.upstream, scratch) as ours, _coredns(world.upstream, scratch) as theirs:
            yield ours, theirs


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_directive(case: Case, peers: tuple[Peer, Peer]) -> None:
    """The same replies from both; or, where the case says why, another one to at least one question."""
    ours, theirs = peers
    zone = zone_of(case)
    replies = [(ask, ours.ask(ask, zone), theirs.ask(ask, zone)) for ask in case.questions]
    for _, mine, other in replies:
        assert mine.question[0].to_text() == other.question[0].to_text() or not other.question
    pairs = [(ask, said(mine, case), said(other, case)) for ask, mine, other in replies]
    if RECORDING:
        known = recorded() if RECORDED.exists() else {}
        RECORDED.write_text(
            json.dumps(known | {case.id: [other for _, _, other in pairs]}, indent=1, sort_keys=True) + "\n"
        )
    assert [other for _, _, other in pairs] == recorded()[case.id], "CoreDNS says something else than was recorded"
    different = [(ask, mine, other) for ask, mine, other in pairs if mine != other]
    if case.differs:
        assert different, f"no difference any more: {case.differs}"
    else:
        assert not different, "\n".join(f"{ask}\n  kproxy  {mine}\n  CoreDNS {other}" for ask, mine, other in different)
