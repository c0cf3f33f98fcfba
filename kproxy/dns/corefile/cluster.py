"""The directives that make zones of the cluster's objects: `kubernetes`, `k8s_external`, `autopath`, `transfer`.

In: a `Cursor` over the directive's words, and the block's zones. Out: the value in `blocks`, or a Mistake. Options are read in the same
order and with the same bounds as CoreDNS v1.14.7's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from kproxy.dns import selector
from kproxy.dns.blocks import Autopath, External, Kubernetes, PodRecords, Transfer
from kproxy.dns.corefile import values
from kproxy.dns.corefile.cursor import Cursor
from kproxy.dns.corefile.place import Mistake, Token, shown
from kproxy.dns.corefile.zones import is_reverse, zones

_OPTIONS = (
    "endpoint", "tls", "kubeconfig", "apiserver_qps", "apiserver_burst", "apiserver_max_inflight", "namespaces", "namespace_labels",
    "labels", "pods", "endpoint_pod_names", "ttl", "noendpoints", "fallthrough", "ignore", "multicluster", "zonal", "startup_timeout",
)  # fmt: skip
_API = "kproxy reaches the API server as its own configuration says (clientConnection)"
_GONE = {
    "resyncperiod": "watches are not resynced by the clock",
    "upstream": "targets of CNAME records are always resolved through the whole server",
}


def fallthrough(cursor: Cursor) -> tuple[str, ...]:
    """The zones of `fallthrough`; `.` for all names."""
    return zones(cursor.arguments()) or (".",)


def read_kubernetes(cursor: Cursor, block: Sequence[str]) -> Kubernetes:
    """`kubernetes [ZONES…] { … }`, once in a block."""
    cursor.next()
    name = cursor.token
    own = zones(cursor.arguments(), block)
    if all(is_reverse(zone) for zone in own):
        raise Mistake(name, "kubernetes needs a zone that is not for reverse lookups, such as cluster.local")
    made = Kubernetes(zones=own)
    for option in cursor.options():
        made = _kubernetes_option(made, cursor, option)
    made = replace(made, namespaces=tuple(dict.fromkeys(made.namespaces)))
    cursor.end()
    if made.namespaces and made.namespace_labels:
        raise Mistake(name, "namespaces and namespace_labels exclude each other: keep one of them")
    for zone in made.multicluster:
        if zone not in own:
            raise Mistake(
                name, f"multicluster names {zone}, which is no zone of this kubernetes ({', '.join(own)}): add it there"
            )
    if made.zonal and made.no_endpoints:
        raise Mistake(name, "zonal needs endpoints: remove noendpoints")
    return made


def _kubernetes_option(made: Kubernetes, cursor: Cursor, option: Token) -> Kubernetes:
    match option.text:
        case "pods":
            return replace(made, pods=_pods(cursor.single("disabled, insecure or verified")))
        case "namespaces":
            found = cursor.several("names of namespaces")
            return replace(made, namespaces=(*made.namespaces, *(word.text for word in found)))
        case "labels":
            return replace(made, labels=_selector(cursor))
        case "namespace_labels":
            return replace(made, namespace_labels=_selector(cursor))
        case "endpoint_pod_names":
            cursor.none()
            return replace(made, endpoint_pod_names=True)
        case "ttl":
            return replace(made, ttl=ttl(cursor))
        case "noendpoints":
            cursor.none()
            return replace(made, no_endpoints=True)
        case "zonal":
            cursor.none()
            return replace(made, zonal=True)
        case "fallthrough":
            return replace(made, fallthrough=fallthrough(cursor))
        case "ignore":
            what = cursor.arguments()
            if what and what[0].text != "empty_service":
                raise Mistake(what[0], f"{shown(what[0].text)} cannot be ignored; only empty_service can")
            return replace(made, ignore_empty_service=bool(what) or made.ignore_empty_service)
        case "multicluster":
            return replace(made, multicluster=zones(cursor.arguments()))
        case "startup_timeout":
            found = cursor.several("a duration such as 5s")
            return replace(made, startup_timeout_s=max(0.0, values.seconds(found[0], "startup_timeout", low=None)))
    _without_effect(cursor, option)
    return made


def _without_effect(cursor: Cursor, option: Token) -> None:
    """Options about the API server, read as CoreDNS reads them; and those of older releases, which it refuses by now."""
    match option.text:
        case "endpoint":
            cursor.several("the API server's URL")
        case "tls":
            if len(cursor.arguments()) != 3:
                raise Mistake(option, "tls takes three arguments: certificate, key, authority")
        case "kubeconfig":
            cursor.several("a file, and perhaps a context", most=2)
        case "apiserver_qps":
            word = cursor.single("queries per second, 0 or more")
            if not values.is_float(word.text):
                raise Mistake(word, f"{shown(word.text)} is not a number from 0; apiserver_qps is one")
        case "apiserver_burst" | "apiserver_max_inflight":
            values.whole(cursor.single("a number from 0"), option.text, low=0)
        case "resyncperiod" | "upstream":
            cursor.arguments()
            cursor.note(option, f"{option.text} has no effect: {_GONE[option.text]}")
            return
        case _:
            raise cursor.unknown(option, _OPTIONS)
    cursor.note(option, f"{option.text} has no effect: {_API}")


def _pods(word: Token) -> PodRecords:
    try:
        return PodRecords(word.text)
    except ValueError:
        raise Mistake(word, f"pods is disabled, insecure or verified, not {shown(word.text)}") from None


def _selector(cursor: Cursor) -> str:
    found = cursor.several("a label selector such as app in (web)")
    text = " ".join(word.text for word in found)
    try:
        parsed = selector.parse(text)
        if any(requirement.operator in ("greater", "less") for requirement in parsed.requirements):
            raise ValueError("the API compares numbers in other places only")
    except ValueError as error:
        raise Mistake(found[0], f"{shown(text)} is no label selector: {error}") from None
    return text


def ttl(cursor: Cursor) -> int:
    """`ttl SECONDS`, 0 to 3600; CoreDNS looks at the first argument only."""
    return values.whole(cursor.several("seconds from 0 to 3600")[0], "ttl", 0, 3600)


def read_external(cursor: Cursor, block: Sequence[str]) -> External:
    """`k8s_external [ZONES…] { … }`; several in a block are one, the last word on everything counts."""
    made = External()
    while cursor.next():
        made = replace(made, zones=zones(cursor.arguments(), block))
        for option in cursor.options():
            match option.text:
                case "ttl":
                    made = replace(made, ttl=ttl(cursor))
                case "apex":
                    made = replace(made, apex=cursor.several("a label such as dns")[0].text.lower())
                case "headless":
                    made = replace(made, headless=True)
                case "fallthrough":
                    made = replace(made, fallthrough=fallthrough(cursor))
                case _:
                    raise cursor.unknown(option, ("apex", "fallthrough", "headless", "ttl"))
    return made


def read_autopath(cursor: Cursor, block: Sequence[str]) -> Autopath:
    """`autopath [ZONES…] RESOLV-CONF | @kubernetes`; of several in a block the last one counts."""
    made = Autopath()
    while cursor.next():
        words = cursor.several("@kubernetes or a resolv.conf's path")
        source = words[-1]
        if source.text.startswith("@") and source.text != "@kubernetes":
            raise Mistake(source, f"{shown(source.text)} knows no search lists; @kubernetes does")
        made = Autopath(zones=zones(words[:-1], block), source=source.text)
    return made


def read_transfers(cursor: Cursor, block: Sequence[str]) -> tuple[Transfer, ...]:
    """`transfer [ZONES…] { to ADDRESS… ; source ADDRESS }`, any number of them."""
    found = []
    while cursor.next():
        name = cursor.token
        own = zones(cursor.arguments(), block)
        to: list[str] = []
        source = ""
        for option in cursor.options():
            if option.text == "to":
                to += [_receiver(word) for word in cursor.several("addresses, or * for everybody")]
            elif option.text == "source":
                word = cursor.single("an IP address")
                if source:
                    raise Mistake(word, "source was given above")
                source = values.address(word.text)
                if not source:
                    raise Mistake(word, f"{shown(word.text)} is not an IP address")
            else:
                raise cursor.unknown(option, ("to", "source"))
        if not to:
            raise Mistake(name, "transfer needs a line that says to whom: to ADDRESS…, or to *")
        found.append(Transfer(zones=own, to=tuple(to), source=source))
    return tuple(found)


def _receiver(word: Token) -> str:
    """Who may have the zone. A port would count for notifications, which are not sent."""
    if word.text == "*":
        return "*"
    cut = values.split_host_port(word.text)
    host = cut[0] if cut is not None else word.text
    found = values.address(host.rpartition("%")[0] or host)
    if not found:
        raise Mistake(word, f"{shown(word.text)} is not an IP address; to takes addresses and *")
    return found
