"""A whole Corefile → `blocks.Corefile`: every directive has its reader here, and what only several of them together can get wrong is found.

In: the text, its file's name, the environment, and who reads imported files. Out: the value with all warnings, or CorefileError with all
mistakes that one reading can find: one for each directive of each block, and what ended the reading. What must not happen here: opening
files, looking at this machine (which links there are, whether upstreams answer).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from kproxy.dns.blocks import Corefile, Pages, ServerBlock
from kproxy.dns.corefile.answering import (
    read_acls,
    read_bufsize,
    read_hosts,
    read_loadbalance,
    read_templates,
    switch,
)
from kproxy.dns.corefile.caching import read_cache
from kproxy.dns.corefile.cluster import read_autopath, read_external, read_kubernetes, read_transfers
from kproxy.dns.corefile.cursor import Cursor
from kproxy.dns.corefile.forwarding import read_forwards
from kproxy.dns.corefile.grammar import Block, Reader, read_blocks
from kproxy.dns.corefile.place import CorefileError, Mistake, Token, shown
from kproxy.dns.corefile.rewriting import read_rewrites
from kproxy.dns.corefile.serving import (
    Bind,
    Health,
    Ready,
    Reload,
    read_bind,
    read_errors,
    read_health,
    read_logs,
    read_prometheus,
    read_ready,
    read_reload,
)
from kproxy.dns.corefile.zones import DNS_PORT, read_address

# Name of the directive → reader and field of ServerBlock; those of _PAGES and `bind` have no field of that name.
_READERS: Mapping[str, tuple[Callable[[Cursor, Sequence[str]], Any], str]] = {
    "acl": (read_acls, "acl"),
    "any": (switch(), "any"),
    "autopath": (read_autopath, "autopath"),
    "bind": (read_bind, ""),
    "bufsize": (read_bufsize, "bufsize"),
    "cache": (read_cache, "cache"),
    "errors": (read_errors, "errors"),
    "forward": (read_forwards, "forwards"),
    "health": (read_health, ""),
    "hosts": (read_hosts, "hosts"),
    "k8s_external": (read_external, "external"),
    "kubernetes": (read_kubernetes, "kubernetes"),
    "loadbalance": (read_loadbalance, "loadbalance"),
    "log": (read_logs, "log"),
    "loop": (switch(once=True), "loop"),
    "minimal": (switch(), "minimal"),
    "prometheus": (read_prometheus, ""),
    "ready": (read_ready, ""),
    "reload": (read_reload, ""),
    "rewrite": (read_rewrites, "rewrites"),
    "template": (read_templates, "templates"),
    "transfer": (read_transfers, "transfers"),
    "whoami": (switch(), "whoami"),
}
_WITHOUT_EFFECT = {
    "cancel": "every question has its own deadline here",
    "debug": "the log's verbosity is a setting of kproxy (-v)",
    "metadata": "nothing here reads metadata",
    "multisocket": "there is an answering process for each core anyway (dns.workers)",
    "pprof": "there is no profiler in the daemon",
    "trace": "there is no tracing; kproxy dig says what was asked and why",
}
# CoreDNS knows these, too.
_REFUSED = frozenset(
    "root geoip proxyproto quic grpc_server https https3 timeouts nsid shed dnstap local dns64 chaos tsig header dnssec tls route53 azure"  # noqa: SIM905
    " clouddns file auto secondary etcd grpc erratic on sign view nomad".split()
)
_GONE = {
    "proxy": "it is called forward by now: forward . ADDRESS…",
    "federation": "it went with Kubernetes' federation; remove it",
    "upstream": "it is not needed any more; remove it",
}


def parse(text: str, file: str, environment: Mapping[str, str], read: Reader) -> Corefile:
    """What a Corefile says. file: its name, for messages and for imports beside it. read: see `grammar.Reader`.

    Raises CorefileError.
    """
    parsed = read_blocks(text, file, environment, read, _check_name)
    gathering = _Gathering(file)
    gathering.mistakes += parsed.mistakes
    gathering.notes += map(str, parsed.notes)
    for block in parsed.blocks:
        gathering.take(block)
    if not parsed.blocks and not gathering.mistakes:
        gathering.mistakes.append(
            Mistake(
                Token("", file, 1, 1),
                "holds no server block; the smallest useful one is .:53 { … forward . /etc/resolv.conf … }",
            )
        )
    if gathering.mistakes:
        raise CorefileError(gathering.mistakes)
    return Corefile(blocks=tuple(gathering.blocks), pages=gathering.pages, warnings=tuple(gathering.notes))


def _check_name(name: Token) -> None:
    if name.text in _READERS or name.text in _WITHOUT_EFFECT:
        return
    if name.text in _GONE:
        raise Mistake(name, f"the directive {name.text} is gone: {_GONE[name.text]}")
    if name.text in _REFUSED:
        raise Mistake(
            name,
            f"kproxy does not have the directive {name.text}: remove it, or let CoreDNS serve this zone and forward to it",
        )
    raise Mistake(name, f"{shown(name.text)} is no directive; those are {', '.join(sorted(_READERS))}")


@dataclass(slots=True)
class _Gathering:
    """All blocks so far, what is wrong, and who has which zone."""

    file: str
    blocks: list[ServerBlock] = field(default_factory=list)
    pages: Pages = field(default_factory=Pages)
    mistakes: list[Mistake] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    owners: dict[tuple[str, int], list[tuple[str, str]]] = field(default_factory=dict)  # addresses and places

    def note(self, token: Token, text: str) -> None:
        self.notes.append(f"{token.where}: {text}")

    def take(self, block: Block) -> None:
        """Reads one block. What is wrong with it goes to `mistakes`."""
        ports = self._ports(block)
        zones = tuple(zone for of_port in ports.values() for zone in of_port)
        fields: dict[str, Any] = {}
        for name, words in block.directives.items():
            try:
                self._directive(name, words, zones, fields)
            except Mistake as mistake:
                self.mistakes.append(mistake)
        if "external" in fields and "kubernetes" not in fields and "kubernetes" not in block.directives:
            first = block.directives["k8s_external"][0]
            self.mistakes.append(Mistake(first, "k8s_external needs kubernetes in the same server block"))
        bind: Bind = fields.pop("bind", Bind((), ()))
        places = tuple(place for place in bind.to if place not in bind.without)
        for port, own in ports.items():
            self._claim(block.addresses, own, port, places)
            made = ServerBlock(zones=own, port=port, bind=places, bind_except=bind.without, **fields)
            self.blocks.append(made)

    def _ports(self, block: Block) -> dict[int, tuple[str, ...]]:
        """The block's zones by port: CoreDNS makes a server of each."""
        found: dict[int, list[str]] = {}
        for word in block.addresses:
            try:
                address = read_address(word.text)
                if address.scheme != "dns":
                    raise ValueError(f"{address.scheme}:// is not served, only plain DNS is; remove the scheme")
                if not (address.port == -1 or 0 <= address.port < 65536):
                    raise ValueError(f"{address.port} is not a port")
            except ValueError as error:
                self.mistakes.append(Mistake(word, f"{shown(word.text)}: {error}"))
                continue
            port = DNS_PORT if address.port == -1 else address.port
            found.setdefault(port, []).extend(address.zones)
        return {port: tuple(zones) for port, zones in found.items()}

    def _claim(self, words: Sequence[Token], zones: Sequence[str], port: int, places: Sequence[str]) -> None:
        """Each zone on each port and address has one block."""
        for zone in zones:
            taken = self.owners.setdefault((zone, port), [])
            for place in places or ("",):
                for other, where in taken:
                    if other == place or "" in (other, place):
                        what = f"the zone {zone} on port {port} is in two server blocks, or twice in one: see {where}"
                        self.mistakes.append(Mistake(words[0], what))
                        return
                taken.append((place, words[0].where))

    def _directive(self, name: str, words: Sequence[Token], zones: Sequence[str], fields: dict[str, Any]) -> None:
        if name in _WITHOUT_EFFECT:
            self.note(words[0], f"{name} has no effect: {_WITHOUT_EFFECT[name]}")
        if name not in _READERS:
            return
        read, target = _READERS[name]
        value = read(Cursor(words, self.note), zones)
        if target:
            fields[target] = value
        elif isinstance(value, Bind):
            fields["bind"] = value
        else:
            self._page(words[0], value)

    def _page(self, name: Token, value: Health | Ready | Reload | str) -> None:
        """Pages are the process's: of several blocks' the first counts, but for metrics, which may have several addresses."""
        pages = self.pages
        match value:
            case Health():
                if pages.health and pages.health != value.address:
                    self.note(name, f"there is one page for health, at {pages.health}: {value.address} is not served")
                self.pages = replace(
                    pages, health=pages.health or value.address, lameduck_s=max(pages.lameduck_s, value.lameduck_s)
                )
            case Ready():
                if pages.ready and pages.ready != value.address:
                    self.note(name, f"there is one page for readiness, at {pages.ready}: {value.address} is not served")
                self.pages = replace(pages, ready=pages.ready or value.address, ready_continuously=value.continuously)
            case Reload():
                self.pages = replace(pages, reload_s=value.interval_s, reload_jitter_s=value.jitter_s)
            case str():
                self.pages = replace(pages, prometheus=tuple(dict.fromkeys((*pages.prometheus, value))))
