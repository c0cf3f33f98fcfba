"""How long iptables rules take, from decided state to kernel, and how long packets take through them, for both variants.

    python -m tests.bench.bench_iptables [--services 1000] [--endpoints 4] [--repeat 5] [-o json]
    python -m tests.bench.bench_iptables --services 10000 --endpoints 2 --repeat 3              a minute on an idle machine

Needs root. Every repetition has network namespaces of its own and the tools a lock file of their own. Each figure is the median, with the
fastest and the slowest behind it, in seconds of wall time:

    load        empty kernel → all rules: compile, plan, apply
    restart     over its own rules: observe, compile, plan; nothing to write
    endpoint    one endpoint of one Service replaced: compile, plan, apply
    service     one more Service with endpoints
    gone        that Service removed
    cleanup     all rules taken away

and in microseconds, medians of 2,000 TCP connections of a client through the node, where every fourth Service has a node port:

    no rules    to an endpoint, before anything is written
    first, last to the first and the last Service by address
    none        to an endpoint, with all rules there
    node port   through the last node port
    node        to the node itself, on a port of its own

`--leaf 1000000` puts all entries into one line, as kube-proxy does.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import socket
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from kproxy.backends.iptables.apply import IptablesBackend
from kproxy.backends.iptables.ruleset import Ruleset
from kproxy.backends.iptables.settings import IptablesSettings
from kproxy.backends.iptables.variant import Variant
from kproxy.model.desired import (
    DesiredState,
    Endpoint,
    FamilyState,
    LocalDetector,
    Masquerade,
    NodePortAddresses,
    Route,
    ServicePort,
    VirtualIP,
    VirtualIPKind,
)
from kproxy.model.names import Family, NamespacedName, Protocol, ServicePortName
from tests.support.datapath import NODE, connect_us, ground
from tests.support.netns import Namespace

Figures = dict[str, list[float]]

ENDPOINTS, PORT = "10.100.0.0/14", 8080


def service_port(number: int, endpoints: int, generation: int = 0, *, node_port: int | None = None) -> ServicePort:
    """Service `number` with endpoints of its own; another generation has another first endpoint."""
    start = number * endpoints
    addresses = [start + n for n in range(endpoints)]
    if generation:
        addresses[0] = 4_000_000 + number
    found = tuple(
        sorted(
            (Endpoint(address=f"10.{100 + a // 65536}.{a // 256 % 256}.{a % 256}", port=8080) for a in addresses),
            key=lambda endpoint: endpoint.text,
        )
    )
    external = Route(endpoints=found, masquerade=Masquerade.ALWAYS) if node_port is not None else Route()
    cluster = VirtualIP(address=f"10.96.{number // 256}.{number % 256}", kind=VirtualIPKind.CLUSTER)
    return ServicePort(
        name=ServicePortName(NamespacedName("bench", f"svc-{number:05}"), "http", Protocol.TCP),
        family=Family.IPV4,
        port=80,
        virtual_ips=(cluster,),
        node_port=node_port,
        internal=Route(endpoints=found, masquerade=Masquerade.OFF_CLUSTER_SOURCES),
        external=external,
        short_circuit=external,
        reachable=found,
    )


def desired(ports: list[ServicePort]) -> DesiredState:
    """A node with these Services. Without localhost node ports, so that no sysctl is written."""
    return DesiredState(
        ipv4=FamilyState(
            family=Family.IPV4,
            service_ports={port.name: port for port in ports},
            local_detector=LocalDetector(source="10.0.0.0/8"),
            node_port_addresses=NodePortAddresses(everywhere=True, loopback=False),
        )
    )


def _timed(figures: Figures, name: str, work: Callable[[], object]) -> None:
    started = time.perf_counter()
    work()
    figures.setdefault(name, []).append(time.perf_counter() - started)


class _Node:
    def __init__(self, variant: Variant) -> None:
        self.variant = variant
        self.backend = IptablesBackend(variant=variant)
        self.applied = Ruleset()

    def sync(self, wanted_state: DesiredState) -> None:
        wanted = self.backend.compile(wanted_state)
        report = asyncio.run(self.backend.apply(self.backend.plan(self.applied, wanted)))
        assert not report.problems, report.problems
        self.applied = wanted

    def restart(self, wanted_state: DesiredState) -> None:
        backend = IptablesBackend(tools=self.backend.tools)
        seen = asyncio.run(backend.observe())
        assert not backend.plan(seen, backend.compile(wanted_state)).batches

    def cleanup(self) -> None:
        asyncio.run(self.backend.cleanup())


def run_once(variant: Variant, services: int, endpoints: int, figures: Figures) -> None:
    """All steps once, in a namespace of their own."""
    ports = [service_port(n, endpoints) for n in range(services)]
    with Namespace.new() as space, space.entered():
        node = _Node(variant)
        _timed(figures, "load", lambda: node.sync(desired(ports)))
        _timed(figures, "restart", lambda: node.restart(desired(ports)))
        middle = services // 2
        ports[middle] = service_port(middle, endpoints, generation=1)
        _timed(figures, "endpoint", lambda: node.sync(desired(ports)))
        more = [*ports, service_port(services, endpoints)]
        _timed(figures, "service", lambda: node.sync(desired(more)))
        _timed(figures, "gone", lambda: node.sync(desired(ports)))
        node.restart(desired(ports))
        _timed(figures, "cleanup", node.cleanup)


def pass_once(variant: Variant, services: int, endpoints: int, leaf: int, figures: Figures) -> None:
    """What connections take, once."""

    def measured(name: str, address: str, port: int) -> None:
        figures.setdefault(name, []).append(connect_us(place.client, address, port)[0])

    ports = [
        service_port(n, endpoints, node_port=30000 + n // 4 if n % 4 == 0 and n // 4 < 2768 else None)
        for n in range(services)
    ]
    last, exposed = services - 1, max(port.node_port for port in ports if port.node_port is not None)
    with ground((ENDPOINTS,), PORT) as place, place.node.entered():
        own = socket.create_server((NODE, PORT), backlog=4096)
        direct = ports[0].reachable[0].address
        measured("no rules", direct, PORT)
        backend = IptablesBackend(IptablesSettings(leaf_entries=leaf), variant=variant)
        asyncio.run(backend.apply(backend.plan(Ruleset(), backend.compile(desired(ports)))))
        measured("first", "10.96.0.0", 80)
        measured("last", f"10.96.{last // 256}.{last % 256}", 80)
        measured("none", direct, PORT)
        measured("node port", NODE, exposed)
        measured("node", NODE, PORT)
        own.close()


def main() -> None:
    """Runs and prints."""
    parser = argparse.ArgumentParser(description="iptables rules: time from decided state to kernel")
    parser.add_argument("--services", type=int, default=1000)
    parser.add_argument("--endpoints", type=int, default=4)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--variant", choices=[variant.value for variant in Variant], action="append")
    parser.add_argument("--leaf", type=int, default=IptablesSettings().leaf_entries, help="entries in a line, at most")
    parser.add_argument("-o", "--output", choices=["text", "json"], default="text")
    given = parser.parse_args()
    variants = [Variant(name) for name in given.variant or [variant.value for variant in Variant]]
    results: dict[str, Figures] = {}
    paths: dict[str, Figures] = {}
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XTABLES_LOCKFILE"] = str(Path(folder) / "xtables.lock")
        for variant in variants:
            figures = results.setdefault(variant.value, {})
            for _ in range(given.repeat):
                run_once(variant, given.services, given.endpoints, figures)
                pass_once(variant, given.services, given.endpoints, given.leaf, paths.setdefault(variant.value, {}))
    if given.output == "json":
        size = {"services": given.services, "endpoints": given.endpoints}
        print(json.dumps({**size, "seconds": results, "microseconds": paths}))
        return
    load = os.getloadavg()[0]
    print(f"{given.services} Services x {given.endpoints} endpoints, {given.repeat} runs, load average {load:.1f}")
    for variant_name, figures in results.items():
        for name, seconds in figures.items():
            middle = statistics.median(seconds)
            print(f"{variant_name:7} {name:9} {middle:7.3f} s   ({min(seconds):.3f} - {max(seconds):.3f})")
        for name, taken in paths[variant_name].items():
            print(
                f"{variant_name:7} {name:9} {statistics.median(taken):7.1f} us  ({min(taken):.1f} - {max(taken):.1f})"
            )


if __name__ == "__main__":
    main()
