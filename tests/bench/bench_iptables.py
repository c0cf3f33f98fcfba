"""How long iptables rules take, from decided state to kernel, for both variants.

    python -m tests.bench.bench_iptables [--services 1000] [--endpoints 4] [--repeat 5] [-o json]

Needs root. Every repetition has a network namespace of its own and the tools a lock file of their own; no packet is sent. Each figure is
the median, with the fastest and the slowest behind it, in seconds of wall time:

    load        empty kernel → all rules: compile, plan, apply
    restart     over its own rules: observe, compile, plan; nothing to write
    endpoint    one endpoint of one Service replaced: compile, plan, apply
    service     one more Service with endpoints
    gone        that Service removed
    cleanup     all rules taken away
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from kproxy.backends.iptables.apply import IptablesBackend
from kproxy.backends.iptables.ruleset import Ruleset
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
from tests.support.netns import Namespace

Figures = dict[str, list[float]]


def service_port(number: int, endpoints: int, generation: int = 0) -> ServicePort:
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
    cluster = VirtualIP(address=f"10.96.{number // 256}.{number % 256}", kind=VirtualIPKind.CLUSTER)
    return ServicePort(
        name=ServicePortName(NamespacedName("bench", f"svc-{number:05}"), "http", Protocol.TCP),
        family=Family.IPV4,
        port=80,
        virtual_ips=(cluster,),
        node_port=None,
        internal=Route(endpoints=found, masquerade=Masquerade.OFF_CLUSTER_SOURCES),
        external=Route(),
        short_circuit=Route(),
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


def main() -> None:
    """Runs and prints."""
    parser = argparse.ArgumentParser(description="iptables rules: time from decided state to kernel")
    parser.add_argument("--services", type=int, default=1000)
    parser.add_argument("--endpoints", type=int, default=4)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--variant", choices=[variant.value for variant in Variant], action="append")
    parser.add_argument("-o", "--output", choices=["text", "json"], default="text")
    given = parser.parse_args()
    variants = [Variant(name) for name in given.variant or [variant.value for variant in Variant]]
    results: dict[str, Figures] = {}
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XTABLES_LOCKFILE"] = str(Path(folder) / "xtables.lock")
        for variant in variants:
            figures = results.setdefault(variant.value, {})
            for _ in range(given.repeat):
                run_once(variant, given.services, given.endpoints, figures)
    if given.output == "json":
        print(json.dumps({"services": given.services, "endpoints": given.endpoints, "seconds": results}))
        return
    load = os.getloadavg()[0]
    print(f"{given.services} Services x {given.endpoints} endpoints, {given.repeat} runs, load average {load:.1f}")
    for variant_name, figures in results.items():
        for name, seconds in figures.items():
            middle = statistics.median(seconds)
            print(f"{variant_name:7} {name:9} {middle:7.3f} s   ({min(seconds):.3f} - {max(seconds):.3f})")


if __name__ == "__main__":
    main()
