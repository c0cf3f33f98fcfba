"""Restarts of kproxy on a living node: killed, killed again, replaced by another version. Packets are the judges.

The whole family of processes gets SIGKILL, so nothing is handed over; then the controller alone, which the supervisor starts again. What
the kernel holds meanwhile has to be enough for everybody, and the start that follows has to leave it alone.
"""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from kproxy.backends.iptables.variant import Variant
from kproxy.lab.controlplane import ControlPlane
from tests.support import echoing
from tests.support.cluster_api import Api
from tests.support.netns import run
from tests.support.one_node import OneNode, endpoint_address, service_address
from tests.support.prefilled import endpoint_slice, node, prefilled, service, service_name
from tests.support.proxies import REPOSITORY, SYNC_TIME, Program, Running, Stage, metrics, value_of
from tests.support.traffic import Outcome, Traffic

COUNT, ENDPOINTS, RATE, FLOWS, CLIENTS = 100, 3, 1000, 500, 60
PORTS = (("new", "TCP", 80, echoing.NAMING), ("flow", "TCP", 81, echoing.ECHO), ("udp", "UDP", 82, echoing.NAMING))
SLICE_PORTS = [(name, protocol, target) for name, protocol, _, target in PORTS]
SERVICES = range(0, COUNT, 10)
SAMPLE_S = 0.01


def _addresses(number: int) -> list[str]:
    return [endpoint_address(number * ENDPOINTS + n) for n in range(ENDPOINTS)]


def _objects() -> Iterator[dict[str, Any]]:
    yield node()
    for number in range(COUNT):
        name = service_name(number)
        yield service(name, service_address(number), PORTS)
        yield endpoint_slice(name, _addresses(number), SLICE_PORTS)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[OneNode, ControlPlane]]:
    with OneNode() as bed, bed.answers(), prefilled(bed, tmp_path_factory.mktemp("plane"), _objects()) as plane:
        yield bed, plane


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as made:
        yield made


def _started(stage: Stage, stack: ExitStack) -> Running:
    running = stage.start(Program.KPROXY)
    stack.callback(running.stop)
    running.wait_synced()
    return running


def _taken_over(stage: Stage, old: Running, stack: ExitStack) -> Running:
    """A further instance stands by, then the old one is asked to end; returns once the new one writes the rules."""
    lock = stage.scratch / "run" / "controller.lock"
    writer = lock.read_text()
    new = stage.start(Program.KPROXY)
    stack.callback(new.stop)
    new.wait_said("Standing by")
    old.stop()
    deadline = time.monotonic() + 30
    while lock.read_text() in ("", writer):
        assert time.monotonic() < deadline, new.tail()
        time.sleep(0.02)
    return new


def _traffic(bed: OneNode, stack: ExitStack) -> Traffic:
    addresses = [service_address(n) for n in SERVICES]
    new = [{"address": a, "port": 80, "rate": RATE / len(addresses)} for a in addresses]
    flows = [{"address": a, "port": 81, "count": FLOWS // len(addresses), "every_s": 1.0} for a in addresses]
    return stack.enter_context(Traffic(bed.pods, seconds=60, new=new, flows=flows))


def _nothing_failed(seen: Outcome) -> None:
    assert seen.failed == 0, seen
    assert (seen.flows, seen.flows_broken, seen.flows_stalled) == (FLOWS, 0, 0), seen


def _controller(running: Running) -> int:
    return next(pid for pid in running.pids() if b"\0kproxy.app\0" in Path(f"/proc/{pid}/cmdline").read_bytes())


@pytest.mark.parametrize("variant", list(Variant), ids=lambda variant: variant.value)
def test_fault_09_u12_sigkill_and_restart_under_new_connections_and_long_flows(
    cluster: tuple[OneNode, ControlPlane], variant: Variant, tmp_path: Path, stack: ExitStack
) -> None:
    bed, plane = cluster
    bed.clean(variant)
    stage = Stage(bed, plane, variant, tmp_path)
    running = _started(stage, stack)
    traffic = _traffic(bed, stack)
    time.sleep(0.5)
    running.kill()
    time.sleep(0.3)
    running = _started(stage, stack)
    before = time.time()
    os.kill(_controller(running), signal.SIGKILL)
    deadline = time.monotonic() + 30
    while value_of(metrics(bed), SYNC_TIME) < before:
        assert time.monotonic() < deadline, running.tail()
        time.sleep(0.05)
    seen = traffic.finish()
    _nothing_failed(seen)
    assert seen.connections > RATE, seen


def test_fault_10_a_restart_keeps_established_udp_flows_on_their_endpoints(
    cluster: tuple[OneNode, ControlPlane], tmp_path: Path, stack: ExitStack
) -> None:
    """All but those whose endpoint went away meanwhile: nobody told the dead one, the next finds them."""
    bed, plane = cluster
    variant = Variant.NFT
    bed.clean(variant)
    stage = Stage(bed, plane, variant, tmp_path)
    running = _started(stage, stack)
    flows = {"address": service_address(1), "port": 82, "count": CLIENTS, "every_s": 0.1}
    traffic = stack.enter_context(Traffic(bed.pods, seconds=60, datagrams=[flows]))
    time.sleep(0.5)
    running.kill()
    api = Api.of(bed.node, plane)
    stack.callback(api.close)
    *kept, gone = _addresses(1)
    api.replace(endpoint_slice(service_name(1), kept, SLICE_PORTS))
    stack.callback(api.replace, endpoint_slice(service_name(1), _addresses(1), SLICE_PORTS))
    time.sleep(0.3)
    running = _started(stage, stack)
    time.sleep(1.0)
    _taken_over(stage, running, stack)
    time.sleep(1.0)
    seen = traffic.finish()
    first = [one for one, _ in seen.datagram_endpoints]
    assert set(first) == {*kept, gone}, "every endpoint had a flow"
    wrong = [(one, last) for one, last in seen.datagram_endpoints if last not in kept or (one in kept and last != one)]
    assert not wrong, f"first and last endpoint of flows: {wrong}"
    assert seen.moved == first.count(gone), seen


class _Sampler:
    """How many rules the nat table holds, again and again, as `iptables-save` sees it."""

    def __init__(self, bed: OneNode, variant: Variant) -> None:
        self.counts: list[int] = []
        self._bed, self._tool = bed, f"iptables-{variant.value}-save"
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        with self._bed.node.entered():
            while not self._stop.wait(SAMPLE_S):
                self.counts.append(run(None, self._tool, "-t", "nat").count("\n-A KUBE-"))

    def __enter__(self) -> _Sampler:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def _next_version(folder: Path) -> Path:
    """A folder with the program as it is, but for its version."""
    shutil.copytree(REPOSITORY / "kproxy", folder / "kproxy", ignore=shutil.ignore_patterns("__pycache__"))
    init = folder / "kproxy" / "__init__.py"
    head, _, _ = init.read_text().partition("__version__ =")
    init.write_text(f'{head}__version__ = "999.0.0"\n')
    return folder


def test_fault_11_a_rolling_upgrade_and_the_way_back_never_leave_the_rules_empty(
    cluster: tuple[OneNode, ControlPlane], tmp_path: Path, stack: ExitStack
) -> None:
    bed, plane = cluster
    variant = Variant.LEGACY
    bed.clean(variant)
    present = Stage(bed, plane, variant, tmp_path)
    newer = Stage(bed, plane, variant, tmp_path, home=_next_version(tmp_path / "newer"))
    running = _started(present, stack)
    traffic = _traffic(bed, stack)
    with _Sampler(bed, variant) as sampler:
        for stage in (newer, present):
            running = _taken_over(stage, running, stack)
            version = any('version="999.0.0"' in name for name in metrics(bed) if name.startswith("kproxy_build_info"))
            assert version == (stage is newer)
            time.sleep(0.5)
    _nothing_failed(traffic.finish())
    assert len(sampler.counts) > 20
    assert set(sampler.counts) == {sampler.counts[0]}, "nothing changed, so no sample may differ"
    assert sampler.counts[0] > COUNT * ENDPOINTS
