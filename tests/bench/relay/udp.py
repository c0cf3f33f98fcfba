"""UDP requests and replies through one worker of the relay, and the same without it: exchanges a second, and what a core is good for.

client ─── veth ─── node (mode userspace's rules, one worker on its own core) ─── veth ─── endpoint

Two cores are enough: the worker has one, both ends share the other (tests/bench/relay/udp.c). Then the ends are what limits the rate, so
the table also says what one core of the worker would do: exchanges by second of its CPU time. CPU time is the process's (/proc/PID/stat);
what the kernel does for a datagram belongs to who sends it.

    python -m tests.bench.relay.udp [SECONDS] [--first]     below `unshare --net`, as root
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from kproxy.model.resolve import resolve
from tests.support.builders import ep, port, slice_, svc
from tests.support.flows import SETTINGS, step
from tests.support.netns import Namespace, ip, link, sysctl
from tests.support.relaying import Relaying

_SOURCE = Path(__file__).with_name("udp.c")
_ASKED, _POD, _PORT = "10.96.0.10", "10.180.0.1", 8053
_WORKER_CORE, _LOAD_CORE = 0, 1
_TICK_S = 1 / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Measured:
    """One run. cpu_s: of the worker, None without one."""

    way: str
    sessions: int
    octets: int
    exchanges: int
    seconds: float
    lost: int
    wrong: int
    p50_us: float
    p99_us: float
    ends_cpu_s: float  # of both ends
    cpu_s: float | None = None

    @property
    def rate(self) -> float:
        """Exchanges a second."""
        return self.exchanges / self.seconds

    @property
    def ends_us(self) -> float:
        """CPU time of both ends for one exchange, in microseconds: what bounds the rate when they share a core."""
        return self.ends_cpu_s / max(1, self.exchanges) * 1e6

    @property
    def by_core(self) -> float | None:
        """Exchanges that one second of the worker's CPU time is good for."""
        return self.exchanges / self.cpu_s if self.cpu_s else None


@contextmanager
def _spaces() -> Iterator[tuple[Namespace, Namespace, Namespace]]:
    with Namespace.new() as node, Namespace.new() as client, Namespace.new() as pods:
        sysctl(node, ipv4__ip_forward=1, ipv4__conf__all__rp_filter=0, ipv4__conf__default__rp_filter=0)
        link(node, "near", client, ["192.168.0.1/24"], ["192.168.0.9/24"])
        ip(client, "route add default via 192.168.0.1")
        ip(node, "route add default via 192.168.0.9")
        link(node, "pods", pods, ["10.180.0.254/24"], [f"{_POD}/24"])
        ip(pods, "route add default via 10.180.0.254")
        yield node, client, pods


def _placed(core: int, first: bool) -> list[str]:
    return ["taskset", "-c", str(core), *(("chrt", "-r", "1") if first else ())]


@contextmanager
def _echoing(words: list[str], pods: Namespace) -> Iterator[int]:
    """The endpoint; its process id."""
    with pods.entered():
        echo = subprocess.Popen([*words, "echo", _POD, str(_PORT)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert echo.stdin is not None and echo.stdout is not None and echo.stdout.readline()
    try:
        yield echo.pid
    finally:
        echo.stdin.close()
        echo.wait(10)
        echo.stdout.close()


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * _TICK_S


def _asking(words: list[str], space: Namespace, seconds: float) -> dict[str, float]:
    with space.entered():
        done = subprocess.run(words, capture_output=True, check=True, timeout=seconds + 30)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def _row(way: str, sessions: int, octets: int, told: dict[str, float], cpu_s: float | None) -> Measured:
    return Measured(
        way,
        sessions,
        octets,
        exchanges=int(told["exchanges"]),
        seconds=told["seconds"],
        lost=int(told["lost"]),
        wrong=int(told["wrong"]),
        p50_us=told["p50_us"],
        p99_us=told["p99_us"],
        ends_cpu_s=told["cpu_s"],
        cpu_s=cpu_s,
    )


def _measured(
    folder: Path, program: Path, seconds: float, cases: tuple[tuple[int, int], ...], first: bool
) -> list[Measured]:
    found: list[Measured] = []
    load = [*_placed(_LOAD_CORE, first), str(program)]
    objects = (svc(_ASKED, ports=[port(_PORT, "udp", "UDP")]), slice_(ep(_POD), ports=[("udp", _PORT, "UDP")]))
    with (
        _spaces() as (node, client, pods),
        _echoing(load, pods) as echo,
        Relaying(node, folder, workers=1, prefix=_placed(_WORKER_CORE, first)) as relaying,
    ):
        relaying.bring(resolve(step(objects).snapshot(), SETTINGS))
        worker = relaying.workers[0].pid
        for sessions, octets in cases:
            for way, to in (("direct", _POD), ("kproxy", _ASKED)):
                before, echoed = _cpu_s(worker), _cpu_s(echo)
                words = [*load, "ask", to, *map(str, (_PORT, sessions, seconds, octets))]
                one = _asking(words, client, seconds)
                one["cpu_s"] += _cpu_s(echo) - echoed
                cpu = _cpu_s(worker) - before if way == "kproxy" else None
                found.append(_row(way, sessions, octets, one, cpu))
    return found


def udp_rows(
    seconds: float = 10.0, cases: tuple[tuple[int, int], ...] = ((64, 64),), *, first: bool = False
) -> list[Measured]:
    """Measures each case (sessions, octets) directly and through the relay. Needs root below `unshare --net`, two cores and `cc`.

    first: before everything else on the machine (SCHED_RR), if it is busy.
    """
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        program = folder / "udp"
        subprocess.run(["cc", "-O2", "-o", str(program), str(_SOURCE)], check=True)
        return _measured(folder, program, seconds, cases, first)


def main() -> None:
    """Prints the table."""
    arguments = [word for word in sys.argv[1:] if word != "--first"]
    seconds = float(arguments[0]) if arguments else 10.0
    print(
        "| way | sessions | octets | exchanges/s | by second of the worker's CPU | ends' CPU µs | p50 µs | p99 µs | lost | wrong |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for one in udp_rows(seconds, ((64, 64), (1, 64), (64, 1400)), first="--first" in sys.argv):
        core = f"{one.by_core:,.0f}" if one.by_core else "-"
        cells = [one.way, one.sessions, one.octets, f"{one.rate:,.0f}", core, f"{one.ends_us:.1f}"]
        cells += [f"{one.p50_us:.0f}", f"{one.p99_us:.0f}", one.lost, one.wrong]
        print(f"| {' | '.join(map(str, cells))} |")


if __name__ == "__main__":
    main()
