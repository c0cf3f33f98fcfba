"""Server blocks, compiled: everything of a Corefile that costs time is done here, once, and not for a query.

In: settings (with a Corefile's blocks, or the one block that the settings' own fields make), and the content of the files that directives
name. Out: `Compiled` blocks and the tables that choose one of them by port and longest zone. What must not happen here: looking at a query
other than to choose its block.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kproxy.dns import names
from kproxy.dns.acl import AccessList
from kproxy.dns.blocks import Autopath, Cache, Errors, Kubernetes, LoadBalance, Policy, ServerBlock, Transfer
from kproxy.dns.blocks import Forward as ForwardDirective
from kproxy.dns.clients import Networks, SearchList
from kproxy.dns.directives import directive_of
from kproxy.dns.external import ExternalZones, compile_external
from kproxy.dns.hosts import HostTable
from kproxy.dns.rewrite import Rules
from kproxy.dns.search import ALWAYS_LAST
from kproxy.dns.settings import DnsSettings
from kproxy.dns.template import Templates
from kproxy.dns.wire import MAX_UDP

_DS = 43


def default_blocks(settings: DnsSettings) -> tuple[ServerBlock, ...]:
    """The blocks of a configuration: a Corefile's, or the one that says what the settings' own fields say."""
    if settings.blocks:
        return settings.blocks
    return (
        ServerBlock(
            zones=(".",),
            port=settings.port,
            errors=Errors(),
            loadbalance=LoadBalance(),
            autopath=Autopath() if settings.search_path else None,
            cache=Cache(
                success_entries=settings.forward_cache_entries,
                success_ttl_s=settings.forward_cache_ttl_s,
                denial_entries=settings.forward_cache_entries,
                denial_ttl_s=settings.forward_cache_ttl_s,
                stale_s=settings.forward_stale_s,  # upstream is asked first; what it said before is better than nothing
                stale_verify=True,
                stale_verify_timeout_s=1.8,  # RFC 8767 section 5
                stale_ttl_s=30,
            ),
            kubernetes=directive_of(settings),
            loop=True,
            forwards=(
                ForwardDirective(
                    to=settings.upstreams or settings.resolv_conf,
                    policy=Policy.SEQUENTIAL,  # as the list of a resolv.conf is meant
                    read_timeout_s=settings.forward_attempt_s,
                ),
            ),
        ),
    )


def kubernetes_of(settings: DnsSettings) -> tuple[Kubernetes, ...]:
    """The distinct `kubernetes` directives, in the order of their blocks, which is that of the zones that `chain.serve` wants."""
    found = (block.kubernetes for block in default_blocks(settings))
    return tuple(dict.fromkeys(directive for directive in found if directive is not None))


def places_of(settings: DnsSettings) -> tuple[tuple[str, ...], ...]:
    """The sets of networks that replies depend on (`acl`): what `Clients` needs so that a client's `view` tells them apart."""
    rules = [rule.networks for block in default_blocks(settings) for acl in block.acl for rule in acl.rules]
    return tuple(dict.fromkeys(networks for networks in rules if networks))


@dataclass(frozen=True, slots=True, kw_only=True)
class Compiled:
    """One block. index: in the configuration. zone: which of the zones its `kubernetes` is; -1: it has none. plain: it has nothing that
    comes before `kubernetes` but a walk along the client's search list. personal: replies depend on who asks. silent: no directive answers.
    """

    index: int
    block: ServerBlock
    zones: tuple[bytes, ...]
    zone: int
    plain: bool
    personal: bool
    empty: bool
    rotates: bool
    walks: bool
    walked: tuple[bytes, ...] = ()  # zones of `autopath`
    listed: SearchList | None = None  # of `autopath FILE`
    rules: Rules | None = None
    access: AccessList | None = None
    templates: Templates | None = None
    transfers: tuple[
        tuple[tuple[bytes, ...], Networks | None], ...
    ] = ()  # zones, and who may have them; None: everybody
    external: ExternalZones | None = None
    hosts: HostTable | None = None
    preferred: tuple[Networks, ...] = ()
    forwards: tuple[tuple[bytes, tuple[bytes, ...]], ...] = ()  # origin and exceptions of each `forward`

    def forward_for(self, lowered: bytes) -> int:
        """The first `forward` that a name goes to, -1 for none."""
        for index, (origin, excepted) in enumerate(self.forwards):
            if names.is_below(lowered, origin) and not names.is_below_any(lowered, excepted):
                return index
        return -1


class Table:
    """The blocks that are asked at one port (and one address, where a block says `bind`)."""

    def __init__(self, blocks: Sequence[Compiled]) -> None:
        self._by_zone = {zone: block for block in blocks for zone in block.zones}
        root = self._by_zone.get(b"\0")
        self.only = root if len(self._by_zone) == 1 else None

    def find(self, lowered: bytes, qtype: int) -> Compiled | None:
        """The block of the longest zone a name lies in; for DS the one of the shortest, which is the parent's if that is ours, too."""
        if self.only is not None:
            return self.only
        found, at = None, 0
        while lowered[at]:
            block = self._by_zone.get(lowered[at:])
            if block is not None:
                if qtype != _DS or block.empty:
                    return block
                found = block
            at += lowered[at] + 1
        return found or self._by_zone.get(b"\0")


def tables(blocks: Sequence[Compiled]) -> dict[tuple[str, int], Table]:
    """Tables by address and port. Besides addresses that some block binds to there is `*` for every other one, and "" for none known.

    Who binds to a link is taken to be asked everywhere: which addresses a link has is not known here, and nobody else listens on them.
    """
    bound = {
        c.index: tuple(word for word in c.block.bind if ":" in word or word.replace(".", "").isdigit()) for c in blocks
    }
    found: dict[tuple[str, int], Table] = {}
    for port in {compiled.block.port for compiled in blocks}:
        for address in {"", "*", *(address for words in bound.values() for address in words)}:
            here = [
                c
                for c in blocks
                if c.block.port == port and (not address or not bound[c.index] or address in bound[c.index])
            ]
            if here:
                found[(address, port)] = Table(here)
    return found


def compile_blocks(settings: DnsSettings, files: Mapping[str, str]) -> tuple[Compiled, ...]:
    """Every block, compiled. Raises ValueError naming the directive that cannot be."""
    directives = list(kubernetes_of(settings))
    blocks = default_blocks(settings)
    return tuple(_compiled(index, block, directives, files) for index, block in enumerate(blocks))


def _compiled(index: int, block: ServerBlock, directives: list[Kubernetes], files: Mapping[str, str]) -> Compiled:
    balance = block.loadbalance
    autopath = block.autopath
    before = (
        block.any,
        block.rewrites,
        block.acl,
        block.minimal,
        block.templates,
        block.transfers,
        block.hosts,
        block.external,
    )
    answering = (
        block.autopath,
        block.kubernetes,
        block.forwards,
        block.whoami,
        balance,
        block.errors,
        block.log,
        block.cache,
        block.loop,
    )
    templates = Templates(block.templates, block.zones) if block.templates else None
    listed = _search_list(files.get(autopath.source, "")) if autopath and not autopath.source.startswith("@") else None
    preferred = tuple(Networks((text,)) for text in balance.prefer) if balance is not None else ()
    return Compiled(
        index=index,
        block=block,
        zones=names.zones(block.zones),
        zone=directives.index(block.kubernetes) if block.kubernetes is not None else -1,
        plain=not any(before) and not preferred and block.bufsize >= MAX_UDP and listed is None,
        personal=bool(block.acl),
        empty=not any(before) and not any(answering),
        rotates=balance is not None and not preferred,
        walks=autopath is not None and listed is None,
        walked=names.zones(autopath.zones or block.zones) if autopath is not None else (),
        listed=listed,
        rules=Rules(block.rewrites) if block.rewrites else None,
        access=AccessList(block.acl, block.zones) if block.acl else None,
        templates=templates,
        transfers=tuple(_transfer(transfer, block.zones) for transfer in block.transfers),
        external=compile_external(block.external, block.zones) if block.external is not None else None,
        hosts=HostTable(block.hosts, files.get(block.hosts.file, ""), block.zones) if block.hosts is not None else None,
        preferred=preferred,
        forwards=tuple((names.encode(f.origin).lower(), names.zones(f.excepted)) for f in block.forwards),
    )


def _transfer(directive: Transfer, zones: tuple[str, ...]) -> tuple[tuple[bytes, ...], Networks | None]:
    everybody = "*" in directive.to
    return names.zones(directive.zones or zones), None if everybody else Networks(directive.to)


def _search_list(text: str) -> SearchList | None:
    """The search list of a resolv.conf; the last `search` or `domain` line counts, and the name itself comes at the end."""
    suffixes: list[bytes] = []
    for line in text.splitlines()[:1000]:
        words = line.split()
        if words[:1] in (["search"], ["domain"]):
            suffixes = []
            for word in words[1:]:
                try:
                    suffixes.append(names.encode(word).lower())
                except ValueError:
                    continue
    return SearchList(tuple(suffixes), ALWAYS_LAST) if suffixes else None
