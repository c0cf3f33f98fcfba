"""How long the model takes: fold, resolve cold, resolve after one change, and one trace through the compiled rules.

    python -m tests.bench.bench_model [--services 5000] [--endpoints 10] [--rounds 5] [-o json]

Prints milliseconds of processor time, the best of all rounds. No kernel, no root; the data plane's share is in the other benchmarks.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

from kproxy.backends.iptables.compile import compile_ruleset
from kproxy.backends.iptables.settings import IptablesSettings
from kproxy.explain.trace import KernelView, Packet
from kproxy.explain.trace_iptables import trace
from kproxy.model.desired import NodeSettings
from kproxy.model.diff import summarize
from kproxy.model.events import Applied, Removed, Replaced
from kproxy.model.names import Family, NamespacedName, Protocol
from kproxy.model.objects import (
    Decoded,
    EndpointSlice,
    Kind,
    Object,
    PortSpec,
    Service,
    SliceEndpoint,
    SlicePort,
    key_of,
)
from kproxy.model.resolve import resolve
from kproxy.model.snapshot import Snapshot, fold

T = TypeVar("T")
_SETTINGS = NodeSettings(name="node-1", cluster_cidrs=("10.128.0.0/9",))


def _decoded(obj: Object) -> Decoded:
    return Decoded(key=key_of(obj), object=obj)


def _services(count: int) -> list[Service]:
    return [
        Service(
            name=NamespacedName(f"ns{n % 50}", f"svc{n}"),
            cluster_ips=(f"10.{96 + n // 65000}.{n // 250 % 256}.{n % 250 + 1}",),
            ports=(PortSpec(name="p80", protocol=Protocol.TCP, port=80),),
        )
        for n in range(count)
    ]


def _slices(services: list[Service], endpoints: int) -> list[EndpointSlice]:
    addresses = (f"10.{128 + n // 65536}.{n // 256 % 256}.{n % 256}" for n in range(len(services) * endpoints))
    return [
        EndpointSlice(
            name=NamespacedName(s.name.namespace, f"{s.name.name}-x"),
            service=s.name,
            family=Family.IPV4,
            ports=(SlicePort(name="p80", protocol=Protocol.TCP, port=8080),),
            endpoints=tuple(SliceEndpoint(address=next(addresses), node_name=f"node-{n}") for n in range(endpoints)),
        )
        for s in services
    ]


def _best(rounds: int, work: Callable[[], T]) -> tuple[float, T]:
    best = float("inf")
    for _ in range(rounds):
        started = time.process_time()
        result = work()
        best = min(best, time.process_time() - started)
    return best * 1000, result


def main() -> None:
    """Runs all measurements and prints one line for each."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--services", type=int, default=5000)
    options.add_argument("--endpoints", type=int, default=10)
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("-o", "--output", choices=("text", "json"), default="text")
    asked = options.parse_args()
    services = _services(asked.services)
    slices = _slices(services, asked.endpoints)
    lists = [
        Replaced(Kind.SERVICE, tuple(map(_decoded, services))),
        Replaced(Kind.ENDPOINT_SLICE, tuple(map(_decoded, slices))),
    ]
    middle = asked.services // 2
    smaller = replace(slices[middle], endpoints=slices[middle].endpoints[1:])
    newcomer = replace(services[middle], name=NamespacedName("zz", "new"))

    fold_ms, cluster = _best(asked.rounds, lambda: fold(Snapshot(), lists))
    cold_ms, desired = _best(asked.rounds, lambda: resolve(cluster, _SETTINGS))
    event_ms, changed = _best(asked.rounds, lambda: fold(cluster, [Applied(_decoded(smaller))]))
    one_ms, after = _best(asked.rounds, lambda: resolve(changed, _SETTINGS, desired))
    told_ms, _ = _best(asked.rounds, lambda: summarize(desired, after))
    exchanged = fold(changed, [Applied(_decoded(newcomer)), Removed(key_of(services[0]))])
    swap_ms, _ = _best(asked.rounds, lambda: resolve(exchanged, _SETTINGS, after))
    ruleset = compile_ruleset(desired, IptablesSettings())
    packet = Packet(source="10.128.0.1", destination=services[-1].cluster_ips[0], port=80)
    kernel = KernelView(local_addresses=frozenset({"192.168.200.21"}))
    trace_ms, found = _best(asked.rounds, lambda: trace(ruleset.ipv4, packet, kernel))
    assert len(found.branches) == asked.endpoints

    results = {
        "fold of both first lists": fold_ms,
        "resolve, cold": cold_ms,
        "fold of one changed slice": event_ms,
        "resolve, one endpoint fewer": one_ms,
        "difference of the two states": told_ms,
        "resolve, one Service new and one gone": swap_ms,
        "trace of one packet, all outcomes": trace_ms,
    }
    if asked.output == "json":
        print(json.dumps({"services": asked.services, "endpoints": asked.endpoints, "milliseconds": results}, indent=2))
        return
    print(
        f"{asked.services} Services x {asked.endpoints} endpoints, milliseconds of processor time, best of {asked.rounds}"
    )
    for what, ms in results.items():
        print(f"  {what:40} {ms:9.2f}")


if __name__ == "__main__":
    main()
