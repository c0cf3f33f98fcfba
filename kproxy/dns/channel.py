"""How a zone gets from the controller to the workers, and their counters back: framed messages over a Unix socket.

    worker → controller    Hello, then Counts from time to time, Held after every change, Resync when a number is missing
    controller → worker    Begin, Part …, End (a whole zone), then one Change for each difference

A frame is its length in four octets, then msgpack. Every zone has a number; a Change names the number it builds on, and a worker that holds
another one says Resync and gets the whole zone. What a slow worker has not been sent is never queued: when it is ready again it gets the
difference between what it has and what is current then, however much happened in between.

What must not happen here: trust in a length (frames are bounded), or one worker holding up another.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from kproxy.dns.settings import DnsSettings
from kproxy.dns.zone import ServiceRecords, Zone, ZoneDelta, difference
from kproxy.framing import framed, receive_frame

MAX_FRAME = 16 << 20
PART = 1000  # Services and endpoints together: a few milliseconds of a worker's time; queries are answered between two parts
SEND_TIMEOUT_S = 10.0


class Hello(msgspec.Struct, frozen=True, tag="hello"):
    """The first frame of a worker: which process it is and the number of the zone it holds, -1 for none."""

    pid: int
    number: int = -1


class Held(msgspec.Struct, frozen=True, tag="held"):
    """The worker answers from zone `number` now."""

    number: int


class Counts(msgspec.Struct, frozen=True, tag="counts"):
    """All counters of the worker since it started."""

    values: dict[str, int]


class Resync(msgspec.Struct, frozen=True, tag="resync"):
    """The worker cannot use a Change; it wants the whole zone."""


class Tell(msgspec.Struct, frozen=True, tag="tell"):
    """Are you there? The worker says its Counts at once."""


class Begin(msgspec.Struct, frozen=True, tag="begin"):
    """A whole zone begins."""

    settings: DnsSettings


class Part(msgspec.Struct, frozen=True, tag="part"):
    """Some of its Services."""

    services: tuple[ServiceRecords, ...]


class End(msgspec.Struct, frozen=True, tag="end"):
    """The rest of it; from here on it answers. `delta` carries everything but the Services."""

    number: int
    delta: ZoneDelta


class Change(msgspec.Struct, frozen=True, tag="change"):
    """From zone `base` to zone `number`."""

    base: int
    number: int
    delta: ZoneDelta


FromWorker = Hello | Held | Counts | Resync
FromController = Begin | Part | End | Change | Tell

_encoder = msgspec.msgpack.Encoder()
_from_worker: msgspec.msgpack.Decoder[FromWorker] = msgspec.msgpack.Decoder(FromWorker)
_from_controller: msgspec.msgpack.Decoder[FromController] = msgspec.msgpack.Decoder(FromController)


def frame(message: FromWorker | FromController) -> bytes:
    """A message with its length in front."""
    return framed(_encoder.encode(message))


async def receive_from_worker(reader: asyncio.StreamReader) -> FromWorker:
    """The worker's next message. Raises EOFError (the end), ValueError (nonsense)."""
    return _from_worker.decode(await receive_frame(reader, MAX_FRAME))


async def receive_from_controller(reader: asyncio.StreamReader) -> FromController:
    """The controller's next message. Raises EOFError (the end), ValueError (nonsense)."""
    return _from_controller.decode(await receive_frame(reader, MAX_FRAME))


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """A connected worker: its process and the number of the zone it answers from; -1 while it listens to nobody yet or has none."""

    pid: int
    number: int


@dataclass(slots=True, eq=False)
class _Session:
    """One connected worker. sent: the zone it will have when all that was written has arrived."""

    pid: int
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    sent: Zone | None = None
    sent_number: int = -1
    held: int = -1
    resync: bool = False
    closing: bool = False
    counts: dict[str, int] = field(default_factory=dict)
    asked: float = 0.0  # when it was first asked whether it is there without having said a word since; 0: it was not
    asking: bool = False


class ZonePublisher:
    """The controller's side: listens at `path`, brings every worker that comes up to date, collects their counters."""

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)
        self._zone: Zone | None = None
        self._number = 0
        self._sessions: set[_Session] = set()
        self._gone: Counter[str] = Counter()
        self._server: asyncio.Server | None = None
        self._moved = asyncio.Event()

    async def start(self) -> None:
        """Begins to listen, in place of whatever socket an earlier controller left. Raises OSError when it cannot."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.unlink(missing_ok=True)
        self._server = await asyncio.start_unix_server(self._serve, self._path)
        self._path.chmod(0o600)

    async def publish(self, zone: Zone) -> None:
        """Makes `zone` current. Returns at once; the workers are told by their own tasks, at their own pace.

        A zone that is not synced goes nowhere: after a restart of the controller the workers' older zone is better than SERVFAIL, and a
        worker without any zone says SERVFAIL by itself.
        """
        if not zone.synced or zone is self._zone:
            return
        old, self._zone = self._zone, zone
        if (
            old is not None
            and old.services is zone.services
            and old.serial == zone.serial
            and old.settings == zone.settings
        ):
            return  # another snapshot, the same answers
        self._number += 1
        for session in self._sessions:
            session.wake.set()

    async def delivered(self) -> None:
        """Waits until every connected worker answers from the zone that is current now. Bound it with a timeout."""
        wanted = self._number
        while any(session.held < wanted for session in self._sessions):
            self._moved.clear()
            await self._moved.wait()

    def counters(self) -> dict[str, int]:
        """Sums over all workers, those that ended included, so that no counter ever falls."""
        total = Counter(self._gone)
        for session in self._sessions:
            total.update(session.counts)
        return dict(total)

    def workers(self) -> tuple[WorkerStatus, ...]:
        """The connected workers, by pid."""
        return tuple(sorted((WorkerStatus(s.pid, s.held) for s in self._sessions), key=lambda status: status.pid))

    def answering(self) -> int:
        """How many workers are bound and answer from a zone: what makes it right to draw pods' queries to this node."""
        return sum(session.held >= 0 for session in self._sessions)

    def ask(self, now: float) -> None:
        """Asks every worker for a word; `silent` tells who has none. now: seconds on the caller's clock."""
        for session in self._sessions:
            session.asked = session.asked or now
            session.asking = True
            session.wake.set()

    def silent(self, now: float, limit_s: float) -> tuple[int, ...]:
        """The pids of workers that have been asked for longer than `limit_s` and have said nothing since."""
        return tuple(s.pid for s in self._sessions if s.asked and now - s.asked >= limit_s)

    async def close(self) -> None:
        """Stops listening and hangs up; workers go on with what they have."""
        if self._server is not None:
            self._server.close()
            for session in self._sessions:
                session.closing = True
                session.wake.set()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1.0):
                    while self._sessions:
                        self._moved.clear()
                        await self._moved.wait()
        with contextlib.suppress(OSError):
            self._path.unlink(missing_ok=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # Python 3.11 asks a cancelled connection handler for its exception and prints a traceback over it: end quietly instead.
        with contextlib.suppress(asyncio.CancelledError):
            await self._talk(reader, writer)

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        session: _Session | None = None
        try:
            async with asyncio.timeout(SEND_TIMEOUT_S):
                hello = await receive_from_worker(reader)
            if not isinstance(hello, Hello):
                return
            session = _Session(hello.pid)
            session.wake.set()
            self._sessions.add(session)
            # Two directions, one task group: whichever ends (the worker hung up, or cannot take more) ends the other.
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._send(session, writer))
                tasks.create_task(self._listen(session, reader))
        except* (OSError, EOFError, ValueError, TimeoutError):
            pass  # a worker that ended or speaks nonsense; it comes back with Hello
        finally:
            if session is not None:
                self._sessions.discard(session)
                self._gone.update(session.counts)
                self._moved.set()
            writer.close()

    async def _listen(self, session: _Session, reader: asyncio.StreamReader) -> None:
        while True:
            message = await receive_from_worker(reader)
            session.asked = 0.0
            match message:
                case Counts():
                    session.counts = message.values
                case Held():
                    session.held = message.number
                    self._moved.set()
                case Resync():
                    session.resync = True
                    session.wake.set()
                case Hello():
                    pass

    async def _send(self, session: _Session, writer: asyncio.StreamWriter) -> None:
        while True:
            await session.wake.wait()
            session.wake.clear()
            if session.closing:
                raise EOFError
            if session.asking:
                session.asking = False
                writer.write(frame(Tell()))
            if session.resync:
                session.sent, session.sent_number, session.resync = None, -1, False
            zone, number = self._zone, self._number
            if zone is None or session.sent_number == number:
                continue
            delta = difference(session.sent, zone) if session.sent is not None else None
            if delta is not None and sum(map(_weight, delta.changed)) <= PART:
                writer.write(frame(Change(session.sent_number, number, delta)))
            else:
                await self._send_whole(writer, zone, number)
            await self._drain(writer)
            session.sent, session.sent_number = zone, number

    async def _send_whole(self, writer: asyncio.StreamWriter, zone: Zone, number: int) -> None:
        writer.write(frame(Begin(zone.settings)))
        part: list[ServiceRecords] = []
        weight = 0
        for records in zone.services.values():
            part.append(records)
            weight += _weight(records)
            if weight >= PART:
                writer.write(frame(Part(tuple(part))))
                await self._drain(writer)
                part, weight = [], 0
        writer.write(frame(Part(tuple(part))))
        writer.write(frame(End(number, ZoneDelta(serial=zone.serial, synced=True, namespaces=zone.namespaces))))

    async def _drain(self, writer: asyncio.StreamWriter) -> None:
        async with asyncio.timeout(SEND_TIMEOUT_S):
            await writer.drain()


def _weight(records: ServiceRecords) -> int:
    return 1 + sum(len(group.members) for group in records.groups)
