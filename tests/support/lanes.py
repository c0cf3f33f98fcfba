"""The lanes of the test run: what each needs from the machine, how long one of its tests may take, in which order they run.

A lane is a folder below tests/. `reason_left_out(lane)` is None where the lane can run here, else one line for people. A lane that cannot
run is left out as a whole and named at the end; no single test skips itself, so nothing disappears quietly. Where KPROXY_CI is set,
every lane that it demands must run: a missing prerequisite is a failure there.

Lanes that touch the network demand a network namespace made for this run (tests/run makes it and says so in KPROXY_PRIVATE_NETNS): no
packet of a test may leave the machine, no rule may land in its real tables.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from kproxy.lab.controlplane import find_program, missing_programs

TESTS = Path(__file__).resolve().parents[1]
SBIN = "/usr/local/sbin:/usr/sbin:/sbin"  # a plain user's PATH lacks them


@dataclass(frozen=True, slots=True, kw_only=True)
class Lane:
    """One folder below tests/."""

    name: str
    timeout_s: int  # for one test
    missing: Callable[[], str | None]
    demanded_in_ci: bool = True


def _nothing() -> str | None:
    return None


def _private_namespace() -> str | None:
    inode = Path("/proc/self/ns/net").stat().st_ino
    if os.environ.get("KPROXY_PRIVATE_NETNS") != str(inode):
        return "needs a network namespace of its own (run it by tests/run, which makes one)"
    if os.geteuid() != 0:
        return "needs root, or unprivileged user namespaces (tests/run uses them where they are allowed)"
    return None


def _programs(*names: str) -> str | None:
    path = f"{os.environ.get('PATH', '')}:{SBIN}"
    absent = [name for name in names if shutil.which(name, path=path) is None]
    return f"needs {', '.join(absent)}, not found on this machine" if absent else None


@cache
def _packets() -> str | None:
    absent = _private_namespace() or _programs(
        "ip", "nft", "iptables-legacy-restore", "iptables-nft-restore", "ip6tables-legacy-restore"
    )
    if absent:
        return absent
    if not os.access("/run/netns", os.W_OK):
        return "needs to write /run/netns to name its network namespaces"
    for tool in ("iptables-legacy", "iptables-nft", "ip6tables-legacy", "ip6tables-nft"):
        probe = subprocess.run([tool, "-t", "nat", "-S"], capture_output=True, text=True, timeout=20, env=_with_sbin())
        if probe.returncode != 0:
            return f"this kernel refuses `{tool} -t nat`: {probe.stderr.strip().splitlines()[-1:]}"
    return None


@cache
def _control_plane() -> str | None:
    if absent := missing_programs(os.environ):
        return f"needs {', '.join(absent)}: `tests/peers/build` makes them with the Go toolchain"
    return _private_namespace()


@cache
def _peers() -> str | None:
    wanted = ("kube-proxy", "coredns", "podresolver", "lookup-go", "lookup-musl-old", "lookup-musl-new")
    absent = [name for name in wanted if find_program(name, os.environ) is None]
    if absent:
        return f"needs {', '.join(absent)}: `tests/peers/build` makes them with the Go toolchain"
    return _control_plane() or _packets()


@cache
def _kind() -> str | None:
    if absent := _programs("docker", "kind", "kubectl"):
        return absent
    server = subprocess.run(["docker", "version", "--format", "{{.Server.Version}}"], capture_output=True, timeout=20)
    return None if server.returncode == 0 else "needs docker's daemon, which does not answer"


def _with_sbin() -> dict[str, str]:
    return {**os.environ, "PATH": f"{os.environ.get('PATH', '')}:{SBIN}"}


LANES: tuple[Lane, ...] = (
    Lane(name="unit", timeout_s=30, missing=_nothing),
    Lane(name="golden", timeout_s=30, missing=_nothing),
    Lane(name="property", timeout_s=60, missing=_nothing),
    Lane(name="dns", timeout_s=60, missing=_private_namespace),
    Lane(name="packet", timeout_s=120, missing=_packets),
    Lane(name="apiserver", timeout_s=120, missing=_control_plane),
    Lane(name="lab", timeout_s=300, missing=_packets),
    Lane(name="peers", timeout_s=180, missing=_peers),
    Lane(name="kind", timeout_s=900, missing=_kind, demanded_in_ci=False),  # CI has no container runtime
)

# A single test of another lane that wants a real control plane carries this marker; it counts as a lane of its own.
CONTROL_PLANE = Lane(name="control_plane", timeout_s=300, missing=_control_plane)


def lane_of(path: Path) -> Lane | None:
    """The lane a file or folder belongs to; None outside the lanes' folders."""
    try:
        first = path.resolve().relative_to(TESTS).parts[0]
    except (ValueError, IndexError):
        return None
    return next((lane for lane in LANES if lane.name == first), None)


def in_ci() -> bool:
    """Whether a missing prerequisite is a failure. Set by .ci/run."""
    return os.environ.get("KPROXY_CI", "") not in ("", "0")


def reason_left_out(lane: Lane) -> str | None:
    """Why this lane cannot run here, in one line; None where it can."""
    return lane.missing()
