"""kproxy's TCP relay against HAProxy 2.6 (mode tcp, one thread) and a direct connection, in the same run: medians, ratios and goals.

    sudo -E "$(which python)" -m tests.bench.bench_relay                     everything: about 6 minutes
    sudo -E "$(which python)" -m tests.bench.bench_relay --quick             one turn each, shorter: about 90 seconds
    … --rows keep,each --repeat 7 -o markdown                                some of it
    … --first                                                                before all else on the machine (SCHED_RR), if it is busy

Needs root, haproxy, wrk, iperf3, nft and, for UDP, a C compiler. It puts itself below namespaces of its own (network, mounts, processes):
no packet leaves, no rule of the machine changes, and whatever ends it ends everything it started.

Rows (each figure is the median of the turns; its least and most stand beside it; the ratio is the median of the turns' own ratios):
  stream  iperf3, one connection                  keep  wrk, 50 connections that are kept    each  wrk, a connection for each request
  free    as keep, and eachfree as each, and wrk may use what the relay leaves of its core
  idle    memory of 10,000 connections, or of as many as RLIMIT_NOFILE allows, after one request each
  half    p99 while wrk asks half as often as HAProxy could answer
  dead    one of four endpoints falls silent: requests that fail, and how long the others take
  udp     64 sessions of questions and answers (tests/bench/relay/udp.py)

A relay has the first core, everybody else the second. Ways are measured in turns, HAProxy and kproxy one right after the other. CPU is the
time of the relay's process, packets that it took through the kernel included.
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
from collections.abc import Callable
from pathlib import Path

from tests.bench.relay import rows
from tests.bench.relay.ground import Ground, Way, ground
from tests.bench.relay.table import Figures, as_markdown, as_text
from tests.bench.relay.udp import udp_rows

INSIDE = "KPROXY_BENCH_INSIDE"
REPOSITORY = Path(__file__).resolve().parents[2]
ROW_GROUPS = ("stream", "keep", "free", "each", "eachfree", "idle", "half", "dead", "udp")
TOOLS = ("haproxy", "wrk", "iperf3", "nft", "taskset", "chrt", "prlimit", "unshare")
SBIN = "/usr/local/sbin:/usr/sbin:/sbin"


def say(text: str) -> None:
    """A line of progress."""
    print(f"{time.strftime('%H:%M:%S')}  {text}", file=sys.stderr, flush=True)


def measure(given: argparse.Namespace, stage: Ground, figures: Figures) -> None:
    """All turns."""

    def one(what: str, way: Way, work: Callable[[], dict[str, float]]) -> None:
        """One that goes wrong does not take the others' figures with it."""
        try:
            figures.add(way, work())
        except Exception as error:
            traceback.print_exc()
            say(f"{what} {way.value}: FAILED: {error}")
            given.failed = True

    relays = (Way.HAPROXY, Way.KPROXY)  # conntrack costs an idle connection no memory of the process's
    # First: what a process has freed before would hold the connections, and nothing would be seen of them.
    for way in relays if "idle" in given.rows else ():
        one("idle", way, lambda way=way: rows.idle(stage, way))  # type: ignore[misc]
    timed = {"stream": rows.stream, "keep": rows.keep, "free": rows.free, "each": rows.each, "eachfree": rows.each_free}
    for turn in range(given.repeat):
        say(f"turn {turn + 1} of {given.repeat}")
        for what, work in timed.items():
            for way in Way if what in given.rows else ():
                one(what, way, lambda work=work, way=way: work(stage, way, given.seconds))  # type: ignore[misc]
    if "half" in given.rows:
        full = figures.median("keep.rate", Way.HAPROXY) or rows.keep(stage, Way.HAPROXY, given.seconds)["keep.rate"]
        for _ in range(given.repeat):
            for way in Way:
                one("half", way, lambda way=way: rows.half(stage, way, given.seconds, full))  # type: ignore[misc]
    if "dead" in given.rows:
        one("dead", Way.KPROXY, lambda: rows.dead(stage, Way.KPROXY))


def udp(given: argparse.Namespace, figures: Figures) -> None:
    """The rows of UDP, on a ground of their own."""
    for found in udp_rows(given.seconds, first=given.first):
        way = Way.KPROXY if found.cpu_s is not None else Way.DIRECT
        figures.add(way, {"udp.rate": found.rate})
        if found.by_core is not None:
            figures.add(way, {"udp.core": found.by_core})


def _listed(text: str) -> tuple[str, ...]:
    found = tuple(text.split(","))
    if unknown := set(found) - set(ROW_GROUPS):
        raise argparse.ArgumentTypeError(f"no rows {', '.join(sorted(unknown))}; there are: {', '.join(ROW_GROUPS)}")
    return found


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="kproxy's relay, HAProxy and nothing side by side")
    parser.add_argument("--rows", type=_listed, default=ROW_GROUPS, help=f"of {','.join(ROW_GROUPS)}; default: all")
    parser.add_argument("--repeat", type=int, help="turns (default 5)")
    parser.add_argument("--seconds", type=int, help="how long each rate is measured (default 3)")
    parser.add_argument("--quick", action="store_true", help="one turn of 2 s")
    parser.add_argument("--first", action="store_true", help="before everything else on this machine (chrt -r)")
    parser.add_argument("-o", "--output", choices=["text", "markdown", "json"], default="text")
    given = parser.parse_args()
    given.repeat = given.repeat or (1 if given.quick else 5)
    given.seconds = given.seconds or (2 if given.quick else 3)
    return given


def _below_namespaces() -> None:
    words = ["unshare", "--net", "--mount", "--propagation", "private", "--pid", "--fork", "--kill-child"]
    inner = [sys.executable, "-m", "tests.bench.bench_relay", *sys.argv[1:]]
    os.chdir(REPOSITORY)
    path = f"{os.environ.get('PATH', '')}:{SBIN}"
    os.execvpe("unshare", [*words, "--mount-proc", *inner], {**os.environ, INSIDE: "1", "PATH": path})


def main() -> int:
    """Runs and prints; what was measured is printed also when it is interrupted."""
    given = _arguments()
    if INSIDE not in os.environ:
        path = f"{os.environ.get('PATH', '')}:{SBIN}"
        if absent := [tool for tool in TOOLS if shutil.which(tool, path=path) is None]:
            sys.exit(f"not installed: {', '.join(absent)}")
        _below_namespaces()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", "/run"], check=True, timeout=10)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    began, given.failed, code, figures = time.monotonic(), False, 0, Figures()
    try:
        with tempfile.TemporaryDirectory(dir="/run") as scratch:
            if set(given.rows) - {"udp"}:
                with ground(Path(scratch), first=given.first) as stage:
                    measure(given, stage, figures)
            if "udp" in given.rows:
                udp(given, figures)
    except KeyboardInterrupt:
        say("interrupted; this is what was measured")
        code = 130
    print({"text": as_text, "markdown": as_markdown, "json": Figures.as_json}[given.output](figures))
    say(f"{(time.monotonic() - began) / 60:.1f} minutes, load average {os.getloadavg()[0]:.1f}")
    return code or int(given.failed)


if __name__ == "__main__":
    sys.exit(main())
