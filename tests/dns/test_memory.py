"""The zones on disk: used when no controller brings any, and refused, with the reason, when they are not what was written."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import dns.edns
import dns.message
import dns.rcode
import pytest

from kproxy.dns import memory
from kproxy.dns.memory import Memory, packed, read, unpacked
from kproxy.dns.sending import whole
from kproxy.dns.settings import DnsSettings
from tests.support.dns_worker import Workers, wait_until
from tests.support.queries import zone_of

SETTINGS = DnsSettings(reverse_zones=(), fallthrough=())
QUERY = dns.message.make_query("svc1.testns.svc.cluster.local.", "A", use_edns=0).to_wire()


def _reply(workers: Workers) -> dns.message.Message:
    found = workers.udp(QUERY)
    assert found is not None
    return dns.message.from_wire(found)


@pytest.fixture
def workers(tmp_path: Path) -> Iterator[Workers]:
    """One that nobody feeds, with a place for the file."""
    with Workers(SETTINGS, count=0, memory=tmp_path / memory.NAME) as made:
        made.stop_controller()
        yield made


def _written(path: Path, workers: Workers, settings: DnsSettings | None = None) -> None:
    path.write_bytes(packed(whole([zone_of("U", settings or workers.settings)], None, 0)))


def test_without_a_controller_the_zones_on_disk_are_answered(workers: Workers, tmp_path: Path) -> None:
    _written(tmp_path / memory.NAME, workers)
    workers.start_worker()
    reply = _reply(workers)
    assert reply.rcode() == dns.rcode.NOERROR and reply.answer
    # and a controller that comes later says what is true
    workers.start_controller()
    wait_until(lambda: [w.number for w in workers.status()] == [0], "the worker says that it answers already")
    workers.publish(zone_of("U", replace(workers.settings, ttl=77)))
    assert _reply(workers).answer[0].ttl == 77


def test_without_any_zone_it_is_servfail_with_a_reason(workers: Workers) -> None:
    workers.start_worker()
    reply = _reply(workers)
    errors = [option for option in reply.options if isinstance(option, dns.edns.EDEOption)]
    assert reply.rcode() == dns.rcode.SERVFAIL and [error.code for error in errors] == [14]


@pytest.mark.parametrize("harm", ["cut", "changed", "foreign", "of other zones", "of other addresses", "empty"])
def test_what_is_not_whole_or_not_ours_is_not_used(harm: str, workers: Workers, tmp_path: Path) -> None:
    path = tmp_path / memory.NAME
    _written(path, workers)
    data = path.read_bytes()
    match harm:
        case "cut":
            path.write_bytes(data[:-100])
        case "changed":
            path.write_bytes(data.replace(b"svc1", b"svc9", 1))
        case "foreign":
            path.write_bytes(os.urandom(5000))
        case "of other zones":
            _written(path, workers, replace(workers.settings, zone="other.local"))
        case "of other addresses":
            path.write_bytes(packed(whole([zone_of("U", SETTINGS)], replace(SETTINGS, listen=("127.0.0.77",)), 0)))
        case "empty":
            path.write_bytes(b"")
    workers.start_worker()
    assert _reply(workers).rcode() == dns.rcode.SERVFAIL


def test_a_file_says_what_is_wrong_with_it(tmp_path: Path) -> None:
    for data, why in ((b"x", "no zone file"), (packed([])[:-1] + b"?", "not whole")):
        with pytest.raises(ValueError, match=why):
            unpacked(data)
    huge = tmp_path / "huge"
    with huge.open("wb") as file:
        file.truncate(memory.MAX_OCTETS + 100)
    with pytest.raises(ValueError, match="larger than"):
        read(huge)


async def _kept(path: Path, frames: list[bytes], *, true: bool = True) -> Memory:
    kept = Memory(path, lambda: frames, lambda: true)
    task = asyncio.create_task(kept.keep())
    kept.changed()
    await asyncio.sleep(0.3)
    task.cancel()
    return kept


def test_it_is_replaced_in_one_step_and_its_age_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "WRITE_EVERY_S", 0.0)
    monkeypatch.setattr(memory, "TRUE_EVERY_S", 0.05)
    path = tmp_path / memory.NAME
    body = list(whole([zone_of("U", SETTINGS)], None, 0))
    os.utime(tmp_path)
    kept = asyncio.run(_kept(path, body))
    state = kept.state()
    assert state.age_s is not None and state.age_s < 5 and state.octets == path.stat().st_size and not state.problem
    assert [len(message) for message in read(path)[0]] == [len(frame) - 4 for frame in body]
    assert [entry.name for entry in tmp_path.iterdir()] == [memory.NAME], "nothing is left beside it"
    assert path.stat().st_mode & 0o777 == 0o600
    os.utime(path, (time.time() - 60,) * 2)
    assert 59 < read(path)[1] < 70


def test_a_disk_that_takes_nothing_is_told_and_ends_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "WRITE_EVERY_S", 0.0)
    kept = asyncio.run(_kept(tmp_path / "missing" / memory.NAME, [b"1234"]))
    assert kept.state().problem == "No such file or directory" and kept.state().age_s is None
    monkeypatch.setattr(memory, "MAX_OCTETS", 3)
    kept = asyncio.run(_kept(tmp_path / memory.NAME, [b"1234"]))
    assert "larger than" in kept.state().problem
