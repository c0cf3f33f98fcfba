"""The controller that is begun before its configuration is read: it gets its flags, or goes without a trace; the supervisor takes it on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from kproxy import early


def _wait_for(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 15
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def _run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True)


# A package kproxy.app that says what it was told, in place of the real one.
_CONTROLLER = """\
import os, sys, time
from kproxy.early import flags_from
flags = flags_from(sys.argv[1])
open(os.environ["TOLD"], "a").write(f"{os.getpid()} {os.getppid()} {flags} {os.readlink('/proc/self/fd/0')}\\n")
time.sleep(60 if flags is not None else 0)
"""


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    package = tmp_path / "kproxy"
    package.mkdir()
    for found in Path(early.__file__).parent.iterdir():
        if found.name not in ("app.py", "__pycache__"):
            (package / found.name).symlink_to(found)
    (package / "app.py").write_text(_CONTROLLER)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TOLD", str(tmp_path / "told"))
    return tmp_path


def _told(stage: Path) -> list[str]:
    path = stage / "told"
    return path.read_text().splitlines() if path.exists() else []


def test_the_supervisor_takes_the_controller_on_that_was_begun(stage: Path) -> None:
    code = (
        "import os, sys\n"
        "from kproxy import early, supervisor\n"
        "early.begin(['--config', 'x'])\n"
        "listed = [('controller', [sys.executable, '-m', 'kproxy.app', '{\"second\": 1}'])]\n"
        "argv = supervisor.command_line(listed, 'text', begun=early.hand_over({'config': 'x'}))\n"
        "os.execv(argv[0], argv)\n"
    )
    said = stage / "said"
    with said.open("wb") as output:
        process = subprocess.Popen([sys.executable, "-c", code], stderr=output)
    try:
        _wait_for(lambda: len(_told(stage)) == 1 and "controller started" in said.read_text(), "nobody was told")
        pid, parent, *flags = _told(stage)[0].split()
        assert int(parent) == process.pid and flags == ["{'config':", "'x'}", "/dev/null"]
        os.kill(int(pid), signal.SIGKILL)  # it is kept alive as any child is
        _wait_for(lambda: len(_told(stage)) == 2, "it was not started again")
        assert _told(stage)[1].split()[1:] == [str(process.pid), "{'second':", "1}", "/dev/null"]
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=15)
    assert said.read_text().count("controller started, pid") == 2


def test_a_command_that_ends_takes_it_back(stage: Path) -> None:
    said = _run("import sys\nfrom kproxy import early\nearly.begin([])\nprint(early._begun.pid)\nsys.exit(0)")
    pid = int(said.stdout)
    assert pid > 0 and not Path(f"/proc/{pid}").exists() and not said.stderr
    assert not [line for line in _told(stage) if "None" not in line]


def test_it_goes_when_whoever_began_it_is_gone(stage: Path) -> None:
    _run("import os\nfrom kproxy import early\nearly.begin([])\nos._exit(0)")
    _wait_for(lambda: bool(_told(stage)), "it waits for ever")
    assert " None " in _told(stage)[0]


@pytest.mark.parametrize("word", ["--help", "--version", "--init-only=true", "--cleanup", "--write-config-to=x"])
def test_nothing_is_begun_for_what_only_ends(stage: Path, word: str) -> None:
    said = _run(
        f"from kproxy import early\nearly.begin(['--config', 'x', {word!r}])\nprint(early._begun.pid, early.hand_over({{}}))"
    )
    assert said.stdout.split() == ["0", "0"]


def test_flags_too_long_for_a_pipe_go_the_ordinary_way(stage: Path) -> None:
    said = _run(
        "from kproxy import early\nearly.begin([])\npid = early._begun.pid\nprint(early.hand_over({'x': 'y' * 100_000}), pid)"
    )
    begun, pid = said.stdout.split()
    assert begun == "0" and not Path(f"/proc/{pid}").exists()


def test_flags_on_the_command_line() -> None:
    assert early.flags_from('{"a": 1}') == {"a": 1}
