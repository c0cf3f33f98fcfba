"""The controller's end of the channel with workers of a few lines: who is told what, what is kept, and what is bounded."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import msgspec
import pytest

from kproxy.framing import framed
from kproxy.relay import channel, memory
from kproxy.relay.affinity import MOST, Remembered
from kproxy.relay.channel import Anew, AskFlows, Begin, Ejected, End, FromController, Hello, Lead, Stays, Update
from kproxy.relay.counts import COLUMNS, OPEN
from kproxy.relay.memory import AffinityMemory
from kproxy.relay.publisher import RelayPublisher
from kproxy.relay.targets import INSIDE, OUTSIDE, Flow, Key, Table, Target
from kproxy.relay.totals import Totals

_PORTS = (10270, 10271)
_END = ("10.180.0.1", 8080)


def _target(name: str = "ns1/web:http", ends: int = 1, affinity_s: int = 0) -> Target:
    endpoints = tuple((f"10.180.0.{n}", 8080) for n in range(1, ends + 1))
    return Target(name=name, family="IPv4", protocol="TCP", endpoints=endpoints, affinity_s=affinity_s)


def _key(address: str, port: int = 80, entry: str = INSIDE) -> Key:
    return Key(entry, "IPv4", "TCP", address, port)


def _stay(client: str, last: float, end: tuple[str, int] = _END) -> Remembered:
    return Remembered("IPv4", "TCP", "ns1/web:http", client, *end, last, 60)


class Worker:
    """A worker's end: holds what it is told."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, holds: bool = True) -> None:
        self.reader, self.writer, self.holds = reader, writer, holds
        self.table: dict[Key, Target] = {}
        self.heard: list[FromController] = []
        self.flows: list[Flow] = []

    def say(self, *messages: channel.FromWorker) -> None:
        for message in messages:
            self.writer.write(channel.frame(message))

    async def follow(self) -> None:
        with contextlib.suppress(EOFError, ConnectionError):
            while True:
                message = await channel.receive_from_controller(self.reader)
                self.heard.append(message)
                match message:
                    case Begin():
                        self.table = {}
                    case Update(changed=changed, removed=removed):
                        self.table |= {key: target for target, keys in changed for key in keys}
                        for key in removed:
                            del self.table[key]
                    case End(number=number) if self.holds:
                        self.say(channel.Held(number))
                    case AskFlows(question=question, limit=limit):
                        for part in channel.flows_frames(question, self.flows[:limit], len(self.flows)):
                            self.writer.write(part)

    def count(self, kind: type[FromController]) -> int:
        return sum(isinstance(message, kind) for message in self.heard)


@contextlib.asynccontextmanager
async def _worker(path: Path, pid: int = 1, ports: tuple[int, int] = _PORTS, **rest: bool) -> AsyncIterator[Worker]:
    made = Worker(*await asyncio.open_unix_connection(path), holds=rest.get("holds", True))
    made.say(Hello(pid, 1, ports, draining=rest.get("draining", False), rings=rest.get("rings", True)))
    following = asyncio.ensure_future(made.follow())
    try:
        yield made
    finally:
        following.cancel()
        made.writer.transport.abort()
        await asyncio.gather(following, return_exceptions=True)


def _play(
    tmp_path: Path, scene: Callable[[RelayPublisher, Path], Awaitable[None]], remembered: Path | None = None
) -> None:
    async def played() -> None:
        path = tmp_path / "relay.sock"
        publisher = RelayPublisher(path, remembered=remembered)
        await publisher.start()
        try:
            await scene(publisher, path)
        finally:
            await publisher.close()

    asyncio.run(asyncio.wait_for(played(), 20))


async def _until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not holds():
            await asyncio.sleep(0.005)


def test_workers_hold_each_table_when_publish_returns_and_are_told_differences(tmp_path: Path) -> None:
    web, dns = _target(), _target("ns1/dns:dns")
    first = Table({_key("10.96.0.1"): web, _key("", 30080, OUTSIDE): web})
    second = Table({_key("10.96.0.1"): web, _key("10.96.0.2"): dns})

    async def scene(publisher: RelayPublisher, path: Path) -> None:
        async with _worker(path) as one:
            await _until(lambda: publisher.ports == _PORTS)
            await publisher.publish(first)
            assert one.table == first.targets
            assert one.table[_key("10.96.0.1")] is one.table[_key("", 30080, OUTSIDE)], "equal routes are one object"
            one.heard.clear()
            await publisher.publish(second)
            assert one.table == second.targets
            assert [message for message in one.heard if isinstance(message, Update)] == [
                Update(changed=((dns, (_key("10.96.0.2"),)),)),
                Update(removed=(_key("", 30080, OUTSIDE),)),
            ]
            async with _worker(path, pid=2) as other:
                await _until(lambda: other.count(End) == 1)
                assert other.table == second.targets and other.count(Begin) == 1

    _play(tmp_path, scene)


def test_workers_know_whose_rules_are_others_when_renew_returns(tmp_path: Path) -> None:
    """One of an earlier version, which does not know the word, does not hear it."""

    async def scene(publisher: RelayPublisher, path: Path) -> None:
        async with _worker(path) as one, _worker(path, pid=2, rings=False) as old:
            await publisher.renew(None)
            assert not one.heard, "there is no table yet"
            await _until(lambda: publisher.ports == _PORTS)
            await publisher.publish(Table({_key("10.96.0.1"): _target()}))
            one.heard.clear()
            await publisher.renew({"ns1/web:http"})
            assert [type(message) for message in one.heard] == [Anew, End] and one.heard[0] == Anew(("ns1/web:http",))
            await publisher.renew(set())
            assert one.count(End) == 1
            await publisher.renew({f"ns1/{number}:http" for number in range(5000)})
            assert [message for message in one.heard if isinstance(message, Anew)][-1] == Anew(None), "bounded"
            assert not old.count(Anew) and old.count(End) == 3

    _play(tmp_path, scene)


def test_a_target_that_gets_a_further_address_is_told_with_all_of_them(tmp_path: Path) -> None:
    """Or the worker would have two objects for what shares its counters and turns."""
    web = _target()
    frames = [*channel.updates(Table({_key("a"): web}), Table({_key("a"): web, _key("b"): web}))]
    assert [msgspec.msgpack.decode(one[4:], type=Update) for one in frames] == [
        Update(changed=((web, (_key("a"), _key("b"))),))
    ]
    assert not [*channel.updates(Table({_key("a"): web}), Table({_key("a"): _target()}))], "equal is no difference"


def test_frames_are_bounded_whatever_services_are_made_of() -> None:
    few = {_key(f"10.96.{n >> 8}.{n & 255}"): _target(f"ns1/s{n}") for n in range(20_000)}
    many = {_key(f"10.97.0.{n}"): _target(f"ns1/m{n}", ends=4_000) for n in range(5)}
    frames = [*channel.updates(None, Table({**few, **many}))]
    assert max(map(len, frames)) < 1 << 20 and len(frames) < 50
    decoded = [msgspec.msgpack.decode(one[4:], type=Update) for one in frames]
    assert {key: target for one in decoded for target, keys in one.changed for key in keys} == {**few, **many}


def test_a_worker_that_does_not_read_holds_nobody_up_for_long(tmp_path: Path) -> None:
    async def scene(publisher: RelayPublisher, path: Path) -> None:
        async with _worker(path, pid=2) as other, _worker(path, holds=False):
            await _until(lambda: len(publisher.pids()) == 2)
            async with asyncio.timeout(5):
                for number in range(100):  # it costs a second once, and not each time
                    await publisher.publish(Table({_key(f"a{number}"): _target()}))
            assert set(other.table) == {_key("a99")}

    _play(tmp_path, scene)


def test_rules_wait_for_the_first_worker_of_a_family_for_longer(tmp_path: Path) -> None:
    """It takes its time, on a busy machine: two seconds until it holds the table."""

    async def scene(publisher: RelayPublisher, path: Path) -> None:
        async with _worker(path, holds=False) as slow:
            await _until(lambda: publisher.ports is not None)
            publishing = asyncio.ensure_future(publisher.publish(Table({_key("a"): _target()})))
            await _until(lambda: slow.count(End) == 1)
            await asyncio.sleep(1.3)
            assert not publishing.done()
            slow.say(channel.Held(1))
            await publishing

    _play(tmp_path, scene)


def test_ports_are_those_of_workers_that_stay(tmp_path: Path) -> None:
    async def scene(publisher: RelayPublisher, path: Path) -> None:
        async with _worker(path, draining=True) as old:
            await _until(lambda: publisher.pids() == [(1, True)])
            assert publisher.ports is None and not await publisher.workers(0.05)
            async with _worker(path, pid=2, ports=(10272, 10273)) as new:
                assert await publisher.workers(5)
                publisher.led((10272, 10273))
                await _until(lambda: old.heard == [Lead((10272, 10273))])
                async with _worker(path, pid=3, draining=True) as late:  # one that only came now, from before
                    await _until(lambda: late.count(Lead) == 1)
                assert new.count(Lead) == 0
            assert publisher.ports == (10272, 10273), "rules stay where they lead while workers start again"

    _play(tmp_path, scene)


def test_flows_of_all_workers_and_not_of_one_that_hangs(tmp_path: Path) -> None:
    def flow(worker: int, number: int) -> Flow:
        return Flow(
            worker=worker,
            number=number,
            protocol="TCP",
            client="c",
            virtual="v",
            service="s",
            endpoint="e",
            began=number,
        )

    async def scene(publisher: RelayPublisher, path: Path) -> None:
        assert await publisher.flows(10) == []
        async with _worker(path) as one, _worker(path, pid=2) as two:
            one.flows = [flow(1, n) for n in range(0, 900, 2)]
            two.flows = [flow(2, n) for n in range(1, 900, 2)]
            await _until(lambda: len(publisher.pids()) == 2)
            assert [found.number for found in await publisher.flows(10_000)] == [*range(900)]
            assert [found.number for found in await publisher.flows(5)] == [*range(5)]
            assert publisher.open == 900
            async with _worker(path, pid=3) as mute:
                mute.flows = []
                await _until(lambda: len(publisher.pids()) == 3)
                two.say(channel.Flows(99, (flow(9, 9),), 1))  # nobody asked
                assert len(await publisher.flows(10_000)) == 900

    _play(tmp_path, scene)


def test_nonsense_ends_its_own_connection_only(tmp_path: Path) -> None:
    async def scene(publisher: RelayPublisher, path: Path) -> None:
        async with _worker(path) as one:
            for nonsense in (b"\xff\xff\xff\xff", framed(b"\xc1"), framed(b""), b"GET / HTTP/1.0\r\n\r\n"):
                reader, writer = await asyncio.open_unix_connection(path)
                writer.write(nonsense)
                assert await reader.read() == b""
                writer.close()
            await publisher.publish(Table({_key("a"): _target()}))
            assert one.table

    _play(tmp_path, scene)


def test_ejections_are_of_workers_that_are_there(tmp_path: Path) -> None:
    async def scene(publisher: RelayPublisher, path: Path) -> None:
        async with _worker(path) as one, _worker(path, pid=2) as two:
            one.say(Ejected((channel.chooser.Ejected("TCP", *_END, 1, 2.5),)))
            two.say(Ejected((channel.chooser.Ejected("TCP", *_END, 2, 1.5),)))
            await _until(lambda: publisher.ejected() == {_END: 2.5})
            one.writer.transport.abort()
            await _until(lambda: publisher.ejected() == {_END: 1.5})

    _play(tmp_path, scene)


def test_27_affinity_of_one_worker_is_told_to_the_others_to_those_that_come_later_and_to_the_next_controller(
    tmp_path: Path,
) -> None:
    file, now = tmp_path / "affinity", time.monotonic()
    mine = _stay("192.168.0.9", now - 1)

    async def before(publisher: RelayPublisher, path: Path) -> None:
        await publisher.publish(Table({_key("a"): _target(affinity_s=60)}))
        async with _worker(path) as one, _worker(path, pid=2) as two:
            one.say(Stays((mine,)))
            await _until(lambda: Stays((mine,)) in two.heard)
            two.say(Stays((_stay("192.168.0.9", now - 2, ("10.180.0.9", 8080)),)))  # older: no news
            async with _worker(path, pid=3) as three:
                await _until(lambda: any(isinstance(word, End) for word in three.heard))
                assert three.heard[0] == Stays((mine,)), (
                    "who stays where is known before there is anything to choose from"
                )
            assert one.count(Stays) == 0

    async def after(publisher: RelayPublisher, path: Path) -> None:
        async with _worker(path, pid=4) as four:
            await _until(lambda: Stays((mine,)) in four.heard)

    _play(tmp_path, before, file)
    _play(tmp_path, after, file)


def test_the_file_of_affinity_is_of_this_start_of_the_machine_and_what_is_over_leaves_it(tmp_path: Path) -> None:
    path = tmp_path / "affinity"

    async def scene() -> None:
        kept = AffinityMemory(path)
        kept.take([_stay("a", 100.0), _stay("b", 150.0)])
        await kept.write(165.0)
        other = AffinityMemory(path)
        assert [entry.client for entry in other.load(170.0)] == ["b"]
        assert other.load(170.0) == [], "read once"
        assert AffinityMemory(path).load(149.0) == [], "from the future: another clock"
        assert AffinityMemory(path).load(210.0) == []
        path.write_bytes(msgspec.msgpack.encode(memory._File("another boot", (_stay("b", 150.0),))))
        assert AffinityMemory(path).load(170.0) == []
        path.write_bytes(b"\xc1" * 100)
        assert AffinityMemory(path).load(170.0) == []
        await AffinityMemory(tmp_path / "nowhere" / "affinity").write(1.0)

    asyncio.run(scene())


def test_what_could_not_be_written_is_written_later_and_leaves_no_part(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing new is said meanwhile; the complaint is told once."""
    path = tmp_path / "run" / "affinity"

    async def scene() -> None:
        kept = AffinityMemory(path)
        kept.take([_stay("a", 100.0)])
        for moment in (101.0, 106.0):
            await kept.write(moment)
        path.mkdir(parents=True)  # now only its last step fails
        await kept.write(111.0)
        assert [*path.parent.iterdir()] == [path]
        path.rmdir()
        await kept.write(116.0)
        assert [entry.client for entry in AffinityMemory(path).load(120.0)] == ["a"]

    asyncio.run(scene())
    assert [record.message for record in caplog.records] == ["Affinity cannot be remembered on disk"] * 2


def test_two_instances_learn_from_one_file(tmp_path: Path) -> None:
    async def scene() -> None:
        one, two = AffinityMemory(tmp_path / "f"), AffinityMemory(tmp_path / "f")
        one.take([_stay("a", 100.0)])
        await one.write(101.0)
        assert one.load(102.0) == [], "its own"
        assert [entry.client for entry in two.load(102.0)] == ["a"]
        two.take([_stay("b", 103.0)])
        await two.write(104.0)
        assert [entry.client for entry in one.load(105.0)] == ["b"]
        assert sorted(entry.client for entry in AffinityMemory(tmp_path / "f").load(105.0)) == ["a", "b"]

    asyncio.run(scene())


def test_what_is_remembered_is_bounded_and_the_client_unseen_for_longest_goes() -> None:
    kept = AffinityMemory(None)
    kept.take(_stay(f"c{n}", float(n)) for n in range(MOST))
    kept.take([_stay("c0", MOST + 1.0), _stay("new", MOST + 2.0)])
    clients = {entry.client for entry in kept._held.values()}
    assert "c1" not in clients and {"c0", "c2", "new"} <= clients


def _row(began: int, open_now: int = 0) -> list[int]:
    row = [0] * len(COLUMNS)
    row[0], row[OPEN] = began, open_now
    return row


def test_counters_never_fall_when_workers_end_and_what_is_open_ends_with_them() -> None:
    totals = Totals()
    for life in range(200):  # many more than are told apart
        totals.take((life, life), [("web", None, _row(3, 2)), ("web", _END, _row(3, 2))], {"accepted": 3})
        totals.gone((life, life))
        assert totals.sums().services["web"] == _row(3 * (life + 1)) == totals.sums().endpoints["web", _END]
        assert totals.sums().worker == {"accepted": 3 * (life + 1)}
    totals.take((199, 199), [("web", None, _row(4, 1))], {"accepted": 4})  # it had lost its connection only
    assert totals.sums().services["web"] == _row(601, 1)
    totals.take((7, 1), [("web", None, [1, 2, 3])], {})  # of another version
    assert totals.sums().services["web"] == _row(601, 1)


def test_counters_of_what_is_gone_are_forgotten() -> None:
    totals = Totals()
    totals.take(
        (1, 1), [("web", None, _row(3)), ("old", None, _row(3)), ("busy", None, _row(1, 1)), ("web", _END, _row(1))], {}
    )
    totals.prune(None)
    assert len(totals.sums().services) == 3
    totals.prune(Table({_key("a"): _target("web", ends=0)}))
    assert set(totals.sums().services) == {"web", "busy"} and not totals.sums().endpoints


def test_counters_of_what_is_gone_are_forgotten_when_its_connections_end_or_their_worker_does() -> None:
    totals, table = Totals(), Table({_key("a"): _target("web", ends=0)})
    for life in ((1, 1), (2, 1)):
        totals.take(life, [("busy", None, _row(4, 1)), ("busy", _END, _row(4, 1)), ("web", None, _row(1, 1))], {})
    totals.prune(table)
    assert totals.sums().services == {"busy": _row(8, 2), "web": _row(2, 2)}
    totals.gone((1, 1))
    totals.prune(table)
    assert totals.sums().services == {"busy": _row(4, 1), "web": _row(2, 1)}
    totals.take((2, 1), [("busy", None, _row(4)), ("busy", _END, _row(4))], {})
    totals.prune(table)
    assert totals.sums().services == {"web": _row(2, 1)} and not totals.sums().endpoints


def test_counters_do_not_fall_when_a_worker_forgets_what_was_gone_for_a_moment() -> None:
    totals = Totals()
    totals.take((1, 1), [("web", _END, _row(5, 1))], {})
    totals.take((1, 1), [("web", _END, _row(2, 1))], {})
    assert totals.sums().endpoints["web", _END] == _row(7, 1)
    totals.take((1, 1), [("web", _END, _row(3))], {})
    assert totals.sums().endpoints["web", _END] == _row(8)


def test_sums_without_endpoints_are_the_same_sums() -> None:
    totals = Totals()
    row = [1] * len(COLUMNS)
    for life in ((7, 1), (8, 1)):
        totals.take(life, [("a/b", None, row), ("a/b", ("10.0.0.1", 80), row)], {"accepted": 2})
    totals.gone((8, 1))
    whole, short = totals.sums(), totals.sums(endpoints=False)
    assert (short.services, short.worker) == (whole.services, whole.worker) and short.worker == totals.worker() == {
        "accepted": 4
    }
    assert whole.endpoints[("a/b", ("10.0.0.1", 80))] == whole.services["a/b"] and not short.endpoints
    assert whole.services["a/b"] == [1 if column == OPEN else 2 for column in range(len(COLUMNS))]
