"""Every directive and option of `directive_cases`, on the pure chain alone: it must say what CoreDNS was recorded to say.

Questions that have to be asked outside are answered by the same function that plays the outside on sockets, through the same pure code that
reads an upstream's reply and makes the client's.
"""

from __future__ import annotations

from collections.abc import Mapping

import dns.message
import dnslib
import pytest

from kproxy.dns import chain, names, search, upstream
from kproxy.dns.answer import Forward, Outcome
from kproxy.dns.chain import Served
from kproxy.dns.clients import Client
from kproxy.dns.corefile.parse import parse
from kproxy.dns.search import Found, Walk
from kproxy.dns.settings import DnsSettings
from kproxy.dns.wire import Transport
from tests.peers.directive_cases import CASES, Ask, Case
from tests.support.directives import corefile, outside, query_for, recorded, said, zone_of

PORT = 5320
RECORDED = recorded()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Served:
    scratch = tmp_path_factory.mktemp("files")
    blocks = parse(corefile(PORT, "127.0.0.9:5309", scratch), "Corefile", {}, lambda *_: []).blocks
    files = {str(path): path.read_text() for path in scratch.iterdir()}
    return chain.serve(DnsSettings(port=PORT, blocks=blocks), [], files)


def _fetched(forward: Forward) -> upstream.Reply | None:
    question = upstream.question_of(forward)
    reply = outside(dnslib.DNSRecord.parse(upstream.ask(question, 7)))[0]
    return upstream.read(question, 7, reply)


def _finished(pending: Outcome | Forward, transport: Transport) -> bytes:
    while isinstance(pending, Forward):
        reply = upstream.finish(pending, _fetched(pending), transport)
        if pending.then is None:
            return reply
        pending = pending.then(reply)
    return pending.reply


def _walked(walk: Walk, transport: Transport) -> bytes:
    replies: dict[tuple[int, int], bytes] = {}
    wildcards: Mapping[bytes, frozenset[bytes]] = {}
    while not isinstance(wanted := search.decide(walk, replies, wildcards), Found):
        if wanted.suffix:
            wildcards = {**wildcards, wanted.suffix: frozenset()}
            continue
        asked = dict(walk.steps[wanted.index].asked)
        for kind in wanted.types:
            replies[(wanted.index, kind)] = _finished(asked[kind], Transport.TCP)
    return search.finish(walk, wanted, replies, transport).reply


def ask(served: Served, question: Ask, zone: str) -> dns.message.Message:
    """The chain's reply to one question."""
    client = Client(address=question.source, packed=names.pack(question.source))
    transport = Transport.TCP if question.tcp else Transport.UDP
    pending = chain.respond(
        served, query_for(question, zone), transport, client, address="127.0.0.1", port=PORT, source_port=4711
    )
    assert isinstance(pending, Outcome | Forward | Walk)
    reply = _walked(pending, transport) if isinstance(pending, Walk) else _finished(pending, transport)
    return dns.message.from_wire(reply)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_directive(case: Case, served: Served) -> None:
    replies = [said(ask(served, question, zone_of(case)), case) for question in case.questions]
    if case.differs:
        assert replies != RECORDED[case.id]
    else:
        assert replies == RECORDED[case.id]
