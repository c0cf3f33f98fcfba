"""Real processes: who makes way for a tool, for how long, and who does not."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from kproxy.node.aside import Aside

EVERYWHERE = frozenset(os.sched_getaffinity(0))
_CODE = """
import sys
from pathlib import Path
Path('/proc/self/comm').write_text(sys.argv[1])
print(flush=True)
sys.stdin.read()
"""


@contextmanager
def child(name: str) -> Iterator[int]:
    """A process of this name, beside which the others are children of this one as well."""
    words = [sys.executable, "-c", _CODE, name]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline()
        yield process.pid
        process.kill()


def test_workers_leave_the_processor_of_a_tool_until_it_has_ended() -> None:
    with ExitStack() as stack:
        tool, one, two, other = (
            stack.enter_context(child(name)) for name in ("iptables", "kproxy-dns-0", "kproxy-dns-1", "kproxy-relay-0")
        )
        with Aside(EVERYWHERE, os.getpid()).beside(tool):
            here = os.sched_getaffinity(tool)
            assert len(here) == 1
            wanted = EVERYWHERE - here if len(EVERYWHERE) > 1 else EVERYWHERE
            assert os.sched_getaffinity(one) == os.sched_getaffinity(two) == wanted
            assert os.sched_getaffinity(other) == EVERYWHERE
        assert os.sched_getaffinity(one) == os.sched_getaffinity(two) == EVERYWHERE


def test_a_worker_that_somebody_else_has_put_in_its_place_stays_there() -> None:
    with child("iptables") as tool, child("kproxy-dns-0") as worker:
        chosen = {min(EVERYWHERE)}
        os.sched_setaffinity(worker, chosen)
        with Aside(EVERYWHERE | {4096}, os.getpid()).beside(tool):
            assert os.sched_getaffinity(worker) == chosen
        assert os.sched_getaffinity(worker) == chosen


def test_with_one_processor_nobody_has_anywhere_to_go() -> None:
    with child("iptables") as tool, child("kproxy-dns-0") as worker:
        with Aside(frozenset({min(EVERYWHERE)}), os.getpid()).beside(tool):
            assert os.sched_getaffinity(worker) == os.sched_getaffinity(tool) == EVERYWHERE
        assert os.sched_getaffinity(worker) == EVERYWHERE


def test_what_has_ended_meanwhile_is_no_error() -> None:
    aside = Aside(EVERYWHERE, os.getpid())
    with child("kproxy-dns-0") as worker:
        with child("iptables") as tool:
            pass
        with aside.beside(tool):
            assert os.sched_getaffinity(worker) == EVERYWHERE
        with child("iptables") as tool, ExitStack() as stack, child("kproxy-dns-1"):
            stack.enter_context(aside.beside(tool))
        assert os.sched_getaffinity(worker) == EVERYWHERE
