"""The supervisor with real children: small Python programs that live, die and refuse to run."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

Supervise = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def supervise() -> Iterator[Supervise]:
    started: list[subprocess.Popen[bytes]] = []

    def start(*further: str, **children: str) -> subprocess.Popen[bytes]:
        named = {name.replace("_", " "): code for name, code in children.items()}
        listed = json.dumps([{"name": name, "argv": [sys.executable, "-c", code]} for name, code in named.items()])
        words = [sys.executable, "-m", "kproxy.supervisor", listed, *further]
        process = subprocess.Popen(words, stderr=subprocess.DEVNULL)
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        process.wait(timeout=15)


def _wait_for(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 15
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _beating(path: Path) -> str:
    """A child that writes its pid to `path`, one a line, and then waits."""
    return f"import os, time; open({str(path)!r}, 'a').write(f'{{os.getpid()}}\\n'); time.sleep(60)"


def _pids(path: Path) -> list[int]:
    return [int(line) for line in path.read_text(encoding="ascii").split()] if path.exists() else []


def test_a_killed_child_is_started_again_and_its_sibling_is_left_alone(supervise: Supervise, tmp_path: Path) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    supervise(first=_beating(a), second=_beating(b))
    _wait_for(lambda: len(_pids(a)) == 1 and len(_pids(b)) == 1, "both children start")
    os.kill(_pids(a)[0], signal.SIGKILL)
    _wait_for(lambda: len(_pids(a)) == 2, "the killed child starts again")
    assert len(_pids(b)) == 1
    assert _alive(_pids(b)[0])


def test_sigterm_ends_everything_with_code_zero(supervise: Supervise, tmp_path: Path) -> None:
    a = tmp_path / "a"
    process = supervise(first=_beating(a))
    _wait_for(lambda: len(_pids(a)) == 1, "the child starts")
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=10) == 0
    assert not _alive(_pids(a)[0])


def test_the_first_child_ends_before_the_others_are_asked(supervise: Supervise, tmp_path: Path) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    slow = "import signal, time; signal.signal(signal.SIGTERM, lambda *_: (time.sleep(0.5), exit(0))); " + _beating(a)
    process = supervise(first=slow, second=_beating(b))
    _wait_for(lambda: len(_pids(a)) == 1 and len(_pids(b)) == 1, "both children start")
    process.send_signal(signal.SIGTERM)
    while _alive(_pids(a)[0]):
        assert _alive(_pids(b)[0]), "the second child works while the first hands over"
        time.sleep(0.01)
    assert process.wait(timeout=10) == 0
    assert not _alive(_pids(b)[0])


@pytest.mark.parametrize("code", [2, 3], ids=["configuration", "not supported here"])
def test_a_child_that_cannot_run_stops_everything_with_its_code(
    supervise: Supervise, tmp_path: Path, code: int
) -> None:
    a = tmp_path / "a"
    process = supervise(bad=f"raise SystemExit({code})", good=_beating(a))
    assert process.wait(timeout=10) == code
    _wait_for(lambda: all(not _alive(pid) for pid in _pids(a)), "the sibling ends as well")


def test_a_second_sigterm_does_not_wait_for_a_stubborn_child(supervise: Supervise, tmp_path: Path) -> None:
    a = tmp_path / "a"
    stubborn = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); " + _beating(a)
    process = supervise(first=stubborn)
    _wait_for(lambda: len(_pids(a)) == 1, "the child starts")
    for _ in range(2):  # the echo of the first one is no second request
        process.send_signal(signal.SIGTERM)
        time.sleep(0.2)
    assert process.poll() is None
    time.sleep(1.0)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=5) == 0
    _wait_for(lambda: not _alive(_pids(a)[0]), "the child is killed")


def test_z11_a_child_whose_configuration_changed_ends_everything_in_any_life(
    supervise: Supervise, tmp_path: Path
) -> None:
    lives, sibling = tmp_path / "lives", tmp_path / "sibling"
    code = f"import os; p = {str(lives)!r}; open(p, 'a').write('1\\n'); os._exit(10 if len(open(p).readlines()) == 2 else 1)"
    process = supervise(first=code, second=_beating(sibling))
    assert process.wait(timeout=10) == 1
    assert len(_pids(lives)) == 2
    _wait_for(lambda: all(not _alive(pid) for pid in _pids(sibling)), "the sibling ends as well")


def test_lines_are_klogs_or_json() -> None:
    for form in ("text", "json"):
        listed = json.dumps([{"name": 'a "b"\x1b', "argv": [sys.executable, "-c", "raise SystemExit(3)"]}])
        done = subprocess.run(
            [sys.executable, "-m", "kproxy.supervisor", listed, form],
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
        )
        lines = done.stderr.splitlines()
        assert len(lines) == 2
        assert all(line.isprintable() for line in lines)
        for line in lines:
            if form == "json":
                assert set(json.loads(line)) == {"ts", "caller", "msg", "v"}
            else:
                assert re.fullmatch(r'I\d{4} \d\d:\d\d:\d\d\.\d{6} +\d+ supervisor\.py:\d+\] "a .*"', line)


def test_dns_workers_that_hang_are_ended_and_started_again(supervise: Supervise, tmp_path: Path) -> None:
    """Nobody else may be there to do it: the controller may hang as well."""
    a, b = tmp_path / "a", tmp_path / "b"
    answering = (
        f"import os, socket; open({str(a)!r}, 'a').write(f'{{os.getpid()}}\\n');"
        "s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind(('127.0.0.7', 5399));"
        "exec('while True:\\n d, p = s.recvfrom(99); s.sendto(d, p)')"
    )
    watch = json.dumps({"dns": ["127.0.0.7"], "port": 5399})
    supervise("text", watch, controller=_beating(b), dns_worker_0=answering)
    _wait_for(lambda: len(_pids(a)) == 1 and len(_pids(b)) == 1, "both children start")
    time.sleep(3.5)
    assert len(_pids(a)) == 1, "one that answers is left alone"
    os.kill(_pids(b)[0], signal.SIGSTOP)
    os.kill(_pids(a)[0], signal.SIGSTOP)
    _wait_for(lambda: len(_pids(a)) == 2, "the one that hangs is replaced")
    assert not _alive(_pids(a)[0]) and len(_pids(b)) == 1
    os.kill(_pids(b)[0], signal.SIGCONT)  # or the end would wait for it


# --- relay workers: they have connections, and more time than the others -----------------------------------------------------------------


def _relaying(path: Path, seconds: float) -> str:
    """A worker that writes its pid, says which signals come, and ends `seconds` after SIGTERM."""
    return (
        "import os, signal, time\n"
        f"def say(word): open({str(path)!r}, 'a').write(f'{{word}} {{os.getpid()}}\\n')\n"
        "signal.signal(signal.SIGUSR2, lambda *_: say('leave'))\n"
        f"signal.signal(signal.SIGTERM, lambda *_: (say('drain'), time.sleep({seconds}), say('over'), os._exit(0)))\n"
        "say('up')\n"
        "while True: time.sleep(0.2)\n"
    )


def _said(path: Path) -> list[str]:
    return [line.split()[0] for line in path.read_text(encoding="ascii").splitlines()] if path.exists() else []


def _first_pid(path: Path) -> int:
    return int(path.read_text(encoding="ascii").split()[1])


@pytest.mark.parametrize(("hand_over_s", "said"), [(20, ["up", "drain", "over"]), (0, ["up", "drain"])])
def test_relay_workers_have_the_time_that_was_configured_on_top_of_the_others(
    tmp_path: Path, hand_over_s: float, said: list[str]
) -> None:
    """The ten seconds that all others have are a quarter here; the worker takes one to end."""
    a, c = tmp_path / "a", tmp_path / "c"
    listed = [("controller", _beating(a)), ("relay worker 0", _relaying(c, 1.0))]
    arguments = [
        json.dumps([{"name": name, "argv": [sys.executable, "-c", code]} for name, code in listed]),
        "text",
        json.dumps({"hand_over": hand_over_s}),
    ]
    code = f"import sys, kproxy.supervisor as one; one._GRACE_S = 0.25; sys.exit(one.main({arguments!r}))"
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    try:
        _wait_for(lambda: _said(c) == ["up"] and _pids(a) != [], "the children start")
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=15) == 0
        assert _said(c) == said
    finally:
        process.kill()
        process.wait()


def test_a_second_sigterm_does_not_wait_for_connections(supervise: Supervise, tmp_path: Path) -> None:
    c = tmp_path / "c"
    process = supervise(
        "text", json.dumps({"hand_over": 60}), controller=_beating(tmp_path / "a"), relay_worker_0=_relaying(c, 60)
    )
    _wait_for(lambda: _said(c) == ["up"] and _pids(tmp_path / "a") != [], "the children start")
    process.send_signal(signal.SIGTERM)
    _wait_for(lambda: _said(c) == ["up", "drain"], "the worker drains")
    time.sleep(1.0)  # a second one that comes sooner is the first one's echo
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=5) == 0
    assert _said(c) == ["up", "drain"]


@pytest.mark.parametrize("moment", ["while all is well", "while everything ends"])
def test_a_relay_worker_that_hangs_is_ended_and_started_again_and_its_sibling_is_left_alone(
    tmp_path: Path, moment: str
) -> None:
    """Ten looks of a hundredth of what they are, so that an idle worker must not be still for longer than that: it wakes all the time."""
    waking, quiet, first = "time.sleep(0.005)", "time.sleep(60)", tmp_path / "first"
    program = (
        "import os, signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "open({!r}, 'a').write(f'{{os.getpid()}}\\n')\nwhile True: {}\n"
    )
    a, b = tmp_path / "a", tmp_path / "b"
    listed = [("controller", _beating(first))]
    listed += [("relay worker 0", program.format(str(a), waking)), ("relay worker 1", program.format(str(b), waking))]
    listed += [("loopback", program.format(str(tmp_path / "d"), quiet))]
    arguments = [
        json.dumps([{"name": name, "argv": [sys.executable, "-c", code]} for name, code in listed]),
        "text",
        json.dumps({"hand_over": 60}),
    ]
    patch = "import kproxy.relay.stillness as s, kproxy.supervisor as one; one.LOOK_S = s.LOOK_S = 0.05"
    code = f"import sys; {patch}; sys.exit(one.main({arguments!r}))"
    with open(tmp_path / "said", "w", encoding="utf-8") as said:
        process = subprocess.Popen([sys.executable, "-c", code], stderr=said)
    try:
        _wait_for(lambda: all(len(_pids(path)) == 1 for path in (a, b, first, tmp_path / "d")), "the children start")
        if moment == "while everything ends":
            process.send_signal(signal.SIGTERM)
            _wait_for(lambda: not _alive(_pids(first)[0]), "the end has begun")
        (stopped,), (other,) = _pids(a), _pids(b)
        os.kill(stopped, signal.SIGSTOP)
        _wait_for(lambda: not _alive(stopped), "the one that hangs is ended")
        if moment == "while all is well":
            _wait_for(lambda: len(_pids(a)) == 2, "and started again")
        assert _alive(other) and _pids(b) == [other]
        assert len(_pids(tmp_path / "d")) == 1, "what may sleep for ever is no relay worker"
    finally:
        process.kill()
        process.wait()
        for path in (a, b, first, tmp_path / "d"):
            for pid in _pids(path):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
    told = (tmp_path / "said").read_text(encoding="utf-8")
    assert told.count("relay worker 0 hangs: it is ended") == told.count(" hangs") == 1, told


def _renewing(tmp_path: Path, controller: str) -> tuple[str, ...]:
    """The arguments of a family whose next one is this Python program: it writes what it was left with and supervises nothing."""
    program = (
        "import json, os, sys\n"
        "from kproxy.supervisor import BEFORE, Relaying, command_line\n"
        f"before = [int(pid) for pid in os.environ.pop(BEFORE).split(',')]\n"
        f"open({str(tmp_path / 'again')!r}, 'a').write(f'{{os.getpid()}} {{before[0]}}\\n')\n"
        f"listed = [('controller', [sys.executable, '-c', {controller!r}])]\n"
        "relaying = Relaying(hand_over_s=5, again=['/bin/false'], hold=(), before=(*before, 1))\n"
        "argv = command_line(listed, 'text', relaying=relaying)\n"
        "os.execv(argv[0], argv)\n"
    )
    return "text", json.dumps({"hand_over": 5, "again": [sys.executable, "-c", program]})


def test_a_changed_configuration_leaves_relay_workers_alone_and_the_process_goes_on(
    supervise: Supervise, tmp_path: Path
) -> None:
    """The next family is of the same process; it ends those of before when it is asked to end, and gives them their time."""
    a, b, c = tmp_path / "a", tmp_path / "b", tmp_path / "c"
    ends = f"import os, time\nwhile not os.path.exists({str(tmp_path / 'go')!r}): time.sleep(0.02)\nos._exit(10)"
    process = supervise(
        *_renewing(tmp_path, _beating(a)), controller=ends, dns_worker_0=_beating(b), relay_worker_0=_relaying(c, 0.3)
    )
    _wait_for(lambda: _said(c) == ["up"] and len(_pids(b)) == 1, "the first family starts")
    (tmp_path / "go").touch()
    _wait_for(lambda: len(_pids(a)) == 1, "the next controller starts")
    relay = _first_pid(c)
    assert (tmp_path / "again").read_text(encoding="ascii").split() == [str(process.pid), str(relay)]
    assert not _alive(_pids(b)[0]) and _alive(relay) and _said(c) == ["up", "leave"]
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=10) == 0
    assert _said(c) == ["up", "leave", "drain", "over"]


def test_the_end_of_all_goes_before_a_new_start(supervise: Supervise, tmp_path: Path) -> None:
    """SIGTERM while others of the family are still ending for the new start."""
    b, c = tmp_path / "b", tmp_path / "c"
    slow = f"import signal, time; signal.signal(signal.SIGTERM, lambda *_: (open({str(b)!r}, 'w'), time.sleep(1), exit(0))); time.sleep(60)"
    ends = f"import os, time\nwhile not os.path.exists({str(tmp_path / 'go')!r}): time.sleep(0.02)\nos._exit(10)"
    process = supervise(
        *_renewing(tmp_path, "pass"), controller=ends, dns_worker_0=slow, relay_worker_0=_relaying(c, 0.1)
    )
    _wait_for(lambda: _said(c) == ["up"], "the family starts")
    time.sleep(0.3)  # until the slow one has its handler
    (tmp_path / "go").touch()
    _wait_for(b.exists, "the others are ending")
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=12) == 0
    assert not (tmp_path / "again").exists() and _said(c) == ["up", "leave", "drain", "over"]
