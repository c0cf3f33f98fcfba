"""The directives of a Corefile, in CoreDNS's fixed order, as one pure function: which block a query belongs to, and what that block says.

In: what a worker answers from (`Served`), the bytes of a query, how it came, who sent it. Out: an `Outcome` (a finished reply), a
`Forward` (upstream has to be asked: `block` says whose `forward` directives, `first` which of them to begin with), a `Walk` (the
client's search list is walked here, and some candidate has to be asked upstream), a `Transfer` (many messages, TCP only), or None for
silence. It never raises, whatever the bytes. What must not happen here: sockets, files, time, randomness, caching.

    any, loadbalance, rewrite, autopath, acl, minimal, template, transfer, hosts, k8s_external, kubernetes, forward, whoami

Everything that costs time is compiled once by `serve`: a block that has only kubernetes, loadbalance and forward is answered as fast as its
zone alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kproxy.dns import answer
from kproxy.dns.answer import Forward, Outcome, Transfer
from kproxy.dns.blocks import Autopath, Cache, Errors, Kubernetes, LoadBalance, ServerBlock
from kproxy.dns.blocks import Forward as ForwardDirective
from kproxy.dns.clients import ANYBODY, Client
from kproxy.dns.directives import directive_of
from kproxy.dns.search import Walk
from kproxy.dns.settings import DnsSettings
from kproxy.dns.wire import Transport
from kproxy.dns.zone import Zone

NO_FILES: Mapping[str, str] = {}


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
            ),
            kubernetes=directive_of(settings),
            loop=True,
            forwards=(ForwardDirective(to=settings.upstreams or settings.resolv_conf),),
        ),
    )


def kubernetes_of(settings: DnsSettings) -> tuple[Kubernetes, ...]:
    """The distinct `kubernetes` directives, in the order in which `serve` wants their zones."""
    found = (block.kubernetes for block in default_blocks(settings))
    return tuple(dict.fromkeys(directive for directive in found if directive is not None))


def places_of(settings: DnsSettings) -> tuple[tuple[str, ...], ...]:
    """The sets of networks that replies depend on (`acl`, `transfer`): what `Clients` needs so that a client's `view` tells them apart."""
    blocks = default_blocks(settings)
    rules = [rule.networks for block in blocks for acl in block.acl for rule in acl.rules if rule.networks]
    return tuple(dict.fromkeys(rules))


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """What a worker answers from: one value, replaced as a whole when zones, settings or files change.

    blocks: as configured, `Forward.block` and `Outcome.block` are indices of it. ports: every port that some block is asked on. logged:
    some block has `log`, so replies must not be sent without a look at `Outcome.block`.
    """

    settings: DnsSettings
    zones: tuple[Zone, ...]
    blocks: tuple[ServerBlock, ...]
    ports: tuple[int, ...]
    logged: bool


def serve(settings: DnsSettings, zones: Sequence[Zone], files: Mapping[str, str] = NO_FILES) -> Served:
    """Compiles everything. zones: one for each of `kubernetes_of(settings)`, in that order. files: the content of the files that `hosts`
    and `autopath` name, by path; one that is not there counts as empty.

    Raises ValueError, naming the directive, for a value that cannot be compiled (a regular expression, a template, a network).
    """
    blocks = default_blocks(settings)
    ports = tuple(dict.fromkeys(block.port for block in blocks))
    return Served(
        settings=settings, zones=tuple(zones), blocks=blocks, ports=ports, logged=any(block.log for block in blocks)
    )


def respond(
    served: Served, data: bytes, transport: Transport, client: Client = ANYBODY, turn: int = 0, *, port: int = 0
) -> Outcome | Forward | Walk | Transfer | None:
    """The reply to the bytes of a query; see the module's text.

    turn: several addresses begin with this one of them (modulo). port: the one the query came to; 0: the settings' own.
    """
    return answer.respond(served.zones[0], data, transport, turn)
