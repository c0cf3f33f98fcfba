"""`kproxy status`: how the kproxy of this node is.

In: the daemon's state page. Out: a page for people or `StatusPage` as JSON; exit code 0 when it is healthy and ready, 1 when it is not,
3 when there is no daemon here.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator

import click

from kproxy.cli.daemon import find, run_dir_option
from kproxy.cli.options import output_option
from kproxy.cli.terminal import console, lasting, plain, table
from kproxy.errors import ExitCode, UnsupportedError
from kproxy.telemetry.statepage import DnsPage, RelayPage, StatusPage, status_bytes

_ASK_AGAIN_S = 0.2
_DEFAULT_WAIT_S = 60.0
_SHOWN_PROBLEMS = 20
_SHOWN_PODS = 3


@click.command("status", context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--wait", "wait_s", metavar="[SECONDS]", type=click.FloatRange(min=0), is_flag=False, flag_value=_DEFAULT_WAIT_S,
    help=f"Wait until it is ready, at most this long ({_DEFAULT_WAIT_S:g} s).",
)  # fmt: skip
@run_dir_option
@output_option
def command(wait_s: float | None, run_dir: str, output: str) -> None:
    """How the kproxy of this node is: mode, watches, syncs, drift, DNS, problems.

    Exit code 0 when it is healthy and ready, 1 when it is not, 3 when no kproxy runs here.

    \b
    Examples:
      kproxy status
      kproxy status --wait 30 && echo ready
      kproxy status -o json | jq .sync
    """
    page = _wait(run_dir, wait_s) if wait_s is not None else find(run_dir)[1]
    if output == "json":
        click.echo(status_bytes(page))
    else:
        _show(page)
    sys.exit(ExitCode.OK if _is_well(page) else ExitCode.FINDINGS)


def _is_well(page: StatusPage) -> bool:
    return page.health.healthy and page.health.ready


def _wait(run_dir: str, wait_s: float) -> StatusPage:
    """The page once the daemon is well, or the last one when time is up; progress goes to stderr. Raises UnsupportedError."""
    end = time.monotonic() + wait_s
    said = ""
    while True:
        page: StatusPage | None = None
        try:
            page = find(run_dir)[1]
            news = "" if _is_well(page) else page.health.waiting_for or "a change that does not reach the kernel"
        except UnsupportedError:
            if time.monotonic() >= end:
                raise
            news = f"a kproxy in {run_dir}"
        if page is not None and (not news or time.monotonic() >= end):
            return page
        if news != said:
            click.echo(f"kproxy: waiting for {plain(news)}", err=True)
            said = news
        time.sleep(_ASK_AGAIN_S)


def _show(page: StatusPage) -> None:
    out = console()
    role = "writes the rules" if page.writer else "stands by: another kproxy writes the rules"
    out.print(f"kproxy {plain(page.version)} on {plain(page.node)}: {_state(page)}, process {page.pid}, {role}")
    out.print()
    for name, text in _facts(page):
        out.print(f"{name:14} {plain(text)}")
    rows = (
        (w.kind, _watch_state(w.synced, w.waits_s), lasting(w.age_s), w.relists, w.failures, w.last_error)
        for w in page.watches
    )
    out.print()
    out.print(table(("watch", "state", "heard", "relists", "failures", "last error"), rows))
    if page.problems:
        out.print(f"{len(page.problems)} problems")
        for problem in page.problems[:_SHOWN_PROBLEMS]:
            out.print(f"  {plain(problem)}")
        if len(page.problems) > _SHOWN_PROBLEMS:
            out.print(f"  … and {len(page.problems) - _SHOWN_PROBLEMS} more (-o json shows all)")


def _state(page: StatusPage) -> str:
    if not page.health.ready:
        return f"NOT READY, waiting for {plain(page.health.waiting_for)}"
    return "ready and healthy" if page.health.healthy else "NOT HEALTHY, a change has waited too long"


def _facts(page: StatusPage) -> Iterator[tuple[str, str]]:
    yield "mode", page.mode
    for number, text in enumerate(page.evidence):
        yield "evidence" if number == 0 else "", text
    yield "API server", page.api_server or "none yet"
    sync = page.sync
    last = f"{lasting(sync.age_s)} ago, took {sync.duration_s * 1000:.0f} ms" if sync.age_s is not None else "none yet"
    yield "last sync", f"{last}; {sync.count} went well, {sync.failures} failed"
    if sync.waiting_s is not None:
        yield "waiting", f"a change since {lasting(sync.waiting_s)}"
    if sync.last_error:
        yield "last error", sync.last_error
    what = "rules" if page.relay is None else "destinations"
    yield (
        "serves",
        f"{page.services} Services, {page.endpoint_slices} EndpointSlices: {page.service_ports} Service ports, {page.rules} {what}",
    )
    if page.relay is not None:
        yield from _relay_facts(page.relay)
    drift = page.drift
    if not drift.watched:
        yield "drift", "not looked for"
    elif drift.found:
        yield (
            "drift",
            f"found {drift.found}, mended {drift.mended}; the last one {lasting(drift.age_s)} ago: {drift.last}",
        )
    else:
        yield "drift", "none found"
    if page.dns_enabled:
        held = ", ".join(page.dns_addresses) or "no address held yet"
        yield "DNS", f"{page.dns_workers} workers; {held}"
        yield from _dns_facts(page.dns)
    eligible = (
        "" if page.health.node_eligible else "; this Node is being taken out of service, load balancers are told so"
    )
    yield "up", f"{lasting(page.uptime_s)}{eligible}"


def _relay_facts(relay: RelayPage) -> Iterator[tuple[str, str]]:
    draining = f", {relay.draining} draining" if relay.draining else ""
    ports = f"ports {' and '.join(map(str, relay.ports))}" if relay.ports else "NO PORTS YET: nothing is relayed"
    yield "relay", f"{relay.workers} workers{draining}, {ports}"
    yield (
        "",
        f"{relay.open} open of {relay.connections} connections; {relay.retries} retries, {relay.gave_up} clients refused",
    )
    if relay.kernel_why_not:
        yield "", f"the kernel relays nothing itself: {relay.kernel_why_not}"
    else:
        yield (
            "",
            (
                f"handed over to the kernel {relay.kernel_flows} times, and {relay.kernel_openings} connections opened there, "
                f"on the links of {relay.kernel_links} pods"
            ),
        )
    if relay.shed:
        yield (
            "",
            f"{relay.shed} CONNECTIONS RESET FOR WANT OF ROOM: see userspace.maxConnections and the limit of open files",
        )
    if relay.ejected:
        shown = relay.ejected[:_SHOWN_PROBLEMS]
        more = f" and {len(relay.ejected) - len(shown)} more" if len(relay.ejected) > len(shown) else ""
        yield "", f"left out after failures: {', '.join(shown)}{more}"
    yield "", "see every connection: kproxy observe --flows"


def _dns_facts(dns: DnsPage) -> Iterator[tuple[str, str]]:
    if dns.away_s is not None:
        yield "", f"HANDED TO OTHER NODES for {lasting(dns.away_s)}: nobody answers here"
    elif dns.held_s is not None:
        ended = f", {dns.workers_ended} hanging workers ended" if dns.workers_ended else ""
        yield "", f"held for {lasting(dns.held_s)}, handed to other nodes {dns.handed_back} times{ended}"
    disk = (
        dns.memory_problem or f"on disk {lasting(dns.memory_age_s)} old"
        if dns.memory_age_s is not None
        else "none on disk"
    )
    if dns.from_memory:
        yield "", f"ANSWERS FROM MEMORY: the API has not been heard since the start; zone {disk}"
    elif dns.zone_age_s is not None:
        yield "", f"zone {dns.serial}, changed {lasting(dns.zone_age_s)} ago; {disk} ({dns.memory_bytes // 1024} KiB)"
    yield "", f"{dns.queries} queries, {dns.saved} saved by the search path, {dns.refused} from strangers not answered"
    if dns.kernel_why_not:
        yield "", f"the kernel answers nothing itself: {dns.kernel_why_not}"
    else:
        yield "", f"{dns.kernel_answers} of them answered by the kernel, on the links of {dns.kernel_links} pods"
    if dns.saved_by_pod:
        most = sorted(dns.saved_by_pod.items(), key=lambda one: -one[1])[:_SHOWN_PODS]
        yield "", "most saved to " + ", ".join(f"{pod or 'others'} {saved}" for pod, saved in most)
    for upstream in dns.upstreams:
        probes = f", {upstream.failed_probes} failed probes" if upstream.failed_probes else ""
        loops = ", LEADS BACK TO THIS NODE: left out" if upstream.loops else ""
        yield (
            "",
            f"upstream {upstream.address}: {upstream.answers} answers, {upstream.silences} silences{probes}{loops}",
        )
    yield "", "see every answer: kproxy dns observe"


def _watch_state(synced: bool, waits_s: float) -> str:
    if waits_s:
        return f"trying again, {lasting(waits_s)} between attempts"
    return "synced" if synced else "first list"
