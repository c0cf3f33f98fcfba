"""The query table over real sockets: a worker process, fed by a real publisher, asked by UDP and TCP."""

from __future__ import annotations

from collections.abc import Iterator

import dns.message
import pytest

from kproxy.dns.settings import DnsSettings
from tests.support.dns_worker import Outside, Workers, records
from tests.support.queries import ROWS, UPSTREAM, Row, check


@pytest.fixture(scope="module")
def outside() -> Iterator[Outside]:
    with Outside() as server:
        for key, (rcode, truncated, lines) in UPSTREAM.items():
            server.says[key] = records(*lines, rcode=rcode, truncated=truncated)
        yield server


@pytest.fixture(scope="module")
def worker(outside: Outside) -> Iterator[Workers]:
    with Workers(DnsSettings(upstreams=(outside.upstream,))) as workers:
        yield workers


def _ask(workers: Workers, row: Row, transport: str) -> None:
    query = dns.message.make_query(row.qname, row.qtype, use_edns=0, payload=1232).to_wire()
    reply = workers.udp(query) if transport == "udp" else workers.tcp(query)
    assert reply is not None, f"no reply to {row}"
    check(row, query, reply)
    if transport == "udp":
        again = workers.udp(b"\x12\x34" + query[2:])
        assert again is not None and again[:2] == b"\x12\x34", "the cached reply has the wrong ID"
        if row.qname != "ext.interwebs.test.":
            check(row, b"\x12\x34" + query[2:], again)


@pytest.mark.parametrize("transport", ["udp", "tcp"])
@pytest.mark.parametrize("row", [row for row in ROWS if row.synced], ids=str)
def test_row(worker: Workers, row: Row, transport: str) -> None:
    worker.publish(row.zone)
    _ask(worker, row, transport)


def test_rows_before_the_first_zone(outside: Outside) -> None:
    rows = [row for row in ROWS if not row.synced]
    assert rows
    settings = rows[0].settings
    with Workers(settings, address="127.0.0.2") as workers:
        for row in rows:
            assert row.settings == settings
            _ask(workers, row, "udp")
            _ask(workers, row, "tcp")
