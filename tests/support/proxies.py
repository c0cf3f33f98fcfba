"""kube-proxy and kproxy as whole programs on a node's namespace: started with the same configuration file, watched, ended.

    OneNode ─ Stage(bed, plane, variant, scratch) ─┬─ start(Program.KUBE_PROXY) ─▶ Running
                                                   └─ start(Program.KPROXY) ────▶ Running

Both read the KubeProxyConfiguration that `configuration` makes; kproxy is told by flags what upstream has no field for: which iptables
tools (kube-proxy takes those that it finds first on PATH), where its run directory is. A second document in the file, which kube-proxy
never reads, says whether it is the cluster's DNS as well.
"""

from __future__ import annotations

import http.client
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

import yaml

from kproxy.backends.iptables.variant import Variant
from kproxy.lab.controlplane import ControlPlane, find_program
from tests.support import one_node
from tests.support.one_node import OneNode

REPOSITORY = Path(__file__).resolve().parents[2]
TOOLS = ("iptables", "iptables-save", "iptables-restore", "ip6tables", "ip6tables-save", "ip6tables-restore")
SYNC_TIME = "kubeproxy_sync_proxy_rules_last_timestamp_seconds"
METRICS_PORT = 10249
_END_LIMIT_S = 20.0
_MIB = 1 / 1024
_TICK = os.sysconf("SC_CLK_TCK")


class Program(Enum):
    """Who is on the node."""

    KUBE_PROXY = "kube-proxy"
    KPROXY = "kproxy"


@dataclass(frozen=True, slots=True)
class Memory:
    """Of all processes of a program together, in MiB. pss counts a page shared by n processes as an nth."""

    rss: float
    pss: float


def metrics(bed: OneNode) -> dict[str, float]:
    """Name with labels → value, as the proxy on the node says; empty while it does not answer."""
    try:
        with bed.node.entered():
            connection = http.client.HTTPConnection("127.0.0.1", METRICS_PORT, timeout=10)
            connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
        connection.close()
    except (OSError, http.client.HTTPException):
        return {}
    found: dict[str, float] = {}
    for line in text.splitlines():
        if line and line[0] != "#":
            name, _, value = line.rpartition(" ")
            found[name] = float(value)
    return found


def value_of(found: dict[str, float], name: str) -> float:
    """A metric's value, for IPv4 where it has families; 0.0 when it is not there."""
    return found.get(f'{name}{{ip_family="IPv4"}}', found.get(name, 0.0))


@dataclass(slots=True)
class Running:
    """A started program. `started` is Unix time just before the start, as the programs' own timestamps are."""

    program: Enum  # a Program, or whatever else runs on the node
    bed: OneNode
    process: subprocess.Popen[bytes]
    started: float
    log: Path

    def pids(self) -> list[int]:
        """The process and all that came of it."""
        found = [self.process.pid]
        for pid in found:
            with suppress(OSError):
                for task in Path(f"/proc/{pid}/task").iterdir():
                    found += [int(child) for child in (task / "children").read_text().split()]
        return found

    def memory(self) -> Memory:
        """What it takes now. Tools it happens to run at this moment are left out."""
        rss = pss = 0.0
        for pid in self.pids():
            with suppress(OSError):
                if "tables" in Path(f"/proc/{pid}/comm").read_text():
                    continue
                for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                    if line.startswith("Rss:"):
                        rss += int(line.split()[1]) * _MIB
                    elif line.startswith("Pss:"):
                        pss += int(line.split()[1]) * _MIB
        return Memory(rss, pss)

    def cpu_seconds(self) -> float:
        """User and system time of all its processes, and of the tools that they have waited for."""
        total = 0.0
        for pid in self.pids():
            with suppress(OSError):
                words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                total += sum(int(word) for word in words[11:15]) / _TICK
        return total

    def wait_synced(self, limit_s: float = 60.0, step_s: float = 0.2) -> float:
        """Waits for the end of its first sync; seconds from its start to there, by its own metric.

        It is asked seldom: pages of metrics cost it time that it should have for the sync, and the metric is exact whenever it is read.
        """
        deadline = time.monotonic() + limit_s
        while True:
            ended = value_of(metrics(self.bed), SYNC_TIME)
            if ended >= self.started:
                return ended - self.started
            self.demand()
            assert time.monotonic() < deadline, f"no sync in {limit_s:g} s: {self.tail()}"
            time.sleep(step_s)

    def last_sync(self) -> float:
        """Unix time of the end of its last sync, 0.0 before the first."""
        return value_of(metrics(self.bed), SYNC_TIME)

    def wait_said(self, text: str, limit_s: float = 30.0) -> None:
        """Waits until its log has these words."""
        deadline = time.monotonic() + limit_s
        while text not in self.log.read_text(errors="replace"):
            self.demand()
            assert time.monotonic() < deadline, f"{text!r} was not said in {limit_s:g} s: {self.tail()}"
            time.sleep(0.02)

    def demand(self) -> None:
        """Fails where it has ended by itself."""
        assert self.process.poll() is None, f"{self.program.value} ended ({self.process.returncode}): {self.tail()}"

    def tail(self) -> str:
        """The last lines of its log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-15:])

    def stop(self) -> None:
        """Asks it to end, and waits."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(timeout=_END_LIMIT_S)
            except subprocess.TimeoutExpired:
                self.kill()

    def kill(self) -> None:
        """SIGKILL for all its processes at once, the parent first; waits."""
        for pid in self.pids():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait(timeout=_END_LIMIT_S)


@dataclass(slots=True)
class Stage:
    """A node where either program can be started against one API server, in one variant of iptables."""

    bed: OneNode
    plane: ControlPlane
    variant: Variant
    scratch: Path
    settings: dict[str, object] = field(default_factory=dict)  # fields of KubeProxyConfiguration over `configuration`'s
    dns: bool = False  # whether kproxy answers the cluster's DNS as well
    flags: tuple[str, ...] = ()  # further ones of `kproxy run`
    home: Path = REPOSITORY  # where the package kproxy lies
    _count: int = 0

    def start(self, program: Program) -> Running:
        """Starts it and returns at once."""
        self._count += 1
        log = self.scratch / f"{program.value}-{self.variant.value}-{self._count}.log"
        words = self._words(program)
        environment = {**os.environ, "PYTHONPATH": str(self.home), "PATH": f"{self._tools()}:{os.environ['PATH']}"}
        with log.open("wb") as output, self.bed.node.entered():
            started = time.time()
            process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", "--", *words],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=environment,
                cwd=self.home,
            )
        return Running(program, self.bed, process, started, log)

    def _words(self, program: Program) -> list[str]:
        config = self.scratch / "kube-proxy.yaml"
        documents = [{**configuration(self.plane), **self.settings}, {**_OURS, "dns": {"enabled": self.dns}}]
        config.write_text(yaml.safe_dump_all(documents))
        if program is Program.KUBE_PROXY:
            path = find_program("kube-proxy", os.environ)
            assert path is not None, "tests/peers/build makes kube-proxy"
            return [str(path), f"--config={config}"]
        run_dir = self.scratch / "run"
        flags = [f"--config={config}", f"--run-dir={run_dir}", f"--iptables-variant={self.variant.value}", *self.flags]
        return [sys.executable, "-m", "kproxy", "run", *flags]

    def _tools(self) -> Path:
        """A folder whose `iptables` … are those of the variant."""
        folder = self.scratch / f"tools-{self.variant.value}"
        if not folder.exists():
            folder.mkdir(parents=True)
            for tool in TOOLS:
                family, _, rest = tool.partition("-")
                real = shutil.which(f"{family}-{self.variant.value}{'-' + rest if rest else ''}")
                assert real is not None, f"this machine has no {tool} of variant {self.variant.value}"
                (folder / tool).symlink_to(real)
        return folder


_OURS = {"apiVersion": "kproxy.dev/v1alpha1", "kind": "KproxyConfiguration"}


def installed(folder: Path) -> Path:
    """A copy of kproxy with its bytecode, as an installation has it: in a work tree without any, each start would compile every module."""
    shutil.copytree(REPOSITORY / "kproxy", folder / "kproxy", ignore=shutil.ignore_patterns("__pycache__"))
    words = [sys.executable, "-m", "compileall", "-q", str(folder / "kproxy")]
    subprocess.run(words, check=True, timeout=120)
    return folder


def configuration(plane: ControlPlane) -> dict[str, object]:
    """A KubeProxyConfiguration with upstream's defaults but for the kernel's conntrack limits, which are left alone."""
    return {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "iptables",
        "hostnameOverride": one_node.NODE_NAME,
        "clusterCIDR": one_node.POD_NETWORK,
        "clientConnection": {"kubeconfig": str(plane.kubeconfig)},
        "conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
        "healthzBindAddress": "127.0.0.1:10256",
        "metricsBindAddress": f"127.0.0.1:{METRICS_PORT}",
    }
