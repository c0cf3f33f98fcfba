"""What a lab leaves on disk, and how a dead one is told from a living one."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from kproxy.errors import KproxyError
from kproxy.lab import statefile
from kproxy.lab.statefile import LabState

ME = LabState(
    version="1", pid=os.getpid(), started=statefile.start_time(os.getpid()) or 0, api="embedded", variant="auto",
    nodes=("node-1",), port=1, user_namespace=False,
)  # fmt: skip


@pytest.mark.parametrize(
    ("environ", "uid", "expected"),
    [
        ({"KPROXY_LAB_DIR": "/x/y"}, 0, "/x/y"),
        ({}, 0, "/run/kproxy-lab"),
        ({"XDG_RUNTIME_DIR": "/nowhere"}, 1000, "/tmp/kproxy-lab-1000"),
        ({"XDG_RUNTIME_DIR": "/tmp"}, 1000, "/tmp/kproxy-lab"),
    ],
)
def test_where_the_state_lies(environ: dict[str, str], uid: int, expected: str) -> None:
    assert statefile.state_dir(environ, uid) == Path(expected)


def test_a_running_lab_is_found_again(tmp_path: Path) -> None:
    statefile.save(tmp_path, ME)
    assert statefile.running(tmp_path) == ME


@pytest.mark.parametrize(
    "state",
    [
        pytest.param(replace(ME, started=ME.started + 1), id="the process id belongs to another process by now"),
        pytest.param(replace(ME, pid=2**22 + 1), id="no such process"),
    ],
)
def test_a_dead_lab_is_not_running_and_can_be_cleared(tmp_path: Path, state: LabState) -> None:
    statefile.save(tmp_path, state)
    assert statefile.running(tmp_path) is None
    assert statefile.clear(tmp_path)
    assert not statefile.clear(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["", "{", "[]", '{"pid": 1}'])
def test_a_broken_state_file_is_no_lab(tmp_path: Path, text: str) -> None:
    (tmp_path / "lab.json").write_text(text)
    assert statefile.load(tmp_path) is None


def test_a_directory_that_is_no_directory_of_ours_is_refused(tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(tmp_path)
    with pytest.raises(KproxyError, match="belongs to another user"):
        statefile.make_dir(link)
