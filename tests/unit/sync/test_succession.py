"""What another mode left is removed after the first sync that went well, in order, and until it is done."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import pytest

from kproxy.backends.base import ApplyReport
from kproxy.errors import ApplyError, KproxyError
from kproxy.model.desired import DesiredState
from kproxy.model.snapshot import Snapshot
from kproxy.sync import succession
from kproxy.sync.loop import SyncOutcome
from kproxy.sync.succession import Succession

FAILED = ApplyError("busy", retryable=True, detail="")


def outcome(error: ApplyError | None = None) -> SyncOutcome:
    return SyncOutcome(
        started=1.0, ended=2.0, snapshot=Snapshot(), before=DesiredState(), after=DesiredState(), full=True,
        report=ApplyReport(), error=error,
    )  # fmt: skip


@dataclass
class Thing:
    """A leftover that cannot be removed `refusals` times."""

    name: str
    log: list[str]
    refusals: int = 0
    there: bool = True
    errors: list[Exception] = field(default_factory=lambda: [KproxyError("locked"), OSError("no such program")])

    async def remove(self) -> str:
        if self.refusals:
            self.refusals -= 1
            self.log.append(f"{self.name} refused")
            raise self.errors[self.refusals % 2]
        self.log.append(self.name)
        return "2 chains" if self.there else ""


def test_nothing_is_removed_before_a_sync_went_well() -> None:
    async def scenario() -> None:
        log: list[str] = []
        made = Succession([Thing("rules", log)])
        keeping = asyncio.ensure_future(made.keep())
        made.observe(outcome(FAILED))
        await asyncio.sleep(0.01)
        assert (log, made.done) == ([], [])
        made.observe(outcome())
        await asyncio.wait_for(keeping, 5)
        assert (log, made.done) == (["rules"], ["rules: 2 chains"])

    asyncio.run(scenario())


def test_in_order_each_until_it_is_done_and_then_never_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(succession, "_FIRST_RETRY_S", 0.001)

    async def scenario() -> None:
        log: list[str] = []
        made = Succession([Thing("rules", log, refusals=3), Thing("flows", log, there=False)])
        made.observe(outcome())
        await asyncio.wait_for(made.keep(), 5)
        made.observe(outcome())
        assert log == ["rules refused"] * 3 + ["rules", "flows"]
        assert made.done == ["rules: 2 chains"]

    asyncio.run(scenario())
