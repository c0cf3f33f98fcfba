"""Entering a running lab from outside: `lab exec` and `lab check` use it.

The calling process joins the lab's namespaces and forks, because only children live in a joined pid namespace; the child goes on to
its place and becomes the command. Standard input, terminal and exit code pass through.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from kproxy.errors import KproxyError
from kproxy.lab import enter, isolation, places
from kproxy.lab.statefile import LabState


def within(state: LabState, work: Callable[[], int]) -> int:
    """Runs `work` inside the lab, in a child; its exit code (128 + signal when it was killed).

    Two forks: the first child joins the lab's namespaces, so that this process stays where it was and can still take the lab down; the
    second one is the first process that really lives in the joined pid namespace.
    """
    here = Path.cwd()

    def join_and_fork() -> int:
        isolation.join(state.pid)
        return _forked(lambda: _at_work(work, here))

    return _forked(join_and_fork)


def _forked(work: Callable[[], int]) -> int:
    """Runs `work` in a child; its exit code. Signals for this process go on to the child."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            code = work()
        except KproxyError as error:
            print(f"kproxy: {error}", file=sys.stderr, flush=True)
            code = error.exit_code
        except KeyboardInterrupt:
            code = 128 + signal.SIGINT
        except BaseException as error:
            traceback.print_exception(error)
        finally:
            sys.stdout.flush()
            os._exit(code)
    before = {}
    for number in (signal.SIGINT, signal.SIGQUIT):
        before[number] = signal.signal(
            number, signal.SIG_IGN
        )  # the terminal sends them to the child as well; its answer counts
    for number in (signal.SIGTERM, signal.SIGHUP):
        before[number] = signal.signal(number, lambda got, _frame: os.kill(child, got))
    try:
        _, status = os.waitpid(child, 0)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def _at_work(work: Callable[[], int], here: Path) -> int:
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    try:
        os.chdir(here)
    except OSError:
        os.chdir("/")  # hidden by the lab's own /run
    return work()


def execute(state: LabState, place: str, namespace: str, command: list[str]) -> int:
    """Runs `command` at a place (pod, node, client, outside) and returns its exit code."""

    def work() -> int:
        for number in (
            signal.SIGPIPE,
            signal.SIGINT,
        ):  # Python ignores or translates them; commands expect the kernel's way
            signal.signal(number, signal.SIG_DFL)
        enter.execute(places.find(place, namespace), command)
        return 1

    return within(state, work)
