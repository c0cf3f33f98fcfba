"""`kproxy explain`: one Service on one node, from its addresses to the rules, with the reason for everything.

In: a Service, and the kproxy that runs here or manifests and a node. Out: a page for people, or JSON. Where it runs live, the kernel is
asked too: which of the rules are there, and how often they matched. The pages are laid out in `explained.py`; every fact in them is made
by the pure modules of `kproxy.explain`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from difflib import get_close_matches

import click

from kproxy.cli.explained import Page, as_json, show
from kproxy.cli.journeys import journeys
from kproxy.cli.options import files_argument, node_options, output_option, read_node, report
from kproxy.cli.planes import PlaneView, plane_of
from kproxy.cli.senders import near
from kproxy.errors import ConfigError, ExitCode
from kproxy.explain.kernel import KernelRules
from kproxy.explain.service import Explanation, explain
from kproxy.model.names import Family, NamespacedName
from kproxy.model.node import node_facts
from kproxy.model.resolve import resolve_with_problems
from kproxy.model.snapshot import Snapshot

_KINDS = ("svc", "service", "services")


@click.command("explain", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("service", metavar="[svc/][NS/]NAME")
@files_argument
@click.option(
    "--from",
    "source",
    metavar="SENDER",
    help="Show the way from here: `node`, `outside`, a pod as ns/name, an address.",
)
@output_option
@node_options
def command(service: str, files: Sequence[str], source: str | None, output: str, **flags: object) -> None:
    """One Service on this node: addresses, endpoints and why each is used or not, the exact rules, where packets go.

    Without a FILE it asks the kproxy that runs here, and the kernel. Exit code 1 when rules of the Service are not in
    the kernel as they should be.

    \b
    Examples:
      kproxy explain default/web
      kproxy explain svc/default/web --from default/client
      kproxy explain web --from outside -o json
      kproxy explain web --node node-1 --from outside cluster.yaml
    """  # fmt: skip
    node = read_node(files, flags)
    resolved = resolve_with_problems(node.snapshot, node.settings)
    plane = plane_of(node, resolved.desired)
    name = _service(service, node.snapshot)
    problems = {*node.problems, *resolved.problems}
    facts = node_facts(node.snapshot, node.settings)
    found = explain(name, node.snapshot, facts, resolved.desired, plane.seen, problems)
    page = Page(
        explanation=found,
        live=node.live.header if node.live is not None else None,
        kernel=_kernel(plane, found) if node.live is not None else {},
        source=source,
        journeys=journeys(found, node, plane.trace, source) if source is not None else (),
    )
    report(node)
    if output == "json":
        click.echo(json.dumps(as_json(page), indent=2))
    else:
        show(page)
    sys.exit(ExitCode.FINDINGS if page.drift else ExitCode.OK)


def _service(text: str, snapshot: Snapshot) -> NamespacedName:
    """The Service that `text` names. Raises ConfigError with what there is instead."""
    parts = text.split("/")
    if len(parts) > 1 and parts[0].lower() in _KINDS:
        parts = parts[1:]
    if len(parts) == 2 and all(parts):
        name = NamespacedName(parts[0], parts[1])
        if name in snapshot.services:
            return name
        raise ConfigError(f"there is no Service {name}{near(str(name), snapshot.services)}", where="SERVICE")
    if len(parts) != 1 or not parts[0]:
        raise ConfigError(f"{text!r} is not svc/NAMESPACE/NAME, NAMESPACE/NAME or NAME", where="SERVICE")
    same = sorted(name for name in snapshot.services if name.name == parts[0])
    wanted = NamespacedName("default", parts[0])
    if wanted in same or len(same) == 1:
        return wanted if wanted in same else same[0]
    if same:
        raise ConfigError(f"several namespaces have it; say which: {', '.join(map(str, same[:10]))}", where="SERVICE")
    alike = get_close_matches(parts[0], {name.name for name in snapshot.services}, n=3)
    close = sorted(str(name) for name in snapshot.services if name.name in alike)[:3]
    hint = f"; did you mean {' or '.join(close)}?" if close else ""
    raise ConfigError(f"there is no Service {parts[0]!r} in any namespace{hint}", where="SERVICE")


def _kernel(plane: PlaneView, found: Explanation) -> dict[Family, KernelRules]:
    """What the kernel holds of the Service's rules, by family."""
    families = dict.fromkeys(port.service_port.family for port in found.ports)
    return plane.kernel(
        {f: [r for port in found.ports if port.service_port.family is f for r in port.rules] for f in families}
    )
