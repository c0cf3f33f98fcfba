"""kproxy's DNS against CoreDNS v1.14.7 (kubeadm's Corefile, and with autopath) and NSD, in the same run: medians, ratios and goals.

    sudo -E "$(which python)" -m tests.bench.bench_coredns                     everything: about 12 minutes
    sudo -E "$(which python)" -m tests.bench.bench_coredns --quick             one turn each, shorter: about 4 minutes
    … --rows rates,flood --repeat 5 -o markdown                                some of it
    … --server kproxy --server CoreDNS --services 1000 --quick                 a look at whether it works

Needs root, dnsperf, nsd, a C compiler, and what `tests/peers/build` makes. It puts itself below namespaces of its own (network, mounts,
processes), so no packet leaves, no rule of the machine changes, and whatever ends it ends everything it started. etcd's data lies in
memory (300 MB for 10,000 Services).

Groups of rows (each figure is the median of the turns; its least and most stand beside it):
  rates   one core answers (one worker of kproxy, GOMAXPROCS=1, one process of NSD, all pinned to the first core), dnsperf or client.c
          on the second: existing names, missing names of a pod's search path (the same 10,000 over and over, and each name once),
          forwarded names that are remembered, a pod's walk of its search list for names outside, 10,000 q/s paced, and the time from a
          write of a Service at the real API server to the first right answer
  start   as deployed, both cores: start to the first right answer, and memory. What kproxy's DNS takes is what the node's processes take
          with DNS and without: the workers and the controller's share
  whole   kproxy against kube-proxy and CoreDNS together: memory steady, and at most while an API server that was restarted makes all list
          again
  flood   p99 of one pod alone and beside another pod's 50,000 new missing names a second, one core
  churn   1,000 endpoint changes a second for a minute while answering 20,000 q/s, both cores

All servers are asked at the same address of the same node, in turns. kproxy is the whole program with its rules in the kernel; the others
have no rule in their way, and CoreDNS none of the hops to a pod. Rates are therefore measured twice, with kproxy's rules (what a node has)
and without (what is compared). CPU per query is the time of all the server's processes, which busy
neighbours disturb less than rates.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from kproxy.backends.iptables.variant import Variant
from tests.bench.dns import cluster
from tests.bench.dns.churn import churn
from tests.bench.dns.load import Client
from tests.bench.dns.rows import Bench
from tests.bench.dns.servers import SBIN, Server, Servers, nsd
from tests.bench.dns.table import Figures, as_markdown, as_text
from tests.support import prefilled
from tests.support.netns import ip
from tests.support.one_node import OneNode
from tests.support.proxies import Stage, installed

INSIDE = "KPROXY_BENCH_INSIDE"
REPOSITORY = Path(__file__).resolve().parents[2]
ROW_GROUPS = ("rates", "start", "whole", "flood", "churn")
TOOLS = ("dnsperf", "nsd", "taskset", "chrt", "setpriv", "unshare")


def say(text: str) -> None:
    """A line of progress."""
    print(f"{time.strftime('%H:%M:%S')}  {text}", file=sys.stderr, flush=True)


@contextmanager
def bed(given: argparse.Namespace, scratch: Path) -> Iterator[Bench]:
    """Node, control plane, resolver outside, questions."""
    home = installed(scratch / "installed")
    with OneNode() as node:
        ip(node.pods, *(f"addr replace {address}/24 dev eth0" for address in (*cluster.PODS, cluster.OTHER)))
        say(f"loading {given.services:,} Services")
        with prefilled.prefilled(node, scratch / "plane", cluster.manifests(given.services)) as plane:
            stage = Stage(node, plane, Variant.LEGACY, scratch, home=home)
            outside = nsd(node.outside, scratch / "outside", cluster.OUTSIDE, cluster.root_zone(), stage)
            try:
                yield Bench(
                    stage=stage,
                    servers=Servers(stage, given.services),
                    figures=Figures(),
                    questions=cluster.question_files(scratch, given.services),
                    client=Client(scratch),
                    services=given.services,
                    seconds=given.seconds,
                    say=say,
                )
            finally:
                outside.stop()


def measure(given: argparse.Namespace, bench: Bench) -> None:
    """All turns, the servers one after the other in each."""

    def one(what: str, work: Callable[[], None]) -> None:
        """One turn that goes wrong does not take the others' figures with it."""
        try:
            work()
        except Exception as error:
            traceback.print_exc()
            say(f"{what}: FAILED: {error}")
            given.failed = True

    asked = [server for server in Server if server in given.server]
    both = [server for server in asked if server in (Server.COREDNS, Server.KPROXY)]
    for turn in range(given.repeat):
        say(f"turn {turn + 1} of {given.repeat}")
        for server in asked if "rates" in given.rows else ():
            one(f"{server.value} rates", partial(bench.rates, server, writes=True))
        for server in both if "start" in given.rows else ():
            one(f"{server.value} start", partial(bench.start, server))
    for group, work in (("flood", bench.flood), ("whole", bench.whole)):
        for server in both if group in given.rows else ():
            one(f"{server.value} {group}", partial(work, server))
    for server in both if "churn" in given.rows else ():
        one(f"{server.value} churn", partial(churn, bench, server, given.churn_seconds))


def _listed(text: str) -> tuple[str, ...]:
    rows = tuple(text.split(","))
    if unknown := set(rows) - set(ROW_GROUPS):
        raise argparse.ArgumentTypeError(f"no rows {', '.join(sorted(unknown))}; there are: {', '.join(ROW_GROUPS)}")
    return rows


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="kproxy's DNS, CoreDNS and NSD side by side")
    parser.add_argument("--rows", type=_listed, default=ROW_GROUPS, help=f"of {','.join(ROW_GROUPS)}; default: all")
    parser.add_argument("--server", type=Server, choices=list(Server), action="append", help="default: all")
    parser.add_argument("--services", type=int, default=10_000)
    parser.add_argument("--repeat", type=int, help="turns of each server in rates and start (default 3)")
    parser.add_argument("--seconds", type=float, help="how long each rate is measured (default 4)")
    parser.add_argument("--churn-seconds", type=float, help="how long churn lasts (default 60)")
    parser.add_argument("--quick", action="store_true", help="one turn, 3 s each, churn of 15 s")
    parser.add_argument("-o", "--output", choices=["text", "markdown", "json"], default="text")
    given = parser.parse_args()
    given.server = given.server or list(Server)
    given.repeat = given.repeat or (1 if given.quick else 3)
    given.seconds = given.seconds or (3.0 if given.quick else 4.0)
    given.churn_seconds = given.churn_seconds or (15.0 if given.quick else 60.0)
    return given


def _inside() -> None:
    """Private mounts: a /run in memory for the tools' lock and all files, and a resolv.conf that leads to the resolver outside."""
    for words in (
        ["mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", "/run"],
        ["ip", "link", "set", "lo", "up"],
    ):
        subprocess.run(words, check=True, timeout=10)
    Path("/run/netns").mkdir()
    Path("/run/xtables.lock").touch()
    resolv = Path("/run/resolv.conf")
    resolv.write_text(f"nameserver {cluster.OUTSIDE}\nsearch {cluster.NODE_DOMAIN}\n")
    subprocess.run(["mount", "--bind", str(resolv), "/etc/resolv.conf"], check=True, timeout=10)


def _below_namespaces() -> None:
    words = [
        "unshare",
        "--net",
        "--mount",
        "--propagation",
        "private",
        "--pid",
        "--fork",
        "--kill-child",
        "--mount-proc",
    ]
    inner = [sys.executable, "-m", "tests.bench.bench_coredns", *sys.argv[1:]]
    os.chdir(REPOSITORY)
    os.execvpe("unshare", [*words, *inner], {**os.environ, INSIDE: "1", "PATH": f"{os.environ.get('PATH', '')}:{SBIN}"})


def main() -> int:
    """Runs and prints; what was measured is printed also when it is interrupted."""
    given = _arguments()
    if INSIDE not in os.environ:
        path = f"{os.environ.get('PATH', '')}:{SBIN}"
        if absent := [tool for tool in TOOLS if shutil.which(tool, path=path) is None]:
            sys.exit(f"not installed: {', '.join(absent)}")
        _below_namespaces()
    _inside()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    began, given.failed, code, figures = time.monotonic(), False, 0, Figures()
    with tempfile.TemporaryDirectory(dir="/run") as scratch:
        try:
            with bed(given, Path(scratch)) as bench:
                figures = bench.figures
                measure(given, bench)
        except KeyboardInterrupt:
            say("interrupted; this is what was measured")
            code = 130
    print({"text": as_text, "markdown": as_markdown, "json": Figures.as_json}[given.output](figures))
    say(f"{(time.monotonic() - began) / 60:.1f} minutes, load average {os.getloadavg()[0]:.1f}")
    return code or int(given.failed)


if __name__ == "__main__":
    sys.exit(main())
