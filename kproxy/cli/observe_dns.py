"""`kproxy dns observe`: the answers that this node's DNS gives, one line each, as they are given.

In: the daemon's state socket. Out: lines for people or JSON, until interrupted or as many as wanted. The workers sample under load and
say how many answers they left out; that goes to standard error. Names come escaped from the workers and are escaped again here.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from difflib import get_close_matches
from urllib.parse import urlencode

import click
import msgspec

from kproxy.cli.daemon import find, run_dir_option
from kproxy.cli.options import output_option
from kproxy.cli.terminal import plain
from kproxy.dns.records import Seen
from kproxy.dns.tally import RCODES
from kproxy.errors import ConfigError, KproxyError, UnsupportedError


class _Gap(msgspec.Struct):
    """How many answers were left out."""

    left_out: int


@click.command("observe", context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--pod", metavar="NS/POD", default="", help="Only what this pod asks.")
@click.option("--rcode", metavar="RCODE", default="", help="Only answers with this code: NXDOMAIN, SERVFAIL, …")
@click.option("--count", "-n", metavar="N", type=click.IntRange(min=1), help="End after so many.")
@run_dir_option
@output_option
def command(pod: str, rcode: str, count: int | None, run_dir: str, output: str) -> None:
    """The answers of this node's DNS, one line each: when, who, what, rcode, how long, and questions saved by the walked search list.

    Ends with Ctrl-C or after --count. Under load answers are sampled; how many were left out is told on standard error.

    \b
    Examples:
      kproxy dns observe
      kproxy dns observe --pod default/client
      kproxy dns observe --rcode NXDOMAIN -n 20 -o json
    """
    code = rcode.upper()
    if code and code not in RCODES.values():
        close = get_close_matches(code, RCODES.values(), n=1)
        raise ConfigError(
            f"{rcode!r} is no response code{f'; did you mean {close[0]}?' if close else ''}", where="--rcode"
        )
    if pod and pod.count("/") != 1:
        raise ConfigError(f"{pod!r} is not NAMESPACE/POD", where="--pod")
    daemon, status = find(run_dir)
    if not status.dns_enabled:
        raise UnsupportedError("the kproxy of this node serves no DNS (dns.enabled: false)")
    shown = 0
    for one in _records(daemon.lines(f"/dns/observe?{urlencode({'pod': pod, 'rcode': code})}")):
        if isinstance(one, _Gap):
            click.echo(f"kproxy: {one.left_out} answers left out", err=True)
            continue
        click.echo(msgspec.json.encode(msgspec.structs.asdict(one)) if output == "json" else plain(line(one)))
        sys.stdout.flush()
        shown += 1
        if shown == count:
            return


def _records(lines: Iterator[bytes]) -> Iterator[Seen | _Gap]:
    for text in lines:
        if not text.strip():
            continue
        try:
            if text.startswith(b'{"left_out"'):
                yield msgspec.json.decode(text, type=_Gap)
            else:
                yield msgspec.json.decode(text, type=Seen)
        except msgspec.MsgspecError as error:
            raise KproxyError(f"the daemon's records are not understood ({error}); is it of this version?") from error


def line(one: Seen) -> str:
    """A record for people."""
    when = f"{time.strftime('%H:%M:%S', time.localtime(one.at))}.{int(one.at * 1000) % 1000:03d}"
    who = one.pod or one.client
    saved = f"  saved {one.saved}" if one.saved else ""
    took = f"{one.duration / 1000:.1f} ms" if one.duration >= 100 else f"{one.duration} us"
    return f"{when}  {who}  {one.name} {one.qtype}  {one.rcode}  {took}  {one.proto}, {one.how}{saved}"
