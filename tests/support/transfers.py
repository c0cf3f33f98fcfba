"""Zone transfers as a client sees them: the messages up to the closing SOA, and their records as text."""

from __future__ import annotations

import socket

import dns.message
import dns.rdatatype
import dns.rrset

from tests.support.dns_worker import framed, read_frame


def query_of(zone: str, kind: str = "AXFR", serial: int | None = None) -> bytes:
    """The query; IXFR with the serial that the client has."""
    query = dns.message.make_query(zone, kind)
    if serial is not None:
        soa = dns.rrset.from_text(zone, 0, "IN", "SOA", f"a. b. {serial} 1 2 3 4")
        query.authority.append(soa)
    return query.to_wire()


def fetch(address: tuple[str, int], query: bytes) -> list[dns.message.Message]:
    """The messages of the reply over TCP: until the SOA comes again, or only one SOA or none came."""
    found: list[dns.message.Message] = []
    with socket.create_connection(address, timeout=10) as sock:
        sock.sendall(framed(query))
        soas = 0
        while True:
            message = dns.message.from_wire(read_frame(sock), one_rr_per_rrset=True)
            found.append(message)
            soas += sum(rrset.rdtype == dns.rdatatype.SOA for rrset in message.answer)
            if soas != 1 or (len(found) == 1 and len(message.answer) == 1):
                return found
            # CoreDNS begins with a message of the SOA alone for small zones too, so one record is the end only for IXFR.


def records_of(messages: list[dns.message.Message]) -> list[str]:
    """`owner ttl type data` of every record in order, the SOA without its serial."""
    found = []
    for message in messages:
        for rrset in message.answer:
            kind = dns.rdatatype.to_text(rrset.rdtype)
            data = rrset[0].to_text()
            if kind == "SOA":
                words = data.split()
                data = " ".join([*words[:2], "serial", *words[3:]])
            found.append(f"{rrset.name} {rrset.ttl} {kind} {data}")
    return found
