"""What holds for every test: its lane's marker and time limit, the order of the lanes, hypothesis profiles, and the honest ending.

The lanes and their prerequisites are described in support/lanes.py. Warnings are errors (pyproject.toml). After pytest's own closing line
stands one line for each lane that was asked for and could not run, with the reason; in CI that is a failure instead.

KPROXY_HYPOTHESIS chooses a profile: fast (default), ci (the same choice of examples every time), deep (for a night).
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.support.control_plane import admin_kubeconfig, control_plane, fresh_namespace, kubectl
from tests.support.lanes import CONTROL_PLANE, LANES, Lane, in_ci, lane_of, reason_left_out

__all__ = ["admin_kubeconfig", "control_plane", "fresh_namespace", "kubectl"]  # fixtures for every lane

_SLOW_IS_FINE = [HealthCheck.too_slow]  # a shared machine pauses whenever it likes; the lane's time limit still holds
settings.register_profile("fast", max_examples=60, deadline=None, suppress_health_check=_SLOW_IS_FINE)
settings.register_profile(
    "ci",
    max_examples=100,
    deadline=None,
    derandomize=True,
    print_blob=True,
    database=None,
    suppress_health_check=_SLOW_IS_FINE,
)
settings.register_profile("deep", max_examples=20_000, deadline=None, suppress_health_check=_SLOW_IS_FINE)
settings.load_profile(os.environ.get("KPROXY_HYPOTHESIS") or ("ci" if in_ci() else "fast"))

_LEFT_OUT = pytest.StashKey[dict[str, str]]()


def pytest_configure(config: pytest.Config) -> None:
    for lane in LANES:
        config.addinivalue_line("markers", f"{lane.name}: lane tests/{lane.name}")
    config.addinivalue_line("markers", "control_plane: needs a real kube-apiserver with its controllers")
    config.stash[_LEFT_OUT] = {}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    asked = {lane.name for argument in config.args if (lane := lane_of(Path(argument.split("::")[0])))}
    left_out = config.stash[_LEFT_OUT]
    keep: list[tuple[int, pytest.Item]] = []
    drop: list[pytest.Item] = []
    for lane in LANES:
        if lane.name in asked and (reason := reason_left_out(lane)):
            _leave_out(lane, reason, left_out)
    for item in items:
        place = _prepare(item, left_out)
        if place is None:
            drop.append(item)
        else:
            keep.append((place, item))
    demanded = [name for name in left_out if name == CONTROL_PLANE.name or _by_name(name).demanded_in_ci]
    if in_ci() and demanded:
        lines = "\n".join(f"  {name}: {left_out[name]}" for name in demanded)
        raise pytest.UsageError(f"in CI these lanes must run, and cannot:\n{lines}")
    keep.sort(key=lambda pair: pair[0])  # stable: within a lane the order stays
    items[:] = [item for _, item in keep]
    if drop:
        config.hook.pytest_deselected(items=drop)


def pytest_unconfigure(config: pytest.Config) -> None:
    for name, reason in config.stash.get(_LEFT_OUT, {}).items():
        what = "tests with a real control plane" if name == CONTROL_PLANE.name else f"lane {name}"
        print(f"{what} left out: {reason}")


def _prepare(item: pytest.Item, left_out: dict[str, str]) -> int | None:
    """Marks one test with its lane and time limit. Its place in the order, or None where it cannot run here."""
    lane = lane_of(item.path)
    if lane is None:
        return len(LANES)
    item.add_marker(lane.name)
    wants_plane = item.get_closest_marker(CONTROL_PLANE.name) is not None
    if item.get_closest_marker("timeout") is None:
        item.add_marker(pytest.mark.timeout(max(lane.timeout_s, CONTROL_PLANE.timeout_s if wants_plane else 0)))
    if lane.name not in left_out and (reason := reason_left_out(lane)):
        _leave_out(lane, reason, left_out)
    if lane.name in left_out:
        return None
    if wants_plane and (reason := reason_left_out(CONTROL_PLANE)):
        _leave_out(CONTROL_PLANE, reason, left_out)
        return None
    # the architecture test first: a forbidden import explains most of what breaks after it
    return -1 if item.path.name == "test_architecture.py" else LANES.index(lane)


def _leave_out(lane: Lane, reason: str, left_out: dict[str, str]) -> None:
    left_out.setdefault(lane.name, reason)


def _by_name(name: str) -> Lane:
    return next(lane for lane in LANES if lane.name == name)
