"""The channel's manners: whole zone first, differences after, a gap is asked about, an unsynced zone goes nowhere."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

from kproxy.dns.channel import (
    Begin,
    Change,
    Counts,
    End,
    Held,
    Hello,
    Part,
    Resync,
    frame,
    receive_from_controller,
    receive_from_worker,
)
from kproxy.dns.compile import compile_zone
from kproxy.dns.feed import Feed
from kproxy.dns.publisher import ZonePublisher
from kproxy.dns.server import Server
from kproxy.dns.settings import DnsSettings
from kproxy.dns.sharing import in_pieces
from kproxy.dns.zone import RecordKind, ServiceRecords, ZoneDelta, empty_zone
from kproxy.model.events import Applied, Removed
from kproxy.model.names import NamespacedName
from kproxy.model.objects import Decoded, Service, key_of
from kproxy.model.snapshot import fold
from tests.support.queries import SERIAL, snapshot_of, zone_of

SETTINGS = DnsSettings()
SERVICE = Service(name=NamespacedName("testns", "new"), cluster_ips=("10.0.0.200",))


def bounded(test: Callable[[Path], Awaitable[None]], path: Path) -> None:
    async def run() -> None:
        async with asyncio.timeout(10):
            await test(path / "dns.sock")

    asyncio.run(run())


async def whole(reader: asyncio.StreamReader) -> tuple[Begin, int, End]:
    """Begin, the number of Services in all parts, End."""
    begin = await receive_from_controller(reader)
    assert isinstance(begin, Begin)
    count = 0
    while isinstance(message := await receive_from_controller(reader), Part):
        count += len(message.services)
    assert isinstance(message, End)
    return begin, count, message


def test_whole_zone_then_differences_then_the_whole_again_on_request(tmp_path: Path) -> None:
    async def run(path: Path) -> None:
        publisher = ZonePublisher(path)
        await publisher.start()
        zone = compile_zone(snapshot_of("U"), SETTINGS, serial=SERIAL)
        await publisher.publish(empty_zone(SETTINGS))
        await publisher.publish(zone)
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(frame(Hello(1)))
        begin, count, end = await whole(reader)
        assert begin.zones == (SETTINGS,) and count == len(zone.services) and end.number == 1
        assert publisher.answering() == 0 and len(publisher.workers()) == 1
        writer.write(frame(Held(1)))
        writer.write(frame(Counts({"queries_udp": 3})))
        await publisher.delivered()
        assert publisher.answering() == 1
        added = fold(snapshot_of("U"), [Applied(Decoded(key=key_of(SERVICE), object=SERVICE))])
        after = compile_zone(added, SETTINGS, zone, serial=SERIAL)
        await publisher.publish(after)
        change = await receive_from_controller(reader)
        assert isinstance(change, Change) and (change.base, change.number) == (1, 2)
        assert [records.name for records in change.deltas[0].changed] == ["testns/new"] and not change.deltas[0].removed
        writer.write(frame(Resync()))
        assert (await whole(reader))[1:] == (
            len(after.services),
            End(2, (ZoneDelta(serial=after.serial, synced=True, namespaces=after.namespaces),)),
        )
        removed = compile_zone(fold(added, [Removed(key_of(SERVICE))]), SETTINGS, after, serial=SERIAL)
        await publisher.publish(removed)
        change = await receive_from_controller(reader)
        assert isinstance(change, Change) and change.base == 2 and len(change.deltas[0].removed) == 1
        assert publisher.counters() == {"queries_udp": 3}
        writer.close()
        await publisher.close()

    bounded(run, tmp_path)


def test_what_changes_no_answer_is_not_sent(tmp_path: Path) -> None:
    async def run(path: Path) -> None:
        publisher = ZonePublisher(path)
        await publisher.start()
        zone = zone_of("U", SETTINGS)
        await publisher.publish(zone)
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(frame(Hello(1)))
        await whole(reader)
        await publisher.publish(replace(zone, source=None))
        await publisher.publish(empty_zone(SETTINGS))
        other = compile_zone(snapshot_of("C"), SETTINGS, serial=SERIAL + 1)
        await publisher.publish(other)
        change = await receive_from_controller(reader)
        assert isinstance(change, Change) and change.number == 2
        await publisher.publish(compile_zone(snapshot_of("C"), DnsSettings(ttl=9), serial=SERIAL + 1))
        assert (await whole(reader))[0].zones[0].ttl == 9, "other settings are another zone"
        writer.close()
        await publisher.close()

    bounded(run, tmp_path)


def test_a_worker_that_missed_a_number_asks_for_the_whole(tmp_path: Path) -> None:
    heard: asyncio.Queue[object] = asyncio.Queue()
    zone = zone_of("U", SETTINGS)
    rest = ZoneDelta(serial=zone.serial, synced=True, namespaces=zone.namespaces)

    async def controller(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for message in (Begin((SETTINGS,)), Part(tuple(zone.services.values())), End(5, (rest,))):
            writer.write(frame(message))
        writer.write(frame(Change(3, 6, (ZoneDelta(serial=1, synced=True, removed=tuple(zone.services)),))))
        while True:
            try:
                await heard.put(await receive_from_worker(reader))
            except EOFError:
                writer.close()
                return

    async def run(path: Path) -> None:
        listening = await asyncio.start_unix_server(controller, path)
        async with asyncio.TaskGroup() as tasks:
            counters: Counter[str] = Counter()
            server = Server(SETTINGS, [empty_zone(SETTINGS)], counters, tasks.create_task)
            feed = Feed(str(path), server)
            feed.listening()
            running = tasks.create_task(feed.run())
            assert isinstance(await heard.get(), Hello)
            assert await heard.get() == Held(5)
            assert await heard.get() == Resync()
            assert server.zones == (zone,), "a change that does not fit is not applied"
            running.cancel()
        listening.close()
        await asyncio.sleep(0.05)

    bounded(run, tmp_path)


def test_a_long_change_goes_in_pieces_and_all_else_with_the_first() -> None:
    services = tuple(
        ServiceRecords(key=b"\3s%02d\2ns" % n, kind=RecordKind.CLUSTER, addresses=(bytes((10, 0, 0, n)),))
        for n in range(10)
    )
    long = ZoneDelta(serial=7, synced=True, namespaces=frozenset({b"ns"}), changed=services, removed=(b"\1x\2ns",))
    other = ZoneDelta(serial=7, synced=True, changed=services[:2])
    pieces = in_pieces((long, other), 4)
    assert [[len(one.changed) for one in piece] for piece in pieces] == [[4, 0], [4, 0], [2, 2]]
    assert tuple(records for piece in pieces for records in piece[0].changed) == services
    assert pieces[-1][1].changed == other.changed and all(one.serial == 7 for piece in pieces for one in piece)
    assert [piece[0].removed for piece in pieces] == [long.removed, (), ()]
    assert [piece[0].is_wide for piece in pieces] == [True, False, False]
    assert in_pieces((replace(other, changed=()),), 4) == [(replace(other, changed=()),)]
