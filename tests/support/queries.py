"""The DNS behaviour table: objects, a question, the answer. Every executor runs the same rows and hands its reply to `check`.

Ids are those of the reference's catalogue (T001 …, P01 …). Executors: `answer()` (tests/unit/dns), a worker's sockets (tests/dns), in time
real CoreDNS (tests/peers). The table stands in query_rows.py, its objects in query_objects.py; they pass through the real decoder here.

A row is a line `id | set | question | result | answer | additional`:
* set: a fixture and, after it, settings that differ from CoreDNS's defaults (`U ttl=30`); `unsynced` for a zone before the first list;
* names ending in svc, pod, or being one of the fixed words stand below cluster.local; all others are whole;
* result: OK, ND (NODATA), NX (NXDOMAIN), SERVFAIL; `+TC` where the answer must say that it was cut;
* records are `[owner] TYPE data`, separated by `;`. The owner is the question's when left out; order is free.

Further settings stand for directives: `external_zones` and `headless` for `k8s_external`, `stub` for a second server block that forwards
its zone, `block` for a server block of that zone only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import dns.rrset

from kproxy.dns.blocks import External, Forward, PodRecords, ServerBlock
from kproxy.dns.chain import Served, serve
from kproxy.dns.compile import NEEDED, compile_zone
from kproxy.dns.directives import directive_of, zone_settings
from kproxy.dns.settings import DnsSettings
from kproxy.dns.zone import Zone, empty_zone
from kproxy.dns.zones import compile_zones
from kproxy.model.events import Event, Replaced
from kproxy.model.objects import Kind
from kproxy.model.snapshot import Snapshot, fold
from kproxy.watch.decode import decode
from tests.support.query_objects import BASE, FIXTURES
from tests.support.query_rows import SERIAL, TABLE, UPSTREAM

__all__ = ["OUTSIDE", "ROWS", "UPSTREAM", "Row", "check"]

OUTSIDE = "127.0.0.9:5309"  # where the table's upstream listens
FIXED_WORDS = ("svc", "pod", "dns-version", "ns.dns", "dns")


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    id: str
    fixture: str
    options: Mapping[str, Any]
    synced: bool
    qname: str
    qtype: str
    result: str
    truncated: bool
    answer: tuple[str, ...]
    additional: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.id}-{self.qtype}"

    @property
    def settings(self) -> DnsSettings:
        """The server's settings for this row; nothing falls through unless the row says so."""
        fields = {"fallthrough": (), "upstreams": (OUTSIDE,)} | BASE[self.fixture] | self.options
        extra = {name: fields.pop(name, ()) for name in ("external_zones", "headless", "stub", "block")}
        flat = DnsSettings(**fields)
        if not any(extra.values()):
            return flat
        external = External(zones=extra["external_zones"], headless=bool(extra["headless"]))
        main = ServerBlock(
            zones=extra["block"] or (".",),
            kubernetes=directive_of(flat),
            external=external if extra["external_zones"] else None,
            forwards=() if extra["stub"] or extra["block"] else (Forward(to=(OUTSIDE,)),),
        )
        stub = ServerBlock(zones=extra["stub"], forwards=(Forward(to=(OUTSIDE,)),))
        return replace(flat, blocks=(main, stub) if extra["stub"] else (main,))

    @property
    def served(self) -> Served:
        """What the row is asked of."""
        return served_of(self.fixture, self.settings, self.synced)

    @property
    def zone(self) -> Zone:
        """The zone of the row's `kubernetes`."""
        return self.served.zones[0]


ALL_LABELS = frozenset({"tier", "team", "gone"})  # that some row's selector asks for


@cache
def snapshot_of(fixture: str) -> Snapshot:
    """A fixture through the real decoder, all kinds listed."""
    by_kind: dict[Kind, list[Any]] = {kind: [] for kind in Kind}
    for manifest in FIXTURES[fixture]():
        kind = Kind(manifest["kind"])
        by_kind[kind].append(decode(kind, manifest, ALL_LABELS))
    events: list[Event] = [Replaced(kind, tuple(found)) for kind, found in by_kind.items()]
    return fold(Snapshot(), events)


@cache
def zone_of(fixture: str, settings: DnsSettings, synced: bool = True) -> Zone:
    """A fixture's zone."""
    if not synced:
        return empty_zone(settings)
    snapshot = snapshot_of(fixture)
    assert snapshot.synced >= NEEDED
    return compile_zone(snapshot, settings, serial=SERIAL)


@cache
def served_of(fixture: str, settings: DnsSettings, synced: bool = True) -> Served:
    """A fixture as a worker serves it."""
    flat = zone_settings(settings)
    zones = compile_zones(snapshot_of(fixture), settings, serial=SERIAL) if synced else tuple(map(empty_zone, flat))
    return serve(settings, zones)


def absolute(name: str) -> str:
    """A name of the table as a whole name with its dot."""
    low = name.lower()
    if any(low == word or low.endswith("." + word) for word in FIXED_WORDS):
        return f"{name}.cluster.local."
    return name if name.endswith(".") else name + "."


def _value(text: str) -> Any:
    if text in ("true", "false"):
        return text == "true"
    if text.isdigit():
        return int(text)
    return tuple(text.split(",")) if text else ()


def _option(text: str) -> tuple[str, Any]:
    key, _, value = text.partition("=")
    if key in ("labels", "namespace_labels"):
        return key, value.replace("+", " ")
    if key in ("stub", "block", "further_zones", "aliases"):
        return key, (value,)
    return key, PodRecords(value) if key == "pods" else _value(value)


def parse_rows(text: str) -> tuple[Row, ...]:
    """Rows from the table's lines; several questions in one line, separated by commas, make several rows."""
    rows = []
    for line in text.strip().splitlines():
        cells = [cell.strip() for cell in line.split("|")] + [""] * 3
        ident, where, question, result, answer, additional = cells[:6]
        fixture, *words = where.split()
        options = dict(_option(word) for word in words if word != "unsynced")
        for part in question.split(","):
            name, *types = part.split()
            rows += [
                Row(
                    ident,
                    fixture,
                    options,
                    "unsynced" not in words,
                    absolute(name),
                    qtype,
                    result.removesuffix("+TC"),
                    result.endswith("+TC"),
                    tuple(filter(None, map(str.strip, answer.split(";")))),
                    tuple(filter(None, map(str.strip, additional.split(";")))),
                )
                for qtype in types
            ]
    return tuple(rows)


ROWS = parse_rows(TABLE)


def group_of(row: Row) -> str:
    """Fixture and options: rows of one group are asked of the same server."""
    options = " ".join(f"{key}={value}" for key, value in sorted(row.options.items()))
    return f"{row.fixture} {options}".strip()


def with_serial(row: Row, reply: bytes) -> Row:
    """The row with the serial of this reply: it is the time of the last change, another one in every server."""
    found = dns.message.from_wire(reply)
    serials = [rrset[0].serial for rrset in found.answer if rrset.rdtype == dns.rdatatype.SOA]
    if not serials:
        return row
    return replace(row, answer=tuple(text.replace(str(SERIAL), str(serials[0])) for text in row.answer))


def check(row: Row, query: bytes, reply: bytes) -> None:
    """Raises AssertionError unless `reply` to `query` is what the row says; dnspython is the parser."""
    message = dns.message.from_wire(reply)
    shown = f"{row.id}: {row.qname} {row.qtype}\n{message}"
    assert reply[:2] == query[:2] and reply[2] & 0x80, shown
    end = 12 + len(dns.name.from_text(row.qname).to_wire()) + 4
    assert reply[12:end] == query[12:end], f"the question is not echoed byte for byte\n{shown}"
    rcode = {"OK": "NOERROR", "ND": "NOERROR", "NX": "NXDOMAIN", "FAIL": "SERVFAIL"}.get(row.result, row.result)
    assert dns.rcode.to_text(message.rcode()) == rcode, shown
    assert bool(message.flags & dns.flags.TC) == row.truncated, shown
    assert _texts(message.answer) == _wanted(row, row.answer), shown
    if row.result == "OK":
        assert _texts(message.additional) == _wanted(row, row.additional), shown
        _check_ttls(row, message, shown)
    elif row.result in ("FAIL", "REFUSED"):
        assert not message.flags & dns.flags.AA and not message.authority and not message.additional, shown
    else:
        _check_negative(row, message, shown)


def _check_negative(row: Row, message: dns.message.Message, shown: str) -> None:
    assert message.flags & dns.flags.AA, shown
    assert len(message.authority) == 1 and not message.additional, shown
    soa = message.authority[0]
    assert soa.rdtype == dns.rdatatype.SOA and len(soa) == 1, shown
    settings = row.settings
    assert soa.ttl == min(settings.ttl, 300) and soa[0].minimum == settings.ttl, shown
    apex = soa.name.to_text()
    assert row.qname.endswith(apex), f"the SOA's owner is not in the question's case\n{shown}"
    outside = row.settings.blocks and apex.rstrip(".").lower() in BASE[row.fixture].get("external_zones", ())
    wanted = ("ns1.dns", "hostmaster.dns") if outside else ("ns.dns", "hostmaster")
    assert (soa[0].mname.to_text(), soa[0].rname.to_text()) == tuple(f"{name}.{apex}" for name in wanted), shown


def _check_ttls(row: Row, message: dns.message.Message, shown: str) -> None:
    ttl = row.settings.ttl
    for rrset in message.answer:
        if rrset.rdtype == dns.rdatatype.SOA:
            assert rrset.ttl == min(ttl, 300), shown
        elif rrset.rdtype == dns.rdatatype.TXT:
            assert rrset.ttl == 28800, shown
        elif (row.qname.lower(), row.qtype) not in UPSTREAM and not rrset.name.to_text().endswith(
            (".test.", ".net.", ".acme.local.")
        ):
            assert rrset.ttl == ttl, shown


def _texts(section: Sequence[dns.rrset.RRset]) -> list[str]:
    found = []
    for rrset in section:
        kind = dns.rdatatype.to_text(rrset.rdtype)
        found += [f"{rrset.name} {kind} {rdata.to_text()}" for rdata in rrset]
    return sorted(found)


def _wanted(row: Row, records: Sequence[str]) -> list[str]:
    found = []
    for text in records:
        words = text.split()
        owner = row.qname
        if words[0] not in ("A", "AAAA", "SRV", "PTR", "CNAME", "NS", "SOA", "TXT"):
            owner = absolute(words.pop(0))
        if words[0] in ("SRV", "PTR", "CNAME", "NS"):
            words[-1] = absolute(words[-1])
        found.append(" ".join([owner, *words]))
    return sorted(found)
