"""`template`: records made of a pattern's groups, without a zone behind them.

In: the directives of one block, compiled once; a query and who asks. Out: `Made`, or None for the next directive's turn. What must not
happen here: following the CNAMEs that are made (the chain does), and failing at run time over what could be refused when it is compiled.

As CoreDNS does it: the first directive whose zone, class, type and one of whose patterns fit answers; one whose patterns do not fit is
SERVFAIL unless its `fallthrough` holds for the name. A record that cannot be made is SERVFAIL as well.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace

from kproxy.dns import names
from kproxy.dns.arrival import Arrival
from kproxy.dns.blocks import Template
from kproxy.dns.finishing import FAILURE, Message
from kproxy.dns.patterns import Pattern, written
from kproxy.dns.recordtext import CLASSES, class_name, is_writable, parse_record, rcode_of, type_name, type_of
from kproxy.dns.template_functions import Value
from kproxy.dns.template_text import Fields, Text
from kproxy.dns.upstream import Record
from kproxy.dns.wire import Query, Rcode, Type

_QUESTION: Fields = {"Name": None, "Qtype": None, "Qclass": None}
FIELDS: Fields = {
    "Zone": None, "Name": None, "Regex": None, "Match": None, "Group": None, "Class": None, "Type": None, "Remote": None,
    "Question": _QUESTION,
    "Message": {"Id": None, "Opcode": None, "RecursionDesired": None, "CheckingDisabled": None, "AuthenticatedData": None},
}  # fmt: skip
_PERSONAL = re.compile(r"\.(?:Remote|Meta|Message)\b")
_KIND = re.compile(r"\bIN\s+([A-Z][A-Z0-9]*)\b")
_ANY = 255


@dataclass(frozen=True, slots=True)
class Made:
    """A reply. alias: where its last CNAME leads, to be resolved by the whole server; personal: it depends on who asks."""

    message: Message
    alias: bytes = b""
    personal: bool = False
    event: str = ""  # as in Outcome.events


class _Compiled:
    """One directive."""

    def __init__(self, directive: Template, zones: tuple[str, ...]) -> None:
        self.zones = names.zones(directive.zones or zones)
        self.through = None if directive.fallthrough is None else names.zones(directive.fallthrough)
        self.qclass = CLASSES[directive.qclass.upper()]
        self.qtype = type_of(directive.qtype)
        self.patterns = [None] if directive.matches in ((), (".*",)) else [Pattern(text) for text in directive.matches]
        self.rcode = rcode_of(directive.rcode)
        self.error = directive.extended_error
        sections = (directive.answers, directive.additionals, directive.authorities)
        self.sections = tuple(tuple(map(record_text, texts)) for texts in sections)
        self.personal = any(_PERSONAL.search(text) for texts in sections for text in texts)

    def fits(self, query: Query) -> bytes | None:
        """The longest of its zones that the query lies in, when class and type fit as well."""
        zone = max((z for z in self.zones if names.is_below(query.lowered, z)), key=len, default=None)
        if self.qclass not in (_ANY, query.qclass) and query.qclass != _ANY:
            return None
        return None if self.qtype not in (_ANY, query.qtype) and query.qtype != _ANY else zone

    def match(self, name: str) -> tuple[str, tuple[str, ...], dict[str, str]] | None:
        """The pattern that fits, its groups by number and by number or name."""
        for pattern in self.patterns:
            if pattern is None:
                return ".*", (name,), {"0": name}
            found = pattern.find(name)
            if found is not None:
                groups = {str(number): value for number, value in enumerate(found)}
                groups |= {title: found[number] for number, title in pattern.names.items()}
                return pattern.text, found, groups
        return None


class Templates:
    """The `template` directives of one block."""

    def __init__(self, directives: tuple[Template, ...], zones: tuple[str, ...]) -> None:
        """zones: the block's. Raises ValueError naming the directive and what is wrong with it."""
        self._compiled = []
        for directive in directives:
            try:
                self._compiled.append(_Compiled(directive, zones))
            except (ValueError, KeyError) as error:
                raise ValueError(f"template {directive.qclass} {directive.qtype}: {error}") from error

    def respond(self, query: Query, arrival: Arrival) -> Made | None:
        """What the first directive that fits says; None: the next directive's turn. Never raises."""
        name = ""
        for compiled in self._compiled:
            zone = compiled.fits(query)
            if zone is None:
                continue
            name = name or written(query.lowered)
            match = compiled.match(name)
            if match is None:
                if compiled.through is not None and names.is_below_any(query.lowered, compiled.through):
                    continue
                return Made(FAILURE)
            data = _data(compiled, query, arrival, name, zone, match)
            event = (
                f'coredns_template_matches_total{{server="%s",zone="{data["Zone"]}",view="",'
                f'class="{data["Class"]}",type="{data["Type"]}"}}'
            )
            if compiled.rcode == Rcode.SERVFAIL:
                return Made(FAILURE, event=event)
            try:
                return replace(_made(compiled, data, query, arrival), event=event)
            except ValueError:
                return Made(FAILURE, personal=compiled.personal, event=event)
        return None


def record_text(text: str) -> Text:
    """One record's template, compiled. Raises ValueError for what is wrong with it, or cannot become a record here."""
    compiled = Text(text, FIELDS)
    for kind in _KIND.findall(re.sub(r"\{\{.*?\}\}", " ", text)):
        if not is_writable(type_of(kind)) and "\\#" not in text:
            raise ValueError(f"{kind} records can only be written in the generic form, \\# LENGTH HEX")
    return compiled


def _data(
    compiled: _Compiled,
    query: Query,
    arrival: Arrival,
    name: str,
    zone: bytes,
    match: tuple[str, tuple[str, ...], dict[str, str]],
) -> dict[str, Value]:
    qclass = compiled.qclass if query.qclass == _ANY else query.qclass
    qtype = compiled.qtype if query.qtype == _ANY else query.qtype
    return {
        "Zone": names.decode(zone),
        "Name": name,
        "Regex": match[0],
        "Match": list(match[1]),
        "Group": dict(match[2]),
        "Class": class_name(qclass),
        "Type": type_name(qtype),
        "Remote": arrival.client.address,
        "Question": {"Name": written(query.name), "Qtype": query.qtype, "Qclass": query.qclass},
        "Message": {
            "Id": int.from_bytes(query.id, "big"),
            "Opcode": 0,
            "RecursionDesired": query.recursion_desired,
            "CheckingDisabled": query.checking_disabled,
            "AuthenticatedData": bool(query.flags & 0x0020),
        },
    }


def _made(compiled: _Compiled, data: dict[str, Value], query: Query, arrival: Arrival) -> Made:
    meta = _meta(arrival)
    answer, additional, authority = (
        tuple(parse_record(text.execute(data, meta)) for text in texts) for texts in compiled.sections
    )
    answer, alias = _up_to_alias(answer, query)
    message = Message(
        rcode=compiled.rcode, answer=answer, authority=authority, additional=additional, extended_error=compiled.error
    )
    return Made(message, alias, compiled.personal)


def _up_to_alias(answer: tuple[Record, ...], query: Query) -> tuple[tuple[Record, ...], bytes]:
    """A CNAME among the answers to A or AAAA is followed when it is the last of them; one with records behind it is already."""
    if query.qtype in (Type.A, Type.AAAA) and answer and answer[-1].rtype == Type.CNAME:
        return answer, answer[-1].rdata
    return answer, b""


def _meta(arrival: Arrival) -> Callable[[str], str]:
    """What is known of the client, under the names that CoreDNS's `metadata` gives it."""
    namespace, _, pod = arrival.client.name.partition("/")
    known = {"kubernetes/client-namespace": namespace, "kubernetes/client-pod-name": pod}
    return lambda label: known.get(label, "")
