"""Entering a running lab from outside: `lab exec` and `lab check` use it.

The calling process joins the lab's namespaces and forks, because only children live in a joined pid namespace; the child goes on to
its place and becomes the command. Standard input, terminal and exit code pass through.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from kproxy.errors import KproxyError
from kproxy.lab import enter, isolation, places
from kproxy.lab.statefile import LabState


def within(state: LabState, work: Callable[[], int]) -> int:
    """Joins the lab and runs `work` in a child there; the child's exit code (128 + signal when it was killed)."""
    here = Path.cwd()
    isolation.join(state.pid)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            try:
                os.chdir(here)
            except OSError:
                os.chdir("/")  # hidden by the lab's own /run
            code = work()
        except KproxyError as error:
            print(f"kproxy: {error}", file=sys.stderr, flush=True)
            code = error.exit_code
        except KeyboardInterrupt:
            code = 128 + signal.SIGINT
        except BaseException as error:
            import traceback

            traceback.print_exception(error)
        finally:
            sys.stdout.flush()
            os._exit(code)
    for number in (signal.SIGINT, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)  # the terminal sends them to the child as well; its answer counts
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda got, _frame: os.kill(child, got))
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def execute(state: LabState, place: str, namespace: str, command: list[str]) -> int:
    """Runs `command` at a place (pod, node, client, outside) and returns its exit code."""

    def work() -> int:
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # Python ignores it; commands expect not to
        enter.execute(places.find(place, namespace), command)
        return 1

    return within(state, work)
