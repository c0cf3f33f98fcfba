"""A hundred endpoint changes a second for minutes: how long until each is in force, and what becomes of the memory.

    writers (a process) ─ 100 slices/s ─▶ API server ─▶ proxy ─▶ rules
    canary  (a thread)  ─ one of them, twice a second: seconds until a connection reaches the new endpoint

The canary is told by packets; the program's own histogram of programming latency (from the annotation that every slice carries) stands
beside it.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from kproxy.lab.controlplane import ADMIN
from tests.bench.peer.probing import seconds_until_answered
from tests.bench.peer.table import Figures, Size
from tests.support import echoing
from tests.support.cluster_api import Api
from tests.support.one_node import endpoint_address
from tests.support.prefilled import endpoint_slice, service, service_name
from tests.support.proxies import Program, Running, Stage, metrics

RATE, WRITERS = 100, 4
CANARY, CANARY_PORTS = "10.110.3.1", (("http", "TCP", 80, echoing.NAMING),)
_CANARY_EVERY_S, _MEMORY_EVERY_S = 0.5, 5.0
_WARM_S = 60.0  # until then pools fill: 90 MiB after half a minute, 94.6 after one, 95.6 after seven
_LIMIT_S = 240.0
_OWN = "network_programming_duration_seconds_bucket"
_FINER = f"kproxy_{_OWN}"
_REPOSITORY = Path(__file__).resolve().parents[3]


def trigger() -> dict[str, str]:
    """The annotation from which proxies know when a change was asked for."""
    now = datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
    return {"endpoints.kubernetes.io/last-change-trigger-time": now}


def churn(
    stage: Stage, api: Api, size: Size, program: Program, figures: Figures, seconds: float, say: Callable[[str], None]
) -> None:
    """Runs the churn on a program that starts on empty tables."""
    stage.bed.clean(stage.variant)
    running = stage.start(program)
    api.create(service("canary", CANARY, CANARY_PORTS))
    api.create(endpoint_slice("canary", [endpoint_address(50_000)], [("http", "TCP", echoing.NAMING)]))
    try:
        running.wait_synced(_LIMIT_S)
        _measure(stage, api, size, running, figures, seconds, say)
    finally:
        running.stop()
        api.remove("canary")


def _measure(
    stage: Stage, api: Api, size: Size, running: Running, figures: Figures, seconds: float, say: Callable[[str], None]
) -> None:
    def note(key: str, *values: float) -> None:
        figures.add(size, stage.variant, running.program, f"churn.{key}", *values)

    before, cpu, began = metrics(stage.bed), running.cpu_seconds(), time.monotonic()
    memory = _Memory(running)
    with _Writers(stage, size, seconds) as writers:
        waits = _canary(stage, api, began + seconds, memory)
        written = writers.finish()
    waits.sort()
    note("p50", waits[len(waits) // 2])
    note("p99", waits[int(len(waits) * 0.99)])
    took = time.monotonic() - began
    note("rate", written / took + 1 / _CANARY_EVERY_S)
    note("cpu", (running.cpu_seconds() - cpu) / took)
    after = metrics(stage.bed)
    for key, share in (("own.p50", 0.5), ("own.p99", 0.99)):
        if (found := quantile(before, after, share)) is not None:
            note(key, found)
    warm = [rss for when, rss in memory.samples if when >= min(_WARM_S, seconds / 3)]
    note("rss.start", warm[0])
    note("rss.end", warm[-1])
    say(f"p50 {waits[len(waits) // 2]:.3f} s, p99 {waits[int(len(waits) * 0.99)]:.3f} s, {written / took:.0f} writes/s, "
        f"RSS {warm[0]:.0f} → {warm[-1]:.0f} MiB (most {max(warm):.0f}; on the way {_on_the_way(warm)})")  # fmt: skip


def _on_the_way(samples: list[float], shown: int = 10) -> str:
    """A few of many, evenly spread: whether memory grows or has settled."""
    step = max(1, len(samples) // shown)
    return " ".join(f"{rss:.1f}" for rss in samples[::step])


def _canary(stage: Stage, api: Api, until: float, memory: _Memory) -> list[float]:
    waits: list[float] = []
    number = 0
    while time.monotonic() < until:
        number += 1
        address = endpoint_address(50_000 + number % 2)
        due = time.monotonic() + _CANARY_EVERY_S
        manifest = endpoint_slice("canary", [address], [("http", "TCP", echoing.NAMING)], trigger())
        waits.append(
            seconds_until_answered(
                stage.bed.pods, CANARY, 80, lambda manifest=manifest: api.replace(manifest), expect=address
            )
        )
        memory.sample()
        time.sleep(max(0.0, due - time.monotonic()))
    return waits


class _Memory:
    """RSS every few seconds."""

    def __init__(self, running: Running) -> None:
        self.running, self.began, self.samples = running, time.monotonic(), list[tuple[float, float]]()

    def sample(self) -> None:
        now = time.monotonic() - self.began
        if not self.samples or now - self.samples[-1][0] >= _MEMORY_EVERY_S:
            self.running.demand()
            self.samples.append((now, self.running.memory().rss))


def quantile(before: dict[str, float], after: dict[str, float], share: float) -> float | None:
    """The upper bound of the bucket in which this share of what was observed in between lies; None without such a histogram."""
    counts: dict[float, float] = {}
    wanted = _FINER if any(name.startswith(_FINER) for name in after) else f"kubeproxy_{_OWN}"
    for name, value in after.items():
        if name.startswith(wanted) and "IPv6" not in name:
            found = re.search(r'le="([^"]+)"', name)
            assert found is not None
            counts[float(found[1])] = value - before.get(name, 0.0)
    total = counts.get(float("inf"), 0.0)
    if not total:
        return None
    return min(bound for bound, count in counts.items() if count >= share * total)


class _Writers:
    """The process that changes endpoints, RATE a second without the canary's."""

    def __init__(self, stage: Stage, size: Size, seconds: float) -> None:
        plane = stage.plane
        words = [
            plane.server, str(plane.keys.authority), plane.users[ADMIN].token,
            str(size.services), str(size.endpoints), str(RATE - 1 / _CANARY_EVERY_S), str(seconds),
        ]  # fmt: skip
        with stage.bed.node.entered():
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.bench.peer.churn", *words],
                stdout=subprocess.PIPE,
                cwd=_REPOSITORY,
                text=True,
            )

    def finish(self) -> int:
        """Waits for its end; how many changes were written."""
        text, _ = self._process.communicate(timeout=60)
        return int(json.loads(text)["written"])

    def __enter__(self) -> _Writers:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.communicate()


def _write(given: argparse.Namespace, number: int, counts: list[int]) -> None:
    """One writer: its share of the rate, each time one endpoint of one of its Services replaced."""
    api, choice = Api(None, given.server, given.authority, given.token), random.Random(number)
    began = time.monotonic()
    due = began
    while due < began + given.seconds:
        time.sleep(max(0.0, due - time.monotonic()))
        index = choice.randrange(number, given.services, WRITERS)
        addresses = [endpoint_address(index * given.endpoints + n) for n in range(given.endpoints)]
        addresses[choice.randrange(given.endpoints)] = endpoint_address(choice.randrange(45_000, 49_000))
        api.replace(endpoint_slice(service_name(index), addresses, annotations=trigger()))
        counts[number] += 1
        due += WRITERS / given.rate
    api.close()


def main() -> None:
    """The writers' process."""
    parser = argparse.ArgumentParser()
    for name in ("server", "authority", "token"):
        parser.add_argument(name)
    for name, kind in (("services", int), ("endpoints", int), ("rate", float), ("seconds", float)):
        parser.add_argument(name, type=kind)
    given = parser.parse_args()
    counts = [0] * WRITERS
    threads = [threading.Thread(target=_write, args=(given, n, counts)) for n in range(WRITERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(json.dumps({"written": sum(counts)}))


if __name__ == "__main__":
    main()
