"""A small data plane in memory that sometimes refuses, and a sync loop over it, for tests of what happens around syncs."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from kproxy.backends.base import ApplyReport
from kproxy.errors import ApplyError, KproxyError
from kproxy.model.desired import DesiredState, NodeSettings
from kproxy.model.events import AddressesChanged, Event, Replaced
from kproxy.model.names import Family, NamespacedName, Protocol
from kproxy.model.objects import (
    Decoded,
    EndpointSlice,
    Kind,
    PortSpec,
    Problem,
    Service,
    SliceEndpoint,
    SlicePort,
    key_of,
)
from kproxy.model.snapshot import Snapshot
from kproxy.sync.loop import SyncLoop
from kproxy.sync.pacer import Pacer

Contents = frozenset[tuple[str, str]]  # (ServicePortName, endpoint)


@dataclass
class MemoryBackend:
    """A data plane that keeps (service port, endpoint) pairs; `weather` is how often an application is refused.

    trouble: raised by the next observations and applications, as long as it is set.
    """

    weather: float = 0.0
    seed: int = 7
    kernel: Contents = frozenset()
    applications: int = 0
    observations: int = 0
    trouble: KproxyError | None = None
    while_observing: Callable[[], Awaitable[None]] | None = None
    rng: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)

    @property
    def mode(self) -> str:
        return "memory"

    @property
    def refused(self) -> tuple[Problem, ...]:
        return ()

    def compile(self, desired: DesiredState) -> Contents:
        return frozenset(
            (str(port.name), e.text) for port in desired.ipv4.service_ports.values() for e in port.reachable
        )

    def plan(self, applied: Contents | None, wanted: Contents) -> tuple[Contents, Contents]:
        return wanted - (applied or frozenset()), (applied or frozenset()) - wanted

    async def apply(self, plan: tuple[Contents, Contents]) -> ApplyReport:
        self.applications += 1
        if self.trouble is not None:
            raise self.trouble
        add, remove = plan
        if (add or remove) and self.rng.random() < self.weather:
            raise ApplyError("the weather is bad", retryable=True)
        self.kernel = (self.kernel | add) - remove
        return ApplyReport(batches=int(bool(add or remove)), rules_written=len(add))

    async def bring(self, applied: Contents | None, desired: DesiredState) -> tuple[Contents, ApplyReport]:
        wanted = self.compile(desired)
        return wanted, await self.apply(self.plan(applied, wanted))

    async def observe(self) -> Contents:
        self.observations += 1
        if self.trouble is not None:
            raise self.trouble
        seen = self.kernel
        if self.while_observing is not None:
            await self.while_observing()
        return seen

    async def cleanup(self) -> None:
        self.kernel = frozenset()


@dataclass(frozen=True)
class MemoryLook:
    """Numbers only, as the legacy tables show them."""

    others: int
    all: int


@dataclass
class MemoryGuard:
    """Looks at a MemoryBackend from outside. foreign: other people's rules. dumb: why it cannot look."""

    backend: MemoryBackend
    foreign: int = 0
    surplus: int = 0  # what counting finds too much although all is well
    dumb: OSError | None = None
    counts: int = 0
    reads: int = 0

    def glance(self, applied: Contents) -> MemoryLook:
        if self.dumb is not None:
            raise self.dumb
        number = len(self.backend.kernel) + self.foreign
        return MemoryLook(number - len(applied), number)

    def disagreeing(self, applied: Contents) -> tuple[str, ...]:
        self.counts += 1
        more = len(self.backend.kernel) - len(applied) + self.surplus
        return (f"memory {more:+d}",) if more else ()

    async def unchanged(self, applied: Contents) -> bool:
        self.reads += 1
        if self.backend.trouble is not None:
            raise self.backend.trouble
        if self.backend.while_observing is not None:
            await self.backend.while_observing()
        return self.backend.kernel == applied

    def differences(self, applied: Contents, observed: Contents) -> list[str]:
        return [f"missing: {pair}" for pair in sorted(applied - observed)] + [
            f"not wanted: {pair}" for pair in sorted(observed - applied)
        ]


def service(number: int) -> Decoded:
    name = NamespacedName("ns", f"svc{number}")
    port = PortSpec(name="", protocol=Protocol.TCP, port=80)
    service = Service(name=name, cluster_ips=(f"10.96.1.{number}",), ports=(port,))
    return Decoded(key=key_of(service), object=service)


def slice_of(number: int, *endpoints: str) -> Decoded:
    item = EndpointSlice(
        name=NamespacedName("ns", f"svc{number}-abc"),
        service=NamespacedName("ns", f"svc{number}"),
        family=Family.IPV4,
        ports=(SlicePort(name="", protocol=Protocol.TCP, port=8080),),
        endpoints=tuple(SliceEndpoint(address=address) for address in endpoints),
    )
    return Decoded(key=key_of(item), object=item)


def lists(*objects: Decoded) -> list[Event]:
    kinds = (Kind.SERVICE, Kind.ENDPOINT_SLICE, Kind.NODE, Kind.NAMESPACE, Kind.POD)
    lists: list[Event] = [Replaced(kind, tuple(o for o in objects if o.key.kind is kind)) for kind in kinds]
    return [*lists, AddressesChanged(frozenset({"127.0.0.1"}))]


@dataclass
class Zones:
    """What would go to the DNS workers."""

    published: list[Snapshot] = field(default_factory=list)

    async def __call__(self, snapshot: Snapshot) -> None:
        self.published.append(snapshot)


@asynccontextmanager
async def running(backend: MemoryBackend, zones: Zones) -> AsyncIterator[SyncLoop]:
    loop = SyncLoop(backend, lambda _: NodeSettings(name="node-1"), Pacer(min_period_s=0.001, max_retry_s=0.001), zones)
    async with asyncio.TaskGroup() as tasks:
        tasks_of_loop = [tasks.create_task(loop.keep_snapshot()), tasks.create_task(loop.keep_rules())]
        yield loop
        for task in tasks_of_loop:
            task.cancel()


async def until(condition: object) -> None:
    assert callable(condition)
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)
