"""`kproxy observe --flows`: the open connections and UDP sessions to Services on this node, with names.

In: the daemon's state socket; in a kernel mode the kernel's table of flows as well. Out: a table, or one JSON object a line. With --watch
the flows that begin and end are told as they do. What must not happen here: a control character of anybody's name on a terminal.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable, Mapping
from urllib.parse import urlencode

import click
import msgspec

from kproxy.cli.daemon import Daemon, find, run_dir_option
from kproxy.cli.kernel_flows import counts_octets, kernel_flows
from kproxy.cli.options import output_option
from kproxy.cli.terminal import console, lasting, octets, plain, table
from kproxy.errors import ConfigError, KproxyError
from kproxy.telemetry.relaypage import PROTOCOLS, SORTS, FlowPage, FlowsHead, Wanted, flows_of_bytes
from kproxy.telemetry.statepage import sockets

_LIMIT = 1000
_KNOWN_FOR_S = 30.0  # Services and pods, while somebody watches
_COLUMNS = (
    "SERVICE",
    "PROTO",
    "CLIENT",
    "VIRTUAL",
    "ENDPOINT",
    "SEEN AS",
    "SENT",
    "RECEIVED",
    "AGE",
    "TRIES",
    "STATE",
    "WORKER",
)
_Ask = Callable[[], tuple[FlowsHead, list[FlowPage]]]


@click.command("observe", context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--flows", is_flag=True, help="Open TCP connections and UDP sessions to Services.")
@click.option("--service", metavar="[NS/]NAME[:PORT]", default="", help="Only to this Service.")
@click.option("--pod", metavar="NS/POD|IP", default="", help="Only from this client: a pod, or an address.")
@click.option("--endpoint", metavar="NS/POD|IP[:PORT]", default="", help="Only to this endpoint.")
@click.option("--protocol", type=click.Choice(PROTOCOLS, case_sensitive=False), help="Only of this protocol.")
@click.option("--sort", type=click.Choice(SORTS), default="age", show_default=True, help="Oldest, or largest, first.")
@click.option(
    "--limit", metavar="N", type=click.IntRange(0, 100_000), default=_LIMIT, show_default=True, help="0: all."
)
@click.option("--watch", is_flag=True, help="Then tell what begins and ends, until Ctrl-C.")
@click.option(
    "--every", metavar="SECONDS", type=click.FloatRange(0.2, 3600), default=1.0, show_default=True, help="With --watch."
)
@click.option("--count", "-n", metavar="N", type=click.IntRange(min=1), help="With --watch: end after so many lines.")
@run_dir_option
@output_option
def command(
    flows: bool,
    protocol: str | None,
    limit: int,
    watch: bool,
    every: float,
    count: int | None,
    run_dir: str,
    output: str,
    **words: str,
) -> None:
    """The open connections and UDP sessions to Services on this node: who, to what, answered by whom, seen as whom, octets, age, tries.

    In mode userspace the relay's workers tell; in a kernel mode it is the kernel's table of flows, which counts octets only with
    net.netfilter.nf_conntrack_acct=1 and ages only with nf_conntrack_timestamp=1. DNS answers: kproxy dns observe.

    \b
    Examples:
      kproxy observe --flows
      kproxy observe --flows --service shop/web --sort octets --limit 20
      kproxy observe --flows --endpoint shop/web-7d9f -o json
      kproxy observe --flows --pod default/client --watch
    """  # fmt: skip
    if not flows:
        raise ConfigError(
            "say what to observe: --flows for connections; for answers of the DNS it is `kproxy dns observe`"
        )
    for name in ("pod", "service"):
        if words[name].count("/") > 1:
            raise ConfigError(f"{words[name]!r} is not NAMESPACE/NAME", where=f"--{name}")
    wanted = Wanted(
        **{n: words[n] for n in ("service", "pod", "endpoint", "sort")}, protocol=(protocol or "").upper(), limit=limit
    )
    daemon, status = find(run_dir)
    others = [Daemon(path) for path in sockets(run_dir) if path != daemon.path]
    if watch:
        _watch(_asker(daemon, others, status.mode, _without_limit(wanted)), every, count, output)
        return
    head, found = _asker(daemon, others, status.mode, wanted)()
    _tell(head, found, output)


def _without_limit(wanted: Wanted) -> Wanted:
    return Wanted(**{name: getattr(wanted, name) for name in ("service", "pod", "endpoint", "protocol", "sort")})


def _asker(daemon: Daemon, others: list[Daemon], mode: str, wanted: Wanted) -> _Ask:
    """Who tells of open flows in this mode. others: further instances on this node."""
    if mode == "userspace":
        return lambda: _relayed(daemon, others, wanted)
    known, asked = daemon.snapshot(), time.monotonic()

    def ask() -> tuple[FlowsHead, list[FlowPage]]:
        nonlocal known, asked
        if time.monotonic() - asked > _KNOWN_FOR_S:
            known, asked = daemon.snapshot(), time.monotonic()
        return kernel_flows(known, mode, wanted, time.time())  # noqa: TID251 - the kernel notes Unix time

    return ask


def _relayed(daemon: Daemon, others: list[Daemon], wanted: Wanted) -> tuple[FlowsHead, list[FlowPage]]:
    """What all workers of this node hold: in an upgrade those of the instance before go on with their connections."""
    query = {name: getattr(wanted, name) for name in ("service", "pod", "endpoint", "protocol", "sort", "limit")}
    page = f"/relay/flows?{urlencode(query)}"
    answers = [flows_of_bytes(daemon.get(page))]
    for other in others:
        with contextlib.suppress(KproxyError, OSError):  # gone, or of another mode
            answers.append(flows_of_bytes(other.get(page)))
    shown, _ = wanted.of(flow for _, flows in answers for flow in flows)
    heads = [head for head, _ in answers]
    told = {name: sum(getattr(head, name) for head in heads) for name in ("open", "told", "matching")}
    return FlowsHead(mode="userspace", shown=len(shown), **told), shown


# For people, and for programs


def _tell(head: FlowsHead, found: list[FlowPage], output: str) -> None:
    if output == "json":
        for flow in found:
            click.echo(_json(msgspec.to_builtins(flow)))
    elif found:
        console().print(table(_COLUMNS, map(_row, found)))
    click.echo(f"kproxy: {_summary(head)}", err=True)
    if head.mode != "userspace" and found and not counts_octets():
        click.echo("kproxy: the kernel counts no octets of flows: sysctl net.netfilter.nf_conntrack_acct=1", err=True)


def _json(flow: Mapping[str, object]) -> str:
    """One line of ASCII: what a terminal would obey is escaped, C1 and directions of writing included."""
    return json.dumps(flow, separators=(",", ":"))


def _summary(head: FlowsHead) -> str:
    """`12 flows`, `12 of 40,000 flows fit, 10 shown`, `20,000 of 90,000 flows were looked at, 12 fit`."""
    some = head.told < head.open
    text = f"{head.told:,} of {head.open:,} flows were looked at" if some else f"{head.open:,} flows"
    if head.matching != head.told:
        text = f"{text}, {head.matching:,} fit" if some else f"{head.matching:,} of {head.open:,} flows fit"
    return text + (f", {head.shown:,} shown" if head.shown != head.matching else "")


def _row(flow: FlowPage) -> tuple[object, ...]:
    return (
        flow.service,
        flow.protocol,
        _who(flow.client_pod, flow.client),
        flow.virtual,
        _who(flow.endpoint_pod, flow.endpoint) or "-",
        flow.source or "-",
        octets(flow.sent),
        octets(flow.received),
        lasting(flow.age_seconds) if flow.age_seconds is not None else "-",
        flow.retries + 1 if flow.endpoint else flow.retries,
        flow.state,
        (f"{flow.worker}, kernel" if flow.in_kernel else flow.worker) if flow.worker else "kernel",
    )


def _who(name: str, address: str) -> str:
    return f"{name} {address}" if name else address


def line(event: str, flow: FlowPage) -> str:
    """A flow on one line: what happened to it, and what it has been so far."""
    age = f", {lasting(flow.age_seconds)}" if flow.age_seconds is not None else ""
    state = f"{flow.state}, " if event != "ended" else ""
    carried = (
        f"{octets(flow.sent)} sent, {octets(flow.received)} received" if flow.sent is not None else "octets not counted"
    )
    tries = f", {flow.retries} tried before" if flow.retries else ""
    to = _who(flow.endpoint_pod, flow.endpoint) or "nobody yet"
    return (
        f"{event:6} {flow.service} {flow.protocol}  {_who(flow.client_pod, flow.client)} -> {flow.virtual} -> {to}  "
        f"{state}{carried}{age}{tries}"
    )


def _watch(ask: _Ask, every: float, count: int | None, output: str) -> None:
    """Tells of flows that are there, then of those that begin and end between two looks; shorter ones are not seen."""
    before: Mapping[tuple[object, ...], FlowPage] = {}
    first, told = True, 0
    while True:
        now = {_identity(flow): flow for flow in ask()[1]}
        news = [("open" if first else "began", flow) for key, flow in now.items() if key not in before]
        news += [("ended", flow) for key, flow in before.items() if key not in now]
        for event, flow in news:
            if output == "json":
                click.echo(_json({"event": event, **msgspec.to_builtins(flow)}))
            else:
                click.echo(plain(line(event, flow)))
            told += 1
            if told == count:
                return
        sys.stdout.flush()
        before, first = now, False
        time.sleep(every)


def _identity(flow: FlowPage) -> tuple[object, ...]:
    return flow.worker, flow.number, flow.protocol, flow.client, flow.virtual
