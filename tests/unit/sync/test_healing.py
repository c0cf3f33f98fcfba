"""Healing over the data plane in memory: what is looked at when, what is mended, and when it gives way."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from kproxy.errors import ApplyError
from kproxy.model.desired import NodeSettings
from kproxy.model.events import Applied
from kproxy.sync.drift import CALM_S, LONGEST_PAUSE_S, PATIENT_AFTER, DriftFound, Patience
from kproxy.sync.healing import Healer
from kproxy.sync.loop import SyncLoop
from kproxy.sync.pacer import Pacer
from tests.support.memory_sync import MemoryBackend, MemoryGuard, Zones, lists, service, slice_of, until

ONE, TWO = ("ns/svc1", "10.244.0.5:8080"), ("ns/svc1", "10.244.0.6:8080")
WHOLE = frozenset({ONE, TWO})


@dataclass
class Rig:
    """A loop that has written two rules, a healer over it, and a clock that stands until it is moved."""

    backend: MemoryBackend
    guard: MemoryGuard
    loop: SyncLoop
    clock: float = 1000.0
    found: list[DriftFound] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.healer = Healer(self.loop, self.backend, self.guard, Patience(), now=lambda: self.clock)
        self.healer.observers.append(self.found.append)

    async def look(self, after_s: float = 2.0) -> None:
        """One look, and the sync that it asked for."""
        self.clock += after_s
        await self.healer.look()
        if self.loop.applied is None or self.loop.status.queued_since is not None:
            await self.loop.sync()


def with_rig(scenario: Callable[[Rig], Awaitable[None]]) -> None:
    async def run() -> None:
        backend = MemoryBackend()
        loop = SyncLoop(backend, lambda _: NodeSettings(name="node-1"), Pacer(), Zones())
        async with asyncio.TaskGroup() as tasks:
            folding = tasks.create_task(loop.keep_snapshot())
            for event in lists(service(1), slice_of(1, "10.244.0.5", "10.244.0.6")):
                loop.emit(event)
            await until(lambda: loop.heard_enough)
            rig = Rig(backend, MemoryGuard(backend), loop)
            await rig.healer.look()
            assert rig.healer.status.looks == 0, "nothing is written yet, so nothing can be missing"
            await loop.sync()
            await rig.look()
            rig.guard.reads = 0
            await scenario(rig)
            folding.cancel()

    asyncio.run(asyncio.wait_for(run(), 20))


def test_a_quiet_node_costs_glances_only() -> None:
    async def scenario(rig: Rig) -> None:
        for _ in range(20):
            await rig.look()
        assert rig.guard.counts == 1, "the very first look counts"
        assert rig.guard.reads == 0

    with_rig(scenario)


def test_a_loss_is_mended_by_the_look_that_finds_it() -> None:
    async def scenario(rig: Rig) -> None:
        rig.backend.kernel = frozenset({ONE})
        await rig.look()
        assert rig.backend.kernel == WHOLE
        assert rig.found == [DriftFound(differences=1, shown=(f"missing: {TWO}",))]
        status = rig.healer.status
        assert (status.found, status.mended, status.last, status.last_found) == (1, 1, (f"missing: {TWO}",), rig.clock)
        await rig.look()
        assert rig.guard.reads == 1, "mended, and not looked at again"

    with_rig(scenario)


def test_what_others_write_is_counted_and_not_compared() -> None:
    async def scenario(rig: Rig) -> None:
        rig.guard.foreign = 7
        await rig.look()
        await rig.look()
        assert (rig.guard.counts, rig.guard.reads, rig.found) == (2, 0, [])

    with_rig(scenario)


def test_a_loss_is_found_while_others_write() -> None:
    async def scenario(rig: Rig) -> None:
        rig.guard.foreign, rig.backend.kernel = 1, frozenset({ONE})  # numbers are as before
        rig.guard.foreign += 1
        await rig.look()
        assert rig.backend.kernel == WHOLE

    with_rig(scenario)


def test_a_rule_replaced_by_another_one_is_found_by_the_rare_comparison() -> None:
    async def scenario(rig: Rig) -> None:
        await rig.look(60.0)
        assert rig.guard.reads == 1
        rig.backend.kernel = frozenset({ONE, ("ns/other", "10.9.9.9:1")})
        await rig.look()
        assert rig.guard.reads == 1, "counts cannot see it"
        await rig.look(60.0)
        assert rig.backend.kernel == WHOLE

    with_rig(scenario)


def test_what_the_loop_wrote_itself_is_no_reason_to_count() -> None:
    async def scenario(rig: Rig) -> None:
        rig.loop.emit(Applied(slice_of(1, "10.244.0.5", "10.244.0.6", "10.244.0.7")))
        await until(lambda: rig.loop.status.queued_since is not None)
        await rig.loop.sync()
        await rig.look()
        assert (len(rig.backend.kernel), rig.guard.counts, rig.guard.reads) == (3, 1, 0)

    with_rig(scenario)


def test_counts_that_others_explain_are_compared_once() -> None:
    """A rule of somebody else that jumps to a chain of ours counts as a use of it."""

    async def scenario(rig: Rig) -> None:
        rig.guard.foreign, rig.guard.surplus = 1, 1
        for _ in range(5):
            rig.guard.foreign += 1
            await rig.look()
        assert (rig.guard.reads, rig.found) == (1, [])
        rig.backend.kernel = frozenset({ONE})
        rig.guard.foreign += 5
        await rig.look()
        assert rig.backend.kernel == WHOLE

    with_rig(scenario)


def test_a_kernel_that_does_not_answer_is_compared_with() -> None:
    async def scenario(rig: Rig) -> None:
        rig.guard.dumb = OSError(1, "not permitted")
        await rig.look()
        assert (rig.guard.reads, rig.healer.status.failures) == (1, 1)
        rig.backend.kernel = frozenset()
        await rig.look()
        assert rig.backend.kernel == WHOLE

    with_rig(scenario)


def test_what_was_seen_while_a_sync_wrote_is_thrown_away() -> None:
    async def scenario(rig: Rig) -> None:
        async def overtaken() -> None:
            rig.backend.while_observing = None
            assert await rig.loop.sync()

        for _ in range(3):
            rig.backend.while_observing = overtaken
            await rig.look(6000.0)
            assert rig.healer.status.comparisons == 0
        assert rig.found == []

        async def shut_out() -> None:
            assert rig.loop.busy, "the fourth time the sync waits"

        rig.backend.while_observing = shut_out
        await rig.look(6000.0)
        assert rig.healer.status.comparisons == 1

    with_rig(scenario)


def test_rules_that_cannot_be_read_are_a_failed_sync_until_they_can() -> None:
    async def scenario(rig: Rig) -> None:
        rig.backend.kernel, rig.backend.trouble = frozenset({ONE}), ApplyError("no memory", retryable=True)
        await rig.look()
        assert rig.loop.status.failures == 1 and rig.loop.status.queued_since is not None, "health will tell"
        assert rig.backend.kernel == {ONE}
        rig.backend.trouble = None
        assert await rig.loop.sync()
        assert rig.backend.kernel == WHOLE
        assert rig.healer.status.mended == 1

    with_rig(scenario)


def test_whoever_deletes_again_and_again_is_given_way_to_and_told_of_once() -> None:
    async def scenario(rig: Rig) -> None:
        pauses = []
        for _ in range(12):
            rig.backend.kernel = frozenset({ONE})
            pauses.append(rig.healer._patience.pause_s)
            await rig.look(pauses[-1])
            assert rig.backend.kernel == WHOLE
        assert pauses[: PATIENT_AFTER + 1] == [2.0] * (PATIENT_AFTER + 1), "the first losses are mended at once"
        assert pauses[PATIENT_AFTER + 1 :][:4] == [4.0, 8.0, 16.0, 32.0]
        assert pauses[-1] == LONGEST_PAUSE_S
        assert [told.first_contested for told in rig.found].count(True) == 1
        assert rig.healer.status.contested
        await rig.look(CALM_S + LONGEST_PAUSE_S)
        await rig.look(CALM_S + LONGEST_PAUSE_S)
        assert rig.healer._patience.pause_s == 2.0, "peace is believed"
        assert not rig.healer.status.contested

    with_rig(scenario)
