"""Node addresses as the kernel tells them: all of them, every change, bursts as one, under the event loop that the daemon runs on."""

from __future__ import annotations

import asyncio
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress

import uvloop

from kproxy.model.events import AddressesChanged, Event
from kproxy.watch.addresses import local_addresses, watch_addresses


def ip(*arguments: str, fails: bool = False) -> None:
    subprocess.run(["ip", *arguments], check=not fails, timeout=10, capture_output=True)


def watched(work: Callable[[list[Event]], None]) -> list[Event]:
    """The events seen while `work` changes addresses (in a thread)."""
    events: list[Event] = []

    async def run() -> None:
        task = asyncio.ensure_future(watch_addresses(events.append))
        while not events:
            await asyncio.sleep(0.01)
        await asyncio.to_thread(work, events)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(asyncio.wait_for(run(), 20))
    return events


def until(events: list[Event], holds: Callable[[frozenset[str]], bool]) -> float:
    """Waits for the last event to fulfil `holds`; returns how long it took, in seconds."""
    started = time.monotonic()
    while True:
        last = events[-1]
        assert isinstance(last, AddressesChanged)
        if holds(last.addresses):
            return time.monotonic() - started
        assert time.monotonic() < started + 5, sorted(last.addresses)
        time.sleep(0.005)


def test_23_addresses_follow_every_change() -> None:
    def work(events: list[Event]) -> None:
        ip("link", "add", "ka", "type", "veth", "peer", "name", "kb")
        try:
            ip("address", "add", "192.0.2.77/24", "dev", "ka")
            ip("address", "add", "2001:db8::77/64", "dev", "ka", "nodad")
            until(events, lambda found: {"192.0.2.77", "2001:db8::77"} <= found)  # the interface is down: they count
            ip("address", "del", "192.0.2.77/24", "dev", "ka")
            until(events, lambda found: "192.0.2.77" not in found)
        finally:
            ip("link", "del", "ka", fails=True)
        until(events, lambda found: "2001:db8::77" not in found)

    events = watched(work)
    first = events[0]
    assert isinstance(first, AddressesChanged)
    assert {"127.0.0.1", "::1"} <= first.addresses
    assert events[-1] == first


def test_a_burst_of_changes_is_looked_at_a_few_times_only() -> None:
    def work(events: list[Event]) -> None:
        batch = "".join(f"address add 192.0.2.{number}/32 dev lo\n" for number in range(1, 201))
        subprocess.run(["ip", "-batch", "-"], input=batch, text=True, check=True, timeout=10)
        try:
            until(events, lambda found: len([a for a in found if a.startswith("192.0.2.")]) == 200)
        finally:
            undo = batch.replace(" add ", " del ")
            subprocess.run(["ip", "-batch", "-"], input=undo, text=True, check=True, timeout=10)
        until(events, lambda found: not any(a.startswith("192.0.2.") for a in found))

    events = watched(work)
    assert len(events) < 40
    assert local_addresses() == events[-1].addresses  # type: ignore[union-attr]
