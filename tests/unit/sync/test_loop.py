"""The sync loop over a small data plane in memory that sometimes refuses: nothing is written early, everything converges."""

from __future__ import annotations

import asyncio
import itertools
import random
import time

import pytest

from kproxy.errors import UnsupportedError
from kproxy.model.desired import NodeSettings
from kproxy.model.events import Applied, Removed
from kproxy.model.names import NamespacedName
from kproxy.model.objects import Kind, ObjectKey
from kproxy.model.snapshot import Snapshot
from kproxy.sync.loop import SyncLoop, SyncOutcome
from kproxy.sync.pacer import Pacer
from tests.support.memory_sync import MemoryBackend, Zones, lists, running, service, slice_of, until


def test_u11_nothing_is_written_or_published_before_every_needed_kind_was_listed() -> None:
    async def scenario() -> None:
        backend, zones = MemoryBackend(), Zones()
        async with running(backend, zones) as loop:
            services, slices, node, namespaces, _, addresses = lists(service(1), slice_of(1, "10.244.0.5"))
            for event in (services, slices):
                loop.emit(event)
                await asyncio.sleep(0.02)
                assert backend.applications == 0
                assert zones.published == []
            loop.emit(namespaces)
            await until(lambda: zones.published)
            assert backend.applications == 0, "rules need the Node as well"
            loop.emit(node)
            await asyncio.sleep(0.02)
            assert backend.applications == 0, "and the addresses of this node"
            loop.emit(addresses)
            await until(lambda: backend.kernel == {("ns/svc1", "10.244.0.5:8080")})

    asyncio.run(scenario())


def test_a_sync_asked_for_too_early_leaves_what_is_there() -> None:
    """The end of a controller that never heard the API must not look like the end of all Services."""

    async def scenario() -> None:
        backend = MemoryBackend(kernel=frozenset({("ns/svc1", "10.244.0.5:8080")}))
        loop = SyncLoop(backend, lambda _: NodeSettings(name="node-1"), Pacer(), Zones())
        for event in lists(service(1))[:1]:
            loop.emit(event)
        await loop.sync()
        assert backend.kernel == {("ns/svc1", "10.244.0.5:8080")}
        assert backend.applications == 0

    asyncio.run(scenario())


def test_a_change_reaches_kernel_and_zone_and_a_removal_takes_it_away() -> None:
    async def scenario() -> None:
        backend, zones = MemoryBackend(), Zones()
        async with running(backend, zones) as loop:
            for event in lists(service(1), slice_of(1, "10.244.0.5")):
                loop.emit(event)
            await until(lambda: backend.kernel)
            loop.emit(Applied(slice_of(1, "10.244.0.6")))
            await until(lambda: backend.kernel == {("ns/svc1", "10.244.0.6:8080")})
            loop.emit(Removed(ObjectKey(Kind.SERVICE, NamespacedName("ns", "svc1"))))
            await until(lambda: backend.kernel == set())
            assert not zones.published[-1].services

    asyncio.run(scenario())


def test_dns_workers_are_told_before_rules_are_decided_upon() -> None:
    """Deciding takes milliseconds in which nothing else happens; telling takes a fraction of one."""

    class Told(Zones):
        """Wakes whoever tells the workers, as the publisher does."""

        def __init__(self) -> None:
            super().__init__()
            self.woken = asyncio.Event()

        async def __call__(self, snapshot: Snapshot) -> None:
            await super().__call__(snapshot)
            self.woken.set()

    async def scenario() -> None:
        backend, zones, done = MemoryBackend(), Told(), []

        async def tell() -> None:
            while True:
                await zones.woken.wait()
                zones.woken.clear()
                done.append("told")

        async with running(backend, zones) as loop, asyncio.TaskGroup() as group:
            telling = group.create_task(tell())
            for event in lists(service(1), slice_of(1, "10.244.0.5")):
                loop.emit(event)
            await until(lambda: backend.kernel)
            loop.use(lambda _: done.append("decided") or NodeSettings(name="node-1"))
            await until(lambda: "decided" in done)
            done.clear()
            loop.emit(Applied(slice_of(1, "10.244.0.6")))
            await until(lambda: "decided" in done)
            assert done == ["told", "decided"]
            telling.cancel()

    asyncio.run(scenario())


def test_who_comes_after_the_rules_hears_of_syncs_that_went_well_only() -> None:
    async def scenario() -> None:
        backend = MemoryBackend(weather=1.0)
        async with running(backend, Zones()) as loop:
            for event in lists(service(1), slice_of(1, "10.244.0.5")):
                loop.emit(event)
            await until(lambda: loop.status.failures > 2)
            assert not loop.written.is_set() and not loop.desired.ipv4.service_ports
            backend.weather = 0.0
            await loop.written.wait()
            assert backend.kernel and loop.desired.ipv4.service_ports

    asyncio.run(scenario())


def test_what_a_former_instance_left_is_observed_and_mended() -> None:
    async def scenario() -> None:
        backend = MemoryBackend(kernel=frozenset({("ns/gone", "10.244.0.9:80"), ("ns/svc1", "10.244.0.5:8080")}))
        async with running(backend, Zones()) as loop:
            for event in lists(service(1), slice_of(1, "10.244.0.5")):
                loop.emit(event)
            await until(lambda: backend.kernel == {("ns/svc1", "10.244.0.5:8080")})
            assert backend.observations == 1

    asyncio.run(scenario())


def test_a_bad_object_is_reported_and_the_others_work() -> None:
    async def scenario() -> None:
        backend = MemoryBackend()
        async with running(backend, Zones()) as loop:
            bad = slice_of(2, "127.0.0.1")
            for event in lists(service(1), service(2), slice_of(1, "10.244.0.5"), bad):
                loop.emit(event)
            await until(lambda: backend.kernel == {("ns/svc1", "10.244.0.5:8080")})
            await until(lambda: any(p.name == "ns/svc2-abc" and "127.0.0.1" in p.reason for p in loop.status.problems))

    asyncio.run(scenario())


def test_events_that_come_by_the_dozen_are_gathered_and_a_lone_one_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """A round takes all that came while the one before was rested from; how long that is grows with what the round took."""
    monkeypatch.setattr("kproxy.sync.loop.GATHER_S", 0.02)
    monkeypatch.setattr("kproxy.sync.loop.LONGEST_GATHER_S", 0.4)

    async def scenario() -> None:
        backend, zones = MemoryBackend(), Zones()
        async with running(backend, zones) as loop:
            for event in lists(service(1), slice_of(1, "10.244.0.5")):
                loop.emit(event)
            await until(lambda: backend.kernel)
            await asyncio.sleep(0.2)  # what the lists are rested from
            rounds = len(zones.published)
            loop.emit(Applied(slice_of(1, "10.244.0.6")))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            assert len(zones.published) == rounds + 1, "at once"
            for number in range(2, 42):
                loop.emit(Applied(slice_of(number, "10.244.0.7")))
            await until(lambda: len(zones.published) == rounds + 2)
            for number in range(42, 92):
                loop.emit(Applied(slice_of(number, "10.244.0.7")))
                await asyncio.sleep(0)
            await until(lambda: len(zones.published[-1].slices) == 91)
            assert len(zones.published) == rounds + 3, "fifty in one round"

    asyncio.run(scenario())


def test_a_pause_is_over_when_the_node_has_time_again() -> None:
    async def scenario() -> None:
        backend, strains = MemoryBackend(), [True]
        settings = NodeSettings(name="node-1")
        loop = SyncLoop(backend, lambda _: settings, Pacer(min_period_s=60.0), Zones(), strained=lambda: strains[0])
        async with asyncio.TaskGroup() as tasks:
            running = [tasks.create_task(loop.keep_snapshot()), tasks.create_task(loop.keep_rules())]
            for event in lists(service(1), slice_of(1, "10.244.0.5")):
                loop.emit(event)
            await until(lambda: backend.kernel == {("ns/svc1", "10.244.0.5:8080")})
            loop.emit(Applied(slice_of(1, "10.244.0.6")))
            await asyncio.sleep(0.1)
            assert backend.kernel == {("ns/svc1", "10.244.0.5:8080")}, "at least a minute while it strains"
            strains[0] = False
            await until(lambda: backend.kernel == {("ns/svc1", "10.244.0.6:8080")})
            for task in running:
                task.cancel()

    asyncio.run(scenario())


def test_random_changes_converge_in_bad_weather() -> None:
    """One application in three is refused; the kernel still ends where the last snapshot says."""

    async def scenario(seed: int) -> None:
        rng = random.Random(seed)
        backend = MemoryBackend(weather=0.33, seed=seed)
        async with running(backend, Zones()) as loop:
            for event in lists():
                loop.emit(event)
            wanted: dict[int, str] = {}
            for _ in range(60):
                number = rng.randrange(1, 20)
                if rng.random() < 0.3 and number in wanted:
                    del wanted[number]
                    loop.emit(Removed(slice_of(number).key))
                else:
                    wanted[number] = f"10.244.0.{rng.randrange(2, 200)}"
                    loop.emit(Applied(service(number)))
                    loop.emit(Applied(slice_of(number, wanted[number])))
                if rng.random() < 0.5:
                    await asyncio.sleep(0.005)  # longer than events are gathered
            expected = {(f"ns/svc{number}", f"{address}:8080") for number, address in wanted.items()}
            await until(lambda: backend.kernel == expected)
            await until(lambda: loop.status.queued_since is None)
            failures.append(loop.status.failures)

    failures: list[int] = []
    for seed in range(10):
        asyncio.run(scenario(seed))
    assert sum(failures) >= len(failures)


def test_the_outcome_names_the_snapshot_that_the_sync_was_made_from() -> None:
    """Observing takes a while at start; what was heard meanwhile is in the rules and in the outcome."""

    async def scenario() -> None:
        backend = MemoryBackend()
        loop = SyncLoop(backend, lambda _: NodeSettings(name="node-1"), Pacer(), Zones())
        outcomes: list[SyncOutcome] = []
        loop.observers.append(outcomes.append)
        async with asyncio.TaskGroup() as tasks:
            folding = tasks.create_task(loop.keep_snapshot())
            for event in lists(service(1), slice_of(1, "10.244.0.5")):
                loop.emit(event)
            await until(lambda: loop.heard_enough)

            async def heard() -> None:
                loop.emit(Applied(slice_of(1, "10.244.0.6")))
                before = loop.snapshot
                await until(lambda: loop.snapshot is not before)

            backend.while_observing = heard
            assert await loop.sync()
            folding.cancel()
        assert backend.kernel == {("ns/svc1", "10.244.0.6:8080")}
        assert [each.snapshot for each in outcomes] == [loop.snapshot]
        assert outcomes[0].full and outcomes[0].after is loop.desired

    asyncio.run(scenario())


def test_a_machine_that_cannot_ends_the_process_and_one_that_no_longer_can_is_waited_for() -> None:
    async def scenario() -> None:
        backend = MemoryBackend(trouble=UnsupportedError("no iptables here"))
        loop = SyncLoop(backend, lambda _: NodeSettings(name="node-1"), Pacer(), Zones())
        async with asyncio.TaskGroup() as tasks:
            folding = tasks.create_task(loop.keep_snapshot())
            for event in lists(service(1), slice_of(1, "10.244.0.5")):
                loop.emit(event)
            await until(lambda: loop.heard_enough)
            folding.cancel()
        try:
            await loop.sync()
            raise AssertionError("at start it has to be told")
        except UnsupportedError:
            pass
        backend.trouble = None
        assert await loop.sync()
        backend.trouble = UnsupportedError("somebody removed iptables")
        loop.distrust()
        assert not await loop.sync()
        assert loop.status.failures == 1 and "removed" in loop.status.last_error
        assert backend.kernel, "the rules stay"
        backend.trouble = None
        assert await loop.sync()
        assert loop.status.queued_since is None

    asyncio.run(scenario())


def test_a_service_and_its_slice_make_one_sync_and_a_service_alone_is_not_forgotten() -> None:
    async def scenario() -> None:
        backend = MemoryBackend()
        async with running(backend, Zones()) as loop:
            for event in lists(service(1), slice_of(1, "10.244.0.5")):
                loop.emit(event)
            await until(lambda: backend.kernel)
            before = loop.status.syncs
            loop.emit(Applied(service(2)))
            await asyncio.sleep(0.01)
            loop.emit(Applied(slice_of(2, "10.244.0.6")))
            await until(lambda: ("ns/svc2", "10.244.0.6:8080") in backend.kernel)
            assert loop.status.syncs == before + 1
            loop.emit(Applied(service(3)))
            await until(lambda: loop.status.syncs > before + 1)
            assert len(loop.desired.ipv4.service_ports) == 3

    asyncio.run(scenario())


def test_the_kernel_is_looked_at_while_the_api_is_listed() -> None:
    async def scenario() -> None:
        backend = MemoryBackend(kernel=frozenset({("ns/gone", "10.244.0.9:80")}))
        async with running(backend, Zones()) as loop:
            await until(lambda: backend.observations)
            assert backend.applications == 0
            for event in lists(service(1), slice_of(1, "10.244.0.5")):
                loop.emit(event)
            await until(lambda: backend.kernel == {("ns/svc1", "10.244.0.5:8080")})
            assert backend.observations == 1

    asyncio.run(scenario())


def test_fault_17_a_clock_that_jumps_by_an_hour_delays_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unix time is for people and Prometheus alone; pauses, retries and health follow the clock that nobody sets."""
    jumps = itertools.cycle([3600.0, -3600.0, 0.0])
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + next(jumps))

    async def scenario() -> None:
        backend = MemoryBackend(weather=0.5)
        async with running(backend, Zones()) as loop:
            for event in lists(service(1)):
                loop.emit(event)
            for number in range(2, 40):
                loop.emit(Applied(slice_of(1, f"10.244.0.{number}")))
                await asyncio.sleep(0.001)
            await until(lambda: backend.kernel == {("ns/svc1", "10.244.0.39:8080")})
            await until(lambda: loop.status.queued_since is None)
            assert loop.status.failures > 0 and loop.status.healthy(time.monotonic(), 60.0)
            backend.weather = 1.0
            loop.emit(Applied(slice_of(1, "10.244.0.99")))
            await until(lambda: loop.status.queued_since is not None and loop.status.failures > 3)
            since = loop.status.queued_since
            assert since is not None and 0.0 <= time.monotonic() - since < 10.0
            backend.weather = 0.0
            await until(lambda: backend.kernel == {("ns/svc1", "10.244.0.99:8080")})

    asyncio.run(scenario())
