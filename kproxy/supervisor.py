"""The parent of all processes of a node: starts them, starts them again, passes signals on, and knows nothing else.

    kproxy run                      reads flags and configuration, then becomes this module by exec, with the child list as JSON
      ├─ controller                 watch, model, rules
      └─ dns worker × cores         answers

What comes in: a list of children, `[{"name": …, "argv": […]}, …]`, and the form of log lines. What goes out: processes, and one line on
stderr for each start and end, in klog's form or as JSON, without what the logging module would weigh. It keeps no state that matters,
imports next to nothing, opens no file and talks to nobody but the DNS workers, so there is nothing in it that can fail while the children
run; they are children of this process and not of the controller, so that a controller that crashes, hangs or is killed takes no query and
no connection with it.

It asks the DNS addresses all the time whether somebody answers (dns/vigil.py). When nobody does it ends the workers, which hang: that is
the controller's to do, and sooner, but it may hang as well. A dead worker's sockets are gone, and the rules send queries to other nodes by
themselves while nobody listens here. Relay workers that hang (relay/stillness.py) are ended as well: new connections that the kernel gives
to their sockets would wait for ever.

At the end the first child is asked first: the controller gives the DNS address back while the workers still answer on it. Relay workers
(mode userspace) have longer than the others, because their connections have.

A child that ends is started again after a pause that doubles from 0.1 s to 30 s and falls back after a minute of health. Exit code 2
(configuration) or 3 (this machine cannot) in the first life of a child is for the person at the terminal: everything stops with that
code instead of a restart loop that hides it. Exit code 10 (`process.END_OF_ALL`: the configuration file has changed) ends everything at
any time, with exit code 1, so that whoever runs this starts it again with the new file. Where there are relay workers that would cut their
connections; so this process becomes `kproxy run` again by exec, with another family, and the relay workers of before live on as children
without a name until nothing is open with them.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from dataclasses import dataclass, field

from kproxy.dns.pulse import Pulses
from kproxy.dns.vigil import Vigil
from kproxy.process import END_OF_ALL, settle
from kproxy.relay.stillness import LOOK_S, Stillness

_FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 30.0
_HEALTHY_AFTER_S = 60.0
_REPEAT_S = 1.0  # a second SIGTERM this soon is the first one's echo: `timeout` and some shells signal the process and its group
_HAND_OVER_S = 5.0  # how long the first child may take to end before the others are told as well
LONGEST_LAMEDUCK_S = 20.0  # how much longer the first child may go on on purpose: a pod is given 30 s to end
_GRACE_S = 10.0  # between passing SIGTERM on and SIGKILL; a DaemonSet grants 30 s
_LOOK_S = 0.2  # between two questions to the DNS workers: silence is known, and ended, within a second
_YOUNG_S = 3.0  # a worker that has just started may still be waiting for its zone,
_STARTS_S = 1.0  # unless somebody has answered since
_SIGNALS = {signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1}
_FINAL_CODES = (2, 3)
_MOST_BEFORE = 32  # relay workers of before; the oldest are told to hurry when there are more
BEFORE = "KPROXY_RELAY_WORKERS_BEFORE"  # environment variable between two families of one process: process ids
_say_json = False  # set once, by main


@dataclass(slots=True)
class Child:
    """One process to keep alive. `pid` is 0 while it is not running; `due` is when it may start (monotonic seconds)."""

    name: str
    argv: list[str]
    pid: int = 0
    started: float = 0.0
    due: float = 0.0
    pause_s: float = _FIRST_PAUSE_S
    lives: int = 0
    told: bool = False  # that it is to end
    answers: bool = False  # it is a DNS worker
    relays: bool = False  # it has connections, which end as it ends


@dataclass(slots=True)
class Family:
    """All children, and how the family ends."""

    children: list[Child]
    stopping: bool = False
    exit_code: int = 0
    asked_at: float = 0.0
    killed_at: float = field(default=float("inf"))
    cut_at: float = field(default=float("inf"))  # the same for relay workers
    vigil: Vigil | None = None
    pulses: Pulses = field(default_factory=Pulses)  # of the DNS workers
    lameduck_s: float = 0.0  # how long the first child goes on on purpose once it was asked to end
    hand_over_s: float = 0.0  # how much longer relay workers may take than others
    again: list[str] = field(
        default_factory=list
    )  # the command that makes the next family; empty: whoever runs this starts it
    renewing: bool = False  # it ends for that one
    before: list[int] = field(default_factory=list)  # relay workers of families before, the oldest first
    hurried: set[int] = field(default_factory=set)  # those of them that were told to end
    stillness: Stillness = field(default_factory=Stillness)  # of relay workers

    @property
    def running(self) -> list[Child]:
        return [child for child in self.children if child.pid]

    @property
    def relay_workers(self) -> list[int]:
        """Process ids of all of them."""
        return [*self.before, *(child.pid for child in self.running if child.relays)]

    @property
    def in_the_way(self) -> bool:
        """Whether anybody is left whose end is waited for."""
        if self.renewing:
            return any(not child.relays for child in self.running)
        return bool(self.running or self.before)


def _say(text: str) -> None:
    now, line = time.time(), sys._getframe(1).f_lineno
    if _say_json:
        told = {"ts": round(now * 1000.0, 3), "caller": f"kproxy/supervisor.py:{line}", "msg": text, "v": 0}
        written = json.dumps(told, separators=(",", ":"))
    else:
        stamp = time.strftime("%m%d %H:%M:%S", time.localtime(now))
        written = f"I{stamp}.{int(now % 1 * 1e6):06d} {os.getpid():7d} supervisor.py:{line}] {json.dumps(text)}"
    sys.stderr.write(written + "\n")
    sys.stderr.flush()


def _start(child: Child, now: float) -> None:
    # The children's signal mask is emptied: this process blocks what it waits for, and a mask survives exec.
    child.pid = os.posix_spawn(child.argv[0], child.argv, dict(os.environ), setsigmask=[])
    child.started = now
    child.lives += 1
    _say(f"{child.name} started, pid {child.pid}")


def _adopt(child: Child, pid: int, now: float) -> None:
    """Takes a process that runs already for this child's first life."""
    child.pid, child.started, child.lives = pid, now, 1
    _say(f"{child.name} started, pid {pid}")


def _reap(family: Family, now: float) -> None:
    while family.running or family.before:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            return
        if pid in family.before:
            family.before.remove(pid)
            _say(f"relay worker of before ended, pid {pid}")
        for child in family.children:
            if child.pid == pid:
                _ended(family, child, os.waitstatus_to_exitcode(status), now)


def _ended(family: Family, child: Child, code: int, now: float) -> None:
    child.pid = 0
    what = f"exit code {code}" if code >= 0 else f"signal {signal.Signals(-code).name}"
    if family.stopping:
        _say(f"{child.name} ended ({what})")
        return
    if code == END_OF_ALL:
        _say(f"{child.name} ended for a new start: stopping")
        family.exit_code = 1
        family.renewing = bool(family.again)
        _stop(family, now)
        return
    if code in _FINAL_CODES and child.lives == 1:
        _say(f"{child.name} cannot run ({what}): stopping")
        family.exit_code = code
        _stop(family, now)
        return
    if now - child.started > _HEALTHY_AFTER_S:
        child.pause_s = _FIRST_PAUSE_S
    child.due = now + child.pause_s
    _say(f"{child.name} ended ({what}), starting again in {child.pause_s:g} s")
    child.pause_s = min(child.pause_s * 2, _LONGEST_PAUSE_S)


def _signal(family: Family, number: int, *, relays: bool = True) -> None:
    for child in family.running:
        if relays or not child.relays:
            os.kill(child.pid, number)
    if relays:
        for pid in family.before:
            os.kill(pid, number)


def _stop(family: Family, now: float) -> None:
    if family.stopping:
        if now - family.asked_at > _REPEAT_S:  # a second request: now
            _signal(family, signal.SIGKILL)
        return
    family.stopping = True
    family.asked_at = now
    family.killed_at = now + _GRACE_S + family.lameduck_s
    family.cut_at = family.killed_at + family.hand_over_s
    _tell(family, now)


def _asked_to_end(family: Family, now: float) -> None:
    """Somebody outside wants the end; that goes before a new start."""
    if family.renewing:
        family.renewing = family.stopping = False
        family.exit_code = 0
        for child in family.children:
            child.told = child.told and not child.relays
    _stop(family, now)


def _tell(family: Family, now: float) -> None:
    """Asks children to end: the first one (the controller), and the others once it has handed the DNS address over and is gone.

    Before a new start relay workers are told that others will take their place, which ends them when they are of no more use.
    """
    first = family.children[0]
    others = not first.pid or now - family.asked_at >= _HAND_OVER_S + family.lameduck_s
    for child in family.children:
        if child.pid and not child.told and (child is first or others):
            os.kill(child.pid, signal.SIGUSR2 if family.renewing and child.relays else signal.SIGTERM)
            child.told = True
    if others and not family.renewing:
        _hurry(family, family.before)


def _hurry(family: Family, pids: list[int]) -> None:
    """Relay workers of before are given the time that is left."""
    for pid in pids:
        if pid not in family.hurried:
            family.hurried.add(pid)
            os.kill(pid, signal.SIGTERM)


def _next_wake(family: Family, now: float) -> float:
    """Seconds until something is due; an hour when nothing is."""
    longest = LOOK_S if family.relay_workers else 3600.0
    if family.stopping:
        waiting = any(not child.told for child in family.running)
        due = family.asked_at + _HAND_OVER_S + family.lameduck_s if waiting else family.killed_at
        return max(0.0, min(longest, due - now))
    longest = _LOOK_S if family.vigil is not None else longest
    return max(0.0, min([longest, *(child.due - now for child in family.children if not child.pid)]))


def _look(family: Family, vigil: Vigil, now: float) -> None:
    """Ends DNS workers that hang: nobody answers, though they have been there for long enough and have nothing else to do."""
    vigil.look(now)
    family.pulses.look([child.pid for child in family.running if child.answers], now)
    if vigil.answered == now:
        family.pulses.answered()
    if not vigil.silent:
        return
    vigil.forget()
    for child in family.running:
        # On a machine that starves a start takes longer, and ending what is about to answer would starve it more.
        age, has_begun = now - child.started, vigil.answered > child.started
        if family.pulses.strained(child.pid):
            continue
        if child.answers and (age > _YOUNG_S * min(child.lives, 10) or (has_begun and age > _STARTS_S)):
            _say(f"{child.name} does not answer: it is ended")
            os.kill(child.pid, signal.SIGKILL)


def _end_hanging(family: Family, now: float) -> None:
    """Ends relay workers that hang: those of before as well, and while everything ends, for what they had is lost anyway."""
    for pid in family.stillness.look(family.relay_workers, now):
        name = next((child.name for child in family.running if child.pid == pid), "relay worker of before")
        _say(f"{name} hangs: it is ended, pid {pid}")
        os.kill(pid, signal.SIGKILL)


def supervise(family: Family) -> int:
    """Runs until told to stop and all children have ended; returns the exit code."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    _hurry(family, family.before[:-_MOST_BEFORE])
    while True:
        now = time.monotonic()
        _end_hanging(family, now)
        if family.stopping:
            if not family.in_the_way:
                return family.exit_code
            _tell(family, now)
            if now >= family.killed_at:
                _signal(family, signal.SIGKILL, relays=now >= family.cut_at and not family.renewing)
                family.killed_at = now + 1.0
        else:
            for child in family.children:
                if not child.pid and child.due <= now:
                    _start(child, now)
            if family.vigil is not None:
                _look(family, family.vigil, now)
        info = signal.sigtimedwait(_SIGNALS, _next_wake(family, now))
        now = time.monotonic()
        if info is not None and info.si_signo in (signal.SIGTERM, signal.SIGINT):
            _asked_to_end(family, now)
        elif info is not None and info.si_signo in (signal.SIGHUP, signal.SIGUSR1):
            _signal(family, info.si_signo)
        _reap(family, now)


@dataclass(frozen=True, slots=True, kw_only=True)
class Relaying:
    """What a family with relay workers has besides.

    hand_over_s: how much longer they may take to end than others. again: the command that makes the next family, in the same process;
    empty where there are none any more.
    hold: descriptors that are kept open here, and nowhere else. before: process ids of relay workers of families before.
    """

    hand_over_s: float
    again: list[str]
    hold: tuple[int, ...]
    before: tuple[int, ...] = ()


def command_line(
    children: list[tuple[str, list[str]]],
    log_format: str,
    *,
    dns: tuple[str, ...] = (),
    port: int = 53,
    lameduck_s: float = 0.0,
    relaying: Relaying | None = None,
    begun: int = 0,
) -> list[str]:
    """The argument vector that runs this module over `children`, for `os.execv`.

    log_format: `text` or `json`. dns, port: where the children called `dns worker …` answer. lameduck_s: how much longer the first child
    may take to end. relaying: for the children called `relay worker …`. begun: the process id of the first child, where it runs already
    as a child of this process.
    """
    listed = json.dumps([{"name": name, "argv": argv} for name, argv in children])
    told: dict[str, object] = {"dns": dns, "port": port, "lameduck": lameduck_s, "begun": begun}
    if relaying is not None:
        told |= {"hand_over": relaying.hand_over_s, "again": relaying.again}
        told |= {"hold": relaying.hold, "before": relaying.before}
    return [sys.executable, "-m", "kproxy.supervisor", listed, log_format, json.dumps(told)]


def _is_ours(pid: int) -> bool:
    """Whether it is a child of this process, and alive; a dead one is buried."""
    try:
        return pid > 0 and os.waitpid(pid, os.WNOHANG) == (0, 0)
    except ChildProcessError:
        return False


def _renew(family: Family) -> None:
    """Becomes the command that makes the next family. Raises OSError when it cannot."""
    left = family.relay_workers
    os.environ[BEFORE] = ",".join(map(str, left))
    _say(f"starting anew; {len(left)} relay workers go on beside it")
    os.execv(family.again[0], family.again)


def main(argv: list[str]) -> int:
    """Entry point: the child list, and the form of log lines if it is not text."""
    global _say_json
    _say_json = argv[1:2] == ["json"]
    told = json.loads(argv[2]) if argv[2:] else {}
    settle("kproxy", parent_pid=None)
    for descriptor in told.get("hold", ()):
        os.set_inheritable(descriptor, False)
    listed = [(item["name"], item["argv"]) for item in json.loads(argv[0])]
    children = [
        Child(name, words, answers=name.startswith("dns worker"), relays=name.startswith("relay worker"))
        for name, words in listed
    ]
    if _is_ours(told.get("begun", 0)):
        _adopt(children[0], told["begun"], time.monotonic())
    family = Family(
        children,
        vigil=Vigil(tuple(told["dns"]), told["port"]) if told.get("dns") else None,
        lameduck_s=told.get("lameduck", 0.0),
        hand_over_s=told.get("hand_over", 0.0),
        again=told.get("again", []),
        before=[pid for pid in told.get("before", ()) if _is_ours(pid)],
    )
    code = supervise(family)
    if family.renewing:
        _renew(family)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
