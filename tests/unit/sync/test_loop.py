"""The sync loop over a small data plane in memory that sometimes refuses: nothing is written early, everything converges."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from kproxy.backends.base import ApplyReport
from kproxy.errors import ApplyError
from kproxy.model.desired import DesiredState, NodeSettings
from kproxy.model.events import AddressesChanged, Applied, Event, Removed, Replaced
from kproxy.model.names import Family, NamespacedName, Protocol
from kproxy.model.objects import (
    Decoded,
    EndpointSlice,
    Kind,
    ObjectKey,
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
    """A data plane that keeps (service port, endpoint) pairs; `weather` is how often an application is refused."""

    weather: float = 0.0
    seed: int = 7
    kernel: Contents = frozenset()
    applications: int = 0
    observations: int = 0
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
        add, remove = plan
        if (add or remove) and self.rng.random() < self.weather:
            raise ApplyError("the weather is bad", retryable=True)
        self.kernel = (self.kernel | add) - remove
        return ApplyReport(batches=int(bool(add or remove)), rules_written=len(add))

    async def observe(self) -> Contents:
        self.observations += 1
        return self.kernel

    async def cleanup(self) -> None:
        self.kernel = frozenset()


def _service(number: int) -> Decoded:
    name = NamespacedName("ns", f"svc{number}")
    port = PortSpec(name="", protocol=Protocol.TCP, port=80)
    service = Service(name=name, cluster_ips=(f"10.96.1.{number}",), ports=(port,))
    return Decoded(key=key_of(service), object=service)


def _slice(number: int, *endpoints: str) -> Decoded:
    item = EndpointSlice(
        name=NamespacedName("ns", f"svc{number}-abc"),
        service=NamespacedName("ns", f"svc{number}"),
        family=Family.IPV4,
        ports=(SlicePort(name="", protocol=Protocol.TCP, port=8080),),
        endpoints=tuple(SliceEndpoint(address=address) for address in endpoints),
    )
    return Decoded(key=key_of(item), object=item)


def _lists(*objects: Decoded) -> list[Event]:
    kinds = (Kind.SERVICE, Kind.ENDPOINT_SLICE, Kind.NODE, Kind.NAMESPACE, Kind.POD)
    lists: list[Event] = [Replaced(kind, tuple(o for o in objects if o.key.kind is kind)) for kind in kinds]
    return [*lists, AddressesChanged(frozenset({"127.0.0.1"}))]


@dataclass
class _Zones:
    """What would go to the DNS workers."""

    published: list[Snapshot] = field(default_factory=list)

    async def __call__(self, snapshot: Snapshot) -> None:
        self.published.append(snapshot)


@asynccontextmanager
async def _running(backend: MemoryBackend, zones: _Zones) -> AsyncIterator[SyncLoop]:
    loop = SyncLoop(backend, lambda _: NodeSettings(name="node-1"), Pacer(min_period_s=0.001, max_retry_s=0.001), zones)
    async with asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(loop.keep_snapshot()), tasks.create_task(loop.keep_rules())]
        yield loop
        for task in running:
            task.cancel()


async def _until(condition: object) -> None:
    assert callable(condition)
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)


def test_nothing_is_written_or_published_before_every_needed_kind_was_listed() -> None:
    async def scenario() -> None:
        backend, zones = MemoryBackend(), _Zones()
        async with _running(backend, zones) as loop:
            services, slices, node, namespaces, _, addresses = _lists(_service(1), _slice(1, "10.244.0.5"))
            for event in (services, slices):
                loop.emit(event)
                await asyncio.sleep(0.02)
                assert backend.applications == 0
                assert zones.published == []
            loop.emit(namespaces)
            await _until(lambda: zones.published)
            assert backend.applications == 0, "rules need the Node as well"
            loop.emit(node)
            await asyncio.sleep(0.02)
            assert backend.applications == 0, "and the addresses of this node"
            loop.emit(addresses)
            await _until(lambda: backend.kernel == {("ns/svc1", "10.244.0.5:8080")})

    asyncio.run(scenario())


def test_a_sync_asked_for_too_early_leaves_what_is_there() -> None:
    """The end of a controller that never heard the API must not look like the end of all Services."""

    async def scenario() -> None:
        backend = MemoryBackend(kernel=frozenset({("ns/svc1", "10.244.0.5:8080")}))
        loop = SyncLoop(backend, lambda _: NodeSettings(name="node-1"), Pacer(), _Zones())
        for event in _lists(_service(1))[:1]:
            loop.emit(event)
        await loop.sync()
        assert backend.kernel == {("ns/svc1", "10.244.0.5:8080")}
        assert backend.applications == 0

    asyncio.run(scenario())


def test_a_change_reaches_kernel_and_zone_and_a_removal_takes_it_away() -> None:
    async def scenario() -> None:
        backend, zones = MemoryBackend(), _Zones()
        async with _running(backend, zones) as loop:
            for event in _lists(_service(1), _slice(1, "10.244.0.5")):
                loop.emit(event)
            await _until(lambda: backend.kernel)
            loop.emit(Applied(_slice(1, "10.244.0.6")))
            await _until(lambda: backend.kernel == {("ns/svc1", "10.244.0.6:8080")})
            loop.emit(Removed(ObjectKey(Kind.SERVICE, NamespacedName("ns", "svc1"))))
            await _until(lambda: backend.kernel == set())
            assert not zones.published[-1].services

    asyncio.run(scenario())


def test_who_comes_after_the_rules_hears_of_syncs_that_went_well_only() -> None:
    async def scenario() -> None:
        backend = MemoryBackend(weather=1.0)
        async with _running(backend, _Zones()) as loop:
            for event in _lists(_service(1), _slice(1, "10.244.0.5")):
                loop.emit(event)
            await _until(lambda: loop.status.failures > 2)
            assert not loop.written.is_set() and not loop.desired.ipv4.service_ports
            backend.weather = 0.0
            await loop.written.wait()
            assert backend.kernel and loop.desired.ipv4.service_ports

    asyncio.run(scenario())


def test_what_a_former_instance_left_is_observed_and_mended() -> None:
    async def scenario() -> None:
        backend = MemoryBackend(kernel=frozenset({("ns/gone", "10.244.0.9:80"), ("ns/svc1", "10.244.0.5:8080")}))
        async with _running(backend, _Zones()) as loop:
            for event in _lists(_service(1), _slice(1, "10.244.0.5")):
                loop.emit(event)
            await _until(lambda: backend.kernel == {("ns/svc1", "10.244.0.5:8080")})
            assert backend.observations == 1

    asyncio.run(scenario())


def test_a_bad_object_is_reported_and_the_others_work() -> None:
    async def scenario() -> None:
        backend = MemoryBackend()
        async with _running(backend, _Zones()) as loop:
            bad = _slice(2, "127.0.0.1")
            for event in _lists(_service(1), _service(2), _slice(1, "10.244.0.5"), bad):
                loop.emit(event)
            await _until(lambda: backend.kernel == {("ns/svc1", "10.244.0.5:8080")})
            await _until(lambda: any(p.name == "ns/svc2-abc" and "127.0.0.1" in p.reason for p in loop.status.problems))

    asyncio.run(scenario())


def test_random_changes_converge_in_bad_weather() -> None:
    """One application in three is refused; the kernel still ends where the last snapshot says."""

    async def scenario(seed: int) -> None:
        rng = random.Random(seed)
        backend = MemoryBackend(weather=0.33, seed=seed)
        async with _running(backend, _Zones()) as loop:
            for event in _lists():
                loop.emit(event)
            wanted: dict[int, str] = {}
            for _ in range(60):
                number = rng.randrange(1, 20)
                if rng.random() < 0.3 and number in wanted:
                    del wanted[number]
                    loop.emit(Removed(_slice(number).key))
                else:
                    wanted[number] = f"10.244.0.{rng.randrange(2, 200)}"
                    loop.emit(Applied(_service(number)))
                    loop.emit(Applied(_slice(number, wanted[number])))
                if rng.random() < 0.3:
                    await asyncio.sleep(0.001)
            expected = {(f"ns/svc{number}", f"{address}:8080") for number, address in wanted.items()}
            await _until(lambda: backend.kernel == expected)
            assert loop.status.failures > 0
            await _until(lambda: loop.status.queued_since is None)

    for seed in range(10):
        asyncio.run(scenario(seed))
