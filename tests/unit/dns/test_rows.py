"""The query table on the pure function that workers answer by: no sockets, milliseconds."""

from __future__ import annotations

import dns.flags
import dns.message
import dns.rcode
import dns.rrset
import pytest

from kproxy.dns import chain, upstream
from kproxy.dns.answer import Forward, Outcome
from kproxy.dns.wire import Transport
from tests.support.queries import ROWS, UPSTREAM, Row, check


def query_for(row: Row) -> bytes:
    """The row's question with EDNS, so that nothing of the table is cut."""
    return dns.message.make_query(row.qname, row.qtype, use_edns=0, payload=1232).to_wire()


def completed(outcome: object, transport: Transport) -> bytes:
    """The reply, with the table's upstream asked where the answer needs it."""
    if isinstance(outcome, Forward):
        question = upstream.question_of(outcome)
        asked = dns.message.from_wire(upstream.ask(question, 7))
        name, qtype = asked.question[0].to_text().split()[0], dns.rdatatype.to_text(asked.question[0].rdtype)
        rcode, _, records = UPSTREAM[(name, qtype)]
        said = dns.message.make_response(asked)
        said.set_rcode(dns.rcode.from_text(rcode))
        for record in records:
            owner, kind, data = record.split(maxsplit=2)
            said.answer.append(dns.rrset.from_text(owner, 60, "IN", kind, data))
        return upstream.finish(outcome, upstream.read(question, 7, said.to_wire()), transport)
    assert isinstance(outcome, Outcome)
    return outcome.reply


@pytest.mark.parametrize("transport", list(Transport), ids=lambda t: t.value)
@pytest.mark.parametrize("row", ROWS, ids=str)
def test_answer(row: Row, transport: Transport) -> None:
    query = query_for(row)
    check(row, query, completed(chain.respond(row.served, query, transport), transport))
