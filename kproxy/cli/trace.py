"""`kproxy trace`: where a packet goes, chain by chain, and why.

In: manifests and a node (or the kproxy that runs here), a packet. Out: the hops through the rules that kproxy writes there, in mode
userspace through the relay as well, and all that can become of the packet, with probabilities. On files it needs neither cluster nor root:
files → snapshot → resolve → compile → tracer, all of it pure.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from itertools import groupby

import click

from kproxy.cli.options import NodeView, files_argument, node_options, output_option, read_node, report
from kproxy.cli.planes import plane_of
from kproxy.cli.senders import address_of, canonical, near
from kproxy.cli.terminal import plain
from kproxy.errors import ConfigError
from kproxy.explain.match_iptables import is_local
from kproxy.explain.trace import EVERY_PACKET, Branch, Fate, Hop, KernelView, Origin, Packet, Trace
from kproxy.model.addresses import family_of, of_family
from kproxy.model.names import NamespacedName, Protocol
from kproxy.model.objects import PortSpec, Service
from kproxy.model.resolve import resolve_with_problems
from kproxy.model.snapshot import Snapshot

_PROTOCOLS = "|".join(p.lower for p in Protocol)
_DESTINATION = re.compile(
    rf"(?:\[(?P<six>[0-9a-fA-F:.]+)\]|(?P<host>[^:\[\]]+))(?::(?P<port>[^:/\s]+))?(?:/(?P<protocol>{_PROTOCOLS}))?",
    re.IGNORECASE,
)
_FULLY_SHOWN = 12  # outcomes; a Service of a thousand endpoints has a thousand


@click.command("trace", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("destination", metavar="DEST:PORT[/udp]")
@files_argument
@click.option(
    "--from",
    "source",
    metavar="ADDRESS",
    required=True,
    help="The sender; also `node`, `outside`, or a pod as ns/name.",
)
@click.option("--in-interface", metavar="NAME", default="", help="Where it comes in, for detectors that ask for it.")
@output_option
@node_options
def command(
    destination: str, files: Sequence[str], source: str, in_interface: str, output: str, **flags: object
) -> None:
    """Where a packet goes, chain by chain, and why.

    \b
    DEST is an address, an IPv6 address in brackets, or a Service as namespace/name (its cluster IP is meant).
    PORT is a number, or the name of a Service's port; a Service with one port needs none.
    Without a FILE the rules are those of the kproxy that runs here.

    \b
    Examples:
      kproxy trace --node node-1 --from 10.244.0.5 10.96.0.10:53/udp cluster.yaml
      kproxy trace --node node-1 --from 10.244.0.5 --cluster-cidr 10.244.0.0/16 default/web:80 cluster.yaml
      kproxy trace --node node-1 --from 192.168.200.10 192.168.200.21:30080 cluster.yaml -o json
    """
    node = read_node(files, flags)
    resolved = resolve_with_problems(node.snapshot, node.settings)
    sender = address_of(source, destination.startswith("["), node)
    to, port, protocol = _destination(destination, sender, node.snapshot)
    kernel = KernelView(local_addresses=node.snapshot.local_addresses)
    packet = Packet(
        source=sender,
        destination=to,
        port=port,
        protocol=protocol,
        origin=Origin.LOCAL if is_local(sender, kernel) else Origin.ARRIVES,
        in_interface=in_interface,
    )
    found = plane_of(node, resolved.desired).trace(packet, kernel)
    report(node, resolved.problems)
    if output == "json":
        click.echo(json.dumps({"node": node.settings.name, **found.as_json()}, indent=2))
    else:
        click.echo("\n".join(map(plain, _lines(found, node))))


# What is asked


def _destination(text: str, sender: str, snapshot: Snapshot) -> tuple[str, int, Protocol]:
    """Address, port and protocol that DEST means. Raises ConfigError."""
    found = _DESTINATION.fullmatch(text)
    if found is None:
        raise ConfigError(f"{text!r} is not ADDRESS:PORT, [IPv6]:PORT or namespace/name:PORT, with /udp or /sctp behind it if need be",
        where="DEST")  # fmt: skip
    host, port = found["six"] or found["host"], found["port"] or ""
    protocol = Protocol[found["protocol"].upper()] if found["protocol"] else None
    if "/" in host:
        return _of_service(host, port, protocol, sender, snapshot)
    address = canonical(host, "DEST")
    if family_of(address) is not family_of(sender):
        raise ConfigError(f"{address} and the sender {sender} are of different families", where="DEST")
    return address, _port_number(port), protocol or Protocol.TCP


def _port_number(text: str) -> int:
    if text.isascii() and text.isdigit() and 0 < int(text) < 65536:
        return int(text)
    raise ConfigError(f"{text!r} is not a port number from 1 to 65535" if text else "the port is missing", where="DEST")


def _of_service(
    name: str, port: str, protocol: Protocol | None, sender: str, snapshot: Snapshot
) -> tuple[str, int, Protocol]:
    namespace, _, short = name.partition("/")
    service = snapshot.services.get(NamespacedName(namespace, short))
    if service is None:
        raise ConfigError(f"no Service {name} in the files{near(name, snapshot.services)}", where="DEST")
    addresses = of_family(service.cluster_ips, family_of(sender))
    if not addresses:
        raise ConfigError(f"Service {name} has no {family_of(sender).value} cluster IP", where="DEST")
    if port.isdigit():
        listed = [p.protocol for p in service.ports if p.port == int(port)]
        return addresses[0], _port_number(port), protocol or (listed[0] if listed else Protocol.TCP)
    chosen = _named_port(service, port, protocol)
    return addresses[0], chosen.port, chosen.protocol


def _named_port(service: Service, port: str, protocol: Protocol | None) -> PortSpec:
    fitting = [p for p in service.ports if (not port or p.name == port) and protocol in (None, p.protocol)]
    if len(fitting) == 1:
        return fitting[0]
    has = ", ".join(f"{p.name or 'unnamed'} {p.port}/{p.protocol.lower}" for p in service.ports)
    raise ConfigError(f"say which port of Service {service.name}; it has {has or 'none'}", where="DEST")


# What is answered


def _lines(found: Trace, node: NodeView) -> list[str]:
    packet = found.packet
    how = "sent by the node itself" if packet.origin is Origin.LOCAL else "arriving at the node"
    to = f"[{packet.destination}]" if ":" in packet.destination else packet.destination
    head = f"{packet.source} -> {to}:{packet.port}/{packet.protocol.lower} at {node.settings.name}, {how}"
    lines = [head, *_told(found.hops, "")]
    several = len(found.branches) > 1
    lines += ["", "outcome" if not several else f"{len(found.branches)} outcomes, chosen at random"]
    for branch in found.branches[:_FULLY_SHOWN]:
        share = f"{float(branch.probability):7.2%}  " if several else ""
        alike = _alike_at_the_end(branch, found.branches[0])
        lines += [f"  {share}{_outcome(branch)}", *_told(branch.hops[: len(branch.hops) - alike], "  ")]
        lines += ["    then as in the first outcome"] if alike else []
    if len(found.branches) > _FULLY_SHOWN:
        lines.append(f"  … and {len(found.branches) - _FULLY_SHOWN} more (-o json shows all)")
    return lines


def _alike_at_the_end(branch: Branch, first: Branch) -> int:
    """How many of the last hops of `branch` are those of the first one too, and need not be told again."""
    if branch is first:
        return 0
    pairs = zip(reversed(branch.hops), reversed(first.hops), strict=False)
    return next((i for i, (one, other) in enumerate(pairs) if one != other), min(len(branch.hops), len(first.hops)))


def _told(hops: Sequence[Hop], indent: str) -> list[str]:
    lines: list[str] = []
    for (table, chain), group in groupby(hops, key=lambda hop: (hop.table, hop.chain)):
        if not table:
            lines += [f"{indent}  {chain}: {hop.why}" for hop in group]
            continue
        lines.append(f"{indent}  {table} {chain}")
        for hop in group:
            if hop.rule:
                lines.append(f"{indent}    {'+' if hop.matched else '-'} {hop.rule}")
            if hop.why != EVERY_PACKET:
                lines.append(f"{indent}        {'because ' if hop.matched else 'passed over: '}{hop.why}")
    return lines


def _outcome(branch: Branch) -> str:
    seen = branch.seen_as or ("masqueraded: it sees this node's address" if branch.masqueraded else "source kept")
    match branch.fate:
        case Fate.REACHES:
            return f"reaches {branch.to}, {seen}"
        case Fate.REJECTED:
            return "REJECTED: refused at once (ICMP port unreachable)"
        case Fate.DROPPED:
            return "DROPPED: no answer, the client times out"
        case Fate.UNTOUCHED:
            masqueraded = ", masqueraded" if branch.masqueraded else ""
            return f"goes on to {branch.to} as it was sent{masqueraded}: no Service rule is about it"
