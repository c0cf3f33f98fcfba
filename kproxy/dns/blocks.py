"""What a Corefile says, as frozen values: server blocks and the directives inside them, with CoreDNS's meaning and defaults.

In: nothing but values; `corefile` makes them from text. Out: what controller and workers share, inside DnsSettings, as JSON. What must not
happen here: reading text, files or the environment.

Zones and names are kept as text, without trailing dot but for the root, which is `.`; whoever matches compiles them once. `fallthrough` is
None where it is off and names where it is on: `.` alone means every name. Times are seconds. Defaults are those of CoreDNS v1.14.7.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class PodRecords(Enum):
    """Which names below `pod.<zone>` exist; the value is CoreDNS's word."""

    DISABLED = "disabled"
    INSECURE = "insecure"  # any well-formed dashed address in an existing namespace: kubeadm's default
    VERIFIED = "verified"  # only addresses that a pod of that namespace has


@dataclass(frozen=True, slots=True, kw_only=True)
class Kubernetes:
    """`kubernetes`: the zones made from the API. The first forward zone is the primary one, which PTR targets lie in."""

    zones: tuple[str, ...] = ("cluster.local",)  # names, or networks such as 10.96.0.0/16 for reverse zones
    namespaces: tuple[str, ...] = ()  # the only ones that exist; empty: all
    namespace_labels: str = ""  # label selector on Namespaces
    labels: str = ""  # label selector on Services
    pods: PodRecords = PodRecords.DISABLED
    endpoint_pod_names: bool = False
    ttl: int = 5  # 0-3600
    no_endpoints: bool = False
    fallthrough: tuple[str, ...] | None = None  # on name errors only
    ignore_empty_service: bool = False
    multicluster: tuple[str, ...] = ()
    zonal: bool = False
    startup_timeout_s: float = 5.0


class Policy(Enum):
    """How `forward` chooses among its upstreams."""

    RANDOM = "random"
    ROUND_ROBIN = "round_robin"
    SEQUENTIAL = "sequential"


@dataclass(frozen=True, slots=True, kw_only=True)
class Forward:
    """`forward FROM TO…`: names below `origin` are asked at `to`."""

    origin: str = "."
    # IP[:port], [IP]:port, tls://IP[%SERVERNAME][:port], or a resolv.conf's path, which has a slash in it
    to: tuple[str, ...] = ()
    excepted: tuple[str, ...] = ()  # names this instance does not forward
    force_tcp: bool = False
    prefer_udp: bool = False
    policy: Policy = Policy.RANDOM
    max_fails: int = 2  # failed probes before an upstream is down; 0: never
    health_check_s: float = 0.5
    health_recursion: bool = True  # RD in probes; `no_rec` clears it
    health_domain: str = "."
    expire_s: float = 10.0  # idle connections are kept this long
    max_age_s: float = 0.0  # connections older than this are not used again; 0: any age
    max_idle_connections: int = 0  # kept for each upstream; 0: no limit
    max_concurrent: int = 0  # above it REFUSED; 0: no limit
    max_connect_attempts: int = 0  # 0: twice the number of upstreams
    read_timeout_s: float = 2.0
    next_rcodes: tuple[str, ...] = ()  # these answers pass the query on to the next `forward` of the block
    next_on_nodata: bool = False
    failover_rcodes: tuple[str, ...] = ()  # these answers make the next upstream be asked
    failfast: bool = False  # `failfast_all_unhealthy_upstreams`: SERVFAIL at once when all are down
    tls_cert: str = ""
    tls_key: str = ""
    tls_ca: str = ""
    tls_servername: str = ""
    source_address: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cache:
    """`cache`: answers of what comes behind it, bounded in number and time. The cluster's own zone is never cached here, nor need be."""

    zones: tuple[str, ...] = ()  # empty: the block's
    success_entries: int = 9984
    success_ttl_s: int = 3600
    success_min_ttl_s: int = 5
    denial_entries: int = 9984
    denial_ttl_s: int = 1800
    denial_min_ttl_s: int = 5
    prefetch_amount: int = 0  # refetch names seen this often …; 0: off
    prefetch_within_s: float = 60.0  # … with gaps shorter than this …
    prefetch_percent: int = 10  # … when less than this share of the TTL is left
    stale_s: float = 0.0  # how long expired answers are served; 0: not at all
    stale_verify: bool = False  # true: the upstream is asked first
    stale_verify_timeout_s: float = 0.0  # 0: as long as an answer takes
    stale_ttl_s: int = 0
    stale_recheck_s: float = 0.0  # a failed refresh of an expired answer is not tried again for so long
    prefer_positive: bool = False  # an expired positive answer goes before a fresh denial or SERVFAIL
    servfail_s: float = 5.0
    disable_success: tuple[str, ...] | None = None  # zones without; `.`: all
    disable_denial: tuple[str, ...] | None = None
    keep_ttl: bool = False


@dataclass(frozen=True, slots=True)
class HostLine:
    """One line of `hosts`: an address and its names."""

    address: str
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Hosts:
    """`hosts [FILE] [ZONES…]`: addresses from a file in /etc/hosts form and from inline lines."""

    file: str = "/etc/hosts"
    zones: tuple[str, ...] = ()  # empty: the block's
    lines: tuple[HostLine, ...] = ()
    ttl: int = 3600
    reload_s: float = 5.0  # 0: never
    no_reverse: bool = False
    fallthrough: tuple[str, ...] | None = None
    fallthrough_unsupported: bool = False  # also on to the next directive for types that are neither A, AAAA nor PTR


@dataclass(frozen=True, slots=True)
class AnswerRewrite:
    """`answer name|value FROM TO`: what is rewritten in answers, as a regular expression; or `answer auto`, which has no patterns."""

    what: str  # name, value, auto
    pattern: str = ""
    to: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rewrite:
    """`rewrite`: one rule. The question is restored in the reply, whatever happened to it.

    Names are as CoreDNS makes them: lower case with the dot at the end, pieces of names too (so `prefix api-` looks for `api-.`); but for
    patterns of match regex, and for cname other than exact.
    """

    what: str  # name, type, class, ttl, rcode, cname, edns0
    match: str = "exact"  # exact, prefix, suffix, substring, regex
    pattern: str = ""
    to: str = ""  # of ttl: LEAST-MOST, both seconds
    go_on: bool = False  # `continue`: later rules see the result
    answers: tuple[AnswerRewrite, ...] = ()
    # edns0: local|nsid|subnet, append|replace|set|unset, then what was written, at last perhaps `revert`; rcode: the old code and the new
    # one, each a name or a number.
    arguments: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Template:
    """`template CLASS TYPE [ZONES…]`. Records are Go text templates with one record each."""

    qclass: str = "IN"
    qtype: str = "ANY"
    zones: tuple[str, ...] = ()
    matches: tuple[str, ...] = ()  # regular expressions over the question's name; empty: every name
    answers: tuple[str, ...] = ()
    additionals: tuple[str, ...] = ()
    authorities: tuple[str, ...] = ()
    rcode: str = "NOERROR"
    extended_error: tuple[int, str] | None = None
    fallthrough: tuple[str, ...] | None = None


class AclAction(Enum):
    """What `acl` does with a query."""

    ALLOW = "allow"
    BLOCK = "block"  # REFUSED
    FILTER = "filter"  # NOERROR without records
    DROP = "drop"  # silence


@dataclass(frozen=True, slots=True, kw_only=True)
class AclRule:
    """One line of `acl`."""

    action: AclAction
    types: tuple[str, ...] = ()  # empty: every type
    networks: tuple[str, ...] = ()  # empty: everybody


@dataclass(frozen=True, slots=True, kw_only=True)
class Acl:
    """`acl [ZONES…]`: the first rule that fits decides; without one the query goes on."""

    zones: tuple[str, ...] = ()
    rules: tuple[AclRule, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Autopath:
    """`autopath [ZONES…] @kubernetes | RESOLV-CONF`: the search list is walked here. source: `@kubernetes` or a file's path."""

    zones: tuple[str, ...] = ()
    source: str = "@kubernetes"


@dataclass(frozen=True, slots=True, kw_only=True)
class External:
    """`k8s_external [ZONES…]`: load-balancer and external addresses of Services by name."""

    zones: tuple[str, ...] = ()
    apex: str = "dns"
    ttl: int = 5
    headless: bool = False
    fallthrough: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Transfer:
    """`transfer [ZONES…] { to … }`: who may have a whole zone. to: addresses, networks or `*`."""

    zones: tuple[str, ...] = ()
    to: tuple[str, ...] = ()
    source: str = ""  # address that notifications come from


@dataclass(frozen=True, slots=True, kw_only=True)
class Log:
    """`log [NAMES…] [FORMAT]`. classes: success, denial, error, all."""

    zones: tuple[str, ...] = ()
    format: str = "{common}"
    classes: tuple[str, ...] = ("all",)


@dataclass(frozen=True, slots=True, kw_only=True)
class Consolidate:
    """One `consolidate` of `errors`: messages that fit are counted for `period_s` and told as one."""

    period_s: float
    pattern: str  # regular expression
    level: str = "error"  # warning, error, info, debug
    show_first: bool = False  # the first of a period is told at once


@dataclass(frozen=True, slots=True, kw_only=True)
class Errors:
    """`errors`."""

    stacktrace: bool = False
    consolidate: tuple[Consolidate, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadBalance:
    """`loadbalance`: turns the order of addresses. prefer: networks whose addresses come first."""

    policy: str = "round_robin"
    prefer: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerBlock:
    """One server block: the zones it answers for, where, and with what. None or empty: the directive is not there.

    Directives run in CoreDNS's fixed order, not the file's: bufsize, errors, log, any, loadbalance, rewrite, autopath, acl, cache, minimal,
    template, transfer, hosts, k8s_external, kubernetes, loop, forward, whoami.
    """

    zones: tuple[str, ...] = (".",)
    port: int = 53
    bind: tuple[str, ...] = ()  # addresses or names of links; empty: where this node's DNS listens
    bind_except: tuple[str, ...] = ()  # addresses or names of links that `bind` does not mean
    bufsize: int = 1232
    errors: Errors | None = None
    log: tuple[Log, ...] = ()
    any: bool = False
    loadbalance: LoadBalance | None = None
    rewrites: tuple[Rewrite, ...] = ()
    autopath: Autopath | None = None
    acl: tuple[Acl, ...] = ()
    cache: Cache | None = None
    minimal: bool = False
    templates: tuple[Template, ...] = ()
    transfers: tuple[Transfer, ...] = ()
    hosts: Hosts | None = None
    external: External | None = None
    kubernetes: Kubernetes | None = None
    loop: bool = False
    forwards: tuple[Forward, ...] = ()
    whoami: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Pages:
    """What of a Corefile concerns the whole process: pages over HTTP and reloading. "": off."""

    health: str = ""  # `health`: address of /health, `:8080` when it says none
    lameduck_s: float = 0.0  # go on answering for this long after the signal to end
    ready: str = ""  # `ready`: `:8181`
    ready_continuously: bool = True
    prometheus: tuple[str, ...] = ()  # `prometheus`: `localhost:9153`
    reload_s: float = 0.0  # 0: the file is not looked at again
    reload_jitter_s: float = 15.0


NO_PAGES = Pages()


@dataclass(frozen=True, slots=True, kw_only=True)
class Corefile:
    """A whole Corefile that was understood. warnings: what was read and has no effect here, with its place."""

    blocks: tuple[ServerBlock, ...]
    pages: Pages = NO_PAGES
    warnings: tuple[str, ...] = ()
