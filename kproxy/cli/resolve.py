"""`kproxy resolve`: what the cluster's DNS would say about a name, candidate by candidate, and why.

In: manifests and a name. Out: every attempt of the resolver's walk with its answer and the reason for it. Needs neither cluster nor root:
files → snapshot → zone → `answer()`, the very function that the workers run.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import click

from kproxy.cli.check_corefile import read_corefile
from kproxy.cli.options import output_option
from kproxy.cli.terminal import plain
from kproxy.dns import chain, names
from kproxy.dns.blocks import PodRecords
from kproxy.dns.chain import Served
from kproxy.dns.directives import zone_settings
from kproxy.dns.files import at_first
from kproxy.dns.selector import keys_of
from kproxy.dns.settings import DnsSettings
from kproxy.dns.text import type_number
from kproxy.dns.zones import compile_zones
from kproxy.errors import ConfigError, ExitCode
from kproxy.explain.resolution import FOUND, Attempt, attempt
from kproxy.model.events import Applied
from kproxy.model.objects import Decoded, Namespace, key_of
from kproxy.model.snapshot import fold
from kproxy.watch.manifests import describe, load, snapshot_of

NDOTS = 5  # what the kubelet writes into a pod's resolv.conf


@click.command("resolve", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("name")
@click.argument("rest", metavar="[TYPE] FILE…", nargs=-1, required=True)
@click.option(
    "--namespace", "-n", metavar="NS", default="", help="Ask as a pod of this namespace: its search list, ndots:5."
)
@click.option("--zone", metavar="NAME", default="cluster.local", show_default=True, help="The cluster's domain.")
@click.option("--ttl", type=click.IntRange(0, 3600), default=5, show_default=True, help="Seconds.")
@click.option("--pods", type=click.Choice([m.value for m in PodRecords]), default="insecure", show_default=True,
    help="Whether names like 10-244-0-5.NS.pod exist.")  # fmt: skip
@click.option(
    "--corefile",
    metavar="FILE",
    default="",
    help="A Corefile, or a manifest with one; it says zone, TTL and pods instead.",
)
@output_option
def command(
    name: str, rest: Sequence[str], namespace: str, zone: str, ttl: int, pods: str, corefile: str, output: str
) -> None:
    """The DNS answer for manifests, without cluster or root; exit code 1 when there is none.

    \b
    NAME is whole unless --namespace is given; an address means its reverse name. TYPE is A when left out.

    \b
    Examples:
      kproxy resolve web.default.svc.cluster.local cluster.yaml
      kproxy resolve web --namespace default cluster.yaml
      kproxy resolve _http._tcp.web.default.svc.cluster.local SRV cluster.yaml -o json
      kproxy resolve 10.96.0.10 cluster.yaml
      kproxy resolve web.shop.example.com --corefile Corefile cluster.yaml
    """
    qname, qtype, files = _asked(name, rest)
    try:
        settings = _settings(corefile) if corefile else DnsSettings(zone=zone, ttl=ttl, pods=PodRecords(pods))
        flat = zone_settings(settings)
        zone = flat[0].zone if flat else zone
        loaded = load(files, keys_of([text for one in flat for text in (one.labels, one.namespace_labels)]))
        snapshot = snapshot_of(loaded)
        if namespace:  # a pod asks from there, so it exists
            asking = Namespace(name=namespace)
            present = key_of(asking).name in snapshot.namespaces  # with its labels
            snapshot = snapshot if present else fold(snapshot, [Applied(Decoded(key=key_of(asking), object=asking))])
        zones = compile_zones(snapshot, settings, serial=1)
        served = chain.serve(settings, zones, at_first(settings.blocks, {}))
        candidates = [names.encode(c) for c in _candidates(qname, namespace, zone)]
    except ValueError as error:
        raise ConfigError(str(error), where="NAME") from error
    for problem in (*loaded.problems, *(f"Service {k}: {v}" for k, v in _problems(served))):
        click.echo(f"kproxy: {plain(problem)}", err=True)
    if remark := describe(loaded):
        click.echo(f"kproxy: {remark}", err=True)
    number = type_number(qtype)
    assert number is not None
    attempts = _walk(served, candidates, number)
    found = bool(attempts[-1].answer)
    if output == "json":
        told = {"name": name, "type": qtype, "namespace": namespace, "resolved": found}
        click.echo(json.dumps(told | {"attempts": [asdict(a) for a in attempts]}, indent=2))
    else:
        click.echo("\n".join(map(plain, _lines(attempts, qtype))))
        if not namespace and not found and "." not in qname.rstrip("."):
            click.echo("kproxy: NAME is taken as whole; --namespace NS asks as a pod of NS would", err=True)
    sys.exit(ExitCode.OK if found else ExitCode.FINDINGS)


def _settings(corefile: str) -> DnsSettings:
    """What a Corefile says, asked at the port of its first block. Raises ConfigError."""
    blocks = read_corefile(corefile).blocks
    return DnsSettings(blocks=blocks, port=blocks[0].port) if blocks else DnsSettings()


def _asked(name: str, rest: Sequence[str]) -> tuple[str, str, list[str]]:
    """Name, type and files. Raises ConfigError."""
    files, qtype = list(rest), ""
    if type_number(files[0]) is not None and not Path(files[0]).exists():
        qtype = files.pop(0).upper()
    if not files:
        raise ConfigError("no file to look into", where="FILE")
    try:
        return names.decode(names.reverse(names.pack(name.strip("[]")))), qtype or "PTR", files
    except ValueError:
        return name, qtype or "A", files


def _candidates(name: str, namespace: str, zone: str) -> list[str]:
    """The names a resolver tries: a pod's search list (as the kubelet writes it) first, or last for a name with many dots."""
    if name.endswith(".") or not namespace:
        return [name]
    searched = [f"{name}.{suffix}" for suffix in (f"{namespace}.svc.{zone}", f"svc.{zone}", zone)]
    return [name, *searched] if name.count(".") >= NDOTS else [*searched, name]


def _walk(served: Served, candidates: Sequence[bytes], qtype: int) -> list[Attempt]:
    """Asks one candidate after the other until one has an answer, as glibc does."""
    attempts = []
    for wire_name in candidates:
        attempts.append(attempt(served, wire_name, qtype))
        if attempts[-1].rcode in FOUND:
            break
    return attempts


def _problems(served: Served) -> list[tuple[str, str]]:
    found = {key: text for zone in served.zones for key, text in zone.problems.items()}
    return [("/".join(part.decode() for part in reversed(names.split(key))), text) for key, text in found.items()]


def _lines(attempts: Sequence[Attempt], qtype: str) -> list[str]:
    lines = []
    for one in attempts:
        lines.append(f"{one.name} {qtype}: {one.rcode}")
        lines.append(f"    because {one.reason}")
        lines += [f"    {record}" for record in one.answer]
        lines += [f"    also {record}" for record in one.additional]
    return lines
