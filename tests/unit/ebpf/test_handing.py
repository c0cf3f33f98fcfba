"""Descriptors handed to workers: all of them arrive, whoever does not read costs nobody anything, and a slot is free when it is free."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import pytest

from kproxy.ebpf.handing import Desk, Visit

_MANY = 600  # more than the kernel takes in a message, and than a socket's buffer holds messages for


def _scene(play: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(play(), 30))


def _described(number: int) -> int:
    """A descriptor that says its number."""
    made = os.memfd_create("thing")
    os.write(made, b"%d" % number)
    return made


def _number(descriptor: int) -> int:
    return int(os.pread(descriptor, 20, 0))


class _Office:
    """A desk, and who left which slot. may_go: what `left` waits for."""

    def __init__(self, folder: Path, slots: int = 2) -> None:
        self.path = str(folder / "desk")
        self.things: dict[int, int] = {}
        self.left: list[int] = []
        self.may_go = asyncio.Event()
        self.may_go.set()
        self.first = _described(4711)
        self.desk = Desk(self.path, slots, lambda slot: (b"slot %d" % slot, [self.first]), self._left, self.things)
        self.desk.open()

    async def _left(self, slot: int) -> None:
        await self.may_go.wait()
        self.left.append(slot)

    def put(self, *numbers: int) -> None:
        self.things.update({number: _described(number) for number in numbers})
        self.desk.tell()

    def drop(self, *numbers: int) -> None:
        for number in numbers:
            os.close(self.things.pop(number))
        self.desk.tell()

    def close(self) -> None:
        self.desk.close()
        for descriptor in (*self.things.values(), self.first):
            os.close(descriptor)


async def _heard(visit: Visit, held: dict[int, int], until: Callable[[], bool]) -> None:
    while not until():
        came, gone = await visit.further()
        assert not came.keys() & held.keys()
        held.update(came)
        for number in gone:
            os.close(held.pop(number))


def test_everything_comes_and_goes(tmp_path: Path) -> None:
    async def play() -> None:
        office = _Office(tmp_path)
        office.put(*range(_MANY))
        visit = await Visit.to(office.path)
        assert visit.words == b"slot 0" and [_number(one) for one in visit.descriptors] == [4711]
        held: dict[int, int] = {}
        await _heard(visit, held, lambda: len(held) == _MANY)
        assert all(_number(descriptor) == number for number, descriptor in held.items())
        office.drop(*range(0, _MANY, 2))
        office.put(_MANY)
        await _heard(visit, held, lambda: held.keys() == {*range(1, _MANY, 2), _MANY})
        office.close()
        with pytest.raises(EOFError):
            await visit.further()
        assert _number(held[_MANY]) == _MANY, "what came stays open"
        visit.close()
        for descriptor in (*held.values(), *visit.descriptors):
            os.close(descriptor)

    _scene(play)


def test_one_that_does_not_read_is_told_how_things_are_when_it_does(tmp_path: Path) -> None:
    async def play() -> None:
        office = _Office(tmp_path)
        idle, busy = await Visit.to(office.path), await Visit.to(office.path)
        told: dict[int, int] = {}
        for number in range(_MANY):
            office.put(number)
            await asyncio.wait_for(_heard(busy, told, lambda number=number: number in told), 5)  # type: ignore[misc]
        office.drop(*range(_MANY - 1))
        await _heard(busy, told, lambda: len(told) == 1)
        late: dict[int, int] = {}
        seen = 0

        def right() -> bool:
            nonlocal seen
            seen = max(seen, len(late))
            return late.keys() == {_MANY - 1}

        await _heard(idle, late, right)
        assert seen < _MANY / 2, "it was told of all that came and went meanwhile"
        office.close()
        for visit in (idle, busy):
            visit.close()

    _scene(play)


def test_a_slot_is_given_away_when_its_worker_is_forgotten(tmp_path: Path) -> None:
    async def play() -> None:
        office = _Office(tmp_path)
        one, two = await Visit.to(office.path), await Visit.to(office.path)
        assert (one.words, two.words) == (b"slot 0", b"slot 1")
        with pytest.raises(EOFError):
            await Visit.to(office.path)
        office.may_go.clear()
        one.close()
        for _ in range(5):
            with pytest.raises(EOFError):
                await Visit.to(office.path)
        assert office.left == []
        office.may_go.set()
        three = None
        while three is None:
            with suppress(EOFError):
                three = await Visit.to(office.path)
        assert office.left == [0] and three.words == b"slot 0"
        office.close()
        assert not Path(office.path).exists()
        for visit in (two, three):
            visit.close()

    _scene(play)
