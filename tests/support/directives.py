"""What is said to the cases of `tests.peers.directive_cases`, and what the outside says: for kproxy, for CoreDNS, and for pure code alone.

`RECORDED` is what CoreDNS v1.14.7 said to every question; the peers lane sees to it that it still does.
"""

from __future__ import annotations

import json
from pathlib import Path

import dns.edns
import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dnslib

from tests.peers.directive_cases import CASES, Ask, Case

RECORDED = Path(__file__).with_name("directives.json")


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


def outside(query: dnslib.DNSRecord) -> list[bytes]:
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
    return [bytes(reply.pack())]


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
        case ("bound", "MX"):
            return [f"{name} 60 IN MX 10 x{name}", f"{name} 60 IN MX 20 x.{name}"], [], []
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


def query_for(question: Ask, zone: str) -> bytes:
    """The question as a message."""
    name = question.name.format(z=zone) if "{z}" in question.name else question.name
    if not name.endswith("."):
        name = f"{name}." if name.endswith(zone) else f"{name}.{zone}."
    if question.edns:
        return dns.message.make_query(name, question.kind, question.klass, use_edns=0, payload=question.edns).to_wire()
    return dns.message.make_query(name, question.kind, question.klass).to_wire()


def said(reply: dns.message.Message, case: Case) -> list[object]:
    """What of a reply is compared, as JSON has it."""
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
    errors = [
        [int(option.code), option.text or ""] for option in reply.options if isinstance(option, dns.edns.EDEOption)
    ]
    flags = dns.flags.to_text(reply.flags & (dns.flags.AA | dns.flags.TC | dns.flags.AD | dns.flags.RD))
    if "whoami" in case.block:  # the client's port is another one each time
        sections[2] = [line.rsplit(" ", 2)[0] if " SRV " in line else line for line in sections[2]]
    return [dns.rcode.to_text(reply.rcode()), flags, *sections, errors]


def recorded() -> dict[str, list[list[object]]]:
    """What CoreDNS said, by case, question by question."""
    found: dict[str, list[list[object]]] = json.loads(RECORDED.read_text())
    return found
