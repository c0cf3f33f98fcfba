"""CoreDNS, NSD and kproxy as the processes they are on a node, one at a time, all of them asked at the same address.

kproxy is `kproxy run`: supervisor, controller and answering processes, with its rules in the kernel. The others run on a node without any
rule in their way, and so does "kproxy, no rules": its rules are taken away once it answers, so that servers are compared and not
netfilter. CoreDNS stands on the node itself, without the translation and the hop that lead to its pod elsewhere. Pinned means that one
core answers: GOMAXPROCS=1 and `taskset` for CoreDNS, one worker for kproxy, one process for NSD.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from kproxy.lab.controlplane import find_program
from tests.bench.dns import cluster
from tests.support.netns import Namespace, ip
from tests.support.proxies import Program, Running, Stage

PORT = 53
SERVER_CORE, LOAD_CORE = 0, 1
SBIN = "/usr/local/sbin:/usr/sbin:/sbin"
_SAMPLE_S = 0.02
_PAGE_MIB = os.sysconf("SC_PAGE_SIZE") / (1 << 20)


class Server(Enum):
    """Who answers. The order is that of the table's columns."""

    COREDNS = "CoreDNS"
    AUTOPATH = "CoreDNS autopath"
    NSD = "NSD"
    WORKER = "kproxy, no rules"
    KPROXY = "kproxy"


OURS = (Server.WORKER, Server.KPROXY)


# kubeadm's, with addresses of its own for the pages, because two of them may be on one machine
_KUBEADM = """\
.:53 {{
    bind {address}
    errors
    health 127.0.0.1:8079 {{
        lameduck 5s
    }}
    ready 127.0.0.1:8181
    {autopath}
    kubernetes cluster.local in-addr.arpa ip6.arpa {{
        kubeconfig {kubeconfig}
        pods {pods}
        fallthrough in-addr.arpa ip6.arpa
        ttl 30
    }}
    prometheus 127.0.0.1:9153
    forward . /etc/resolv.conf {{
        max_concurrent 1000
    }}
    cache 30 {{
        disable success cluster.local
        disable denial cluster.local
    }}
    loop
    reload
    loadbalance
}}
"""

_NSD = """\
server:
 ip-address: {address}
 port: 53
 server-count: 1
 username: root
 zonesdir: {folder}
 pidfile: ""
 database: ""
 zonelistfile: {folder}/list
 xfrdfile: {folder}/xfrd
 xfrdir: {folder}
 logfile: {folder}/log
 rrl-ratelimit: 0
remote-control:
 control-enable: no
zone:
 name: {zone}
 zonefile: zone
"""


@dataclass(slots=True)
class Servers:
    """Starts servers on the stage's node. kubeconfig: of another API server than the stage's; None: the stage's."""

    stage: Stage
    services: int
    kubeconfig: Path | None = None
    _count: int = field(default=0)

    def start(self, server: Server, *, pinned: bool) -> Running:
        """Starts one and returns at once; the caller waits for what it waits for, and ends it with `stop`."""
        self._count += 1
        match server:
            case Server.KPROXY:
                return self._kproxy(1 if pinned else 0)
            case Server.WORKER:
                self.stage.settings = {"healing": {"enabled": False}}
                try:
                    return self._kproxy(1)
                finally:
                    self.stage.settings = {}
            case Server.NSD:
                folder = self.stage.scratch / f"nsd-{self._count}"
                return nsd(self.stage.bed.node, folder, cluster.DNS, cluster.cluster_zone(self.services), self.stage)
            case _:
                return self._coredns(server, pinned)

    def _kproxy(self, workers: int) -> Running:
        self.stage.dns = True
        self.stage.flags = (f"--dns-workers={workers}",)
        if self.kubeconfig is not None:
            self.stage.settings = {"clientConnection": {"kubeconfig": str(self.kubeconfig)}}
        return self.stage.start(Program.KPROXY)

    def proxy_alone(self, program: Program) -> Running:
        """kube-proxy, or kproxy without its DNS."""
        self.stage.dns, self.stage.flags = False, ()
        return self.stage.start(program)

    def _coredns(self, server: Server, pinned: bool) -> Running:
        program = find_program("coredns", os.environ)
        assert program is not None, "tests/peers/build makes coredns"
        autopath = server is Server.AUTOPATH
        kubeconfig = self.kubeconfig or self.stage.plane.kubeconfig
        corefile = self.stage.scratch / f"Corefile-{self._count}"
        text = _KUBEADM.format(
            address=cluster.DNS,
            kubeconfig=kubeconfig,
            autopath="autopath @kubernetes" if autopath else "",
            pods="verified" if autopath else "insecure",
        )
        corefile.write_text(text)
        words = [str(program), "-conf", str(corefile)]
        if pinned:
            words = [*pinning(SERVER_CORE), *words]
        log = self.stage.scratch / f"coredns-{self._count}.log"
        environment = {**os.environ, **({"GOMAXPROCS": "1"} if pinned else {})}
        return spawned(self.stage.bed.node, words, log, self.stage, server, environment)


def nsd(space: Namespace, folder: Path, address: str, zone: str, stage: Stage) -> Running:
    """NSD with one server process on the first core that answers from this zone file (its origin says which)."""
    program = shutil.which("nsd", path=f"{os.environ['PATH']}:{SBIN}")
    assert program is not None, "nsd is not installed"
    folder.mkdir()
    (folder / "zone").write_text(zone)
    (folder / "conf").write_text(_NSD.format(address=address, folder=folder, zone=zone.split()[1]))
    words = [*pinning(SERVER_CORE), program, "-d", "-c", str(folder / "conf")]
    return spawned(space, words, folder / "output", stage, Server.NSD)


def spawned(
    space: Namespace,
    words: list[str],
    log: Path,
    stage: Stage,
    server: Enum,
    environment: dict[str, str] | None = None,
) -> Running:
    """A process in `space` that ends with this one."""
    with log.open("wb") as output, space.entered():
        started = time.time()
        process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", "--", *words],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=environment,
        )
    return Running(server, stage.bed, process, started, log)


def pinning(core: int) -> list[str]:
    """The beginning of a command that runs on one core alone."""
    return ["taskset", "-c", str(core)]


def pin_workers(running: Running) -> None:
    """kproxy's answering processes onto the server's core; its controller stays free, as it is idle while queries are measured."""
    for pid in running.pids():
        with suppress(OSError):
            if Path(f"/proc/{pid}/comm").read_text().startswith("kproxy-dns"):
                os.sched_setaffinity(pid, {SERVER_CORE})


@contextmanager
def address_on(space: Namespace, server: Server) -> Iterator[None]:
    """The DNS address on the node; kproxy brings it itself."""
    theirs = server not in OURS
    if theirs:
        ip(space, f"addr replace {cluster.DNS}/32 dev lo")
    try:
        yield
    finally:
        if theirs:
            ip(space, f"addr del {cluster.DNS}/32 dev lo")


class Peak:
    """The most memory that all processes of some programs had at one moment, looked at fifty times a second; MiB."""

    def __init__(self, *running: Running) -> None:
        self.rss = 0.0
        self._running = running
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def _watch(self) -> None:
        while not self._stop.wait(_SAMPLE_S):
            total = 0.0
            for pid in [pid for running in self._running for pid in running.pids()]:
                with suppress(OSError):
                    if "tables" not in Path(f"/proc/{pid}/comm").read_text():
                        total += int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE_MIB
            self.rss = max(self.rss, total)

    def __enter__(self) -> Peak:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
