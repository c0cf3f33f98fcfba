"""What the small directives say: any, acl's refusals, loadbalance's preference, hosts' turn, whoami.

In: a query and how it came. Out: messages and steps. What must not happen here: deciding whose turn it is (`chain` does).
"""

from __future__ import annotations

import struct
from dataclasses import replace

from kproxy.dns import finishing, hosts, names
from kproxy.dns.acl import BLOCKED, FILTERED
from kproxy.dns.answer import Outcome
from kproxy.dns.arrival import Arrival
from kproxy.dns.blocks import AclAction
from kproxy.dns.chain_blocks import Compiled
from kproxy.dns.clients import Networks
from kproxy.dns.finishing import Message, Step
from kproxy.dns.lookup import find_apex
from kproxy.dns.patterns import written
from kproxy.dns.rewrite import Alias
from kproxy.dns.upstream import Record
from kproxy.dns.wire import Query, Rcode, Transport, Type
from kproxy.dns.zone import Zone

ANY_TTL = 8482  # seconds; CoreDNS's, after the RFC
_SPECIAL = (b"\x09localhost\0", b"\x07invalid\0", b"\x05onion\0", b"\x05local\0")
_LAST = tuple(suffix[1:] for suffix in _SPECIAL)


def any_obsoleted(query: Query) -> Message:
    """`any`: RFC 8482's HINFO in place of everything."""
    item = Record(query.name, Type.HINFO, ANY_TTL, b"\x0dANY obsoleted\x0cSee RFC 8482")
    return Message(authoritative=False, answer=(item,))


def denied(action: AclAction) -> Message:
    """`acl`: REFUSED, or NOERROR without records, each with its extended error."""
    if action is AclAction.BLOCK:
        return Message(rcode=Rcode.REFUSED, authoritative=False, extended_error=(BLOCKED, ""))
    return Message(authoritative=False, extended_error=(FILTERED, ""))


def whoami(query: Query, arrival: Arrival) -> Message:
    """`whoami`: the client's own address, port and transport, as additional records."""
    packed = arrival.client.packed
    proto = arrival.transport.value.encode()
    port = Record(
        bytes((len(proto) + 1,)) + b"_" + proto + query.name,
        Type.SRV,
        0,
        struct.pack("!HHH", 0, 0, arrival.source_port) + b"\0",
    )
    kind = Type.A if len(packed) == 4 else Type.AAAA
    records = (Record(query.name, kind, 0, packed), port) if packed else (port,)
    return Message(additional=tuple(item for item in records if len(item.owner) <= names.MAX_NAME))


def from_hosts(query: Query, message: Message, transport: Transport, turn: int) -> Outcome:
    """What `hosts` says, its addresses in turn."""
    count = len(message.answer)
    if count > 1 and query.qtype in (Type.A, Type.AAAA):
        at = turn % count
        message = replace(message, answer=(*message.answer[at:], *message.answer[:at]))
        return replace(finishing.outcome_of(query, message, transport, count), owner=hosts.OWNER, plugin="hosts")
    return replace(finishing.outcome_of(query, message, transport), plugin="hosts")


def sorting(preferred: tuple[Networks, ...]) -> Step:
    """`prefer` of loadbalance: CNAMEs, then the addresses of the first network, of the second …, the others, at last what is neither."""

    def rank(item: Record) -> int:
        if item.rtype == Type.CNAME:
            return -1
        if item.rtype not in (Type.A, Type.AAAA):
            return len(preferred) + (1 if item.rtype == Type.MX else 2)
        return next((at for at, networks in enumerate(preferred) if item.rdata in networks), len(preferred))

    def step(message: Message) -> Message:
        if message.rcode != Rcode.NOERROR:
            return message
        return replace(
            message,
            answer=tuple(sorted(message.answer, key=rank)),
            additional=tuple(sorted(message.additional, key=rank)),
        )

    return step


def new_target(item: Record, aliases: tuple[Alias, ...]) -> bytes:
    """Where a CNAME leads by `rewrite cname`; b"" for any other record, and for one that no rule fits."""
    if item.rtype != Type.CNAME:
        return b""
    old = written(item.rdata.lower())
    for alias in aliases:
        new = alias.change(old)
        if new is not None:
            try:
                return names.encode(new)
            except ValueError:
                return b""
    return b""


def is_served_specially(lowered: bytes, block: Compiled, zone: Zone, first: int) -> bool:
    """Whether somebody meant a name below a special one: the block or the `forward` is for a zone there (`acme.local`), or the cluster's
    own zone is, which has passed the name on (`fallthrough`).
    """
    if not lowered.endswith(_LAST):
        return False
    meant = block.zones if first < 0 else (*block.zones, block.forwards[first][0])
    if any(names.is_below(one, suffix) and names.is_below(lowered, one) for one in meant for suffix in _SPECIAL):
        return True
    return block.zone >= 0 and find_apex(zone, lowered) is not None
