"""Zone transfers of CoreDNS and of kproxy, over the same objects: the same records."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import dns.rcode
import pytest

from kproxy.dns.blocks import ServerBlock, Transfer
from kproxy.dns.directives import directive_of
from kproxy.dns.settings import DnsSettings
from tests.peers.canned import canned_api
from tests.peers.test_coredns import running_coredns
from tests.support.dns_worker import Workers
from tests.support.netns import Namespace
from tests.support.queries import ROWS
from tests.support.query_objects import FIXTURES
from tests.support.transfers import fetch, query_of, records_of
from tests.support.watching import watching

# What `to` looks like in a Corefile.
TRANSFER = "transfer {\n        to *\n    }"


@pytest.mark.parametrize("fixture", ["U", "C", "N"])
def test_t281_t283_t284_t285_transfers_are_coredns_transfers(fixture: str, tmp_path: Path) -> None:
    flat = next(row.settings for row in ROWS if row.fixture == fixture and not row.options)
    # CoreDNS takes no loopback address for its own.
    flat = replace(flat, own_addresses=tuple(a for a in flat.own_addresses if a != "127.0.0.1") or ("192.0.2.1",))
    block = ServerBlock(kubernetes=directive_of(flat), transfers=(Transfer(to=("*",)),))
    with Namespace.new() as space, space.entered(), canned_api(FIXTURES[fixture]()) as url:
        with running_coredns(flat, fixture, tmp_path, TRANSFER, url) as server:
            theirs = fetch(server.address, query_of("cluster.local."))
            serial = theirs[0].answer[0][0].serial
            current = fetch(server.address, query_of("cluster.local.", "IXFR", serial))
            old = fetch(server.address, query_of("cluster.local.", "IXFR", serial - 1))
        with Workers(DnsSettings()) as workers, watching(workers, url, replace(flat, blocks=(block,))) as followed:
            ours = fetch(workers.address, query_of("cluster.local."))
            serial = followed.zones[0].serial
            our_current = fetch(workers.address, query_of("cluster.local.", "IXFR", serial))
            our_old = fetch(workers.address, query_of("cluster.local.", "IXFR", serial - 1))
    assert dns.rcode.to_text(ours[0].rcode()) == "NOERROR"
    assert set(records_of(ours)) == _mended(records_of(theirs))
    assert len(set(records_of(ours))) + 1 == len(records_of(ours)), "every record once, the SOA twice"
    assert records_of(our_current) == records_of(current) and len(records_of(current)) == 1
    assert set(records_of(our_old)) == _mended(records_of(old)) == set(records_of(ours))


def _mended(records: list[str]) -> set[str]:
    """CoreDNS sends the glue of its NS records with a TTL of 0 (`TRANSFERS` in dns_differences.py); this fails when it does not."""
    assert any(" 0 A" in text for text in records) or len(records) == 1
    return {text.replace(" 0 A", " 5 A", 1) for text in records}
