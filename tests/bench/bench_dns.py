"""Queries per second of one DNS worker on one core, NSD beside it on the same names.

    sudo python tests/bench/bench_dns.py [--services 10000] [--seconds 5] [--repeats 3] [--realtime] [-o json]

Runs in a network namespace of its own, on its loopback. Server on core 0, dnsperf on core 1 (one thread, 4 sockets, 100 outstanding). Every
figure is the median of the repeats; CPU is the server's own time per query, which a busy neighbour disturbs less than the rate. Work:
existing names (A of every Service), NXDOMAIN of a pod's search path (foo.example.com.NS.svc.cluster.local), A over ports (SRV), answers
at a paced 10,000 a second. Beside it: start to first answer, a change from the controller to the worker's answer, memory.

--realtime schedules server and dnsperf before everything else, for a machine with other work, which then stands still for that long.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import msgspec

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from kproxy.dns.channel import ZonePublisher
from kproxy.dns.compile import compile_zone
from kproxy.dns.settings import DnsSettings
from kproxy.model.events import Applied, Replaced
from kproxy.model.names import Family, NamespacedName, Protocol
from kproxy.model.objects import (
    Decoded,
    EndpointSlice,
    Kind,
    Namespace,
    Object,
    PortSpec,
    Service,
    SliceEndpoint,
    SlicePort,
    key_of,
)
from kproxy.model.snapshot import Snapshot, fold

ADDRESS, PORT, NSD_PORT = "127.0.0.1", 5353, 5354
ENDPOINTS = 4
NAMESPACES = 50
CLOCK = os.sysconf("SC_CLK_TCK")
REALTIME: list[str] = []  # what --realtime puts in front of server and dnsperf


def pinned(core: int) -> list[str]:
    """The beginning of a command that runs on one core alone."""
    return [*REALTIME, "taskset", "-c", str(core)]


def cluster(count: int) -> tuple[Snapshot, list[Service]]:
    """`count` Services with one named port and four endpoints each."""
    services = [
        Service(
            name=NamespacedName(f"team-{i % NAMESPACES}", f"service-{i}"),
            cluster_ips=(f"10.96.{i // 250}.{i % 250 + 1}",),
            ports=(PortSpec(name="http", protocol=Protocol.TCP, port=80),),
        )
        for i in range(count)
    ]
    slices = [
        EndpointSlice(
            name=NamespacedName(service.name.namespace, f"{service.name.name}-x"),
            service=service.name,
            family=Family.IPV4,
            ports=(SlicePort(name="http", protocol=Protocol.TCP, port=8080),),
            endpoints=tuple(SliceEndpoint(address=f"10.{100 + j}.{i // 250}.{i % 250 + 1}") for j in range(ENDPOINTS)),
        )
        for i, service in enumerate(services)
    ]
    listed: list[tuple[Kind, Sequence[Object]]] = [
        (Kind.SERVICE, services),
        (Kind.ENDPOINT_SLICE, slices),
        (Kind.NAMESPACE, [Namespace(name=f"team-{i}") for i in range(NAMESPACES)]),
    ]
    return fold(Snapshot(), [Replaced(kind, tuple(map(_decoded, objects))) for kind, objects in listed]), services


def _decoded(obj: Object) -> Decoded:
    return Decoded(key=key_of(obj), object=obj)


def question_files(services: list[Service], folder: Path) -> dict[str, Path]:
    """dnsperf's input by the name of the work."""
    random.Random(1).shuffle(services := list(services))
    names = [f"{s.name.name}.{s.name.namespace}.svc.cluster.local" for s in services]
    works = {
        "existing A": [f"{name} A" for name in names],
        "NXDOMAIN of the search path": [
            f"foo{i}.example.com.{s.name.namespace}.svc.cluster.local A" for i, s in enumerate(services)
        ],
        "SRV of a named port": [f"_http._tcp.{name} SRV" for name in names],
    }
    files = {}
    for work, lines in works.items():
        files[work] = folder / f"{len(files)}.txt"
        files[work].write_text("\n".join(lines) + "\n")
    return files


def cpu_s(pid: int) -> float:
    """User and system time of a process and its living children, in seconds."""
    total = 0
    for task in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = task.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if int(task.parent.name) == pid or int(fields[1]) == pid:
            total += int(fields[11]) + int(fields[12])
    return total / CLOCK


def dnsperf(port: int, file: Path, seconds: float, rate: int | None = None) -> dict[str, float]:
    """One run: queries per second, mean latency in microseconds, queries lost, and how many were completed."""
    command = [*pinned(1), "dnsperf", "-s", ADDRESS, "-p", str(port), "-d", str(file), "-l", str(seconds)]
    command += ["-c", "4", "-q", "100", "-T", "1", *(["-Q", str(rate)] if rate else [])]
    out = subprocess.run(command, capture_output=True, text=True, check=True, timeout=seconds + 30).stdout

    def number(pattern: str) -> float:
        found = re.search(pattern, out)
        assert found is not None, out
        return float(found[1])

    return {
        "qps": number(r"Queries per second:\s+([\d.]+)"),
        "latency_us": number(r"Average Latency \(s\):\s+([\d.]+)") * 1e6,
        "lost": number(r"Queries lost:\s+(\d+)"),
        "completed": number(r"Queries completed:\s+(\d+)"),
    }


def measured(
    pid: int, port: int, file: Path, seconds: float, repeats: int, rate: int | None = None
) -> dict[str, float]:
    """Medians over `repeats` runs, after one short run that fills what can be filled."""
    dnsperf(port, file, 1.0, rate)
    runs = []
    for _ in range(repeats):
        before = cpu_s(pid)
        run = dnsperf(port, file, seconds, rate)
        run["cpu_us"] = (cpu_s(pid) - before) / run["completed"] * 1e6
        runs.append(run)
        time.sleep(0.5)
    return {key: statistics.median(run[key] for run in runs) for key in ("qps", "cpu_us", "latency_us", "lost")}


def memory_kib(pid: int) -> dict[str, int]:
    """Resident and private memory."""
    wanted = {"Rss": 0, "Private_Dirty": 0}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        name, _, rest = line.partition(":")
        if name in wanted:
            wanted[name] = int(rest.split()[0])
    return wanted


@contextmanager
def nsd(services: list[Service], folder: Path) -> Iterator[int | None]:
    """NSD with one server process on core 0 and the same A and SRV records; its pid, or None where it is not installed."""
    program = shutil.which("nsd", path=os.environ["PATH"] + ":/usr/sbin")
    if program is None:
        yield None
        return
    lines = ["$ORIGIN svc.cluster.local.", "@ 5 IN SOA ns.dns hostmaster 1 7200 1800 86400 5", "@ 5 IN NS ns.dns"]
    for service in services:
        name = f"{service.name.name}.{service.name.namespace}"
        lines += [f"{name} 5 IN A {service.cluster_ips[0]}", f"_http._tcp.{name} 5 IN SRV 0 100 80 {name}"]
    (folder / "zone").write_text("\n".join(lines) + "\n")
    (folder / "nsd.conf").write_text(
        f"server:\n ip-address: {ADDRESS}\n port: {NSD_PORT}\n server-count: 1\n username: root\n zonesdir: {folder}\n"
        f' pidfile: ""\n database: ""\n zonelistfile: {folder}/list\n xfrdfile: {folder}/xfrd\n logfile: {folder}/log\n'
        f" xfrdir: {folder}\n rrl-ratelimit: 0\nremote-control:\n control-enable: no\n"
        f"zone:\n name: svc.cluster.local\n zonefile: zone\n"
    )
    process = subprocess.Popen([*pinned(0), program, "-d", "-c", str(folder / "nsd.conf")])
    try:
        _first_answer(NSD_PORT, services[0])
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        yield int(children[-1]) if children else process.pid
    finally:
        process.terminate()
        process.wait(10)


def _first_answer(port: int, service: Service) -> float:
    """Waits for the first right answer; seconds it took."""
    begun = time.monotonic()
    name = f"{service.name.name}.{service.name.namespace}.svc.cluster.local"
    while time.monotonic() - begun < 20:
        command = ["dig", "+short", "+tries=1", "+time=1", f"@{ADDRESS}", "-p", str(port), name]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.stdout.strip() == service.cluster_ips[0]:
            return time.monotonic() - begun
        time.sleep(0.01)
    raise AssertionError(f"no right answer on port {port} within 20 s")


async def bench_worker(options: argparse.Namespace, folder: Path, files: dict[str, Path]) -> dict[str, object]:
    """Everything about one worker."""
    settings = DnsSettings(listen=(ADDRESS,), port=PORT)
    snapshot, services = cluster(options.services)
    begun = time.monotonic()
    zone = compile_zone(snapshot, settings, serial=1)
    report: dict[str, object] = {"compile_s": time.monotonic() - begun}
    publisher = ZonePublisher(folder / "dns.sock")
    await publisher.start()
    await publisher.publish(zone)
    config = msgspec.json.encode(settings).decode()
    command = [*pinned(0), sys.executable, "-m", "kproxy.dns.worker"]
    begun = time.monotonic()
    process = subprocess.Popen([*command, "--channel", str(folder / "dns.sock"), "--config", config])
    try:
        await asyncio.to_thread(_first_answer, PORT, services[0])
        report["start_to_first_answer_s"] = time.monotonic() - begun
        report["memory_kib_loaded"] = memory_kib(process.pid)
        report["change_ms"] = await _changes(publisher, snapshot, settings, zone, services)
        works: dict[str, object] = {}
        for work, file in files.items():
            works[work] = await asyncio.to_thread(measured, process.pid, PORT, file, options.seconds, options.repeats)
        works["existing A at 10,000 q/s"] = await asyncio.to_thread(
            measured, process.pid, PORT, files["existing A"], options.seconds, options.repeats, 10_000
        )
        report["kproxy"] = works
        report["memory_kib_after"] = memory_kib(process.pid)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(10)
        await publisher.close()
    return report


async def _changes(publisher: ZonePublisher, snapshot: Snapshot, settings: DnsSettings, zone, services) -> float:  # type: ignore[no-untyped-def]
    """Median milliseconds from an event in the controller's hands to the worker answering from it."""
    took = []
    for number in range(20):
        service = replace(services[number * 7], cluster_ips=(f"10.111.0.{number + 1}",))
        snapshot = fold(snapshot, [Applied(_decoded(service))])
        begun = time.monotonic()
        zone = compile_zone(snapshot, settings, zone, serial=1)
        await publisher.publish(zone)
        await publisher.delivered()
        took.append((time.monotonic() - begun) * 1000)
        await asyncio.sleep(0.01)
    return statistics.median(took)


def bench(options: argparse.Namespace) -> dict[str, object]:
    """The whole report."""
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    with tempfile.TemporaryDirectory(prefix="kproxy-bench-") as name:
        folder = Path(name)
        _, services = cluster(options.services)
        files = question_files(services, folder)
        report = asyncio.run(bench_worker(options, folder, files))
        with nsd(services, folder) as pid:
            if pid is not None:
                report["nsd"] = {
                    work: measured(pid, NSD_PORT, file, options.seconds, options.repeats)
                    for work, file in files.items()
                }
    return report


def show(report: dict[str, object]) -> None:
    """The report as a table."""
    for key in ("compile_s", "start_to_first_answer_s", "change_ms"):
        print(f"{key:28} {report[key]:10.3f}")
    for key in ("memory_kib_loaded", "memory_kib_after"):
        print(f"{key:28} {report[key]}")
    peers = report.get("nsd", {})
    assert isinstance(peers, dict)
    works = report["kproxy"]
    assert isinstance(works, dict)
    print(f"{'work':30} {'q/s':>9} {'CPU us/q':>9} {'mean us':>8} {'lost':>5} {'NSD q/s':>9} {'ratio':>6}")
    for work, run in works.items():
        peer = peers.get(work)
        beside = f"{peer['qps']:9.0f} {run['qps'] / peer['qps']:6.2f}" if peer else f"{'-':>9} {'-':>6}"
        print(f"{work:30} {run['qps']:9.0f} {run['cpu_us']:9.2f} {run['latency_us']:8.0f} {run['lost']:5.0f} {beside}")


def main() -> None:
    """Entry point; enters a network namespace of its own first."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--services", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--realtime", action="store_true", help="run server and dnsperf with real-time priority")
    parser.add_argument("-o", "--output", choices=["text", "json"], default="text")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    for tool in ("unshare", "dnsperf", "taskset", "dig"):
        if shutil.which(tool) is None:
            sys.exit(f"{tool} is not installed")
    if not options.inside:
        os.execvp("unshare", ["unshare", "--net", sys.executable, __file__, *sys.argv[1:], "--inside"])
    if options.realtime:
        REALTIME.extend(["chrt", "-f", "10"])
    report = bench(options)
    if options.output == "json":
        print(json.dumps(report, indent=2))
    else:
        show(report)


if __name__ == "__main__":
    main()
