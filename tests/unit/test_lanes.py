"""The honest ending of a test run: a lane that cannot run is named with its reason after pytest's closing line; in CI it is a failure."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.lanes import LANES, lane_of

ROOT = Path(__file__).resolve().parents[2]
# A run outside of any namespace made for it: what touches the network must be left out.
PLAIN = {k: v for k, v in os.environ.items() if not k.startswith(("KPROXY_", "PYTEST_"))} | {
    "KPROXY_PEERS": "/nonexistent"
}


def pytest_says(*arguments: str, **environment: str) -> tuple[int, list[str]]:
    """Exit code and lines of a run in a process of its own."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
    done = subprocess.run(command, cwd=ROOT, env=PLAIN | environment, capture_output=True, text=True, timeout=60)
    return done.returncode, (done.stdout + done.stderr).rstrip().splitlines()


def test_lanes_left_out_are_named_last_with_the_reason() -> None:
    code, lines = pytest_says(
        "tests/unit/test_lanes.py::test_every_folder_of_tests_is_a_lane_or_known", "tests/peers", "tests/packet"
    )
    assert code == 0
    closing = next(n for n, line in enumerate(lines) if "1 passed" in line)
    assert lines[closing + 1].startswith("lane packet left out: needs a network namespace of its own")
    assert lines[closing + 2].startswith(
        "lane peers left out: needs kube-proxy, coredns, podresolver, lookup-go, lookup-musl-old, lookup-musl-new: `tests/peers/build`"
    )
    assert len(lines) == closing + 3


def test_in_ci_a_lane_that_cannot_run_is_a_failure() -> None:
    code, lines = pytest_says(
        "tests/unit/test_lanes.py::test_every_folder_of_tests_is_a_lane_or_known", "tests/packet", KPROXY_CI="1"
    )
    assert code == pytest.ExitCode.USAGE_ERROR
    assert any("in CI these lanes must run, and cannot" in line for line in lines)


def test_every_folder_of_tests_is_a_lane_or_known() -> None:
    folders = {
        path.name for path in (ROOT / "tests").iterdir() if path.is_dir() and not path.name.startswith(("__", "."))
    }
    assert folders == {lane.name for lane in LANES} | {"support", "bench"}


def test_a_file_belongs_to_the_lane_of_its_folder() -> None:
    found = lane_of(ROOT / "tests/packet/test_rows.py")
    assert found is not None and found.name == "packet"
    assert lane_of(ROOT / "tests/conftest.py") is None
    assert lane_of(ROOT / "kproxy/app.py") is None
