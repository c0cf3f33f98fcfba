"""What is measured, one method for each group of rows; every one of them leaves the node as the next expects it.

A `Round` is one program's turn: rules are cleared, it starts cold, and everything that was asked for is measured on it until it ends.
"""

from __future__ import annotations

import random
import re
import statistics
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from kproxy.backends.iptables.variant import Variant
from tests.bench.peer.probing import Prober, connect_times, seconds_until_answered, unanswered
from tests.bench.peer.table import Figures, Size
from tests.support import echoing
from tests.support.cluster_api import Api
from tests.support.netns import run
from tests.support.one_node import OneNode, endpoint_address, service_address
from tests.support.prefilled import endpoint_slice, service
from tests.support.proxies import Program, Running, Stage
from tests.support.traffic import Traffic

Say = Callable[[str], None]

SERVICE = re.compile(r"-d (10\.10\d\.\d+\.\d+)/32 .*--dport 80 .*-j KUBE-SVC-", re.ASCII)
SYNC_LIMIT_S = 240.0  # kube-proxy over the nft variant takes one and a half minutes for 10,000 Services
CHANGED, NEW, BUSY = "10.110.0.1", "10.110.1.", "10.110.2.1"  # cluster IPs of the Services made here
_ONE_RULE = "*nat\n:BENCH-FLOOR - [0:0]\n-A BENCH-FLOOR -j RETURN\nCOMMIT\n"
_NO_RULE = "*nat\n-F BENCH-FLOOR\n-X BENCH-FLOOR\nCOMMIT\n"
_NAMING = (("http", "TCP", 80, echoing.NAMING),)
_CONNECTS, _SPREAD, _SPREAD_CONNECTS, _FLOORS, _TRIES = 2000, 50, 60, 5, 3
_DIRECT = (endpoint_address(0), echoing.QUIET)  # an endpoint's own address, no Service
_SETTLE_S = 3.0
BUSY_PORTS = (
    (("new", "TCP", 80, echoing.NAMING)),
    ("flow", "TCP", 81, echoing.ECHO),
    ("udp", "UDP", 80, echoing.NAMING),
)


@dataclass(slots=True)
class Round:
    """One program's turn on the stage."""

    stage: Stage
    api: Api
    size: Size
    program: Program
    figures: Figures
    say: Say
    changes: int  # samples of each kind of change
    seed: int
    running: Running | None = field(default=None)

    @property
    def bed(self) -> OneNode:
        return self.stage.bed

    def note(self, key: str, *values: float) -> None:
        """Takes samples of a row of this program."""
        self.figures.add(self.size, self.stage.variant, self.program, key, *values)

    def run(self, rows: Collection[str]) -> None:
        """Everything of `rows` (first words of the table's keys); ends with the program stopped."""
        last = service_address(self.size.services - 1)
        self.bed.clean(self.stage.variant)
        if "path" in rows:
            self._noted("path.none", connect_times(self.bed.pods, [_DIRECT], _CONNECTS)[0])
        try:
            self.cold(last)
            if "change" in rows:
                self.change()
            if "path" in rows:
                self.path()
            if "restart" in rows:
                self.restart()
            if "kill" in rows:
                self.kill()
        finally:
            if self.running is not None:
                self.running.stop()

    def cold(self, last: str) -> None:
        """Start on empty tables."""
        with Prober(self.bed.pods, last, 80, limit_s=SYNC_LIMIT_S, step_s=0.005) as prober:
            self.running = running = self.stage.start(self.program)
        assert prober.when is not None, f"no connection in {SYNC_LIMIT_S:g} s: {running.tail()}"
        self.note("cold.first", prober.when - running.started)
        self.note("cold.synced", running.wait_synced(SYNC_LIMIT_S))
        self.note("cold.cpu", running.cpu_seconds())
        self.say(f"cold start {prober.when - running.started:.2f} s")
        silent = unanswered(self.bed.pods, map(service_address, range(self.size.services)), 80)
        assert not silent, (
            f"{self.program.value} says it is done, but {len(silent)} Services do not answer: {silent[:3]}"
        )
        time.sleep(_SETTLE_S)
        memory = running.memory()
        self.note("rss", memory.rss)
        self.note("pss", memory.pss)

    def change(self) -> None:
        """Services that come, and an endpoint that is replaced, on a node that is otherwise idle."""
        assert self.running is not None
        rest = _Rest(self.running, self.seed)
        self.api.create(service("changed", CHANGED, _NAMING))
        self.api.create(self._changed(0))
        try:
            for n in range(self.changes):
                rest()
                address = f"{NEW}{n + 1}"
                made = [service(f"new-{n}", address), endpoint_slice(f"new-{n}", [endpoint_address(n)])]
                self._timed("new", address, partial(self._create, made))
            for n in range(1, self.changes + 1):
                rest()
                made = self._changed(n)
                self._timed("change", CHANGED, partial(self.api.replace, made), made["endpoints"][0]["addresses"][0])
            self.say(f"new {self._last('new'):.0f} ms, change {self._last('change'):.0f} ms")
        finally:
            for name in ("changed", *(f"new-{n}" for n in range(self.changes))):
                self.api.remove(name)
        rest()
        self.note("rss.later", self.running.memory().rss)
        self.floor()

    def _changed(self, turn: int) -> dict[str, Any]:
        return endpoint_slice("changed", [endpoint_address(500 + turn)], [("http", "TCP", echoing.NAMING)])

    def _create(self, manifests: list[dict[str, Any]]) -> None:
        before = time.perf_counter()
        for manifest in manifests:
            self.api.create(manifest)
        self.note("write", time.perf_counter() - before)

    def _timed(self, key: str, address: str, write: Callable[[], None], expect: str = "") -> None:
        self.note(key, seconds_until_answered(self.bed.pods, address, 80, write, limit_s=SYNC_LIMIT_S, expect=expect))

    def _last(self, key: str) -> float:
        median = self.figures.median(self.size, self.stage.variant, self.program, key)
        return (median or 0.0) * 1e3

    def floor(self) -> None:
        """What any change costs that goes through iptables-restore: the least it can do, with all rules present."""
        tool = f"iptables-{self.stage.variant.value}-restore"
        for _ in range(_FLOORS):
            before = time.perf_counter()
            run(self.bed.node, tool, "--noflush", "-w", "5", text=_ONE_RULE)
            self.note("floor", time.perf_counter() - before)
            run(self.bed.node, tool, "--noflush", "-w", "5", text=_NO_RULE)

    def path(self) -> None:
        """How long a connection takes, by where its Service stands in the rules. Again when these were written anew meanwhile."""
        for _ in range(_TRIES):
            order = in_order(self.bed, self.stage.variant)
            assert len(order) >= self.size.services, f"{len(order)} Services found in the rules"
            targets = {
                "path.first": (order[0], 80),
                "path.middle": (order[len(order) // 2], 80),
                "path.last": (order[-1], 80),
                "path.direct": _DIRECT,
            }
            found = connect_times(self.bed.pods, list(targets.values()), _CONNECTS)
            spread = [(address, 80) for address in order[:: max(1, len(order) // _SPREAD)]]
            spread_times = connect_times(self.bed.pods, spread, _SPREAD_CONNECTS)
            if in_order(self.bed, self.stage.variant) == order:
                break
            self.say("the rules were written anew while connections were timed")
        times = dict(zip(targets, found, strict=True))
        for key, taken in times.items():
            self._noted(key, taken)
        self.note("path.slowest", max(map(statistics.median, spread_times)))
        self.say(", ".join(f"{key} {statistics.median(taken) * 1e6:.0f} us" for key, taken in times.items()))

    def _noted(self, key: str, times: list[float]) -> None:
        ordered = sorted(times)
        self.note(key, statistics.median(ordered))
        if key != "path.middle":
            self.note(f"{key}.p99", ordered[int(len(ordered) * 0.99)])

    def restart(self) -> None:
        """End in order, start over the rules that are there."""
        assert self.running is not None
        self.running.stop()
        self.running = self.stage.start(self.program)
        self.note("restart", self.running.wait_synced(SYNC_LIMIT_S))
        self.note("restart.cpu", self.running.cpu_seconds())
        self.say(f"restart {self._last('restart') / 1e3:.2f} s")

    def kill(self) -> None:
        """SIGKILL for all its processes under traffic, nothing for two seconds, then a new start."""
        assert self.running is not None
        self.api.create(service("busy", BUSY, BUSY_PORTS))
        addresses = [endpoint_address(40_000 + n) for n in range(4)]
        self.api.create(
            endpoint_slice("busy", addresses, [(name, protocol, port) for name, protocol, _, port in BUSY_PORTS])
        )
        try:
            with Prober(self.bed.pods, BUSY, 80, limit_s=SYNC_LIMIT_S) as prober:
                pass
            assert prober.when is not None, "the Service for the traffic does not answer"
            time.sleep(1.5)  # kube-proxy's pause: its UDP port is there too
            with Traffic(self.bed.pods, seconds=SYNC_LIMIT_S, **_TRAFFIC) as traffic:
                time.sleep(2.0)
                self.running.kill()
                time.sleep(2.0)
                self.running = self.stage.start(self.program)
                self.running.wait_synced(SYNC_LIMIT_S)
                time.sleep(3.0)
                seen = traffic.finish()
        finally:
            self.api.remove("busy")
        self.note("kill.failed", seen.failed)
        self.note("kill.connections", seen.connections)
        self.note("kill.slowest", seen.slowest_s)
        self.note("kill.flows", seen.flows_broken + seen.flows_stalled)
        self.note("kill.moved", seen.moved)
        self.note("kill.lost", seen.datagrams_lost)
        self.say(f"SIGKILL: {seen.failed} of {seen.connections} connections failed {seen.reasons or ''}")


_TRAFFIC: dict[str, list[dict[str, object]]] = {
    "new": [{"address": BUSY, "port": 80, "rate": 500}],
    "flows": [{"address": BUSY, "port": 81, "count": 200, "every_s": 0.5}],
    "datagrams": [{"address": BUSY, "port": 80, "count": 50, "every_s": 0.1}],
}


class _Rest:
    """Waits until the program is idle: no sync for a while. kube-proxy pauses a second after each, and a change must not meet that."""

    def __init__(self, running: Running, seed: int) -> None:
        self.running, self.random = running, random.Random(seed)

    def __call__(self) -> None:
        quiet_s = 1.2 + self.random.random() * 0.3
        last, since, deadline = self.running.last_sync(), time.monotonic(), time.monotonic() + SYNC_LIMIT_S
        while time.monotonic() - since < quiet_s and time.monotonic() < deadline:
            time.sleep(0.2)
            if (now := self.running.last_sync()) != last:
                last, since = now, time.monotonic()


def in_order(bed: OneNode, variant: Variant) -> list[str]:
    """Cluster IPs of the loaded Services in the order of their rules in `iptables-save`."""
    found = SERVICE.findall(bed.rules(variant, table="nat"))
    return list(dict.fromkeys(a for a in found if not a.startswith("10.110.")))
