"""The query table over real sockets, by UDP and TCP: from an API server by kproxy's watch client, compiler and publisher to a worker."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import groupby

import dns.message
import dns.rdatatype
import pytest

from kproxy.dns.settings import DnsSettings
from tests.peers.canned import canned_api
from tests.support.dns_worker import Outside, Workers, records
from tests.support.queries import ROWS, UPSTREAM, Row, check, group_of, with_serial
from tests.support.query_objects import FIXTURES
from tests.support.watching import watching

GROUPS = {
    name: tuple(rows) for name, rows in groupby(sorted((r for r in ROWS if r.synced), key=group_of), key=group_of)
}


@pytest.fixture(scope="module")
def outside() -> Iterator[Outside]:
    with Outside() as server:
        for key, (rcode, truncated, lines) in UPSTREAM.items():
            server.says[key] = records(*lines, rcode=rcode, truncated=truncated)
            server.says_by_tcp[key] = records(*lines, rcode=rcode)
        yield server


@pytest.fixture(scope="module")
def worker(outside: Outside) -> Iterator[Workers]:
    with Workers(DnsSettings(upstreams=(outside.upstream,))) as workers:
        yield workers


def _ask(workers: Workers, row: Row, transport: str) -> None:
    query = dns.message.make_query(row.qname, row.qtype, use_edns=0, payload=1232).to_wire()
    reply = workers.udp(query) if transport == "udp" else workers.tcp(query)
    assert reply is not None, f"no reply to {row}"
    check(with_serial(row, reply), query, reply)
    if transport == "udp":
        again = workers.udp(b"\x12\x34" + query[2:])
        assert again is not None and again[:2] == b"\x12\x34", "the cached reply has the wrong ID"
        check(with_serial(row, again), b"\x12\x34" + query[2:], again)


@pytest.mark.parametrize("group", GROUPS, ids=lambda name: name.replace(" ", "-"))
def test_rows(worker: Workers, group: str) -> None:
    rows = GROUPS[group]
    wrong = []
    with canned_api(FIXTURES[rows[0].fixture]()) as url, watching(worker, url, rows[0].settings):
        for row in rows:
            for transport in ("udp", "tcp"):
                try:
                    _ask(worker, row, transport)
                except AssertionError as error:
                    wrong.append(f"{row} by {transport}: {error}")
    assert wrong == []


@pytest.mark.parametrize("group", sorted({group_of(row) for row in ROWS if not row.synced}))
def test_rows_before_the_first_zone(outside: Outside, group: str) -> None:
    rows = [row for row in ROWS if not row.synced and group_of(row) == group]
    with Workers(replace(rows[0].settings, upstreams=(outside.upstream,)), address="127.0.0.2") as workers:
        for row in rows:
            _ask(workers, row, "udp")
            _ask(workers, row, "tcp")
