"""`kproxy dig`: one name as a pod's resolver asks it, attempt by attempt, with what each costs and what would save.

In: a name, a pod, and the kproxy that runs here or manifests. Out: every attempt with rcode, time and reason; exit code 0 when there is an
answer, 1 when there is none, 2 for a wrong word, 3 without a daemon. Live, a worker of this node answers each question as it would answer
that pod; on files, the very functions that the workers run.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from urllib.parse import urlencode

import click

from kproxy.cli.daemon import find, run_dir_option
from kproxy.cli.options import output_option
from kproxy.cli.senders import near
from kproxy.cli.terminal import plain
from kproxy.config.config import DnsConfig
from kproxy.dns import chain, names
from kproxy.dns.clients import ANYBODY, Clients
from kproxy.dns.resolver import ResolverConfig, candidates, pod_config, pod_views, read_config
from kproxy.dns.settings import DnsSettings
from kproxy.dns.text import type_number
from kproxy.dns.zones import compile_zones
from kproxy.errors import ConfigError, ExitCode, UnsupportedError
from kproxy.explain.resolution import FOUND, Attempt, advice, attempt, attempt_of
from kproxy.model.names import NamespacedName
from kproxy.telemetry.dnspage import resolver_of_bytes, told_of_bytes
from kproxy.watch.manifests import describe, load, snapshot_of

# Asks one question; the second value says whether the search list may be walked for the client.
Ask = Callable[[bytes, bool], Attempt]


@dataclass(frozen=True, slots=True, kw_only=True)
class Asker:
    """Who asks and whom. config: the resolv.conf in force; walked: the server walks the list for this client."""

    config: ResolverConfig
    walked: bool
    ask: Ask


@click.command("dig", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("name")
@click.argument("qtype", metavar="[TYPE]", default="")
@click.option("--as-pod", "pod", metavar="NS/POD", default="", help="Ask as this pod: its search list, its place.")
@click.option(
    "-f", "--file", "files", metavar="FILE", multiple=True, help="Manifests to look into, instead of the daemon here."
)
@click.option(
    "--zone", metavar="NAME", default="cluster.local", show_default=True, help="With -f: the cluster's domain."
)
@click.option(
    "--node-resolv-conf", "node_file", metavar="FILE", default="", help="With -f: the node's own resolv.conf."
)
@run_dir_option
@output_option
def command(
    name: str, qtype: str, pod: str, files: Sequence[str], zone: str, node_file: str, run_dir: str, output: str
) -> None:
    """A name as a pod looks it up: every attempt of its search list with rcode, time and reason, and what would save questions.

    \b
    NAME is whole without --as-pod; an address means its reverse name. TYPE is A when left out.
    Exit code 0 when there is an answer, 1 when there is none, 3 when no kproxy runs here.

    \b
    Examples:
      kproxy dig www.example.com --as-pod default/client
      kproxy dig _http._tcp.web SRV --as-pod default/client
      kproxy dig web.default.svc.cluster.local AAAA -o json
      kproxy dig web --as-pod default/client -f cluster.yaml
    """
    qname, kind, number = _question(name, qtype)
    asker = _on_files(pod, files, zone, node_file, number) if files else _live(pod, run_dir, number)
    searches = asker.config.searches if pod else ()
    try:
        wanted = [names.encode(text) for text in candidates(qname, searches, asker.config.ndots)]
    except ValueError as error:
        raise ConfigError(str(error), where="NAME") from error
    attempts: list[Attempt] = []
    for candidate in wanted:
        attempts.append(asker.ask(candidate, False))
        if attempts[-1].rcode in FOUND:
            break
    served = asker.ask(wanted[0], True) if asker.walked and len(attempts) > 1 else None
    hints = advice(qname, attempts, asker.config, walked=asker.walked) if pod else []
    found = attempts[-1].rcode in FOUND
    if output == "json":
        told = {
            "name": name,
            "type": kind,
            "pod": pod,
            "resolved": found,
            "searches": searches,
            "ndots": asker.config.ndots,
        }
        walked = asdict(served) if served is not None else None
        click.echo(
            json.dumps(told | {"attempts": [asdict(a) for a in attempts], "walked": walked, "advice": hints}, indent=2)
        )
    else:
        click.echo("\n".join(map(plain, _lines(attempts, served, hints, kind))))
        if not pod and not found and "." not in qname.rstrip("."):
            click.echo("kproxy: NAME is taken as whole; --as-pod NS/POD asks as that pod would", err=True)
    sys.exit(ExitCode.OK if found else ExitCode.FINDINGS)


def _question(name: str, qtype: str) -> tuple[str, str, int]:
    """Name, type and its number. Raises ConfigError."""
    kind = qtype.upper()
    try:
        name, kind = names.decode(names.reverse(names.pack(name.strip("[]")))), kind or "PTR"
    except ValueError:
        kind = kind or "A"
    number = type_number(kind)
    if number is None:
        close = get_close_matches(kind, ["A", "AAAA", "SRV", "PTR", "CNAME", "TXT", "SOA", "NS", "MX", "HTTPS"], n=1)
        raise ConfigError(f"{qtype!r} is no record type{f'; did you mean {close[0]}?' if close else ''}", where="TYPE")
    return name, kind, number


def _pod_name(text: str) -> NamespacedName:
    namespace, _, name = text.partition("/")
    if not namespace or not name or "/" in name:
        raise ConfigError(f"{text!r} is not NAMESPACE/POD", where="--as-pod")
    return NamespacedName(namespace, name)


def _on_files(pod: str, files: Sequence[str], zone: str, node_file: str, number: int) -> Asker:
    """Asks what the manifests make of it. Raises ConfigError."""
    loaded = load(files)
    snapshot = snapshot_of(loaded)
    defaults = DnsConfig()
    client, config = ANYBODY, ResolverConfig()
    try:
        settings = DnsSettings(
            zone=zone, ttl=defaults.ttl_s, listen=defaults.cluster_dns, own_addresses=defaults.cluster_dns
        )
        served = chain.serve(settings, compile_zones(snapshot, settings, serial=1))
    except ValueError as error:
        raise ConfigError(str(error), where="--zone") from error
    if pod:
        wanted = _pod_name(pod)
        found = snapshot.pods.get(wanted)
        if found is None:
            raise ConfigError(f"no Pod {pod} in the files{near(pod, snapshot.pods)}", where="--as-pod")
        node = read_config(_text_of(node_file))
        config = pod_config(found, node, cluster_dns=defaults.cluster_dns, domain=zone)
        views = pod_views([found], node, cluster_dns=defaults.cluster_dns, domain=zone)
        client = Clients((), views).find(views[0].address) if views else ANYBODY
    for problem in loaded.problems:
        click.echo(f"kproxy: {plain(problem)}", err=True)
    if remark := describe(loaded):
        click.echo(f"kproxy: {remark}", err=True)

    def ask(name: bytes, walk: bool) -> Attempt:
        return replace(attempt(served, name, number, client), reason="") if walk else attempt(served, name, number)

    return Asker(config=config, walked=bool(client.lists), ask=ask)


def _text_of(path: str) -> str:
    if not path:
        return ""
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}", where="--node-resolv-conf") from error


def _live(pod: str, run_dir: str, number: int) -> Asker:
    """Asks a worker of this node. Raises UnsupportedError when there is none, ConfigError for a pod that it does not know."""
    daemon, status = find(run_dir)
    if not status.dns_enabled:
        raise UnsupportedError("the kproxy of this node serves no DNS (dns.enabled: false)")
    config, walked, client = ResolverConfig(), False, ""
    if pod:
        page = resolver_of_bytes(daemon.get(f"/dns/resolver?{urlencode({'pod': str(_pod_name(pod))})}"))
        if not page.found:
            hint = f"; did you mean {' or '.join(page.alike)}?" if page.alike else ""
            raise ConfigError(f"no pod {pod} is known on this node{hint}", where="--as-pod")
        if not page.addresses:
            raise ConfigError(f"pod {pod} has no address yet (status.podIPs)", where="--as-pod")
        config = ResolverConfig(
            nameservers=tuple(page.nameservers), searches=tuple(page.searches), options=tuple(page.options)
        )
        walked, client = page.walked, page.addresses[0]

    def ask(name: bytes, walk: bool) -> Attempt:
        fields = {"name": name.hex(), "type": number, "client": client, "walk": int(walk)}
        told = told_of_bytes(daemon.get(f"/dns/ask?{urlencode(fields)}"))
        if not told.reply:
            return Attempt(name=names.decode(name), rcode="SILENCE", reason="no worker answered", seconds=told.seconds)
        reason = "" if walk else told.reason  # of the first candidate, and the answer may be another one's
        return attempt_of(names.decode(name), bytes.fromhex(told.reply), reason, told.seconds)

    return Asker(config=config, walked=walked, ask=ask)


def _lines(attempts: Sequence[Attempt], served: Attempt | None, hints: Sequence[str], kind: str) -> list[str]:
    lines: list[str] = []
    for one in attempts:
        lines += _told(one, kind)
    if served is not None:
        lines += ["", "as this node answers the pod's first question, with the list walked here:", *_told(served, kind)]
    return [*lines, *([""] if hints else []), *hints]


def _told(one: Attempt, kind: str) -> list[str]:
    took = f"  {one.seconds * 1000:.1f} ms" if one.seconds is not None else ""
    lines = [f"{one.name} {kind}: {one.rcode}{took}"]
    if one.reason:
        lines.append(f"    because {one.reason}")
    lines += [f"    {record}" for record in one.answer]
    return [*lines, *(f"    also {record}" for record in one.additional)]
