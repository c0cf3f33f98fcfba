"""A thousand endpoint changes a second while twenty thousand queries a second are answered: latency, loss, and how soon a change shows.

    streaming (a process) ─ 1,000 slices/s ─▶ server under test ◀─ 20,000 q/s, each timed ─ client.c
    canary (a headless Service): changed every quarter of a second, asked for until its new endpoint is the answer

The server runs as deployed, on both cores, kproxy with all its processes and its rules. Everything else shares the two cores with it.
"""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml

from tests.bench.dns import cluster
from tests.bench.dns.load import Background, FirstAnswer
from tests.bench.dns.rows import Bench
from tests.bench.dns.servers import Server
from tests.bench.dns.streaming import CANARY, headless_name
from tests.support.one_node import PLANE, endpoint_address
from tests.support.prefilled import service_name

RATE, QUERIES, HEADLESS = 1000, 20_000, 1000
_CANARY_EVERY_S, _CANARY_LIMIT_S = 0.25, 10.0
_REPOSITORY = Path(__file__).resolve().parents[3]


@contextmanager
def streaming(bench: Bench) -> Iterator[tuple[int, Path]]:
    """The API server of this row beside the node; its port, and a kubeconfig for it."""
    words = [
        sys.executable,
        "-m",
        "tests.bench.dns.streaming",
        f"--services={bench.services}",
        f"--headless={HEADLESS}",
    ]
    with bench.stage.bed.plane.entered():
        process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", "--", *words, f"--address={PLANE}"],
            stdout=subprocess.PIPE,
            cwd=_REPOSITORY,
            text=True,
        )
    try:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        kubeconfig = bench.stage.scratch / "streaming.kubeconfig"
        kubeconfig.write_text(yaml.safe_dump(_kubeconfig(f"http://{PLANE}:{port}")))
        yield port, kubeconfig
    finally:
        process.kill()
        process.communicate()


def _kubeconfig(server: str) -> dict[str, object]:
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "streaming", "cluster": {"server": server}}],
        "users": [{"name": "nobody", "user": {}}],
        "contexts": [{"name": "streaming", "context": {"cluster": "streaming", "user": "nobody"}}],
        "current-context": "streaming",
    }


def churn(bench: Bench, server: Server, seconds: float) -> None:
    """One server's turn."""
    with streaming(bench) as (port, kubeconfig):
        bench.servers.kubeconfig = kubeconfig
        try:
            with bench.running(server, pinned=False) as running:
                bench.figures.samples["start.first", server].pop()  # of another API server
                names = _questions(bench)
                pods, source = bench.stage.bed.pods, cluster.OTHER
                bench.client.paced(pods, names, 1.0, QUERIES, source)
                spent = running.cpu_seconds()
                _post(bench, port, f"/churn?rate={RATE}&seconds={seconds + 1}")
                timed = Background(lambda: bench.client.paced(pods, names, seconds, QUERIES, source))
                seen = _canary(bench, port, seconds - 1)
                found = timed.result()
                spent = running.cpu_seconds() - spent
                written = _post(bench, port, "/churn", "GET")["written"]
        finally:
            bench.servers.kubeconfig = None
            bench.stage.settings = {}
    note = bench.figures.add
    note("churn.p50", server, found["p50_us"])
    note("churn.p99", server, found["p99_us"])
    note("churn.max", server, found["max_us"])
    note("churn.lost", server, found["lost"])
    note("churn.rate", server, written / seconds)
    note("churn.cpu", server, spent / seconds)
    seen.sort()
    if seen:
        note("churn.seen", server, seen[len(seen) // 2])
        note("churn.seen99", server, seen[int(len(seen) * 0.99)])
    bench.say(
        f"{server.value}: p50 {found['p50_us']:.0f}, p99 {found['p99_us']:.0f}, most {found['max_us']:.0f} us, "
        f"{found['lost']:.0f} lost, {found['wrong']:.0f} wrong, {written / seconds:.0f} changes/s, CPU {spent / seconds:.0%}, "
        f"{len(seen)} canaries"
    )


def _questions(bench: Bench) -> Path:
    path = bench.stage.scratch / "churn.txt"
    names = [service_name(n) for n in range(0, bench.services, 2)] + [headless_name(n) for n in range(HEADLESS)]
    path.write_text("".join(f"{name}.{cluster.SEARCH[0]}\n" for name in names))
    return path


def _post(bench: Bench, port: int, path: str, method: str = "POST") -> dict[str, float]:
    with bench.stage.bed.node.entered():
        connection = http.client.HTTPConnection(PLANE, port, timeout=20)
        connection.request(method, path)
    reply: dict[str, float] = json.loads(connection.getresponse().read())
    connection.close()
    return reply


def _canary(bench: Bench, port: int, seconds: float) -> list[float]:
    seen, number, until = [], 0, time.monotonic() + seconds
    while time.monotonic() < until:
        number += 1
        address, due = endpoint_address(41_000 + number), time.monotonic() + _CANARY_EVERY_S
        name = f"{CANARY}.{cluster.SEARCH[0]}"
        with FirstAnswer(bench.stage.bed.node, name, address, limit_s=_CANARY_LIMIT_S) as probe:
            before = time.time()
            _post(bench, port, f"/canary?address={address}")
        seen.append(probe.when - before if probe.when is not None else _CANARY_LIMIT_S)
        time.sleep(max(0.0, due - time.monotonic()))
    return seen
