"""NXDOMAIN for names below `svc.<zone>` that were never asked before, at the price of a remembered reply.

    x1234.example.com.shop.svc.cluster.local   →  there is no Service `com` in namespace `shop`: whatever stands in front, it is missing

Pods that walk their search list ask for ever new missing names, and so does whoever attacks by them; remembering each would only throw out
what is asked again. All such replies are alike but for the question: header, question, SOA, OPT; equal octets wherever the packets are
equally long, because what the SOA points at begins at the same place. So the first one that the chain denies is kept as a template, by
the length of the query, its flags and counts, and its end from the label `svc` on (type, class and OPT with it). A later query of
that kind is answered from it when neither its namespace nor its Service exists, which is all of it that has to be looked at: the labels'
lengths, and two keys of the zone (RFC 8020: below a name that does not exist nothing does).

Most of these names differ in their first label alone (`x1234` above), so the bytes behind it are remembered as well where they are enough:
what is denied below them is found by one look-up, without going through the labels (0.3 us instead of 1.0).

In: the query's bytes, who asks, and the chain's outcome to learn from. Out: the reply's bytes behind the ID. What must not happen here: a
denial of a name that somebody else would have answered. `deniable` says for which server blocks names are not looked at before the zone
is; clients with a search list get none for names below its head, which are walked; and any change of the zone throws all templates out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from kproxy.dns import names, wire
from kproxy.dns.answer import Outcome
from kproxy.dns.apexes import Tree
from kproxy.dns.blocks import Kubernetes, ServerBlock
from kproxy.dns.cache import Entry
from kproxy.dns.clients import UNCACHED, Client
from kproxy.dns.lookup import find_apex
from kproxy.dns.wire import Rcode
from kproxy.dns.zone import Zone

TEMPLATES = 4096  # some 200 octets each
RESTS = 4096  # what stands behind first labels; some 300 octets each
ENDS = 6  # different lengths of what is compared: with and without OPT, for a few zones

_SVC = b"\x03svc"
_AUTOPATH = "@kubernetes"
_NAME = wire.HEADER - 2  # where the question begins in what is behind the ID
_TYPE_AND_CLASS = 4

_Key = tuple[int, int, bytes, bytes]  # view, octets, flags and counts, the query's end


@dataclass(frozen=True, slots=True)
class _Template:
    """A reply without its ID and question. question_end: in what is behind the ID. counts: where its uses are counted."""

    head: bytes
    rest: bytes
    question_end: int
    counts: list[int]
    namespaces: frozenset[bytes]
    services: Mapping[bytes, object]


class Denials:
    """The templates of one port. Emptied by `clear`, at every change of zone or settings."""

    __slots__ = ("_ends", "_rests", "_templates")

    def __init__(self) -> None:
        self._ends: tuple[int, ...] = ()
        self._templates: dict[_Key, _Template] = {}
        self._rests: dict[_Key, _Template] = {}

    def __len__(self) -> int:
        return len(self._templates)

    def clear(self) -> None:
        """Throws all out."""
        self._templates.clear()
        self._rests.clear()
        self._ends = ()

    def find(self, key: bytes, client: Client) -> Entry | None:
        """The reply behind the ID, and where its use is counted; None when the chain has to be asked. key: the query behind the ID."""
        size, view = len(key), client.view
        if not self._ends or size <= _NAME:
            return None
        head = key[:_NAME]
        second = (
            _NAME + 1 + key[_NAME]
        )  # where the second label begins; as rest and size are those of a good name, so is the first
        template = self._rests.get((view, size, head, key[second:]))
        if template is not None:
            return template.head + key[_NAME : template.question_end] + template.rest, template.counts
        for end in self._ends:
            template = self._templates.get((view, size, head, key[-end:]))
            if template is None:
                continue
            if not _is_missing(key, _NAME, size - end, template.namespaces, template.services):
                return None
            name_end = template.question_end - _TYPE_AND_CLASS
            if client.lists and _is_walked(client, key[_NAME:name_end]):
                return None
            if _is_missing(key, second, size - end, template.namespaces, template.services) and not any(
                len(one.suffixes[0]) > name_end - second for one in client.lists
            ):
                if len(self._rests) >= RESTS:
                    self._rests.clear()
                self._rests[(view, size, head, key[second:])] = template
            return template.head + key[_NAME : template.question_end] + template.rest, template.counts
        return None

    def learn(self, data: bytes, client: Client, outcome: Outcome, zone: Zone, counts: list[int]) -> None:
        """Keeps the reply to the UDP query `data` as a template, where it is one. zone: the one that answered; see `deniable`."""
        query = outcome.query
        if outcome.rcode != Rcode.NXDOMAIN or query is None or not query.whole or client.view == UNCACHED:
            return
        if query.edns is not None and query.edns.options:
            return
        found = find_apex(zone, query.lowered)
        if found is None or found[0].tree is not Tree.FORWARD or found[0].imports:
            return
        begin = found[1] - len(_SVC)  # of the label svc
        if begin <= 0 or query.name[begin:] != query.lowered[begin:] or query.lowered[begin : found[1]] != _SVC:
            return
        at = wire.HEADER + begin
        if not _is_missing(data, wire.HEADER, at, zone.namespaces, zone.services) or _is_walked(client, query.name):
            return
        question_end = wire.HEADER + len(query.question)
        if outcome.reply[wire.HEADER : question_end] != query.question:
            return
        self._keep((client.view, len(data) - 2, data[2 : wire.HEADER], data[at:]), outcome, question_end, zone, counts)

    def _keep(self, key: _Key, outcome: Outcome, question_end: int, zone: Zone, counts: list[int]) -> None:
        end = len(key[3])
        if end not in self._ends:
            if len(self._ends) >= ENDS:
                return
            self._ends = (*self._ends, end)
        if len(self._templates) >= TEMPLATES:
            self._templates.clear()
        reply = outcome.reply
        self._templates[key] = _Template(
            reply[2 : wire.HEADER], reply[question_end:], question_end - 2, counts, zone.namespaces, zone.services
        )


def _is_missing(
    data: bytes, begin: int, end: int, namespaces: frozenset[bytes], services: Mapping[bytes, object]
) -> bool:
    """Whether the labels from `begin` to `end` are well formed and name a namespace or Service that does not exist."""
    at = begin
    before = last = 0
    while at < end:
        length = data[at]
        if not 0 < length < 64:
            return False
        before, last = last, at
        at += length + 1
    if at != end or not last:
        return False
    if data[last + 1 : end].lower() not in namespaces:
        return True
    return before > 0 and data[before:end].lower() not in services


def _is_walked(client: Client, name: bytes) -> bool:
    """Whether a name may lie below the head of a search list of this client. At no label's border it is no harm to say yes."""
    lowered = name.lower()
    return any(lowered.endswith(one.suffixes[0]) for one in client.lists)


def deniable(block: ServerBlock, zone: Zone, others: Iterable[str]) -> bool:
    """Whether a name below `svc` of this zone is denied by the zone and nothing else, whatever the name.

    others: the zones of all server blocks and `kubernetes` directives; one that lies below a zone of ours takes names out of it.
    """
    if block.rewrites or block.templates or block.hosts or block.external or block.acl or block.log or block.whoami:
        return False
    if block.autopath is not None and block.autopath.source != _AUTOPATH:
        return False
    forward = [apex.name for apex in zone.apexes.values() if apex.tree is Tree.FORWARD]
    further = [_encoded(text) for text in (*others, *zone.settings.fallthrough)]
    below = [name for name in (*further, *forward) for apex in forward if _is_strictly_below(name, apex)]
    return not below


def _encoded(text: str) -> bytes:
    """A zone's name in wire form; of a network the root, which lies below nothing."""
    return b"\0" if "/" in text else names.encode(text).lower()


def _is_strictly_below(name: bytes, apex: bytes) -> bool:
    return name != apex and names.is_below(name, apex)


def denying(
    blocks: Sequence[ServerBlock], directives: Sequence[Kubernetes], zones: Sequence[Zone]
) -> tuple[Zone | None, ...]:
    """For each server block the zone that alone denies names there; None where there is none. zones: those of `directives`, in order."""
    others = zones_of(blocks)
    by_directive = dict(zip(directives, zones, strict=True))
    found = [by_directive.get(block.kubernetes) if block.kubernetes is not None else None for block in blocks]
    return tuple(
        zone if zone is not None and deniable(block, zone, others) else None
        for block, zone in zip(blocks, found, strict=True)
    )


def zones_of(blocks: Sequence[ServerBlock]) -> tuple[str, ...]:
    """The zones of all server blocks and their `kubernetes` directives, for `deniable`."""
    own = [zone for block in blocks for zone in block.zones]
    return (*own, *(zone for block in blocks if block.kubernetes is not None for zone in block.kubernetes.zones))
