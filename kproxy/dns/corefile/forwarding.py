"""The directives about other resolvers and what is remembered of them: `forward` and `cache`.

In: a `Cursor` over the directive's words, and the block's zones. Out: the value in `blocks`, or a Mistake; files that upstreams are taken
from are not opened here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from kproxy.dns.blocks import Forward, Policy
from kproxy.dns.corefile import values
from kproxy.dns.corefile.cursor import Cursor
from kproxy.dns.corefile.place import Mistake, Token, shown
from kproxy.dns.corefile.zones import is_domain_name, normal, read_address, split_scheme, zones

MAX_UPSTREAMS = 15
# node-local-dns's own program puts addresses in their place: see `here`.
CLUSTER_DNS, UPSTREAM_SERVERS = "__PILLAR__CLUSTER__DNS__", "__PILLAR__UPSTREAM__SERVERS__"
_OPTIONS = (
    "except", "force_tcp", "prefer_udp", "expire", "max_age", "max_idle_conns", "max_fails", "max_connect_attempts", "read_timeout", "tls",
    "tls_servername", "policy", "health_check", "max_concurrent", "next", "next_on_nodata", "failover", "failfast_all_unhealthy_upstreams",
    "source_address",
)  # fmt: skip


def read_forwards(cursor: Cursor, block: Sequence[str]) -> tuple[Forward, ...]:
    """`forward FROM TO… { … }`, any number of them."""
    del block
    found = []
    while cursor.next():
        name = cursor.token
        origin = _origin(cursor)
        to = cursor.arguments()
        if not to:
            raise Mistake(
                name, "forward needs upstreams behind the zone: addresses, tls:// addresses or a resolv.conf's path"
            )
        made = Forward(origin=origin)
        for option in cursor.options():
            made = _option(made, cursor, option)
        if 0 < made.max_age_s < made.expire_s:
            raise Mistake(name, f"max_age ({made.max_age_s:g}s) must not be less than expire ({made.expire_s:g}s)")
        if len(to) > MAX_UPSTREAMS:
            raise Mistake(to[MAX_UPSTREAMS], f"forward takes at most {MAX_UPSTREAMS} upstreams, not {len(to)}")
        found.append(replace(made, to=tuple(dict.fromkeys(_upstream(word, made.tls_servername) for word in to))))
    return tuple(found)


def _origin(cursor: Cursor) -> str:
    if not cursor.next_argument():
        raise Mistake(cursor.token, "forward needs a zone (. for all names) and upstreams")
    word = cursor.token
    try:
        found = read_address(split_scheme(word.text)[1]).zones
    except ValueError as error:
        raise Mistake(word, f"{shown(word.text)}: {error}") from None
    if len(found) > 1:
        cursor.note(word, f"{shown(word.text)} is several reverse zones, and forward takes the first only: {found[0]}")
    return found[0]


def _upstream(word: Token, tls_servername: str) -> str:
    """A word as it is, once it is known to be an upstream that is served."""
    if word.text in (CLUSTER_DNS, UPSTREAM_SERVERS):
        return word.text
    scheme, rest = split_scheme(word.text)
    if scheme not in ("dns", "tls"):
        raise Mistake(
            word, f"{scheme}:// upstreams are not there; use an address, tls://ADDRESS or a resolv.conf's path"
        )
    if not rest:
        raise Mistake(word, f"{shown(word.text)} lacks an address")
    cut = values.split_host_port(rest)
    host = cut[0] if cut is not None else rest.strip("[]")
    bare, _, zone = host.rpartition("%")
    if values.address(bare or host):
        if cut is not None and not (cut[1].isascii() and cut[1].isdigit() and 0 < int(cut[1][:6]) < 65536):
            raise Mistake(word, f"{shown(cut[1])} is not a port from 1 to 65535")
        if scheme == "tls" and zone and bare and tls_servername:
            raise Mistake(
                word, f"the server's name is given here ({shown(zone)}) and by tls_servername: keep one of them"
            )
        return word.text.removeprefix("dns://")
    if "/" in rest:
        if scheme == "tls":
            raise Mistake(word, "tls:// needs an address, not a file")
        return rest
    raise Mistake(
        word,
        f"{shown(word.text)} is neither an address nor a file's path: names of upstreams are not looked up, give addresses",
    )


def _option(made: Forward, cursor: Cursor, option: Token) -> Forward:
    match option.text:
        case "except":
            return replace(made, excepted=(*made.excepted, *zones(cursor.several("zones"))))
        case "max_fails":
            return replace(made, max_fails=values.unsigned(cursor.argument("a number of failures"), option.text))
        case "max_connect_attempts":
            return replace(made, max_connect_attempts=values.unsigned(cursor.argument("a number"), option.text))
        case "health_check":
            return _health_check(made, cursor)
        case "force_tcp" | "prefer_udp" | "next_on_nodata" | "failfast_all_unhealthy_upstreams":
            return _switch(made, cursor, option)
        case "policy":
            word = cursor.argument("random, round_robin or sequential")
            if word.text not in [policy.value for policy in Policy]:
                raise Mistake(word, f"policy is random, round_robin or sequential, not {shown(word.text)}")
            return replace(made, policy=Policy(word.text))
        case "max_concurrent":
            return replace(made, max_concurrent=values.whole(cursor.argument("a number of queries"), option.text, 0))
        case "max_idle_conns":
            return replace(made, max_idle_connections=values.whole(cursor.argument("a number"), option.text, 0))
        case "expire":
            return replace(made, expire_s=values.seconds(cursor.argument("a duration such as 10s"), option.text))
        case "max_age":
            return replace(made, max_age_s=values.seconds(cursor.argument("a duration such as 1m"), option.text))
        case "read_timeout":
            word = cursor.argument("a duration such as 2s")
            if (found := values.seconds(word, option.text)) <= 0:
                raise Mistake(word, "read_timeout must be more than 0")
            return replace(made, read_timeout_s=found)
        case "next":
            return replace(made, next_rcodes=(*made.next_rcodes, *map(values.rcode, cursor.several("response codes"))))
        case "failover":
            found_codes = cursor.several("response codes")
            for word in found_codes:
                if values.rcode(word) == "NOERROR":
                    raise Mistake(word, "NOERROR is no reason to ask another upstream")
            return replace(made, failover_rcodes=(*made.failover_rcodes, *map(values.rcode, found_codes)))
    return _about_sockets(made, cursor, option)


def _about_sockets(made: Forward, cursor: Cursor, option: Token) -> Forward:
    match option.text:
        case "tls":
            files = cursor.arguments()
            if len(files) > 3:
                raise Mistake(files[3], "tls takes at most three files: certificate, key, authority")
            texts = [word.text for word in files]
            cert, key = texts[:2] if len(texts) > 1 else ("", "")
            return replace(made, tls_cert=cert, tls_key=key, tls_ca=texts[-1] if len(texts) in (1, 3) else "")
        case "tls_servername":
            return replace(made, tls_servername=cursor.argument("the name in the server's certificate").text)
        case "source_address":
            word = cursor.argument("an IP address")
            if not values.address(word.text):
                raise Mistake(word, f"{shown(word.text)} is not an IP address")
            return replace(made, source_address=values.address(word.text))
        case "doh_method":
            word = cursor.argument("POST or GET")
            if word.text not in ("POST", "GET"):
                raise Mistake(word, f"doh_method is POST or GET, not {shown(word.text)}")
            cursor.note(option, "doh_method has no effect: there are no https:// upstreams")
            return made
        case "resolver":
            for word in cursor.several("IP addresses"):
                cut = values.split_host_port(word.text)
                if not values.address(cut[0] if cut is not None else word.text):
                    raise Mistake(word, f"{shown(word.text)} is not an IP address; resolver takes addresses")
            cursor.note(option, "resolver has no effect: upstreams are addresses, and none has to be looked up")
            return made
    raise cursor.unknown(option, _OPTIONS)


def _switch(made: Forward, cursor: Cursor, option: Token) -> Forward:
    if cursor.next_argument():
        raise Mistake(cursor.token, f"{option.text} takes no argument")
    match option.text:
        case "force_tcp":
            return replace(made, force_tcp=True)
        case "prefer_udp":
            return replace(made, prefer_udp=True)
        case "next_on_nodata":
            return replace(made, next_on_nodata=True)
    return replace(made, failfast=True)


def _health_check(made: Forward, cursor: Cursor) -> Forward:
    interval = values.seconds(cursor.argument("a duration such as 500ms"), "health_check")
    recursion, domain = made.health_recursion, "."
    while cursor.next_argument():
        match cursor.text:
            case "no_rec":
                recursion = False
            case "domain":
                word = cursor.argument("the name to ask for")
                if not is_domain_name(word.text):
                    raise Mistake(word, f"{shown(word.text)} is no domain name")
                domain = normal(word.text)
            case text:
                raise Mistake(
                    cursor.token, f"{shown(text)} is no option of health_check; those are no_rec, domain NAME"
                )
    return replace(made, health_check_s=interval, health_recursion=recursion, health_domain=domain)
