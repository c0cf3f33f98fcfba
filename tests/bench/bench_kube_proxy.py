"""kproxy against upstream kube-proxy v1.36.3, in the same run: the table with medians, ratios and goals.

    sudo -E "$(which python)" -m tests.bench.bench_kube_proxy                          all rows but churn, both variants: about 15 minutes
    sudo -E "$(which python)" -m tests.bench.bench_kube_proxy --rows churn --seconds 300 --program kproxy
    … --size 100x2 --repeat 1                                                          a look at whether it works, a minute

Needs root, and what `tests/peers/build` makes. It puts itself below namespaces of its own (network, mounts, processes), so no packet
leaves, no rule of the machine changes, and whatever ends it ends everything it started. etcd's data lies in memory (300 MB for 10,000
Services).

Rows: start (cold start, memory), change (a new Service, a replaced endpoint, on an idle node), path (connections), restart, kill
(SIGKILL and restart under traffic), churn (100 endpoint changes a second). Start is part of every other. What each size runs by
default: 10000x2 start, change, path, restart; 1000x4 start, change, kill.

Both programs read the same KubeProxyConfiguration with upstream's defaults; kproxy has its DNS switched off. They take turns. kube-proxy's
cold start over the nft variant of iptables takes one to two minutes at 10,000 Services, so it has one turn there.
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
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from kproxy.backends.iptables.variant import Variant
from tests.bench.peer.churn import churn
from tests.bench.peer.rows import Round
from tests.bench.peer.table import Figures, Size, as_markdown, as_text
from tests.support import prefilled
from tests.support.cluster_api import Api
from tests.support.one_node import OneNode
from tests.support.proxies import Program, Stage, installed

INSIDE = "KPROXY_BENCH_INSIDE"
REPOSITORY = Path(__file__).resolve().parents[2]
ROW_GROUPS = ("start", "change", "path", "restart", "kill", "churn")
DEFAULT = {10_000: ("start", "change", "path", "restart"), 1000: ("start", "change", "kill")}
SLOW = 5000  # Services from which on kube-proxy has one turn with the nft variant


def say(text: str) -> None:
    """A line of progress."""
    print(f"{time.strftime('%H:%M:%S')}  {text}", file=sys.stderr, flush=True)


def _turns(given: argparse.Namespace, size: Size, variant: Variant, program: Program) -> int:
    slow = variant is Variant.NFT and program is Program.KUBE_PROXY and size.services >= SLOW
    return min(1, given.repeat) if slow else given.repeat


def measure(given: argparse.Namespace, figures: Figures, scratch: Path) -> None:
    """All sizes, variants and turns."""
    home = installed(scratch / "installed")
    for size in given.size:
        rows = given.rows or DEFAULT.get(size.services, ROW_GROUPS[:-1])
        with OneNode() as bed, bed.answers():
            say(f"{size}: loading")
            manifests = [prefilled.node(), *prefilled.services(size.services, size.endpoints)]
            data = scratch / f"plane-{size.services}"
            try:
                with prefilled.prefilled(bed, data, manifests) as plane:
                    api = Api.of(bed.node, plane)
                    for variant in given.variant:
                        stage = Stage(bed, plane, variant, scratch, home=home)
                        _variant(given, figures, stage, api, size, rows)
                    api.close()
            finally:
                shutil.rmtree(data, ignore_errors=True)


def _variant(
    given: argparse.Namespace, figures: Figures, stage: Stage, api: Api, size: Size, rows: Sequence[str]
) -> None:
    others = [row for row in rows if row != "churn"]
    for turn in range(given.repeat if others else 0):
        for program in given.program:
            if turn >= _turns(given, size, stage.variant, program):
                continue
            head = f"{size} {stage.variant.value} {program.value} {turn + 1}"
            say(head)
            turn_of = Round(
                stage=stage,
                api=api,
                size=size,
                program=program,
                figures=figures,
                say=lambda text, head=head: say(f"{head}: {text}"),
                changes=given.changes,
                seed=turn,
            )
            # One SIGKILL tells what a second one would: nothing fails, or something does.
            _guarded(given, head, partial(turn_of.run, [row for row in others if row != "kill" or turn == 0]))
    for program in given.program if "churn" in rows else ():
        head = f"{size} {stage.variant.value} {program.value} churn"
        say(f"{head}: {given.seconds:g} s")
        tell = partial(lambda head, text: say(f"{head}: {text}"), head)
        _guarded(given, head, partial(churn, stage, api, size, program, figures, given.seconds, tell))


def _guarded(given: argparse.Namespace, head: str, work: Callable[[], None]) -> None:
    """One turn that goes wrong does not take the others' figures with it."""
    try:
        work()
    except Exception as error:
        traceback.print_exc()
        say(f"{head}: FAILED: {error}")
        given.failed = True


def _size(text: str) -> Size:
    services, _, endpoints = text.partition("x")
    return Size(int(services), int(endpoints))


def _listed(text: str) -> tuple[str, ...]:
    rows = tuple(text.split(","))
    if unknown := set(rows) - set(ROW_GROUPS):
        raise argparse.ArgumentTypeError(f"no rows {', '.join(sorted(unknown))}; there are: {', '.join(ROW_GROUPS)}")
    return rows


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="kproxy and kube-proxy side by side")
    parser.add_argument("--rows", type=_listed, help=f"of {','.join(ROW_GROUPS)}; default: by size, without churn")
    parser.add_argument(
        "--size", type=_size, action="append", help="Services x endpoints of each, e.g. 10000x2; may be repeated"
    )
    parser.add_argument("--variant", type=Variant, choices=list(Variant), action="append")
    parser.add_argument("--program", type=Program, choices=list(Program), action="append")
    parser.add_argument("--repeat", type=int, default=3, help="turns of each program (default 3)")
    parser.add_argument("--changes", type=int, default=4, help="samples of each kind of change in a turn (default 4)")
    parser.add_argument("--seconds", type=float, default=300.0, help="how long churn lasts (default 300)")
    parser.add_argument("-o", "--output", choices=["text", "markdown", "json"], default="text")
    given = parser.parse_args()
    churn_alone = given.rows == ("churn",)
    given.size = given.size or ([Size(1000, 4)] if churn_alone else [Size(1000, 4), Size(10_000, 2)])
    given.variant = given.variant or list(Variant)
    given.program = given.program or list(Program)
    return given


def _inside() -> None:
    """Private mounts: a /run of our own, in memory, for the lock of the tools, names of namespaces and all scratch files."""
    for words in (
        ["mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", "/run"],
        ["ip", "link", "set", "lo", "up"],
    ):
        subprocess.run(words, check=True, timeout=10)
    Path("/run/netns").mkdir()
    Path("/run/xtables.lock").touch()


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
    inner = [sys.executable, "-m", "tests.bench.bench_kube_proxy", *sys.argv[1:]]
    path = f"{os.environ.get('PATH', '')}:/usr/local/sbin:/usr/sbin:/sbin"
    os.chdir(REPOSITORY)
    os.execvpe("unshare", [*words, *inner], {**os.environ, INSIDE: "1", "PATH": path})


def main() -> int:
    """Runs and prints; what was measured is printed also when it is interrupted."""
    given = _arguments()
    if INSIDE not in os.environ:
        _below_namespaces()
    _inside()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    figures, began, given.failed, code = Figures(), time.monotonic(), False, 0
    try:
        with tempfile.TemporaryDirectory(dir="/run") as scratch:
            measure(given, figures, Path(scratch))
    except KeyboardInterrupt:
        say("interrupted; this is what was measured")
        code = 130
    write = {"text": as_text, "markdown": as_markdown, "json": Figures.as_json}[given.output]
    print(write(figures))
    say(f"{(time.monotonic() - began) / 60:.1f} minutes, load average {os.getloadavg()[0]:.1f}")
    return code or int(given.failed)


if __name__ == "__main__":
    sys.exit(main())
