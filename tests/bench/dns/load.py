"""Load: dnsperf for rates, client.c for what dnsperf cannot do, and a socket of our own for the first right answer."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from tests.bench.dns import cluster
from tests.bench.dns.servers import LOAD_CORE, PORT, pinning
from tests.support.netns import Namespace
from tests.support.proxies import Running

_CLIENTS, _OUTSTANDING, _SLOTS = 4, 100, 64
_FIRST = ["chrt", "-f", "10"]  # a client that times others' answers must not wait for the generator on the same core


@dataclass(frozen=True, slots=True)
class Rate:
    """One run of dnsperf. cpu_us: the server's processes' time per query. all_us: the whole machine's, with the kernel's and dnsperf's."""

    rate: float
    cpu_us: float
    all_us: float
    mean_us: float
    lost: float


def dnsperf(
    space: Namespace,
    running: Running,
    questions: Path,
    seconds: float,
    *,
    rate: int | None = None,
    source: str | None = None,
) -> Rate:
    """Runs dnsperf from `space`: two threads, four sockets, a hundred queries outstanding.

    It may use both cores, because some servers leave it both: where the kernel answers there is no process that one core could be kept for.
    Beside a server that fills the first core it has the second one, as if it were pinned there.
    """
    words = [
        "dnsperf",
        "-s",
        cluster.DNS,
        "-p",
        str(PORT),
        "-d",
        str(questions),
        "-l",
        str(seconds),
    ]
    words += ["-c", str(_CLIENTS), "-q", str(_OUTSTANDING), "-T", "2"]
    words += ["-Q", str(rate)] if rate else []
    words += ["-a", source] if source else []
    before, busy = running.cpu_seconds(), _busy_seconds()
    with space.entered():
        done = subprocess.run(words, capture_output=True, text=True, timeout=seconds + 30, check=True)
    busy = _busy_seconds() - busy
    out = done.stdout

    def number(pattern: str) -> float:
        found = re.search(pattern, out)
        assert found is not None, out
        return float(found[1])

    completed = number(r"Queries completed:\s+(\d+)")
    assert completed, f"no query was answered: {out}{running.tail()}"
    return Rate(
        rate=number(r"Queries per second:\s+([\d.]+)"),
        cpu_us=(running.cpu_seconds() - before) / completed * 1e6,
        all_us=busy / completed * 1e6,
        mean_us=number(r"Average Latency \(s\):\s+([\d.]+)") * 1e6,
        lost=number(r"Queries lost:\s+(\d+)"),
    )


def _busy_seconds() -> float:
    """What all cores together have worked since the machine started."""
    fields = (
        Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
    )  # user nice system idle iowait irq softirq steal
    return (sum(map(int, fields)) - int(fields[3]) - int(fields[4]) - int(fields[7])) / os.sysconf("SC_CLK_TCK")


class Client:
    """client.c, built on first use with whatever C compiler there is."""

    def __init__(self, scratch: Path) -> None:
        compiler = shutil.which("cc") or shutil.which("gcc")
        assert compiler is not None, "a C compiler is needed for the search-walking client"
        self._program = scratch / "client"
        source = Path(__file__).parent / "client.c"
        subprocess.run([compiler, "-O2", "-o", str(self._program), str(source)], check=True, timeout=60)

    def walk(self, space: Namespace, names: Path, seconds: float, source: str) -> dict[str, float]:
        """Outside names through the search list of a pod, 64 at once; see client.c for what comes back."""
        return self._run(space, ["walk", source, *_where(names), str(seconds), str(_SLOTS), *cluster.SEARCH], seconds)

    def paced(self, space: Namespace, names: Path, seconds: float, rate: int, source: str = "-") -> dict[str, float]:
        """A query every 1/rate seconds, timed, ahead of everything else on its core."""
        return self._run(space, ["paced", source, *_where(names), str(seconds), str(rate)], seconds, _FIRST)

    def flood(self, space: Namespace, names: Path, seconds: float, rate: int, source: str) -> dict[str, float]:
        """As `paced`, ahead of nobody: dnsperf waits seconds for each query that is lost, and sends nothing once a hundred are."""
        return self._run(space, ["paced", source, *_where(names), str(seconds), str(rate)], seconds)

    def _run(
        self, space: Namespace, words: list[str], seconds: float, first: list[str] | None = None
    ) -> dict[str, float]:
        command = [*(first or []), *pinning(LOAD_CORE), str(self._program), *words]
        with space.entered():
            done = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 30, check=True)
        found: dict[str, float] = json.loads(done.stdout)
        return found


def _where(names: Path) -> list[str]:
    return [cluster.DNS, str(PORT), str(names)]


class Background:
    """A call in a thread of its own; `result` waits for it and raises what it raised."""

    def __init__(self, work: Callable[[], object]) -> None:
        self._result: object = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(work,), daemon=True)
        self._thread.start()

    def _run(self, work: Callable[[], object]) -> None:
        try:
            self._result = work()
        except BaseException as error:
            self._error = error

    def result(self) -> object:
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._result


def question(name: str, ident: int) -> bytes:
    """An A query."""
    labels = b"".join(bytes((len(label),)) + label.encode() for label in name.split("."))
    return struct.pack("!HHHHHH", ident, 0x100, 1, 0, 0, 0) + labels + b"\0\0\1\0\1"


def ask(sock: socket.socket, name: str, ident: int) -> bytes:
    """The reply to an A query over a connected socket; b"" for none within its timeout."""
    try:
        sock.send(question(name, ident))
        while True:
            reply = sock.recv(4096)
            if reply[:2] == ident.to_bytes(2, "big"):
                return reply
    except OSError:
        return b""


class FirstAnswer:
    """A thread in `space` that asks for a name until the right address comes.

    with FirstAnswer(space, name, address, limit_s=10) as probe:
        ...                               # what will make it right
    probe.when                            # Unix time of the first right answer; None: none in time
    """

    def __init__(self, space: Namespace, name: str, address: str, *, limit_s: float, step_s: float = 0.002) -> None:
        self.when: float | None = None
        self._space, self._name, self._address = space, name, socket.inet_aton(address)
        self._limit_s, self._step_s = limit_s, step_s
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._stop = False

    def _run(self) -> None:
        deadline, ident = time.monotonic() + self._limit_s, 0
        with self._space.entered():
            while not self._stop and time.monotonic() < deadline:
                sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
                sock.settimeout(0.05)
                try:
                    sock.connect((cluster.DNS, PORT))  # fails while the node does not hold the address
                    while not self._stop and time.monotonic() < deadline:
                        ident = ident % 60_000 + 1
                        reply = ask(sock, self._name, ident)
                        if reply and reply[3] & 15 == 0 and self._address in reply:
                            self.when = time.time()
                            return
                        if not reply:
                            break
                        time.sleep(self._step_s)
                except OSError:
                    pass
                finally:
                    sock.close()
                time.sleep(self._step_s)

    def __enter__(self) -> FirstAnswer:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop = kind is not None
        self._thread.join()
