"""The right to write the rules of a node: one holder, and a holder that knows whether somebody waits."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from kproxy.errors import UnsupportedError
from kproxy.sync.writer import acquire, somebody_waits


def test_one_writes_and_the_next_one_waits_for_it(tmp_path: Path) -> None:
    path = tmp_path / "run" / "controller.lock"

    async def scenario() -> None:
        first = await acquire(path)
        assert path.read_text(encoding="ascii") == f"{os.getpid()}\n"
        assert not somebody_waits(path)
        async with asyncio.TaskGroup() as tasks, asyncio.timeout(10):
            second = tasks.create_task(acquire(path))
            while not somebody_waits(path):
                await asyncio.sleep(0.01)
            assert not second.done()
            first.close()
            with await second:
                assert not somebody_waits(path)

    asyncio.run(scenario())


def test_a_run_directory_that_cannot_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="ascii")
    with pytest.raises(UnsupportedError, match="--run-dir"):
        asyncio.run(acquire(tmp_path / "file" / "controller.lock"))
