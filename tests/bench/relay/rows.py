"""What is measured of one way, each by one function: figures by key, in seconds and octets."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from typing import NamedTuple

from tests.bench.relay.ground import HTTP, LOAD_CORE, PARTLY_DEAD, STREAM, Ground, Way, asked, connections

Figures = dict[str, float]
_CONNECTIONS = 50
_PACED = 100  # connections of the paced load: wrk's pauses have milliseconds
_REQUESTS, _AT_ONCE = 2_000, 8

_PACE = """\
local pause = {pause}
function delay() return math.random(0, 2 * pause) end
"""

# Opens connections with one request each and keeps them, says so, and ends with its input.
_IDLING = """\
import socket, sys
address, port, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
held = []
for number in range(count):
    sock = socket.create_connection((address, port), 20)
    sock.sendall(b"GET / HTTP/1.1\\r\\nHost: idle\\r\\n\\r\\n")
    assert sock.recv(4096).endswith(b"hello")
    held.append(sock)
print("ready", flush=True)
sys.stdin.read()
"""

# A new connection for each request, some at a time; prints how long each took, -1 for those that failed.
_ASKING = """\
import json, socket, sys, threading, time
address, port, count, threads = sys.argv[1], *map(int, sys.argv[2:])
took = []
def work():
    for _ in range(count // threads):
        began = time.perf_counter()
        try:
            with socket.create_connection((address, port), 20) as sock:
                sock.sendall(b"GET / HTTP/1.1\\r\\nHost: dead\\r\\nConnection: close\\r\\n\\r\\n")
                words = b""
                while part := sock.recv(4096):
                    words += part
                assert words.endswith(b"alive"), words
            took.append(time.perf_counter() - began)
        except (OSError, AssertionError):
            took.append(-1.0)
        time.sleep(0.004)
running = [threading.Thread(target=work) for _ in range(threads)]
for one in running: one.start()
for one in running: one.join()
print(json.dumps(took))
"""


class _Asked(NamedTuple):
    """Requests a second; p99 in seconds; CPU of the relay's process and of the whole machine for one request."""

    rate: float
    p99: float
    spent: float
    whole: float


def _number(pattern: str, out: str) -> float:
    found = re.search(pattern, out)
    assert found is not None, out
    return float(found[1])


def _time(text: str) -> float:
    """`1.23ms` in seconds."""
    found = re.fullmatch(r"([\d.]+)(us|ms|s|m)", text)
    assert found is not None, text
    return float(found[1]) * {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0}[found[2]]


def _wrk(ground: Ground, way: Way, seconds: float, *more: str, count: int = _CONNECTIONS, free: bool = False) -> _Asked:
    """wrk with one thread."""
    before, busy = ground.cpu_s(way) if way in ground.relays else 0.0, ground.busy_s()
    words = ["wrk", "-t1", f"-c{count}", f"-d{seconds:g}s", "--latency", *more, f"http://{asked(way)}:{HTTP}/"]
    out = ground.measured(*words, seconds=seconds, free=free)
    spent, busy = ground.cpu_s(way) - before if way in ground.relays else 0.0, ground.busy_s() - busy
    errors = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", out)
    assert errors is None or not any(map(int, errors.groups())), out
    late = re.search(r"^\s+99%\s+(\S+)", out, re.MULTILINE)
    assert late is not None, out
    requests = _number(r"(\d+) requests in", out)
    return _Asked(_number(r"Requests/sec:\s+([\d.]+)", out), _time(late[1]), spent / requests, busy / requests)


def stream(ground: Ground, way: Way, seconds: float) -> Figures:
    """One stream of iperf3."""
    before = ground.cpu_s(way) if way in ground.relays else 0.0
    out = json.loads(
        ground.measured("iperf3", "-J", "-c", asked(way), "-p", str(STREAM), "-t", f"{seconds:g}", seconds=seconds)
    )
    received = out["end"]["sum_received"]
    spent = ground.cpu_s(way) - before if way in ground.relays else 0.0
    return {"stream.rate": received["bits_per_second"], "stream.cpu": spent / (received["bytes"] * 8e-9)}


def keep(ground: Ground, way: Way, seconds: float) -> Figures:
    """Connections that are kept."""
    found = _wrk(ground, way, seconds)
    return {"keep.rate": found.rate, "keep.cpu": found.spent, "keep.whole": found.whole, "keep.p99": found.p99}


def free(ground: Ground, way: Way, seconds: float) -> Figures:
    """The same, and the clients may use what the relay leaves of its core."""
    found = _wrk(ground, way, seconds, free=True)
    return {"free.rate": found.rate, "free.whole": found.whole, "free.p99": found.p99}


def each(ground: Ground, way: Way, seconds: float) -> Figures:
    """A connection for each request."""
    found = _wrk(ground, way, seconds, "-H", "Connection: close")
    return {"each.rate": found.rate, "each.cpu": found.spent, "each.whole": found.whole, "each.p99": found.p99}


def each_free(ground: Ground, way: Way, seconds: float) -> Figures:
    """The same, and the clients may use what the relay leaves of its core."""
    found = _wrk(ground, way, seconds, "-H", "Connection: close", free=True)
    return {"each_free.rate": found.rate, "each_free.whole": found.whole, "each_free.p99": found.p99}


def half(ground: Ground, way: Way, seconds: float, full: float) -> Figures:
    """Half of `full` requests a second, which is HAProxy's rate in this run, over connections that are kept."""
    script = ground.scratch / "pace.lua"
    script.write_text(_PACE.format(pause=max(1, round(_PACED / (full / 2) * 1e3))))
    found = _wrk(ground, way, seconds, "-s", str(script), count=_PACED)
    return {"half.rate": found.rate, "half.p99": found.p99, "half.cpu": found.spent}


def idle(ground: Ground, way: Way) -> Figures:
    """Connections that have carried one request and are silent."""
    count = connections()
    before = ground.resident(way)
    words = ground.words(LOAD_CORE, [sys.executable, "-c", _IDLING, asked(way), str(HTTP), str(count)])
    with ground.clients.entered():
        client = subprocess.Popen(["prlimit", f"--nofile={count + 100}", *words], stdin=-1, stdout=-1)
    assert client.stdin is not None and client.stdout is not None
    try:
        assert client.stdout.readline() == b"ready\n"
        return {"idle.count": count, "idle.memory": (ground.resident(way) - before) / count}
    finally:
        client.stdin.close()
        client.stdout.close()
        client.wait(30)


def _asking(ground: Ground, way: Way, port: int) -> list[float]:
    words = [sys.executable, "-c", _ASKING, asked(way), str(port), str(_REQUESTS), str(_AT_ONCE)]
    found: list[float] = json.loads(ground.measured(*words, seconds=60))
    return found


def dead(ground: Ground, way: Way) -> Figures:
    """One of four endpoints loses its power; new connections all the while. late: those of the second half that waited for it."""
    calm = sorted(_asking(ground, way, PARTLY_DEAD))
    ground.kill_endpoint(way, 1)
    try:
        time.sleep(0.1)
        took = _asking(ground, way, PARTLY_DEAD)
    finally:
        ground.revive()
    ordered = sorted(took)
    at = int(0.99 * len(took))
    return {
        "dead.failed": sum(one < 0 for one in took),
        "dead.added": ordered[at] - calm[at],
        "dead.slowest": ordered[-1],
        "dead.waited": sum(one > 0.15 for one in took),
        "dead.late": sum(one > 0.15 for one in took[len(took) // 2 :]),
    }
