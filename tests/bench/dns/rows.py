"""What is measured, one method for each group of rows. A turn starts a server, measures everything on it, and ends it.

rates     one core: existing names, missing names, forwarded names, walks of the search list, a paced load, writes at the API
start     as deployed, on both cores: start, memory
whole     memory of the node's whole proxy and DNS, and the most of it while everything is listed again
flood     one core: a pod's latency beside another pod's flood
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.bench.dns import cluster
from tests.bench.dns.load import Background, Client, FirstAnswer, dnsperf
from tests.bench.dns.servers import OURS, Peak, Server, Servers, address_on, pin_workers
from tests.bench.dns.table import Figures
from tests.support.cluster_api import Api
from tests.support.prefilled import service
from tests.support.proxies import Memory, Program, Running, Stage

START_LIMIT_S = 60.0
_SETTLE_S = 3.0
_WARM_S = 1.0
_WRITES = 8
_WRITTEN = "10.111.0."  # cluster IPs of the Services written here
_RELIST_S = 15.0
_CALM_RATE, _FLOOD_RATE, _FLOOD_S = 1000, 50_000, 8.0
_PACED = 10_000
_ASKED = {  # which rates each server is measured at
    Server.WORKER: ("a", "nx", "new", "fwd"),
    Server.KPROXY: ("a", "nx", "new", "fwd"),
    Server.COREDNS: ("a", "nx", "new", "fwd"),
    Server.NSD: ("a", "nx", "new"),
    Server.AUTOPATH: (),
}


@dataclass(slots=True)
class Bench:
    """Everything that turns need. seconds: how long each rate is measured."""

    stage: Stage
    servers: Servers
    figures: Figures
    questions: dict[str, Path]
    client: Client
    services: int
    seconds: float
    say: Callable[[str], None]

    @contextmanager
    def running(self, server: Server, *, pinned: bool) -> Iterator[Running]:
        """The server, answering; it took the seconds that `started` of it and now are apart."""
        self.stage.bed.clean(self.stage.variant)
        node, last = self.stage.bed.node, self.services - 1
        with address_on(node, server):
            with FirstAnswer(node, cluster.name_of(last), cluster.address_of(last), limit_s=START_LIMIT_S) as probe:
                running = self.servers.start(server, pinned=pinned)
            try:
                assert probe.when is not None, (
                    f"{server.value}: no right answer in {START_LIMIT_S:g} s: {running.tail()}"
                )
                if not pinned:
                    self.figures.add("start.first", server, probe.when - running.started)
                if pinned and server in OURS:
                    pin_workers(running)
                time.sleep(_SETTLE_S)  # rules are written, caches of the kernel warm
                if server is Server.WORKER:
                    self.stage.bed.clean(self.stage.variant)
                running.demand()
                yield running
            finally:
                running.stop()

    def rates(self, server: Server, *, writes: bool) -> None:
        """One core."""
        with self.running(server, pinned=True) as running:
            pods, source = self.stage.bed.pods, cluster.OTHER
            for work in _ASKED[server]:
                if work != "new":
                    dnsperf(pods, running, self.questions[work], _WARM_S, source=source)
                found = dnsperf(pods, running, self.questions[work], self.seconds, source=source)
                self.figures.add(f"{work}.rate", server, found.rate)
                self.figures.add(f"{work}.cpu", server, found.cpu_us)
                self.figures.add(f"{work}.all", server, found.all_us)
                self.say(
                    f"{server.value}: {work} {found.rate:,.0f} q/s, {found.cpu_us:.1f} us of its processes, "
                    f"{found.all_us:.1f} us in all, {found.lost:.0f} lost"
                )
            if server is not Server.NSD:
                self._walk(server, running)
            if server is not Server.AUTOPATH:
                self._paced(server, running)
            if writes and server in (Server.KPROXY, Server.COREDNS):
                self._writes(server)

    def _walk(self, server: Server, running: Running) -> None:
        pods, names = self.stage.bed.pods, self.questions["walk"]
        self.client.walk(pods, names, _WARM_S, cluster.PODS[0])
        before = running.cpu_seconds()
        found = self.client.walk(pods, names, self.seconds, cluster.PODS[0])
        spent = running.cpu_seconds() - before
        assert found["done"] and not found["failed"], f"{server.value}: names were not found: {found} {running.tail()}"
        self.figures.add("walk.names", server, found["names"])
        self.figures.add("walk.queries", server, found["queries"] / found["done"])
        self.figures.add("walk.cpu", server, spent / found["done"] * 1e6)
        self.figures.add("walk.mean", server, found["mean_us"])
        self.say(
            f"{server.value}: walk {found['names']:,.0f} names/s, {found['queries'] / found['done']:.1f} queries each"
        )

    def _paced(self, server: Server, running: Running) -> None:
        pods, names, source = self.stage.bed.pods, self.questions["a"], cluster.OTHER
        found = dnsperf(pods, running, names, self.seconds, rate=_PACED, source=source)
        self.figures.add("paced.mean", server, found.mean_us)
        self.figures.add("paced.cpu", server, found.cpu_us)
        timed = self.client.paced(pods, names, self.seconds / 2, _PACED, source)
        assert not timed["wrong"], f"{server.value}: wrong answers: {timed}"
        self.figures.add("paced.p99", server, timed["p99_us"])
        self.say(
            f"{server.value}: paced {found.mean_us:.0f} us, p99 {timed['p99_us']:.0f} us, {found.cpu_us:.1f} us of CPU"
        )

    def _writes(self, server: Server) -> None:
        api = Api.of(self.stage.bed.node, self.stage.plane)
        names = []
        for number in range(_WRITES):
            name, address = f"written-{number}", f"{_WRITTEN}{number + 1}"
            full = f"{name}.default.svc.cluster.local"
            with FirstAnswer(self.stage.bed.node, full, address, limit_s=20, step_s=0.0003) as probe:
                time.sleep(0.05)
                before = time.time()
                api.create(service(name, address))
                posted = time.time()
            assert probe.when is not None, f"{server.value} never answered for a new Service"
            names.append(name)
            self.figures.add("write.all", server, probe.when - before)
            self.figures.add("write.post", server, posted - before)
            self.figures.add("write.after", server, probe.when - posted)
            time.sleep(0.2)
        for name in names:
            api.remove(name)
        api.close()
        after = self.figures.median("write.after", server)
        self.say(f"{server.value}: a new Service is answered {(after or 0) * 1e3:.1f} ms after the API's own answer")

    def start(self, server: Server) -> None:
        """As deployed: start, processor time, memory. For kproxy once more without DNS: the difference is what DNS takes."""
        with self.running(server, pinned=False) as running:
            self.figures.add("start.cpu", server, running.cpu_seconds())
            with_dns = running.memory()
        self.say(
            f"{server.value}: start {self.figures.samples['start.first', server][-1]:.2f} s, {with_dns.rss:.0f} MiB"
        )
        without = self._without_dns() if server is Server.KPROXY else Memory(0.0, 0.0)
        self.figures.add("rss.dns", server, with_dns.rss - without.rss)
        self.figures.add("pss.dns", server, with_dns.pss - without.pss)
        node, last = self.stage.bed.node, self.services - 1
        with address_on(node, server):
            with FirstAnswer(node, cluster.name_of(last), cluster.address_of(last), limit_s=START_LIMIT_S) as probe:
                again = self.servers.start(server, pinned=False)
            again.stop()
        if probe.when is not None:
            self.figures.add("start.again", server, probe.when - again.started)

    def _without_dns(self) -> Memory:
        running = self.servers.proxy_alone(Program.KPROXY)
        try:
            running.wait_synced(START_LIMIT_S)
            time.sleep(_SETTLE_S)
            return running.memory()
        finally:
            running.stop()

    def whole(self, server: Server) -> None:
        """The node's proxy and DNS together: kproxy, or kube-proxy and CoreDNS; steady, and while all is listed again."""
        with self.running(server, pinned=False) as running:
            programs = [running]
            if server is Server.COREDNS:
                programs.append(self.servers.proxy_alone(Program.KUBE_PROXY))
            try:
                programs[-1].wait_synced(START_LIMIT_S)
                time.sleep(_SETTLE_S)
                steady = [program.memory() for program in programs]
                self.figures.add("rss.whole", server, sum(memory.rss for memory in steady))
                self.figures.add("pss.whole", server, sum(memory.pss for memory in steady))
                with Peak(*programs) as peak:
                    restart_api_server(self.stage)
                    time.sleep(_RELIST_S)
                self.figures.add("rss.peak", server, peak.rss)
                self.say(f"{server.value}: whole {sum(m.rss for m in steady):.0f} MiB, relist {peak.rss:.0f} MiB")
            finally:
                for program in programs[1:]:
                    program.stop()

    def flood(self, server: Server) -> None:
        """A neighbour's p99 alone, and while another pod asks for names that nobody has."""
        with self.running(server, pinned=True):
            pods, names = self.stage.bed.pods, self.questions["a"]

            def timed(seconds: float) -> dict[str, float]:
                return self.client.paced(pods, names, seconds, _CALM_RATE, cluster.PODS[1])

            timed(_WARM_S)
            calm = timed(_FLOOD_S)
            questions, lasts = self.questions["new"], _FLOOD_S + 2
            flood = Background(lambda: self.client.flood(pods, questions, lasts, _FLOOD_RATE, cluster.PODS[0]))
            time.sleep(1.0)
            meanwhile = timed(_FLOOD_S)
            told = flood.result()
            asked, rate = told["asked"] / lasts, (told["asked"] - told["lost"]) / lasts
            self.figures.add("flood.calm", server, calm["p99_us"])
            self.figures.add("flood.p50calm", server, calm["p50_us"])
            self.figures.add("flood.other", server, meanwhile["p99_us"])
            self.figures.add("flood.p50", server, meanwhile["p50_us"])
            self.figures.add("flood.lost", server, meanwhile["lost"])
            self.figures.add("flood.rate", server, rate)
            self.say(
                f"{server.value}: p99 {calm['p99_us']:.0f} us, beside {asked:,.0f} q/s of a flood, {rate:,.0f} answered, "
                f"{meanwhile['p99_us']:.0f} us, p50 {meanwhile['p50_us']:.0f}, {meanwhile['lost']:.0f} lost"
            )


def restart_api_server(stage: Stage) -> None:
    """Kills the API server and starts it anew over the same data: its watch cache begins later than any watch ended, so all list again."""
    pid = stage.plane.pids()["kube-apiserver"]
    for entry in Path("/proc").glob("[0-9]*/comm"):  # the one of an earlier restart is no child of the plane's
        if entry.read_text().strip() == "kube-apiserver":
            pid = int(entry.parent.name)
    words = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")[:-1]
    folder = Path(f"/proc/{pid}/cwd").resolve()
    subprocess.run(["kill", "-9", str(pid)], check=True, timeout=10)
    with (stage.scratch / "apiserver-again.log").open("ab") as output, stage.bed.plane.entered():
        time.sleep(0.2)
        subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", "--", *words],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd=folder,
        )
