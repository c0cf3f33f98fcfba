"""The machine that relays, four times: nothing, HAProxy, HAProxy on a node with conntrack, a worker of kproxy; and who talks through it.

             ┌─ node without anything (forwards) ─┐
    clients ─┼─ node with HAProxy, mode tcp       ┼─ endpoints: HAProxy in mode http, which answers by itself; iperf3
             ├─ the same, with a plug-in's rules  ┤
             └─ node with rules and kproxy        ┘

kproxy's rules are those of mode userspace as a node has them, conntrack included, with a thousand Services in them; they are in nobody
else's way, for each node has links and addresses of its own. Relays have the first core, everybody else the
second. All namespaces use one congestion control without pacing: under bbr, which some hosts have by default, timers are what is measured.
"""

from __future__ import annotations

import contextlib
import os
import resource
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from kproxy.model.resolve import resolve
from kproxy.relay.worker import limits
from tests.support.builders import Built, ep, port, slice_, svc
from tests.support.flows import SETTINGS, step
from tests.support.netns import Namespace, ip, link, run, sysctl
from tests.support.relaying import Relaying

RELAY_CORE, LOAD_CORE = 0, 1
HTTP, STREAM, PARTLY_DEAD = 80, 5201, 81  # ports of the Service
ENDPOINTS = 4
SERVICES = 1_000
_VIRTUAL = "10.96.0.10"


class Way(Enum):
    """What is between client and endpoint, in the order of the table's columns."""

    DIRECT = "direct"
    HAPROXY = "HAProxy"
    TRACKED = "HAProxy, conntrack"
    KPROXY = "kproxy"


_NUMBER = {Way.DIRECT: 1, Way.HAPROXY: 2, Way.KPROXY: 3, Way.TRACKED: 4}

# As a network plug-in and a firewall have them on every node of Kubernetes: whoever relays there has conntrack in his way.
_OF_THE_NODE = """\
add table ip plugin
add chain ip plugin out { type nat hook postrouting priority 100 ; }
add rule ip plugin out ip saddr 10.244.0.0/16 ip daddr != 10.244.0.0/16 masquerade
add chain ip plugin into { type filter hook input priority 0 ; }
add rule ip plugin into ct state established,related accept
"""

_ANSWERING = """\
global
  nbthread 1
  maxconn {connections}
defaults
  mode http
  timeout client 600s
  timeout http-keep-alive 600s
frontend answers
  bind :{port}
  http-request return status 200 content-type text/plain string "{words}"
"""

_RELAYING = """\
global
  nbthread 1
  maxconn {connections}
defaults
  mode tcp
  timeout client 600s
  timeout server 600s
  timeout connect 10s
listen http
  bind {address}:{http}
  balance random
{servers}
listen stream
  bind {address}:{stream}
  server one {first}:{stream}
"""


def connections() -> int:
    """How many a worker has room for here: 10,000, if descriptors are enough for that."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    return 10_000 if hard == resource.RLIM_INFINITY else min(10_000, limits(hard, 0, 10.0, 0.2).connections - 50)


def pods(way: Way) -> list[str]:
    """Addresses of the endpoints, as this node reaches them."""
    return [f"10.180.{_NUMBER[way]}.{number}" for number in range(1, ENDPOINTS + 1)]


def asked(way: Way) -> str:
    """The address that clients ask for."""
    return {Way.DIRECT: pods(way)[0], Way.KPROXY: _VIRTUAL}.get(way, f"192.168.{_NUMBER[way]}.1")


@dataclass(slots=True)
class Ground:
    """Namespaces and processes. first: they go before all else on the machine (SCHED_RR), so that busy neighbours disturb less."""

    scratch: Path
    first: bool
    clients: Namespace
    ends: Namespace
    nodes: dict[Way, Namespace]
    relays: dict[Way, subprocess.Popen[bytes] | subprocess.Popen[str]] = field(default_factory=dict)
    running: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def words(self, core: int, command: Sequence[str]) -> list[str]:
        """The command, on its core."""
        return [*(["chrt", "-r", "5"] if self.first else []), "taskset", "-c", str(core), *command]

    def start(self, space: Namespace, core: int, *command: str) -> subprocess.Popen[bytes]:
        """Starts what goes on until `close`."""
        with space.entered():
            made = subprocess.Popen(self.words(core, command), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.running.append(made)
        return made

    def measured(self, *command: str, seconds: float, free: bool = False) -> str:
        """Runs a client to its end; what it prints. free: on whichever core has time."""
        words = [*command] if free else self.words(LOAD_CORE, command)
        with self.clients.entered():
            done = subprocess.run(words, capture_output=True, text=True, timeout=seconds + 60, check=True)
        return done.stdout

    def cpu_s(self, way: Way) -> float:
        """Time on a CPU of the relay's process since it began, softirqs that it ran included."""
        return int(Path(f"/proc/{self.relays[way].pid}/schedstat").read_text().split()[0]) / 1e9

    @staticmethod
    def busy_s() -> float:
        """Time that all processors of this machine have worked since it began."""
        numbers = Path("/proc/stat").read_text().splitlines()[0].split()[1:9]
        user, nice, system, _idle, _waiting, interrupts, soft, _stolen = map(int, numbers)
        return (user + nice + system + interrupts + soft) / os.sysconf("SC_CLK_TCK")

    def resident(self, way: Way) -> int:
        """RSS of the relay's process, in octets."""
        return int(Path(f"/proc/{self.relays[way].pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def kill_endpoint(self, way: Way, number: int) -> None:
        """The endpoint is silent from now on, as a node that lost its power is."""
        rules = "add table ip dead\nadd chain ip dead drops { type filter hook prerouting priority 0; }\n"
        run(self.ends, "nft", "-f", "-", text=f"{rules}add rule ip dead drops ip daddr {pods(way)[number]} drop\n")

    def revive(self) -> None:
        """No endpoint is silent."""
        run(self.ends, "nft", "flush", "ruleset")

    def close(self) -> None:
        """Ends what was started."""
        for one in self.running:
            one.kill()
            one.wait(10)


@contextlib.contextmanager
def ground(scratch: Path, *, first: bool) -> Iterator[Ground]:
    """Everything stands and answers."""
    with contextlib.ExitStack() as stack:
        clients, ends = stack.enter_context(Namespace.new()), stack.enter_context(Namespace.new())
        nodes = {way: stack.enter_context(Namespace.new()) for way in Way}
        for way, node in nodes.items():
            _link(way, node, clients, ends)
        ip(clients, f"route add {_VIRTUAL} via 192.168.3.1")
        for space in (clients, ends, *nodes.values()):
            sysctl(space, ipv4__tcp_congestion_control="reno", ipv4__ip_local_port_range="1024 65000")
            sysctl(space, ipv4__tcp_tw_reuse=1, ipv4__ip_forward=1)
        made = Ground(scratch, first, clients, ends, nodes)
        try:
            _start(made)
            relaying = Relaying(nodes[Way.KPROXY], scratch, workers=1, prefix=made.words(RELAY_CORE, []))
            stack.enter_context(relaying)
            relaying.bring(resolve(step(_objects()).snapshot(), SETTINGS))
            made.relays[Way.KPROXY] = relaying.workers[0]
            _until_answered(made, asked(Way.KPROXY))
            yield made
        finally:
            made.close()


def _link(way: Way, node: Namespace, clients: Namespace, ends: Namespace) -> None:
    number = _NUMBER[way]
    sysctl(node, ipv4__conf__all__rp_filter=0, ipv4__conf__default__rp_filter=0)
    link(node, "near", clients, [f"192.168.{number}.1/24"], [f"192.168.{number}.9/24"], peer=f"eth{number}")
    link(node, "far", ends, [f"10.180.{number}.254/24"], [f"{one}/24" for one in pods(way)], peer=f"eth{number}")
    ip(clients, f"route add 10.180.{number}.0/24 via 192.168.{number}.1")
    ip(ends, f"route add 192.168.{number}.0/24 via 10.180.{number}.254")


def _start(made: Ground) -> None:
    many = connections() + 100
    for number, words in ((HTTP, "hello"), (PARTLY_DEAD, "alive")):
        answering = made.scratch / f"answering{number}.cfg"
        answering.write_text(_ANSWERING.format(connections=many, port=number, words=words))
        made.start(made.ends, LOAD_CORE, "haproxy", "-f", str(answering))
    made.start(made.ends, LOAD_CORE, "iperf3", "-s")
    for way in (Way.HAPROXY, Way.TRACKED):
        servers = "\n".join(f"  server s{number} {one}:{HTTP}" for number, one in enumerate(pods(way)))
        relaying = made.scratch / f"{way.name}.cfg"
        relaying.write_text(
            _RELAYING.format(
                connections=many, address=asked(way), http=HTTP, stream=STREAM, servers=servers, first=pods(way)[0]
            )
        )
        made.relays[way] = made.start(made.nodes[way], RELAY_CORE, "haproxy", "-f", str(relaying))
    run(made.nodes[Way.TRACKED], "nft", "-f", "-", text=_OF_THE_NODE)
    for way in (Way.DIRECT, Way.HAPROXY, Way.TRACKED):
        _until_answered(made, asked(way))


def _objects() -> tuple[Built, ...]:
    """The Service that is asked, and as many others as rules and tables hold on a busy node."""
    ends = [ep(one) for one in pods(Way.KPROXY)]
    asked = svc(_VIRTUAL, ports=[port(HTTP, "http"), port(PARTLY_DEAD, "partly"), port(STREAM, "stream")])
    found = [asked, slice_(*ends, ports=(("http", HTTP, "TCP"), ("partly", PARTLY_DEAD, "TCP")))]
    found.append(slice_(ends[0], name="stream", ports=(("stream", STREAM, "TCP"),)))
    for number in range(SERVICES - 1):
        name = f"other{number}"
        found += [svc(f"10.97.{number // 250}.{number % 250 + 1}", name=name), slice_(ends[0], of=name)]
    return (*found,)


def _until_answered(made: Ground, address: str) -> None:
    deadline = time.monotonic() + 20
    while True:
        try:
            made.measured("wrk", "-t1", "-c1", "-d1s", f"http://{address}:{HTTP}/", seconds=1)
            return
        except subprocess.CalledProcessError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
