"""The directives of a Corefile, in CoreDNS's fixed order, as one pure function: which block a query belongs to, and what that block says.

In: what a worker answers from (`Served`), the bytes of a query, how it came, who sent it. Out: an `Outcome` (a finished reply), a
`Forward` (upstream has to be asked: `block` says whose `forward` directives, `first` which of them to begin with), a `Walk` (the
client's search list is walked here, and some candidate has to be asked upstream), a `Transfer` (many messages, TCP only), `Dropped` or
None for silence. It never raises, whatever the bytes. What must not happen here: sockets, files, time, randomness, caching.

    bufsize, any, loadbalance, rewrite, autopath, acl, minimal, template, transfer, hosts, k8s_external, kubernetes, forward, whoami

`_within` is the part up to `autopath`, which changes questions and replies; `_behind` is the rest, which answers one final name: what is
asked along a search list, or for an alias, goes through `acl` there like everything else. A block that has only kubernetes, loadbalance
and forward is answered at once, as fast as its zone alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from kproxy.dns import answer, chain_links, external, finishing, names, search, transfer, wire
from kproxy.dns.answer import NOT_QUESTIONS, Dropped, Forward, Missed, Outcome, Transfer
from kproxy.dns.arrival import Arrival
from kproxy.dns.blocks import AclAction, ServerBlock
from kproxy.dns.chain_blocks import (
    Compiled,
    Table,
    compile_blocks,
    default_blocks,
    kubernetes_of,
    places_of,
    tables,
)
from kproxy.dns.clients import ANYBODY, Client
from kproxy.dns.rewrite import Alias
from kproxy.dns.search import Walk
from kproxy.dns.settings import DnsSettings
from kproxy.dns.upstream import Malformed, Record
from kproxy.dns.wire import Query, Transport, Type
from kproxy.dns.zone import Zone, empty_zone

__all__ = ["Served", "default_blocks", "kubernetes_of", "places_of", "respond", "serve"]

NO_FILES: Mapping[str, str] = {}
MAX_DEPTH = 8  # names resolved for the sake of another: aliases that lead from block to block

Said = Outcome | Forward | Walk | Transfer | Dropped | None
Behind = Outcome | Forward | Transfer | Dropped | None
Ended = Outcome | Forward | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """What a worker answers from: one value, replaced as a whole when zones, settings or files change.

    blocks: as configured, `Forward.block` and `Outcome.block` are indices of it. ports: every port that some block is asked on. logged:
    some block has `log`, so replies must not be sent without a look at `Outcome.block`. addressed: which address a query came to matters.
    """

    settings: DnsSettings
    zones: tuple[Zone, ...]
    blocks: tuple[ServerBlock, ...]
    ports: tuple[int, ...]
    logged: bool
    addressed: bool
    files: Mapping[str, str]
    compiled: tuple[Compiled, ...]
    tables: Mapping[tuple[str, int], Table]
    main: Table | None
    nobody: Zone  # for blocks without `kubernetes`: nothing is in it


def serve(
    settings: DnsSettings, zones: Sequence[Zone], files: Mapping[str, str] = NO_FILES, before: Served | None = None
) -> Served:
    """Compiles everything, or takes over from `before` what has not changed.

    zones: one for each of `kubernetes_of(settings)`, in that order. files: the content of those that `hosts` and `autopath` name, by
    path; one that is not there counts as empty. Raises ValueError, naming the directive, for a value that cannot be compiled.
    """
    if before is not None and before.settings == settings and before.files == files:
        return replace(before, zones=tuple(zones))
    blocks = default_blocks(settings)
    compiled = compile_blocks(settings, files)
    made = tables(compiled)
    ports = tuple(dict.fromkeys(block.port for block in blocks))
    return Served(
        settings=settings,
        zones=tuple(zones),
        blocks=blocks,
        ports=ports,
        logged=any(block.log for block in blocks),
        addressed=any(block.bind or any("{server_ip}" in r.arguments for r in block.rewrites) for block in blocks),
        files=dict(files),
        compiled=compiled,
        tables=made,
        main=made.get(("", settings.port)) or made.get(("", 53)) or next(iter(made.values()), None),
        nobody=empty_zone(replace(settings, blocks=())),
    )


def respond(
    served: Served,
    data: bytes,
    transport: Transport,
    client: Client = ANYBODY,
    turn: int = 0,
    *,
    port: int = 0,
    address: str = "",
    source_port: int = 0,
) -> Said:
    """The reply to the bytes of a query; see the module's text.

    turn: several addresses begin with this one of them (modulo). port: the one the query came to; 0: the settings' own. address: the
    one it came to; source_port: the client's.
    """
    query = wire.parse_query(data)
    if query is None:
        return None
    if isinstance(query, bytes):
        return Outcome(query, rcode=query[3] & 15, block=-1)
    if address or (port and port != served.settings.port):
        port = port or served.settings.port
        table = served.tables.get((address, port)) or served.tables.get(("*" if address else "", port))
    else:
        table = served.main
    block = table.find(query.lowered, query.qtype) if table is not None else None
    if block is None:
        return _refused(query, transport, -1)
    known: Outcome | Forward | Missed | None = None
    zone = served.nobody
    if block.plain and block.zone >= 0 and query.qclass == 1 and query.qtype not in NOT_QUESTIONS:
        zone = served.zones[block.zone]
        known = answer.answer_query(zone, query, transport, turn if block.rotates else 0)
        if isinstance(known, Outcome):
            known = replace(known, block=block.index) if block.index else known
            if not block.walks or not client.heads:
                return known
    arrival = Arrival(
        data=data, transport=transport, client=client, turn=turn, address=address, port=port, source_port=source_port
    )
    if isinstance(known, Outcome | Missed):
        said = known if isinstance(known, Outcome) else _elsewhere(served, block, query, arrival, zone)
        said = replace(said, block=block.index) if block.index else said
        return _walked_from(served, block, query, arrival, said, b"") if block.walks and client.heads else said
    return _within(served, block, query, arrival, 0)


def _refused(query: Query, transport: Transport, block: int) -> Outcome:
    return replace(answer.refusal(query, wire.limit(query, transport)), block=block)


def _within(served: Served, block: Compiled, query: Query, arrival: Arrival, depth: int) -> Said:
    """A block from its first directive on. depth: how many names were resolved for the sake of another until here."""
    transport = arrival.transport
    if block.empty:
        return _refused(query, transport, block.index)
    if query.edns is not None and query.edns.udp_size > block.block.bufsize:
        query = replace(query, edns=replace(query.edns, udp_size=block.block.bufsize))
    if query.qtype == Type.ANY and block.block.any:
        obsolete = finishing.outcome_of(query, chain_links.any_obsoleted(query), transport)
        return replace(obsolete, block=block.index, plugin="any")
    asked, options = query, b""
    steps: tuple[finishing.Step, ...] = ()
    aliases: tuple[Alias, ...] = ()
    if block.rules is not None:
        rewritten = block.rules.apply(query, arrival)
        if rewritten.failed:
            return _stamped(finishing.outcome_of(query, finishing.FAILURE, transport), block)
        asked, steps, aliases, options = rewritten.query, rewritten.steps, rewritten.aliases, rewritten.options
    if block.preferred:
        steps = (*steps, chain_links.sorting(block.preferred))
    if not steps and not aliases and asked is query:
        return _walked(served, block, asked, arrival, depth, options)
    # What comes back is taken apart, so nothing may have been cut off it.
    whole = replace(arrival, transport=Transport.TCP)
    said = _walked(served, block, asked, whole, depth, options)
    if aliases and isinstance(said, Outcome | Forward):
        realias = _Elsewhere(served, asked, aliases, whole, depth)
        said = (
            realias(said.reply)
            if isinstance(said, Outcome)
            else replace(said, then=finishing.and_then(said.then, realias))
        )
    if isinstance(said, Outcome | Forward):
        return finishing.finished(said, query, steps, transport)
    if isinstance(said, Walk):
        return replace(said, after=finishing.After(query, steps, said.after))
    return said


def _walked(served: Served, block: Compiled, query: Query, arrival: Arrival, depth: int, options: bytes) -> Said:
    """`autopath`: the client's search list is walked where the question is the first of one."""
    first = _behind(served, block, query, arrival, depth, options)
    if depth or not isinstance(first, Outcome | Forward):
        return first
    if block.listed is None and not (block.walks and arrival.client.heads):
        return first
    return _walked_from(served, block, query, arrival, first, options)


def _walked_from(
    served: Served, block: Compiled, query: Query, arrival: Arrival, first: Outcome | Forward, options: bytes
) -> Outcome | Forward | Walk:
    """first: what is said without a walk."""
    listed, client = block.listed, arrival.client
    if not names.is_below_any(query.lowered, block.walked):
        return first
    whole = replace(arrival, transport=Transport.TCP)
    port, address = arrival.port or served.settings.port, arrival.address
    table = served.tables.get((address, port)) or served.tables.get(("*" if address else "", port), served.main)

    def ask(name: bytes, qtype: int) -> Ended:
        about = search.about(query, name, qtype)
        # A name of another block (a stub domain) is that block's, as it is when the client asks for it.
        other = table.find(about.lowered, qtype) if table is not None else block
        if other is None or other is block:
            said: Said = _behind(served, block, about, whole, 1, options)
        else:
            said = _within(served, other, about, whole, 1)
        return said if isinstance(said, Outcome | Forward) else None

    if listed is None:
        return search.intercept(query, client, first, ask, arrival.transport)
    at = len(query.lowered) - len(listed.suffixes[0])
    if at < 0 or not names.is_below(query.lowered, listed.suffixes[0]):
        return first
    return search.walk(query, at, listed, first, ask, arrival.transport)


def _behind(served: Served, block: Compiled, query: Query, arrival: Arrival, depth: int, options: bytes) -> Behind:
    """`acl` and what comes behind it, for the final name."""
    events: tuple[str, ...] = ()
    if block.access is not None:
        action, event = block.access.decide(query, arrival.client)
        if action is AclAction.DROP:
            return Dropped(block.index, event)
        if action is not AclAction.ALLOW:
            refused = finishing.outcome_of(query, chain_links.denied(action), arrival.transport)
            return _stamped(replace(refused, events=(event,), plugin="acl"), block)
        events = (event,)
    if query.qclass != 1 or query.qtype in (Type.TKEY, Type.TSIG, Type.OPT):
        return _refused(query, arrival.transport, block.index)
    if not block.block.minimal:
        said = _answered(served, block, query, arrival, depth)
    else:
        said = _answered(served, block, query, replace(arrival, transport=Transport.TCP), depth)
        if isinstance(said, Outcome | Forward):
            said = finishing.finished(said, query, (finishing.without_extras,), arrival.transport)
    if options and isinstance(said, Forward):
        said = replace(said, options=options, single=True)  # an upstream may answer by them
    if events and isinstance(said, Outcome | Forward):
        said = replace(said, events=(*events, *said.events))
    return _stamped(said, block)


def _stamped(said: Behind, block: Compiled) -> Behind:
    """The outcome with its block's number, and whether it depends on who asks."""
    if isinstance(said, Outcome) and (said.block != block.index or block.personal):
        return replace(said, block=block.index, personal=said.personal or block.personal)
    if isinstance(said, Forward) and block.personal:
        return replace(said, personal=True)
    return said


def _answered(
    served: Served, block: Compiled, query: Query, arrival: Arrival, depth: int
) -> Outcome | Forward | Transfer | None:
    """The directives that answer, from `template` to `whoami`."""
    transport = arrival.transport
    if block.templates is not None:
        made = block.templates.respond(query, arrival)
        if made is not None:
            outcome: Outcome | Forward = finishing.outcome_of(query, made.message, transport)
            if made.alias:
                outcome = _followed(served, query, made.alias, made.message.answer, arrival, depth)
            outcome = replace(outcome, events=(made.event,)) if made.event else outcome
            outcome = replace(outcome, plugin="template") if isinstance(outcome, Outcome) else outcome
            return replace(outcome, personal=True, single=True) if made.personal else outcome
    zone = served.zones[block.zone] if block.zone >= 0 else served.nobody
    if query.qtype in (Type.AXFR, Type.IXFR):
        return _transferred(block, zone, query, arrival)
    turn = arrival.turn if block.rotates else 0
    if block.hosts is not None:
        said = block.hosts.respond(query)
        if said is not None:
            return chain_links.from_hosts(query, said, transport, turn)
    if block.external is not None:
        outside = external.answer_external(block.external, zone, query, transport, turn)
        if isinstance(outside, Outcome):
            return outside
        if isinstance(outside, Forward):
            return _followed(served, query, outside.name, outside.prefix, arrival, depth)
    if block.zone >= 0:
        known = answer.answer_query(zone, query, transport, turn)
        if isinstance(known, Outcome):
            return known
        if isinstance(known, Forward):
            return _followed(served, query, known.name, known.prefix, arrival, depth)
    return _elsewhere(served, block, query, arrival, zone)


def _transferred(block: Compiled, zone: Zone, query: Query, arrival: Arrival) -> Outcome | Transfer:
    """`transfer`: a whole zone, for those who may have it."""
    for zones, allowed in block.transfers:
        if names.is_below_any(query.lowered, zones) and (allowed is None or arrival.client.packed in allowed):
            said = transfer.transfer(zone, query, arrival.data, arrival.transport)
            if not isinstance(said, Missed):
                return said
    return _refused(query, arrival.transport, block.index)


def _followed(
    served: Served,
    query: Query,
    target: bytes,
    prefix: Sequence[bytes | Record],
    arrival: Arrival,
    depth: int,
    *,
    instead_of: finishing.Message | None = None,
) -> Outcome | Forward:
    """The records of `target`, resolved by the whole server, behind the CNAMEs that lead there; instead_of: see `finishing`."""
    port, address = arrival.port or served.settings.port, arrival.address
    table = served.tables.get((address, port)) or served.tables.get(("*" if address else "", port), served.main)
    about = search.about(query, target, query.qtype)
    block = table.find(about.lowered, about.qtype) if table is not None else None
    if block is None or depth >= MAX_DEPTH:
        return finishing.outcome_of(query, finishing.FAILURE, arrival.transport)
    said = _within(served, block, about, replace(arrival, transport=Transport.TCP), depth + 1)
    if not isinstance(said, Outcome | Forward):
        return finishing.outcome_of(query, finishing.FAILURE, arrival.transport)
    finished = [item for item in prefix if isinstance(item, bytes)]
    if isinstance(said, Forward) and said.after is None and said.then is None and not said.prefix and finished:
        return replace(said, query=query, prefix=tuple(finished))  # the ordinary external name
    records = finishing.prefix_records(query, finished) or tuple(item for item in prefix if isinstance(item, Record))
    finished_reply = finishing.finished(
        said, query, (finishing.following(records, instead_of=instead_of),), arrival.transport
    )
    # It depends on more than the one Service that its last part is made from.
    return replace(finished_reply, owner=b"", turns=1) if isinstance(finished_reply, Outcome) else finished_reply


@dataclass(frozen=True, slots=True)
class _Elsewhere:
    """`rewrite cname` on a reply that is there now: where a CNAME leads is changed, and what is there is looked up. Fits `Forward.then`."""

    served: Served
    query: Query
    aliases: tuple[Alias, ...]
    arrival: Arrival
    depth: int

    def __call__(self, reply: bytes) -> Outcome | Forward:
        outcome = Outcome(reply, b"", self.query, reply[3] & 15)
        try:
            message = finishing.disassemble(reply)
        except Malformed:
            return outcome
        for at, item in enumerate(message.answer):
            target = chain_links.new_target(item, self.aliases)
            if target:
                kept = (*message.answer[:at], replace(item, rdata=target))
                return _followed(
                    self.served, self.query, target.lower(), kept, self.arrival, self.depth, instead_of=message
                )
        return outcome


def _elsewhere(served: Served, block: Compiled, query: Query, arrival: Arrival, zone: Zone) -> Outcome | Forward:
    """A name that nobody of this block knows: special names, upstream, and at last `whoami`."""
    first = block.forward_for(query.lowered)
    if not chain_links.is_served_specially(query.lowered, block, zone, first):
        special = answer.special_name(zone, query, wire.limit(query, arrival.transport))
        if special is not None:
            return special
    if first >= 0:
        return Forward(query, query.lowered, query.qtype, block=block.index, first=first)
    if block.block.whoami:
        outcome = finishing.outcome_of(query, chain_links.whoami(query, arrival), arrival.transport)
        return replace(outcome, plugin="whoami", personal=True, single=True)
    return finishing.outcome_of(query, finishing.FAILURE, arrival.transport)
