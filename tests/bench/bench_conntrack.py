"""How long one look through the kernel's open flows takes, and what it costs in memory.

    python -m tests.bench.bench_conntrack [--flows 200000] [--stale 5000] [--repeat 3] [-o json]

Needs root; works in a network namespace of its own and sends no packet: the flows are made through netlink. Medians with the fastest and
the slowest behind them, seconds:

    good      all flows are in order: wall time of the pass
    cpu       the same in processor time
    stale     as many as asked for have to go: wall time of the pass
    delete    the deletions of that pass alone
    lag       the longest that an event loop was late while a pass ran in a thread beside it
    memory    by how many MiB the process grew over all passes, the first left out
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import socket
import statistics
import struct
import time
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path

from kproxy.conntrack import apply
from kproxy.conntrack.netlink import read_answers
from kproxy.conntrack.stale import Allowed
from kproxy.model.names import Family
from tests.support.conntrack_messages import End, creations
from tests.support.netns import Namespace, run

_SERVICE, _GONE, _GOOD, _FOREIGN = ("172.30.0.1", 53), ("10.180.0.1", 53), ("10.180.0.2", 53), ("198.51.100.7", 53)


def _packed(end: End) -> bytes:
    return ip_address(end[0]).packed + struct.pack(">H", end[1])


def _flows(count: int, stale: int) -> Iterator[tuple[End, End, End]]:
    for n in range(count):
        client = (f"10.{n >> 16}.{n >> 8 & 255}.{n & 255}", 20000)
        if n >= count // 2:
            yield client, _FOREIGN, _FOREIGN
        else:
            yield client, _SERVICE, _GONE if n < stale else _GOOD


def _fill(count: int, stale: int) -> None:
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12) as sock:
        for datagram in creations(_flows(count, stale)):
            sock.sendto(datagram, (0, 0))
            if list(read_answers(sock.recv(1 << 16))) != [(9, 0)]:
                raise SystemExit("the kernel takes no more flows: is nf_conntrack_max large enough?")


def _once(count: int, stale: int) -> dict[str, float]:
    everybody = Allowed(virtual={_packed(_SERVICE): frozenset({_packed(_GONE), _packed(_GOOD)})})
    some = Allowed(virtual={_packed(_SERVICE): frozenset({_packed(_GOOD)})})
    run(None, "conntrack", "-F")
    _fill(count, stale)
    cpu = time.process_time()
    good = apply.reconcile(Family.IPV4, everybody)
    cpu = time.process_time() - cpu
    bad = apply.reconcile(Family.IPV4, some)
    assert (good.seen, good.deleted, bad.deleted) == (count, 0, stale), (good, bad)
    lag = asyncio.run(_lag(everybody))
    return {"good": good.duration_s, "cpu": cpu, "stale": bad.duration_s, "delete": bad.deleting_s, "lag": lag}


async def _lag(rules: Allowed) -> float:
    """The worst lateness of a timer that is due every millisecond."""
    passing = asyncio.ensure_future(asyncio.to_thread(apply.reconcile, Family.IPV4, rules))
    worst = 0.0
    while not passing.done():
        due = time.monotonic() + 0.001
        await asyncio.sleep(0.001)
        worst = max(worst, time.monotonic() - due)
    await passing
    return worst


def _resident() -> float:
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flows", type=int, default=200_000)
    parser.add_argument("--stale", type=int, default=5_000)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("-o", "--output", choices=["text", "json"], default="text")
    options = parser.parse_args()
    if not 0 <= options.stale <= options.flows // 2:
        parser.error("at most half of the flows can be stale: the other half is not a Service's")
    with Namespace.new() as space, space.entered():  # one for all: the end of a full namespace keeps the kernel busy
        runs = [_once(options.flows, options.stale)]
        before = _resident()
        runs += [_once(options.flows, options.stale) for _ in range(options.repeat - 1)]
        grown = _resident() - before
    figures = {name: sorted(run[name] for run in runs) for name in runs[0]}
    if options.output == "json":
        print(json.dumps({"flows": options.flows, "stale": options.stale, "seconds": figures, "grown_mib": grown}))
        return
    print(f"{options.flows} flows, {options.stale} of them stale")
    for name, values in figures.items():
        print(f"  {name:8} {statistics.median(values):.3f} s ({values[0]:.3f} .. {values[-1]:.3f})")
    print(f"  memory   {grown:+.1f} MiB, {_resident():.0f} MiB in all")


if __name__ == "__main__":
    main()
